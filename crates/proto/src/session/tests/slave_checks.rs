//! What a slave thinks of the master's decision. It never lets itself be wiped.

use super::*;
use crate::{EpochStart, Fence, GoodbyeReason, RejectCode};

/// The slave's answer to a welcome: the cursor that it begins with, or why it leaves.
fn answer(config: SlaveSessionConfig, welcome: Welcome) -> Result<Option<Cursor>, RejectCode> {
    let mut slave = SlaveSession::new(config, at(0));
    assert!(matches!(slave.poll_action(), Some(SlaveAction::Send(Message::Hello(_)))), "the hello comes first");
    slave.handle_message(at(0), Message::Welcome(welcome)).unwrap();
    let actions = all_actions(&mut slave);
    match actions.last() {
        Some(SlaveAction::Close(Err(refusal))) => {
            let [SlaveAction::Send(Message::Goodbye(goodbye)), _] = &actions[..] else { panic!("{actions:?}") };
            assert_eq!(goodbye.reason, GoodbyeReason::Refused, "the master is told, and nothing is written");
            Err(refusal.code)
        }
        Some(SlaveAction::Contact(_)) => Ok(actions.into_iter().find_map(|action| match action {
            SlaveAction::Begin(cursor) => Some(cursor),
            _ => None,
        })),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slave_resumes_from_its_own_cursor() {
    let history = History::of(10);
    let cursor = Cursor::at(history.position(4));
    assert_eq!(answer(slave_config(Some(cursor)), welcome(&history, Mode::Resume)), Ok(None));
}

#[test]
fn an_empty_slave_begins_at_the_start_of_the_history_or_with_a_copy() {
    let history = History::of(10);
    let begins = answer(slave_config(None), welcome(&history, Mode::Resume));
    assert_eq!(begins, Ok(Some(Cursor::at(history.position(0)))));
    let copy = Mode::Copy { from: history.head() };
    let begins = answer(slave_config(None), welcome(&history, copy)).unwrap().unwrap();
    assert_eq!((begins.position, begins.is_consistent()), (history.head(), false));
}

#[test]
fn an_unfinished_copy_may_begin_again() {
    let history = History::of(10);
    let cursor = Cursor { position: history.position(2), coverage: copied_to("m", history.position(3)) };
    let copy = Mode::Copy { from: history.head() };
    let begins = answer(slave_config(Some(cursor)), welcome(&history, copy)).unwrap().unwrap();
    assert_eq!(begins, Cursor { position: history.head(), coverage: Coverage::begin(KeyRange::all()) });
}

#[test]
fn a_whole_slave_is_not_copied_over() {
    let history = History::of(10);
    let cursor = Cursor::at(history.position(4));
    let copy = Mode::Copy { from: history.head() };
    assert_eq!(answer(slave_config(Some(cursor)), welcome(&history, copy)), Err(RejectCode::NeedsCompare));
}

#[test]
fn data_of_its_own_is_never_overwritten() {
    let history = History::of(10);
    for mode in [Mode::Resume, Mode::Copy { from: history.head() }, Mode::Wait] {
        let config = SlaveSessionConfig { holds_data: true, ..slave_config(None) };
        assert_eq!(answer(config, welcome(&history, mode)), Err(RejectCode::DataWithoutCursor));
    }
}

#[test]
fn an_empty_slave_does_not_resume_above_a_hole() {
    let history = History::of(10).trimmed(3);
    assert_eq!(answer(slave_config(None), welcome(&history, Mode::Resume)), Err(RejectCode::Unsupported));
}

#[test]
fn another_source_is_not_followed() {
    let history = History::of(10);
    let cursor = Cursor::at(elsewhere(history.position(4)));
    for mode in [Mode::Resume, Mode::Copy { from: history.head() }, Mode::Wait] {
        let end = answer(slave_config(Some(cursor.clone())), welcome(&history, mode));
        assert_eq!(end, Err(RejectCode::ForeignSource));
    }
}

#[test]
fn a_welcome_that_speaks_of_two_sources_is_misbehaviour() {
    let history = History::of(10);
    let honest = welcome(&history, Mode::Resume);
    for welcome in [
        Welcome { floor: elsewhere(honest.floor), ..honest.clone() },
        Welcome { head: elsewhere(honest.head), ..honest.clone() },
        Welcome { mode: Mode::Copy { from: elsewhere(honest.head) }, ..honest.clone() },
    ] {
        let mut slave = SlaveSession::new(slave_config(None), at(0));
        let end = slave.handle_message(at(0), Message::Welcome(welcome));
        assert!(matches!(end, Err(ProtocolError::Misbehaved { .. })));
        assert!(!all_actions(&mut slave).iter().any(writes));
    }
}

#[test]
fn limits_that_the_store_cannot_hold_are_not_accepted() {
    let history = History::of(10);
    let limits = StoreLimits { max_key: LIMITS.max_key + 1, ..LIMITS };
    let end = answer(slave_config(None), Welcome { limits, ..welcome(&history, Mode::Resume) });
    assert_eq!(end, Err(RejectCode::LimitsTooSmall));
}

#[test]
fn of_the_limits_those_that_the_store_cannot_hold_are_named() {
    let history = History::of(10);
    let limits = StoreLimits { max_key: LIMITS.max_key + 1, max_batch: LIMITS.max_batch + 2, ..LIMITS };
    let mut slave = SlaveSession::new(slave_config(None), at(0));
    slave.handle_message(at(0), Message::Welcome(Welcome { limits, ..welcome(&history, Mode::Resume) })).unwrap();
    let actions = all_actions(&mut slave);
    let Some(SlaveAction::Close(Err(refusal))) = actions.last() else { panic!("{actions:?}") };
    for (what, wanted, held) in
        [("keys", limits.max_key, LIMITS.max_key), ("batches", limits.max_batch, LIMITS.max_batch)]
    {
        assert!(refusal.words.contains(&format!("{what} of {wanted} bytes, not {held}")), "{}", refusal.words);
    }
    assert!(!refusal.words.contains("values"), "{}", refusal.words);
}

#[test]
fn a_mode_that_a_slave_does_not_know_is_not_followed() {
    let history = History::of(10);
    let compare = Mode::Compare { from: history.head() };
    assert_eq!(answer(slave_config(None), welcome(&history, compare)), Err(RejectCode::Unsupported));
    assert_eq!(answer(slave_config(None), welcome(&history, Mode::Wait)), Err(RejectCode::Unsupported));
}

#[test]
fn credentials_that_are_asked_for_are_not_there() {
    let mut slave = SlaveSession::new(slave_config(None), at(0));
    slave.handle_message(at(0), Message::Challenge(Bytes::from_static(b"?"))).unwrap();
    let actions = all_actions(&mut slave);
    assert!(
        matches!(actions.last(), Some(SlaveAction::Close(Err(refusal))) if refusal.code == RejectCode::Unsupported)
    );
}

#[test]
fn a_reject_ends_the_session_with_the_words_of_the_master() {
    let mut slave = SlaveSession::new(slave_config(None), at(0));
    let refusal = Refusal { code: RejectCode::Busy, words: "full".into(), retry: true };
    slave.handle_message(at(0), Message::Reject(refusal.clone().into())).unwrap();
    let actions = all_actions(&mut slave);
    assert!(matches!(actions.last(), Some(SlaveAction::Close(Err(told))) if *told == refusal));
    assert!(!actions.iter().any(writes));
}

#[test]
fn a_fenced_slave_follows_nobody_but_the_epoch_that_it_waits_for_and_what_comes_after_it() {
    let history = History::of(10);
    let epoch = |number, nonce| Epoch { number, nonce };
    let fence = Fence { source: history.head().source, epoch: epoch(2, 7), store: 1, own: false, by: "next".into() };
    let config = |cursor| SlaveSessionConfig { fence: Some(fence.clone()), ..slave_config(Some(Cursor::at(cursor))) };
    let of = |epochs: &[Epoch], mode: Mode| {
        let epochs = epochs.iter().map(|epoch| EpochStart { epoch: *epoch, first: Seq::new(1) }).collect();
        answer(config(history.position(4)), Welcome { epochs, ..welcome(&history, mode) })
    };
    let first = history.head().epoch;
    for mode in [Mode::Resume, Mode::Wait, Mode::Compare { from: history.head() }] {
        assert_eq!(of(&[first], mode), Err(RejectCode::Fenced));
    }
    assert_eq!(of(&[first, epoch(2, 8)], Mode::Resume), Err(RejectCode::Fenced));
    assert_eq!(of(&[first, epoch(3, 7)], Mode::Resume), Err(RejectCode::Fenced));
    assert_eq!(of(&[first, epoch(2, 7)], Mode::Resume), Ok(None));
    assert_eq!(of(&[first, epoch(2, 7), epoch(3, 1)], Mode::Resume), Ok(None));
    // It may be tried again: the epoch may begin.
    assert!(fence.refusal().retry);
}
