//! Sets of key ranges, in one normal form.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::large::{OpsPart, OwnedPart};
use crate::{EncodedOps, KeyRange, Op};

/// A set of keys, as ranges: in key order, none of them empty, none touching another.
///
/// ```
/// use replikv_core::{KeyRange, KeyRanges};
///
/// let ranges = KeyRanges::new([KeyRange::prefix("users/"), KeyRange::prefix("orders/"), KeyRange::prefix("users/a")]);
/// assert_eq!(ranges.iter().count(), 2);
/// assert!(ranges.contains(b"users/bob") && !ranges.contains(b"invoices/7"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<KeyRange>", into = "Vec<KeyRange>")]
pub struct KeyRanges(Vec<KeyRange>);

impl KeyRanges {
    /// What lies in any of `ranges`, which may come in any order and overlap.
    pub fn new(ranges: impl IntoIterator<Item = KeyRange>) -> Self {
        let mut ranges: Vec<KeyRange> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_by(|a, b| a.start().cmp(b.start()));
        let mut joined: Vec<KeyRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.end().is_none_or(|end| range.start() <= end) => {
                    if last.end().is_some_and(|end| range.end().is_none_or(|other| other > end)) {
                        *last = KeyRange::new(last.start().clone(), range.end().cloned());
                    }
                }
                _ => joined.push(range),
            }
        }
        Self(joined)
    }

    /// Every key.
    pub fn all() -> Self {
        Self(vec![KeyRange::all()])
    }

    /// No key.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// True if every key lies in it.
    pub fn is_all(&self) -> bool {
        matches!(&self.0[..], [range] if *range == KeyRange::all())
    }

    /// True if no key lies in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, in key order.
    pub fn iter(&self) -> std::slice::Iter<'_, KeyRange> {
        self.0.iter()
    }

    /// The ranges, in key order.
    pub fn as_slice(&self) -> &[KeyRange] {
        &self.0
    }

    /// How many bytes the bounds of all ranges have.
    pub fn bound_len(&self) -> usize {
        self.0.iter().map(|range| range.start().len() + range.end().map_or(0, Bytes::len)).sum()
    }

    /// True if `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        let begun = self.begun_by(key);
        begun.checked_sub(1).and_then(|last| self.0.get(last)).is_some_and(|range| range.contains(key))
    }

    /// True if every key of `range` lies in it.
    pub fn covers(&self, range: &KeyRange) -> bool {
        range.is_empty() || self.0.iter().any(|held| held.intersect(range) == *range)
    }

    /// The parts of `range` that lie in it, in key order.
    pub fn clip<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = KeyRange> + 'a {
        let first = self.begun_by(range.start()).saturating_sub(1);
        let met = self.0.iter().skip(first);
        let met = met.take_while(|held| range.end().is_none_or(|end| held.start() < end));
        met.map(|held| held.intersect(range)).filter(|part| !part.is_empty())
    }

    /// What lies in both.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        Self::new(self.0.iter().flat_map(|range| other.clip(range)))
    }

    /// What lies in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::new(self.0.iter().chain(&other.0).cloned())
    }

    /// What lies outside.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut outside = Vec::with_capacity(self.0.len() + 1);
        let mut from = Some(Bytes::new());
        for range in &self.0 {
            if let Some(start) = from.take().filter(|start| start < range.start()) {
                outside.push(KeyRange::new(start, Some(range.start().clone())));
            }
            from = range.end().cloned();
        }
        outside.extend(from.map(|start| KeyRange::new(start, None)));
        Self(outside)
    }

    /// What lies in it, and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.intersect(&other.complement())
    }

    /// A range that holds the same keys of this set as `range` does, and whose bounds tell nothing of what lies outside: a
    /// bound of `range` stays if it lies within one of the ranges; where it does not, a key of the gap stands for it that
    /// depends on the set alone. `None` if no key of the set lies in `range`.
    ///
    /// Its bounds are at most one byte longer than those of `range`.
    pub fn veil(&self, range: &KeyRange) -> Option<KeyRange> {
        let (start, end) = {
            let mut parts = self.clip(range);
            let first = parts.next()?;
            let last = parts.last();
            let end = last.as_ref().unwrap_or(&first).end().cloned();
            (first.start().clone(), end)
        };
        let start = self.gap_before(&start).unwrap_or(start);
        let end = end.and_then(|end| self.gap_after(&end).unwrap_or(Some(end)));
        Some(KeyRange::new(start, end))
    }

    // If a range begins with `start`: a key of the gap before it, as short as it can be.
    fn gap_before(&self, start: &Bytes) -> Option<Bytes> {
        let index = self.0.partition_point(|range| range.start() < start);
        self.0.get(index).filter(|range| range.start() == start)?;
        let before = index.checked_sub(1).and_then(|before| self.0.get(before)).and_then(KeyRange::end);
        Some(before.map_or_else(Bytes::new, |end| shortest_from(end, start)))
    }

    // If a range ends with `end`: a key of the gap after it, as short as it can be; none after the last one.
    fn gap_after(&self, end: &Bytes) -> Option<Option<Bytes>> {
        let index = self.0.partition_point(|range| range.end().is_some_and(|other| other < end));
        self.0.get(index).filter(|range| range.end() == Some(end))?;
        Some(self.0.get(index + 1).map(|next| shortest_from(end, next.start())))
    }

    // How many ranges begin at or before `key`.
    fn begun_by(&self, key: &[u8]) -> usize {
        self.0.partition_point(|range| &range.start()[..] <= key)
    }
}

