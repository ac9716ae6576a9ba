//! A relay that is itself behind holds a slave that is ahead of it until it can verify.

use super::*;
use crate::{Above, Heartbeat, Refusal, RejectCode};

/// A relay that holds the first 12 records of 20, and the session of a slave that stands at `cursor`.
fn relay(cursor: Cursor) -> (History, History, MasterSession) {
    let whole = History::of(20);
    let mut behind = whole.clone();
    behind.published = 12;
    behind.fail();
    let config = MasterSessionConfig { relay: Some(as_relay()), ..master_config() };
    let mut relay = MasterSession::new(config, behind.view(), Vec::new(), at(0));
    relay.handle_message(at(0), Message::Hello(hello(Some(cursor)))).unwrap();
    (whole, behind, relay)
}

fn located(relay: &mut MasterSession, history: &History) {
    let Some(MasterAction::Locate(positions)) = relay.poll_action() else { panic!("a question") };
    relay.handle_located(&history.locate(&positions));
}

fn told_to_wait(relay: &mut MasterSession) -> Welcome {
    assert!(matches!(relay.poll_action(), Some(MasterAction::Joined { .. })));
    let Some(MasterAction::Send(Message::Welcome(welcome))) = relay.poll_action() else { panic!("a welcome") };
    assert_eq!(welcome.mode, Mode::Wait);
    assert!(relay.poll_action().is_none(), "and then nothing happens");
    welcome
}

#[test]
fn a_slave_ahead_of_a_relay_waits_and_resumes_once_the_relay_has_caught_up() {
    let cursor = Cursor::at(History::of(20).position(15));
    let (whole, mut behind, mut relay) = relay(cursor);
    located(&mut relay, &behind);
    told_to_wait(&mut relay);
    // Nothing is published: nothing is asked. Something is, not enough: the slave hears nothing of it.
    relay.handle_view(behind.view());
    assert!(relay.poll_action().is_none());
    for seq in 13..15 {
        behind = History { published: seq, ..whole.clone() };
        relay.handle_view(behind.view());
        located(&mut relay, &behind);
        assert!(relay.poll_action().is_none());
    }
    relay.handle_view(whole.view());
    located(&mut relay, &whole);
    let Some(MasterAction::Verified(position)) = relay.poll_action() else { panic!("it is told") };
    assert_eq!(position, whole.position(15));
    let Some(MasterAction::Send(Message::Welcome(welcome))) = relay.poll_action() else { panic!("a welcome") };
    assert_eq!(welcome.mode, Mode::Resume);
    assert_eq!(welcome.behind_bytes, whole.bytes_at(20) - whole.bytes_at(15));
    let Some(MasterAction::ReadRecords { after, .. }) = relay.poll_action() else { panic!("records") };
    assert_eq!(after, whole.position(15));
}

#[test]
fn a_slave_that_turns_out_to_have_parted_is_refused_after_all() {
    let cursor = Cursor::at(parted(History::of(20).position(15)));
    let (whole, behind, mut relay) = relay(cursor);
    located(&mut relay, &behind);
    told_to_wait(&mut relay);
    relay.handle_view(whole.view());
    located(&mut relay, &whole);
    let Some(MasterAction::Send(Message::Reject(reject))) = relay.poll_action() else { panic!("a reject") };
    assert_eq!(reject.code, RejectCode::Diverged);
    assert!(matches!(relay.poll_action(), Some(MasterAction::Close(Some(_)))));
}

#[test]
fn a_slave_that_has_parted_where_the_relay_can_tell_is_refused_at_once() {
    let whole = History::of(20);
    let coverage = copied_to("m", whole.position(15));
    let (_, behind, mut relay) = relay(Cursor { position: parted(whole.position(9)), coverage });
    located(&mut relay, &behind);
    assert!(matches!(relay.poll_action(), Some(MasterAction::Send(Message::Reject(_)))));
}

#[test]
fn a_slave_ahead_of_a_relay_waits_only_for_what_may_still_come() {
    let position = History::of(20).position(15);
    let in_epoch = |number, nonce| Position { epoch: Epoch { number, nonce }, ..position };
    let Epoch { number, nonce } = position.epoch;
    // The relay has come to another epoch than the slave's: what it lacks is of that, or of one after it.
    for gone in [in_epoch(number, nonce + 1), in_epoch(number - 1, nonce)] {
        let (_, behind, mut relay) = relay(Cursor::at(gone));
        located(&mut relay, &behind);
        let Some(MasterAction::Send(Message::Reject(reject))) = relay.poll_action() else { panic!("a reject") };
        assert_eq!(reject.code, RejectCode::Diverged);
    }
    let (_, behind, mut relay) = relay(Cursor::at(in_epoch(number + 1, nonce)));
    located(&mut relay, &behind);
    told_to_wait(&mut relay);
}

