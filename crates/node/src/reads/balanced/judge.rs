//! Whether what a reader says of itself, or of an answer, is within the bound.

use std::sync::Mutex;
use std::time::Duration;

use replikv_core::Position;
use replikv_proto::{Lag, ReadAt};

use super::lock;
use crate::{HealthState, ReaderStatus};

/// Why a reader, or an answer, is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("it cannot be reached, or was shut down")]
    Gone,
    #[error("another master goes on in its place")]
    Replaced,
    #[error("it holds no state of its master")]
    Inconsistent,
    #[error("it follows another source than the other readers")]
    Foreign,
    #[error("its history has parted from that of the other readers")]
    Diverged,
    #[error("nobody knows how far it is behind")]
    Unknown,
    #[error("it is {seqs} records behind")]
    Records { seqs: u64 },
    #[error("it is {millis} ms behind")]
    Old { millis: u64 },
}

pub(super) struct Judge {
    max_lag_seqs: Option<u64>,
    max_lag: Option<Duration>,
    /// The furthest position that any reader was seen at.
    furthest: Mutex<Option<Position>>,
}

impl Judge {
    pub(super) fn new(max_lag_seqs: Option<u64>, max_lag: Option<Duration>) -> Self {
        Self { max_lag_seqs, max_lag, furthest: Mutex::default() }
    }

    pub(super) fn saw_status(&self, status: &ReaderStatus) {
        if status.consistent {
            self.saw(status.position);
        }
    }

    fn saw(&self, position: Option<Position>) {
        let Some(position) = position else { return };
        let mut furthest = lock(&self.furthest);
        let further = furthest.is_none_or(|furthest| {
            // A later reign may have begun before the end of an earlier one.
            let rank = |position: Position| (position.epoch.number, position.seq);
            furthest.source == position.source && rank(position) > rank(furthest)
        });
        if further {
            *furthest = Some(position);
        }
    }

    pub(super) fn status(&self, status: &ReaderStatus) -> Result<(), Unfit> {
        standing(status)?;
        // It may be old. By its own words it is judged, which are all of one moment, and not by how far others have come
        // since.
        self.bound(status.position, status.consistent, status.lag, status.last_contact_ms, false)
    }

    /// Whether the fallback is asked, whatever it lacks. A master in an earlier reign than others are in was replaced, though
    /// it may not have heard of it.
    pub(super) fn fallback(&self, status: &ReaderStatus) -> Result<(), Unfit> {
        standing(status)?;
        let older = |(position, furthest): (Position, Position)| position.epoch.number < furthest.epoch.number;
        if status.position.zip(*lock(&self.furthest)).is_some_and(older) {
            return Err(Unfit::Replaced);
        }
        Ok(())
    }

    /// An answer is used if it is within the bound, or need not be.
    pub(super) fn answer(&self, at: &ReadAt, bounded: bool) -> Result<(), Unfit> {
        self.same_history(at.includes)?;
        match bounded {
            true => self.bound(at.includes, at.consistent, at.lag, at.last_contact_ms, true)?,
            false if !at.consistent => return Err(Unfit::Inconsistent),
            false => {}
        }
        self.saw(at.includes);
        Ok(())
    }

    // Who goes on in an earlier reign than others are in, as a master does that was restored or replaced, is not read.
    fn same_history(&self, position: Option<Position>) -> Result<(), Unfit> {
        match position.zip(*lock(&self.furthest)) {
            Some((position, furthest)) if furthest.source != position.source => Err(Unfit::Foreign),
            Some((position, furthest))
                if furthest.epoch.number > position.epoch.number && position.seq >= furthest.seq =>
            {
                Err(Unfit::Diverged)
            }
            _ => Ok(()),
        }
    }

    fn bound(
        &self,
        position: Option<Position>,
        consistent: bool,
        lag: Option<Lag>,
        last_contact_ms: Option<u64>,
        fresh: bool,
    ) -> Result<(), Unfit> {
        let Some(position) = position.filter(|_| consistent) else { return Err(Unfit::Inconsistent) };
        self.same_history(Some(position))?;
        let furthest = *lock(&self.furthest);
        let behind = match furthest {
            Some(furthest) if fresh => furthest.seq.since(position.seq),
            _ => 0,
        };
        if let Some(max) = self.max_lag_seqs {
            let seqs = lag.ok_or(Unfit::Unknown)?.seqs.max(behind);
            if seqs > max {
                return Err(Unfit::Records { seqs });
            }
        }
        if let Some(max) = self.max_lag {
            let millis = age(lag, last_contact_ms).ok_or(Unfit::Unknown)?;
            if Duration::from_millis(millis) > max {
                return Err(Unfit::Old { millis });
            }
        }
        Ok(())
    }
}

fn standing(status: &ReaderStatus) -> Result<(), Unfit> {
    match status.health.state {
        HealthState::Stopped => Err(Unfit::Gone),
        HealthState::Replaced => Err(Unfit::Replaced),
        _ => Ok(()),
    }
}

// How old what a reader holds is at most. What its master wrote since it was last heard of is not known: where nothing was
// missing then, all of that time counts; where something was, the age of the last record that is there counts.
fn age(lag: Option<Lag>, last_contact_ms: Option<u64>) -> Option<u64> {
    match lag? {
        Lag { seqs: 0, .. } => last_contact_ms,
        // Nothing was applied since it was opened: nobody has told how old what it holds is.
        Lag { millis: 0, .. } => None,
        Lag { millis, .. } => Some(millis),
    }
}
