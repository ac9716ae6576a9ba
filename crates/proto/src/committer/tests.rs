use replikv_core::{Digest, Epoch, KeyRange, Keyspace, Op, Seq, SourceId, StoreLimits};

use super::*;
use crate::layout::Checkpoint;
use crate::{Record, origin};

const EPOCH: Epoch = Epoch { number: 1, nonce: 9 };

fn committer() -> Committer<u32> {
    let limits = StoreLimits { max_key: 64, max_value: 1024, max_batch: 1 << 20 };
    let position = origin(SourceId::from_bytes([1; 16]), EPOCH);
    let head = Head { position, log_bytes: 0, uptime_ms: 0 };
    Committer::new(CommitterConfig { epoch: EPOCH, group_bytes: 1 << 20, limits }, head)
}

fn push(committer: &mut Committer<u32>, ticket: u32, batch: Batch) {
    committer.push(Intent { ticket, work: Work::Batch(batch) });
}

fn group(committer: &mut Committer<u32>) -> CommitGroup<u32> {
    match committer.step(Now::default(), 0) {
        Step::Commit(group) => *group,
        other => panic!("expected a group, got {other:?}"),
    }
}

fn committed(answer: &Answer) -> u64 {
    match answer {
        Answer::Committed(position) => position.seq.as_u64(),
        other => panic!("expected a commit, got {other:?}"),
    }
}

#[test]
fn everything_that_waits_becomes_one_group() {
    let mut committer = committer();
    (0..5).for_each(|n| push(&mut committer, n, Batch::new().put([n as u8 + 1], "v")));
    let group = group(&mut committer);
    assert_eq!(group.entries.len(), 5);
    let answers: Vec<_> = group.answers.iter().map(|(ticket, answer)| (*ticket, committed(answer))).collect();
    assert_eq!(answers, vec![(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]);
    let mut at = origin(SourceId::from_bytes([1; 16]), EPOCH);
    for entry in &group.entries {
        let record = Record::decode(entry.bytes.clone()).unwrap();
        record.header().verify_after(&at).unwrap();
        at = record.position();
    }
    assert!(matches!(committer.step(Now::default(), 0), Step::Idle), "one group in flight at a time");
}

#[test]
fn the_log_holds_the_very_bytes_of_the_records() {
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().put("key", vec![7; 300]));
    let group = group(&mut committer);
    let log: Vec<_> = group.writes.ops().filter(|(keyspace, _)| *keyspace == Keyspace::Log).collect();
    let [(_, Op::Put { key, value })] = log[..] else { panic!("one put") };
    assert_eq!(key, Seq::new(1).to_key());
    assert_eq!(value.as_ptr(), group.entries[0].bytes.as_ptr());
}

#[test]
fn a_group_holds_the_records_and_the_operations_of_each_of_its_batches() {
    let mut committer = committer();
    (0..600u16).for_each(|n| push(&mut committer, n.into(), Batch::new().put([1], vec![7; n.into()])));
    let group = group(&mut committer);
    let of = |space: Keyspace| group.writes.ops().filter(move |(keyspace, _)| *keyspace == space);
    assert!(of(Keyspace::Data).map(|(_, op)| op).eq((0..600).map(|n| Op::Put { key: &[1], value: &[7; 600][..n] })));
    assert_eq!(of(Keyspace::Log).count(), 600);
    for ((_, op), entry) in of(Keyspace::Log).zip(&group.entries) {
        assert_eq!(op, Op::Put { key: &entry.position.seq.to_key(), value: &entry.bytes });
        assert_eq!((entry.byte_len(), &entry.body), (entry.bytes.len(), &None));
    }
}

