//! How a slave must be served, decided from what the oracle knows.

use replikv_core::{Keyspace, Position, Seq, StoreLimits};
use replikv_proto::layout::Checkpoint;
use replikv_proto::{EpochStart, Hello, LogParts, PathNode, Record, RejectCode, View};

use super::context::Context;
use super::model::Model;
use super::oracle::Invariant;
use super::store::ModelStore;

/// A decision about a slave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Resume,
    Copy,
    Compare,
    Resync,
    Wait,
    Refuse(RejectCode),
}

/// A master, as it presents itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged<'a> {
    pub(super) model: &'a Model,
    pub(super) store: &'a ModelStore,
    pub(super) view: View,
    pub(super) parts: LogParts,
    pub(super) limits: StoreLimits,
    /// What it knows of the history's epochs, if it may know less than there is to know.
    pub(super) epochs: Option<&'a [EpochStart]>,
    /// Of a relay: those above it, and itself.
    pub(super) path: Option<&'a [PathNode]>,
    /// Whether it held nothing when it looked, if that is known.
    pub(super) found_empty: Option<bool>,
}

/// How a position lies to a master's history, told from the model alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Held,
    /// A point of the history, below the log.
    Shared,
    Below,
    Parted,
    Ahead,
}

/// What is found, or is not.
#[derive(Debug, Clone, Copy)]
struct Finds {
    /// That a record is damaged, or has been compacted or trimmed, is found in the store; or it is not, because memory
    /// still holds what it was.
    lost: bool,
    /// Something that comes and goes has kept the very record that is looked for: a run that ends with it, or a slot.
    kept: bool,
}

impl Finds {
    const EVERYTHING: Self = Self { lost: true, kept: true };
}

