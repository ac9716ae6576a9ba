//! Fences: what slaves promise before one of them becomes the master of a new epoch, and what these promises come to.
//!
//! A write that `replicated(n)` has acknowledged is on `n` of the `N` slaves. If `F` of them, `F > N - n`, have promised
//! to take nothing more of the old epoch, one of these holds it: wherever the `n` are. So none is lost if the slave that
//! goes on stands at least where each of the `F` does. And nothing more is acknowledged in the old epoch, since fewer
//! than `n` slaves are left that could.
//!
//! An epoch that is to begin has its nonce before it begins, and a slave that has promised follows nothing but that
//! epoch and what comes after it in the same history. So of two that are promoted at once one at most can have writes
//! acknowledged, whether or not the slaves that they have fenced have one in common.

use std::collections::BTreeSet;

use replikv_core::{Cursor, Epoch, Position, SourceId};
use serde::{Deserialize, Serialize};

use crate::layout::Stored;
use crate::planted::{self, Bug};
use crate::{EpochStart, Refusal, RejectCode};

/// What a slave has promised: of this source it follows nobody but the master of this epoch, or of one after it in the
/// same history. Kept in its store until it has come to that epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The history.
    pub source: SourceId,
    /// The epoch that is to begin.
    pub epoch: Epoch,
    /// Drawn when the store was first fenced: tells it from others, whatever their addresses and names.
    pub store: u64,
    /// True in the store that is to be promoted. Nobody else can begin this epoch.
    pub own: bool,
    /// Who is to be promoted, for people.
    pub by: String,
}

impl Fence {
    /// Its key.
    pub const KEY: &'static [u8] = b"fence";
    /// The longest [`by`](Self::by), in bytes.
    pub const MAX_BY: usize = 256;

    /// Whether a master of `source`, in whose history these epochs are, may be followed.
    pub fn admits(&self, source: SourceId, epochs: &[EpochStart]) -> bool {
        source != self.source || epochs.iter().any(|start| start.epoch == self.epoch)
    }

    /// Whether the slave has come to that epoch: its position says the same from there on. One that copies or compares
    /// has not.
    pub fn is_over(&self, cursor: &Cursor) -> bool {
        let position = cursor.position;
        position.source == self.source && position.epoch.number >= self.epoch.number && cursor.is_consistent()
    }

    /// Whether it holds for a slave that stands there: it has not come to that epoch, and has not left that history.
    pub fn binds(&self, cursor: &Cursor) -> bool {
        self.source == cursor.position.source && !self.is_over(cursor)
    }

    /// What it waits for, in words.
    pub fn words(&self) -> String {
        let Self { epoch, by, .. } = self;
        format!(
            "this slave is fenced: it follows nobody of an epoch before {epoch}, which begins when {by} is promoted"
        )
    }

    /// What whoever is of an older epoch is refused with. Trying again helps once the new epoch has begun.
    pub fn refusal(&self) -> Refusal {
        Refusal { code: RejectCode::Fenced, words: self.words(), retry: true }
    }

    /// What is kept of it in a copy of the store: the promise, and not the right to begin the epoch.
    #[must_use]
    pub fn of_copy(self) -> Self {
        Self { own: false, ..self }
    }
}

impl Stored for Fence {
    const WHAT: &'static str = "the fence of the slave";
}

/// Asks a slave to promise that it follows nobody of an earlier epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRequest {
    /// The history.
    pub source: SourceId,
    /// The epoch that is to begin: a number above those before, and a nonce.
    pub epoch: Epoch,
    /// Who is to be promoted, for people: at most 256 bytes.
    pub by: String,
}

/// A slave that has promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Fenced {
    /// The name that it follows under.
    pub name: String,
    /// Of its store: see [`Fence::store`].
    pub store: u64,
    /// Where it stands, on stable storage. What it acknowledges to an older master from now on lies at this position or
    /// before it.
    pub position: Position,
}

impl Fenced {
    /// A slave named `name`, with this store, which stands there.
    pub fn new(name: impl Into<String>, store: u64, position: Position) -> Self {
        Self { name: name.into(), store, position }
    }
}

