//! The slave's side: what to ask, and what the answers mean.

use std::collections::VecDeque;

use bytes::Bytes;
use replikv_core::{EncodedOps, KeyRange};

use super::pieces::Pieces;
use super::{
    FAN_OUT, GATHER_ENTRIES, GATHER_RANGES, MAX_BOUND_BYTES, MAX_ENTRIES, MAX_PIECES, MAX_RANGES, PIECE_BYTES,
    PIECE_ENTRIES, RangeSummary, Verdict, bound_len, ends_by, joins,
};
use crate::planted::{self, Bug};

/// Asks about everything that is not covered, until all of it is.
///
/// What is told to be split goes first, so that few pieces are open at any time: the number of those bounds how
/// fragmented the coverage gets.
#[derive(Debug)]
pub(crate) struct Comparison {
    first: Lane,
    again: Lane,
    /// A page was asked for, by this lane.
    reading: Option<Which>,
    /// Cut, not asked yet.
    ready: Vec<RangeSummary>,
    ready_entries: u64,
    ready_bytes: usize,
    asked: VecDeque<Question>,
    asked_bytes: usize,
}

#[derive(Debug)]
struct Question {
    range: KeyRange,
    count: u64,
    /// Part of it has come as content: so will the rest.
    begun: bool,
}

/// Ranges that are cut into pieces one after the other.
#[derive(Debug, Default)]
struct Lane {
    ranges: VecDeque<Uncut>,
    current: Option<Pieces>,
}

/// A range that is to be cut.
#[derive(Debug)]
struct Uncut {
    range: KeyRange,
    /// How many entries a piece gets at most.
    max_entries: u64,
    /// How many ranges were told to be split, and are read as one since they touch.
    joined: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    First,
    Again,
}

/// An answer to something that was not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unexpected;

impl Comparison {
    /// Compares `holes`, in key order.
    pub(crate) fn new(holes: impl IntoIterator<Item = KeyRange>) -> Self {
        let ranges = holes.into_iter().map(|hole| Uncut::new(hole, PIECE_ENTRIES)).collect();
        Self {
            first: Lane { ranges, current: None },
            again: Lane::default(),
            reading: None,
            ready: Vec::new(),
            ready_entries: 0,
            ready_bytes: 0,
            asked: VecDeque::new(),
            asked_bytes: 0,
        }
    }

    /// What of the slave's own data to read next, if anything; answer with [`push_page`](Self::push_page).
    pub(crate) fn next_read(&mut self) -> Option<KeyRange> {
        if self.reading.is_some() || self.is_full() {
            return None;
        }
        let work = self.work();
        let bounds_fit = self.asked_bytes < MAX_BOUND_BYTES;
        // Whoever waits for nothing goes on, however much is open.
        let stalls = self.asked.is_empty() && self.ready.is_empty();
        let may_split = (work + self.again.comes_in() <= MAX_PIECES && bounds_fit) || stalls;
        // Room is left for what will have to be split. A coverage in very many pieces, which comes of many interrupted
        // connections, is mended before more are made.
        let begun = if self.first.len() < MAX_PIECES { MAX_PIECES / 2 } else { MAX_PIECES / 16 };
        let may_begin = work < begun && bounds_fit;
        let which = match (may_split && !self.again.is_idle(), may_begin && !self.first.is_idle()) {
            (true, _) => Which::Again,
            (false, true) => Which::First,
            (false, false) => return None,
        };
        let range = self.lane(which).next_read()?;
        self.reading = Some(which);
        Some(range)
    }

    /// A page of the slave's own data, of the range that was asked for: what it covers, and its entries.
    pub(crate) fn push_page(&mut self, covered: &KeyRange, entries: &EncodedOps) {
        let Some(which) = self.reading.take() else { return };
        let before = self.ready.len();
        let mut ready = std::mem::take(&mut self.ready);
        self.lane(which).push(covered, entries, &mut ready);
        for piece in &ready[before..] {
            self.ready_entries += piece.count;
            self.ready_bytes += bound_len(&piece.range);
        }
        self.ready = ready;
    }

    /// The next question, once it is worth a message. Asked for after [`next_read`](Self::next_read), which has nothing
    /// more to say then.
    pub(crate) fn next_question(&mut self) -> Option<Vec<RangeSummary>> {
        if self.ready.is_empty() || (self.reading.is_some() && !self.is_full()) {
            return None;
        }
        // While an answer is on its way there is time to gather: each question costs the master a turn, however few
        // ranges it has.
        if !self.asked.is_empty() && self.ready.len() < GATHER_RANGES && self.ready_entries < GATHER_ENTRIES {
            return None;
        }
        let (mut len, mut entries, mut bytes) = (0, 0, 0);
        for piece in &self.ready {
            let fits = entries + piece.count <= MAX_ENTRIES && bytes <= MAX_BOUND_BYTES;
            if len == MAX_RANGES || (len > 0 && !fits) {
                break;
            }
            len += 1;
            entries += piece.count;
            bytes += bound_len(&piece.range);
        }
        self.ready_entries -= entries;
        self.ready_bytes -= bytes;
        self.asked_bytes += bytes;
        let question: Vec<_> = self.ready.drain(..len).collect();
        for RangeSummary { range, count, .. } in &question {
            self.asked.push_back(Question { range: range.clone(), count: *count, begun: false });
        }
        Some(question)
    }

