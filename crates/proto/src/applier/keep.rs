//! Keeping the log: what a slave received goes into its own log, record by record, in the write set that applies it.
//!
//! A kept log is a part of the history, without a gap, that ends where the slave stands. It begins anew wherever the
//! slave has come by other means than through records: after a copy, a comparison, a resync, or a compacted stretch. As
//! long as the slave holds no state of its master there is none.

use bytes::Bytes;
use replikv_core::{Cursor, KeyRange, Keyspace, LargePut, StoreError, WriteSetBuilder};

use crate::layout::{Checkpoint, Floor, Head, Stored};
use crate::planted::{self, Bug};
use crate::{LogEntry, Record};

/// From here on a record is not copied into the write set.
const LONG: usize = 1 << 20;

/// What a slave that keeps the log knows of it, once every group that was handed out is committed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keeping {
    head: Option<Head>,
    log_bytes: u64,
    /// There may be something in the log.
    holds: bool,
    pub(super) uptime_ms: u64,
}

impl Keeping {
    pub(super) fn new(head: Option<Head>) -> Self {
        let (log_bytes, uptime_ms) = head.map_or((0, 0), |head| (head.log_bytes, head.uptime_ms));
        Self { head, log_bytes, holds: true, uptime_ms }
    }
}

/// What becomes of the kept log with a group.
#[derive(Debug, Clone)]
pub struct GroupLog {
    /// Where it begins, if it begins anew: nothing of what was there before is.
    pub begun: Option<Floor>,
    /// Where it ends.
    pub head: Head,
    /// The records of the group.
    pub entries: Vec<LogEntry>,
    /// Checkpoints among them.
    pub checkpoints: Vec<Checkpoint>,
}

/// A group's part of the log, as it is built.
#[derive(Debug)]
pub(super) struct Building {
    keeping: Keeping,
    begun: Option<Floor>,
    cut: bool,
    entries: Vec<LogEntry>,
    checkpoints: Vec<Checkpoint>,
}

impl Building {
    pub(super) fn new(keeping: Keeping) -> Self {
        Self { keeping, begun: None, cut: false, entries: Vec::new(), checkpoints: Vec::new() }
    }

    /// The slave stands at `cursor`, after `record` if it came there by one.
    pub(super) fn follow(&mut self, record: Option<&Record>, cursor: &Cursor) {
        let Keeping { head, log_bytes, uptime_ms, .. } = &mut self.keeping;
        if !cursor.is_consistent() {
            return self.cut();
        }
        match (head, record) {
            (Some(head), Some(record)) => {
                *log_bytes += record.byte_len() as u64;
                let (position, log_bytes, uptime_ms) = (record.position(), *log_bytes, *uptime_ms);
                *head = Head { position, log_bytes, uptime_ms: uptime_ms.max(head.uptime_ms) };
                self.entries.push(LogEntry { position, bytes: record.bytes().clone(), body: None, log_bytes });
                if Checkpoint::is_due(position.seq) {
                    self.checkpoints.push(Checkpoint { position, log_bytes, uptime_ms });
                }
            }
            (Some(head), None) if head.position == cursor.position => {}
            _ => {
                self.cut();
                let Keeping { log_bytes, uptime_ms, .. } = self.keeping;
                self.begun = Some(Floor { position: cursor.position, log_bytes });
                self.keeping.head = Some(Head { position: cursor.position, log_bytes, uptime_ms });
            }
        }
    }

    fn cut(&mut self) {
        if planted::is(Bug::KeptAcrossGap) {
            return;
        }
        (self.keeping.head, self.begun, self.cut) = (None, None, true);
        self.entries.clear();
        self.checkpoints.clear();
    }

    /// The checkpoint of a record that is kept.
    pub(super) fn checkpoint(&self, seq: replikv_core::Seq) -> Option<Checkpoint> {
        self.checkpoints.iter().find(|checkpoint| checkpoint.position.seq == seq).copied()
    }

    /// Writes it, and says what is there afterwards.
    pub(super) fn finish(mut self, out: &mut WriteSetBuilder) -> Result<(Keeping, Option<GroupLog>), StoreError> {
        if self.cut && self.keeping.holds {
            out.delete_range(Keyspace::Log, &KeyRange::all());
            out.delete(Keyspace::Meta, Head::KEY)?;
            out.delete(Keyspace::Meta, Floor::KEY)?;
        }
        self.keeping.holds = self.keeping.head.is_some() || (self.keeping.holds && !self.cut);
        let Some(head) = self.keeping.head else { return Ok((self.keeping, None)) };
        for LogEntry { position, bytes, .. } in &self.entries {
            put_record(out, &position.seq.to_key(), bytes)?;
        }
        if let Some(floor) = self.begun {
            out.put(Keyspace::Meta, Floor::KEY, floor.to_bytes())?;
        }
        out.put(Keyspace::Meta, Head::KEY, head.to_bytes())?;
        let Self { keeping, begun, entries, checkpoints, .. } = self;
        Ok((keeping, Some(GroupLog { begun, head, entries, checkpoints })))
    }
}

fn put_record(out: &mut WriteSetBuilder, key: &[u8], record: &Bytes) -> Result<(), StoreError> {
    let long = (record.len() >= LONG).then(|| LargePut::new(key, vec![record.clone()])).flatten();
    match long {
        Some(put) => out.append(Keyspace::Log, put.into()),
        None => out.put(Keyspace::Log, key, record)?,
    };
    Ok(())
}
