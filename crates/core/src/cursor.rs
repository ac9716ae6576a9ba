//! How far a slave has come: a position, and which ranges of content it is true of.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{KeyRange, KeyRanges, Position, Seq};

/// What a slave has of its master's history, committed in one write set with the data it speaks of.
///
/// While a slave copies or compares, `position` is the last record it went through, and [`Coverage`] tells for which
/// keys that holds. A slave decides from its cursor alone whether it is consistent, on whatever connection, to whatever
/// parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The last record that was applied to all that is covered.
    pub position: Position,
    /// For which keys that holds.
    pub coverage: Coverage,
}

/// The format of a stored cursor.
const FORMAT: u8 = 1;
/// In so many pieces a copy is told in a hello.
const MAX_COPIED: usize = 128;
/// And so many bytes of bounds.
const MAX_COPIED_BYTES: usize = 16 << 10;

impl Cursor {
    /// A cursor that covers everything.
    pub fn at(position: Position) -> Self {
        Self { position, coverage: Coverage::default() }
    }

    /// True if the data is exactly what the master held at `position`.
    pub fn is_consistent(&self) -> bool {
        self.coverage.consistent_at().is_some_and(|needed| self.position.seq >= needed)
    }

    /// As it is told to a master: see [`Coverage::for_hello`].
    #[must_use]
    pub fn for_hello(&self) -> Self {
        Self { position: self.position, coverage: self.coverage.for_hello() }
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

/// Which keys a slave has content of, while it copies or compares. The default stands for "everything, done".
///
/// Covered ranges may lie anywhere: a copy covers from the left, a comparison wherever something turned out to be
/// equal. One moment of reading is enough for all of them, the latest: every earlier one lies on the same chain of
/// digests, so that whoever has the latest in its history has them all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Coverage {
    filling: Option<Filling>,
    /// Covered, disjoint, in key order, never adjacent.
    covered: Vec<KeyRange>,
    consistent_at: Option<Position>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Filling {
    domain: KeyRange,
    fill: Fill,
}

/// How what is not covered is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Fill {
    /// The master sends page after page.
    Copy,
    /// The slave holds something there that may differ, and asks.
    Compare,
}

impl Coverage {
    /// A copy of `range` that has not begun.
    pub fn begin(range: KeyRange) -> Self {
        Self::new(range, Fill::Copy)
    }

    /// Nothing of `domain` is covered, all of it is to be filled in by `fill`.
    pub fn new(domain: KeyRange, fill: Fill) -> Self {
        Self { filling: Some(Filling { domain, fill }), covered: Vec::new(), consistent_at: None }
    }

    /// Nothing of `ranges` is covered, all of it is to be filled in by `fill`. What lies outside of them counts as covered:
    /// nothing is there, and nothing comes.
    pub fn within(ranges: &KeyRanges, fill: Fill) -> Self {
        Self { covered: ranges.complement().into(), ..Self::new(KeyRange::all(), fill) }
    }

    /// The same of other ranges: what is new in them is not covered yet, and what is not wanted any more counts as
    /// covered. `was` is what it was of.
    ///
    /// If much has to be filled in, in pieces, it is compared: what a copy has to tell its master about them is longer than
    /// a hello may be.
    #[must_use]
    pub fn moved(&self, was: &KeyRanges, ranges: &KeyRanges) -> Self {
        let held = match &self.filling {
            None => was.clone(),
            Some(_) => KeyRanges::new(self.covered.iter().cloned()).intersect(was),
        };
        let missing = ranges.without(&held);
        if missing.is_empty() && self.filling.is_none() {
            return Self::default();
        }
        let pieces = missing.as_slice().len() > MAX_COPIED || missing.bound_len() > MAX_COPIED_BYTES;
        let fill = if pieces { Fill::Compare } else { self.fill().unwrap_or(Fill::Copy) };
        Self { consistent_at: self.consistent_at, ..Self::within(&missing, fill) }
    }

    /// Everything is covered.
    pub fn is_complete(&self) -> bool {
        self.filling.is_none()
    }

    /// How the rest is filled; `None` when everything is covered.
    pub fn fill(&self) -> Option<Fill> {
        self.filling.as_ref().map(|filling| filling.fill)
    }

