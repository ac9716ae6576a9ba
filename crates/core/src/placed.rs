//! Moving operations and pages into a subspace, and out of it.

use bytes::{Bytes, BytesMut};

use crate::large::{LargePut, OwnedPart};
use crate::{EncodedOps, KeyRange, Op, Page, ScanOptions, StoreError, Subspace};

impl Subspace {
    /// What `ops` do to a whole key space, done to this subspace: keys get the prefix, and a range delete ends where the
    /// subspace does. Costs a copy, of all but values of more than 1 MiB; at the root nothing.
    #[must_use]
    pub fn place(&self, ops: EncodedOps) -> EncodedOps {
        // Of a whole key space every key has a place.
        Placement::from(self.clone()).place(ops).unwrap_or_default()
    }

    /// A page of the whole key space that holds `range` of this subspace, as a page of the subspace: without the prefix.
    #[must_use]
    pub fn lift(&self, page: &Page, range: &KeyRange) -> Page {
        let unbounded = ScanOptions::default().max_entries(usize::MAX).max_bytes(usize::MAX);
        Placement::from(self.clone()).lift(page, range, unbounded)
    }

    // What of `range`, a range of the whole key space, lies in this subspace.
    fn lift_range(&self, range: &KeyRange) -> KeyRange {
        let own = self.range().intersect(range);
        let start = self.strip(own.start()).map(Bytes::copy_from_slice);
        let end = own.end().and_then(|end| self.strip(end)).map(Bytes::copy_from_slice);
        match start {
            // An end that is not in it lies above all that is.
            Some(start) if !own.is_empty() => KeyRange::new(start, end),
            _ => KeyRange::empty(),
        }
    }
}

/// Where the keys of one subspace lie in another key space: one prefix is stripped, and another one put before what is
/// left.
///
/// A key that is the stripped prefix itself lies at the other one; where that is the root it has no place, since no key is
/// empty.
///
/// ```
/// use replikv_core::{Placement, Subspace};
/// let placement = Placement::new(Subspace::raw("users/"), Subspace::raw("edge-1/"));
/// assert_eq!(placement.key(b"users/alice").as_deref(), Some(&b"edge-1/alice"[..]));
/// assert_eq!(placement.key(b"orders/7"), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    strip: Subspace,
    target: Subspace,
}

impl Placement {
    /// The keys of `strip`, in `target`.
    pub const fn new(strip: Subspace, target: Subspace) -> Self {
        Self { strip, target }
    }

    /// What is taken off.
    pub const fn strip(&self) -> &Subspace {
        &self.strip
    }

    /// What is put before.
    pub const fn target(&self) -> &Subspace {
        &self.target
    }

    /// Every key that has a place.
    pub fn range(&self) -> KeyRange {
        let (own, prefix) = (self.strip.range(), self.strip.prefix());
        if self.target.prefix().is_empty() && !prefix.is_empty() { own.after(prefix) } else { own }
    }

    /// Where `key` lies, if it has a place.
    pub fn key(&self, key: &[u8]) -> Option<Bytes> {
        let placed = self.target.key(self.strip.strip(key)?);
        (!placed.is_empty()).then_some(placed)
    }

    /// Where the keys of `range` lie that have a place.
    pub fn range_of(&self, range: &KeyRange) -> KeyRange {
        self.target.range_of(&self.strip.lift_range(range))
    }

    /// What `ops` do, done to where the keys lie. Range deletes are clipped to what has a place. Costs a copy, as
    /// [`Subspace::place`].
    ///
    /// # Errors
    /// [`StoreError::NotSubscribed`] if a key to put or delete does not begin with what is stripped,
    /// [`StoreError::KeyEmpty`] if nothing is left of it.
    pub fn place(&self, ops: EncodedOps) -> Result<EncodedOps, StoreError> {
        if self.is_identity() {
            return Ok(ops);
        }
        let parts = ops.into_parts().into_iter().map(|part| self.place_part(part));
        Ok(EncodedOps::from_parts(parts.collect::<Result<_, _>>()?))
    }