/// Why a node has not promised. It is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FenceRefusal {
    /// It is a master.
    #[error("it is a master, of epoch {epoch}")]
    Master {
        /// Its epoch.
        epoch: Epoch,
    },
    /// It never followed anybody.
    #[error("it never followed a master")]
    Empty,
    /// What it holds is no state of its master. Ask it again once it is through.
    #[error("it copies, compares or resyncs, and holds no state of its master")]
    CatchingUp,
    /// It holds a part of the keys, and does not count.
    #[error("it subscribes to a part of the keys, and does not count")]
    Filtered,
    /// It is in another history.
    #[error("it follows source {source_id}")]
    ForeignSource {
        /// Which.
        source_id: SourceId,
    },
    /// It is in that epoch already, or in a later one: somebody was promoted.
    #[error("it is in epoch {} already, at record {}", position.epoch, position.seq)]
    Newer {
        /// Where it stands.
        position: Position,
    },
    /// It has promised itself to somebody else.
    #[error("it is promised to epoch {epoch} of {by}")]
    Promised {
        /// The epoch that is to begin there.
        epoch: Epoch,
        /// Who was to be promoted.
        by: String,
    },
    /// Its store failed, or it is shut down. It may have promised.
    #[error("it could not promise: {reason}")]
    Failed {
        /// In words.
        reason: String,
    },
}

/// What a slave is, for whoever decides whether it may promise.
#[derive(Debug, Clone, Copy)]
pub struct Pledger<'a> {
    /// Where it stands, as committed.
    pub cursor: Option<&'a Cursor>,
    /// Whether it subscribes to a part of the keys.
    pub filtered: bool,
    /// Whether a resync is under way.
    pub resyncs: bool,
    /// What it has promised before.
    pub held: Option<&'a Fence>,
}

impl Pledger<'_> {
    /// Where the slave stands, if it is one that a master counts.
    ///
    /// # Errors
    /// [`FenceRefusal`] if not.
    pub fn position(&self) -> Result<Position, FenceRefusal> {
        if self.filtered {
            return Err(FenceRefusal::Filtered);
        }
        let cursor = self.cursor.ok_or(FenceRefusal::Empty)?;
        if !cursor.is_consistent() || self.resyncs {
            return Err(FenceRefusal::CatchingUp);
        }
        Ok(cursor.position)
    }

    /// Whether the slave may promise what is asked. `None` if it has done so before: the answer is the same.
    /// `drawn` becomes the identity of its store, if that has none.
    ///
    /// # Errors
    /// [`FenceRefusal`].
    pub fn promise(&self, request: &FenceRequest, drawn: u64) -> Result<Option<Fence>, FenceRefusal> {
        let position = self.position()?;
        if position.source != request.source {
            return Err(FenceRefusal::ForeignSource { source_id: position.source });
        }
        if position.epoch.number >= request.epoch.number {
            return Err(FenceRefusal::Newer { position });
        }
        match self.held() {
            Some(held) if held.epoch == request.epoch => return Ok(None),
            // Once for each number: the next one is asked for by whoever knows of this one.
            Some(held) if held.epoch.number >= request.epoch.number => {
                return Err(FenceRefusal::Promised { epoch: held.epoch, by: held.by.clone() });
            }
            _ => {}
        }
        let within = |(at, c): &(usize, char)| at + c.len_utf8() <= Fence::MAX_BY;
        let by = request.by.char_indices().take_while(within).map(|(_, c)| c).collect();
        let store = self.held.map_or(drawn, |held| held.store);
        Ok(Some(Fence { source: request.source, epoch: request.epoch, store, own: false, by }))
    }

    /// The epoch that this slave begins if it is promoted: the one that it has told others of before, if there is one.
    /// With `above`, the number of an epoch that was given up, or 0, it is one after that, and after what this slave itself
    /// is promised to.
    ///
    /// # Errors
    /// [`FenceRefusal`].
    pub fn begins(&self, above: Option<u64>, nonce: u64) -> Result<Epoch, FenceRefusal> {
        let position = self.position()?;
        let held = self.held();
        let number = match (held, above) {
            (Some(held), None) if held.own => return Ok(held.epoch),
            (Some(held), None) => {
                return Err(FenceRefusal::Promised { epoch: held.epoch, by: held.by.clone() });
            }
            (held, above) => {
                let held = held.map_or(0, |held| held.epoch.number);
                position.epoch.number.max(held).max(above.unwrap_or(0))
            }
        };
        let number = number.checked_add(1);
        let number = number.ok_or_else(|| FenceRefusal::Failed { reason: "there are no more epochs".into() })?;
        Ok(Epoch { number, nonce })
    }

    fn held(&self) -> Option<&Fence> {
        self.held.filter(|held| self.cursor.is_none_or(|cursor| held.binds(cursor)))
    }
}

