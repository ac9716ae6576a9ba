use std::collections::BTreeMap;

use bytes::BytesMut;
use replikv_core::{Batch, Epoch, LargePut, Precondition, SourceId};

use super::*;
use crate::layout::Floor;
use crate::{Held, PreparedRecord, RecordDraft, RecordKind, Summary, origin};

const EPOCH: Epoch = Epoch { number: 1, nonce: 9 };

fn start() -> Position {
    origin(SourceId::from_bytes([1; 16]), EPOCH)
}

/// The records of `batches`, one after another.
fn records(batches: impl IntoIterator<Item = Batch>) -> Vec<Record> {
    let mut at = start();
    let record = |batch: Batch| {
        let body = batch.into_parts().unwrap().0;
        let draft = RecordDraft { epoch: EPOCH, kind: RecordKind::Batch, time: 5, note: b"", body: body.as_bytes() };
        let prepared = PreparedRecord::after(&at, &draft).unwrap();
        let mut bytes = BytesMut::new();
        prepared.append_to(&mut bytes);
        at = prepared.position();
        Record::decode(bytes.freeze()).unwrap()
    };
    batches.into_iter().map(record).collect()
}

fn chain(len: usize) -> Vec<Record> {
    records((0..len).map(|n| put(&format!("k{n}"), "v")))
}

fn put(key: &str, value: &str) -> Batch {
    Batch::new().put(key, value)
}

fn applier(coverage: Coverage, target: usize) -> Applier {
    Applier::new(LinkId::default(), Some(Cursor { position: start(), coverage }), target)
}

fn page(range: KeyRange, read_at: Position, entries: Batch) -> Content {
    Content { range, read_at, entries: entries.into_parts().unwrap().0 }
}

fn copied_to(key: &str) -> Coverage {
    let mut coverage = Coverage::begin(KeyRange::all());
    assert!(coverage.advance(&KeyRange::from_bounds(..key), start()));
    coverage
}

/// What a group does to the data, in words, in order.
fn data(group: &Group) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let words = |op: Op<'_>| match op {
        Op::Put { key, value } => format!("{}={}", text(key), text(value)),
        Op::Delete { key } => format!("-{}", text(key)),
        Op::DeleteRange { start, end } => format!("-{}..{}", text(start), end.map(text).unwrap_or_default()),
    };
    group.writes.ops().filter(|(keyspace, _)| *keyspace == Keyspace::Data).map(|(_, op)| words(op)).collect()
}

fn only_group(applier: &mut Applier) -> Group {
    let group = applier.next_group().unwrap().unwrap();
    assert!(applier.next_group().unwrap().is_none());
    group
}

#[test]
fn the_last_change_of_a_key_wins_and_keys_come_in_order() {
    let mut applier = applier(Coverage::default(), usize::MAX);
    let batches = [
        put("b", "1"),
        put("long key 2", "1").put("long key 1", "1"),
        put("a", "1").put("b", "2"),
        Batch::new().delete("a"),
    ];
    records(batches).into_iter().for_each(|record| applier.push_record(record));
    let group = only_group(&mut applier);
    assert_eq!(data(&group), ["-a", "b=2", "long key 1=1", "long key 2=1"]);
    assert_eq!((group.records, group.time), (4, Some(5)));
}

#[test]
fn keys_that_share_their_first_bytes_stay_apart() {
    let mut applier = applier(Coverage::default(), usize::MAX);
    let keys = ["a", "a\0", "a\0\0\0\0\0\0\0", "a\0\0\0\0\0\0\0\0", "12345678", "123456789", "1234567"];
    let batches = keys.iter().map(|key| put(key, key)).chain(keys.iter().map(|key| put(key, "last")));
    records(batches).into_iter().for_each(|record| applier.push_record(record));
    let mut sorted = keys;
    sorted.sort_unstable();
    assert_eq!(data(&only_group(&mut applier)), sorted.map(|key| format!("{key}=last")));
}

#[test]
fn a_range_delete_is_a_barrier() {
    let mut applier = applier(Coverage::default(), usize::MAX);
    let batches = [put("b", "1"), Batch::new().delete_range("a".."c"), put("b", "2"), put("a", "2")];
    records(batches).into_iter().for_each(|record| applier.push_record(record));
    assert_eq!(data(&only_group(&mut applier)), ["b=1", "-a..c", "a=2", "b=2"]);
}

