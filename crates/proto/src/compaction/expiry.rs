//! Expiry: the oldest runs go, in bounded steps.
//!
//! The tombstone floor is raised in the write set that drops the first touch below it, so that nobody is served a run
//! of which something is missing. The floor follows once nothing is left.

use bytes::Bytes;
use replikv_core::{KeyRange, Keyspace, Seq, StoreError, WriteSet};

use super::run::{Run, from_touch_key};
use super::step::Indexed;
use super::{Compacted, CompactionStep, LogParts, TombstoneFloor};
use crate::Retention;
use crate::layout::{Floor, Head, Stored};
use crate::planted::{self, Bug};

/// What goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    before: LogParts,
    /// Where the tombstone floor is afterwards.
    until: Floor,
}

impl Expiry {
    /// Goes on with what has begun to go.
    pub fn unfinished(parts: &LogParts) -> Option<Self> {
        parts.is_expiring().then(|| Self { before: *parts, until: parts.begins() })
    }

    /// The oldest run goes, if retention wants it to: the log is too long, or the run too old. `held` is the position of
    /// the slowest session or slot.
    pub fn due(retention: &Retention, parts: &LogParts, head: &Head, oldest: &Run, held: Option<Seq>) -> Option<Self> {
        let retained = head.log_bytes.saturating_sub(parts.missing_bytes());
        let too_many = retained > retention.max_bytes;
        let age = head.uptime_ms.saturating_sub(oldest.uptime_ms);
        let too_old = retention.max_age_ms.is_some_and(|max| age > max);
        let is_held = held.is_some_and(|held| held < oldest.end.seq) && retained <= retention.hold_back_bytes;
        let until = Floor { position: oldest.end, log_bytes: oldest.log_bytes };
        ((too_many || too_old) && !is_held).then_some(Self { before: *parts, until })
    }

    /// Everything up to `until` is given up: something of it is damaged. Full records up to there go with the first
    /// step.
    pub fn all_until(parts: &LogParts, until: Floor) -> Self {
        Self { before: *parts, until }
    }

    /// What a step reads: a page of this range of the log, as long as it wants to remove at once.
    pub fn range(&self) -> KeyRange {
        let first = self.before.floor.position.seq.to_key();
        let compacted = self.before.compacted().map_or(self.until.position.seq, |compacted| compacted.position.seq);
        let beyond = planted::is(Bug::ExpiredBeyondFloor);
        let last = if beyond { compacted } else { compacted.min(self.until.position.seq) };
        let end = last.next().map(|next| Bytes::copy_from_slice(&next.to_key()));
        KeyRange::new(KeyRange::all().after(&first).start().clone(), end)
    }

    /// The step, given a page from the beginning of the range; `complete` if that is all of it.
    ///
    /// # Errors
    /// None that a caller can meet: building the write set refuses empty keys.
    pub fn step(&self, page: &[(Bytes, Bytes)], complete: bool) -> Result<CompactionStep, StoreError> {
        let mut after = self.before;
        let mut writes = WriteSet::builder();
        self.before.require(&mut writes);
        if let Some(compacted) = &mut after.compacted {
            for (key, value) in page {
                compacted.bytes = compacted.bytes.saturating_sub(value.len() as u64);
                match from_touch_key(key) {
                    Some((_, id)) => {
                        writes.delete(Keyspace::Meta, Indexed::key(&id))?;
                        compacted.entries = compacted.entries.saturating_sub(1);
                    }
                    None => compacted.runs = compacted.runs.saturating_sub(1),
                }
                writes.delete(Keyspace::Log, key.clone())?;
            }
            if self.until.position.seq > compacted.position.seq {
                // Full records are cut at once, as they are where nothing is compacted.
                let first = compacted.position.seq.next().unwrap_or(compacted.position.seq).to_key();
                let cut = KeyRange::from_bounds(first..=self.until.position.seq.to_key());
                writes.delete_range(Keyspace::Log, &cut);
                (compacted.position, compacted.log_bytes) = (self.until.position, self.until.log_bytes);
            }
            writes.put(Keyspace::Meta, Compacted::KEY, compacted.to_bytes())?;
        }
        let raised = TombstoneFloor(self.until);
        let raises = !planted::is(Bug::TombstoneFloorNotRaised) || page.is_empty();
        if after.tombstones != Some(raised) && raises {
            writes.put(Keyspace::Meta, TombstoneFloor::KEY, raised.to_bytes())?;
            after.tombstones = Some(raised);
        }
        if complete && raises {
            writes.put(Keyspace::Meta, Floor::KEY, self.until.to_bytes())?;
            after.floor = self.until;
        }
        Ok(CompactionStep { writes: writes.build(), before: self.before, after })
    }
}