/// Whether enough slaves have promised, and whether the one that asks may go on.
#[derive(Debug, Clone)]
pub struct FenceTally {
    own: Position,
    needed: usize,
    /// The stores that have promised.
    fenced: BTreeSet<u64>,
    /// The first one that forbids it.
    against: Option<Against>,
}

/// Why a slave must not be promoted, however many have promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// This one is more advanced.
    Ahead(Position),
    /// This one is in another history than the one that asks, under the same name.
    Parted(Position),
}

impl FenceTally {
    /// For a slave that stands at `own`, and has promised itself, with the store `store`. Of `slaves` slaves, itself
    /// among them, `replicated` hold each write that is to survive.
    pub fn new(own: Position, store: u64, slaves: usize, replicated: usize) -> Self {
        let needed = Self::needed_of(slaves, replicated);
        Self { own, needed, fenced: BTreeSet::from([store]), against: None }
    }

    /// How many have to promise, so that one of them is among any `replicated` of `slaves`.
    pub fn needed_of(slaves: usize, replicated: usize) -> usize {
        slaves.saturating_sub(replicated).saturating_add(usize::from(!planted::is(Bug::FewerFenced)))
    }

    /// A slave has promised. One that was asked twice counts once.
    pub fn fenced(&mut self, fenced: &Fenced) {
        self.fenced.insert(fenced.store);
        self.looks_at(fenced.position);
    }

    /// A slave has not.
    pub fn refused(&mut self, refusal: &FenceRefusal) {
        // Somebody was promoted. What was acknowledged there is not here.
        if let FenceRefusal::Newer { position } = refusal {
            self.looks_at(*position);
        }
    }

    /// How many have promised.
    pub fn count(&self) -> usize {
        self.fenced.len()
    }

    /// How many have to.
    pub fn needed(&self) -> usize {
        self.needed
    }

    /// Whether enough have.
    pub fn is_enough(&self) -> bool {
        self.count() >= self.needed
    }

    /// Who stands against it.
    pub fn against(&self) -> Option<Against> {
        self.against
    }

    // The last epoch counts first: what was written in it was written on top of all before.
    fn looks_at(&mut self, other: Position) {
        let order = (other.epoch.number, other.seq).cmp(&(self.own.epoch.number, self.own.seq));
        let same_number = other.epoch.number == self.own.epoch.number;
        let parted = other.source != self.own.source
            || (same_number && other.epoch.nonce != self.own.epoch.nonce)
            || (same_number && order.is_eq() && other.digest != self.own.digest);
        let found = if parted {
            Against::Parted(other)
        } else if order.is_gt() {
            Against::Ahead(other)
        } else {
            return;
        };
        self.against.get_or_insert(found);
    }
}

#[cfg(test)]
mod tests {
    use replikv_core::{Coverage, Digest, KeyRange, Seq};

    use super::*;

    const E1: Epoch = Epoch { number: 1, nonce: 1 };
    const A: Epoch = Epoch { number: 2, nonce: 10 };
    const B: Epoch = Epoch { number: 2, nonce: 20 };
    const LATER: Epoch = Epoch { number: 3, nonce: 30 };

    fn source() -> SourceId {
        SourceId::from_bytes([7; 16])
    }

    fn at(epoch: Epoch, seq: u64) -> Position {
        Position { source: source(), epoch, seq: Seq::new(seq), digest: Digest::from_bytes([seq as u8; 16]) }
    }

    fn asks(epoch: Epoch) -> FenceRequest {
        FenceRequest { source: source(), epoch, by: "next".into() }
    }

    fn promise(cursor: &Cursor, held: Option<&Fence>, epoch: Epoch) -> Result<Option<Fence>, FenceRefusal> {
        Pledger { cursor: Some(cursor), filtered: false, resyncs: false, held }.promise(&asks(epoch), 5)
    }

    fn begins(cursor: &Cursor, held: Option<&Fence>, above: Option<u64>) -> Result<Epoch, FenceRefusal> {
        Pledger { cursor: Some(cursor), filtered: false, resyncs: false, held }.begins(above, 99)
    }

