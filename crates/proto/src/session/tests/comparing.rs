//! Comparing under writes: what the master answers, and when; and what a slave makes of it.

use super::*;
use crate::reconcile::Comparison;
use crate::{Compare, Compared, RangeSummary, Verdict};

/// A master whose slave compares, and has asked about `ranges`.
fn asked(history: &History, ranges: &[RangeSummary]) -> MasterSession {
    asked_with(master_config(), history, ranges)
}

fn asked_with(config: MasterSessionConfig, history: &History, ranges: &[RangeSummary]) -> MasterSession {
    let config = MasterSessionConfig { chunk: 4096, ..config };
    let mut master = MasterSession::new(config, history.view(), Vec::new(), at(0));
    let cursor = Cursor::at(history.position(1));
    master.handle_message(at(0), Message::Hello(hello(Some(cursor)))).unwrap();
    loop {
        match master.poll_action() {
            Some(MasterAction::Locate(positions)) => master.handle_located(&history.locate(&positions)),
            Some(MasterAction::Send(Message::Welcome(welcome))) => {
                assert_eq!(welcome.mode, Mode::Compare { from: history.head() });
                break;
            }
            Some(MasterAction::Joined { .. } | MasterAction::Verified(_)) => {}
            other => panic!("expected a welcome, got {other:?}"),
        }
    }
    assert!(master.poll_action().is_none(), "it is the slave who asks");
    if !ranges.is_empty() {
        ask(&mut master, ranges);
    }
    master
}

fn ask(master: &mut MasterSession, ranges: &[RangeSummary]) {
    assert!(!master.has_action());
    master.handle_message(at(0), Message::Compare(Compare { ranges: ranges.to_vec() })).unwrap();
    assert!(master.has_action(), "a driver that waits for something else would not answer");
}

fn page(history: &History, range: &KeyRange, read_at: Position) -> Content {
    let state = history.states.last().unwrap();
    let entries = state.iter().filter(|(key, _)| range.contains(key)).map(|(key, value)| (&key[..], &value[..]));
    Content { range: range.clone(), read_at, entries: puts(entries) }
}

/// What somebody who holds the history's data says of `range`.
fn summary(history: &History, range: KeyRange) -> RangeSummary {
    let mut comparison = Comparison::new([range]);
    let range = comparison.next_read().unwrap();
    comparison.push_page(&range, &page(history, &range, history.head()).entries);
    comparison.next_question().unwrap().remove(0)
}

fn reads(action: Option<MasterAction>) -> KeyRange {
    match action {
        Some(MasterAction::ReadPage { range, .. }) => range,
        other => panic!("expected to read, got {other:?}"),
    }
}

fn verdicts(action: Option<MasterAction>) -> (Position, Vec<Verdict>) {
    match action {
        Some(MasterAction::Send(Message::Compared(Compared { read_at, verdicts, .. }))) => (read_at, verdicts),
        other => panic!("expected verdicts, got {other:?}"),
    }
}

fn trimmed() -> History {
    History::of(9).trimmed(9)
}

// Else what was equal before a record is said to be so after it, and the record is lost on the slave.
#[test]
fn from_the_first_page_of_an_answer_until_it_is_framed_no_record_is_framed() {
    let mut history = trimmed();
    let same = summary(&history, KeyRange::all());
    let mut master = asked(&history, &[same]);
    let range = reads(master.poll_action());
    history.write(Batch::new().put("a", "1"));
    master.handle_view(history.view());
    assert!(master.poll_action().is_none(), "the range is being read");
    // Half of it was read before record 10, half is read after record 11.
    let cut = Bytes::from_static(b"key 004");
    let head = page(&history.clone().at(9), &KeyRange::new(Bytes::new(), Some(cut)), history.position(9));
    master.handle_page(head);
    let rest = reads(master.poll_action());
    assert_eq!((rest.start(), rest.end()), (&Bytes::from_static(b"key 004"), range.end()));
    history.write(Batch::new().put("b", "1"));
    master.handle_view(history.view());
    assert!(master.poll_action().is_none());
    let read_at = history.head();
    master.handle_page(page(&history, &rest, read_at));
    let Some(MasterAction::Locate(moments)) = master.poll_action() else { panic!("all moments are looked up") };
    assert_eq!(moments, [history.position(9), read_at]);
    master.handle_located(&history.locate(&moments));
    assert_eq!(verdicts(master.poll_action()), (read_at, vec![Verdict::Equal(1)]));
    let Some(MasterAction::ReadRecords { after, .. }) = master.poll_action() else { panic!("records") };
    assert_eq!(after, history.position(9), "none was framed before");
}