#[test]
fn one_batch_on_its_own_travels_in_its_own_bytes() {
    let mut applier = applier(Coverage::default(), usize::MAX);
    let record = records([put("b", "1").put("a", "1")]).remove(0);
    applier.push_record(record.clone());
    let group = only_group(&mut applier);
    assert_eq!(data(&group), ["b=1", "a=1"], "as it was written");
    assert_eq!(group.writes.chunks()[0].ops.as_bytes().as_ptr(), record.body().as_bytes().as_ptr());
}

#[test]
fn content_is_a_barrier_for_its_range_and_wire_order_is_kept() {
    let mut applier = applier(copied_to("c"), usize::MAX);
    let records = records([put("a", "before").put("d", "before"), put("a", "after").put("d", "after")]);
    let read_at = records[1].position();
    applier.push_record(records[0].clone());
    applier.push_content(page(KeyRange::from_bounds("c"..), read_at, put("d", "page")));
    applier.push_record(records[1].clone());
    let group = only_group(&mut applier);
    assert_eq!(data(&group), ["a=before", "-c..", "d=page", "a=after", "d=after"]);
    assert_eq!(group.cursor, Cursor::at(read_at), "the stream has passed the moment of reading: the copy is done");
}

#[test]
fn a_record_after_a_page_may_delete_what_the_page_brought() {
    let mut applier = applier(Coverage::begin(KeyRange::all()), usize::MAX);
    let records = records([Batch::new().delete("a"), Batch::new().delete_range("b".."z")]);
    applier.push_content(page(KeyRange::from_bounds(.."m"), records[1].position(), put("a", "1").put("b", "1")));
    records.into_iter().for_each(|record| applier.push_record(record));
    assert_eq!(data(&only_group(&mut applier)), ["-..m", "a=1", "b=1", "-a", "-b..m"]);
}

#[test]
fn keys_that_are_not_copied_yet_are_left_to_the_copy() {
    let mut applier = applier(copied_to("c"), usize::MAX);
    let batches = [
        put("a", "1").put("x", "1").delete("b").delete("y"),
        Batch::new().delete_range("b".."x").delete_range("d".."e"),
    ];
    records(batches).into_iter().for_each(|record| applier.push_record(record));
    let group = only_group(&mut applier);
    assert_eq!(data(&group), ["a=1", "-b", "-b..c"]);
    assert_eq!(group.cursor.position.seq.as_u64(), 2, "the position moves on for what is covered");
    assert!(!group.cursor.is_consistent());
}

#[test]
fn a_page_that_leaves_a_gap_is_never_applied() {
    let mut applier = applier(copied_to("c"), usize::MAX);
    applier.push_content(page(KeyRange::from_bounds("d"..), start(), put("d", "page")));
    assert!(matches!(applier.next_group(), Err(StoreError::Corrupt { .. })));
    let mut empty = Applier::new(LinkId::default(), None, usize::MAX);
    empty.push_record(records([put("a", "1")]).remove(0));
    assert!(matches!(empty.next_group(), Err(StoreError::Corrupt { .. })));
}

#[test]
fn groups_hold_whole_batches_up_to_the_target_and_one_at_least() {
    let records = records((0..10).map(|n| (0..5).fold(Batch::new(), |batch, key| batch.put([b'a' + key], [b'0' + n]))));
    let len = records[0].bytes().len();
    for (target, per_group) in [(1, 1), (len, 1), (2 * len - 1, 1), (2 * len, 2), (3 * len, 3), (usize::MAX, 10)] {
        let mut applier = applier(Coverage::default(), target);
        records.iter().cloned().for_each(|record| applier.push_record(record));
        assert_eq!((applier.target(), applier.pending_bytes(), applier.is_idle()), (target, 10 * len, false));
        let mut taken = Vec::new();
        let mut received = 0;
        while let Some(group) = applier.next_group().unwrap() {
            assert_eq!(data(&group).len(), 5, "no batch is torn");
            received += group.bytes as u64;
            assert_eq!(group.received, received);
            taken.push(group.records);
        }
        assert!(taken[..taken.len() - 1].iter().all(|count| *count == per_group), "{taken:?}");
        assert_eq!(taken.len(), 10usize.div_ceil(per_group), "{target}");
        assert_eq!((taken.iter().sum::<usize>(), applier.pending_bytes(), applier.is_idle()), (10, 0, true));
    }
}

