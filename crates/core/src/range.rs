//! Ranges of keys, in one normal form.

use std::ops::{Bound, Range, RangeBounds, RangeFrom, RangeInclusive, RangeTo, RangeToInclusive};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A range of keys: an inclusive start, and an exclusive end or none.
///
/// Every kind of bound is brought into this form: the key after `k` is `k` with a zero byte appended, so that an
/// excluded start or an included end costs one byte. An empty start is unbounded, since no key is empty. A range
/// whose end is not above its start, inverted or not, is empty and holds no key.
///
/// A bound may therefore be one byte longer than the longest key of a store; stores must accept that in scans.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    start: Bytes,
    end: Option<Bytes>,
}

impl KeyRange {
    /// The keys from `start` on, up to but without `end`.
    pub fn new(start: impl Into<Bytes>, end: Option<Bytes>) -> Self {
        Self { start: start.into(), end }
    }

    /// Every key.
    pub const fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// No key.
    pub const fn empty() -> Self {
        Self { start: Bytes::new(), end: Some(Bytes::new()) }
    }

    /// From any Rust range: `"a".."b"`, `"a"..="b"`, `.."b"`, `"a"..`, or a pair of [`Bound`]s.
    pub fn from_bounds<K: AsRef<[u8]>>(bounds: impl RangeBounds<K>) -> Self {
        let start = match bounds.start_bound() {
            Bound::Included(key) => Bytes::copy_from_slice(key.as_ref()),
            Bound::Excluded(key) => successor(key.as_ref()),
            Bound::Unbounded => Bytes::new(),
        };
        let end = match bounds.end_bound() {
            Bound::Included(key) => Some(successor(key.as_ref())),
            Bound::Excluded(key) => Some(Bytes::copy_from_slice(key.as_ref())),
            Bound::Unbounded => None,
        };
        Self { start, end }
    }

    /// Every key that begins with `prefix`.
    ///
    /// There is no sentinel that a key could sort above: the end is the next prefix of the same length, or
    /// unbounded if `prefix` is nothing but `0xFF`.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        let prefix = prefix.as_ref();
        let end = prefix.iter().rposition(|&byte| byte != 0xFF).map(|last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        });
        Self { start: Bytes::copy_from_slice(prefix), end }
    }

    /// The single key `key`.
    pub fn only(key: impl AsRef<[u8]>) -> Self {
        let key = key.as_ref();
        Self { start: Bytes::copy_from_slice(key), end: Some(successor(key)) }
    }

    /// The first key of the range, if it is there; empty means unbounded.
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// The first key above the range; `None` means unbounded.
    pub fn end(&self) -> Option<&Bytes> {
        self.end.as_ref()
    }

    /// True if no key can lie in it.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end <= &self.start)
    }

    /// True if `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// What lies in both.
    pub fn intersect(&self, other: &Self) -> Self {
        let start = (&self.start).max(&other.start).clone();
        let end = match (&self.end, &other.end) {
            (Some(a), Some(b)) => Some(a.min(b).clone()),
            (a, b) => a.as_ref().or(b.as_ref()).cloned(),
        };
        Self { start, end }
    }

    /// What of it lies above `key`.
    pub fn after(&self, key: &[u8]) -> Self {
        Self { start: successor(key).max(self.start.clone()), end: self.end.clone() }
    }

    /// What of it lies below `key`.
    pub fn before(&self, key: &[u8]) -> Self {
        let key = Bytes::copy_from_slice(key);
        let end = self.end.as_ref().map_or_else(|| key.clone(), |end| end.min(&key).clone());
        Self { start: self.start.clone(), end: Some(end) }
    }
}

// One impl per kind of Rust range: a blanket one over `RangeBounds` would leave no room for `KeyRange` itself.
macro_rules! from_range {
    ($($range:ty),*) => {$(
        impl<K: AsRef<[u8]>> From<$range> for KeyRange {
            fn from(range: $range) -> Self {
                Self::from_bounds(range)
            }
        }
    )*};
}

from_range!(Range<K>, RangeInclusive<K>, RangeFrom<K>, RangeTo<K>, RangeToInclusive<K>, (Bound<K>, Bound<K>));

impl From<std::ops::RangeFull> for KeyRange {
    fn from(_: std::ops::RangeFull) -> Self {
        Self::all()
    }
}

fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    Bytes::from(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xFE), Just(0xFF)], 1..4)
    }

    fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
        prop_oneof![key().prop_map(Bound::Included), key().prop_map(Bound::Excluded), Just(Bound::Unbounded)]
    }

    proptest! {
        #[test]
        fn every_kind_of_bound_means_what_it_means_in_rust(start in bound(), end in bound(), key in key()) {
            let range = KeyRange::from_bounds((start.clone(), end.clone()));
            prop_assert_eq!(range.contains(&key), (start, end).contains(&key));
            prop_assert!(!range.is_empty() || !range.contains(&key));
        }

        #[test]
        fn a_prefix_range_holds_what_begins_with_it(prefix in proptest::collection::vec(any::<u8>(), 0..3), key in key()) {
            prop_assert_eq!(KeyRange::prefix(&prefix).contains(&key), key.starts_with(&prefix));
        }

        #[test]
        fn parts_of_a_range_are_what_they_say(a in key(), b in key(), c in key(), d in key(), key in key()) {
            let (one, two) = (KeyRange::from_bounds(a..b), KeyRange::from_bounds(c.clone()..=d));
            prop_assert_eq!(one.intersect(&two).contains(&key), one.contains(&key) && two.contains(&key));
            prop_assert_eq!(one.after(&c).contains(&key), one.contains(&key) && key > c);
            prop_assert_eq!(one.before(&c).contains(&key), one.contains(&key) && key < c);
        }
    }

    #[test]
    fn inverted_and_empty_ranges_hold_nothing() {
        for range in [KeyRange::from_bounds("b".."a"), KeyRange::from_bounds("a".."a"), KeyRange::empty()] {
            assert!(range.is_empty() && !range.contains(b"a"));
        }
        assert!(!KeyRange::from_bounds("a"..="a").is_empty());
    }
}
