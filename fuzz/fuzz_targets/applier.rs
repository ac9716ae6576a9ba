//! Records and pages in any order, in groups of any size: what the groups do is what the items do one by one.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use replikv_core::{Cursor, Keyspace, LinkId, Op, meta};
use replikv_fuzz::{Page, RECORDS, Stand, at_most, change, record};
use replikv_proto::{Applier, Content, Record};

#[derive(Debug)]
struct Input {
    cursor: Cursor,
    target: u16,
    items: Vec<Item>,
}

#[derive(Debug, Arbitrary)]
enum Item {
    Begin(Stand),
    Record,
    Page(Page),
    Commit,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self { cursor: Stand::arbitrary(u)?.cursor(), target: u.arbitrary()?, items: at_most(u, 64)? })
    }
}

type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a slave's data is when every item is applied on its own.
struct Model {
    cursor: Cursor,
    state: State,
}

impl Model {
    fn record(&mut self, record: &Record) {
        for op in record.body() {
            match op {
                Op::Put { key, .. } | Op::Delete { key } if !self.cursor.coverage.covers(key) => {}
                Op::DeleteRange { start, end } => {
                    let coverage = &self.cursor.coverage;
                    let inside = |key: &Vec<u8>| &key[..] >= start && end.is_none_or(|end| &key[..] < end);
                    self.state.retain(|key, _| !inside(key) || !coverage.covers(key));
                }
                op => change(&mut self.state, op),
            }
        }
        self.cursor.position = record.position();
        self.complete();
    }

    fn content(&mut self, content: &Content) {
        assert!(self.cursor.coverage.advance(&content.range, content.read_at));
        self.state.retain(|key, _| !content.range.contains(key));
        content.entries.iter().for_each(|op| change(&mut self.state, op));
        self.complete();
    }

    fn complete(&mut self) {
        if self.cursor.is_consistent() {
            self.cursor = Cursor::at(self.cursor.position);
        }
    }
}

fuzz_target!(|input: Input| {
    let link = LinkId::default();
    let mut model = Model { cursor: input.cursor.clone(), state: State::new() };
    let mut applier = Applier::new(link.clone(), Some(input.cursor), usize::from(input.target));
    let (mut state, mut stored) = (State::new(), model.cursor.to_bytes());
    let mut commit = |applier: &mut Applier| {
        let Some(group) = applier.next_group().expect("every page continues the copy") else { return false };
        let [required] = group.writes.preconditions() else { panic!("one precondition") };
        assert_eq!(required.value.as_ref(), Some(&stored));
        for (keyspace, op) in group.writes.ops() {
            match (keyspace, op) {
                (Keyspace::Data, op) => change(&mut state, op),
                (Keyspace::Meta, Op::Put { key, value }) if key == meta::cursor_key(&link) => {
                    stored = bytes::Bytes::copy_from_slice(value);
                }
                _ => {}
            }
        }
        assert_eq!(Cursor::from_bytes(&stored), Some(group.cursor));
        true
    };
    for item in input.items {
        match item {
            Item::Begin(stand) => {
                model.cursor = stand.cursor();
                applier.begin(model.cursor.clone());
            }
            Item::Record => {
                // The session vouches for the chain.
                let next = model.cursor.position.seq.as_u64().checked_add(1).filter(|next| *next <= RECORDS as u64);
                let Some(next) = next.and_then(|next| usize::try_from(next).ok()) else { continue };
                model.record(record(next));
                applier.push_record(record(next).clone());
            }
            Item::Page(page) => {
                let Some(content) = page.next(&model.cursor.coverage) else { continue };
                model.content(&content);
                applier.push_content(content);
            }
            Item::Commit => drop(commit(&mut applier)),
        }
    }
    while commit(&mut applier) {}
    assert_eq!(applier.pending_bytes(), 0);
    // Only what is covered is anybody's business.
    let coverage = model.cursor.coverage.clone();
    let covered = |state: State| -> State { state.into_iter().filter(|(key, _)| coverage.covers(key)).collect() };
    assert_eq!(covered(state), covered(model.state));
    assert_eq!(Cursor::from_bytes(&stored), Some(model.cursor));
});
