//! A slave that subscribes to key ranges: what it is sent, and what it takes.

use bytes::BytesMut;
use replikv_core::{EncodedOps, Fill, KeyRanges};

use super::*;
use crate::{
    Ack, Compare, Filtered, GoodbyeReason, Passage, Probe, RangeSummary, Share, Skipped, Stretch, Subscription,
};
use crate::{Held, Record, Touched};

fn ranges() -> KeyRanges {
    KeyRanges::new([KeyRange::prefix("a"), KeyRange::prefix("m")])
}

/// Fails if a message tells of a key that the slave does not subscribe to.
pub(super) fn tells_nothing_outside(ranges: &KeyRanges, message: &Message) {
    if ranges.is_all() {
        return;
    }
    let nothing = |ops: &EncodedOps| {
        for op in ops {
            match op {
                Op::Put { key, .. } | Op::Delete { key } => assert!(ranges.contains(key), "{message:?}"),
                Op::DeleteRange { start, end } => {
                    let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                    assert_eq!(ranges.veil(&range), Some(range), "{message:?}");
                }
            }
        }
    };
    match message {
        Message::Records(_) => panic!("whole records"),
        Message::Filtered(filtered) => {
            for passage in &filtered.passages {
                if let Passage::Share(share) = passage {
                    nothing(share.ops());
                }
            }
        }
        Message::Ranges(content) => {
            assert!(ranges.covers(&content.range), "{content:?}");
            nothing(&content.entries);
        }
        Message::Touched(touched) => nothing(&touched.ops),
        Message::Probed(probed) => {
            assert!(ranges.covers(&probed.range));
            if let Held::Entries(entries) = &probed.held {
                nothing(entries);
            }
        }
        _ => {}
    }
}

fn subscribing(cursor: Option<Cursor>) -> Hello {
    Hello { ranges: ranges().into(), ..hello(cursor) }
}

fn subscriber(cursor: Option<Cursor>) -> SlaveSession {
    SlaveSession::new(SlaveSessionConfig { ranges: ranges(), ..slave_config(cursor) }, at(0))
}

/// A slave's session that was welcomed, its first actions taken.
fn welcomed(history: &History, cursor: Option<Cursor>, mode: Mode) -> SlaveSession {
    let mut slave = subscriber(cursor);
    let welcome = Welcome { verifies: true, ..welcome(history, mode) };
    slave.handle_message(at(0), Message::Welcome(welcome)).unwrap();
    all_actions(&mut slave);
    slave
}

/// A master's session that streams to a slave that holds `cursor`, and says that it is consistent.
fn serving(history: &History, cursor: &Cursor) -> MasterSession {
    let mut master = master(history);
    master.handle_message(at(0), Message::Hello(subscribing(Some(cursor.clone())))).unwrap();
    while let Some(action) = master.poll_action() {
        match action {
            MasterAction::Locate(positions) => master.handle_located(&history.locate(&positions)),
            MasterAction::Send(Message::Welcome(_)) => break,
            MasterAction::Joined { ranges: told, .. } => assert_eq!(told, ranges()),
            MasterAction::Verified(_) => {}
            other => panic!("expected a welcome, got {other:?}"),
        }
    }
    let seq = cursor.position.seq;
    let ack = Ack { applied: seq, durable: seq, consistent: cursor.is_consistent() };
    master.handle_message(at(0), Message::Ack(ack)).unwrap();
    master
}

