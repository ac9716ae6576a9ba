//! How a slave must be served, decided from what the oracle knows.

use replikv_core::{Keyspace, Position, Seq, StoreLimits};
use replikv_proto::{Hello, Record, RejectCode, View};

use super::model::Model;
use super::store::ModelStore;

/// A decision about a slave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Resume,
    Copy,
    Refuse(RejectCode),
}

/// A master, as it presents itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged<'a> {
    pub(super) model: &'a Model,
    pub(super) store: &'a ModelStore,
    pub(super) view: View,
    pub(super) limits: StoreLimits,
}

/// How a position lies to a master's history, told from the model alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Held,
    Below,
    Parted,
    Ahead,
}

impl Judged<'_> {
    /// Every right decision. There is more than one where a record is damaged, and found to be so or not.
    pub(super) fn verdicts(&self, hello: &Hello) -> Vec<Verdict> {
        if !hello.limits.holds(&self.limits) {
            return vec![Verdict::Refuse(RejectCode::LimitsTooSmall)];
        }
        let Some(cursor) = &hello.cursor else {
            return match (hello.holds_data, self.view.floor.seq) {
                (true, _) => vec![Verdict::Refuse(RejectCode::DataWithoutCursor)],
                (false, Seq::ZERO) => vec![Verdict::Resume],
                (false, _) => vec![Verdict::Copy],
            };
        };
        if cursor.position.source != self.view.published.source {
            return vec![Verdict::Refuse(RejectCode::ForeignSource)];
        }
        let mut positions = vec![cursor.position];
        positions.extend(cursor.coverage.ranges().iter().filter_map(|range| range.consistent_at));
        let decide = |damage_is_found: bool| {
            let places: Vec<Place> = positions.iter().map(|position| self.place(position, damage_is_found)).collect();
            if places.contains(&Place::Parted) {
                Verdict::Refuse(RejectCode::Diverged)
            } else if places.contains(&Place::Ahead) {
                Verdict::Refuse(RejectCode::SlaveAhead)
            } else if !places.contains(&Place::Below) {
                Verdict::Resume
            } else if !cursor.coverage.is_complete() {
                Verdict::Copy
            } else {
                Verdict::Refuse(RejectCode::NeedsCompare)
            }
        };
        vec![decide(false), decide(true)]
    }

    /// True if only a checkpoint below the floor can tell that the histories parted.
    pub(super) fn by_checkpoint(&self, position: &Position) -> bool {
        position.seq < self.view.floor.seq && self.place(position, true) == Place::Parted
    }

    // A damaged record is found in the store; or it is not, because memory still holds what it was.
    fn place(&self, position: &Position, damage_is_found: bool) -> Place {
        let View { published, floor, .. } = self.view;
        let on_the_way = self.model.leads_to(position, &published);
        if position.seq > published.seq {
            return Place::Ahead;
        }
        let below = if position.seq < floor.seq {
            let checkpoints = self.store.visible.checkpoints();
            let known = checkpoints.iter().any(|checkpoint| checkpoint.position.seq == position.seq);
            !known || on_the_way
        } else {
            let remembered = position.seq == published.seq || position.seq == floor.seq;
            damage_is_found && !remembered && !self.is_intact(position.seq)
        };
        match (below, on_the_way) {
            (true, _) => Place::Below,
            (false, true) => Place::Held,
            (false, false) => Place::Parted,
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