#[test]
fn a_long_record_is_stored_whole_and_counts_for_its_length() {
    let mut committer = committer();
    committer.config.limits = StoreLimits { max_value: 4 << 20, max_batch: 4 << 20, ..committer.config.limits };
    // The record and the data: two of them are less than that, three are more.
    committer.config.group_bytes = 7 << 20;
    (0..4).for_each(|n| push(&mut committer, n, Batch::new().put([n as u8 + 1], vec![n as u8; 3 << 19])));
    let first = group(&mut committer);
    assert_eq!(first.entries.len(), 3);
    let log = first.writes.ops().filter(|(keyspace, _)| *keyspace == Keyspace::Log);
    let mut at = committer.head().position;
    for ((_, op), entry) in log.zip(&first.entries) {
        let whole: Vec<u8> = entry.parts().flatten().copied().collect();
        assert!(entry.body.is_some() && entry.byte_len() == whole.len());
        assert!(op == Op::Put { key: &entry.position.seq.to_key(), value: &whole });
        let record = Record::decode(whole.into()).unwrap();
        record.header().verify_after(&at).unwrap();
        at = record.position();
    }
    assert_eq!(first.head.log_bytes, first.entries.iter().map(|entry| entry.byte_len() as u64).sum::<u64>());
    committer.committed(&first);
    assert_eq!(group(&mut committer).entries.len(), 1);
}

#[test]
fn a_group_ends_with_the_intent_that_fills_it() {
    let filled = |group_bytes| {
        let mut committer = committer();
        committer.config.group_bytes = group_bytes;
        (0..3).for_each(|n| push(&mut committer, n, Batch::new().put([n as u8 + 1], "value")));
        let group = group(&mut committer);
        let chunks = group.writes.chunks().iter().filter(|chunk| chunk.keyspace != Keyspace::Meta);
        (group.entries.len(), chunks.map(|chunk| chunk.ops.byte_len()).sum::<usize>())
    };
    let (one, len) = filled(1);
    assert_eq!((one, filled(len).0, filled(len + 1).0, filled(2 * len).0, filled(2 * len + 1).0), (1, 1, 2, 2, 3));
}

#[test]
fn what_links_know_counts_for_its_length_too() {
    let mut committer = committer();
    let beside = |len: usize| {
        let mut beside = bytes::BytesMut::new();
        Op::Put { key: b"cursor", value: &vec![0; len] }.encode_into(&mut beside);
        EncodedOps::from_bytes(beside.freeze()).unwrap()
    };
    for (ticket, link) in [(0, "one"), (1, "two"), (2, "three")] {
        let gathered = Gathered { beside: beside(700 << 10), ..gathered(link, "k", &[]) };
        committer.push(Intent { ticket, work: Work::Gathered(gathered) });
    }
    assert_eq!(group(&mut committer).entries.len(), 2);
}

#[test]
fn what_writes_nothing_is_answered_at_once() {
    let mut committer = committer();
    assert!(matches!(committer.step(Now::default(), 0), Step::Idle));
    push(&mut committer, 0, Batch::new());
    push(&mut committer, 1, Batch::new().put("", "refused"));
    committer.push(Intent { ticket: 2, work: Work::Transact(Box::new(|_| Err(Abort::refuse("no")))) });
    let Step::Answer(answers) = committer.step(Now::default(), 0) else { panic!("answers") };
    assert!(matches!(
        answers[..],
        [(0, Answer::Committed(at)), (1, Answer::Failed(_)), (2, Answer::Aborted { .. })] if at.seq == Seq::ZERO
    ));
    assert!(matches!(committer.step(Now::default(), 0), Step::Idle));
}

