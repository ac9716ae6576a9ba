//! How mastership passes on: the record that begins an epoch, a slave that is promoted, a master that steps down.
//!
//! What is written is decided here; whoever executes it has read what the store says of itself, and applies it in one
//! synced write set.

use bytes::BytesMut;
use replikv_core::{
    Cursor, EncodedOps, Epoch, KeyRange, KeyRanges, Keyspace, LinkId, Position, Seq, StoreError, WriteSet,
    WriteSetBuilder, meta,
};

use crate::layout::{Backup, Checkpoint, Epochs, Floor, Head, Identity, Kept, Role, Stored, Superseded};
use crate::planted::{self, Bug};
use crate::{
    Compacted, EpochStart, Fence, PreparedRecord, RecordDraft, RecordKind, Resync, SlotName, Subscription,
    TombstoneFloor,
};

/// What the store of a slave says of itself, as far as it matters to whoever promotes it.
#[derive(Debug, Clone, Default)]
pub struct Candidate {
    /// What the store is.
    pub identity: Option<Identity>,
    /// The keys that the slave subscribes to, if these are not all.
    pub subscription: Option<Subscription>,
    /// Its link, and where it stands. `None` if it never followed anybody.
    pub cursor: Option<(LinkId, Cursor)>,
    /// A resync that is under way.
    pub resync: Option<Resync>,
    /// Where its kept log ends, if it keeps one.
    pub head: Option<Head>,
    /// What its master has told of the history.
    pub epochs: Option<Epochs>,
    /// What it has promised.
    pub fence: Option<Fence>,
    /// There if it is a copy: it has promised what the original has, and only that one begins the epoch.
    pub backup: Option<Backup>,
}

/// Why a slave is not promoted.
#[derive(Debug)]
pub enum Unfit {
    /// The store is no slave's.
    NoSlave,
    /// It never followed anybody.
    Empty,
    /// What it holds is no state that its master had.
    CatchingUp,
    /// It holds a part of the keys.
    Filtered(KeyRanges),
    /// It is promised to the promotion of somebody else.
    Fenced(Fence),
    /// There are no more epochs, or what it says does not encode.
    Store(StoreError),
}

