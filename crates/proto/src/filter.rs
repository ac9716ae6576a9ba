//! What a slave that subscribes to key ranges is sent: the one place where a master decides what of its history leaves
//! it for such a slave, and where the slave checks that nothing else came.
//!
//! A record that touches the ranges travels as its header, which proves its place in the chain, and those of its
//! operations that lie within. One that touches none of them is a header alone; a long run of these is the position that
//! it ends with.

use std::collections::VecDeque;

use bytes::Bytes;
use replikv_core::{EncodedOps, KeyRange, KeyRanges, Op, OpsPart, Position, Seq};

use crate::layout::Checkpoint;
use crate::planted::{self, Bug};
use crate::session::ProtocolError;
use crate::wire::LONG;
use crate::{Filtered, LogAnswer, Passage, Record, RecordError, Share, Skipped, Stretch};

/// So many headers of records that touch nothing are kept until they are told; those of a longer run are not.
pub(crate) const MAX_HEADERS: usize = 64;
/// So many bytes of them.
const MAX_HEADER_BYTES: usize = 8 << 10;
/// So many passages wait, however quiet it is.
const MAX_WAITING: usize = 128;

/// What one slave is sent.
#[derive(Debug)]
pub(crate) struct Filter {
    ranges: KeyRanges,
    /// What was passed and is not told yet: nothing of it touches the ranges, but for what is to be told at once.
    waiting: Vec<Passage>,
    header_bytes: usize,
    /// Something of it touches the ranges, or somebody waits for it.
    urgent: bool,
    /// The slave is asked to look at what it holds right after this record: it must come to stand there.
    stops_at: Option<Seq>,
}

impl Filter {
    /// A filter for a slave that subscribes to `ranges`; `None` if it subscribes to everything.
    pub(crate) fn new(ranges: &KeyRanges) -> Option<Self> {
        let ranges = (!ranges.is_all()).then(|| ranges.clone())?;
        Some(Self { ranges, waiting: Vec::new(), header_bytes: 0, urgent: false, stops_at: None })
    }

    /// Whether `range` may be read for the slave.
    pub(crate) fn allows(&self, range: &KeyRange) -> bool {
        self.ranges.covers(range)
    }

    /// Records were read from the log: they wait to be told.
    pub(crate) fn pass(&mut self, parts: Vec<Bytes>) -> Result<(), RecordError> {
        let mut rest = VecDeque::from(parts);
        while let Some(record) = Record::take_across(&mut rest)? {
            let share = Share::of(&record, &self.ranges);
            let position = record.position();
            let stops = self.stops_at == Some(position.seq);
            self.urgent |= stops || !share.ops().is_empty();
            let fits = self.waiting.len() < MAX_HEADERS && self.header_bytes + record.head().len() <= MAX_HEADER_BYTES;
            let runs = matches!(self.waiting.last(), Some(Passage::Skipped(_)));
            if !share.ops().is_empty() || (fits && !runs) {
                self.header_bytes += record.head().len();
                self.waiting.push(Passage::Share(share));
            } else {
                let (log_bytes, time) = (record.byte_len() as u64, record.header().time);
                self.skip(Skipped { through: position, log_bytes, time });
            }
        }
        Ok(())
    }

    /// The history went on, and nothing of it touches the ranges.
    pub(crate) fn pass_by(&mut self, runs: Vec<Skipped>) {
        runs.into_iter().for_each(|run| self.skip(run));
    }

    /// True if runs may be passed after `sent` that were not read.
    pub(crate) fn may_pass_by(&self, sent: Seq) -> bool {
        self.stops_at.is_none_or(|stop| stop <= sent)
    }

    /// A stretch of the compacted log was read.
    pub(crate) fn stretch(&self, stretch: Stretch) -> Stretch {
        let Stretch { end, mut deleted, mut touched } = stretch;
        deleted = deleted.iter().filter_map(|range| self.ranges.veil(range)).collect();
        touched.retain(|key| self.ranges.contains(key));
        Stretch { end, deleted, touched }
    }

    /// The slave must be told when it stands at this record.
    pub(crate) fn stop_at(&mut self, seq: Seq) {
        self.stops_at = Some(seq);
    }

    /// True if what waits is not to wait any longer.
    pub(crate) fn is_urgent(&self) -> bool {
        self.urgent || self.waiting.len() >= MAX_WAITING
    }