#[test]
fn everybody_is_told_when_nothing_can_be_read_or_another_master_has_taken_over() {
    let waiting = || {
        let mut committer = committer();
        push(&mut committer, 0, Batch::new().put("a", "1"));
        push(&mut committer, 1, Batch::new().expect_absent("k").put("k", "1"));
        push(&mut committer, 2, Batch::new().put("b", "1"));
        assert!(matches!(committer.step(Now::default(), 0), Step::Fetch(_)));
        committer
    };
    let mut unread = waiting();
    let answers = unread.fetch_failed(&StoreError::HeadMoved);
    assert!(matches!(answers[..], [(0, Answer::Failed(_)), (1, Answer::Failed(_)), (2, Answer::Failed(_))]));
    assert!(matches!(unread.step(Now::default(), 0), Step::Idle));
    let mut fenced = waiting();
    fenced.fence();
    assert!(fenced.is_fenced());
    let Step::Answer(answers) = fenced.step(Now::default(), 0) else { panic!("answers") };
    assert!(matches!(answers[..], [(0, Answer::Fenced), (1, Answer::Fenced), (2, Answer::Fenced)]));
}

#[test]
fn after_a_rewind_the_history_goes_on_from_what_the_store_holds() {
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().put("a", "1"));
    let kept = group(&mut committer);
    committer.committed(&kept);
    push(&mut committer, 1, Batch::new().put("b", "1"));
    group(&mut committer);
    committer.rewound(kept.head);
    assert_eq!((committer.head(), committer.handed()), (kept.head, kept.head.position));
    push(&mut committer, 2, Batch::new().put("c", "1"));
    let next = group(&mut committer);
    let record = Record::decode(next.entries[0].bytes.clone()).unwrap();
    record.header().verify_after(&kept.head.position).unwrap();
}

#[test]
fn every_write_set_requires_the_head_it_builds_upon() {
    let mut committer = committer();
    let before = committer.head();
    push(&mut committer, 0, Batch::new().put("a", "1"));
    let group = group(&mut committer);
    let [required] = group.writes.preconditions() else { panic!("one precondition") };
    assert_eq!(
        (&required.key[..], required.value.clone()),
        (Head::KEY, Some(crate::layout::Stored::to_bytes(&before)))
    );
    committer.failed(&StoreError::HeadMoved);
    push(&mut committer, 1, Batch::new().put("a", "1"));
    let Step::Answer(answers) = committer.step(Now::default(), 0) else { panic!("answers") };
    assert!(matches!(answers[..], [(1, Answer::Fenced)]));
}

#[test]
fn conditions_see_the_store_and_the_batches_before_them() {
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().expect_absent("k").put("k", "1"));
    push(&mut committer, 1, Batch::new().expect_absent("k").put("k", "2"));
    push(&mut committer, 2, Batch::new().expect("k", "1").put("k", "3"));
    push(&mut committer, 3, Batch::new().expect("other", "x").delete_range(..));
    push(&mut committer, 4, Batch::new().expect_absent("other").expect_absent("k").put("k", "4"));
    let Step::Fetch(keys) = committer.step(Now::default(), 0) else { panic!("a fetch") };
    assert_eq!(keys, vec![Bytes::from("k"), Bytes::from("other")], "one round trip for all");
    committer.fetched([(Bytes::from("k"), None), (Bytes::from("other"), Some(Bytes::from("x")))]);
    let group = group(&mut committer);
    let outcomes: Vec<_> = group.answers.iter().map(|(_, answer)| matches!(answer, Answer::Committed(_))).collect();
    assert_eq!(outcomes, vec![true, false, true, true, true]);
    assert!(matches!(&group.answers[1].1, Answer::Conflict { key } if &key[..] == b"k"), "told with its group");
}

#[test]
fn what_was_read_is_forgotten_once_a_group_is_on_its_way() {
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().expect_absent("k").put("k", "1"));
    assert!(matches!(committer.step(Now::default(), 0), Step::Fetch(_)));
    committer.fetched([(Bytes::from("k"), None)]);
    let first = group(&mut committer);
    committer.committed(&first);
    push(&mut committer, 1, Batch::new().expect_absent("k").put("k", "2"));
    assert!(matches!(committer.step(Now::default(), 0), Step::Fetch(_)));
}

