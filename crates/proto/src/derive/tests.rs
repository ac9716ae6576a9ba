use std::sync::Arc;

use bytes::Bytes;
use replikv_core::{Batch, KeyRange, LinkId, Position, StoreLimits, Subspace};

use super::*;
use crate::layout::{Head, Stored};
use crate::{Answer, Committer, CommitterConfig, Gathered, Intent, Now, Record, Step, Work, origin};

/// An index: `VALUE/KEY` for each entry `KEY = VALUE`. Refuses the value "bad".
#[derive(Debug)]
struct Index;

impl Derive for Index {
    fn name(&self) -> &'static str {
        "index"
    }

    fn version(&self) -> u32 {
        1
    }

    fn source(&self) -> KeyRange {
        KeyRange::from_bounds("a".."n")
    }

    fn derive(&self, changes: &[Change], view: &DeriveView<'_>, out: &mut Derived) -> Result<(), DeriveAbort> {
        for Change { key, old, new } in changes {
            let place = |value: &Bytes| Bytes::from([value, &b"/"[..], key].concat());
            if new.as_deref() == Some(b"bad") {
                return Err(DeriveAbort::refuse("it is bad"));
            }
            if let Some(old) = old {
                // What is taken out was put in.
                assert!(view.get(&place(old))?.is_some(), "{old:?}");
                out.delete(place(old));
            }
            if let Some(new) = new {
                out.put(place(new), Bytes::new());
            }
        }
        Ok(())
    }
}

fn committer() -> Committer<u32> {
    let source = replikv_core::SourceId::from_bytes([1; 16]);
    let epoch = replikv_core::Epoch { number: 1, nonce: 2 };
    let limits = StoreLimits { max_key: 100, max_value: 100, max_batch: 1000 };
    let config = CommitterConfig { epoch, group_bytes: 1 << 20, limits };
    let head = Head { position: origin(source, epoch), log_bytes: 0, uptime_ms: 0 };
    let mut derives = Derives::default();
    derives.push(Subspace::raw(&b"x/"[..]), Arc::new(Index));
    Committer::new(config, head).deriving(derives)
}

/// Steps through, with `store` as what the store holds, and tells the bodies of the records and the answers.
fn run(committer: &mut Committer<u32>, store: &mut BTreeMap<Bytes, Bytes>) -> (Vec<String>, Vec<(u32, Answer)>) {
    loop {
        match committer.step(Now::default(), 0) {
            Step::Fetch(keys) => {
                assert!(!keys.is_empty());
                let values: Vec<_> = keys.into_iter().map(|key| (key.clone(), store.get(&key).cloned())).collect();
                committer.fetched(values);
            }
            Step::FetchRanges(ranges) => {
                for range in ranges {
                    let all = store.iter().filter(|(key, _)| range.contains(key));
                    let all: Vec<_> = all.map(|(key, value)| (key.clone(), value.clone())).collect();
                    committer.fetched_range(range, all);
                }
            }
            Step::Commit(group) => {
                let bodies = group.entries.iter().map(|entry| Record::decode(entry.bytes.clone()).unwrap());
                let mut words = Vec::new();
                for record in bodies {
                    for op in record.body() {
                        words.push(apply(store, op));
                    }
                }
                committer.committed(&group);
                return (words, group.answers);
            }
            Step::Answer(answers) => return (Vec::new(), answers),
            Step::Idle => return (Vec::new(), Vec::new()),
        }
    }
}

fn apply(store: &mut BTreeMap<Bytes, Bytes>, op: replikv_core::Op<'_>) -> String {
    use replikv_core::Op;
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    match op {
        Op::Put { key, value } => {
            store.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            format!("+{}={}", text(key), text(value))
        }
        Op::Delete { key } => {
            store.remove(key);
            format!("-{}", text(key))
        }
        Op::DeleteRange { start, end } => {
            let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
            store.retain(|key, _| !range.contains(key));
            format!("-{}..", text(start))
        }
    }
}

fn write(committer: &mut Committer<u32>, ticket: u32, batch: Batch) {
    committer.push(Intent { ticket, work: Work::Batch(batch) });
}

#[test]
fn what_follows_is_part_of_the_record_and_sees_the_batches_before_it() {
    let (mut committer, mut store) = (committer(), BTreeMap::new());
    write(&mut committer, 1, Batch::new().put("b", "2").put("a", "1").put("z", "9"));
    write(&mut committer, 2, Batch::new().put("a", "3").delete("b").put("a", "4"));
    let (ops, answers) = run(&mut committer, &mut store);
    assert_eq!(
        ops,
        ["+b=2", "+a=1", "+z=9", "+x/d1/a=", "+x/d2/b=", "+a=3", "-b", "+a=4", "-x/d1/a", "-x/d2/b", "+x/d4/a="]
    );
    assert!(answers.iter().all(|(_, answer)| matches!(answer, Answer::Committed(_))));
    // What is there already changes nothing, and what is deleted by a range goes as well.
    write(&mut committer, 3, Batch::new().put("a", "4"));
    assert_eq!(run(&mut committer, &mut store).0, ["+a=4"]);
    write(&mut committer, 4, Batch::new().put("c", "5").delete_range("a".."d").put("b", "6"));
    assert_eq!(run(&mut committer, &mut store).0, ["+c=5", "-a..", "+b=6", "-x/d4/a", "+x/d6/b="]);
    // A range delete of the same group is seen.
    write(&mut committer, 5, Batch::new().put("d", "7"));
    write(&mut committer, 6, Batch::new().delete_range("a".."z"));
    write(&mut committer, 7, Batch::new().put("d", "8"));
    let (ops, _) = run(&mut committer, &mut store);
    assert_eq!(ops, ["+d=7", "+x/d7/d=", "-a..", "-x/d6/b", "-x/d7/d", "+d=8", "+x/d8/d="]);
    assert_eq!(store.keys().map(|key| key.escape_ascii().to_string()).collect::<Vec<_>>(), ["d", "x/d8/d", "z"]);
}

