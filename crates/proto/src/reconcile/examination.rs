//! The master's side: reads what was asked about, and judges.

use bytes::Bytes;
use replikv_core::{EncodedOps, KeyRange, Op, PageBuilder, Position, ScanOptions};

use super::{Fingerprinter, LEAF_BYTES, RangeSummary, Verdict, ends_by, joins};
use crate::planted::{self, Bug};
use crate::{Compared, Content, Message};

/// A range that a slave asked about and that was not answered for good.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) summary: RangeSummary,
    /// It differs, and a first part of its content was sent: so is the rest.
    pub(crate) begun: bool,
}

/// Reads the next ranges, page by page, and makes one answer of them.
///
/// A range is never answered by half of it, except where its content is sent in pages: a fingerprint whose parts were
/// read before and after a record would say that the slave has that record's change, which it has not.
#[derive(Debug)]
pub(crate) struct Examination {
    asked: Vec<Asked>,
    /// The range that is being read.
    next: usize,
    seen: Seen,
    /// What was read of the ranges that are answered, and of the one that is being read.
    read: usize,
    target: usize,
    reads: Vec<Position>,
    parts: Vec<Part>,
    begun: Option<Bytes>,
    full: bool,
}

/// What was seen of a range so far.
#[derive(Debug)]
struct Seen {
    /// From where on it is to be read; `None`: from its start.
    from: Option<Bytes>,
    count: u64,
    bytes: usize,
    hash: Fingerprinter,
    /// Its content, as long as that may have to be sent.
    content: Option<Entries>,
}

/// One part of an answer.
#[derive(Debug)]
pub(crate) enum Part {
    /// On ranges of which the first one begins here.
    Verdict(Bytes, Verdict),
    Content(KeyRange, Box<Entries>),
}

/// An answer: what is said of the ranges that were asked first.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The moments at which it was read. It may show what had been handed to the store by then.
    pub(crate) reads: Vec<Position>,
    pub(crate) parts: Vec<Part>,
    /// How many ranges it answers for good.
    pub(crate) answered: usize,
    /// Up to where the range after these was sent.
    pub(crate) begun: Option<Bytes>,
    /// How much was read for it.
    pub(crate) bytes: usize,
}

/// Entries on their way into content.
#[derive(Debug)]
pub(crate) struct Entries {
    page: PageBuilder,
    bytes: usize,
}

impl Examination {
    /// Examines `asked`, in order, until about `target` bytes are read.
    pub(crate) fn new(asked: Vec<Asked>, target: usize) -> Self {
        let (reads, parts) = (Vec::new(), Vec::new());
        Self { asked, next: 0, seen: Seen::default(), read: 0, target, reads, parts, begun: None, full: false }
    }

    /// What to read next, and about how many bytes of it; `None` once there is an answer.
    pub(crate) fn next_read(&self) -> Option<(KeyRange, usize)> {
        if self.full {
            return None;
        }
        let run = &self.asked[self.next..self.run_end()];
        let (first, last) = (&run.first()?.summary.range, &run.last()?.summary.range);
        let start = self.seen.from.as_ref().unwrap_or(first.start()).clone();
        Some((KeyRange::new(start, last.end().cloned()), self.target.saturating_sub(self.read).max(LEAF_BYTES)))
    }

    /// A page of what was to be read.
    pub(crate) fn push_page(&mut self, page: &Content) {
        if self.reads.last() != Some(&page.read_at) {
            self.reads.push(page.read_at);
        }
        self.read += page.entries.byte_len();
        let run_end = self.run_end();
        let buffer = page.entries.as_bytes();
        for (op, span) in page.entries.spans() {
            let Op::Put { key, value } = op else { continue };
            while self.range(run_end).is_some_and(|range| range.end().is_some_and(|end| key >= &end[..])) {
                self.judge();
            }
            let Some(asked) = self.asked.get(self.next) else { return };
            self.seen.add(asked, key, value, &buffer[span]);
        }
        while self.range(run_end).is_some_and(|range| ends_by(range, page.range.end())) {
            self.judge();
        }
        self.go_on_after(page.range.end(), run_end);
    }

    /// The answer, once there is nothing more to read.
    pub(crate) fn into_answer(self) -> Answer {
        let Self { reads, parts, next, begun, read, .. } = self;
        Answer { reads, parts, answered: next, begun, bytes: read }
    }

    // The page ended within a range of its run, or before the next one.
    fn go_on_after(&mut self, end: Option<&Bytes>, run_end: usize) {
        let within = self.range(run_end).zip(end).filter(|(range, end)| *end > range.start());
        let Some((range, end)) = within else {
            self.full = self.next == self.asked.len() || self.read >= self.target;
            return;
        };
        let (range, asked) = (range.clone(), &self.asked[self.next]);
        if self.seen.is_split(asked) {
            // What else it holds does not matter.
            self.judge();
            self.full = self.next == self.asked.len() || self.read >= self.target;
        } else if self.seen.is_content(asked) {
            // It is long: what there is of it goes now, the rest afterwards.
            if let Some(entries) = self.seen.content.take() {
                let sent = KeyRange::new(range.start().clone(), Some(end.clone()));
                self.push_content(sent, entries);
                self.begun = Some(end.clone());
            }
            self.full = true;
        } else if self.read >= self.target && !self.parts.is_empty() {
            // Those before it do not wait for it; it is read again.
            self.full = true;
        } else {
            self.seen.from = Some(end.clone());
        }
    }