    /// The covered ranges, disjoint, in key order, adjacent ones as one.
    pub fn ranges(&self) -> &[KeyRange] {
        &self.covered
    }

    /// The first range that still has content to come, up to where something is covered again.
    pub fn rest(&self) -> Option<KeyRange> {
        self.holes().next()
    }

    /// What is not covered, in key order.
    pub fn holes(&self) -> impl Iterator<Item = KeyRange> + '_ {
        let everything = self.filling.as_ref().map(|filling| &filling.domain);
        let starts = everything.map(KeyRange::start).into_iter().map(Some);
        let starts = starts.chain(self.covered.iter().map(KeyRange::end));
        let ends = self.covered.iter().map(|covered| Some(covered.start().clone()));
        let ends = ends.chain(everything.map(|domain| domain.end().cloned()));
        // After a covered range without an end nothing can be missing.
        let gaps = starts.zip(ends).filter_map(|(start, end)| Some(KeyRange::new(start?.clone(), end)));
        gaps.filter(|gap| !gap.is_empty())
    }

    /// The latest moment at which any of the content was read; the whole lineage that the coverage stands on leads up
    /// to it. `None` before the first.
    pub fn read_at(&self) -> Option<Position> {
        self.consistent_at
    }

    /// From which record on the covered data is a state of the master, or `None` while content is missing.
    pub fn consistent_at(&self) -> Option<Seq> {
        if self.rest().is_some() {
            return None;
        }
        Some(self.consistent_at.map_or(Seq::ZERO, |position| position.seq))
    }

    /// True if records that touch `key` apply.
    pub fn covers(&self, key: &[u8]) -> bool {
        self.filling.is_none() || self.covered[..self.begun_by(key)].last().is_some_and(|range| range.contains(key))
    }

    /// The parts of `range` that are covered.
    pub fn clip(&self, range: &KeyRange) -> Vec<KeyRange> {
        if self.filling.is_none() {
            return vec![range.clone()];
        }
        let met = self.covered[self.begun_by(range.start()).saturating_sub(1)..].iter();
        let met = met.take_while(|covered| range.end().is_none_or(|end| covered.start() < end));
        met.map(|covered| covered.intersect(range)).filter(|part| !part.is_empty()).collect()
    }

    /// Notes that `range` holds what the master held at `read_at`, and merges it with what it touches. Returns false,
    /// and changes nothing, if it is empty, lies outside, or meets what is covered already.
    pub fn cover(&mut self, range: &KeyRange, read_at: Position) -> bool {
        let inside = self.filling.as_ref().is_some_and(|filling| range.intersect(&filling.domain) == *range);
        let index = self.begun_by(range.start());
        let before = index.checked_sub(1).map(|before| &self.covered[before]);
        let meets_before = before.is_some_and(|before| before.end().is_none_or(|end| end > range.start()));
        let after = self.covered.get(index);
        let meets_after = after.is_some_and(|after| range.end().is_none_or(|end| end > after.start()));
        if range.is_empty() || !inside || meets_before || meets_after {
            return false;
        }
        let joins_before = before.is_some_and(|before| before.end() == Some(range.start()));
        let joins_after = after.is_some_and(|after| range.end() == Some(after.start()));
        let start = before.filter(|_| joins_before).unwrap_or(range).start().clone();
        let end = after.filter(|_| joins_after).unwrap_or(range).end().cloned();
        let replaced = index - usize::from(joins_before)..index + usize::from(joins_after);
        self.covered.splice(replaced, [KeyRange::new(start, end)]);
        self.newer_until(read_at);
        true
    }

    /// As [`cover`](Self::cover), for a page of a copy: it must begin where the copy stands.
    pub fn advance(&mut self, page: &KeyRange, read_at: Position) -> bool {
        self.rest().is_some_and(|rest| rest.start() == page.start()) && self.cover(page, read_at)
    }

    /// Notes that some of what is covered is newer than the position, as new as `read_at` at most: it is a state of the
    /// master again once the stream has passed that.
    pub fn newer_until(&mut self, read_at: Position) {
        if self.filling.is_none() {
            let domain = KeyRange::all();
            self.covered = vec![domain.clone()];
            self.filling = Some(Filling { domain, fill: Fill::Copy });
        }
        if self.consistent_at.is_none_or(|earlier| earlier.seq <= read_at.seq) {
            self.consistent_at = Some(read_at);
        }
    }