#[test]
fn a_transaction_runs_at_its_place_and_sees_what_came_before() {
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().put("count", [41]));
    committer.push(Intent {
        ticket: 1,
        work: Work::Transact(Box::new(|view| {
            let count = view.get("count")?.and_then(|value| value.first().copied()).unwrap_or(0);
            Ok(Batch::new().put("count", [count + 1]))
        })),
    });
    committer.push(Intent { ticket: 2, work: Work::Transact(Box::new(|_| Err(Abort::refuse("no")))) });
    committer.push(Intent {
        ticket: 3,
        work: Work::Transact(Box::new(|view| Ok(Batch::new().put("seen", view.get("elsewhere")?.unwrap_or_default())))),
    });
    let Step::Fetch(keys) = committer.step(Now::default(), 0) else { panic!("a fetch") };
    assert_eq!(keys, vec![Bytes::from("elsewhere")]);
    committer.fetched([(Bytes::from("elsewhere"), Some(Bytes::from("e")))]);
    let group = group(&mut committer);
    assert_eq!(group.entries.len(), 3);
    let second = Record::decode(group.entries[1].bytes.clone()).unwrap();
    assert_eq!(second.body().iter().collect::<Vec<_>>(), vec![Op::Put { key: b"count", value: &[42] }]);
    assert!(matches!(&group.answers[2].1, Answer::Aborted { reason } if reason == "no"));
}

#[test]
fn a_failed_group_leaves_the_head_where_it_was() {
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().put("a", "1"));
    let first = group(&mut committer);
    assert_eq!(committer.handed(), first.head.position);
    committer.failed(&StoreError::StoreFull { hint: String::new() });
    assert_eq!(committer.handed(), committer.head().position);
    push(&mut committer, 1, Batch::new().put("b", "1"));
    let second = group(&mut committer);
    assert_eq!(second.entries[0].position.seq, Seq::new(1));
}

#[test]
fn after_an_unknown_outcome_what_the_store_holds_is_the_truth() {
    for applied in [true, false] {
        let mut committer = committer();
        let before = committer.head();
        push(&mut committer, 0, Batch::new().put("a", "1"));
        let unsure = group(&mut committer);
        committer.settled(&unsure, if applied { unsure.head } else { before });
        assert!(!committer.is_fenced());
        push(&mut committer, 1, Batch::new().put("b", "1"));
        assert_eq!(group(&mut committer).entries[0].position.seq, Seq::new(1 + u64::from(applied)));
    }
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().put("a", "1"));
    let unsure = group(&mut committer);
    let digest = Digest::from_bytes([9; 16]);
    committer.settled(&unsure, Head { position: Position { digest, ..unsure.head.position }, ..unsure.head });
    assert!(committer.is_fenced(), "that head is somebody else's");
}

#[test]
fn bad_batches_are_refused_and_the_rest_of_the_group_goes_on() {
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().put("", "v"));
    push(&mut committer, 1, Batch::new().put("k", vec![0; 2000]));
    push(&mut committer, 2, Batch::new().delete_range(KeyRange::all()));
    let group = group(&mut committer);
    assert!(matches!(group.answers[0].1, Answer::Failed(StoreError::KeyEmpty)));
    assert!(matches!(group.answers[1].1, Answer::Failed(StoreError::ValueTooLarge { .. })));
    assert_eq!(committed(&group.answers[2].1), 1);
}

#[test]
fn a_group_is_bounded_in_bytes_and_checkpoints_are_kept() {
    let mut committer = committer();
    (0..3000).for_each(|n| push(&mut committer, n, Batch::new().put("k", vec![0; 1000])));
    let first = group(&mut committer);
    assert!(first.writes.byte_len() < 2 << 20 && first.entries.len() > 256);
    assert_eq!(first.checkpoints[0].position, first.entries[255].position);
    committer.committed(&first);
    assert_eq!(group(&mut committer).entries[0].position.seq, Seq::new(first.entries.len() as u64 + 1));
}