#[test]
fn of_an_unfinished_copy_the_moment_of_its_pages_may_be_what_has_parted() {
    let whole = History::of(20);
    let read_at = whole.position(15);
    let read_at = Position { epoch: Epoch { nonce: read_at.epoch.nonce + 1, ..read_at.epoch }, ..read_at };
    let (_, behind, mut relay) = relay(Cursor { position: whole.position(9), coverage: copied_to("m", read_at) });
    located(&mut relay, &behind);
    let Some(MasterAction::Send(Message::Reject(reject))) = relay.poll_action() else { panic!("a reject") };
    assert_eq!(reject.code, RejectCode::Diverged);
}

#[test]
fn an_unfinished_copy_waits_for_the_moment_of_its_pages_too() {
    let whole = History::of(20);
    let coverage = copied_to("m", whole.position(15));
    let (whole, behind, mut relay) = relay(Cursor { position: whole.position(9), coverage });
    located(&mut relay, &behind);
    told_to_wait(&mut relay);
    relay.handle_view(whole.view());
    located(&mut relay, &whole);
    assert!(matches!(relay.poll_action(), Some(MasterAction::Verified(_))));
    let Some(MasterAction::Send(Message::Welcome(welcome))) = relay.poll_action() else { panic!("a welcome") };
    assert_eq!(welcome.mode, Mode::Resume);
}

#[test]
fn a_slave_that_waits_is_kept_alive_and_must_live() {
    let (_, behind, mut relay) = relay(Cursor::at(History::of(20).position(15)));
    located(&mut relay, &behind);
    told_to_wait(&mut relay);
    let sign = || Message::Heartbeat(Heartbeat::Follower { applied: seq(15), durable: seq(15), consistent: true });
    for seconds in (5..100).step_by(5) {
        assert!(relay.poll_timeout().unwrap() <= at(seconds).monotonic);
        relay.handle_timeout(at(seconds)).unwrap();
        let Some(MasterAction::Send(Message::Heartbeat(Heartbeat::Source { head, .. }))) = relay.poll_action() else {
            panic!("a heartbeat")
        };
        assert_eq!(head, behind.head());
        relay.handle_message(at(seconds), sign()).unwrap();
        assert!(relay.poll_action().is_none(), "what it has is beyond what the relay can judge");
    }
    assert_eq!(relay.handle_timeout(at(95 + 20)), Err(ProtocolError::Silent { seconds: 20 }));
}

#[test]
fn while_it_is_located_again_a_waiting_slave_still_counts_as_one() {
    let (whole, behind, mut relay) = relay(Cursor::at(History::of(20).position(15)));
    located(&mut relay, &behind);
    told_to_wait(&mut relay);
    relay.handle_view(whole.view());
    assert!(matches!(relay.poll_action(), Some(MasterAction::Locate(_))));
    let sign = Message::Heartbeat(Heartbeat::Follower { applied: seq(15), durable: seq(15), consistent: true });
    relay.handle_message(at(1), sign).unwrap();
    assert!(relay.poll_timeout().is_some());
}

fn waiting() -> (History, SlaveSession) {
    let whole = History::of(20);
    let behind = History { published: 12, ..whole.clone() };
    let mut slave = SlaveSession::new(slave_config(Some(Cursor::at(whole.position(15)))), at(0));
    slave.poll_action();
    slave.handle_message(at(1), Message::Welcome(welcome(&behind, Mode::Wait))).unwrap();
    let actions = all_actions(&mut slave);
    assert!(matches!(&actions[..], [SlaveAction::Waiting(_)]), "nothing is begun, and no head is told: {actions:?}");
    (whole, slave)
}

#[test]
fn a_waiting_slave_outlives_the_handshake_and_then_follows() {
    let (whole, mut slave) = waiting();
    for seconds in (6..60).step_by(5) {
        slave.handle_timeout(at(seconds)).unwrap();
        let actions = all_actions(&mut slave);
        let beat = |action: &SlaveAction| matches!(action, SlaveAction::Send(Message::Heartbeat(_)));
        assert!(actions.len() == 1 && actions.iter().all(beat), "{actions:?}");
        let beat = Heartbeat::Source { head: whole.position(12), log_bytes: 1, time: 1 };
        slave.handle_message(at(seconds), Message::Heartbeat(beat)).unwrap();
        assert!(all_actions(&mut slave).is_empty(), "the head of one who is behind is no news");
    }
    slave.handle_message(at(60), Message::Welcome(welcome(&whole, Mode::Resume))).unwrap();
    let actions = all_actions(&mut slave);
    assert!(matches!(&actions[..], [SlaveAction::Welcomed(_), SlaveAction::Contact(_)]), "{actions:?}");
    slave.handle_message(at(60), whole.records(15, 20)).unwrap();
    assert_eq!(all_actions(&mut slave).len(), 5);
}