#[test]
fn groups_hold_whole_batches_up_to_so_many_operations_and_one_at_least() {
    let records = records((0..10).map(|n| (0..5).fold(Batch::new(), |batch, key| batch.put([b'a' + key], [b'0' + n]))));
    for (operations, per_group) in [(1, 1), (5, 1), (9, 1), (10, 2), (15, 3), (1000, 10)] {
        let mut applier = applier(Coverage::default(), usize::MAX).most_operations(operations);
        records.iter().cloned().for_each(|record| applier.push_record(record));
        let groups = std::iter::from_fn(|| applier.next_group().unwrap().map(|group| group.records));
        let taken: Vec<usize> = groups.collect();
        assert!(taken[..taken.len() - 1].iter().all(|count| *count == per_group), "{taken:?}");
        assert_eq!(taken.iter().sum::<usize>(), 10, "{operations}");
        assert_eq!((applier.pending_bytes(), applier.is_idle()), (0, true));
    }
}

#[test]
fn pages_count_for_as_many_operations_as_they_hold_entries() {
    let mut applier = applier(Coverage::begin(KeyRange::all()), usize::MAX).most_operations(3);
    let entries = |from: u8| (from..from + 2).fold(Batch::new(), |batch, key| batch.put([key], "page"));
    applier.push_content(page(KeyRange::from_bounds(..[2]), start(), entries(0)));
    applier.push_content(page(KeyRange::from_bounds([2]..[4]), start(), entries(2)));
    applier.push_content(page(KeyRange::from_bounds([4]..), start(), Batch::new().put([4], "page")));
    let groups = std::iter::from_fn(|| applier.next_group().unwrap());
    assert_eq!(groups.map(|group| data(&group).len()).collect::<Vec<_>>(), [3, 5], "a range and its entries each");
}

// Else the store would hold more, or less, than what the answer speaks of.
#[test]
fn what_is_equal_counts_for_its_bounds_until_it_is_applied() {
    let mut applier = applier(Coverage::new(KeyRange::all(), Fill::Compare), usize::MAX);
    for range in [KeyRange::from_bounds("aaa".."c"), KeyRange::from_bounds("d"..)] {
        applier.push_covered(range, start());
    }
    assert_eq!(applier.pending_bytes(), 3 + 1 + 1);
    assert_eq!(only_group(&mut applier).bytes, 5);
    assert_eq!(applier.pending_bytes(), 0);
}

#[test]
fn no_group_reaches_across_the_answer_to_a_probe() {
    let records = records([put("a", "1"), put("b", "1"), put("a", "2")]);
    let at = records[1].position();
    let summary = Summary { count: 2, bytes: 8, fingerprint: replikv_core::Fingerprint::from_bytes([7; 16]) };
    let probed = Probed { range: KeyRange::from_bounds("a".."c"), at, held: Held::Summary(summary) };
    let mut applier = applier(Coverage::default(), usize::MAX);
    for record in &records {
        applier.push_record(record.clone());
        if record.position() == at {
            applier.push_probed(Box::new(probed.clone()));
        }
    }
    assert!(applier.take_probed().is_none(), "what comes before it is not committed");
    let before = only_group(&mut applier);
    assert_eq!((data(&before), before.cursor.position), (vec!["a=1".to_string(), "b=1".into()], at));
    assert_eq!(applier.take_probed(), Some(Box::new(probed)));
    assert_eq!(applier.cursor(), Some(&before.cursor));
    let after = only_group(&mut applier);
    assert_eq!((data(&after), after.cursor.position), (vec!["a=2".to_string()], records[2].position()));
    assert_eq!(applier.pending_bytes(), 0);
}

// What mends the data holds only where the comparison stood, and moves nothing.
#[test]
fn a_repair_requires_the_cursor_of_its_moment_and_leaves_it() {
    let mut applier = applier(Coverage::default(), usize::MAX);
    applier.push_record(records([put("a", "1")]).remove(0));
    let group = only_group(&mut applier);
    let writes = applier.mending().build();
    let key = meta::cursor_key(&LinkId::default());
    assert_eq!(writes.preconditions(), [Precondition { key, value: Some(group.cursor.to_bytes()) }]);
    assert_eq!(writes.ops().count(), 0);
}

