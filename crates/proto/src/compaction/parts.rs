//! Where the parts of a log begin and end.

use bytes::Bytes;
use replikv_core::{Position, Seq, WriteSetBuilder};
use serde::{Deserialize, Serialize};

use crate::layout::{Floor, Stored};

/// How far a log is compacted, and what is in that part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compacted {
    /// The last record that is compacted: later ones are there in full.
    pub position: Position,
    /// Bytes of records up to there, as they were written.
    pub log_bytes: u64,
    /// How many touches and range deletes there are.
    pub entries: u64,
    /// How many runs.
    pub runs: u64,
    /// How many bytes these have in the log.
    pub bytes: u64,
}

impl Compacted {
    /// Its key.
    pub const KEY: &'static [u8] = b"compacted";
}

impl Stored for Compacted {
    const WHAT: &'static str = "the end of the compacted log";
}

/// Touches up to here have begun to go: what they told of, nobody can tell any more. A slave that stands below
/// compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TombstoneFloor(pub Floor);

impl TombstoneFloor {
    /// Its key.
    pub const KEY: &'static [u8] = b"tombstone_floor";
}

impl Stored for TombstoneFloor {
    const WHAT: &'static str = "the tombstone floor";
}

/// A log in its parts: trimmed, compacted, full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogParts {
    /// Nothing up to here is there.
    pub floor: Floor,
    /// How far it is compacted; `None` if it never was.
    pub compacted: Option<Compacted>,
    /// Up to here it is being removed; `None` if nothing ever was.
    pub tombstones: Option<TombstoneFloor>,
}

impl LogParts {
    /// A log that was never compacted.
    pub fn new(floor: Floor) -> Self {
        Self { floor, compacted: None, tombstones: None }
    }

    /// Where it begins to be of use: the floor, or the tombstone floor if that is higher.
    pub fn begins(&self) -> Floor {
        let raised = self.tombstones.map(|TombstoneFloor(raised)| raised);
        raised.filter(|raised| raised.position.seq > self.floor.position.seq).unwrap_or(self.floor)
    }

    /// The compacted part, if there is one above the floor.
    pub fn compacted(&self) -> Option<Compacted> {
        self.compacted.filter(|compacted| compacted.position.seq > self.floor.position.seq)
    }

    /// Records after this one are there in full.
    pub fn full_after(&self) -> Floor {
        let begins = self.begins();
        let compacted = self.compacted().map(|Compacted { position, log_bytes, .. }| Floor { position, log_bytes });
        compacted.filter(|compacted| compacted.position.seq > begins.position.seq).unwrap_or(begins)
    }

    /// True if what follows `seq` is there, though not in full.
    pub fn is_compacted_after(&self, seq: Seq) -> bool {
        (self.begins().position.seq..self.full_after().position.seq).contains(&seq)
    }

    /// True if there are touches that nobody is served any more.
    pub fn is_expiring(&self) -> bool {
        self.begins().position.seq > self.floor.position.seq
    }

    /// Of the bytes of records ever written, how many the log does not hold.
    pub fn missing_bytes(&self) -> u64 {
        match self.compacted() {
            Some(compacted) => compacted.log_bytes.saturating_sub(compacted.bytes),
            None => self.floor.log_bytes,
        }
    }

    /// The write set applies only if the store has these very parts.
    pub fn require(&self, writes: &mut WriteSetBuilder) {
        writes.require(Floor::KEY, Some(self.floor.to_bytes()));
        writes.require(Compacted::KEY, stored(self.compacted.as_ref()));
        writes.require(TombstoneFloor::KEY, stored(self.tombstones.as_ref()));
    }
}

fn stored<V: Stored>(value: Option<&V>) -> Option<Bytes> {
    value.map(Stored::to_bytes)
}
