//! Compaction by key: what the older part of a log comes to.
//!
//! Behind a window of recent records, full records are replaced by *touches*: that a key was changed, not to what. Of
//! each key only the newest touch of the whole compacted part is there, in the [`Run`] of the step that met it last; a
//! range delete is kept as it is, one of each range. Whoever goes through a touch gets the value that the key has now,
//! or learns that it is gone: so a run is no state that the master ever had, and whoever has gone through one is
//! consistent again once it has gone through everything that was published when it was read.
//!
//! An index from each touched key to its run makes a step bounded: it costs what it moves, however long the log is.

mod expiry;
mod parts;
mod run;
mod step;
#[cfg(test)]
pub(crate) mod tests;

pub use expiry::Expiry;
pub use parts::{Compacted, LogParts, TombstoneFloor};
pub use run::{RUN_FORMAT, Run, RunError, RunPart, Stretch, WholeRun, read_stretch};
pub use step::{CompactionStep, Folding, Indexed};

/// What is compacted: everything that lies behind a window of recent records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// The newest records stay as they are, so many bytes of them at least.
    pub window_bytes: u64,
    /// And so many records at least.
    pub window_records: u64,
}

impl Default for Compaction {
    /// 64 MiB, and 1,024 records.
    fn default() -> Self {
        Self { window_bytes: 64 << 20, window_records: 1024 }
    }
}