impl Default for KeyRanges {
    fn default() -> Self {
        Self::all()
    }
}

impl From<KeyRange> for KeyRanges {
    fn from(range: KeyRange) -> Self {
        Self::new([range])
    }
}

impl<const N: usize> From<[KeyRange; N]> for KeyRanges {
    fn from(ranges: [KeyRange; N]) -> Self {
        Self::new(ranges)
    }
}

impl<'a> IntoIterator for &'a KeyRanges {
    type Item = &'a KeyRange;
    type IntoIter = std::slice::Iter<'a, KeyRange>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<KeyRange> for KeyRanges {
    fn from_iter<I: IntoIterator<Item = KeyRange>>(ranges: I) -> Self {
        Self::new(ranges)
    }
}

impl From<KeyRanges> for Vec<KeyRange> {
    fn from(ranges: KeyRanges) -> Self {
        ranges.0
    }
}

impl TryFrom<Vec<KeyRange>> for KeyRanges {
    type Error = &'static str;

    fn try_from(ranges: Vec<KeyRange>) -> Result<Self, &'static str> {
        let apart = |pair: &[KeyRange]| match pair {
            [one, next] => one.end().is_some_and(|end| end < next.start()),
            _ => false,
        };
        if ranges.iter().any(KeyRange::is_empty) || !ranges.windows(2).all(apart) {
            return Err("the ranges of a set are not in order");
        }
        Ok(Self(ranges))
    }
}

/// `first..last`, or `first..` or `..last`, as text; what is not printable is escaped.
impl std::fmt::Display for KeyRanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let end = range.end().map_or_else(String::new, |end| end.escape_ascii().to_string());
            write!(f, "{comma}{}..{end}", range.start().escape_ascii())?;
        }
        Ok(())
    }
}

// The shortest beginning of `key` that is not below `from`, which is.
fn shortest_from(from: &Bytes, key: &Bytes) -> Bytes {
    let shared = from.iter().zip(key).take_while(|(a, b)| a == b).count();
    let len = if shared == from.len() { shared } else { shared + 1 };
    key.slice(..len.min(key.len()))
}