#[test]
fn silence_ends_a_waiting_slave_too() {
    let (_, mut slave) = waiting();
    assert!(slave.handle_timeout(at(20)).is_ok());
    assert_eq!(slave.handle_timeout(at(21)), Err(ProtocolError::Silent { seconds: 20 }));
}

#[test]
fn a_waiting_slave_can_be_refused_and_takes_no_records() {
    let (whole, mut slave) = waiting();
    assert!(matches!(slave.handle_message(at(2), whole.records(15, 16)), Err(ProtocolError::Misbehaved { .. })));
    let (_, mut slave) = waiting();
    let refusal = Refusal::new(RejectCode::Diverged, "parted");
    slave.handle_message(at(2), Message::Reject(refusal.into())).unwrap();
    assert!(matches!(&all_actions(&mut slave)[..], [SlaveAction::Close(Err(_))]));
}

fn refused(relay: &mut MasterSession) -> Refusal {
    let Some(MasterAction::Send(Message::Reject(reject))) = relay.poll_action() else { panic!("a reject") };
    let Some(MasterAction::Close(Some(refusal))) = relay.poll_action() else { panic!("the end") };
    assert_eq!(Refusal::from(reject), refusal);
    refusal
}

#[test]
fn a_slave_waits_for_a_relay_as_long_as_it_may_whatever_is_published_meanwhile() {
    let cursor = Cursor::at(History::of(20).position(15));
    let (whole, mut behind, mut relay) = relay(cursor);
    located(&mut relay, &behind);
    told_to_wait(&mut relay);
    let sign = || Message::Heartbeat(Heartbeat::Follower { applied: seq(15), durable: seq(15), consistent: true });
    for seconds in (5..300).step_by(5) {
        relay.handle_message(at(seconds), sign()).unwrap();
        relay.handle_timeout(at(seconds)).unwrap();
        if seconds == 100 {
            behind = History { published: 13, ..whole.clone() };
            relay.handle_view(behind.view());
            let Some(MasterAction::Send(Message::Heartbeat(_))) = relay.poll_action() else { panic!("a heartbeat") };
            located(&mut relay, &behind);
        }
        while let Some(action) = relay.poll_action() {
            assert!(matches!(action, MasterAction::Send(Message::Heartbeat(_))), "{action:?}");
        }
    }
    relay.handle_message(at(299), sign()).unwrap();
    assert_eq!(relay.poll_timeout(), Some(Duration::from_secs(300)));
    relay.handle_timeout(at(300)).unwrap();
    let refusal = refused(&mut relay);
    assert_eq!((refusal.code, refusal.retry), (RejectCode::Busy, true));
}

#[test]
fn who_is_above_a_relay_is_not_served_by_it_and_neither_is_one_too_many() {
    let whole = History::of(20);
    let nodes = |count: u64| (0..count).map(|n| PathNode { name: format!("r{n}"), nonce: n }).collect::<Vec<_>>();
    for (path, loops) in [(nodes(1), false), (nodes(2), true), (nodes(3), true), (vec![], false)] {
        let path = [path, vec![PathNode { name: "self".into(), nonce: 900 }]].concat();
        let own = Relay { path, ..as_relay() };
        let config = MasterSessionConfig { relay: Some(own), ..master_config() };
        let mut relay = MasterSession::new(config, whole.view(), Vec::new(), at(0));
        // Its nonce is 1.
        let cursor = Cursor::at(whole.position(15));
        relay.handle_message(at(0), Message::Hello(hello(Some(cursor)))).unwrap();
        if loops {
            let refusal = refused(&mut relay);
            assert_eq!((refusal.code, refusal.retry), (RejectCode::Loop, false));
        } else {
            assert!(matches!(relay.poll_action(), Some(MasterAction::Locate(_))));
        }
    }
    let deep = |count| {
        let path = (0..count).map(|n| PathNode { name: "r".into(), nonce: 1000 + n }).collect();
        let config = MasterSessionConfig { relay: Some(Relay { path, ..as_relay() }), ..master_config() };
        let mut relay = MasterSession::new(config, whole.view(), Vec::new(), at(0));
        relay.handle_message(at(0), Message::Hello(hello(None))).unwrap();
        relay
    };
    let most = u64::try_from(MAX_PATH).unwrap();
    assert!(matches!(deep(most - 1).poll_action(), Some(MasterAction::Joined { .. })));
    assert_eq!(refused(&mut deep(most)).code, RejectCode::Loop);
}

