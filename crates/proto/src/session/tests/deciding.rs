//! What a master decides about a slave, from its hello and the history alone.

use super::*;
use crate::{EpochStart, Refusal, RejectCode};

/// What the master decides. Checks that a refusal is all that a refused slave gets, and that an accepted one is
/// entered before it is welcomed.
fn decide(history: &History, view: View, data_bytes: u64, hello: Hello) -> Result<Welcome, Refusal> {
    let mut master = MasterSession::new(master_config(), view, Vec::new(), at(0));
    master.handle_message(at(0), Message::Hello(hello.clone())).unwrap();
    let mut told = Vec::new();
    loop {
        match master.poll_action() {
            Some(MasterAction::Locate(positions)) => master.handle_located(&history.locate(&positions)),
            Some(MasterAction::MeasureData { at_most }) => master.handle_data_size(data_bytes.min(at_most)),
            Some(MasterAction::Close(refusal)) => {
                let refusal = refusal.expect("a refusal says why");
                let [MasterAction::Send(Message::Reject(reject))] = &told[..] else { panic!("{told:?}") };
                assert_eq!(Refusal::from(reject.clone()), refusal);
                assert!(master.poll_action().is_none() && master.poll_timeout().is_none());
                return Err(refusal);
            }
            Some(MasterAction::Send(Message::Welcome(welcome))) => {
                let [MasterAction::Joined { slave, nonce: 1, start, .. }, verified @ ..] = &told[..] else {
                    panic!("{told:?}")
                };
                assert_eq!(slave, "edge");
                // A position that was found in the history is told, and nothing else is.
                let resumed = hello.cursor.map(|cursor| cursor.position).filter(|_| welcome.mode == Mode::Resume);
                match (verified, resumed) {
                    ([], None) => {}
                    ([MasterAction::Verified(position)], Some(held)) => {
                        assert_eq!((*position, *start), (held, held.seq));
                    }
                    other => panic!("{other:?}"),
                }
                return Ok(welcome);
            }
            Some(other) => told.push(other),
            None => panic!("nothing was decided"),
        }
    }
}

fn served(history: &History, hello: Hello) -> Welcome {
    decide(history, history.view(), 0, hello).unwrap()
}

fn refused(history: &History, hello: Hello) -> RejectCode {
    let refusal = decide(history, history.view(), 0, hello).unwrap_err();
    assert!(!refusal.retry, "none of these goes by itself");
    refusal.code
}

#[test]
fn a_slave_within_the_log_resumes_and_learns_how_far_it_is_behind() {
    let history = History::of(20).trimmed(5);
    for seq in [5, 6, 19, 20] {
        let welcome = served(&history, hello(Some(Cursor::at(history.position(seq)))));
        assert_eq!((welcome.mode, welcome.head, welcome.floor), (Mode::Resume, history.head(), history.position(5)));
        assert_eq!(welcome.behind_bytes, history.bytes_at(20) - history.bytes_at(seq));
        assert_eq!(welcome.log_bytes, history.bytes_at(20));
    }
}

#[test]
fn an_unfinished_copy_resumes_if_all_it_stands_on_is_in_the_log() {
    let history = History::of(20).trimmed(5);
    let coverage = copied_to("m", history.position(12));
    let welcome = served(&history, hello(Some(Cursor { position: history.position(8), coverage })));
    assert_eq!(welcome.mode, Mode::Resume);
    assert_eq!(welcome.behind_bytes, history.bytes_at(20) - history.bytes_at(8));
}

#[test]
fn an_unfinished_copy_below_the_log_compares_what_it_has() {
    let history = History::of(20).trimmed(10);
    let coverage = copied_to("m", history.position(12));
    let welcome = served(&history, hello(Some(Cursor { position: history.position(8), coverage })));
    assert_eq!((welcome.mode, welcome.behind_bytes), (Mode::Compare { from: history.head() }, 0));
}

#[test]
fn an_empty_slave_goes_through_a_short_log() {
    let history = History::of(20);
    let welcome = served(&history, hello(None));
    assert_eq!((welcome.mode, welcome.floor.seq), (Mode::Resume, Seq::ZERO));
    assert_eq!(welcome.behind_bytes, history.bytes_at(20));
}

#[test]
fn an_empty_slave_copies_where_the_log_does_not_reach_back() {
    let history = History::of(20).trimmed(1);
    assert_eq!(served(&history, hello(None)).mode, Mode::Copy { from: history.head() });
}