impl EncodedOps {
    /// The operations that touch keys of `ranges`, in order. Range deletes are as [`KeyRanges::veil`] leaves them. Where
    /// all of it lies within, it is shared.
    #[must_use]
    pub fn within(&self, ranges: &KeyRanges) -> Self {
        if ranges.is_all() {
            return self.clone();
        }
        let mut kept = Vec::new();
        for part in self.parts() {
            match part {
                OpsPart::Put(put) if ranges.contains(put.key()) => kept.push(OwnedPart::Put(put.clone())),
                OpsPart::Put(_) => {}
                OpsPart::Ops(ops) => {
                    let mut buffer = BytesMut::new();
                    for op in ops {
                        match op {
                            Op::Put { key, .. } | Op::Delete { key } if ranges.contains(key) => {
                                op.encode_into(&mut buffer);
                            }
                            Op::Put { .. } | Op::Delete { .. } => {}
                            Op::DeleteRange { start, end } => {
                                let range =
                                    KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                                if let Some(veiled) = ranges.veil(&range) {
                                    Op::delete_range(&veiled).encode_into(&mut buffer);
                                }
                            }
                        }
                    }
                    if !buffer.is_empty() {
                        kept.push(OwnedPart::Ops(Self::trusted(buffer.freeze())));
                    }
                }
            }
        }
        Self::from_parts(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(0xFF)], 0..4)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), proptest::option::of(key())).prop_map(|(start, end)| KeyRange::new(start, end.map(Bytes::from)))
    }

    fn ranges() -> impl Strategy<Value = KeyRanges> {
        proptest::collection::vec(range(), 0..5).prop_map(KeyRanges::new)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        #[test]
        fn sets_of_ranges_are_sets_of_keys(
            list in proptest::collection::vec(range(), 0..5),
            other in ranges(),
            clipped in range(),
            key in key(),
        ) {
            let set = KeyRanges::new(list.clone());
            let held = list.iter().any(|range| range.contains(&key));
            prop_assert_eq!(set.contains(&key), held);
            prop_assert_eq!(set.complement().contains(&key), !held);
            prop_assert_eq!(set.complement().complement(), set.clone());
            prop_assert_eq!(set.intersect(&other).contains(&key), held && other.contains(&key));
            prop_assert_eq!(set.union(&other).contains(&key), held || other.contains(&key));
            prop_assert_eq!(set.without(&other).contains(&key), held && !other.contains(&key));
            prop_assert_eq!(set.clip(&clipped).any(|part| part.contains(&key)), held && clipped.contains(&key));
            prop_assert_eq!(KeyRanges::try_from(Vec::from(set.clone())), Ok(set.clone()));
            prop_assert_eq!(set.covers(&clipped), KeyRanges::from(clipped).without(&set).is_empty());
        }

        #[test]
        fn a_veiled_range_means_the_same_within_and_tells_nothing_else(
            set in ranges(),
            range in range(),
            other in range(),
            key in key(),
        ) {
            let veiled = set.veil(&range);
            let holds = |range: &Option<KeyRange>| range.as_ref().is_some_and(|range| range.contains(&key));
            prop_assert!(!set.contains(&key) || holds(&veiled) == range.contains(&key), "{veiled:?}");
            let Some(veiled) = veiled else { return Ok(()) };
            prop_assert!(veiled.start().len() <= range.start().len() + 1, "{veiled:?}");
            let len = |range: &KeyRange| range.end().map_or(0, Bytes::len);
            prop_assert!(veiled.end().is_none() || len(&veiled) <= len(&range) + 1, "{veiled:?}");
            // Whatever two ranges do outside, if they do the same within they look the same.
            let same = set.clip(&range).eq(set.clip(&other));
            prop_assert!(!same || set.veil(&other) == Some(veiled));
        }

        #[test]
        fn operations_within_ranges_do_there_what_all_of_them_do(
            set in ranges(),
            ops in proptest::collection::vec((0u8..3, key(), key()), 0..8),
        ) {
            let mut buffer = BytesMut::new();
            for (kind, one, other) in &ops {
                match kind {
                    0 if !one.is_empty() => Op::Put { key: one, value: other }.encode_into(&mut buffer),
                    1 if !one.is_empty() => Op::Delete { key: one }.encode_into(&mut buffer),
                    _ => Op::DeleteRange { start: one, end: Some(other) }.encode_into(&mut buffer),
                }
            }
            let all = EncodedOps::from_bytes(buffer.freeze()).unwrap();
            let within = all.within(&set);
            let mut before = std::collections::BTreeMap::new();
            for a in [0u8, 1, 2, 0xFF] {
                before.extend([vec![a], vec![a, 0], vec![a, 1], vec![a, 0xFF]].map(|key| (key, b"before".to_vec())));
            }
            let mut wanted = before.clone();
            wanted.retain(|key, _| set.contains(key));
            let mut found = wanted.clone();
            apply(&mut before, &all);
            apply(&mut found, &within);
            before.retain(|key, _| set.contains(key));
            prop_assert_eq!(before, found);
            for op in &within {
                if let Op::Put { key, .. } | Op::Delete { key } = op {
                    prop_assert!(set.contains(key));
                }
            }
        }
    }

    fn apply(state: &mut std::collections::BTreeMap<Vec<u8>, Vec<u8>>, ops: &EncodedOps) {
        for op in ops {
            match op {
                Op::Put { key, value } => drop(state.insert(key.to_vec(), value.to_vec())),
                Op::Delete { key } => drop(state.remove(key)),
                Op::DeleteRange { start, end } => {
                    let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                    state.retain(|key, _| !range.contains(key));
                }
            }
        }
    }

    #[test]
    fn a_large_value_within_stays_where_it_lies() {
        let put = crate::LargePut::new(b"b", vec![Bytes::from(vec![1; 10]), Bytes::from(vec![2; 10])]).unwrap();
        let ops = EncodedOps::from(put);
        assert_eq!(ops.within(&KeyRanges::from(KeyRange::only("b"))), ops);
        assert!(!ops.within(&KeyRanges::from(KeyRange::only("b"))).is_joined());
        assert!(ops.within(&KeyRanges::from(KeyRange::only("a"))).is_empty());
    }

    #[test]
    fn sets_that_are_not_in_order_are_refused() {
        for ranges in [
            vec![KeyRange::from_bounds("b".."c"), KeyRange::from_bounds("a".."b")],
            vec![KeyRange::from_bounds("a".."b"), KeyRange::from_bounds("b".."c")],
            vec![KeyRange::empty()],
            vec![KeyRange::from_bounds("a"..), KeyRange::from_bounds("b"..)],
        ] {
            assert!(KeyRanges::try_from(ranges).is_err());
        }
        let set = KeyRanges::new([KeyRange::prefix("b"), KeyRange::from_bounds("x"..)]);
        assert_eq!(set.to_string(), "b..c, x..");
    }

    #[test]
    fn ranges_become_a_set_in_order() {
        let (a, b) = (KeyRange::prefix("a"), KeyRange::prefix("c"));
        let set = KeyRanges::new([a.clone(), b.clone()]);
        assert_eq!(KeyRanges::from([b.clone(), a.clone()]), set);
        assert_eq!([b, a].into_iter().collect::<KeyRanges>(), set);
        assert_eq!(set.as_slice().len(), 2);
    }

    // A bound tells as little of keys that are not subscribed to as can be.
    #[test]
    fn a_bound_is_the_shortest_that_means_the_same() {
        let shortest = |from: &'static str, key: &'static str| {
            let shortest = shortest_from(&from.into(), &key.into());
            assert!(
                shortest[..] >= *from.as_bytes() && key.as_bytes().starts_with(&shortest),
                "{from} {key} {shortest:?}"
            );
            String::from_utf8(shortest.to_vec()).unwrap()
        };
        assert_eq!(shortest("b", "customer/7"), "c");
        assert_eq!(shortest("customer/3", "customer/77"), "customer/7");
        assert_eq!(shortest("customer", "customer/7"), "customer");
        assert_eq!(shortest("", "customer"), "");
    }
}