#[test]
fn a_slave_looks_for_itself_above_the_relay_as_well() {
    let whole = History::of(20);
    let path = |nonces: &[u64]| nonces.iter().map(|nonce| PathNode { name: "r".into(), nonce: *nonce }).collect();
    for (nonces, circle) in [(&[2, 3][..], false), (&[2, 1, 3], true)] {
        let mut slave = SlaveSession::new(slave_config(Some(Cursor::at(whole.position(15)))), at(0));
        let told = Welcome { path: path(nonces), verifies: true, ..welcome(&whole, Mode::Resume) };
        slave.handle_message(at(0), Message::Welcome(told)).unwrap();
        let mut ends = Vec::new();
        while let Some(action) = slave.poll_action() {
            if let SlaveAction::Close(Err(refusal)) = action {
                ends.push(refusal.code);
            }
        }
        assert_eq!(ends, if circle { vec![RejectCode::Loop] } else { vec![] });
    }
    let mut slave = SlaveSession::new(slave_config(Some(Cursor::at(whole.position(15)))), at(0));
    let told = Welcome { path: path(&[7; MAX_PATH + 1]), verifies: true, ..welcome(&whole, Mode::Resume) };
    assert!(slave.handle_message(at(0), Message::Welcome(told)).is_err());
    let mut slave = SlaveSession::new(slave_config(Some(Cursor::at(whole.position(15)))), at(0));
    let told = Welcome { path: path(&[7; MAX_PATH]), verifies: true, ..welcome(&whole, Mode::Resume) };
    assert!(slave.handle_message(at(0), Message::Welcome(told)).is_ok());
}

#[test]
fn who_was_in_a_newer_epoch_is_not_served_by_a_relay_that_went_on_beside_it() {
    let whole = History::of(20);
    let newer = Position { epoch: Epoch { number: 2, nonce: 5 }, ..parted(whole.position(15)) };
    let config = MasterSessionConfig { relay: Some(as_relay()), ..master_config() };
    let epochs = vec![crate::EpochStart { epoch: EPOCH, first: Seq::new(1) }];
    let mut relay = MasterSession::new(config, whole.view(), epochs, at(0));
    let resyncs = Hello { on_divergence: OnDivergence::Resync, ..hello(Some(Cursor::at(newer))) };
    relay.handle_message(at(0), Message::Hello(resyncs)).unwrap();
    located(&mut relay, &whole);
    assert_eq!(refused(&mut relay).code, RejectCode::Superseded);
}

#[test]
fn a_relay_says_at_once_what_it_knows_of_its_master_and_then_with_each_heartbeat() {
    let history = History::of(3);
    let mut relay = streaming(&history, Some(Cursor::at(history.head())));
    relay.handle_timeout(at(1)).unwrap();
    for (seconds, silence_ms) in [(1, Some(7)), (6, None)] {
        let above = Above { lag: None, silence_ms };
        relay.handle_above(above);
        assert_eq!(relay.poll_timeout(), Some(at(seconds).monotonic));
        relay.handle_timeout(at(seconds)).unwrap();
        let Some(MasterAction::Send(Message::Heartbeat(Heartbeat::Relay { above: told, .. }))) = relay.poll_action()
        else {
            panic!("a heartbeat of a relay")
        };
        assert_eq!(told, above);
    }
}

#[test]
fn a_relay_wakes_when_a_slave_has_waited_long_enough() {
    let whole = History::of(20);
    let behind = whole.clone().at(12);
    let config =
        MasterSessionConfig { relay: Some(Relay { wait: Duration::from_secs(3), ..as_relay() }), ..master_config() };
    let mut relay = MasterSession::new(config, behind.view(), Vec::new(), at(0));
    relay.handle_message(at(0), Message::Hello(hello(Some(Cursor::at(whole.position(15)))))).unwrap();
    located(&mut relay, &behind);
    told_to_wait(&mut relay);
    assert_eq!(relay.poll_timeout(), Some(at(3).monotonic));
    relay.handle_timeout(at(3)).unwrap();
    assert_eq!(refused(&mut relay).code, RejectCode::Busy);
}

#[test]
fn a_relay_that_holds_nothing_yet_is_in_no_epoch_that_a_slave_could_have_left() {
    let ahead = History::of(20).position(15);
    let ahead = Position { epoch: Epoch { nonce: ahead.epoch.nonce + 1, ..ahead.epoch }, ..ahead };
    let nothing = History::new();
    let config = MasterSessionConfig { relay: Some(as_relay()), ..master_config() };
    let mut relay = MasterSession::new(config, nothing.view(), Vec::new(), at(0));
    relay.handle_message(at(0), Message::Hello(hello(Some(Cursor::at(ahead))))).unwrap();
    located(&mut relay, &nothing);
    told_to_wait(&mut relay);
}
