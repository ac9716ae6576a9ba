//! Recent records, in memory, for slaves that are close.

use std::collections::VecDeque;

use bytes::Bytes;
use replikv_core::{Position, Seq};
use replikv_proto::LogEntry;

/// The last published records, bounded in bytes.
#[derive(Debug)]
pub(super) struct Ring {
    entries: VecDeque<LogEntry>,
    bytes: usize,
    cap: usize,
}

impl Ring {
    pub(super) fn new(cap: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, cap }
    }

    pub(super) fn push(&mut self, entry: LogEntry) {
        self.bytes += entry.byte_len();
        self.entries.push_back(entry);
        while self.bytes > self.cap {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= oldest.byte_len();
        }
    }

    /// Forgets the records after `seq`: the store has lost them.
    pub(super) fn truncate(&mut self, seq: Seq) {
        while self.entries.back().is_some_and(|newest| newest.position.seq > seq) {
            let Some(newest) = self.entries.pop_back() else { return };
            self.bytes -= newest.byte_len();
        }
    }

    /// As [`read`](Self::read), up to `until` if that is here. Or else up to where `block` bytes of the log end: no message
    /// crosses that but with its first record, and so messages end where others have ended, wherever they begin.
    pub(super) fn read_block(&self, after: Seq, block: u64, until: Option<Position>) -> Option<(Vec<Bytes>, Position)> {
        let from = self.index(after.next()?)?;
        let until = until.filter(|until| self.entry(until.seq).is_some_and(|entry| entry.position == *until));
        let block_of = |entry: &LogEntry| entry.log_bytes / block.max(1);
        let first = block_of(self.entries.get(from)?);
        let records = self.entries.range(from..).take_while(|entry| match until {
            Some(until) => entry.position.seq <= until.seq,
            None => block_of(entry) == first,
        });
        let (mut parts, mut last) = (Vec::new(), None);
        for entry in records {
            parts.extend(entry.parts().cloned());
            last = Some(entry.position);
        }
        last.map(|last| (parts, last))
    }

    /// The buffers of records after `after`, up to `max_bytes` but one record at least, and the position of the last. `None` if the next
    /// one is not here.
    pub(super) fn read(&self, after: Seq, max_bytes: usize) -> Option<(Vec<Bytes>, Position)> {
        let from = self.index(after.next()?)?;
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        for entry in self.entries.range(from..) {
            if last.is_some() && bytes + entry.byte_len() > max_bytes {
                break;
            }
            bytes += entry.byte_len();
            records.extend(entry.parts().cloned());
            last = Some(entry.position);
        }
        last.map(|last| (records, last))
    }

    pub(super) fn entry(&self, seq: Seq) -> Option<&LogEntry> {
        self.entries.get(self.index(seq)?)
    }

    pub(super) fn oldest(&self) -> Option<&LogEntry> {
        self.entries.front()
    }

    // Records are numbered without gaps.
    fn index(&self, seq: Seq) -> Option<usize> {
        let first = self.entries.front()?.position.seq;
        let offset = seq.as_u64().checked_sub(first.as_u64())?;
        usize::try_from(offset).ok().filter(|index| *index < self.entries.len())
    }
}
