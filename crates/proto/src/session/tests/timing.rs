//! Time: handshakes, silence, heartbeats, and orderly ends.

use super::*;
use crate::{Ack, Goodbye, GoodbyeReason, Heartbeat, Progress, Request, RequestBody};

#[test]
fn a_connection_that_never_says_hello_is_given_up() {
    let mut master = master(&History::of(1));
    assert_eq!(master.poll_timeout(), Some(at(10).monotonic));
    assert!(master.handle_timeout(at(9)).is_ok());
    assert!(!master.has_action(), "it is not welcomed: it hears nothing");
    // A question is no hello: whoever only asks is not kept for ever either.
    master.handle_message(at(9), Message::Request(Request { id: 1, body: RequestBody::Status })).unwrap();
    assert_eq!(master.handle_timeout(at(10)), Err(ProtocolError::Silent { seconds: 10 }));
    assert_eq!(master.poll_timeout(), None);
}

#[test]
fn a_master_that_never_says_welcome_is_given_up() {
    let mut slave = SlaveSession::new(slave_config(None), at(0));
    assert_eq!(slave.poll_timeout(), Some(at(10).monotonic));
    // Bytes that never become a message do not count.
    slave.handle_bytes(at(9));
    assert!(slave.handle_timeout(at(9)).is_ok());
    assert_eq!(slave.handle_timeout(at(10)), Err(ProtocolError::Silent { seconds: 10 }));
    assert_eq!(slave.poll_timeout(), None);
}

#[test]
fn a_silent_slave_is_given_up_after_four_heartbeats() {
    let history = History::of(1);
    let mut master = streaming(&history, Some(Cursor::at(history.head())));
    let ack = Ack { applied: seq(1), durable: seq(1), consistent: true };
    master.handle_message(at(7), Message::Ack(ack)).unwrap();
    assert!(master.handle_timeout(at(26)).is_ok());
    assert_eq!(master.handle_timeout(at(27)), Err(ProtocolError::Silent { seconds: 20 }));
}

#[test]
fn a_silent_master_is_given_up_unless_bytes_still_arrive() {
    let history = History::of(1);
    let mut slave = following(&history, Some(Cursor::at(history.head())), Mode::Resume);
    slave.handle_bytes(at(7));
    assert!(slave.handle_timeout(at(26)).is_ok());
    assert_eq!(slave.handle_timeout(at(27)), Err(ProtocolError::Silent { seconds: 20 }));
}

#[test]
fn both_sides_are_heard_of_and_a_connection_that_does_not_drain_gets_one_heartbeat() {
    let history = History::of(3);
    let mut master = streaming(&history, Some(Cursor::at(history.head())));
    let mut slave = following(&history, Some(Cursor::at(history.head())), Mode::Resume);
    slave.handle_progress(Progress { applied: seq(3), durable: seq(2), consistent: true });
    all_actions(&mut slave);
    master.handle_timeout(at(4)).unwrap();
    slave.handle_timeout(at(4)).unwrap();
    assert!(master.poll_action().is_none() && all_actions(&mut slave).is_empty(), "it is too early");
    for seconds in [5, 10, 15] {
        assert_eq!(master.poll_timeout(), Some(at(seconds).monotonic));
        assert_eq!(slave.poll_timeout(), Some(at(seconds).monotonic));
        master.handle_timeout(at(seconds)).unwrap();
        slave.handle_timeout(at(seconds)).unwrap();
    }
    let Some(MasterAction::Send(Message::Heartbeat(Heartbeat::Source { head, log_bytes, time }))) =
        master.poll_action()
    else {
        panic!("a heartbeat")
    };
    assert_eq!((head, log_bytes, time), (history.head(), history.bytes_at(3), at(5).unix_ms));
    assert!(master.poll_action().is_none());
    let [SlaveAction::Send(Message::Heartbeat(Heartbeat::Follower { applied, durable, consistent }))] =
        all_actions(&mut slave)[..]
    else {
        panic!("one heartbeat")
    };
    assert_eq!((applied, durable, consistent), (seq(3), seq(2), true));
}

#[test]
fn only_the_latest_progress_waits_on_either_side() {
    let history = History::of(9);
    let mut slave = following(&history, Some(Cursor::at(history.position(0))), Mode::Resume);
    let mut master = streaming(&history, Some(Cursor::at(history.head())));
    for n in 1..=9 {
        slave.handle_progress(Progress { applied: seq(n), durable: seq(n - 1), consistent: true });
        slave.handle_progress(Progress { applied: seq(n), durable: seq(n - 1), consistent: true });
        let ack = Ack { applied: seq(n), durable: seq(n - 1), consistent: true };
        master.handle_message(at(1), Message::Ack(ack)).unwrap();
    }
    let last = Ack { applied: seq(9), durable: seq(8), consistent: true };
    assert!(matches!(&all_actions(&mut slave)[..], [SlaveAction::Send(Message::Ack(ack))] if *ack == last));
    let Some(MasterAction::Progress(progress)) = master.poll_action() else { panic!("progress") };
    assert_eq!((progress.applied, progress.durable), (seq(9), seq(8)));
    assert!(!master.has_action());
}

