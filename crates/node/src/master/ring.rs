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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use replikv_core::{Digest, Epoch, SourceId};
    use replikv_proto::origin;

    use super::*;

    fn ring(lens: impl Iterator<Item = usize>) -> Ring {
        let mut ring = Ring::new(usize::MAX);
        let (start, mut log_bytes) = (origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 1 }), 12_345);
        for (n, len) in (1..).zip(lens) {
            log_bytes += len as u64;
            let position = Position { seq: Seq::new(n), digest: Digest::from_bytes([n as u8; 16]), ..start };
            ring.push(LogEntry { position, bytes: Bytes::from(vec![n as u8; len]), body: None, log_bytes });
        }
        ring
    }

    /// Where messages end of somebody who begins there.
    fn ends(ring: &Ring, mut after: u64, block: u64) -> Vec<u64> {
        let mut ends = Vec::new();
        while let Some((parts, last)) = ring.read_block(Seq::new(after), block, None) {
            let through = (after + 1..=last.seq.as_u64()).map(|seq| ring.entry(Seq::new(seq)).unwrap().bytes.clone());
            assert_eq!(parts, through.collect::<Vec<_>>());
            let bytes: usize = parts.iter().map(Bytes::len).sum();
            assert!(bytes - parts[0].len() <= block as usize, "no longer than a block, and its first record");
            after = last.seq.as_u64();
            ends.push(after);
        }
        ends
    }

    #[test]
    fn messages_end_at_the_same_records_whoever_reads() {
        let mut random = fastrand::Rng::with_seed(3);
        let ring = ring((0..500).map(|_| if random.u8(..) == 0 { 20_000 } else { random.usize(1..400) }));
        let all: BTreeSet<u64> = ends(&ring, 0, 4096).into_iter().collect();
        assert!((25..200).contains(&all.len()), "{}", all.len());
        for after in 0..500 {
            assert!(ends(&ring, after, 4096).iter().all(|end| all.contains(end)), "from {after}");
        }
    }

    #[test]
    fn a_message_ends_where_it_is_told_if_that_is_here() {
        let ring = ring([100; 10].into_iter());
        let end = |until: Option<Position>| ring.read_block(Seq::new(2), 1 << 20, until).unwrap().1.seq.as_u64();
        let fifth = ring.entry(Seq::new(5)).unwrap().position;
        assert_eq!((end(None), end(Some(fifth))), (10, 5));
        // Another record of that number; one that is not here.
        assert_eq!(end(Some(Position { digest: Digest::from_bytes([0xFF; 16]), ..fifth })), 10);
        assert_eq!(end(Some(Position { seq: Seq::new(11), ..fifth })), 10);
    }
}
