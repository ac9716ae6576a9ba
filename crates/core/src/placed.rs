//! Moving operations and pages into a subspace, and out of it.

use bytes::{Bytes, BytesMut};

use crate::large::{LargePut, OwnedPart};
use crate::{EncodedOps, KeyRange, Op, Page, Subspace};

impl Subspace {
    /// What `ops` do to a whole key space, done to this subspace: keys get the prefix, and a range delete ends where the
    /// subspace does. Costs a copy, of all but values of more than 1 MiB; at the root nothing.
    #[must_use]
    pub fn place(&self, ops: EncodedOps) -> EncodedOps {
        if self.prefix().is_empty() {
            return ops;
        }
        EncodedOps::from_parts(ops.into_parts().into_iter().filter_map(|part| self.place_part(part)).collect())
    }

    /// A page of the whole key space that holds `range` of this subspace, as a page of the subspace: without the prefix.
    #[must_use]
    pub fn lift(&self, page: &Page, range: &KeyRange) -> Page {
        if self.prefix().is_empty() {
            return page.clone();
        }
        let mut entries = BytesMut::with_capacity(page.ops().byte_len());
        for (key, value) in page.iter() {
            let Some(key) = self.strip(key) else { continue };
            Op::Put { key, value }.encode_into(&mut entries);
        }
        let rest = page.rest().map(|rest| self.lift_range(rest).intersect(range));
        Page::from_parts(EncodedOps::trusted(entries.freeze()), page.len(), rest.filter(|rest| !rest.is_empty()))
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

    fn place_part(&self, part: OwnedPart) -> Option<OwnedPart> {
        let ops = match part {
            OwnedPart::Ops(ops) => ops,
            OwnedPart::Put(put) => {
                let key = self.key(put.key());
                return LargePut::new(&key, put.into_segments()).map(OwnedPart::Put);
            }
        };
        let own = self.range();
        let mut placed = BytesMut::with_capacity(ops.byte_len() * 2);
        let mut long = Vec::from(&self.prefix()[..]);
        let prefix = long.len();
        for op in &ops {
            match op {
                Op::Put { key, value } => {
                    long.truncate(prefix);
                    long.extend_from_slice(key);
                    Op::Put { key: &long, value }.encode_into(&mut placed);
                }
                Op::Delete { key } => {
                    long.truncate(prefix);
                    long.extend_from_slice(key);
                    Op::Delete { key: &long }.encode_into(&mut placed);
                }
                Op::DeleteRange { start, end } => {
                    let (start, end) = (self.key(start), end.map(|end| self.key(end)));
                    let end = end.as_ref().or(own.end()).map(|end| &end[..]);
                    Op::DeleteRange { start: &start, end }.encode_into(&mut placed);
                }
            }
        }
        Some(OwnedPart::Ops(EncodedOps::trusted(placed.freeze())))
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
            let mut buffer = BytesMut::new();
            for change in &changes {
                match change {
                    Change::Put(key, value) => Op::Put { key, value: &[*value] }.encode_into(&mut buffer),
                    Change::Delete(key) => Op::Delete { key }.encode_into(&mut buffer),
                    Change::Range(start, end) => Op::DeleteRange { start, end: end.as_deref() }.encode_into(&mut buffer),
                }
            }
            let ops = EncodedOps::trusted(buffer.freeze());
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