#[test]
fn an_empty_slave_takes_what_is_smaller_the_log_or_the_data() {
    let history = History::of(20);
    let view = View { retained_bytes: 10 << 20, log_bytes: 10 << 20, ..history.view() };
    let decide = |data| decide(&history, view, data, hello(None)).unwrap();
    assert_eq!(decide(9 << 20).mode, Mode::Copy { from: history.head() });
    let welcome = decide(10 << 20);
    assert_eq!((welcome.mode, welcome.behind_bytes), (Mode::Resume, 10 << 20));
    assert_eq!(decide(u64::MAX).mode, Mode::Resume);
}

#[test]
fn the_floor_may_rise_while_the_data_is_measured() {
    let mut history = History::of(20);
    let view = View { retained_bytes: 10 << 20, ..history.view() };
    let mut master = MasterSession::new(master_config(), view, Vec::new(), at(0));
    master.handle_message(at(0), Message::Hello(hello(None))).unwrap();
    assert!(matches!(master.poll_action(), Some(MasterAction::MeasureData { at_most }) if at_most == 10 << 20));
    history.floor = 3;
    master.handle_view(View { retained_bytes: 10 << 20, ..history.view() });
    master.handle_data_size(10 << 20);
    assert!(matches!(master.poll_action(), Some(MasterAction::Joined { .. })));
    let Some(MasterAction::Send(Message::Welcome(welcome))) = master.poll_action() else { panic!("a welcome") };
    assert_eq!(welcome.mode, Mode::Copy { from: history.head() });
}

// Who could not tell, answers with the limit: that must not look like little data beside a log that has grown.
#[test]
fn the_log_may_grow_while_the_data_is_measured() {
    let history = History::of(20);
    let view = View { retained_bytes: 10 << 20, log_bytes: 10 << 20, ..history.view() };
    let mut master = MasterSession::new(master_config(), view, Vec::new(), at(0));
    master.handle_message(at(0), Message::Hello(hello(None))).unwrap();
    assert!(matches!(master.poll_action(), Some(MasterAction::MeasureData { at_most }) if at_most == 10 << 20));
    master.handle_view(View { retained_bytes: 11 << 20, log_bytes: 11 << 20, ..view });
    master.handle_data_size(10 << 20);
    assert!(matches!(master.poll_action(), Some(MasterAction::Joined { .. })));
    let Some(MasterAction::Send(Message::Welcome(welcome))) = master.poll_action() else { panic!("a welcome") };
    assert_eq!((welcome.mode, welcome.behind_bytes), (Mode::Resume, 11 << 20));
}

#[test]
fn a_foreign_source_is_refused_without_a_look_at_the_history() {
    let history = History::of(3);
    let mut master = master(&history);
    let cursor = Cursor::at(elsewhere(history.head()));
    master.handle_message(at(0), Message::Hello(hello(Some(cursor.clone())))).unwrap();
    assert!(matches!(master.poll_action(), Some(MasterAction::Send(Message::Reject(_)))));
    assert_eq!(refused(&history, hello(Some(cursor))), RejectCode::ForeignSource);
}

#[test]
fn a_position_that_the_history_does_not_hold_is_refused() {
    let history = History::of(20).trimmed(5);
    for seq in [7, 20] {
        let cursor = Cursor::at(parted(history.position(seq)));
        assert_eq!(refused(&history, hello(Some(cursor))), RejectCode::Diverged);
    }
    // The stream went on from a sound position, but a page was read from another history.
    let coverage = copied_to("m", parted(history.position(12)));
    let cursor = Cursor { position: history.position(8), coverage };
    assert_eq!(refused(&history, hello(Some(cursor))), RejectCode::Diverged);
}

#[test]
fn a_slave_ahead_of_its_master_is_refused() {
    let history = History::of(20);
    let mut lost = history.clone();
    lost.published = 12;
    lost.fail();
    assert_eq!(refused(&lost, hello(Some(Cursor::at(history.position(13))))), RejectCode::SlaveAhead);
    let coverage = copied_to("m", history.position(13));
    let cursor = Cursor { position: history.position(12), coverage };
    assert_eq!(refused(&lost, hello(Some(cursor))), RejectCode::SlaveAhead);
}

#[test]
fn a_history_that_parted_is_named_before_one_that_is_ahead() {
    let history = History::of(20);
    let mut lost = history.clone();
    lost.published = 12;
    lost.fail();
    let coverage = copied_to("m", history.position(13));
    let cursor = Cursor { position: parted(history.position(9)), coverage };
    assert_eq!(refused(&lost, hello(Some(cursor))), RejectCode::Diverged);
}

#[test]
fn data_without_a_cursor_is_refused_whatever_the_log_holds() {
    for floor in [0, 5] {
        let history = History::of(20).trimmed(floor);
        let hello = Hello { holds_data: true, ..hello(None) };
        assert_eq!(refused(&history, hello), RejectCode::DataWithoutCursor);
    }
}

