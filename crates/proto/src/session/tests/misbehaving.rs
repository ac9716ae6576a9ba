//! Peers that do what they must not. Nothing of it is applied.

use super::*;
use crate::{Ack, Compare, Compared, Heartbeat, Response, Touched};

fn misbehaved(result: &Result<(), ProtocolError>) -> bool {
    matches!(result, Err(ProtocolError::Misbehaved { .. }))
}

/// What a slave that stands at 4 of 9 says to `message`; it must not write anything of it.
fn slave_says(message: Message) -> Result<(), ProtocolError> {
    let history = History::of(9);
    let mut slave = following(&history, Some(Cursor::at(history.position(4))), Mode::Resume);
    let result = slave.handle_message(at(1), message);
    assert!(result.is_ok() || !all_actions(&mut slave).iter().any(writes), "nothing of it is applied");
    result
}

#[test]
fn an_ack_of_what_was_never_sent_ends_the_session() {
    let history = History::of(9);
    for (applied, durable) in [(5, 0), (9, 9), (3, 4)] {
        let mut master = streaming(&history, Some(Cursor::at(history.position(4))));
        let ack = Ack { applied: seq(applied), durable: seq(durable), consistent: true };
        assert!(misbehaved(&master.handle_message(at(1), Message::Ack(ack))), "{applied} {durable}");
        let mut master = streaming(&history, Some(Cursor::at(history.position(4))));
        let beat = Heartbeat::Follower { applied: seq(applied), durable: seq(durable), consistent: true };
        assert!(misbehaved(&master.handle_message(at(1), Message::Heartbeat(beat))), "{applied} {durable}");
        assert!(!master.has_action(), "no progress is told");
    }
}

#[test]
fn what_only_the_other_side_says_has_no_place() {
    let history = History::of(9);
    let hello = || Message::Hello(hello(None));
    assert!(misbehaved(&streaming(&history, Some(Cursor::at(history.head()))).handle_message(at(1), hello())));
    for message in [
        Message::Welcome(welcome(&history, Mode::Resume)),
        history.records(0, 1),
        Message::Ranges(content(KeyRange::all(), history.head(), &[])),
        Message::Response(Response { id: 1, body: Ok(Bytes::new()) }),
        Message::Compare(Compare { ranges: Vec::new() }),
        Message::Compared(Compared { read_at: history.head(), verdicts: Vec::new(), start: Bytes::new() }),
        Message::Auth(Bytes::new()),
        Message::Ack(Ack { applied: seq(0), durable: seq(0), consistent: false }),
        Message::Heartbeat(Heartbeat::Source { head: history.head(), log_bytes: 0, time: 0 }),
        Message::Heartbeat(Heartbeat::Follower { applied: seq(0), durable: seq(0), consistent: false }),
    ] {
        assert!(misbehaved(&master(&history).handle_message(at(1), message)));
    }
    for message in [
        hello(),
        Message::Welcome(welcome(&history, Mode::Resume)),
        Message::Compare(Compare { ranges: Vec::new() }),
        Message::Compared(Compared { read_at: history.head(), verdicts: Vec::new(), start: Bytes::new() }),
        Message::Ack(Ack { applied: seq(0), durable: seq(0), consistent: false }),
        Message::Heartbeat(Heartbeat::Follower { applied: seq(0), durable: seq(0), consistent: false }),
    ] {
        assert!(misbehaved(&slave_says(message)));
    }
}

#[test]
fn nothing_is_taken_before_the_welcome() {
    let history = History::of(9);
    for message in [
        history.records(0, 1),
        Message::Ranges(content(KeyRange::all(), history.head(), &[])),
        Message::Heartbeat(Heartbeat::Source { head: history.head(), log_bytes: 0, time: 0 }),
    ] {
        let mut slave = SlaveSession::new(slave_config(None), at(0));
        assert!(misbehaved(&slave.handle_message(at(1), message)));
        assert!(!all_actions(&mut slave).iter().any(writes));
    }
}

#[test]
fn records_that_do_not_continue_the_history_are_not_applied() {
    let history = History::of(9);
    assert!(slave_says(history.records(4, 9)).is_ok());
    let bad = |message| matches!(slave_says(message), Err(ProtocolError::BadRecord { .. }));
    assert!(bad(history.records(3, 5)), "sent twice");
    assert!(bad(history.records(5, 6)), "one is missing");
    let mut other = History::of(4);
    other.write(Batch::new().put("of", "another history"));
    other.write(Batch::new().put("that", "goes on"));
    assert!(slave_says(other.records(4, 6)).is_ok(), "the first records are the same");
    other.entries.swap(4, 5);
    assert!(bad(other.records(4, 6)), "in the wrong order");
    // A sound record before a bad one: nothing of the message is applied.
    let Message::Records(mut records) = history.records(4, 7) else { unreachable!() };
    records.parts.remove(1);
    assert!(bad(Message::Records(records)));
    let Message::Records(mut records) = history.records(4, 6) else { unreachable!() };
    let cut = records.parts[1].len() - 1;
    records.parts[1].truncate(cut);
    assert!(bad(Message::Records(records)));
}

#[test]
fn a_record_of_another_past_is_refused() {
    let history = History::of(9);
    let mut other = History::new();
    for n in 0..5 {
        other.write(Batch::new().put("other", [n]));
    }
    let mut slave = following(&history, Some(Cursor::at(history.position(4))), Mode::Resume);
    let end = slave.handle_message(at(1), other.records(4, 5));
    assert!(matches!(end, Err(ProtocolError::BadRecord { .. })), "its number follows, its digest does not");
}