    /// A page of where `range` lies, as a page of `range`, of no more than `options` ask for.
    #[must_use]
    pub fn lift(&self, page: &Page, range: &KeyRange, options: ScanOptions) -> Page {
        if self.is_identity() {
            return page.clone();
        }
        let mut rest = page.rest().map(|rest| self.lift_range(rest).intersect(range));
        let mut entries = BytesMut::with_capacity(page.ops().byte_len());
        let (mut len, mut bytes) = (0, 0);
        let mut lifted = self.strip.prefix().to_vec();
        for (key, value) in page.iter() {
            let Some(key) = self.target.strip(key) else { continue };
            lifted.truncate(self.strip.prefix().len());
            lifted.extend_from_slice(key);
            Op::Put { key: &lifted, value }.encode_into(&mut entries);
            len += 1;
            bytes += lifted.len() + value.len();
            // Keys may be longer here than where they lie.
            if bytes >= options.max_bytes {
                rest = Some(if options.reverse { range.before(&lifted) } else { range.after(&lifted) });
                break;
            }
        }
        Page::from_parts(EncodedOps::trusted(entries.freeze()), len, rest.filter(|rest| !rest.is_empty()))
    }

    fn is_identity(&self) -> bool {
        self.strip.prefix().is_empty() && self.target.prefix().is_empty()
    }

    fn lift_range(&self, placed: &KeyRange) -> KeyRange {
        self.strip.range_of(&self.target.lift_range(placed))
    }

    // What is left of `key`, where that makes a key.
    fn stripped<'a>(&self, key: &'a [u8]) -> Result<&'a [u8], StoreError> {
        match self.strip.strip(key) {
            None => Err(StoreError::NotSubscribed { what: format!("key {}", key.escape_ascii()) }),
            Some([]) if self.target.prefix().is_empty() => Err(StoreError::KeyEmpty),
            Some(key) => Ok(key),
        }
    }

    fn place_part(&self, part: OwnedPart) -> Result<OwnedPart, StoreError> {
        let ops = match part {
            OwnedPart::Ops(ops) => ops,
            OwnedPart::Put(put) => {
                let key = self.target.key(self.stripped(put.key())?);
                let placed = LargePut::new(&key, put.into_segments()).map(OwnedPart::Put);
                return placed.ok_or(StoreError::KeyEmpty);
            }
        };
        let mut placed = BytesMut::with_capacity(ops.byte_len() * 2);
        let mut long = self.target.prefix().to_vec();
        let prefix = long.len();
        for op in &ops {
            match op {
                Op::Put { key, value } => {
                    long.truncate(prefix);
                    long.extend_from_slice(self.stripped(key)?);
                    Op::Put { key: &long, value }.encode_into(&mut placed);
                }
                Op::Delete { key } => {
                    long.truncate(prefix);
                    long.extend_from_slice(self.stripped(key)?);
                    Op::Delete { key: &long }.encode_into(&mut placed);
                }
                Op::DeleteRange { start, end } => {
                    let end = end.map(Bytes::copy_from_slice);
                    let range = self.range_of(&KeyRange::new(Bytes::copy_from_slice(start), end));
                    if !range.is_empty() {
                        Op::delete_range(&range).encode_into(&mut placed);
                    }
                }
            }
        }
        Ok(OwnedPart::Ops(EncodedOps::trusted(placed.freeze())))
    }
}