#[test]
fn a_whole_slave_below_the_log_compares_if_its_position_is_known() {
    let history = History::of(20).trimmed(10);
    let welcome = served(&history, hello(Some(Cursor::at(history.position(9)))));
    assert_eq!((welcome.mode, welcome.behind_bytes), (Mode::Compare { from: history.head() }, 0));
}

/// What is decided about a slave at 9 whose position is too old to tell, by where its checkpoints lie.
fn by_checkpoints(epochs: Vec<EpochStart>, checkpoints: &[Located]) -> Result<Mode, RejectCode> {
    at_by_checkpoints(9, epochs, checkpoints)
}

fn at_by_checkpoints(at_seq: u64, epochs: Vec<EpochStart>, checkpoints: &[Located]) -> Result<Mode, RejectCode> {
    let history = History::of(20).trimmed(10);
    let mut master = MasterSession::new(master_config(), history.view(), epochs, at(0));
    let named = vec![history.position(5); checkpoints.len()];
    let position = Position { seq: seq(at_seq), ..history.position(9) };
    let cursor = Some(Cursor::at(position));
    master.handle_message(at(0), Message::Hello(Hello { checkpoints: named.clone(), ..hello(cursor) })).unwrap();
    assert!(matches!(master.poll_action(), Some(MasterAction::Locate(asked)) if asked == [position]));
    master.handle_located(&[Located::Below]);
    assert!(matches!(master.poll_action(), Some(MasterAction::Locate(asked)) if asked == named));
    assert!(master.poll_action().is_none(), "nothing is decided before that is known");
    master.handle_located(checkpoints);
    loop {
        match master.poll_action() {
            Some(MasterAction::Send(Message::Welcome(welcome))) => return Ok(welcome.mode),
            Some(MasterAction::Send(Message::Reject(reject))) => return Err(reject.code),
            Some(MasterAction::Joined { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_slave_too_old_to_tell_compares_if_a_checkpoint_is_shared_and_none_parted() {
    let compares = Ok(Mode::Compare { from: History::of(20).head() });
    assert_eq!(by_checkpoints(Vec::new(), &[Located::Shared]), compares);
    assert_eq!(by_checkpoints(Vec::new(), &[Located::Below, Located::Held { log_bytes: 1 }]), compares);
    assert_eq!(by_checkpoints(Vec::new(), &[Located::Shared, Located::Mismatch]), Err(RejectCode::Diverged));
    assert_eq!(by_checkpoints(Vec::new(), &[Located::Ahead]), Err(RejectCode::Diverged));
    assert_eq!(by_checkpoints(Vec::new(), &[]), Err(RejectCode::NeedsCompare));
    assert_eq!(by_checkpoints(Vec::new(), &[Located::Below; 3]), Err(RejectCode::NeedsCompare));
}

// No checkpoint can lie between: the epoch's own first record is the point that both passed through.
#[test]
fn a_slave_shortly_after_the_beginning_of_an_epoch_needs_no_checkpoint() {
    let start = |epoch, first| vec![EpochStart { epoch, first: seq(first) }];
    assert!(by_checkpoints(start(EPOCH, 1), &[]).is_ok());
    let every = crate::layout::Checkpoint::EVERY;
    assert!(at_by_checkpoints(every, start(EPOCH, 1), &[]).is_ok());
    assert_eq!(at_by_checkpoints(every + 1, start(EPOCH, 1), &[]), Err(RejectCode::NeedsCompare));
    let other = Epoch { nonce: EPOCH.nonce + 1, ..EPOCH };
    assert_eq!(by_checkpoints(start(other, 1), &[]), Err(RejectCode::NeedsCompare));
}

#[test]
fn a_slave_behind_more_log_than_twice_the_data_compares() {
    let history = History::of(20);
    let view = View { log_bytes: history.bytes_at(3) + (10 << 20), ..history.view() };
    let decide = |data, coverage| {
        let cursor = Cursor { position: history.position(3), coverage };
        decide(&history, view, data, hello(Some(cursor))).unwrap().mode
    };
    let compare = Mode::Compare { from: history.head() };
    assert_eq!(decide((5 << 20) - 1, Coverage::default()), compare);
    assert_eq!(decide(5 << 20, Coverage::default()), Mode::Resume);
    // No more is counted than makes a difference.
    let mut master = MasterSession::new(master_config(), view, Vec::new(), at(0));
    master.handle_message(at(0), Message::Hello(hello(Some(Cursor::at(history.position(3)))))).unwrap();
    assert!(matches!(master.poll_action(), Some(MasterAction::Locate(_))));
    master.handle_located(&[Located::Held { log_bytes: history.bytes_at(3) }]);
    assert!(matches!(master.poll_action(), Some(MasterAction::MeasureData { at_most }) if at_most == 5 << 20));
    // A copy that is under way is cheaper by what it has.
    assert_eq!(decide(0, copied_to("m", history.position(5))), Mode::Resume);
}

#[test]
fn whoever_copies_or_compares_is_told_what_the_content_stands_on() {
    let history = History::of(20).trimmed(10);
    let checkpoints = vec![history.position(4), history.position(12)];
    let ahead = Position { seq: seq(21), ..history.head() };
    let told = |cursor| {
        let known = [&checkpoints[..], &[ahead]].concat();
        let config = MasterSessionConfig { checkpoints: known, ..master_config() };
        let mut master = MasterSession::new(config, history.view(), Vec::new(), at(0));
        master.handle_message(at(0), Message::Hello(hello(cursor))).unwrap();
        loop {
            match master.poll_action() {
                Some(MasterAction::Locate(positions)) => master.handle_located(&history.locate(&positions)),
                Some(MasterAction::Send(Message::Welcome(welcome))) => return welcome.checkpoints,
                Some(MasterAction::Joined { .. } | MasterAction::Verified(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(told(None), checkpoints);
    assert_eq!(told(Some(Cursor::at(history.position(9)))), checkpoints);
    assert_eq!(told(Some(Cursor::at(history.position(12)))), []);
}

#[test]
fn a_slave_that_cannot_hold_what_the_master_accepts_is_refused() {
    let history = History::of(3);
    for limits in [
        StoreLimits { max_key: LIMITS.max_key - 1, ..LIMITS },
        StoreLimits { max_value: LIMITS.max_value - 1, ..LIMITS },
        StoreLimits { max_batch: LIMITS.max_batch - 1, ..LIMITS },
    ] {
        assert_eq!(refused(&history, Hello { limits, ..hello(None) }), RejectCode::LimitsTooSmall);
    }
}

#[test]
fn a_hello_that_makes_no_sense_is_refused() {
    let history = History::of(3);
    for slave in [String::new(), "x".repeat(129), "a\nb".into()] {
        assert_eq!(refused(&history, Hello { slave, ..hello(None) }), RejectCode::Malformed);
    }
    let checkpoints = vec![history.head(); 65];
    assert_eq!(refused(&history, Hello { checkpoints, ..hello(None) }), RejectCode::Malformed);
    let (slave, checkpoints) = ("x".repeat(128), vec![history.head(); 64]);
    let mut master = master(&history);
    master.handle_message(at(0), Message::Hello(Hello { slave, checkpoints, ..hello(None) })).unwrap();
    assert!(matches!(master.poll_action(), Some(MasterAction::Joined { .. })), "one less makes sense");
}

#[test]
fn a_slave_that_is_refused_as_it_joins_is_not_welcomed() {
    let history = History::of(3);
    let mut master = master(&history);
    let cursor = Cursor::at(history.position(2));
    master.handle_message(at(0), Message::Hello(hello(Some(cursor)))).unwrap();
    let Some(MasterAction::Locate(positions)) = master.poll_action() else { panic!("a question") };
    master.handle_located(&history.locate(&positions));
    assert!(matches!(master.poll_action(), Some(MasterAction::Joined { nonce: 1, .. })));
    let refusal = Refusal::new(RejectCode::DuplicateSlave, "another one has its name");
    master.refuse(refusal.clone());
    let Some(MasterAction::Send(Message::Reject(reject))) = master.poll_action() else { panic!("a reject") };
    assert_eq!(Refusal::from(reject), refusal);
    assert!(matches!(master.poll_action(), Some(MasterAction::Close(Some(last))) if last == refusal));
    assert!(master.poll_action().is_none() && master.poll_timeout().is_none());
}

#[test]
fn a_slave_of_a_newer_epoch_shows_a_master_that_another_one_was_promoted() {
    let history = History::of(20);
    let epochs = vec![EpochStart { epoch: Epoch { number: 2, nonce: 4 }, first: seq(1) }];
    for (number, superseded) in [(1, false), (2, false), (3, true)] {
        let epoch = Epoch { number, nonce: 4 };
        let mut master = MasterSession::new(master_config(), history.view(), epochs.clone(), at(0));
        let cursor = Cursor::at(Position { epoch, ..history.position(9) });
        master.handle_message(at(0), Message::Hello(hello(Some(cursor)))).unwrap();
        match master.poll_action() {
            Some(MasterAction::Superseded(by)) => {
                assert_eq!((superseded, by), (true, epoch));
                let Some(MasterAction::Send(Message::Reject(reject))) = master.poll_action() else {
                    panic!("a reject")
                };
                assert_eq!(reject.code, RejectCode::Superseded);
            }
            Some(MasterAction::Locate(_)) => assert!(!superseded, "{number}"),
            other => panic!("{other:?}"),
        }
    }
}