// Else an answer shows what is never published.
#[test]
fn an_answer_is_sent_only_once_what_it_may_show_is_published_and_read_again_if_that_fails() {
    for others in [0, 1, 2] {
        let mut history = trimmed();
        let mut master = asked(&history, &[summary(&history, KeyRange::all())]);
        let range = reads(master.poll_action());
        let read_at = history.hand(Batch::new().put("lost", "1"));
        master.handle_view(history.view());
        master.handle_page(page(&history, &range, read_at));
        assert!(master.poll_action().is_none(), "record 10 is not published");
        history.fail();
        for _ in 0..others {
            history.write(Batch::new().put("other", "1"));
        }
        master.handle_view(history.view());
        if others > 0 {
            let Some(MasterAction::Locate(moments)) = master.poll_action() else { panic!("it is looked up") };
            assert_eq!(moments, [read_at]);
            master.handle_located(&history.locate(&moments));
        }
        assert_eq!(reads(master.poll_action()), range, "it is read again");
        master.handle_page(page(&history, &range, history.head()));
        // The slave holds what there was before the others.
        let told = master.poll_action();
        assert_eq!(others == 0, matches!(told, Some(MasterAction::Send(Message::Compared(_)))), "{told:?}");
    }
}

// One page shows a record that came to nothing, and the last page was read after another of its number.
#[test]
fn an_answer_is_read_again_if_any_of_its_pages_shows_what_came_to_nothing() {
    let mut history = trimmed();
    let mut master = asked(&history, &[summary(&history, KeyRange::all())]);
    let range = reads(master.poll_action());
    let lost = history.hand(Batch::new().put("a", "lost"));
    master.handle_view(history.view());
    master.handle_page(page(&history, &KeyRange::from_bounds(.."key 004"), lost));
    let rest = reads(master.poll_action());
    history.fail();
    let read_at = history.write(Batch::new().put("z", "1"));
    master.handle_view(history.view());
    master.handle_page(page(&history, &rest, read_at));
    let Some(MasterAction::Locate(moments)) = master.poll_action() else { panic!("both are looked up") };
    assert_eq!(moments, [lost, read_at]);
    master.handle_located(&history.locate(&moments));
    assert_eq!(reads(master.poll_action()), range);
}

// Few ranges can hold much, if their bounds are long.
#[test]
fn the_bounds_of_what_is_asked_are_limited_in_bytes() {
    const LONG: usize = 64 << 10;
    let history = trimmed();
    let long = |number: u8| {
        let key = |last| Some([&vec![number; LONG][..], &[last]].concat().into());
        RangeSummary { range: KeyRange::new(key(1).unwrap_or_default(), key(2)), ..summary(&history, KeyRange::all()) }
    };
    let question = |numbers: std::ops::Range<u8>| Message::Compare(Compare { ranges: numbers.map(long).collect() });
    let mut master = asked(&history, &[]);
    let says = |master: &mut MasterSession, message| master.handle_message(at(0), message);
    assert!(says(&mut master, question(0..40)).is_ok(), "the longest keys that any store takes");
    let refused = says(&mut master, question(40..80));
    assert!(matches!(refused, Err(ProtocolError::Misbehaved { .. })), "{refused:?}");
    let refused = says(&mut asked(&history, &[]), question(0..80));
    assert!(matches!(refused, Err(ProtocolError::Misbehaved { .. })), "in one question as well: {refused:?}");
}

