//! How far a slave has come: a position, and which ranges of content are copied so far.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{KeyRange, Position, Seq};

/// What a slave has of its master's history, committed in one write set with the data it speaks of.
///
/// While a slave copies, `position` is the last record it went through, and [`Coverage`] tells for which keys that
/// holds. A slave decides from its cursor alone whether it is consistent, on whatever connection, to whatever
/// parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The last record that was applied to all that is covered.
    pub position: Position,
    /// What is covered; empty when everything is.
    pub coverage: Coverage,
}

/// The format of a stored cursor.
const FORMAT: u8 = 1;

impl Cursor {
    /// A cursor that covers everything.
    pub fn at(position: Position) -> Self {
        Self { position, coverage: Coverage::default() }
    }

    /// True if the data is exactly what the master held at `position`.
    pub fn is_consistent(&self) -> bool {
        self.coverage.consistent_at().is_some_and(|needed| self.position.seq >= needed)
    }

    /// The stored form: a format byte, then postcard.
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_extend(self, vec![FORMAT]).map_or_else(|_| Bytes::new(), Bytes::from)
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; `None` if the bytes are of another format or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&FORMAT, rest) => match postcard::take_from_bytes(rest) {
                Ok((cursor, [])) => Some(cursor),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The ranges of content that a slave is copying. The empty coverage stands for "everything, done".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage(Vec<CopyRange>);

impl Coverage {
    /// A copy of `range` that has not begun.
    pub fn begin(range: KeyRange) -> Self {
        Self(vec![CopyRange { range, progress: CopyProgress::UpTo(Bytes::new()), consistent_at: None }])
    }

    /// Everything is covered.
    pub fn is_complete(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, disjoint, in key order.
    pub fn ranges(&self) -> &[CopyRange] {
        &self.0
    }

    /// The first range that still has content to copy, and what of it.
    pub fn rest(&self) -> Option<KeyRange> {
        self.0.iter().find_map(CopyRange::rest)
    }

    /// From which record on the covered data is a state of the master, or `None` while content is missing.
    pub fn consistent_at(&self) -> Option<Seq> {
        let mut needed = Seq::ZERO;
        for range in &self.0 {
            if range.rest().is_some() {
                return None;
            }
            needed = needed.max(range.consistent_at.map_or(Seq::ZERO, |position| position.seq));
        }
        Some(needed)
    }

    /// True if records that touch `key` apply.
    pub fn covers(&self, key: &[u8]) -> bool {
        self.0.is_empty() || self.0.iter().any(|range| range.covered().contains(key))
    }

    /// The parts of `range` that are covered.
    pub fn clip(&self, range: &KeyRange) -> Vec<KeyRange> {
        if self.0.is_empty() {
            return vec![range.clone()];
        }
        let parts = self.0.iter().map(|copied| copied.covered().intersect(range));
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// Notes that the content of `page` was copied as it stood at `read_at`. `page` must begin where the copy of
    /// its range stands; returns false, and changes nothing, if it does not.
    pub fn advance(&mut self, page: &KeyRange, read_at: Position) -> bool {
        let Some(copying) = self.0.iter_mut().find(|range| range.rest().is_some()) else { return false };
        let Some(rest) = copying.rest() else { return false };
        if rest.start() != page.start() || &page.intersect(&rest) != page {
            return false;
        }
        copying.progress = match page.end() {
            end if end == rest.end() => CopyProgress::Whole,
            Some(end) => CopyProgress::UpTo(end.clone()),
            None => CopyProgress::Whole,
        };
        if copying.consistent_at.is_none_or(|earlier| earlier.seq <= read_at.seq) {
            copying.consistent_at = Some(read_at);
        }
        true
    }
}

/// One range of content that is being copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRange {
    /// The keys.
    pub range: KeyRange,
    /// How far the copy has come.
    pub progress: CopyProgress,
    /// The latest moment at which a page of it was read: once the stream has passed it, the range is a state of
    /// the master. `None` before the first page.
    pub consistent_at: Option<Position>,
}

/// How far the copy of a range has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyProgress {
    /// Keys below this one are copied. Empty: none.
    UpTo(Bytes),
    /// All are.
    Whole,
}

impl CopyRange {
    /// The part that is copied; records apply to it.
    pub fn covered(&self) -> KeyRange {
        match &self.progress {
            CopyProgress::Whole => self.range.clone(),
            CopyProgress::UpTo(key) if key.is_empty() => KeyRange::empty(),
            CopyProgress::UpTo(key) => KeyRange::new(self.range.start().clone(), Some(key.clone())),
        }
    }

    /// The part that is not, if any.
    pub fn rest(&self) -> Option<KeyRange> {
        match &self.progress {
            CopyProgress::Whole => None,
            CopyProgress::UpTo(key) if key.is_empty() => Some(self.range.clone()),
            CopyProgress::UpTo(key) => Some(KeyRange::new(key.clone(), self.range.end().cloned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, Epoch, SourceId};

    fn position(seq: u64) -> Position {
        Position {
            source: SourceId::from_bytes([7; 16]),
            epoch: Epoch { number: 1, nonce: 9 },
            seq: Seq::new(seq),
            digest: Digest::from_bytes([1; 16]),
        }
    }

    #[test]
    fn a_copy_is_consistent_once_the_stream_has_passed_the_last_moment_of_reading() {
        let mut cursor = Cursor { position: position(5), coverage: Coverage::begin(KeyRange::all()) };
        assert!(!cursor.is_consistent());
        assert!(cursor.coverage.advance(&KeyRange::new(Bytes::new(), Some(Bytes::from_static(b"m"))), position(8)));
        assert!(cursor.coverage.covers(b"a") && !cursor.coverage.covers(b"m"));
        assert!(!cursor.is_consistent());
        let rest = cursor.coverage.rest().unwrap();
        assert!(cursor.coverage.advance(&rest, position(9)));
        assert!(!cursor.is_consistent(), "the stream stands at 5, the last page was read at 9");
        cursor.position = position(9);
        assert!(cursor.is_consistent());
    }

    #[test]
    fn a_page_that_leaves_a_gap_is_refused() {
        let mut coverage = Coverage::begin(KeyRange::all());
        assert!(!coverage.advance(&KeyRange::from_bounds("b"..), position(1)));
        assert!(coverage.covered_nothing());
    }

    impl Coverage {
        fn covered_nothing(&self) -> bool {
            self.clip(&KeyRange::all()).is_empty()
        }
    }

    #[test]
    fn a_cursor_survives_its_bytes_and_damage_is_noticed() {
        let cursor = Cursor { position: position(5), coverage: Coverage::begin(KeyRange::prefix("users/")) };
        let bytes = cursor.to_bytes();
        assert_eq!(Cursor::from_bytes(&bytes), Some(cursor));
        assert_eq!(Cursor::from_bytes(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Cursor::from_bytes(b""), None);
    }
}