impl Judged<'_> {
    /// Every right decision. There is more than one where a record is damaged, compacted or gone: that is found or not, and
    /// something has kept it or not.
    pub(super) fn verdicts(&self, hello: &Hello) -> Vec<Verdict> {
        let right = self.whatever_was_asked(hello);
        right.into_iter().flat_map(|verdict| self.as_asked(hello, verdict)).collect()
    }

    // Its owner has said what becomes of a slave that has parted; and nobody is emptied by a master that holds nothing.
    fn as_asked(&self, hello: &Hello, verdict: Verdict) -> Vec<Verdict> {
        let Verdict::Refuse(code) = verdict else { return vec![verdict] };
        if !hello.on_divergence.resyncs(code) {
            return vec![verdict];
        }
        match self.found_empty {
            Some(true) => return vec![verdict],
            Some(false) => return vec![Verdict::Resync],
            None => {}
        }
        // It may have been looked for a moment ago, between any two of the records that are on their way.
        let under_way = self.view.handed.seq.since(self.view.published.seq);
        let handed = self.model.point(&self.view.handed);
        let states = std::iter::successors(handed, |point| self.model.before(point));
        let mut states = states.take(usize::try_from(under_way).unwrap_or(usize::MAX).saturating_add(1));
        let empty = self.store.visible.of(Keyspace::Data).is_empty() || states.any(|point| point.state.is_empty());
        if empty { vec![Verdict::Resync, verdict] } else { vec![Verdict::Resync] }
    }

    fn whatever_was_asked(&self, hello: &Hello) -> Vec<Verdict> {
        if !hello.limits.holds(&self.limits) {
            return vec![Verdict::Refuse(RejectCode::LimitsTooSmall)];
        }
        if self.path.is_some_and(|path| path.iter().any(|above| above.nonce == hello.nonce)) {
            return vec![Verdict::Refuse(RejectCode::Loop)];
        }
        let Some(cursor) = &hello.cursor else {
            return match (hello.holds_data, self.view.floor.seq) {
                (true, _) => vec![Verdict::Refuse(RejectCode::DataWithoutCursor)],
                (false, Seq::ZERO) if !self.data_is_less() => vec![Verdict::Resume],
                (false, _) => vec![Verdict::Copy],
            };
        };
        if cursor.position.source != self.view.published.source {
            return vec![Verdict::Refuse(RejectCode::ForeignSource)];
        }
        if cursor.position.epoch.number > self.view.published.epoch.number && self.path.is_none() {
            return vec![Verdict::Refuse(RejectCode::Superseded)];
        }
        let newest = || self.known_epochs().last().map_or(0, |start| start.epoch.number);
        let mut positions = vec![cursor.position];
        positions.extend(cursor.coverage.read_at());
        let decide = |finds: Finds| {
            let places = self.places(&positions, finds);
            if places.contains(&Place::Parted) && self.path.is_some() && cursor.position.epoch.number > newest() {
                Verdict::Refuse(RejectCode::Superseded)
            } else if places.contains(&Place::Parted) {
                Verdict::Refuse(RejectCode::Diverged)
            } else if places.contains(&Place::Ahead) && self.path.is_some() {
                Verdict::Wait
            } else if places.contains(&Place::Ahead) {
                Verdict::Refuse(RejectCode::SlaveAhead)
            } else if places.iter().all(|place| *place == Place::Held) {
                Verdict::Resume
            } else if places[0] == Place::Shared || (!cursor.coverage.is_complete() && hello.ranges.is_empty()) {
                Verdict::Compare
            } else {
                self.by_lineage(hello, &cursor.position, finds)
            }
        };
        let found = [false, true].into_iter().flat_map(|lost| [false, true].map(|kept| Finds { lost, kept }));
        found.map(decide).collect()
    }

    // A log of more than a MiB is weighed against the data. In no run do they come so close that a write could tip it.
    fn data_is_less(&self) -> bool {
        let data = self.store.visible.of(Keyspace::Data).iter().map(|(key, value)| key.len() + value.len());
        self.view.retained_bytes > 1 << 20 && (data.sum::<usize>() as u64) < self.view.retained_bytes
    }

    // Its position is too old to tell: what it passed through before tells, or the epoch that it is in.
    fn by_lineage(&self, hello: &Hello, position: &Position, finds: Finds) -> Verdict {
        let places = self.places(&hello.checkpoints, finds);
        let epochs = self.known_epochs();
        let own = epochs.iter().find(|start| start.epoch == position.epoch);
        let unfinished = hello.cursor.as_ref().is_some_and(|cursor| !cursor.coverage.is_complete());
        if places.iter().any(|place| matches!(place, Place::Parted | Place::Ahead)) {
            Verdict::Refuse(RejectCode::Diverged)
        } else if unfinished
            || places.iter().any(|place| matches!(place, Place::Held | Place::Shared))
            || own.is_some_and(|own| position.seq.since(own.first) < Checkpoint::EVERY)
        {
            Verdict::Compare
        } else {
            Verdict::Refuse(RejectCode::NeedsCompare)
        }
    }

    fn known_epochs(&self) -> Vec<EpochStart> {
        self.epochs.map_or_else(|| self.model.epochs(&self.view.published), <[_]>::to_vec)
    }

    fn places(&self, positions: &[Position], finds: Finds) -> Vec<Place> {
        positions.iter().map(|position| self.place(position, finds)).collect()
    }

    /// True if only a checkpoint below the floor can tell that the histories parted.
    pub(super) fn by_checkpoint(&self, position: &Position) -> bool {
        position.seq < self.view.floor.seq && self.place(position, Finds::EVERYTHING) == Place::Parted
    }

    fn place(&self, position: &Position, finds: Finds) -> Place {
        let View { published, floor, .. } = self.view;
        let own = self.model.at(&published, position.seq).map(|point| &point.position);
        // Before the first record there is no epoch to compare.
        let same = |own: &Position| own.digest == position.digest && (own == position || own.seq == Seq::ZERO);
        let on_the_way = own.is_some_and(same);
        if position.seq > published.seq {
            // Epochs never go back: a relay of a later one, or of another one of that number, comes to no such position.
            let left = published.epoch != position.epoch && published.epoch.number >= position.epoch.number;
            let left = left && self.path.is_some() && published.seq > Seq::ZERO;
            return if left { Place::Parted } else { Place::Ahead };
        }
        let remembered = position.seq == published.seq || position.seq == floor.seq;
        let full_after = self.parts.full_after().position.seq;
        // Further than the master knows, of another master on the store, or of a step of its own that is under way.
        let gone =
            finds.lost && self.store.parts().is_some_and(|parts| position.seq <= parts.full_after().position.seq);
        if !remembered && (position.seq < floor.seq || position.seq <= full_after || gone) {
            let same_epoch = match self.epochs {
                Some(known) => {
                    let reigning = known.iter().rfind(|start| start.first <= position.seq);
                    reigning.is_some_and(|start| start.epoch == position.epoch)
                }
                None => own.is_some_and(|own| own.epoch == position.epoch),
            };
            let mut below = self.place_below(position, on_the_way, same_epoch);
            if (below, on_the_way, finds.kept) == (Place::Below, true, true) {
                below = Place::Shared;
            }
            let is_there = position.seq >= floor.seq;
            return if is_there { self.place_compacted(position, on_the_way, below, finds) } else { below };
        }
        // A record that differs is believed if it continues the one before, which may be the damaged one.
        let before = Seq::new(position.seq.as_u64().saturating_sub(1));
        let believed = on_the_way || before <= floor.seq.max(full_after) || self.is_intact(before);
        if finds.lost && !remembered && !(self.is_intact(position.seq) && believed) {
            Place::Below
        } else if on_the_way {
            Place::Held
        } else {
            Place::Parted
        }
    }

    // Without records there are epochs and checkpoints: of the first record's beginning everybody knows.
    fn place_below(&self, position: &Position, on_the_way: bool, same_epoch: bool) -> Place {
        let meta = self.store.visible.of(Keyspace::Meta);
        let known = position.seq == Seq::ZERO || meta.contains_key(&Checkpoint::at(*position).key());
        match (known, on_the_way) {
            (true, true) => Place::Shared,
            (false, _) if same_epoch => Place::Below,
            _ => Place::Parted,
        }
    }

    // What follows is there. The record itself is known where something has kept it.
    fn place_compacted(&self, position: &Position, on_the_way: bool, below: Place, finds: Finds) -> Place {
        let end = self.parts.compacted().is_some_and(|compacted| compacted.position == *position);
        match below {
            _ if end && on_the_way => Place::Held,
            Place::Shared => Place::Held,
            Place::Below if finds.kept => Place::Parted,
            below => below,
        }
    }

    fn is_intact(&self, seq: Seq) -> bool {
        let stored = self.store.visible.of(Keyspace::Log).get(&seq.to_key()[..]);
        let record = stored.and_then(|bytes| Record::decode(bytes.clone()).ok());
        record.is_some_and(|record| {
            self.model.point(&record.position()).is_some_and(|point| point.bytes == record.bytes())
        })
    }
}

/// Served or refused under its name. Nobody comes back after more others than are remembered.
pub(super) fn judge_joined(ctx: &mut Context, came: &mut Vec<u64>, nonce: u64, served: bool) {
    let fenced = came.last() != Some(&nonce) && came.contains(&nonce);
    if served == fenced {
        let words = format!("{nonce:x} has a name: {served}; those that had it are {came:x?}");
        ctx.oracle.fail(Invariant::RightDecision, words);
    }
    if !came.contains(&nonce) {
        came.push(nonce);
    }
}