#[test]
fn a_batch_from_which_nothing_can_be_derived_is_refused_alone() {
    let (mut committer, mut store) = (committer(), BTreeMap::new());
    write(&mut committer, 1, Batch::new().put("a", "1"));
    write(&mut committer, 2, Batch::new().put("b", "1").put("c", "bad"));
    write(&mut committer, 3, Batch::new().put("d", "1"));
    let (ops, answers) = run(&mut committer, &mut store);
    assert_eq!(ops, ["+a=1", "+x/d1/a=", "+d=1", "+x/d1/d="]);
    let refused = answers.iter().find(|(ticket, _)| *ticket == 2).unwrap();
    assert!(matches!(&refused.1, Answer::NotDerived { name, reason } if name == "index" && reason == "it is bad"));
    // What would be too large for a slave is refused as well.
    write(&mut committer, 4, Batch::new().put("e", "v".repeat(99)));
    let (ops, answers) = run(&mut committer, &mut store);
    assert!(ops.is_empty());
    assert!(matches!(&answers[0].1, Answer::NotDerived { .. }), "{answers:?}");
}

#[test]
fn what_a_link_brings_is_derived_from_as_well() {
    let (mut committer, mut store) = (committer(), BTreeMap::new());
    let (ops, ..) = Batch::new().put("a", "1").into_parts().unwrap();
    let gathered =
        Gathered { link: LinkId::new("edge").unwrap(), requires: Vec::new(), ops, beside: Default::default() };
    committer.push(Intent { ticket: 1, work: Work::Gathered(gathered) });
    assert_eq!(run(&mut committer, &mut store).0, ["+a=1", "+x/d1/a="]);
}

#[test]
fn entries_that_were_there_before_are_derived_from() {
    let (mut committer, mut store) = (committer(), BTreeMap::new());
    let entries = vec![(Bytes::from("a"), Bytes::from("1")), (Bytes::from("x/m"), Bytes::from("mark"))];
    committer.push(Intent { ticket: 1, work: Work::Derive { name: "index".into(), entries } });
    assert_eq!(run(&mut committer, &mut store).0, ["+x/d1/a="]);
    committer.push(Intent { ticket: 2, work: Work::Derive { name: "index".into(), entries: Vec::new() } });
    assert!(matches!(run(&mut committer, &mut store).1[..], [(2, Answer::Committed(Position { .. }))]));
}

#[test]
fn a_derive_that_panics_refuses() {
    let (mut committer, mut store) = (committer(), BTreeMap::new());
    // It was never put in.
    store.insert(Bytes::from("a"), Bytes::from("1"));
    write(&mut committer, 1, Batch::new().delete("a"));
    let (_, answers) = run(&mut committer, &mut store);
    assert!(matches!(&answers[0].1, Answer::NotDerived { reason, .. } if reason == "it panicked"), "{answers:?}");
}

#[test]
fn a_range_of_which_too_much_would_be_read_is_refused() {
    let mut committer = committer();
    write(&mut committer, 1, Batch::new().delete_range("a".."z"));
    write(&mut committer, 2, Batch::new().put("z", ""));
    assert!(matches!(committer.step(Now::default(), 0), Step::FetchRanges(_)));
    let refused = committer.range_too_large("too much");
    assert!(matches!(refused, Some((1, Answer::NotDerived { .. }))), "{refused:?}");
    assert_eq!(run(&mut committer, &mut BTreeMap::new()).0, ["+z="]);
}

#[test]
fn names_and_targets_are_apart() {
    let derives = |targets: &[&'static str]| {
        let mut derives = Derives::default();
        targets.iter().for_each(|target| derives.push(Subspace::raw(*target), Arc::new(Index)));
        derives.check()
    };
    assert!(derives(&["x/"]).is_ok());
    assert!(derives(&[""]).is_err(), "the whole key space");
    assert!(derives(&["x/", "y/"]).unwrap_err().1.contains("same name"));
}

#[test]
fn a_mark_is_stored_as_it_was_before() {
    let mark = DeriveMark { name: "words".into(), version: 3, state: DeriveState::Complete, epoch: (2, 5) };
    assert_eq!(&mark.to_bytes()[..], b"\x01\x05words\x03\x01\x02\x05");
    assert_eq!(DeriveMark::from_bytes(&mark.to_bytes()).unwrap(), mark);
}