#[test]
fn every_group_requires_the_cursor_before_it_and_carries_the_one_after() {
    let mut applier = Applier::new(LinkId::default(), None, 1);
    applier.begin(Cursor::at(start()));
    records([put("a", "1"), put("b", "1")]).into_iter().for_each(|record| applier.push_record(record));
    let key = meta::cursor_key(&LinkId::default());
    let mut before = None;
    let mut groups = 0;
    while let Some(group) = applier.next_group().unwrap() {
        assert_eq!(group.writes.preconditions(), [Precondition { key: key.clone(), value: before }]);
        let stored = group.writes.ops().find_map(|(keyspace, op)| match op {
            Op::Put { key: at, value } if keyspace == Keyspace::Meta && at == key => {
                Some(Bytes::copy_from_slice(value))
            }
            _ => None,
        });
        assert_eq!(stored, Some(group.cursor.to_bytes()));
        before = stored;
        groups += 1;
    }
    assert_eq!(groups, 3, "the beginning, and a record each");
}

#[test]
fn a_copy_that_begins_again_forgets_what_was_covered() {
    let mut applier = applier(copied_to("m"), usize::MAX);
    let records = records([put("a", "1"), put("a", "2")]);
    applier.push_record(records[0].clone());
    applier.begin(Cursor { position: records[0].position(), coverage: Coverage::begin(KeyRange::all()) });
    applier.push_record(records[1].clone());
    let group = only_group(&mut applier);
    assert_eq!(data(&group), ["a=1"], "the second one is left to the copy");
    assert!(group.cursor.coverage.consistent_at().is_none());
}

#[test]
fn checkpoints_are_kept_on_the_way() {
    let mut applier = applier(Coverage::default(), usize::MAX);
    let records = records((0..600).map(|_| put("k", "v")));
    records.iter().cloned().for_each(|record| applier.push_record(record));
    let group = only_group(&mut applier);
    let kept: Vec<_> = group
        .writes
        .ops()
        .filter_map(|(_, op)| match op {
            Op::Put { key, value } if key.starts_with(Checkpoint::PREFIX) => Checkpoint::from_bytes(value).ok(),
            _ => None,
        })
        .map(|checkpoint| checkpoint.position)
        .collect();
    assert_eq!(kept, [records[255].position(), records[511].position()]);
}

/// Keys in `Log`, whether head and floor are there, and the checkpoints' figures, after `group`.
fn kept(writes: &WriteSet, log: &mut BTreeMap<(Keyspace, Bytes), Bytes>) {
    for (keyspace, op) in writes.ops() {
        match op {
            Op::Put { key, value } => {
                log.insert((keyspace, Bytes::copy_from_slice(key)), Bytes::copy_from_slice(value));
            }
            Op::Delete { key } => {
                log.remove(&(keyspace, Bytes::copy_from_slice(key)));
            }
            Op::DeleteRange { start, end } => {
                log.retain(|(space, key), _| {
                    *space != keyspace || &key[..] < start || end.is_some_and(|end| &key[..] >= end)
                });
            }
        }
    }
}

fn kept_seqs(log: &BTreeMap<(Keyspace, Bytes), Bytes>) -> Vec<u64> {
    let keys = log.keys().filter(|(keyspace, _)| *keyspace == Keyspace::Log);
    keys.map(|(_, key)| Seq::from_key(key).unwrap().as_u64()).collect()
}

fn kept_value<V: Stored>(log: &BTreeMap<(Keyspace, Bytes), Bytes>, key: &'static [u8]) -> Option<V> {
    log.get(&(Keyspace::Meta, Bytes::from_static(key))).map(|bytes| V::from_bytes(bytes).unwrap())
}

#[test]
fn each_record_of_a_folded_group_is_kept_and_the_log_ends_at_the_cursor() {
    let records = chain(800);
    let mut applier = Applier::new(LinkId::default(), None, usize::MAX).keeping_log(None);
    applier.tell_uptime(70);
    applier.begin(Cursor::at(start()));
    records.iter().for_each(|record| applier.push_record(record.clone()));
    let group = applier.next_group().unwrap().unwrap();
    let mut store = BTreeMap::new();
    kept(&group.writes, &mut store);
    assert!(kept_seqs(&store).into_iter().eq(1..=800));
    for record in &records {
        assert_eq!(&store[&(Keyspace::Log, Bytes::from(record.position().seq.to_key().to_vec()))], record.bytes());
    }
    let bytes: u64 = records.iter().map(|record| record.byte_len() as u64).sum();
    let head: Head = kept_value(&store, Head::KEY).unwrap();
    assert_eq!(head, Head { position: group.cursor.position, log_bytes: bytes, uptime_ms: 70 });
    assert_eq!(kept_value::<Floor>(&store, Floor::KEY), Some(Floor { position: start(), log_bytes: 0 }));
    let log = group.log.unwrap();
    assert_eq!((log.head, log.entries.len(), log.begun.map(|floor| floor.position)), (head, 800, Some(start())));
    assert_eq!(log.checkpoints.iter().map(|at| at.position.seq.as_u64()).collect::<Vec<_>>(), [256, 512, 768]);
    for checkpoint in log.checkpoints {
        let stored = &store[&(Keyspace::Meta, checkpoint.key())];
        assert_eq!(Checkpoint::from_bytes(stored).unwrap(), checkpoint, "with its figures");
    }
}

