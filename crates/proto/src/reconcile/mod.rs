//! Comparing ranges: a slave that fell behind the log receives only what differs.
//!
//! The slave cuts what it holds into pieces and sends, for each, its bounds, a count and a fingerprint. The master
//! reads the same ranges and answers in order: equal; differs, ask again in smaller pieces; or the content, where that
//! is short, or where the slave holds next to nothing and there is nothing to compare. Pieces are small from the start
//! (256 entries), since the first pass costs less than a thousandth of the data, and a piece is what the master reads
//! without a record in between: depth is two or three, whatever the size of the store.
//!
//! What is here is pure: pages of two stores go in, questions, verdicts and content come out.
//!
//! A fingerprint is BLAKE3, cut to 128 bits, over the entries as they are encoded everywhere: each as a put, lengths
//! before key and value, in key order. What a page holds is hashed as it lies there.

mod comparison;
mod examination;
mod pieces;
mod probe;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use replikv_core::{Fingerprint, KeyRange, Position};

pub(crate) use self::comparison::Comparison;
pub(crate) use self::examination::{Answer, Asked, Examination};
pub use self::probe::{Checked, DifferenceKind, Differing, Held, Probe, ProbeCheck, Probed, Summary};

/// How many entries a piece has at most when a store is cut into pieces first.
pub(crate) const PIECE_ENTRIES: u64 = 256;
/// How many bytes, about: entries may be large.
pub(crate) const PIECE_BYTES: usize = 64 << 10;
/// In how many parts a piece that differs is asked for again.
pub(crate) const FAN_OUT: u64 = 8;
/// A range that differs and holds no more bytes than this on the master is sent instead of split.
pub(crate) const LEAF_BYTES: usize = 1024;
/// How many ranges one question has at most.
pub(crate) const MAX_RANGES: usize = 4096;
/// How many entries all ranges of one question hold at most, on the slave.
pub(crate) const MAX_ENTRIES: u64 = 64 << 10;
/// So many ranges are asked about at once, while others wait for their answer.
pub(crate) const GATHER_RANGES: usize = 512;
/// Or so many entries: what the master reads for one answer, a few times over.
pub(crate) const GATHER_ENTRIES: u64 = 8 << 10;
/// How many pieces a slave has in hand at most: asked, to be asked, or to be cut. It bounds the number of holes in its
/// coverage, and so its cursor.
pub(crate) const MAX_PIECES: usize = 4096;
/// How many bytes the bounds of these have at most, about.
pub(crate) const MAX_BOUND_BYTES: usize = 256 << 10;

/// What a slave holds in a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSummary {
    /// The keys.
    pub range: KeyRange,
    /// How many entries.
    pub count: u64,
    /// What they come to.
    pub fingerprint: Fingerprint,
}

/// A slave's question: what it holds in a number of ranges, none of which touches another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The ranges, in the order in which they are answered.
    pub ranges: Vec<RangeSummary>,
}

/// The answer to the next ranges that were asked, as far as no content is needed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Compared {
    /// The last record that the master had handed to its store when it had read them.
    pub read_at: Position,
    /// In order. What follows them is told by content or by the next of these messages.
    pub verdicts: Vec<Verdict>,
    /// Where the range begins that the first of them is about: the slave refuses them if it waits for another one's.
    pub start: Bytes,
}

/// What a master says of ranges that follow one another in a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Verdict {
    /// So many hold the same on both sides.
    Equal(u32),
    /// So many differ: ask again in smaller pieces.
    Split(u32),
}

impl Verdict {
    fn count(self) -> usize {
        let (Self::Equal(count) | Self::Split(count)) = self;
        usize::try_from(count).unwrap_or(usize::MAX)
    }
}

/// Hashes entries into a [`Fingerprint`].
#[derive(Debug, Clone, Default)]
struct Fingerprinter(blake3::Hasher);

impl Fingerprinter {
    /// Adds entries as they are encoded.
    fn update(&mut self, entries: &[u8]) {
        self.0.update(entries);
    }

    fn finish(&self) -> Fingerprint {
        let mut bytes = [0; 16];
        self.0.finalize_xof().fill(&mut bytes);
        Fingerprint::from_bytes(bytes)
    }
}

// The shortest key that lies above `below` and not above `above`: of random keys, three or four bytes.
fn separator(below: &[u8], above: &[u8]) -> Bytes {
    let common = below.iter().zip(above).take_while(|(a, b)| a == b).count();
    Bytes::copy_from_slice(&above[..above.len().min(common + 1)])
}

/// How many bytes the bounds of a range have.
pub(crate) fn bound_len(range: &KeyRange) -> usize {
    range.start().len() + range.end().map_or(0, Bytes::len)
}

// True if `range` ends where `next` begins.
fn joins(range: &KeyRange, next: &KeyRange) -> bool {
    range.end() == Some(next.start())
}

// True if `range` ends at `end` or before.
fn ends_by(range: &KeyRange, end: Option<&Bytes>) -> bool {
    end.is_none_or(|end| range.end().is_some_and(|own| own <= end))
}