#[test]
fn an_overtaken_group_is_decided_anew_in_its_old_order() {
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().expect_absent("k").put("k", "0"));
    push(&mut committer, 1, Batch::new().put("", "refused"));
    committer.push(Intent {
        ticket: 2,
        work: Work::Transact(Box::new(|view| Ok(Batch::new().put("seen", view.get("k")?.unwrap_or_default())))),
    });
    assert!(matches!(committer.step(Now::default(), 0), Step::Fetch(_)));
    committer.fetched([(Bytes::from("k"), None)]);
    let first = group(&mut committer);
    assert_eq!(first.entries.len(), 2);
    push(&mut committer, 3, Batch::new().put("later", "3"));
    // Somebody of this master has put `k`, at the number that the group had taken.
    let body = Batch::new().put("k", "theirs");
    let other = LoneRecord::new(&committer.config, committer.head(), body, Now::default(), 0).unwrap().unwrap();
    let told = committer.overtaken(first);
    assert!(matches!(&told[..], [(1, Answer::Failed(StoreError::KeyEmpty))]), "{told:?}");
    committer.adopted(other.head);
    assert!(!committer.is_fenced());
    assert!(matches!(committer.step(Now::default(), 0), Step::Fetch(_)), "what was read before counts no more");
    committer.fetched([(Bytes::from("k"), Some(Bytes::from("theirs")))]);
    let second = group(&mut committer);
    let outcomes: Vec<_> =
        second.answers.iter().map(|(ticket, answer)| (*ticket, matches!(answer, Answer::Committed(_)))).collect();
    assert_eq!(outcomes, [(0, false), (2, true), (3, true)], "the condition does not hold any more");
    let seen = Record::decode(second.entries[0].bytes.clone()).unwrap();
    assert_eq!(seen.body().iter().next(), Some(Op::Put { key: b"seen", value: b"theirs" }));
    seen.header().verify_after(&other.head.position).unwrap();
}

#[test]
fn a_group_that_gathers_while_the_head_moves_begins_anew() {
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().put("a", ""));
    push(&mut committer, 1, Batch::new().put("", ""));
    push(&mut committer, 2, Batch::new().expect_absent("k").put("k", ""));
    assert!(matches!(committer.step(Now::default(), 0), Step::Fetch(_)));
    committer.fetched([(Bytes::from("k"), None)]);
    let body = Batch::new().put("k", "theirs");
    let other = LoneRecord::new(&committer.config, committer.head(), body, Now::default(), 0).unwrap().unwrap();
    committer.adopted(other.head);
    assert!(matches!(committer.step(Now::default(), 0), Step::Fetch(_)));
    committer.fetched([(Bytes::from("k"), Some(Bytes::from("theirs")))]);
    let group = group(&mut committer);
    assert_eq!(group.entries.iter().map(|entry| entry.position.seq.as_u64()).collect::<Vec<_>>(), [2]);
    assert!(matches!(
        &group.answers[..],
        [(0, Answer::Committed(_)), (1, Answer::Failed(_)), (2, Answer::Conflict { .. })]
    ));
}

#[test]
fn a_lone_record_carries_everything_but_its_operations() {
    let committer = committer();
    let config = committer.config;
    let mut head = committer.head();
    for seq in 1..=Checkpoint::EVERY {
        let batch = Batch::new().put("key", "value").note("note");
        let lone = LoneRecord::new(&config, head, batch, Now::default(), seq).unwrap().unwrap();
        let record = Record::decode(lone.entry.bytes.clone()).unwrap();
        record.header().verify_after(&head.position).unwrap();
        assert!(lone.writes.ops().all(|(keyspace, _)| keyspace != Keyspace::Data));
        assert_eq!(lone.writes.preconditions().len(), 1);
        assert_eq!(lone.head.log_bytes, head.log_bytes + lone.entry.bytes.len() as u64);
        assert_eq!(lone.checkpoints.len(), usize::from(seq == Checkpoint::EVERY));
        head = lone.head;
    }
    assert!(LoneRecord::new(&config, head, Batch::new(), Now::default(), 0).unwrap().is_none());
    let large = Batch::new().put("key", vec![0; 2000]);
    assert!(LoneRecord::new(&config, head, large, Now::default(), 0).is_err());
}