#[test]
fn the_last_byte_of_bounds_that_may_be_asked_about_is_one_that_may() {
    const MOST: usize = 32 * crate::reconcile::MAX_BOUND_BYTES;
    let history = trimmed();
    let of = |range: KeyRange| RangeSummary { range, ..summary(&history, KeyRange::all()) };
    let key = |number: u8, last: u8| Bytes::from([&vec![number; MOST / 128 - 1][..], &[last]].concat());
    let ranges = (0..64).map(|number| of(KeyRange::new(key(number, 1), Some(key(number, 2)))));
    let mut master = asked(&history, &[]);
    let mut says = |ranges| master.handle_message(at(0), Message::Compare(Compare { ranges }));
    assert!(says(ranges.collect()).is_ok());
    let refused = says(vec![of(KeyRange::from_bounds("x"..))]);
    assert!(matches!(refused, Err(ProtocolError::Misbehaved { .. })), "{refused:?}");
}

#[test]
fn answers_and_records_take_turns() {
    let mut history = trimmed();
    let nothing = |from: &'static str, to: &'static str| RangeSummary {
        count: 0,
        ..summary(&History::new(), KeyRange::from_bounds(from..to))
    };
    let questions = [nothing("key 000", "key 002"), nothing("key 004", "key 006"), nothing("key 007", "key 008")];
    let mut master = asked(&history, &questions[..1]);
    let mut kinds = String::new();
    for next in questions[1..].iter().map(Some).chain([None]) {
        let range = reads(master.poll_action());
        master.handle_page(page(&history, &range, history.head()));
        kinds.push(match master.poll_action() {
            Some(MasterAction::Send(Message::Ranges(_))) => 'c',
            other => panic!("{other:?}"),
        });
        if let Some(next) = next {
            ask(&mut master, std::slice::from_ref(next));
        }
        history.write(Batch::new().put("x", "1"));
        history.write(Batch::new().put("x", "2"));
        master.handle_view(history.view());
        let Some(MasterAction::ReadRecords { after, .. }) = master.poll_action() else { panic!("records") };
        master.handle_records(history.read(after, 1));
        kinds.push(match master.poll_action() {
            Some(MasterAction::Send(Message::Records(_))) => 'r',
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(kinds, "crcrcr");
}

#[test]
fn what_was_read_for_an_answer_is_paid_for_before_the_next() {
    let history = trimmed();
    let config = MasterSessionConfig { compare_bytes_per_second: Some(10), ..master_config() };
    let mut master = asked_with(config, &history, &[summary(&history, KeyRange::from_bounds(.."key 004"))]);
    let range = reads(master.poll_action());
    let first = page(&history, &range, history.head());
    let seconds = first.entries.byte_len() as u64 / 10;
    assert!(seconds >= 3);
    master.handle_page(first);
    verdicts(master.poll_action());
    master
        .handle_message(at(0), Message::Compare(Compare { ranges: vec![summary(&history, KeyRange::all())] }))
        .unwrap();
    assert!(master.poll_action().is_none() && !master.has_action());
    let until = master.poll_timeout().unwrap();
    assert!(until <= Duration::from_secs(seconds + 1), "it asks to be woken: {until:?}");
    master.handle_timeout(at(seconds - 1)).unwrap();
    assert!(!reads_something(&mut master));
    master.handle_timeout(at(seconds + 1)).unwrap();
    assert!(reads_something(&mut master));
}

#[test]
fn a_master_wakes_for_a_question_when_there_is_budget_for_it_and_for_no_other_reason() {
    let history = trimmed();
    let config = MasterSessionConfig { compare_bytes_per_second: Some(20), ..master_config() };
    let some = summary(&history, KeyRange::from_bounds(.."key 004"));
    let mut master = asked_with(config, &history, std::slice::from_ref(&some));
    let range = reads(master.poll_action());
    let first = page(&history, &range, history.head());
    let budget = Duration::from_millis(first.entries.byte_len() as u64 * 50);
    assert!(budget < HEARTBEAT, "{budget:?}");
    master.handle_page(first);
    verdicts(master.poll_action());
    assert_eq!(master.poll_timeout(), Some(HEARTBEAT), "nothing is asked");
    master.handle_message(at(0), Message::Compare(Compare { ranges: vec![some] })).unwrap();
    assert_eq!(master.poll_timeout(), Some(budget));
    master.handle_timeout(Now { monotonic: budget, ..at(0) }).unwrap();
    assert_eq!(master.poll_timeout(), Some(HEARTBEAT), "it is answered now");
    assert!(reads_something(&mut master));
}

fn reads_something(master: &mut MasterSession) -> bool {
    std::iter::from_fn(|| master.poll_action()).any(|action| matches!(action, MasterAction::ReadPage { .. }))
}

#[test]
fn questions_that_are_too_many_or_about_nothing_end_the_session() {
    let history = trimmed();
    let all = summary(&history, KeyRange::all());
    let misbehaves = |ranges: Vec<RangeSummary>| {
        let mut master = asked(&history, std::slice::from_ref(&all));
        matches!(
            master.handle_message(at(1), Message::Compare(Compare { ranges })),
            Err(ProtocolError::Misbehaved { .. })
        )
    };
    assert!(!misbehaves(vec![all.clone()]));
    assert!(!misbehaves(vec![RangeSummary { count: 1, ..all.clone() }; 8191]));
    let most = 2 * crate::reconcile::MAX_ENTRIES;
    assert!(!misbehaves(vec![RangeSummary { count: most, ..all.clone() }]));
    assert!(misbehaves(vec![RangeSummary { count: most + 1, ..all.clone() }]));
    assert!(misbehaves(vec![all.clone(); 8192]), "without listening");
    assert!(misbehaves(vec![RangeSummary { count: u64::MAX, ..all.clone() }; 2]));
    assert!(misbehaves(vec![RangeSummary { range: KeyRange::empty(), ..all }]));
    // Whoever does not compare has nothing to ask.
    let mut master = streaming(&history, Some(Cursor::at(history.head())));
    let question = Message::Compare(Compare { ranges: Vec::new() });
    assert!(matches!(master.handle_message(at(1), question), Err(ProtocolError::Misbehaved { .. })));
}

/// A slave that stood at 1 and compares from 9 on; its store holds what the history held at `holds`.
fn comparing(history: &History, holds: usize) -> (SlaveSession, crate::Applier, Vec<RangeSummary>) {
    let cursor = Cursor::at(history.position(1));
    let mut slave = SlaveSession::new(slave_config(Some(cursor.clone())), at(0));
    let mode = Mode::Compare { from: history.position(9) };
    let checkpoints = vec![history.position(4)];
    slave.handle_message(at(0), Message::Welcome(Welcome { checkpoints, ..welcome(history, mode) })).unwrap();
    let mut applier = crate::Applier::new(replikv_core::LinkId::default(), Some(cursor), usize::MAX);
    let mut question = Vec::new();
    while let Some(action) = slave.poll_action() {
        match action {
            SlaveAction::ReadPage { range, .. } => {
                let own = page(&history.clone().at(holds), &range, history.head());
                slave.handle_page(&own.range, &own.entries);
            }
            SlaveAction::Send(Message::Compare(compare)) => question.extend(compare.ranges),
            action => apply(&mut applier, action),
        }
    }
    (slave, applier, question)
}

/// What is said of everything.
fn compared(read_at: Position, verdicts: Vec<Verdict>) -> Message {
    compared_from("", read_at, verdicts)
}

fn compared_from(start: &'static str, read_at: Position, verdicts: Vec<Verdict>) -> Message {
    Message::Compared(Compared { read_at, verdicts, start: start.into() })
}

fn apply(applier: &mut crate::Applier, action: SlaveAction) {
    match action {
        SlaveAction::Begin(cursor) => applier.begin(cursor),
        SlaveAction::Checkpoints(checkpoints) => applier.push_checkpoints(checkpoints),
        SlaveAction::Apply(record) => applier.push_record(record),
        SlaveAction::Copy(content) => applier.push_content(content),
        SlaveAction::Covered { range, read_at } => applier.push_covered(range, read_at),
        _ => {}
    }
}

fn after(slave: &mut SlaveSession, applier: &mut crate::Applier) -> crate::Group {
    while let Some(action) = slave.poll_action() {
        apply(applier, action);
    }
    applier.next_group().unwrap().unwrap()
}

fn data(group: &crate::Group) -> Vec<Op<'_>> {
    group.writes.ops().filter(|(keyspace, _)| *keyspace == replikv_core::Keyspace::Data).map(|(_, op)| op).collect()
}

#[test]
fn records_before_an_answer_are_left_to_it_and_records_after_it_apply() {
    let mut history = trimmed();
    history.write(Batch::new().put("key 004", "ten").delete_range("key 005".."key 007"));
    history.write(Batch::new().put("key 003", "eleven"));
    let (mut slave, mut applier, question) = comparing(&history, 9);
    assert_eq!((question.len(), question[0].count), (1, 9));
    slave.handle_message(at(1), history.records(9, 10)).unwrap();
    let equal = compared(history.position(10), vec![Verdict::Equal(1)]);
    slave.handle_message(at(1), equal).unwrap();
    slave.handle_message(at(1), history.records(10, 11)).unwrap();
    let group = after(&mut slave, &mut applier);
    assert_eq!(data(&group), [Op::Put { key: b"key 003", value: b"eleven" }]);
    assert_eq!(group.cursor, Cursor::at(history.head()), "and it is whole");
}

#[test]
fn a_slave_is_consistent_once_all_is_covered_and_the_last_moment_of_reading_is_passed() {
    let mut history = trimmed();
    history.write(Batch::new().put("a", "1"));
    let (mut slave, mut applier, _) = comparing(&history, 9);
    let begun = after(&mut slave, &mut applier);
    assert_eq!(begun.cursor.coverage.fill(), Some(replikv_core::Fill::Compare));
    assert_eq!(begun.cursor.position, history.position(9));
    let kept = begun.writes.ops().any(|(_, op)| matches!(op, Op::Put { key, .. } if key.starts_with(b"checkpoint/")));
    assert!(kept, "what it stands on from now on is kept");
    let equal = compared(history.position(10), vec![Verdict::Equal(1)]);
    slave.handle_message(at(1), equal).unwrap();
    let covered = after(&mut slave, &mut applier).cursor;
    assert!(covered.coverage.rest().is_none() && !covered.is_consistent(), "record 10 has not come");
    // On whatever connection: nothing is asked again.
    let mut again = following(&history, Some(covered), Mode::Resume);
    again.handle_message(at(1), history.records(9, 10)).unwrap();
    slave.handle_message(at(1), history.records(9, 10)).unwrap();
    assert_eq!(after(&mut slave, &mut applier).cursor, Cursor::at(history.head()));
}

#[test]
fn what_differs_is_asked_again_in_smaller_pieces() {
    let history = trimmed();
    let (mut slave, _, question) = comparing(&history, 9);
    slave.handle_message(at(1), compared(history.head(), vec![Verdict::Split(1)])).unwrap();
    let Some(SlaveAction::ReadPage { range, .. }) = slave.poll_action() else { panic!("it reads again") };
    assert_eq!(range, question[0].range);
    assert!(slave.poll_action().is_none());
    let own = page(&history, &range, history.head());
    slave.handle_page(&own.range, &own.entries);
    let Some(SlaveAction::Send(Message::Compare(finer))) = slave.poll_action() else { panic!("it asks again") };
    assert!(finer.ranges.len() > 4 && finer.ranges.iter().map(|piece| piece.count).sum::<u64>() == 9);
}

#[test]
fn a_comparison_never_takes_a_slave_back() {
    let history = History::of(9);
    let mut slave = SlaveSession::new(slave_config(Some(Cursor::at(history.position(9)))), at(0));
    let mode = Mode::Compare { from: history.position(8) };
    slave.handle_message(at(0), Message::Welcome(welcome(&history, mode))).unwrap();
    assert!(matches!(all_actions(&mut slave).last(), Some(SlaveAction::Close(Err(_)))));
}

#[test]
fn an_answer_that_does_not_fit_the_question_ends_the_session() {
    let history = trimmed();
    for message in [
        compared(history.head(), vec![Verdict::Equal(2)]),
        compared(elsewhere(history.head()), vec![Verdict::Equal(1)]),
        compared_from("b", history.head(), vec![Verdict::Equal(1)]),
        Message::Ranges(content(KeyRange::from_bounds("b"..), history.head(), &[])),
        Message::Ranges(content(KeyRange::all(), elsewhere(history.head()), &[])),
        Message::Ranges(content(KeyRange::from_bounds(.."b"), history.head(), &["c"])),
    ] {
        let (mut slave, ..) = comparing(&history, 9);
        assert!(matches!(slave.handle_message(at(1), message), Err(ProtocolError::Misbehaved { .. })));
        assert!(!all_actions(&mut slave).iter().any(writes));
    }
}

// No byte stream loses a message and goes on. Whoever does must not make one range equal by what was said of another.
#[test]
fn an_answer_behind_a_page_that_was_lost_ends_the_session() {
    let mut history = trimmed();
    history.write(Batch::new().put("key 000", "changed"));
    let halves = || {
        let (mut slave, ..) = comparing(&history, 9);
        slave.handle_message(at(1), compared(history.position(9), vec![Verdict::Split(1)])).unwrap();
        let Some(SlaveAction::ReadPage { range, .. }) = slave.poll_action() else { panic!("it reads again") };
        slave.handle_page(&range, &page(&history.clone().at(9), &range, history.position(9)).entries);
        let Some(SlaveAction::Send(Message::Compare(finer))) = slave.poll_action() else { panic!("it asks again") };
        (slave, finer.ranges)
    };
    let (mut slave, pieces) = halves();
    let mut master = asked(&history, &pieces);
    let range = reads(master.poll_action());
    master.handle_page(page(&history, &range, history.head()));
    let answers: Vec<Message> = std::iter::from_fn(|| match master.poll_action() {
        Some(MasterAction::Send(message)) => Some(message),
        _ => None,
    })
    .collect();
    let [changed @ Message::Ranges(_), same @ Message::Compared(_)] = &answers[..] else { panic!("{answers:?}") };
    for message in [changed, same] {
        slave.handle_message(at(1), message.clone()).unwrap();
    }
    let (mut slave, _) = halves();
    let lost = slave.handle_message(at(1), same.clone());
    assert!(matches!(lost, Err(ProtocolError::Misbehaved { .. })), "{lost:?}");
    assert!(!all_actions(&mut slave).iter().any(writes));
}

#[test]
fn an_unfinished_comparison_goes_on_with_what_is_not_covered() {
    let history = trimmed();
    let mut coverage = Coverage::new(KeyRange::all(), replikv_core::Fill::Compare);
    assert!(coverage.cover(&KeyRange::from_bounds("key 002".."key 005"), history.head()));
    let cursor = Cursor { position: history.head(), coverage };
    let mut slave = SlaveSession::new(slave_config(Some(cursor.clone())), at(0));
    let Some(SlaveAction::Send(Message::Hello(hello))) = slave.poll_action() else { panic!("a hello") };
    let told = hello.cursor.clone().unwrap().coverage;
    assert!(told.ranges().is_empty() && told.read_at() == Some(history.head()), "the lineage alone");
    let mut master = master(&history);
    master.handle_message(at(0), Message::Hello(hello)).unwrap();
    let Some(MasterAction::Locate(positions)) = master.poll_action() else { panic!("it is looked up") };
    assert_eq!(positions, [history.head(), history.head()]);
    master.handle_located(&history.locate(&positions));
    let welcome = std::iter::from_fn(|| master.poll_action()).find_map(|action| match action {
        MasterAction::Send(Message::Welcome(welcome)) => Some(welcome),
        _ => None,
    });
    slave.handle_message(at(0), Message::Welcome(welcome.unwrap())).unwrap();
    let mut read = Vec::new();
    while let Some(action) = slave.poll_action() {
        if let SlaveAction::ReadPage { range, .. } = action {
            let own = page(&history, &range, history.head());
            slave.handle_page(&own.range, &own.entries);
            read.push(range);
        }
    }
    assert_eq!(read, [KeyRange::from_bounds(.."key 002"), KeyRange::from_bounds("key 005"..)]);
}