    #[test]
    fn a_slave_promises_once_for_each_number_and_says_the_same_again() {
        let cursor = Cursor::at(at(E1, 9));
        let held = promise(&cursor, None, A).unwrap().unwrap();
        assert_eq!((held.epoch, held.store, held.own), (A, 5, false));
        assert_eq!(promise(&cursor, Some(&held), A), Ok(None));
        let other = promise(&cursor, Some(&held), B);
        assert_eq!(other, Err(FenceRefusal::Promised { epoch: A, by: "next".into() }));
        // Whoever knows of it asks for a later one; the store stays the same one.
        let held = Fence { store: 77, ..held };
        let later = promise(&cursor, Some(&held), LATER).unwrap().unwrap();
        assert_eq!((later.epoch, later.store), (LATER, 77));
        assert!(matches!(promise(&cursor, Some(&later), A), Err(FenceRefusal::Promised { .. })), "never back");
    }

    #[test]
    fn who_is_in_that_epoch_or_holds_no_state_of_its_master_promises_nothing() {
        let there = at(A, 9);
        assert_eq!(promise(&Cursor::at(there), None, B), Err(FenceRefusal::Newer { position: there }));
        assert_eq!(promise(&Cursor::at(there), None, A), Err(FenceRefusal::Newer { position: there }));
        let copies = Cursor { position: at(E1, 9), coverage: Coverage::begin(KeyRange::all()) };
        assert_eq!(promise(&copies, None, A), Err(FenceRefusal::CatchingUp));
        let cursor = Cursor::at(at(E1, 9));
        let slave = Pledger { cursor: Some(&cursor), filtered: false, resyncs: false, held: None };
        let of = |slave: Pledger<'_>| slave.promise(&asks(A), 5);
        assert_eq!(of(Pledger { cursor: None, ..slave }), Err(FenceRefusal::Empty));
        assert_eq!(of(Pledger { filtered: true, ..slave }), Err(FenceRefusal::Filtered));
        assert_eq!(of(Pledger { resyncs: true, ..slave }), Err(FenceRefusal::CatchingUp));
        let foreign = FenceRequest { source: SourceId::from_bytes([8; 16]), ..asks(A) };
        assert_eq!(slave.promise(&foreign, 5), Err(FenceRefusal::ForeignSource { source_id: source() }));
    }

    #[test]
    fn what_was_promised_in_another_history_binds_nobody_in_this_one() {
        let elsewhere = SourceId::from_bytes([8; 16]);
        let late = Epoch { number: 5, nonce: 50 };
        let cursor = Cursor::at(at(late, 9));
        for own in [true, false] {
            let held = Fence { source: elsewhere, epoch: A, store: 77, own, by: "next".into() };
            assert!(!held.binds(&cursor));
            assert_eq!(begins(&cursor, Some(&held), None), Ok(Epoch { number: 6, nonce: 99 }));
            let six = Epoch { number: 6, nonce: 60 };
            let anew = promise(&cursor, Some(&held), six).unwrap().unwrap();
            assert_eq!((anew.source, anew.epoch, anew.store), (source(), six, 77));
        }
    }

    #[test]
    fn a_fence_admits_the_epoch_and_what_comes_after_it_and_nothing_beside_it() {
        let fence = promise(&Cursor::at(at(E1, 9)), None, A).unwrap().unwrap();
        let history = |epochs: &[Epoch]| {
            let starts = epochs.iter().map(|epoch| EpochStart { epoch: *epoch, first: Seq::new(1) });
            starts.collect::<Vec<_>>()
        };
        assert!(!fence.admits(source(), &history(&[E1])));
        assert!(!fence.admits(source(), &history(&[E1, B])));
        assert!(!fence.admits(source(), &history(&[E1, B, LATER])));
        assert!(fence.admits(source(), &history(&[E1, A])));
        assert!(fence.admits(source(), &history(&[E1, A, LATER])));
        assert!(fence.admits(SourceId::from_bytes([8; 16]), &history(&[E1])));
        assert!(!fence.is_over(&Cursor::at(at(E1, 100))));
        assert!(!fence.is_over(&Cursor { position: at(A, 12), coverage: Coverage::begin(KeyRange::all()) }));
        assert!(fence.is_over(&Cursor::at(at(A, 12))));
    }

