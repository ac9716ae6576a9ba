use std::sync::Arc;

use bytes::Bytes;
use replikv_core::{Batch, EncodedOps, KeyRange, LinkId, StoreLimits, Subspace};

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

/// Derives nothing, from all there is, under this name.
#[derive(Debug)]
struct Named(String);

impl Derive for Named {
    fn name(&self) -> &str {
        &self.0
    }

    fn version(&self) -> u32 {
        1
    }

    fn derive(&self, _: &[Change], _: &DeriveView<'_>, _: &mut Derived) -> Result<(), DeriveAbort> {
        Ok(())
    }
}

fn derives() -> Derives {
    let mut derives = Derives::default();
    derives.push(Subspace::raw(&b"x/"[..]), Arc::new(Index));
    derives
}

fn committer() -> Committer<u32> {
    let limits = StoreLimits { max_key: 100, max_value: 100, max_batch: 1000 };
    committer_within(limits)
}

fn committer_within(limits: StoreLimits) -> Committer<u32> {
    let source = replikv_core::SourceId::from_bytes([1; 16]);
    let epoch = replikv_core::Epoch { number: 1, nonce: 2 };
    let config = CommitterConfig { epoch, group_bytes: 1 << 20, limits };
    let head = Head { position: origin(source, epoch), log_bytes: 0, uptime_ms: 0 };
    Committer::new(config, head).deriving(derives())
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
    let head = committer.head();
    let (_, answers) = run(&mut committer, &mut store);
    assert!(matches!(answers[..], [(2, Answer::Committed(at))] if at == head.position));
    assert_eq!(committer.head(), head, "nothing follows, and no record says so");
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
    let named = |names: &[(&str, &'static str)]| {
        let mut derives = Derives::default();
        assert!(derives.is_empty());
        for (name, target) in names {
            derives.push(Subspace::raw(*target), Arc::new(Named((*name).into())));
        }
        assert!(!derives.is_empty());
        derives.check()
    };
    for (len, fits) in [(0, false), (1, true), (64, true), (65, false), (66, false)] {
        assert_eq!(named(&[(&"n".repeat(len), "x/")]).is_ok(), fits, "{len}");
    }
    assert!(named(&[("a", "x/"), ("b", "y/")]).is_ok());
    assert!(named(&[("a", "x/"), ("b", "x/y/")]).unwrap_err().1.contains("overlaps that of a"));
}

#[test]
fn a_target_is_met_by_ranges_that_hold_one_of_its_keys() {
    for (range, meets) in [
        (KeyRange::all(), true),
        (KeyRange::only("x/d"), true),
        (KeyRange::from_bounds("a".."x/"), false),
        (KeyRange::from_bounds("x0"..), false),
    ] {
        let derives = derives();
        let met = derives.meets(&range).map(|(derive, target)| (derive.name(), target.clone()));
        assert_eq!(met, meets.then(|| ("index", Subspace::raw(&b"x/"[..]))), "{range:?}");
    }
}

#[test]
fn what_others_in_the_queue_are_about_is_read_with_the_first_up_to_a_bound() {
    for (first, ahead) in [(1, true), (4096, true), (4097, false), (5000, false)] {
        let mut committer = committer_within(StoreLimits { max_key: 100, max_value: 100, max_batch: 1 << 20 });
        write(&mut committer, 1, (0..first).fold(Batch::new(), |batch, n| batch.put(format!("b{n:04}"), "v")));
        write(&mut committer, 2, Batch::new().put("c", "v").delete("d").put("z", "v"));
        let (ops, ..) = Batch::new().put("e", "v").into_parts().unwrap();
        let (link, beside) = (LinkId::new("edge").unwrap(), EncodedOps::default());
        let gathered = Gathered { link, requires: Vec::new(), ops, beside };
        committer.push(Intent { ticket: 3, work: Work::Gathered(gathered) });
        let Step::Fetch(keys) = committer.step(Now::default(), 0) else { panic!("a fetch") };
        let others: &[&str] = match (ahead, first) {
            (false, _) => &[],
            (true, 4096) => &["c", "d"],
            (true, _) => &["c", "d", "e"],
        };
        assert_eq!(keys[first..], *others, "{first}");
    }
}

fn words(ops: &EncodedOps) -> Vec<String> {
    ops.iter().map(|op| apply(&mut BTreeMap::new(), op)).collect()
}

fn change(key: &'static str, old: Option<&'static str>, new: Option<&'static str>) -> Change {
    Change { key: key.into(), old: old.map(Bytes::from), new: new.map(Bytes::from) }
}

#[test]
fn a_run_goes_on_once_what_it_asks_for_is_read_and_comes_to_what_follows_from_all_its_parts() {
    let derives = derives();
    let mut run = DeriveRun::new(&derives);
    let first = [change("a", Some("1"), Some("2")), change("b", None, Some("3"))];
    let keys = [Bytes::from("x/d1/a")].into();
    assert_eq!(run.derive(&first), Err(Stopped::Unread(Wants { keys, ranges: Vec::new() })));
    run.fetched([(Bytes::from("x/d1/a"), Some(Bytes::new()))]);
    assert_eq!(run.derive(&first), Ok(()));
    run.fetched_range(KeyRange::from_bounds("x/d4".."x/d5"), [(Bytes::from("x/d4/c"), Bytes::new())]);
    assert_eq!(run.derive(&[change("c", Some("4"), None)]), Ok(()));
    assert_eq!(words(&run.into_ops().unwrap()), ["-x/d1/a", "+x/d2/a=", "+x/d3/b=", "-x/d4/c"]);
}

#[test]
fn a_view_asks_for_all_it_needs_at_once_and_shows_what_is_its_own() {
    let space = space_in(&Subspace::raw(&b"x/"[..]));
    let (mut known, mut overlay) = (Known::default(), Overlay::default());
    let range = KeyRange::from_bounds("m".."p");
    let in_store = KeyRange::from_bounds("x/dm".."x/dp");
    let fetch = |known: &Known, keys: &[&'static str], ranges: &[&KeyRange]| {
        let overlay = Overlay::default();
        let view = DeriveView::new(&overlay, known, &space);
        let fetched = view.fetch(keys.iter().map(|key| key.as_bytes()), ranges.iter().copied().cloned());
        let wants = view.into_wants();
        assert_eq!(fetched.is_ok(), wants.is_empty());
        (wants.keys.into_iter().collect::<Vec<_>>(), wants.ranges)
    };
    assert_eq!(fetch(&known, &["a", "b"], &[&range]), (vec!["x/da".into(), "x/db".into()], vec![in_store.clone()]));
    known.extend([("x/da".into(), Some("1".into()))]);
    assert_eq!(fetch(&known, &["a", "b"], &[]), (vec!["x/db".into()], vec![]));
    assert_eq!(fetch(&known, &["b", "a"], &[]), (vec!["x/db".into()], vec![]));
    known.extend([("x/db".into(), None)]);
    assert_eq!(fetch(&known, &["a", "b"], &[&range]), (vec![], vec![in_store.clone()]));
    let view = DeriveView::new(&overlay, &known, &space);
    assert_eq!(view.scan(&range), Err(DeriveAbort::Unread));
    assert_eq!(view.into_wants().ranges, std::slice::from_ref(&in_store));
    known.extend_range(in_store, [("x/dm".into(), "2".into()), ("x/dn".into(), "3".into())]);
    assert_eq!(fetch(&known, &["a", "b"], &[&range]), (vec![], vec![]));
    overlay.extend([("x/dm".into(), None), ("x/do".into(), Some("4".into())), ("x/dp".into(), Some("5".into()))]);
    let view = DeriveView::new(&overlay, &known, &space);
    assert_eq!(view.scan(&range), Ok(vec![("n".into(), "3".into()), ("o".into(), "4".into())]));
    assert_eq!(view.scan(&KeyRange::from_bounds("p".."m")), Ok(Vec::new()), "inverted, it holds nothing");
}

#[test]
fn only_what_is_in_a_source_and_not_derived_is_a_change() {
    let mut derives = derives();
    derives.push(Subspace::raw(&b"b/"[..]), Arc::new(Index));
    let batch = Batch::new().put("a", "2").put("b/m", "").put("z", "2").delete("b").delete("b/n").delete("zz");
    let ops = batch.into_parts().unwrap().0;
    let changes = |known: &Known| changes_of(derives.placed(), &ops, &Overlay::default(), known);
    let asked = || ["a", "b"].map(Bytes::from);
    assert_eq!(changes(&Known::default()), Err(Wants { keys: asked().into(), ranges: Vec::new() }));
    let mut known = Known::default();
    known.extend_range(KeyRange::all(), ["a", "b", "b/m", "b/n", "zz"].map(|key| (key.into(), "1".into())));
    assert_eq!(changes(&known), Ok(vec![change("a", Some("1"), Some("2")), change("b", Some("1"), None)]));
}

#[test]
fn a_mark_is_stored_as_it_was_before() {
    let mark = DeriveMark { name: "words".into(), version: 3, state: DeriveState::Complete, epoch: (2, 5) };
    assert_eq!(&mark.to_bytes()[..], b"\x01\x05words\x03\x01\x02\x05");
    assert_eq!(DeriveMark::from_bytes(&mark.to_bytes()).unwrap(), mark);
    let target = Subspace::raw(&b"x/"[..]);
    assert_eq!(&DeriveMark::key(&target)[..], b"x/m");
    assert_eq!(space_in(&target).strip(&DeriveMark::key(&target)), None);
}