#[test]
fn a_kept_log_is_cut_while_the_slave_holds_no_state_of_its_master_and_begins_where_it_does_again() {
    let records = chain(9);
    let mut store = BTreeMap::new();
    let mut applier = Applier::new(LinkId::default(), None, usize::MAX).keeping_log(None);
    let mut next = |applier: &mut Applier| {
        let group = applier.next_group().unwrap().unwrap();
        kept(&group.writes, &mut store);
        assert_eq!(kept_value::<Head>(&store, Head::KEY).is_some(), group.log.is_some());
        (kept_seqs(&store), kept_value::<Floor>(&store, Floor::KEY).map(|floor| floor.position.seq.as_u64()))
    };
    applier.begin(Cursor::at(start()));
    records[..3].iter().for_each(|record| applier.push_record(record.clone()));
    assert_eq!(next(&mut applier), (vec![1, 2, 3], Some(0)));
    // A comparison from the fourth record on, whose content was read at the sixth.
    let coverage = Coverage::new(KeyRange::all(), Fill::Compare);
    applier.begin(Cursor { position: records[3].position(), coverage });
    assert_eq!(next(&mut applier), (vec![], None));
    applier.push_covered(KeyRange::all(), records[5].position());
    applier.push_record(records[4].clone());
    assert_eq!(next(&mut applier), (vec![], None), "newer than its position");
    applier.push_record(records[5].clone());
    applier.push_record(records[6].clone());
    assert_eq!(next(&mut applier), (vec![7], Some(6)));
    // Touches lead past records that nobody sent.
    applier.push_touched(Touched {
        read_at: records[7].position(),
        end: Some(records[7].position()),
        ops: EncodedOps::default(),
    });
    assert_eq!(next(&mut applier), (vec![], Some(8)));
    applier.push_record(records[8].clone());
    assert_eq!(next(&mut applier), (vec![9], Some(8)));
    // What moves nothing leaves the log as it is.
    applier.push_checkpoints(vec![start()]);
    assert_eq!(next(&mut applier), (vec![9], Some(8)));
}

#[test]
fn a_kept_log_that_has_gone_is_not_removed_again() {
    let (records, cursor) = (chain(4), Some(Cursor { position: start(), coverage: copied_to("c") }));
    let mut applier = Applier::new(LinkId::default(), cursor, 1).keeping_log(None);
    records.iter().for_each(|record| applier.push_record(record.clone()));
    let removes = |group: Group| {
        let mut of_log = group.writes.ops().filter(|(keyspace, _)| *keyspace == Keyspace::Log);
        of_log.any(|(_, op)| matches!(op, Op::DeleteRange { .. }))
    };
    let groups = std::iter::from_fn(|| applier.next_group().unwrap());
    assert_eq!(groups.map(removes).collect::<Vec<_>>(), [true, false, false, false]);
}

#[test]
fn a_long_record_is_kept_without_a_copy() {
    let record = records([put("key", &"v".repeat(1 << 20))]).remove(0);
    let head = Head { position: start(), log_bytes: 0, uptime_ms: 0 };
    let mut applier = Applier::new(LinkId::default(), Some(Cursor::at(start())), usize::MAX).keeping_log(Some(head));
    applier.push_record(record.clone());
    let group = only_group(&mut applier);
    let of_log: Vec<_> = group.writes.chunks().iter().filter(|chunk| chunk.keyspace == Keyspace::Log).collect();
    let kept = of_log.iter().flat_map(|chunk| chunk.ops.parts()).find_map(|part| match part {
        OpsPart::Put(put) => Some(put),
        OpsPart::Ops(_) => None,
    });
    assert_eq!(kept.unwrap().segments()[0].as_ptr(), record.bytes().as_ptr());
}

fn long(key: &str, value: &'static str) -> EncodedOps {
    LargePut::new(key.as_bytes(), vec![Bytes::from(value)]).unwrap().into()
}

fn portion(position: Position, records: u64, ops: EncodedOps) -> Portion {
    Portion { position, records, log_bytes: records * 100, time: position.seq.as_u64() + 1000, ops }
}