impl From<StoreError> for Unfit {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What makes a slave's store a master's.
#[derive(Debug)]
pub struct Promotion {
    /// To be applied and synced. It holds only if the store is still what it was when it was read.
    pub writes: WriteSet,
    /// The last record of the old epoch that the store holds.
    pub last: Position,
    /// The first record of the new one.
    pub first: Position,
}

impl Candidate {
    /// Makes the store a master's: in an epoch with this nonce, which must be drawn for it, or in the one that others have
    /// promised to wait for.
    ///
    /// # Errors
    /// [`Unfit`]: it must stay what it is.
    pub fn promote(self, nonce: u64, unix_ms: u64) -> Result<Promotion, Unfit> {
        let before = self.identity.filter(|identity| identity.role == Role::Slave).ok_or(Unfit::NoSlave)?;
        if let Some(subscription) = self.subscription {
            return Err(Unfit::Filtered(subscription.ranges));
        }
        let (link, cursor) = self.cursor.ok_or(Unfit::Empty)?;
        let settled = cursor.is_consistent() && self.resync.is_none();
        if !settled && !planted::is(Bug::PromotedInMidCopy) {
            return Err(Unfit::CatchingUp);
        }
        let last = cursor.position;
        let epoch = match self.fence.as_ref().filter(|fence| fence.binds(&cursor)) {
            Some(fence) if fence.own && self.backup.is_none() => fence.epoch,
            Some(fence) => return Err(Unfit::Fenced(fence.clone())),
            None => epoch_after(&last, nonce)?,
        };
        let mut writes = WriteSet::builder();
        writes.require(Fence::KEY, self.fence.as_ref().map(Stored::to_bytes));
        writes.delete(Keyspace::Meta, Fence::KEY)?;
        writes.require(Identity::KEY, Some(before.to_bytes()));
        writes.require(meta::cursor_key(&link), Some(cursor.to_bytes()));
        // The log goes on, if there is one: others that are behind this slave find there what they missed.
        let kept = self.head.filter(|head| head.position == last);
        let head = kept.unwrap_or(Head { position: last, log_bytes: 0, uptime_ms: 0 });
        if kept.is_none() {
            writes.delete_range(Keyspace::Log, &KeyRange::all());
            writes.put(Keyspace::Meta, Floor::KEY, Floor { position: last, log_bytes: 0 }.to_bytes())?;
        }
        writes.delete(Keyspace::Meta, Kept::KEY)?;
        let first = next_epoch(&mut writes, head, known_epochs(self.epochs, &last), epoch, unix_ms)?;
        writes.put(Keyspace::Meta, Identity::KEY, Identity::master(last.source).to_bytes())?;
        writes.delete(Keyspace::Meta, meta::cursor_key(&link))?;
        Ok(Promotion { writes: writes.build(), last, first })
    }
}

// Of what its master told, what the slave itself has come to. Without it only its own epoch is known, and slaves of
// earlier ones cannot be told from strangers.
fn known_epochs(told: Option<Epochs>, last: &Position) -> Epochs {
    let mut epochs = told.unwrap_or_default();
    epochs.0.retain(|start| start.first <= last.seq && start.epoch.number <= last.epoch.number);
    if epochs.0.last().is_none_or(|start| start.epoch != last.epoch) {
        epochs = Epochs(vec![EpochStart { epoch: last.epoch, first: Seq::new(1) }]);
    }
    epochs
}

/// The epoch that comes after the one of `before`, with this nonce.
///
/// # Errors
/// `Corrupt` if there are no more epochs.
pub fn epoch_after(before: &Position, nonce: u64) -> Result<Epoch, StoreError> {
    let number = before.epoch.number.checked_add(1);
    let number = number.ok_or_else(|| StoreError::Corrupt { what: "there are no more epochs".into() })?;
    Ok(Epoch { number, nonce })
}

/// Writes the record that begins this epoch after `before`, and all that is known of it. Returns where that record is.
///
/// # Errors
/// None that a store would not name: its keys fit every store that a master may have.
pub fn next_epoch(
    writes: &mut WriteSetBuilder,
    before: Head,
    mut epochs: Epochs,
    epoch: Epoch,
    unix_ms: u64,
) -> Result<Position, StoreError> {
    let body = EncodedOps::default();
    let draft = RecordDraft { epoch, kind: RecordKind::Epoch, time: unix_ms, note: b"", body: body.as_bytes() };
    let record = PreparedRecord::after(&before.position, &draft).map_err(StoreError::backend)?;
    let mut bytes = BytesMut::new();
    record.append_to(&mut bytes);
    let first = record.position();
    writes.put(Keyspace::Log, first.seq.to_key(), &bytes)?;
    let head = Head { position: first, log_bytes: before.log_bytes + bytes.len() as u64, ..before };
    if planted::is(Bug::EpochsForgotten) {
        epochs.0.clear();
    }
    epochs.0.push(EpochStart { epoch, first: first.seq });
    let end = Checkpoint { position: before.position, log_bytes: before.log_bytes, uptime_ms: before.uptime_ms };
    writes.put(Keyspace::Meta, Head::KEY, head.to_bytes())?;
    writes.put(Keyspace::Meta, Epochs::KEY, epochs.to_bytes())?;
    writes.put(Keyspace::Meta, end.key(), end.to_bytes())?;
    if Checkpoint::is_due(first.seq) {
        let due = Checkpoint { position: first, log_bytes: head.log_bytes, uptime_ms: head.uptime_ms };
        writes.put(Keyspace::Meta, due.key(), due.to_bytes())?;
    }
    Ok(first)
}

/// The last step of what makes the store of a master, whose log is gone, one of a slave: it stands where the master stood.
///
/// # Errors
/// None that a store would not name: its keys fit every store that a master may have.
pub fn step_down(head: &Head, link: &LinkId) -> Result<WriteSet, StoreError> {
    let mut writes = WriteSet::builder();
    writes.require(Head::KEY, Some(head.to_bytes()));
    // The epochs are those of the history: whoever is promoted one day knows them by that.
    for key in [Head::KEY, Floor::KEY, Backup::KEY, Superseded::KEY, Compacted::KEY, TombstoneFloor::KEY] {
        writes.delete(Keyspace::Meta, key)?;
    }
    writes.delete_range(Keyspace::Meta, &KeyRange::prefix(SlotName::PREFIX));
    writes.put(Keyspace::Meta, Identity::KEY, Identity::slave().to_bytes())?;
    writes.set_cursor(link, &Cursor::at(head.position));
    Ok(writes.build())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use replikv_core::{Coverage, Digest, Op, SourceId};

    use super::*;
    use crate::{Record, RejectCode};

    fn candidate(source: u8, fence: Fence) -> Candidate {
        let epoch = Epoch { number: 5, nonce: 1 };
        let source = SourceId::from_bytes([source; 16]);
        let position = Position { source, epoch, seq: Seq::new(9), digest: Digest::from_bytes([9; 16]) };
        Candidate {
            identity: Some(Identity::slave()),
            cursor: Some((LinkId::default(), Cursor::at(position))),
            fence: Some(fence),
            ..Candidate::default()
        }
    }

    fn fence(own: bool) -> Fence {
        let epoch = Epoch { number: 7, nonce: 70 };
        Fence { source: SourceId::from_bytes([1; 16]), epoch, store: 3, own, by: "next".into() }
    }

    fn standing_at(seq: u64) -> (Candidate, Cursor) {
        let candidate = candidate(1, fence(true));
        let (link, mut cursor) = candidate.cursor.clone().unwrap();
        cursor.position.seq = Seq::new(seq);
        (Candidate { cursor: Some((link, cursor.clone())), ..candidate }, cursor)
    }

    #[test]
    fn a_slave_that_holds_no_state_of_its_master_is_not_promoted() {
        let (whole, cursor) = standing_at(9);
        assert!(whole.clone().promote(99, 0).is_ok());
        let resync = Resync { reason: RejectCode::Diverged, was: cursor.position, ancestor: None };
        let copying = Cursor { coverage: Coverage::begin(KeyRange::all()), ..cursor };
        for catching_up in [
            Candidate { resync: Some(resync), ..whole.clone() },
            Candidate { cursor: Some((LinkId::default(), copying)), ..whole.clone() },
        ] {
            assert!(matches!(catching_up.promote(99, 0), Err(Unfit::CatchingUp)));
        }
        assert!(matches!(Candidate { cursor: None, ..whole.clone() }.promote(99, 0), Err(Unfit::Empty)));
        let master = Some(Identity::master(SourceId::from_bytes([1; 16])));
        assert!(matches!(Candidate { identity: master, ..whole }.promote(99, 0), Err(Unfit::NoSlave)));
    }

    #[test]
    fn a_promotion_goes_on_with_the_log_and_tells_all_that_is_known_of_the_new_epoch() {
        // The first record of the new epoch is one of those of which a checkpoint is kept, and is not.
        for (seq, checkpoints) in [(Checkpoint::EVERY - 1, 2), (Checkpoint::EVERY, 1)] {
            let (slave, cursor) = standing_at(seq);
            let old = Head { position: cursor.position, log_bytes: 500, uptime_ms: 40 };
            let Promotion { writes, last, first } = Candidate { head: Some(old), ..slave }.promote(99, 7).unwrap();
            let put = |space: Keyspace, name: &[u8]| {
                let mut puts = writes.ops().filter_map(|(keyspace, op)| match op {
                    Op::Put { key, value } if keyspace == space && key == name => Some(Bytes::copy_from_slice(value)),
                    _ => None,
                });
                puts.next().unwrap()
            };
            assert_eq!(last, old.position);
            let record = Record::decode(put(Keyspace::Log, &first.seq.to_key())).unwrap();
            record.header().verify_after(&last).unwrap();
            assert_eq!((record.position(), record.header().time), (first, 7));
            let head = Head { position: first, log_bytes: 500 + record.byte_len() as u64, uptime_ms: 40 };
            assert_eq!(put(Keyspace::Meta, Head::KEY), head.to_bytes());
            let begun = EpochStart { epoch: fence(true).epoch, first: first.seq };
            let epochs = Epochs(vec![EpochStart { epoch: last.epoch, first: Seq::new(1) }, begun]);
            assert_eq!(put(Keyspace::Meta, Epochs::KEY), epochs.to_bytes());
            assert_eq!(put(Keyspace::Meta, Identity::KEY), Identity::master(last.source).to_bytes());
            for Head { position, log_bytes, uptime_ms } in [old, head].into_iter().take(checkpoints) {
                let checkpoint = Checkpoint { position, log_bytes, uptime_ms };
                assert_eq!(put(Keyspace::Meta, &checkpoint.key()), checkpoint.to_bytes());
            }
            let of_checkpoints =
                |(_, op): &(Keyspace, Op<'_>)| matches!(op, Op::Put { key, .. } if key.starts_with(b"checkpoint/"));
            assert_eq!(writes.ops().filter(of_checkpoints).count(), checkpoints);
        }
    }

    #[test]
    fn the_epoch_that_others_wait_for_is_begun_by_its_own_store_alone() {
        let begun = candidate(1, fence(true)).promote(99, 0).unwrap();
        assert_eq!(begun.first.epoch, fence(true).epoch);
        assert!(matches!(candidate(1, fence(false)).promote(99, 0), Err(Unfit::Fenced(held)) if held == fence(false)));
        let copy = Candidate { backup: Some(Backup { taken_unix_ms: Some(1) }), ..candidate(1, fence(true)) };
        assert!(matches!(copy.promote(99, 0), Err(Unfit::Fenced(_))));
    }

    #[test]
    fn a_fence_of_another_history_is_no_epoch_of_this_one() {
        for own in [true, false] {
            let begun = candidate(2, fence(own)).promote(99, 0).unwrap();
            assert_eq!(begun.first.epoch, Epoch { number: 6, nonce: 99 });
        }
    }

    #[test]
    fn of_the_epochs_that_were_told_those_are_known_that_the_slave_has_come_to() {
        let begins = |number, first| EpochStart { epoch: Epoch { number, nonce: 0 }, first: Seq::new(first) };
        let stands = |number, seq| {
            let (_, cursor) = standing_at(seq);
            Position { epoch: Epoch { number, nonce: 0 }, ..cursor.position }
        };
        let told = Epochs(vec![begins(1, 1), begins(2, 5), begins(3, 8)]);
        for (number, seq, known) in [
            (2, 8, vec![begins(1, 1), begins(2, 5)]),
            (2, 7, vec![begins(1, 1), begins(2, 5)]),
            (3, 8, told.0.clone()),
            (3, 7, vec![begins(3, 1)]),
            (4, 9, vec![begins(4, 1)]),
        ] {
            assert_eq!(known_epochs(Some(told.clone()), &stands(number, seq)).0, known, "epoch {number}, record {seq}");
        }
        assert_eq!(known_epochs(None, &stands(2, 8)).0, [begins(2, 1)]);
    }

    #[test]
    fn a_master_that_steps_down_is_a_slave_where_it_stood_and_keeps_its_epochs_alone() {
        let (_, cursor) = standing_at(9);
        let head = Head { position: cursor.position, log_bytes: 5, uptime_ms: 6 };
        let writes = step_down(&head, &LinkId::default()).unwrap();
        let [required] = writes.preconditions() else { panic!("one precondition") };
        assert_eq!((&required.key[..], &required.value), (Head::KEY, &Some(head.to_bytes())));
        let mut puts = Vec::new();
        for (keyspace, op) in writes.ops() {
            assert_eq!(keyspace, Keyspace::Meta);
            match op {
                Op::Put { key, value } => puts.push((key.to_vec(), value.to_vec())),
                Op::Delete { key } => assert_ne!(key, Epochs::KEY),
                Op::DeleteRange { start, .. } => assert_eq!(start, SlotName::PREFIX),
            }
        }
        let cursor_key = meta::cursor_key(&LinkId::default());
        let expected =
            [(Identity::KEY, Identity::slave().to_bytes()), (&cursor_key, Cursor::at(head.position).to_bytes())];
        assert_eq!(puts, expected.map(|(key, value)| (key.to_vec(), value.to_vec())));
        for gone in [Head::KEY, Floor::KEY, Backup::KEY, Superseded::KEY, Compacted::KEY, TombstoneFloor::KEY] {
            assert!(writes.ops().any(|(_, op)| op == Op::Delete { key: gone }), "{}", gone.escape_ascii());
        }
    }
}
