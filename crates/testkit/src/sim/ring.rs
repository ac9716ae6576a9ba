//! Recent records, in memory.

use std::collections::VecDeque;

use bytes::Bytes;
use replikv_core::{Position, Seq};
use replikv_proto::LogEntry;

/// The last published records, bounded in bytes.
#[derive(Debug)]
pub(super) struct Ring {
    entries: VecDeque<LogEntry>,
    pub(super) bytes: usize,
    cap: usize,
}

impl Ring {
    pub(super) fn new(cap: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, cap }
    }

    pub(super) fn push(&mut self, entry: LogEntry) {
        self.bytes += entry.bytes.len();
        self.entries.push_back(entry);
        while self.bytes > self.cap {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= oldest.bytes.len();
        }
    }

    pub(super) fn read(&self, after: Seq, max_bytes: usize) -> Option<(Vec<Bytes>, Position)> {
        let from = self.index(after.next()?)?;
        let (mut records, mut bytes, mut last) = (Vec::new(), 0, None);
        for entry in self.entries.range(from..) {
            if last.is_some() && bytes + entry.bytes.len() > max_bytes {
                break;
            }
            bytes += entry.bytes.len();
            records.push(entry.bytes.clone());
            last = Some(entry.position);
        }
        last.map(|last| (records, last))
    }

    pub(super) fn entry(&self, seq: Seq) -> Option<&LogEntry> {
        self.entries.get(self.index(seq)?)
    }

    // Records are numbered without gaps.
    fn index(&self, seq: Seq) -> Option<usize> {
        let first = self.entries.front()?.position.seq;
        let offset = seq.as_u64().checked_sub(first.as_u64())?;
        usize::try_from(offset).ok().filter(|index| *index < self.entries.len())
    }
}
