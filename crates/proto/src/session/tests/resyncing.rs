//! Histories that have parted, and owners who have said what is to happen then.

use super::*;
use crate::layout::{Epochs, Stored};
use crate::{Applier, Displacing, EpochStart, Refusal, RejectCode, Resync};
use replikv_core::{Fill, Keyspace, LinkId, Op};

fn wants(on_divergence: OnDivergence, position: Position, checkpoints: Vec<Position>) -> Hello {
    Hello { on_divergence, checkpoints, ..hello(Some(Cursor::at(position))) }
}

/// What the master decides; it holds so many bytes of data.
fn decide(history: &History, data_bytes: u64, hello: Hello) -> Result<Mode, Refusal> {
    let mut master = master(history);
    master.handle_message(at(0), Message::Hello(hello)).unwrap();
    loop {
        match master.poll_action() {
            Some(MasterAction::Locate(positions)) => master.handle_located(&history.locate(&positions)),
            Some(MasterAction::MeasureData { at_most }) => master.handle_data_size(data_bytes.min(at_most)),
            Some(MasterAction::Send(Message::Welcome(welcome))) => return Ok(welcome.mode),
            Some(MasterAction::Close(refusal)) => return Err(refusal.unwrap()),
            Some(MasterAction::Send(Message::Reject(_)) | MasterAction::Joined { .. } | MasterAction::Verified(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_master_offers_a_resync_to_those_who_ask_for_one_and_to_nobody_else() {
    use OnDivergence::{AdoptSource, Refuse, Resync};
    let (whole, history) = (History::of(20), History::of(20).at(12));
    let from = history.head();
    for (position, code) in [
        (parted(history.position(7)), RejectCode::Diverged),
        (whole.position(15), RejectCode::SlaveAhead),
        (elsewhere(history.position(7)), RejectCode::ForeignSource),
    ] {
        for policy in [Refuse, Resync, AdoptSource] {
            let decided = decide(&history, 1, wants(policy, position, Vec::new()));
            if policy.resyncs(code) {
                assert_eq!(decided, Ok(Mode::Resync { from, reason: code, ancestor: None }));
            } else {
                assert_eq!(decided.unwrap_err().code, code, "{policy:?}");
            }
        }
    }
    // It is not what becomes of a slave that has not parted.
    let decided = decide(&history, 1, wants(AdoptSource, history.position(7), Vec::new()));
    assert_eq!(decided, Ok(Mode::Resume));
    let trimmed = history.trimmed(9);
    let decided = decide(&trimmed, 1, wants(AdoptSource, trimmed.position(7), Vec::new()));
    assert_eq!(decided, Ok(Mode::Compare { from }));
}

#[test]
fn the_ancestor_is_the_newest_point_in_common() {
    let history = History::of(20);
    let checkpoints =
        vec![history.position(3), history.position(6), parted(history.position(9)), parted(history.position(12))];
    let decided = decide(&history, 1, wants(OnDivergence::Resync, parted(history.position(14)), checkpoints));
    let ancestor = Some(history.position(6));
    assert_eq!(decided, Ok(Mode::Resync { from: history.head(), reason: RejectCode::Diverged, ancestor }));
}

#[test]
fn of_another_source_or_without_checkpoints_no_ancestor_is_looked_for() {
    let history = History::of(20);
    for (position, checkpoints) in
        [(elsewhere(history.position(7)), vec![history.position(3)]), (parted(history.position(7)), Vec::new())]
    {
        let mut master = master(&history);
        master.handle_message(at(0), Message::Hello(wants(OnDivergence::AdoptSource, position, checkpoints))).unwrap();
        let mut action = master.poll_action();
        if let Some(MasterAction::Locate(positions)) = &action {
            assert_eq!(*positions, [position]);
            master.handle_located(&history.locate(positions));
            action = master.poll_action();
        }
        assert!(matches!(action, Some(MasterAction::MeasureData { at_most: 1 })), "{action:?}");
    }
}

#[test]
fn a_master_that_holds_nothing_resyncs_nobody() {
    let history = History::of(20).at(12);
    for (position, code) in
        [(History::of(20).position(15), RejectCode::SlaveAhead), (elsewhere(history.head()), RejectCode::ForeignSource)]
    {
        let refusal = decide(&history, 0, wants(OnDivergence::AdoptSource, position, Vec::new())).unwrap_err();
        assert_eq!(refusal.code, code);
        assert!(refusal.words.contains("holds nothing at all"), "{refusal}");
    }
}

fn resync(history: &History, reason: RejectCode) -> Mode {
    Mode::Resync { from: history.head(), reason, ancestor: None }
}

fn asks(on_divergence: OnDivergence, position: Position) -> SlaveSessionConfig {
    SlaveSessionConfig { on_divergence, ..slave_config(Some(Cursor::at(position))) }
}

/// What a slave does when it is welcomed like this: its first action that changes a store, or why it leaves.
fn answer(config: SlaveSessionConfig, welcome: Welcome) -> Result<Option<(Cursor, Option<Resync>)>, RejectCode> {
    let mut slave = SlaveSession::new(config, at(0));
    slave.handle_message(at(0), Message::Welcome(welcome)).unwrap();
    let actions = all_actions(&mut slave);
    if let Some(SlaveAction::Close(Err(refusal))) = actions.last() {
        assert!(!actions.iter().any(writes), "nothing is written");
        return Err(refusal.code);
    }
    Ok(actions.into_iter().find(writes).map(|action| match action {
        SlaveAction::Begin(cursor) => (cursor, None),
        SlaveAction::Resync(cursor, resync, _) => (cursor, Some(resync)),
        other => panic!("{other:?}"),
    }))
}

#[test]
fn a_slave_resyncs_only_if_it_asked_and_only_for_what_it_asked() {
    use OnDivergence::{AdoptSource, Refuse, Resync};
    let (whole, history) = (History::of(20), History::of(20).at(12));
    for (reason, position) in [
        (RejectCode::SlaveAhead, whole.position(15)),
        (RejectCode::Diverged, parted(history.position(7))),
        (RejectCode::ForeignSource, elsewhere(history.position(7))),
    ] {
        for policy in [Refuse, Resync, AdoptSource] {
            let answered = answer(asks(policy, position), welcome(&history, resync(&history, reason)));
            if policy.resyncs(reason) {
                let (cursor, begun) = answered.unwrap().unwrap();
                let everything = Coverage::new(KeyRange::all(), Fill::Compare);
                assert_eq!(cursor, Cursor { position: history.head(), coverage: everything });
                assert_eq!(begun, Some(crate::Resync { reason, was: position, ancestor: None }));
            } else {
                assert!(answered.is_err(), "{policy:?} {reason:?}");
            }
        }
    }
    // A master that gives another reason does not get around what was said of sources.
    let foreign = elsewhere(history.position(7));
    let answered = answer(asks(Resync, foreign), welcome(&history, resync(&history, RejectCode::Diverged)));
    assert_eq!(answered, Err(RejectCode::ForeignSource));
    // Nor does one that offers something else.
    for mode in [Mode::Resume, Mode::Compare { from: history.head() }, Mode::Copy { from: history.head() }] {
        let answered = answer(asks(AdoptSource, foreign), welcome(&history, mode));
        assert_eq!(answered, Err(RejectCode::ForeignSource), "{mode:?}");
    }
    // Whoever holds data of its own, or nothing, has no history that could have parted.
    let own = SlaveSessionConfig { holds_data: true, on_divergence: AdoptSource, ..slave_config(None) };
    let answered = answer(own, welcome(&history, resync(&history, RejectCode::Diverged)));
    assert_eq!(answered, Err(RejectCode::DataWithoutCursor));
}

#[test]
fn an_ancestor_that_was_never_the_slaves_is_misbehaviour() {
    let history = History::of(20);
    let mode = Mode::Resync { from: history.head(), reason: RejectCode::Diverged, ancestor: Some(history.position(3)) };
    let config = asks(OnDivergence::Resync, parted(history.position(7)));
    let mut slave = SlaveSession::new(config.clone(), at(0));
    let end = slave.handle_message(at(0), Message::Welcome(welcome(&history, mode)));
    assert!(matches!(end, Err(ProtocolError::Misbehaved { .. })));
    let config = SlaveSessionConfig { checkpoints: vec![history.position(3)], ..config };
    assert!(answer(config, welcome(&history, mode)).is_ok());
}

#[test]
fn a_resync_that_was_begun_goes_on_only_with_a_quarantine() {
    let history = History::of(20);
    let begun = Resync { reason: RejectCode::Diverged, was: parted(history.position(9)), ancestor: None };
    let coverage = Coverage::new(KeyRange::all(), Fill::Compare);
    let cursor = Cursor { position: history.position(12), coverage };
    let config = SlaveSessionConfig { resync: Some(begun), ..slave_config(Some(cursor)) };
    assert_eq!(answer(config.clone(), welcome(&history, Mode::Resume)), Err(RejectCode::Diverged));
    let config = SlaveSessionConfig { on_divergence: OnDivergence::Resync, ..config };
    assert_eq!(answer(config.clone(), welcome(&history, Mode::Resume)), Ok(None), "it goes on");
    // And if it parts once more, it is still told from where it came.
    let (_, again) = answer(config, welcome(&history, resync(&history, RejectCode::SlaveAhead))).unwrap().unwrap();
    assert_eq!(again.map(|again| again.was), Some(begun.was));
}

// The driver knows nothing of it before it has taken the action: what it tells until then is of the old history.
#[test]
fn what_was_acknowledged_in_the_history_that_is_left_is_not_told() {
    let (whole, history) = (History::of(20), History::of(20).at(12));
    let mut slave = SlaveSession::new(asks(OnDivergence::Resync, whole.position(15)), at(0));
    assert!(matches!(slave.poll_action(), Some(SlaveAction::Send(Message::Hello(_)))));
    let welcome = welcome(&history, resync(&history, RejectCode::SlaveAhead));
    slave.handle_message(at(0), Message::Welcome(welcome)).unwrap();
    let progress = |applied| crate::Progress { applied: seq(applied), durable: seq(applied), consistent: true };
    slave.handle_progress(progress(15));
    assert!(matches!(slave.poll_action(), Some(SlaveAction::Resync(..))));
    slave.handle_progress(progress(12));
    let acks: Vec<_> = all_actions(&mut slave)
        .into_iter()
        .filter_map(|action| match action {
            SlaveAction::Send(Message::Ack(ack)) => Some(ack.applied),
            _ => None,
        })
        .collect();
    assert_eq!(acks, [seq(12)]);
}

#[test]
fn every_group_of_a_resync_names_what_it_displaces_and_the_last_one_ends_it() {
    let history = History::of(20);
    let begun = Resync { reason: RejectCode::Diverged, was: parted(history.position(9)), ancestor: None };
    let fresh = Cursor { position: history.position(10), coverage: Coverage::new(KeyRange::all(), Fill::Compare) };
    let meta = |group: &crate::Group, key: &[u8]| {
        let ops = group.writes.ops().filter(|(keyspace, _)| *keyspace == Keyspace::Meta);
        ops.filter_map(|(_, op)| match op {
            Op::Put { key: found, .. } if found == key => Some(true),
            Op::Delete { key: found } if found == key => Some(false),
            _ => None,
        })
        .last()
    };
    let ranges = |displacing: &Option<Displacing>| {
        let contents = displacing.iter().flat_map(|displacing| &displacing.contents);
        contents.map(|content| content.range.clone()).collect::<Vec<_>>()
    };
    let (left, right) = (KeyRange::from_bounds(.."m"), KeyRange::from_bounds("m"..));
    let mut applier = Applier::new(LinkId::default(), Some(Cursor::at(begun.was)), usize::MAX);
    let told = Epochs(vec![EpochStart { epoch: fresh.position.epoch, first: Seq::new(1) }]);
    applier.begin_resync(fresh, begun, told.clone());
    let first = applier.next_group().unwrap().unwrap();
    assert_eq!((meta(&first, Resync::KEY), ranges(&first.displacing)), (Some(true), vec![]));
    // What it is told of the history that it joins is kept with the first step into it, and not before.
    let put = |(keyspace, op): (Keyspace, Op<'_>)| match op {
        Op::Put { key, value } if (keyspace, key) == (Keyspace::Meta, Epochs::KEY) => Epochs::from_bytes(value).ok(),
        _ => None,
    };
    assert_eq!(first.writes.ops().find_map(put), Some(told));
    assert!(
        first.writes.ops().any(|(keyspace, op)| keyspace == Keyspace::Meta && matches!(op, Op::DeleteRange { .. }))
    );

    // Another connection, after a crash.
    let mut applier = Applier::new(LinkId::default(), Some(first.cursor), usize::MAX).resyncing(Some(begun));
    applier.push_content(content(left.clone(), history.position(10), &["a"]));
    let group = applier.next_group().unwrap().unwrap();
    assert_eq!((meta(&group, Resync::KEY), ranges(&group.displacing)), (None, vec![left]));
    assert_eq!(group.displacing.map(|displacing| displacing.resync), Some(begun));
    applier.push_content(content(right.clone(), history.position(10), &["x"]));
    let last = applier.next_group().unwrap().unwrap();
    assert!(last.cursor.is_consistent());
    assert_eq!((meta(&last, Resync::KEY), ranges(&last.displacing)), (Some(false), vec![right]));

    // From then on it is a slave like any other.
    let Message::Records(records) = history.records(10, 11) else { unreachable!() };
    applier.push_record(crate::Record::decode(records.parts[0].clone()).unwrap());
    let after = applier.next_group().unwrap().unwrap();
    assert!(after.displacing.is_none() && meta(&after, Resync::KEY).is_none());
}