impl From<Subspace> for Placement {
    /// All keys, in `target`.
    fn from(target: Subspace) -> Self {
        Self::new(Subspace::root(), target)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{PageBuilder, ScanOptions};
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xFE), Just(0xFF)], 1..4)
    }

    #[derive(Debug, Clone)]
    enum Change {
        Put(Vec<u8>, u8),
        Delete(Vec<u8>),
        Range(Vec<u8>, Option<Vec<u8>>),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (key(), any::<u8>()).prop_map(|(key, value)| Change::Put(key, value)),
            key().prop_map(Change::Delete),
            (prop_oneof![Just(Vec::new()), key()], proptest::option::of(key()))
                .prop_map(|(start, end)| Change::Range(start, end)),
        ]
    }

    fn encoded(changes: &[Change]) -> EncodedOps {
        let mut buffer = BytesMut::new();
        for change in changes {
            match change {
                Change::Put(key, value) => Op::Put { key, value: &[*value] }.encode_into(&mut buffer),
                Change::Delete(key) => Op::Delete { key }.encode_into(&mut buffer),
                Change::Range(start, end) => Op::DeleteRange { start, end: end.as_deref() }.encode_into(&mut buffer),
            }
        }
        EncodedOps::trusted(buffer.freeze())
    }

    fn placement() -> impl Strategy<Value = Placement> {
        let prefix = || prop_oneof![Just(Vec::new()), key()].prop_map(Subspace::raw);
        (prefix(), prefix()).prop_map(|(strip, target)| Placement::new(strip, target))
    }

    fn placed(placement: &Placement, map: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<u8>> {
        map.iter().filter_map(|(key, value)| Some((placement.key(key)?.to_vec(), value.clone()))).collect()
    }

    fn apply(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, ops: &EncodedOps) {
        for op in ops {
            match op {
                Op::Put { key, value } => drop(map.insert(key.to_vec(), value.to_vec())),
                Op::Delete { key } => drop(map.remove(key)),
                Op::DeleteRange { start, end } => {
                    map.retain(|key, _| &key[..] < start || end.is_some_and(|end| &key[..] >= end));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_done_in_a_subspace_is_done_to_nothing_else(
            prefix in key(),
            before in proptest::collection::btree_map(key(), Just(vec![9u8]), 0..12),
            around in proptest::collection::btree_map(key(), Just(vec![8u8]), 0..12),
            changes in proptest::collection::vec(change(), 0..8),
        ) {
            let space = Subspace::raw(prefix.clone());
            let ops = encoded(&changes);
            let mut inside = before.clone();
            let outside: BTreeMap<_, _> = around.into_iter().filter(|(key, _)| !key.starts_with(&prefix)).collect();
            let mut whole = outside.clone();
            whole.extend(before.iter().map(|(key, value)| (space.key(key).to_vec(), value.clone())));
            apply(&mut inside, &ops);
            apply(&mut whole, &space.place(ops));
            let mut expected = outside;
            expected.extend(inside.iter().map(|(key, value)| (space.key(key).to_vec(), value.clone())));
            prop_assert_eq!(whole, expected);
        }

        #[test]
        fn pages_of_a_subspace_join_without_gap_or_overlap(
            prefix in key(),
            inside in proptest::collection::btree_map(key(), Just(vec![9u8]), 0..12),
            around in proptest::collection::btree_map(key(), Just(vec![8u8]), 0..12),
            start in key(), end in proptest::option::of(key()), reverse in any::<bool>(), entries in 1..4usize,
        ) {
            let space = Subspace::raw(prefix.clone());
            let mut whole: BTreeMap<_, _> = around.into_iter().filter(|(key, _)| !key.starts_with(&prefix)).collect();
            whole.extend(inside.iter().map(|(key, value)| (space.key(key).to_vec(), value.clone())));
            let range = KeyRange::new(Bytes::from(start), end.map(Bytes::from));
            let mut options = ScanOptions::default().max_entries(entries);
            options.reverse = reverse;
            let (mut found, mut rest) = (Vec::new(), Some(range.clone()));
            while let Some(range) = rest.take() {
                let placed = space.range_of(&range);
                let mut page = PageBuilder::new(placed.clone(), options);
                let mut held: Vec<_> = whole.iter().filter(|(key, _)| placed.contains(key)).collect();
                if reverse {
                    held.reverse();
                }
                for (key, value) in held {
                    if page.push(key, value).is_full() {
                        break;
                    }
                }
                let page = space.lift(&page.finish(), &range);
                found.extend(page.iter().map(|(key, _)| key.to_vec()));
                rest = page.rest().cloned();
            }
            let mut expected: Vec<_> = inside.keys().filter(|key| range.contains(key)).cloned().collect();
            if reverse {
                expected.reverse();
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn what_is_done_to_keys_is_done_where_they_lie(
            placement in placement(),
            before in proptest::collection::btree_map(key(), Just(vec![9u8]), 0..12),
            around in proptest::collection::btree_map(key(), Just(vec![8u8]), 0..12),
            changes in proptest::collection::vec(change(), 0..8),
        ) {
            // Most of them of keys that have a place, and ranges from anywhere to anywhere.
            let changes: Vec<Change> = changes.into_iter().enumerate().map(|(n, change)| match change {
                Change::Put(key, value) if n > 0 => Change::Put(placement.strip().key(key).to_vec(), value),
                Change::Delete(key) => Change::Delete(placement.strip().key(key).to_vec()),
                change => change,
            }).collect();
            let ops = encoded(&changes);
            let own = |key: &[u8]| placement.range().contains(key);
            let all_have_a_place = ops.iter().all(|op| match op {
                Op::Put { key, .. } | Op::Delete { key } => own(key),
                Op::DeleteRange { .. } => true,
            });
            let Ok(placed_ops) = placement.place(ops.clone()) else {
                prop_assert!(!all_have_a_place);
                return Ok(());
            };
            prop_assert!(all_have_a_place);
            let mut inside: BTreeMap<_, _> = before.into_iter().enumerate().map(|(n, (key, value))| {
                (if n % 2 == 0 { placement.strip().key(key).to_vec() } else { key }, value)
            }).collect();
            let outside: BTreeMap<_, _> =
                around.into_iter().filter(|(key, _)| !key.starts_with(placement.target().prefix())).collect();
            let mut whole = outside.clone();
            whole.extend(placed(&placement, &inside));
            apply(&mut inside, &ops);
            apply(&mut whole, &placed_ops);
            let mut expected = outside;
            expected.extend(placed(&placement, &inside));
            prop_assert_eq!(whole, expected);
        }

        #[test]
        fn pages_of_where_keys_lie_join_without_gap_or_overlap(
            placement in placement(),
            inside in proptest::collection::btree_map(key(), Just(vec![9u8]), 0..12),
            around in proptest::collection::btree_map(key(), Just(vec![8u8]), 0..12),
            start in key(), end in proptest::option::of(key()), reverse in any::<bool>(), bytes in 1..24usize,
        ) {
            let mut whole: BTreeMap<_, _> =
                around.into_iter().filter(|(key, _)| !key.starts_with(placement.target().prefix())).collect();
            let inside: BTreeMap<_, _> =
                inside.into_iter().map(|(key, value)| (placement.strip().key(key).to_vec(), value)).collect();
            whole.extend(placed(&placement, &inside));
            let range = KeyRange::new(Bytes::from(start), end.map(Bytes::from));
            let mut options = ScanOptions::default().max_bytes(bytes);
            options.reverse = reverse;
            let (mut found, mut rest) = (Vec::new(), Some(range.clone()));
            while let Some(range) = rest.take() {
                let lies = placement.range_of(&range);
                let mut page = PageBuilder::new(lies.clone(), options);
                let mut held: Vec<_> = whole.iter().filter(|(key, _)| lies.contains(key)).collect();
                if reverse {
                    held.reverse();
                }
                for (key, value) in held {
                    if page.push(key, value).is_full() {
                        break;
                    }
                }
                let page = placement.lift(&page.finish(), &range, options);
                let lens: Vec<usize> = page.iter().map(|(key, value)| key.len() + value.len()).collect();
                prop_assert_eq!(page.len(), lens.len());
                prop_assert!(lens.iter().rev().skip(1).sum::<usize>() < bytes, "{:?} of {}", lens, bytes);
                found.extend(page.iter().map(|(key, _)| key.to_vec()));
                rest = page.rest().cloned();
            }
            let mut expected: Vec<_> = inside.keys().filter(|key| range.contains(key)).cloned().collect();
            if reverse {
                expected.reverse();
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_key_without_a_place_is_refused_and_nothing_is_left_of_its_operations() {
        let ops = |key: &[u8]| encoded(&[Change::Put(b"users/a".to_vec(), 1), Change::Put(key.to_vec(), 2)]);
        let large = |key: &[u8]| LargePut::new(key, vec![Bytes::from(vec![1; 2 << 20]); 2]).unwrap().into();
        for (target, empty_is_refused) in [(Subspace::raw("edge/"), false), (Subspace::root(), true)] {
            let placement = Placement::new(Subspace::raw("users/"), target.clone());
            for outside in [&b"a"[..], b"users", b"users0", b"\xFF"] {
                for ops in [ops(outside), large(outside)] {
                    assert!(matches!(placement.place(ops), Err(StoreError::NotSubscribed { .. })), "{outside:?}");
                }
                assert!(placement.key(outside).is_none() && !placement.range().contains(outside));
            }
            for ops in [ops(b"users/"), large(b"users/")] {
                let placed = placement.place(ops);
                assert_eq!(matches!(&placed, Err(StoreError::KeyEmpty)), empty_is_refused);
                assert_eq!(placed.is_ok(), !empty_is_refused);
            }
            assert_eq!(placement.key(b"users/").is_none(), empty_is_refused);
            assert_eq!(placement.range().contains(b"users/"), !empty_is_refused);
            let elsewhere = Change::Range(b"a".to_vec(), Some(b"users/".to_vec()));
            assert!(placement.place(encoded(&[elsewhere])).unwrap().is_empty());
        }
    }

    #[test]
    fn a_large_value_is_not_copied() {
        let segments = vec![Bytes::from(vec![1; 2 << 20]), Bytes::from(vec![2; 2 << 20])];
        let at: Vec<_> = segments.iter().map(|segment| segment.as_ptr()).collect();
        let put = LargePut::new(b"k", segments).unwrap();
        let placed = Subspace::raw("edge/").place(put.into());
        let kept: Vec<_> = placed.buffers().skip(1).map(|segment| segment.as_ptr()).collect();
        assert_eq!(kept, at);
        assert!(matches!(placed.iter().next(), Some(Op::Put { key: b"edge/k", .. })));
    }
}