    /// What a master needs to know to go on with it. To a comparison that is the lineage alone, since it is the slave
    /// who asks for what is missing: a hello stays small, however much the coverage is in pieces.
    #[must_use]
    pub fn for_hello(&self) -> Self {
        match self.fill() {
            Some(Fill::Compare) => Self { covered: Vec::new(), ..self.clone() },
            _ => self.clone(),
        }
    }

    // How many covered ranges begin at or before `key`.
    fn begun_by(&self, key: &[u8]) -> usize {
        self.covered.partition_point(|range| &range.start()[..] <= key)
    }
}

/// As it is stored and sent.
#[derive(Serialize, Deserialize)]
struct Parts {
    filling: Option<Filling>,
    covered: Vec<KeyRange>,
    consistent_at: Option<Position>,
}

impl From<Coverage> for Parts {
    fn from(Coverage { filling, covered, consistent_at }: Coverage) -> Self {
        Self { filling, covered, consistent_at }
    }
}

impl TryFrom<Parts> for Coverage {
    type Error = &'static str;

    // It may come from a peer: what is looked up by halving must be in order.
    fn try_from(Parts { filling, covered, consistent_at }: Parts) -> Result<Self, &'static str> {
        let Some(Filling { domain, .. }) = &filling else {
            let empty = covered.is_empty() && consistent_at.is_none();
            return empty.then(Self::default).ok_or("a coverage of everything has parts");
        };
        let inside = |range: &KeyRange| !range.is_empty() && range.intersect(domain) == *range;
        let apart = |pair: &[KeyRange]| pair[0].end().is_some_and(|end| end < pair[1].start());
        if domain.is_empty() || !covered.iter().all(inside) || !covered.windows(2).all(apart) {
            return Err("the ranges of a coverage are not in order");
        }
        Ok(Self { filling, covered, consistent_at })
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
    fn what_is_newer_than_the_position_is_no_state_until_the_stream_has_passed_it() {
        let mut cursor = Cursor::at(position(5));
        cursor.coverage.newer_until(position(8));
        assert!(cursor.coverage.covers(b"a") && cursor.coverage.rest().is_none());
        assert!(!cursor.is_consistent() && !cursor.coverage.is_complete());
        cursor.coverage.newer_until(position(7));
        assert_eq!(Cursor::from_bytes(&cursor.to_bytes()), Some(cursor.clone()));
        cursor.position = position(7);
        assert!(!cursor.is_consistent(), "the latest moment of reading counts");
        cursor.position = position(8);
        assert!(cursor.is_consistent());
    }

    #[test]
    fn a_page_that_leaves_a_gap_is_refused() {
        let mut coverage = Coverage::begin(KeyRange::all());
        assert!(!coverage.advance(&KeyRange::from_bounds("b"..), position(1)));
        assert!(coverage.clip(&KeyRange::all()).is_empty());
    }

    #[test]
    fn a_hello_tells_how_far_a_copy_is_and_of_a_comparison_the_lineage_alone() {
        let begun = |fill| {
            let mut coverage = Coverage::new(KeyRange::all(), fill);
            assert!(coverage.cover(&KeyRange::from_bounds(.."m"), position(3)));
            Cursor { position: position(5), coverage }
        };
        let (copying, comparing) = (begun(Fill::Copy), begun(Fill::Compare));
        assert_eq!(copying.for_hello(), copying);
        let told = comparing.for_hello();
        assert_eq!((told.position, told.coverage.read_at()), (position(5), Some(position(3))));
        assert_eq!((told.coverage.fill(), told.coverage.ranges()), (Some(Fill::Compare), &[][..]));
    }