#[test]
fn a_portion_stands_for_its_records_and_keeps_the_checkpoint_that_it_ends_with() {
    let at = |seq| Position { seq: Seq::new(seq), ..start() };
    let mut applier = applier(Coverage::default(), usize::MAX);
    for (seq, records, key) in [(250, 250, "a"), (256, 6, "b"), (257, 1, "c")] {
        applier.push_portion(portion(at(seq), records, put(key, "v").into_parts().unwrap().0));
    }
    let len = put("a", "v").into_parts().unwrap().0.byte_len() + 64;
    assert_eq!(applier.pending_bytes(), 3 * len, "nothing takes room too");
    for end in [at(300), at(512)] {
        applier.push_touched(Touched { read_at: end, end: Some(end), ops: EncodedOps::default() });
    }
    let group = only_group(&mut applier);
    assert_eq!(data(&group), ["a=v", "b=v", "c=v"]);
    assert_eq!((group.records, group.bytes, group.received, group.time), (257, 3 * len, 25_700, Some(1257)));
    let checkpoints = group.writes.ops().filter_map(|(_, op)| match op {
        Op::Put { key, value } if key.starts_with(Checkpoint::PREFIX) => Some(Checkpoint::from_bytes(value).unwrap()),
        _ => None,
    });
    assert_eq!(checkpoints.map(|kept| kept.position).collect::<Vec<_>>(), [at(256), at(512)]);
}

#[test]
fn a_value_in_several_buffers_is_written_in_its_turn_where_it_is_covered() {
    let at = |seq| Position { seq: Seq::new(seq), ..start() };
    for (coverage, expected) in
        [(Coverage::default(), &["a=1", "a=long", "x=long", "a=2"][..]), (copied_to("c"), &["a=1", "a=long", "a=2"])]
    {
        let mut applier = applier(coverage, usize::MAX);
        let small = |value| put("a", value).into_parts().unwrap().0;
        for (seq, ops) in [(1, small("1")), (2, long("a", "long")), (3, long("x", "long")), (4, small("2"))] {
            applier.push_portion(portion(at(seq), 1, ops));
        }
        assert_eq!(data(&only_group(&mut applier)), expected);
    }
}

#[test]
fn content_of_a_comparison_comes_wherever_something_differs() {
    let mut applier = applier(Coverage::new(KeyRange::all(), Fill::Compare), usize::MAX);
    for (range, key) in [(KeyRange::from_bounds("m".."p"), "n"), (KeyRange::from_bounds("b".."c"), "b")] {
        applier.push_content(page(range, start(), put(key, "page")));
    }
    let group = only_group(&mut applier);
    assert_eq!(data(&group), ["-m..p", "n=page", "-b..c", "b=page"]);
    assert!(group.cursor.coverage.covers(b"n") && !group.cursor.coverage.covers(b"a"));
}

#[test]
fn what_was_kept_goes_on_if_it_ends_at_the_cursor_and_goes_otherwise() {
    let records = chain(4);
    for (head, seqs) in [(2, vec![3]), (1, vec![])] {
        let head = Head { position: records[head - 1].position(), log_bytes: 20, uptime_ms: 5 };
        let cursor = Some(Cursor::at(records[1].position()));
        let mut applier = Applier::new(LinkId::default(), cursor, usize::MAX).keeping_log(Some(head));
        applier.push_record(records[2].clone());
        let group = applier.next_group().unwrap().unwrap();
        let mut store = BTreeMap::from([((Keyspace::Log, Bytes::from_static(b"old")), Bytes::new())]);
        kept(&group.writes, &mut store);
        let old = store.remove(&(Keyspace::Log, Bytes::from_static(b"old"))).is_some();
        assert_eq!((kept_seqs(&store), old), (seqs.clone(), !seqs.is_empty()));
        assert_eq!(group.log.unwrap().begun.is_some(), seqs.is_empty());
    }
}

#[test]
fn who_keeps_no_log_writes_none() {
    let records = chain(2);
    let mut applier = Applier::new(LinkId::default(), Some(Cursor::at(records[0].position())), usize::MAX);
    applier.push_record(records[1].clone());
    let group = applier.next_group().unwrap().unwrap();
    let mut store = BTreeMap::new();
    kept(&group.writes, &mut store);
    assert!(group.log.is_none() && kept_seqs(&store).is_empty() && kept_value::<Head>(&store, Head::KEY).is_none());
}