    /// All that waits, in messages.
    pub(crate) fn take(&mut self) -> Vec<Filtered> {
        (self.header_bytes, self.urgent) = (0, false);
        let (mut messages, mut passages, mut bytes) = (Vec::new(), Vec::new(), 0);
        for passage in self.waiting.drain(..) {
            bytes += passage.byte_len();
            passages.push(passage);
            if bytes > LONG {
                messages.push(Filtered { passages: std::mem::take(&mut passages) });
                bytes = 0;
            }
        }
        if !passages.is_empty() {
            messages.push(Filtered { passages });
        }
        messages
    }

    // A run goes on, and ends where a slave keeps a checkpoint or must stop. Headers that wait become part of one, unless
    // something that touches the ranges comes after them.
    fn skip(&mut self, record: Skipped) {
        let quiet = |passage: &Passage| matches!(passage, Passage::Share(share) if share.ops().is_empty());
        let loud = self.waiting.iter().rposition(|passage| !quiet(passage)).map_or(0, |last| last + 1);
        for passage in self.waiting.split_off(loud) {
            if let Passage::Share(share) = passage {
                self.header_bytes -= share.head().len().min(self.header_bytes);
                let (through, time) = (share.header().position(), share.header().time);
                self.extend(Skipped { through, log_bytes: share.log_bytes(), time });
            }
        }
        self.extend(record);
    }

    fn extend(&mut self, record: Skipped) {
        let stops_at = self.stops_at;
        let ends = |run: &Skipped| Checkpoint::is_due(run.through.seq) || stops_at == Some(run.through.seq);
        match self.waiting.last_mut() {
            Some(Passage::Skipped(run)) if !ends(run) => {
                let log_bytes = run.log_bytes.saturating_add(record.log_bytes);
                *run = Skipped { log_bytes, ..record };
            }
            _ => self.waiting.push(Passage::Skipped(record)),
        }
    }
}

/// What comes of a message of filtered records, once it is verified: what the slave applies, and where it then stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    /// The last record that it stands for.
    pub position: Position,
    /// How many records it stands for.
    pub records: u64,
    /// How many bytes these have in the log of the master.
    pub log_bytes: u64,
    /// When the last one was committed; milliseconds since the Unix epoch.
    pub time: u64,
    /// What of it lies in the slave's ranges.
    pub ops: EncodedOps,
}

impl Portion {
    /// What it counts for among the bytes that wait to be applied.
    pub fn byte_len(&self) -> usize {
        // A position and a few numbers: a run of nothing takes room too.
        self.ops.byte_len() + 64
    }
}

/// Checks each passage against the position before it, and what it holds against the slave's ranges.
pub(crate) fn verify(
    ranges: &KeyRanges,
    received: &mut Position,
    filtered: Filtered,
) -> Result<Vec<Portion>, ProtocolError> {
    let bad = |error: RecordError| ProtocolError::BadRecord { what: error.to_string() };
    let mut portions = Vec::with_capacity(filtered.passages.len());
    let mut last = *received;
    for passage in filtered.passages {
        let portion = match passage {
            Passage::Share(share) => {
                let follows = share.header().verify_after(&last).and_then(|()| share.verify());
                if !planted::is(Bug::ChainNotVerified) {
                    follows.map_err(bad)?;
                }
                check_within(ranges, share.ops())?;
                let (position, time) = (share.header().position(), share.header().time);
                Portion { position, records: 1, log_bytes: share.log_bytes(), time, ops: share.into_ops() }
            }
            Passage::Skipped(Skipped { through, log_bytes, time }) => {
                check_run(&last, &through)?;
                let records = through.seq.since(last.seq);
                Portion { position: through, records, log_bytes, time, ops: EncodedOps::default() }
            }
        };
        last = portion.position;
        portions.push(portion);
    }
    *received = last;
    Ok(portions)
}