/// What it has to say now.
fn said(master: &mut MasterSession, history: &History) -> Vec<Message> {
    let mut said = Vec::new();
    master.handle_view(history.view());
    while let Some(action) = master.poll_action() {
        match action {
            MasterAction::Send(message) => said.push(message),
            MasterAction::ReadRecords { after, max_bytes, .. } => master.handle_records(history.read(after, max_bytes)),
            MasterAction::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
    said
}

fn passages(messages: &[Message]) -> Vec<Passage> {
    let of = |message: &Message| match message {
        Message::Filtered(filtered) => filtered.passages.clone(),
        _ => Vec::new(),
    };
    messages.iter().flat_map(of).collect()
}

fn whole(history: &History, seq: usize) -> Record {
    Record::decode(history.entries[seq - 1].bytes.clone()).unwrap()
}

fn share(history: &History, seq: usize) -> Passage {
    Passage::Share(Share::of(&whole(history, seq), &ranges()))
}

fn skipped(history: &History, from: usize, through: usize) -> Passage {
    let log_bytes = history.bytes_at(through) - history.bytes_at(from);
    Passage::Skipped(Skipped { through: history.position(through), log_bytes, time: 7 })
}

fn told(passages: Vec<Passage>) -> Message {
    Message::Filtered(Filtered { passages })
}

#[test]
fn a_record_comes_with_its_header_and_what_lies_within() {
    let mut history = History::new();
    history.write(Batch::new().put("apple", "1").put("secret", "2").delete_range("l".."q").delete("magic"));
    let mut master = serving(&history, &Cursor::at(history.position(0)));
    let said = said(&mut master, &history);
    let [Passage::Share(share)] = &passages(&said)[..] else { panic!("{said:?}") };
    assert_eq!(share.header().position(), history.head());
    let ops: Vec<_> = share.ops().iter().collect();
    // Of the range that was deleted the slave learns what it was in its own ranges.
    let deleted = Op::DeleteRange { start: b"m", end: None };
    assert_eq!(ops, [Op::Put { key: b"apple", value: b"1" }, deleted, Op::Delete { key: b"magic" }]);
    let mut bytes = BytesMut::new();
    said.iter().for_each(|message| crate::Encoder::new().encode(message, &mut bytes).unwrap());
    assert!(!bytes.windows(6).any(|window| window == b"secret"));

    let mut slave = welcomed(&history, Some(Cursor::at(history.position(0))), Mode::Resume);
    said.into_iter().for_each(|message| slave.handle_message(at(0), message).unwrap());
    let actions = all_actions(&mut slave);
    let [SlaveAction::ApplyPortion(portion)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((portion.position, portion.records), (history.head(), 1));
    assert_eq!(portion.log_bytes, history.bytes_at(1));
}

#[test]
fn what_touches_nothing_is_told_with_the_next_heartbeat_and_before_what_does() {
    let mut history = History::new();
    let mut master = serving(&history, &Cursor::at(history.position(0)));
    for _ in 0..5 {
        history.write(Batch::new().put("quiet", "1"));
        assert!(said(&mut master, &history).is_empty());
    }
    master.handle_timeout(at(5)).unwrap();
    let beat = said(&mut master, &history);
    assert_eq!(passages(&beat), (1..=5).map(|seq| share(&history, seq)).collect::<Vec<_>>());
    assert!(
        matches!(beat.last(), Some(Message::Heartbeat(_))),
        "the position comes before the head that it is compared with"
    );
    history.write(Batch::new().put("quiet", "1"));
    assert!(said(&mut master, &history).is_empty());
    history.write(Batch::new().put("apple", "1"));
    assert_eq!(passages(&said(&mut master, &history)), vec![share(&history, 6), share(&history, 7)]);
}

#[test]
fn a_slave_that_holds_no_state_yet_is_told_at_once() {
    let mut history = History::of(3).trimmed(3);
    let mut cursor = Cursor { position: history.head(), coverage: Coverage::within(&ranges(), Fill::Copy) };
    for range in &ranges() {
        assert!(cursor.coverage.advance(range, history.head()));
    }
    history.write(Batch::new().put("quiet", "1"));
    let read_at = history.head();
    cursor.coverage.newer_until(read_at);
    let mut master = serving(&history, &cursor);
    assert_eq!(passages(&said(&mut master, &history)), vec![share(&history, 4)]);
}

#[test]
fn a_long_run_is_told_by_the_positions_that_checkpoints_need_and_its_end() {
    let mut history = History::new();
    let mut master = serving(&history, &Cursor::at(history.position(0)));
    for _ in 0..700 {
        history.write(Batch::new().put("quiet", "1"));
        assert!(said(&mut master, &history).is_empty());
    }
    history.write(Batch::new().put("apple", "1"));
    let said = said(&mut master, &history);
    assert_eq!(said.len(), 1);
    let wanted =
        vec![skipped(&history, 0, 256), skipped(&history, 256, 512), skipped(&history, 512, 700), share(&history, 701)];
    assert_eq!(passages(&said), wanted);
    let mut slave = welcomed(&history, Some(Cursor::at(history.position(0))), Mode::Resume);
    said.into_iter().for_each(|message| slave.handle_message(at(0), message).unwrap());
    let records: Vec<_> = all_actions(&mut slave)
        .into_iter()
        .map(|action| match action {
            SlaveAction::ApplyPortion(portion) => (portion.position.seq, portion.records, portion.log_bytes),
            other => panic!("{other:?}"),
        })
        .collect();
    let bytes = |from, to| history.bytes_at(to) - history.bytes_at(from);
    let portion = |from: usize, to: usize| (seq(to as u64), (to - from) as u64, bytes(from, to));
    assert_eq!(records, [portion(0, 256), portion(256, 512), portion(512, 700), portion(700, 701)]);
}

#[test]
fn quiet_batches_cost_no_message_however_many_there_are() {
    let mut history = History::new();
    let mut master = serving(&history, &Cursor::at(history.position(0)));
    let mut messages = 0;
    for _ in 0..20_000 {
        history.write(Batch::new().put("q", ""));
        messages += said(&mut master, &history).len();
    }
    assert!(messages <= 1, "{messages} messages");
}

// It sets its decoder to two batches of 4 MiB, and 4 MiB beside.
#[test]
fn whoever_subscribes_is_sent_what_it_can_take_and_no_more() {
    for (mib, taken) in [(9, true), (13, false)] {
        let mut history = History::new();
        let mut master = serving(&history, &Cursor::at(history.position(0)));
        history.write(Batch::new().put("apple", vec![0; mib << 20]));
        master.handle_view(history.view());
        let said = loop {
            match master.poll_action() {
                Some(MasterAction::ReadRecords { after, max_bytes, .. }) => {
                    master.handle_records(history.read(after, max_bytes));
                }
                Some(MasterAction::Send(message)) => break message,
                Some(MasterAction::Progress(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        match said {
            Message::Filtered(_) if taken => {}
            Message::Reject(reject) if !taken => assert_eq!(reject.code, crate::RejectCode::LimitsTooSmall),
            other => panic!("{mib} MiB: {}", other.name()),
        }
    }
}

#[test]
fn a_slave_stands_at_the_record_that_an_answer_speaks_of() {
    let mut history = History::new();
    let probe = Probe { range: KeyRange::prefix("a"), max_bytes: 1000, entries: true };
    let mut slave = welcomed(&history, Some(Cursor::at(history.position(0))), Mode::Resume);
    slave.handle_progress(crate::Progress { consistent: true, ..Default::default() });
    slave.probe(probe.clone());
    all_actions(&mut slave);
    let mut master = serving(&history, &Cursor::at(history.position(0)));
    master.handle_message(at(0), Message::Probe(probe)).unwrap();
    for _ in 0..100 {
        history.write(Batch::new().put("quiet", "1"));
    }
    // The session has not been told of these when the range is read.
    let mut said = Vec::new();
    let mut read = false;
    loop {
        match master.poll_action() {
            Some(MasterAction::Progress(_)) => {}
            Some(MasterAction::ReadExactly { range, .. }) => {
                read = true;
                master.handle_view(history.view());
                master.handle_page(content(range, history.position(50), &["apple"]));
            }
            Some(MasterAction::Locate(positions)) => master.handle_located(&history.locate(&positions)),
            Some(MasterAction::ReadRecords { after, max_bytes, may_pass }) => {
                assert_eq!(may_pass, after.seq >= seq(50), "it would pass the record that the answer speaks of");
                master.handle_records(history.read(after, max_bytes));
            }
            Some(MasterAction::Send(message)) => said.push(message),
            None => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(read);
    let mut positions = Vec::new();
    for message in said {
        slave.handle_message(at(0), message).unwrap();
        while let Some(action) = slave.poll_action() {
            match action {
                SlaveAction::ApplyPortion(portion) => positions.push(portion.position),
                SlaveAction::Probed(probed) => {
                    assert_eq!(positions.last(), Some(&probed.at));
                    assert_eq!(probed.at, history.position(50));
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    panic!("it was never told to look at what it holds");
}

#[test]
fn what_was_passed_by_is_told_as_what_was_read_is() {
    let mut history = History::new();
    let mut master = serving(&history, &Cursor::at(history.position(0)));
    assert!(said(&mut master, &history).is_empty());
    assert!(master.is_quiet());
    for _ in 0..300 {
        history.write(Batch::new().put("quiet", "1"));
    }
    master.handle_view(history.view());
    assert!(!master.is_quiet(), "there is something to look at");
    let Some(MasterAction::ReadRecords { after, may_pass: true, .. }) = master.poll_action() else { panic!("records") };
    assert_eq!(after, history.position(0));
    let run = |from: usize, through: usize| match skipped(&history, from, through) {
        Passage::Skipped(run) => run,
        Passage::Share(_) => unreachable!("a run"),
    };
    master.handle_records(LogAnswer::Passed(vec![run(0, 256), run(256, 300)]));
    assert!(said(&mut master, &history).is_empty() && master.is_quiet());
    master.handle_timeout(at(5)).unwrap();
    let beat = said(&mut master, &history);
    assert_eq!(passages(&beat), [skipped(&history, 0, 256), skipped(&history, 256, 300)]);
    assert!(matches!(beat.last(), Some(Message::Heartbeat(_))));
    // It is read on from there.
    history.write(Batch::new().put("apple", "1"));
    assert_eq!(passages(&said(&mut master, &history)), [share(&history, 301)]);
}

#[test]
fn a_session_is_quiet_if_its_slave_subscribes_to_a_part_and_holds_a_state_of_the_master() {
    let history = History::of(2);
    let cursor = Cursor::at(history.head());
    let ack = |consistent| Message::Ack(Ack { applied: seq(2), durable: seq(2), consistent });
    let mut part = serving(&history, &cursor);
    for (consistent, quiet) in [(true, true), (false, false), (true, true)] {
        part.handle_message(at(0), ack(consistent)).unwrap();
        assert!(said(&mut part, &history).is_empty());
        assert_eq!(part.is_quiet(), quiet);
    }
    let mut whole = streaming(&history, Some(cursor));
    whole.handle_message(at(0), ack(true)).unwrap();
    assert!(said(&mut whole, &history).is_empty() && !whole.is_quiet());
}

#[test]
fn a_slave_of_everything_is_never_passed_by() {
    let mut history = History::of(2);
    let mut master = streaming(&history, Some(Cursor::at(history.position(2))));
    history.write(Batch::new().put("apple", "1"));
    master.handle_view(history.view());
    assert!(!master.is_quiet());
    let Some(MasterAction::ReadRecords { may_pass: false, .. }) = master.poll_action() else { panic!("records") };
    let run = Skipped { through: history.head(), log_bytes: 1, time: 7 };
    master.handle_records(LogAnswer::Passed(vec![run]));
    let Some(MasterAction::Send(Message::Goodbye(goodbye))) = master.poll_action() else { panic!("a goodbye") };
    assert_eq!(goodbye.reason, GoodbyeReason::Closing);
}

#[test]
fn only_what_is_subscribed_to_is_copied() {
    let mut history = History::new();
    history.write(Batch::new().put("apple", "1").put("quiet", "1"));
    let history = history.trimmed(1);
    let mut master = master(&history);
    master.handle_message(at(0), Message::Hello(subscribing(None))).unwrap();
    let mut read = Vec::new();
    while let Some(action) = master.poll_action() {
        match action {
            MasterAction::ReadPage { range, .. } => {
                read.push(range.clone());
                master.handle_page(content(range, history.head(), &[]));
            }
            MasterAction::Send(message) => tells_nothing_outside(&ranges(), &message),
            MasterAction::Joined { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(read, ranges().as_slice());
}

#[test]
fn a_slave_that_asks_about_what_it_does_not_subscribe_to_is_cut_off() {
    let history = History::of(3).trimmed(3);
    let cursor = Cursor { position: history.head(), coverage: Coverage::within(&ranges(), Fill::Compare) };
    let summary = |range| RangeSummary { range, count: 0, fingerprint: replikv_core::Fingerprint::from_bytes([0; 16]) };
    let beyond = || KeyRange::from_bounds("a".."n");
    let mut master = serving(&history, &cursor);
    let question = |range| Message::Compare(Compare { ranges: vec![summary(range)] });
    master.handle_message(at(0), question(KeyRange::prefix("a"))).unwrap();
    assert!(master.handle_message(at(0), question(beyond())).is_err());
    let mut master = serving(&history, &cursor);
    let probe = |range| Message::Probe(Probe { range, max_bytes: 1, entries: false });
    assert!(master.handle_message(at(0), probe(beyond())).is_err());
    master.handle_message(at(0), probe(KeyRange::only("apple"))).unwrap();
}

#[test]
fn a_hello_whose_ranges_make_no_sense_is_refused() {
    let history = History::of(3).trimmed(3);
    let b_to_d = KeyRange::from_bounds("b".."d");
    let misses_more = Cursor { position: history.head(), coverage: Coverage::begin(KeyRange::all()) };
    let many = (0..=Subscription::MAX_RANGES as u8).map(|key| KeyRange::only([key, 0])).collect();
    for (ranges, cursor) in [
        (vec![b_to_d.clone(), KeyRange::from_bounds("a".."c")], None),
        (vec![KeyRange::empty()], None),
        (many, None),
        (vec![KeyRange::prefix(vec![7; 9000])], None),
        (vec![b_to_d.clone()], Some(misses_more)),
    ] {
        let mut master = master(&history);
        master.handle_message(at(0), Message::Hello(Hello { ranges, ..hello(cursor) })).unwrap();
        let Some(MasterAction::Send(Message::Reject(reject))) = master.poll_action() else { panic!("it is served") };
        assert_eq!(reject.code, crate::RejectCode::Malformed);
    }
}

#[test]
fn a_slave_takes_nothing_that_it_does_not_subscribe_to() {
    let mut history = History::new();
    history.write(Batch::new().put("apple", "1").put("other", "2"));
    history.write(Batch::new().delete_range("a".."z"));
    let at_start = || welcomed(&history, Some(Cursor::at(history.position(0))), Mode::Resume);
    let everything = |seq| Passage::Share(Share::of(&whole(&history, seq), &KeyRanges::all()));
    assert!(at_start().handle_message(at(0), told(vec![share(&history, 1), share(&history, 2)])).is_ok());
    assert!(at_start().handle_message(at(0), told(vec![everything(1)])).is_err());
    assert!(at_start().handle_message(at(0), told(vec![share(&history, 1), everything(2)])).is_err());
    assert!(at_start().handle_message(at(0), history.records(0, 1)).is_err());
    let touched = |ops| Touched { read_at: history.head(), end: Some(history.position(1)), ops };
    let batch = |batch: Batch| batch.into_parts().unwrap().0;
    let inside = touched(batch(Batch::new().put("apple", "1")));
    assert!(at_start().handle_message(at(0), Message::Touched(inside)).is_ok());
    let outside = touched(batch(Batch::new().put("other", "1")));
    assert!(at_start().handle_message(at(0), Message::Touched(outside)).is_err());
    let mut copying = welcomed(&history, None, Mode::Copy { from: history.head() });
    let page = content(KeyRange::from_bounds(.."b"), history.head(), &["apple"]);
    assert!(copying.handle_message(at(0), Message::Ranges(page)).is_err());
    // And a slave that subscribes to everything takes no records that are filtered.
    let mut plain = following(&history, Some(Cursor::at(history.position(0))), Mode::Resume);
    assert!(plain.handle_message(at(0), told(vec![share(&history, 1)])).is_err());
}

#[test]
fn passages_that_do_not_continue_the_history_are_refused() {
    let mut history = History::new();
    for _ in 0..5 {
        history.write(Batch::new().put("apple", "1"));
    }
    let session = || welcomed(&history, Some(Cursor::at(history.position(2))), Mode::Resume);
    let run = |through| Passage::Skipped(Skipped { through, log_bytes: 1, time: 7 });
    assert!(session().handle_message(at(0), told(vec![share(&history, 3), share(&history, 4)])).is_ok());
    assert!(session().handle_message(at(0), told(vec![run(history.position(4)), share(&history, 5)])).is_ok());
    for passages in [
        vec![share(&history, 2)],
        vec![share(&history, 4)],
        vec![run(history.position(2))],
        vec![run(history.position(1))],
        vec![run(elsewhere(history.position(4)))],
        // A run to a point of another history is found out by the record that comes next.
        vec![run(parted(history.position(4))), share(&history, 5)],
    ] {
        assert!(session().handle_message(at(0), told(passages.clone())).is_err(), "{passages:?}");
    }
}

#[test]
fn a_compacted_stretch_is_looked_up_within_the_ranges_alone() {
    let filter = crate::filter::Filter::new(&ranges()).unwrap();
    let stretch = Stretch {
        end: History::of(1).head(),
        deleted: vec![KeyRange::from_bounds("b".."c"), KeyRange::from_bounds("k".."mb")],
        touched: ["apple", "mine", "quiet"].map(|key| Bytes::from_static(key.as_bytes())).to_vec(),
    };
    let filtered = filter.stretch(stretch);
    assert_eq!(filtered.touched, ["apple", "mine"]);
    assert_eq!(filtered.deleted, [KeyRange::from_bounds("m".."mb")]);
}

// What it has just added is missing, and what it had is a state that it relies on.
#[test]
fn a_slave_that_has_grown_and_is_behind_the_log_is_recognised_before_it_compares() {
    let history = History::of(600).trimmed(590);
    let grown = Coverage::default().moved(&KeyRange::prefix("a").into(), &ranges());
    let cursor = Cursor { position: history.position(300), coverage: grown };
    for (checkpoint, parted_there) in [(history.position(256), false), (parted(history.position(256)), true)] {
        let mut master = master(&history);
        let hello = Hello { checkpoints: vec![checkpoint], ..subscribing(Some(cursor.clone())) };
        master.handle_message(at(0), Message::Hello(hello)).unwrap();
        let mut served = None;
        while let Some(action) = master.poll_action() {
            match action {
                // The positions between checkpoints are known to nobody any more.
                MasterAction::Locate(positions) => {
                    let located = history.locate(&positions);
                    let below = |(at, place): (&Position, Located)| match place {
                        Located::Shared if at.seq.as_u64() % 256 != 0 => Located::Below,
                        place => place,
                    };
                    master.handle_located(&positions.iter().zip(located).map(below).collect::<Vec<_>>());
                }
                MasterAction::Send(Message::Welcome(welcome)) => served = Some(Ok(welcome.mode)),
                MasterAction::Send(Message::Reject(reject)) => served = Some(Err(reject.code)),
                _ => {}
            }
        }
        let wanted = match parted_there {
            false => Ok(Mode::Compare { from: history.head() }),
            true => Err(crate::RejectCode::Diverged),
        };
        assert_eq!(served, Some(wanted));
    }
}