    // Ranges that touch are read at once.
    fn run_end(&self) -> usize {
        let rest = &self.asked[self.next..];
        let joined = rest.windows(2).take_while(|pair| joins(&pair[0].summary.range, &pair[1].summary.range)).count();
        (self.next + joined + 1).min(self.asked.len())
    }

    // What is being read, within a run.
    fn range(&self, run_end: usize) -> Option<&KeyRange> {
        self.asked[..run_end].get(self.next).map(|asked| &asked.summary.range)
    }

    // All that matters of a range was read.
    fn judge(&mut self) {
        let Some(asked) = self.asked.get(self.next) else { return };
        let RangeSummary { range, count, fingerprint } = &asked.summary;
        let seen = std::mem::take(&mut self.seen);
        let same = seen.hash.finish() == *fingerprint || planted::is(Bug::CountsAlone);
        let equal = !asked.begun && seen.count == *count && same;
        match seen.content {
            Some(entries) if !equal && (asked.begun || *count <= 1 || seen.bytes <= LEAF_BYTES) => {
                let range = range.clone();
                self.push_content(range, entries);
            }
            _ => {
                let start = range.start().clone();
                self.push_verdict(start, if equal { Verdict::Equal(1) } else { Verdict::Split(1) });
            }
        }
        self.next += 1;
    }

    fn push_verdict(&mut self, start: Bytes, verdict: Verdict) {
        match (self.parts.last_mut(), verdict) {
            (Some(Part::Verdict(_, Verdict::Equal(last))), Verdict::Equal(more))
            | (Some(Part::Verdict(_, Verdict::Split(last))), Verdict::Split(more)) => *last += more,
            _ => self.parts.push(Part::Verdict(start, verdict)),
        }
    }

    fn push_content(&mut self, range: KeyRange, entries: Entries) {
        match self.parts.last_mut() {
            Some(Part::Content(last, so_far)) if joins(last, &range) && so_far.bytes < self.target => {
                *last = KeyRange::new(last.start().clone(), range.end().cloned());
                let (more, _) = entries.finish();
                for op in &more {
                    if let Op::Put { key, value } = op {
                        so_far.push(key, value);
                    }
                }
            }
            _ => self.parts.push(Part::Content(range, Box::new(entries))),
        }
    }
}

impl Default for Seen {
    fn default() -> Self {
        Self { from: None, count: 0, bytes: 0, hash: Fingerprinter::default(), content: Some(Entries::new()) }
    }
}

impl Seen {
    fn add(&mut self, asked: &Asked, key: &[u8], value: &[u8], encoded: &[u8]) {
        if self.is_split(asked) {
            return;
        }
        self.count += 1;
        self.bytes += encoded.len();
        if asked.begun || asked.summary.count <= 1 {
            // There is nothing to compare with in the end.
        } else if self.bytes > LEAF_BYTES {
            self.content = None;
        }
        if let Some(content) = &mut self.content {
            content.push(key, value);
        }
        if !asked.begun && self.count <= asked.summary.count {
            self.hash.update(encoded);
        }
    }

    // It holds more than the slave does, and too much to be sent.
    fn is_split(&self, asked: &Asked) -> bool {
        self.content.is_none() && self.count > asked.summary.count
    }

    // It differs for certain, and will be sent.
    fn is_content(&self, asked: &Asked) -> bool {
        asked.begun || (asked.summary.count <= 1 && self.count > asked.summary.count)
    }
}

impl Entries {
    fn new() -> Self {
        let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(usize::MAX);
        Self { page: PageBuilder::new(KeyRange::all(), options), bytes: 0 }
    }

    fn push(&mut self, key: &[u8], value: &[u8]) {
        // It has no bound of its own: whoever fills it has.
        let _ = self.page.push(key, value);
        self.bytes += key.len() + value.len();
    }

    fn finish(self) -> (EncodedOps, usize) {
        (self.page.finish().ops().clone(), self.bytes)
    }
}

impl Answer {
    /// The latest moment of reading: what the answer shows is published once that is.
    pub(crate) fn read_at(&self) -> Option<Position> {
        self.reads.iter().copied().max_by_key(|position| position.seq)
    }

    /// The messages, in order.
    pub(crate) fn into_messages(self) -> Vec<Message> {
        let Some(read_at) = self.read_at() else { return Vec::new() };
        let mut messages = Vec::new();
        for part in self.parts {
            match (messages.last_mut(), part) {
                (Some(Message::Compared(compared)), Part::Verdict(_, verdict)) => compared.verdicts.push(verdict),
                (_, Part::Verdict(start, verdict)) => {
                    messages.push(Message::Compared(Compared { read_at, verdicts: vec![verdict], start }));
                }
                (_, Part::Content(range, entries)) => {
                    let (entries, _) = entries.finish();
                    messages.push(Message::Ranges(Content { range, read_at, entries }));
                }
            }
        }
        messages
    }
}
