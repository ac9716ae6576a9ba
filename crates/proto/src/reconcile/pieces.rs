//! Cutting a range into pieces, page by page.

use bytes::Bytes;
use replikv_core::{EncodedOps, KeyRange, Op};

use super::{Fingerprinter, RangeSummary, separator};

/// Cuts a range into pieces of so many entries and bytes.
#[derive(Debug)]
pub(super) struct Pieces {
    /// What was not read yet.
    unread: Option<KeyRange>,
    end: Option<Bytes>,
    max_entries: u64,
    max_bytes: usize,
    start: Bytes,
    count: u64,
    bytes: usize,
    hash: Fingerprinter,
    last: Bytes,
}

impl Pieces {
    pub(super) fn new(range: KeyRange, max_entries: u64, max_bytes: usize) -> Self {
        Self {
            start: range.start().clone(),
            end: range.end().cloned(),
            unread: Some(range),
            max_entries: max_entries.max(1),
            max_bytes,
            count: 0,
            bytes: 0,
            hash: Fingerprinter::default(),
            last: Bytes::new(),
        }
    }

    /// What to read next; `None` once all of it is cut.
    pub(super) fn unread(&self) -> Option<&KeyRange> {
        self.unread.as_ref()
    }

    /// A page of what is unread: the range it covers, from the start on, and its entries.
    pub(super) fn push(&mut self, covered: &KeyRange, entries: &EncodedOps, out: &mut Vec<RangeSummary>) {
        let buffer = entries.as_bytes();
        // What lies between the last cut and here belongs to the piece, and is hashed at once.
        let mut hashed = 0;
        for (op, span) in entries.spans() {
            let Op::Put { key, .. } = op else { continue };
            if self.count >= self.max_entries || (self.count > 0 && self.bytes + span.len() > self.max_bytes) {
                self.hash.update(&buffer[hashed..span.start]);
                hashed = span.start;
                let boundary = separator(&self.last, key);
                out.push(self.cut(Some(boundary)));
            }
            self.count += 1;
            self.bytes += span.len();
            self.last = buffer.slice_ref(key);
        }
        self.hash.update(&buffer[hashed..]);
        // The last key must not pin its page.
        self.last = Bytes::copy_from_slice(&self.last);
        let rest = covered.end().map(|end| KeyRange::new(end.clone(), self.end.clone()));
        self.unread = rest.filter(|rest| !rest.is_empty());
        if self.unread.is_none() {
            let end = self.end.clone();
            out.push(self.cut(end));
        }
    }

    fn cut(&mut self, end: Option<Bytes>) -> RangeSummary {
        let fingerprint = self.hash.finish();
        let next = end.clone().unwrap_or_default();
        let start = std::mem::replace(&mut self.start, next);
        let count = std::mem::take(&mut self.count);
        self.hash = Fingerprinter::default();
        self.bytes = 0;
        RangeSummary { range: KeyRange::new(start, end), count, fingerprint }
    }
}