    /// What the master says of the next ranges, of which the first one begins at `start`. Returns those that are equal,
    /// adjacent ones as one.
    pub(crate) fn answered(&mut self, start: &Bytes, verdicts: &[Verdict]) -> Result<Vec<KeyRange>, Unexpected> {
        // An answer before this one that did not arrive would make it one about other ranges.
        let is_next = self.asked.front().is_some_and(|next| next.range.start() == start);
        if !is_next && !planted::is(Bug::VerdictsOfAnyRange) {
            return Err(Unexpected);
        }
        let mut equal: Vec<KeyRange> = Vec::new();
        let mut split: VecDeque<Uncut> = VecDeque::new();
        for verdict in verdicts {
            for _ in 0..verdict.count() {
                let question = self.asked.pop_front().filter(|question| !question.begun).ok_or(Unexpected)?;
                self.asked_bytes -= bound_len(&question.range);
                match verdict {
                    Verdict::Equal(_) => match equal.last_mut() {
                        Some(last) if joins(last, &question.range) => {
                            *last = KeyRange::new(last.start().clone(), question.range.end().cloned());
                        }
                        _ => equal.push(question.range),
                    },
                    // One entry cannot be split, and its master knows.
                    Verdict::Split(_) if question.count < 2 => return Err(Unexpected),
                    Verdict::Split(_) => {
                        let next = Uncut::new(question.range, question.count.div_ceil(FAN_OUT));
                        match split.back_mut() {
                            Some(last) if last.takes(&next) => last.join(&next),
                            _ => split.push_back(next),
                        }
                    }
                }
            }
        }
        // The smallest first: those come to an end, and make room. Otherwise what is open fills up with ranges that have
        // yet to be cut, and each of these has to wait for a round of its own.
        split.append(&mut self.again.ranges);
        self.again.ranges = split;
        Ok(equal)
    }

    /// The content of the next range or ranges has come, or a first part of it.
    pub(crate) fn replaced(&mut self, content: &KeyRange) -> Result<(), Unexpected> {
        if content.is_empty() || self.asked.front().is_none_or(|next| next.range.start() != content.start()) {
            return Err(Unexpected);
        }
        let mut at = content.start().clone();
        while let Some(question) = self.asked.front_mut() {
            if question.range.start() != &at {
                return Err(Unexpected);
            }
            if !ends_by(&question.range, content.end()) {
                // A page of a longer range.
                let Some(end) = content.end() else { return Err(Unexpected) };
                self.asked_bytes -= bound_len(&question.range);
                question.range = KeyRange::new(end.clone(), question.range.end().cloned());
                self.asked_bytes += bound_len(&question.range);
                question.begun = true;
                return Ok(());
            }
            let end = question.range.end().cloned();
            self.asked_bytes -= bound_len(&question.range);
            self.asked.pop_front();
            if end.as_ref() == content.end() {
                return Ok(());
            }
            at = end.unwrap_or_default();
        }
        Err(Unexpected)
    }

    /// True if every range was answered for good.
    #[cfg(test)]
    pub(crate) fn is_done(&self) -> bool {
        self.work() == 0 && self.first.is_idle()
    }

    fn work(&self) -> usize {
        self.ready.len() + self.asked.len() + self.again.len()
    }

    fn is_full(&self) -> bool {
        self.ready.len() >= MAX_RANGES || self.ready_entries >= MAX_ENTRIES || self.ready_bytes >= MAX_BOUND_BYTES
    }

    fn lane(&mut self, which: Which) -> &mut Lane {
        match which {
            Which::First => &mut self.first,
            Which::Again => &mut self.again,
        }
    }
}

impl Uncut {
    /// Where much differs, so much is read at once instead of range by range.
    const MAX_JOINED: usize = 16;

    fn new(range: KeyRange, max_entries: u64) -> Self {
        Self { range, max_entries, joined: 1 }
    }

    fn takes(&self, next: &Self) -> bool {
        self.joined < Self::MAX_JOINED && self.max_entries == next.max_entries && joins(&self.range, &next.range)
    }

    fn join(&mut self, next: &Self) {
        self.range = KeyRange::new(self.range.start().clone(), next.range.end().cloned());
        self.joined += next.joined;
    }
}

impl Lane {
    fn is_idle(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.ranges.len() + usize::from(self.current.is_some())
    }

    // In how many pieces that are not there yet the next range comes, about.
    fn comes_in(&self) -> usize {
        let joined = match &self.current {
            Some(_) => 1,
            None => self.ranges.front().map_or(1, |next| next.joined),
        };
        FAN_OUT as usize * joined
    }

    fn next_read(&mut self) -> Option<KeyRange> {
        if self.current.is_none() {
            let Uncut { range, max_entries, .. } = self.ranges.pop_front()?;
            self.current = Some(Pieces::new(range, max_entries, PIECE_BYTES));
        }
        self.current.as_ref()?.unread().cloned()
    }

    fn push(&mut self, covered: &KeyRange, entries: &EncodedOps, out: &mut Vec<RangeSummary>) {
        let Some(pieces) = &mut self.current else { return };
        pieces.push(covered, entries, out);
        if pieces.unread().is_none() {
            self.current = None;
        }
    }
}