#[test]
fn a_group_that_is_refused_for_one_of_its_batches_is_taken_apart() {
    let mut committer = committer();
    (0..3).for_each(|n| push(&mut committer, n, Batch::new().put([n as u8 + 1], "")));
    let whole = group(&mut committer);
    push(&mut committer, 3, Batch::new().put("later", ""));
    push(&mut committer, 4, Batch::new().put("later", ""));
    assert!(committer.taken_apart(whole).is_ok_and(|told| told.is_empty()));
    for n in 0..3 {
        let alone = group(&mut committer);
        assert!(matches!(alone.answers[..], [(ticket, _)] if ticket == n));
        if n == 1 {
            let alone = committer.taken_apart(alone).expect_err("there is nobody else to blame");
            committer.failed(&StoreError::KeyEmpty);
            assert_eq!(alone.answers.len(), 1);
        } else {
            committer.committed(&alone);
        }
    }
    assert_eq!(group(&mut committer).answers.len(), 2, "and then on as before");
}

fn gathered(link: &str, key: &str, requires: &[u8]) -> Gathered {
    let mut beside = bytes::BytesMut::new();
    Op::Put { key: b"cursor", value: key.as_bytes() }.encode_into(&mut beside);
    Gathered {
        link: LinkId::new(link).unwrap(),
        requires: vec![Precondition {
            key: Bytes::from_static(b"cursor"),
            value: Some(Bytes::copy_from_slice(requires)),
        }],
        ops: Batch::new().put(key, "v").into_parts().unwrap().0,
        beside: EncodedOps::from_bytes(beside.freeze()).unwrap(),
    }
}

#[test]
fn what_a_link_knows_is_committed_with_what_it_brings_under_its_condition() {
    let mut committer = committer();
    push(&mut committer, 0, Batch::new().put("own", "v"));
    committer.push(Intent { ticket: 1, work: Work::Gathered(gathered("edge", "k", b"before")) });
    let group = group(&mut committer);
    assert_eq!((group.entries.len(), group.answers.len()), (2, 2), "it is a record like any other");
    let required: Vec<_> = group.writes.preconditions().iter().map(|condition| &condition.key[..]).collect();
    assert_eq!(required, [Head::KEY, b"cursor"]);
    let beside = group
        .writes
        .ops()
        .filter(|(keyspace, op)| *keyspace == Keyspace::Meta && matches!(op, Op::Put { key: b"cursor", value: b"k" }));
    assert_eq!(beside.count(), 1);
}

// The condition of the second is about what the first one leaves, and is checked before either is applied.
#[test]
fn a_group_takes_one_write_set_of_each_link() {
    let mut committer = committer();
    for (ticket, link) in [(0, "one"), (1, "two"), (2, "one"), (3, "two")] {
        committer.push(Intent { ticket, work: Work::Gathered(gathered(link, "k", &[])) });
    }
    for expected in [[0, 1], [2, 3]] {
        let group = group(&mut committer);
        assert_eq!(group.answers.iter().map(|(ticket, _)| *ticket).collect::<Vec<_>>(), expected);
        committer.committed(&group);
    }
    // Taken apart, each is decided on its own, and the one that is refused fences nobody.
    committer.push(Intent { ticket: 4, work: Work::Gathered(gathered("one", "k", &[])) });
    committer.push(Intent { ticket: 5, work: Work::Gathered(gathered("two", "k", &[])) });
    let both = group(&mut committer);
    assert!(committer.taken_apart(both).unwrap().is_empty());
    let alone = group(&mut committer);
    assert!(committer.taken_apart(alone).is_err());
    committer.refused();
    let next = group(&mut committer);
    assert_eq!((next.answers[0].0, committed(&next.answers[0].1)), (5, 5));
    assert!(!committer.is_fenced());
}