    #[test]
    fn a_cursor_survives_its_bytes_and_damage_is_noticed() {
        let cursor = Cursor { position: position(5), coverage: Coverage::begin(KeyRange::prefix("users/")) };
        let bytes = cursor.to_bytes();
        assert_eq!(Cursor::from_bytes(&bytes), Some(cursor));
        assert_eq!(Cursor::from_bytes(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Cursor::from_bytes(b""), None);
    }

    fn only(key: u8) -> KeyRange {
        KeyRange::from_bounds([key]..[key + 1])
    }

    #[test]
    fn a_set_that_is_changed_misses_what_is_new_and_nothing_else() {
        let set = |list: &[(&'static str, &'static str)]| {
            KeyRanges::new(list.iter().map(|(from, to)| KeyRange::from_bounds(*from..*to)))
        };
        let (was, grown) = (set(&[("b", "d"), ("m", "p")]), set(&[("a", "c"), ("m", "r")]));
        let whole = Coverage::default();
        let moved = whole.moved(&was, &grown);
        assert_eq!(KeyRanges::new(moved.holes()), set(&[("a", "b"), ("p", "r")]));
        assert_eq!(moved.fill(), Some(Fill::Copy));
        assert!(moved.covers(b"b") && moved.covers(b"x"), "what is there, and what is not wanted");
        // Back again, before any of it was copied: nothing is missing.
        assert_eq!(KeyRanges::new(moved.moved(&grown, &was).holes()), set(&[("c", "d")]));
        assert!(whole.moved(&was, &set(&[("b", "c")])).is_complete());
        assert!(whole.moved(&was, &was).is_complete());
        // In the middle of a copy, what was copied of it stays so, and so does the moment of reading.
        let mut begun = Coverage::within(&was, Fill::Copy);
        assert!(begun.advance(&KeyRange::from_bounds("b".."c"), position(7)));
        let moved = begun.moved(&was, &grown);
        assert_eq!(KeyRanges::new(moved.holes()), set(&[("a", "b"), ("m", "r")]));
        assert_eq!(moved.read_at(), Some(position(7)));
        // Many pieces are compared: a hello stays small.
        let few = KeyRanges::new((0u8..100).map(|key| KeyRange::only([key, 1])));
        assert_eq!(whole.moved(&few, &KeyRanges::all()).fill(), Some(Fill::Copy));
        let pieces = KeyRanges::new((0u8..0xF0).flat_map(|key| [KeyRange::only([key, 1]), KeyRange::only([key, 9])]));
        assert_eq!(whole.moved(&pieces, &KeyRanges::all()).fill(), Some(Fill::Compare));
        let bytes = Cursor { position: position(9), coverage: whole.moved(&pieces, &grown) }.to_bytes();
        assert!(Cursor::from_bytes(&bytes).is_some());
        // And so are few whose bounds are long.
        let from = |len: usize, first: u8| KeyRange::from_bounds(vec![first; len]..vec![first + 1; len]);
        let long = |len: usize| whole.moved(&KeyRanges::new([]), &KeyRanges::new([from(len, 1), from(len, 5)])).fill();
        assert_eq!(long(MAX_COPIED_BYTES / 4), Some(Fill::Copy));
        assert_eq!(long(MAX_COPIED_BYTES / 4 + 1), Some(Fill::Compare));
    }

    #[test]
    fn what_meets_covered_ground_or_lies_outside_is_refused() {
        let mut coverage = Coverage::new(KeyRange::from_bounds("b".."y"), Fill::Compare);
        assert!(coverage.cover(&KeyRange::from_bounds("d".."f"), position(3)));
        for (from, to) in [("c", "e"), ("e", "g"), ("d", "f"), ("c", "g"), ("a", "c"), ("x", "z"), ("h", "h")] {
            let before = coverage.clone();
            assert!(!coverage.cover(&KeyRange::from_bounds(from..to), position(4)), "{from} to {to}");
            assert_eq!(coverage, before);
        }
        assert!(!Coverage::default().cover(&KeyRange::all(), position(4)), "everything is covered");
    }

    #[test]
    fn a_coverage_that_is_out_of_order_is_no_cursor() {
        let mut covered = vec![KeyRange::from_bounds("a".."c"), KeyRange::from_bounds("d".."e")];
        let filling = Some(Filling { domain: KeyRange::all(), fill: Fill::Compare });
        let read = |covered: &[KeyRange]| {
            let parts = Parts { filling: filling.clone(), covered: covered.to_vec(), consistent_at: None };
            Cursor::from_bytes(&postcard::to_extend(&(position(1), parts), vec![FORMAT]).unwrap())
        };
        assert!(read(&covered).is_some());
        covered.reverse();
        assert!(read(&covered).is_none());
        assert!(read(&[KeyRange::from_bounds("a".."c"), KeyRange::from_bounds("c".."e")]).is_none());
        assert!(read(&[KeyRange::all(), KeyRange::from_bounds("c".."e")]).is_none());
        assert!(read(&[KeyRange::empty()]).is_none());
    }

    proptest::proptest! {
        // Pieces come in any order; a set of keys is the model.
        #[test]
        fn ranges_anywhere_add_up(pieces in proptest::collection::vec((0u8..40, 1u8..6, 0u64..9), 0..40)) {
            let mut coverage = Coverage::new(KeyRange::from_bounds([1u8]..[40]), Fill::Compare);
            let mut model = std::collections::BTreeSet::new();
            let mut latest = None;
            for (from, len, seq) in pieces {
                let keys: Vec<u8> = (from..from + len).collect();
                let fits = keys.iter().all(|key| (1..40).contains(key) && !model.contains(key));
                let piece = KeyRange::from_bounds([from]..[from + len]);
                proptest::prop_assert_eq!(coverage.cover(&piece, position(seq)), fits);
                if fits {
                    model.extend(keys);
                    latest = latest.max(Some(seq));
                }
                let bytes = Cursor { position: position(1), coverage: coverage.clone() }.to_bytes();
                proptest::prop_assert_eq!(&Cursor::from_bytes(&bytes).unwrap().coverage, &coverage);
            }
            proptest::prop_assert!(coverage.ranges().windows(2).all(|pair| pair[0].end().unwrap() < pair[1].start()));
            let holes: Vec<_> = coverage.holes().collect();
            for key in 0..45u8 {
                let covered = model.contains(&key);
                proptest::prop_assert_eq!(coverage.covers(&[key]), covered);
                proptest::prop_assert_eq!(coverage.ranges().iter().any(|range| range.contains(&[key])), covered);
                proptest::prop_assert_eq!(!coverage.clip(&only(key)).is_empty(), covered);
                let missing = holes.iter().any(|hole| hole.contains(&[key]));
                proptest::prop_assert_eq!(missing, (1..40).contains(&key) && !covered);
            }
            let clipped = coverage.clip(&KeyRange::from_bounds([7u8]..[23]));
            for key in 0..45u8 {
                let inside = clipped.iter().any(|part| part.contains(&[key]));
                proptest::prop_assert_eq!(inside, (7..23).contains(&key) && model.contains(&key));
            }
            proptest::prop_assert_eq!(coverage.read_at().map(|position| position.seq.as_u64()), latest);
            proptest::prop_assert_eq!(coverage.consistent_at().is_some(), holes.is_empty());
        }
    }

    #[test]
    fn as_many_pieces_as_a_hello_may_tell_are_copied_and_more_are_compared() {
        let pieces = |count: usize| KeyRanges::new((0..count).map(|n| KeyRange::prefix(format!("{n:05}/"))));
        let fill = |ranges: &KeyRanges| Coverage::default().moved(&KeyRanges::new([]), ranges).fill();
        assert_eq!(fill(&pieces(MAX_COPIED)), Some(Fill::Copy));
        assert_eq!(fill(&pieces(MAX_COPIED + 1)), Some(Fill::Compare));
        let long = |len: usize| KeyRanges::from(KeyRange::from_bounds(vec![1; len]..vec![2]));
        assert_eq!(fill(&long(MAX_COPIED_BYTES - 1)), Some(Fill::Copy));
        assert_eq!(fill(&long(MAX_COPIED_BYTES)), Some(Fill::Compare));
    }

    #[test]
    fn a_coverage_of_everything_has_no_parts() {
        let covered = vec![KeyRange::prefix("a")];
        for (covered, consistent_at) in
            [(covered.clone(), None), (Vec::new(), Some(position(5))), (covered, Some(position(5)))]
        {
            let parts = Parts { filling: None, covered, consistent_at };
            assert!(Coverage::try_from(parts).is_err());
        }
        assert_eq!(
            Coverage::try_from(Parts { filling: None, covered: Vec::new(), consistent_at: None }),
            Ok(Coverage::default())
        );
    }
}