#[test]
fn a_heartbeat_of_another_source_is_refused() {
    let head = elsewhere(History::of(9).head());
    assert!(misbehaved(&slave_says(Message::Heartbeat(Heartbeat::Source { head, log_bytes: 0, time: 0 }))));
}

#[test]
fn content_for_a_slave_that_copies_nothing_is_refused() {
    let head = History::of(9).head();
    assert!(misbehaved(&slave_says(Message::Ranges(content(KeyRange::all(), head, &[])))));
}

#[test]
fn a_page_must_continue_the_copy_and_keep_to_its_range() {
    let history = History::of(9);
    let head = history.head();
    let cursor = Cursor { position: head, coverage: copied_to("m", head) };
    let says = |content| {
        let mut slave = following(&history, Some(cursor.clone()), Mode::Resume);
        let result = slave.handle_message(at(1), Message::Ranges(content));
        assert_eq!(result.is_ok(), all_actions(&mut slave).iter().any(writes));
        result
    };
    let to_p = KeyRange::from_bounds("m".."p");
    assert!(says(content(to_p.clone(), head, &["m", "n", "o"])).is_ok());
    assert!(misbehaved(&says(content(KeyRange::from_bounds("n".."p"), head, &["n"]))), "a gap");
    assert!(misbehaved(&says(content(KeyRange::from_bounds("a".."p"), head, &["n"]))), "what was copied before");
    assert!(misbehaved(&says(content(to_p.clone(), elsewhere(head), &["n"]))), "another source");
    assert!(misbehaved(&says(content(to_p.clone(), head, &["n", "p"]))), "a key above");
    assert!(misbehaved(&says(content(to_p.clone(), head, &["a", "n"]))), "a key below");
    assert!(misbehaved(&says(content(to_p.clone(), head, &["o", "n"]))), "not in order");
    assert!(misbehaved(&says(content(to_p.clone(), head, &["n", "n"]))), "twice");
    for batch in [Batch::new().delete("n"), Batch::new().delete_range("n".."o")] {
        let entries = batch.into_parts().unwrap().0;
        assert!(misbehaved(&says(Content { range: to_p.clone(), read_at: head, entries })), "no entry");
    }
}

// Values of more than a megabyte lie where they have arrived.
#[test]
fn a_page_of_large_values_keeps_to_its_range_too() {
    let history = History::of(9);
    let head = history.head();
    let cursor = Cursor { position: head, coverage: copied_to("m", head) };
    for (keys, taken) in
        [(["n", "o"], true), (["n", "p"], false), (["a", "n"], false), (["o", "n"], false), (["n", "n"], false)]
    {
        let large = vec![7; 2 << 20];
        let whole = puts(keys.map(|key| (key.as_bytes(), &large[..]))).as_bytes().clone();
        let (from, to) = (100, whole.len() - 100);
        let segments = vec![whole.slice(..from), whole.slice(from..to), whole.slice(to..)];
        let entries = EncodedOps::from_segments(segments).unwrap();
        let mut slave = following(&history, Some(cursor.clone()), Mode::Resume);
        let page = Content { range: KeyRange::from_bounds("m".."p"), read_at: head, entries };
        let result = slave.handle_message(at(1), Message::Ranges(page));
        assert_eq!((result.is_ok(), misbehaved(&result)), (taken, !taken), "{keys:?}");
        assert_eq!(all_actions(&mut slave).iter().any(writes), taken, "{keys:?}");
    }
}

#[test]
fn what_keys_hold_goes_on_from_where_the_slave_stands() {
    let history = History::of(9);
    let says = |read_at, end| slave_says(Message::Touched(Touched { read_at, end, ops: EncodedOps::default() }));
    let in_epoch = |number, nonce, position| Position { epoch: Epoch { number, nonce }, ..position };
    let (stands, next, head) = (history.position(4), history.position(5), history.head());
    for (read_at, end) in [
        (head, Some(next)),
        (head, Some(head)),
        (head, None),
        (stands, None),
        (head, Some(in_epoch(EPOCH.number + 1, 1, next))),
    ] {
        assert!(says(read_at, end).is_ok(), "{read_at} {end:?}");
    }
    for (what, read_at, end) in [
        ("where it stands", head, Some(stands)),
        ("before that", head, Some(history.position(3))),
        ("read before its end", next, Some(history.position(6))),
        ("read before where it stands", history.position(3), None),
        ("another source", head, Some(elsewhere(next))),
        ("read elsewhere", elsewhere(head), Some(next)),
        ("another epoch of that number", head, Some(in_epoch(EPOCH.number, EPOCH.nonce + 1, next))),
        ("an earlier epoch", head, Some(in_epoch(EPOCH.number - 1, 1, next))),
    ] {
        assert!(misbehaved(&says(read_at, end)), "{what}");
    }
    // Before the first record there is no epoch.
    let mut slave = following(&history, Some(Cursor::at(history.position(0))), Mode::Resume);
    let end = Some(in_epoch(EPOCH.number - 1, 1, next));
    let touched = Touched { read_at: head, end, ops: EncodedOps::default() };
    assert!(slave.handle_message(at(1), Message::Touched(touched)).is_ok());
}