#[test]
fn a_slave_that_asks_without_listening_is_not_worth_a_queue() {
    const MOST: usize = 64;
    let history = History::of(1);
    let mut master = streaming(&history, Some(Cursor::at(history.head())));
    let mut ask = |id| master.handle_message(at(1), Message::Request(Request { id, body: RequestBody::Status }));
    let accepted = (0..10_000).take_while(|id| ask(*id).is_ok()).count();
    assert_eq!(accepted, MOST);
    // Only what it asks for is counted.
    let mut master = streaming(&history, Some(Cursor::at(history.head())));
    master.handle_message(at(1), Message::Ack(Ack { applied: seq(1), durable: seq(1), consistent: true })).unwrap();
    let mut ask = |id| master.handle_message(at(1), Message::Request(Request { id, body: RequestBody::Status }));
    assert_eq!((0..10_000).take_while(|id| ask(*id).is_ok()).count(), MOST);
}

#[test]
fn a_goodbye_ends_the_other_side_once() {
    let history = History::of(1);
    let goodbye = || Message::Goodbye(Goodbye { reason: GoodbyeReason::Closing, words: "enough".into() });
    let mut master = streaming(&history, Some(Cursor::at(history.head())));
    let mut slave = following(&history, Some(Cursor::at(history.head())), Mode::Resume);
    for _ in 0..3 {
        master.handle_message(at(1), goodbye()).unwrap();
        slave.handle_message(at(1), goodbye()).unwrap();
        let late = Message::Request(Request { id: 1, body: RequestBody::Status });
        master.handle_message(at(1), late).unwrap();
    }
    assert!(matches!(master.poll_action(), Some(MasterAction::Close(None))));
    assert!(master.poll_action().is_none());
    let actions = all_actions(&mut slave);
    assert!(matches!(&actions[..], [SlaveAction::Close(Ok(goodbye))] if goodbye.words == "enough"), "{actions:?}");
    // Silence is no error any more.
    assert_eq!((slave.handle_timeout(at(1000)), master.handle_timeout(at(1000))), (Ok(()), Ok(())));
    assert!(all_actions(&mut slave).is_empty() && master.poll_action().is_none());
}

#[test]
fn a_side_that_is_shut_tells_the_other_one_and_nothing_follows() {
    let mut history = History::of(1);
    let mut master = streaming(&history, Some(Cursor::at(history.head())));
    master.shut(GoodbyeReason::Replaced, "a newer connection");
    master.shut(GoodbyeReason::Closing, "twice");
    history.write(Batch::new().put("more", "1"));
    master.handle_view(history.view());
    let Some(MasterAction::Send(Message::Goodbye(goodbye))) = master.poll_action() else { panic!("a goodbye") };
    assert_eq!(goodbye.reason, GoodbyeReason::Replaced);
    assert!(matches!(master.poll_action(), Some(MasterAction::Close(None))));
    assert!(master.poll_action().is_none());

    let mut slave = following(&history, Some(Cursor::at(history.position(1))), Mode::Resume);
    slave.shut("that is all");
    slave.shut("twice");
    slave.handle_message(at(1), history.records(1, 2)).unwrap();
    slave.handle_progress(Progress { applied: seq(2), ..Progress::default() });
    let actions = all_actions(&mut slave);
    let [SlaveAction::Send(Message::Goodbye(_)), SlaveAction::Close(Ok(_))] = &actions[..] else {
        panic!("{actions:?}")
    };
}

#[test]
fn a_log_that_was_trimmed_under_a_session_ends_it_in_order() {
    let mut history = History::of(9);
    let mut master = streaming(&history, Some(Cursor::at(history.position(2))));
    let Some(MasterAction::ReadRecords { after, max_bytes, .. }) = master.poll_action() else { panic!("records") };
    history.floor = 5;
    master.handle_records(history.read(after, max_bytes));
    let Some(MasterAction::Send(Message::Goodbye(goodbye))) = master.poll_action() else { panic!("a goodbye") };
    assert_eq!(goodbye.reason, GoodbyeReason::Trimmed);
    assert!(matches!(master.poll_action(), Some(MasterAction::Close(None))));
}