/// Checks that operations touch nothing outside of `ranges`, and tell nothing of it.
pub(crate) fn check_within(ranges: &KeyRanges, ops: &EncodedOps) -> Result<(), ProtocolError> {
    if ranges.is_all() {
        return Ok(());
    }
    let outside = |key: &[u8]| {
        let key = key.escape_ascii();
        Err(ProtocolError::misbehaved(format!("it tells of {key}, which this slave does not subscribe to")))
    };
    for part in ops.parts() {
        match part {
            OpsPart::Put(put) if ranges.contains(put.key()) => {}
            OpsPart::Put(put) => return outside(put.key()),
            OpsPart::Ops(ops) => {
                for op in ops {
                    match op {
                        Op::Put { key, .. } | Op::Delete { key } if ranges.contains(key) => {}
                        Op::Put { key, .. } | Op::Delete { key } => return outside(key),
                        Op::DeleteRange { start, end } => {
                            let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                            if ranges.veil(&range) != Some(range) {
                                return outside(start);
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

// Nothing proves it now. Whatever record comes next proves it, since its digest is over this one; and so does the next
// connection, to whoever has the history.
fn check_run(before: &Position, through: &Position) -> Result<(), ProtocolError> {
    let epoch_follows = through.epoch == before.epoch
        || through.epoch.number > before.epoch.number
        // Before the first record there is no epoch.
        || before.seq == Seq::ZERO;
    if through.source != before.source || through.seq <= before.seq || !epoch_follows {
        return Err(ProtocolError::misbehaved("a run of records does not continue what came before"));
    }
    Ok(())
}

/// The answer of the log, for a slave with or without a filter: what of it is to be sent as it is.
pub(crate) fn filtered(filter: Option<&mut Filter>, answer: LogAnswer) -> Result<Option<LogAnswer>, RecordError> {
    let Some(filter) = filter else {
        // Only a slave with a filter is passed by.
        let passed = matches!(answer, LogAnswer::Passed(_));
        return if passed { Err(RecordError::Malformed { what: "it was left out" }) } else { Ok(Some(answer)) };
    };
    match answer {
        LogAnswer::Passed(runs) => {
            filter.pass_by(runs);
            Ok(None)
        }
        LogAnswer::Records { parts, .. } => filter.pass(parts).map(|()| None),
        LogAnswer::Compacted(stretch) => Ok(Some(LogAnswer::Compacted(filter.stretch(stretch)))),
        LogAnswer::Trimmed => Ok(Some(LogAnswer::Trimmed)),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use replikv_core::{Batch, Digest, Epoch, LargePut, SourceId};

    use super::*;
    use crate::{PreparedRecord, RecordDraft, RecordKind, origin};

    fn at(source: u8, number: u64, nonce: u64, seq: u64) -> Position {
        Position {
            source: SourceId::from_bytes([source; 16]),
            epoch: Epoch { number, nonce },
            seq: Seq::new(seq),
            digest: Digest::from_bytes([3; 16]),
        }
    }

    #[test]
    fn a_run_goes_on_in_its_epoch_or_into_a_later_one() {
        let before = at(1, 2, 5, 10);
        for through in [at(1, 2, 5, 11), at(1, 3, 6, 90)] {
            assert!(check_run(&before, &through).is_ok(), "{through}");
        }
        for through in [at(2, 2, 5, 11), at(1, 2, 5, 10), at(1, 2, 6, 11), at(1, 1, 5, 11)] {
            assert!(check_run(&before, &through).is_err(), "{through}");
        }
        assert!(check_run(&at(1, 2, 5, 0), &at(1, 1, 9, 1)).is_ok(), "before the first record there is no epoch");
    }

    /// A record of each: the length of its note, its key, and the length of its value.
    fn records(of: impl IntoIterator<Item = (usize, &'static str, usize)>) -> Vec<Bytes> {
        let mut last = at(1, 1, 1, 0);
        let record = |(note, key, value): (usize, &str, usize)| {
            let body = Batch::new().put(key, vec![7; value]).into_parts().unwrap().0;
            let note = vec![7; note];
            let (epoch, kind) = (last.epoch, RecordKind::Batch);
            let draft = RecordDraft { epoch, kind, time: 1, note: &note, body: body.as_bytes() };
            let record = PreparedRecord::after(&last, &draft).unwrap();
            last = record.position();
            let mut bytes = BytesMut::new();
            record.append_to(&mut bytes);
            bytes.freeze()
        };
        of.into_iter().map(record).collect()
    }

    fn filter() -> Filter {
        Filter::new(&KeyRange::from_bounds("m".."n").into()).unwrap()
    }

    /// What waits once these were passed: a share, a header alone, or a run.
    fn waiting(of: impl IntoIterator<Item = (usize, &'static str)>) -> String {
        let mut filter = filter();
        filter.pass(records(of.into_iter().map(|(note, key)| (note, key, 1)))).unwrap();
        let word = |passage: &Passage| match passage {
            Passage::Share(share) if share.ops().is_empty() => 'h',
            Passage::Share(_) => 'S',
            Passage::Skipped(_) => 'r',
        };
        filter.waiting.iter().map(word).collect()
    }

    #[test]
    fn so_many_headers_wait_and_more_become_a_run_that_makes_room_for_others() {
        let quiet = |count: usize| std::iter::repeat_n((60, "a"), count);
        assert_eq!(waiting(quiet(MAX_HEADERS)), "h".repeat(MAX_HEADERS));
        assert_eq!(waiting(quiet(MAX_HEADERS + 1)), "r");
        assert_eq!(waiting(quiet(MAX_HEADERS + 1).chain([(0, "m"), (60, "a"), (60, "a")])), "rShh");
    }

    #[test]
    fn so_many_bytes_of_headers_wait_those_of_shares_among_them() {
        assert_eq!(waiting([(4000, "a"), (4000, "a")]), "hh");
        assert_eq!(waiting([(4000, "a"), (4000, "a"), (4000, "a")]), "r");
        let shares = [(3500, "m"), (3500, "m")];
        assert_eq!(waiting(shares.into_iter().chain([(500, "a")])), "SSh");
        assert_eq!(waiting(shares.into_iter().chain([(500, "a"), (1200, "a")])), "SSr");
        assert_eq!(waiting(shares.into_iter().chain([(500, "a"), (1200, "a"), (0, "m"), (1200, "a")])), "SSrSr");
    }

    #[test]
    fn a_message_takes_no_more_once_it_is_long() {
        let messages = |values: &[usize]| {
            let mut filter = filter();
            filter.pass(records(values.iter().map(|len| (0, "m", *len)))).unwrap();
            let len = filter.waiting[0].byte_len();
            (len, filter.take().iter().map(|message| message.passages.len()).collect::<Vec<_>>())
        };
        assert_eq!(messages(&[600 << 10, 600 << 10, 600 << 10, 600 << 10, 1]).1, [2, 2, 1]);
        let beside = messages(&[LONG / 2]).0 - LONG / 2;
        assert_eq!(messages(&[LONG - beside, 1, 1]), (LONG, vec![2, 1]));
        assert_eq!(messages(&[LONG - beside + 1, 1, 1]), (LONG + 1, vec![1, 2]));
    }

    #[test]
    fn what_a_slave_does_not_subscribe_to_is_no_part_of_what_it_is_told() {
        let ranges = KeyRange::from_bounds("m".."n").into();
        let large = |key: &str| LargePut::new(key.as_bytes(), vec![Bytes::from("value")]).unwrap().into();
        let small = |batch: Batch| batch.into_parts().unwrap().0;
        for key in ["m", "n"] {
            let deleted = small(Batch::new().put("m1", "").delete(key));
            for ops in [large(key), small(Batch::new().put(key, "value")), deleted] {
                assert_eq!(check_within(&ranges, &ops).is_ok(), key == "m", "{ops:?}");
            }
        }
    }

    // Headers of 64 records fit by their number, and of these not by their bytes.
    #[test]
    fn headers_that_have_become_a_run_take_no_room_from_those_that_come_after_it() {
        let mut filter = Filter::new(&KeyRange::prefix("mine").into()).unwrap();
        let mut before = origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 2 });
        let mut pass = |key: &'static str, count: usize| {
            for _ in 0..count {
                let body = Batch::new().put(key, "1").into_parts().unwrap().0;
                let (epoch, kind, note) = (before.epoch, RecordKind::Batch, &[7; MAX_HEADER_BYTES / 50]);
                let draft = RecordDraft { epoch, kind, time: 7, note, body: body.as_bytes() };
                let record = PreparedRecord::after(&before, &draft).unwrap();
                before = record.position();
                let mut bytes = BytesMut::new();
                record.append_to(&mut bytes);
                filter.pass(vec![bytes.freeze()]).unwrap();
            }
        };
        pass("other", 60);
        pass("mine", 1);
        pass("other", 20);
        let passages: Vec<_> = filter.take().into_iter().flat_map(|filtered| filtered.passages).collect();
        let [Passage::Skipped(run), shares @ ..] = &passages[..] else { panic!("{passages:?}") };
        assert_eq!((run.through.seq, shares.len()), (Seq::new(60), 21));
        assert!(shares.iter().all(|passage| matches!(passage, Passage::Share(_))));
    }
}