    #[test]
    fn who_is_promoted_begins_the_epoch_it_has_told_of_unless_it_is_given_up() {
        let cursor = Cursor::at(at(E1, 9));
        assert_eq!(begins(&cursor, None, None), Ok(Epoch { number: 2, nonce: 99 }));
        let other = promise(&cursor, None, A).unwrap().unwrap();
        let own = Fence { own: true, ..other.clone() };
        assert_eq!(begins(&cursor, Some(&own), None), Ok(A));
        assert!(matches!(begins(&cursor, Some(&other), None), Err(FenceRefusal::Promised { epoch: A, .. })));
        assert!(matches!(begins(&cursor, Some(&own.clone().of_copy()), None), Err(FenceRefusal::Promised { .. })));
        assert_eq!(begins(&cursor, Some(&other), Some(0)), Ok(Epoch { number: 3, nonce: 99 }));
        assert_eq!(begins(&cursor, Some(&own), Some(7)), Ok(Epoch { number: 8, nonce: 99 }));
        // What was promised for an epoch that it has come to counts no more.
        assert_eq!(begins(&Cursor::at(at(A, 12)), Some(&other), None), Ok(Epoch { number: 3, nonce: 99 }));
    }

    /// Whatever slaves have acknowledged a write, and whatever slaves have promised, they have one in common; with one
    /// less they need not.
    #[test]
    fn so_many_are_needed_that_one_of_them_holds_each_write() {
        for slaves in 1..=7u32 {
            for replicated in 1..=slaves {
                let needed = FenceTally::needed_of(slaves as usize, replicated as usize) as u32;
                let sets = |size: u32| (0..1u32 << slaves).filter(move |set| set.count_ones() == size);
                assert!(sets(replicated).all(|holders| sets(needed).all(|fenced| holders & fenced != 0)));
                assert!(sets(replicated).any(|holders| sets(needed - 1).any(|fenced| holders & fenced == 0)));
            }
        }
    }

    #[test]
    fn slaves_are_counted_by_their_stores() {
        let mut tally = FenceTally::new(at(E1, 9), 1, 3, 1);
        assert_eq!((tally.count(), tally.needed(), tally.is_enough()), (1, 3, false));
        for _ in 0..2 {
            tally.fenced(&Fenced::new("b", 2, at(E1, 9)));
            // Its own, by another address.
            tally.fenced(&Fenced::new("a", 1, at(E1, 9)));
        }
        assert_eq!((tally.count(), tally.is_enough()), (2, false));
        tally.fenced(&Fenced::new("c", 3, at(E1, 4)));
        assert!(tally.is_enough() && tally.against().is_none());
    }

    #[test]
    fn the_last_epoch_counts_first_and_then_the_record() {
        let against = |own: Position, other: Position| {
            let mut tally = FenceTally::new(own, 1, 2, 1);
            tally.fenced(&Fenced::new("other", 2, other));
            tally.against()
        };
        assert_eq!(against(at(E1, 9), at(E1, 9)), None);
        assert_eq!(against(at(E1, 9), at(E1, 8)), None);
        assert_eq!(against(at(E1, 9), at(E1, 10)), Some(Against::Ahead(at(E1, 10))));
        assert_eq!(against(at(A, 9), at(E1, 10)), None);
        assert_eq!(against(at(E1, 9), at(A, 3)), Some(Against::Ahead(at(A, 3))));
        assert_eq!(against(at(A, 9), at(B, 3)), Some(Against::Parted(at(B, 3))));
        let fork = Position { digest: Digest::from_bytes([99; 16]), ..at(E1, 9) };
        assert_eq!(against(at(E1, 9), fork), Some(Against::Parted(fork)));
        // Who could not promise because somebody was promoted stands against it as well.
        let mut tally = FenceTally::new(at(E1, 9), 1, 2, 2);
        tally.refused(&FenceRefusal::Newer { position: at(A, 10) });
        assert_eq!((tally.is_enough(), tally.against()), (true, Some(Against::Ahead(at(A, 10)))));
    }

    #[test]
    fn who_asks_is_named_in_so_many_bytes() {
        let cursor = Cursor::at(at(E1, 9));
        let long = FenceRequest { by: "ü".repeat(300), ..asks(A) };
        let slave = Pledger { cursor: Some(&cursor), filtered: false, resyncs: false, held: None };
        assert_eq!(slave.promise(&long, 5).unwrap().unwrap().by, "ü".repeat(128));
    }

    #[test]
    fn whoever_is_refused_is_told_the_epoch_and_who_begins_it() {
        let fence = promise(&Cursor::at(at(E1, 5)), None, A).unwrap().unwrap();
        let refusal = fence.refusal();
        assert!(refusal.retry && refusal.code == RejectCode::Fenced);
        for word in [A.to_string(), fence.by] {
            assert!(refusal.words.contains(&word), "{}", refusal.words);
        }
    }
}
