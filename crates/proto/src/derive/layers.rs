//! What is known of a store, and what a group changes on top of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Range as Within;
use std::ops::Bound;

use bytes::Bytes;
use replikv_core::{EncodedOps, KeyRange, Op};

/// What was read of a store.
#[derive(Debug, Default)]
pub(crate) struct Known {
    entries: BTreeMap<Bytes, Option<Bytes>>,
    /// Read as a whole: what is not in `entries` is not there.
    ranges: Vec<KeyRange>,
}

impl Known {
    /// `Some` if the key was read.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        match self.entries.get(key) {
            Some(value) => Some(value.clone()),
            None => self.ranges.iter().any(|range| range.contains(key)).then_some(None),
        }
    }

    pub(crate) fn covers(&self, range: &KeyRange) -> bool {
        range.is_empty() || self.ranges.iter().any(|known| known.intersect(range) == *range)
    }

    /// The entries of `range` with the changes of `overlay`, in order; `None` if it was not read as a whole.
    pub(crate) fn under(&self, range: &KeyRange, overlay: &Overlay) -> Option<Vec<(Bytes, Bytes)>> {
        if !self.covers(range) {
            return None;
        }
        let mut merged: BTreeMap<&Bytes, &Bytes> = BTreeMap::new();
        for (key, value) in within(&self.entries, range) {
            if let Some(value) = value
                && !overlay.is_deleted(key)
            {
                merged.insert(key, value);
            }
        }
        for (key, change) in within(&overlay.changes, range) {
            match change {
                Some(value) => drop(merged.insert(key, value)),
                None => drop(merged.remove(key)),
            }
        }
        Some(merged.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    pub(crate) fn extend(&mut self, values: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) {
        self.entries.extend(values);
    }

    pub(crate) fn extend_range(&mut self, range: KeyRange, entries: impl IntoIterator<Item = (Bytes, Bytes)>) {
        self.entries.extend(entries.into_iter().map(|(key, value)| (key, Some(value))));
        if !self.covers(&range) {
            self.ranges.push(range);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.ranges.clear();
    }
}

/// The changes of a group so far.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    changes: BTreeMap<Bytes, Option<Bytes>>,
    deleted: Vec<KeyRange>,
}

impl Overlay {
    pub(crate) fn add(&mut self, ops: &EncodedOps) {
        let buffer = ops.as_bytes();
        for op in ops {
            match op {
                Op::Put { key, value } => {
                    self.changes.insert(buffer.slice_ref(key), Some(buffer.slice_ref(value)));
                }
                Op::Delete { key } => drop(self.changes.insert(buffer.slice_ref(key), None)),
                Op::DeleteRange { start, end } => {
                    let range = KeyRange::new(buffer.slice_ref(start), end.map(|end| buffer.slice_ref(end)));
                    let met = self.changes.iter_mut().filter(|(key, _)| range.contains(key));
                    met.for_each(|(_, value)| *value = None);
                    self.deleted.push(range);
                }
            }
        }
    }

    pub(crate) fn extend(&mut self, changes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) {
        self.changes.extend(changes);
    }

    /// `Some` if the group has decided about the key.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        if let Some(change) = self.changes.get(key) {
            return Some(change.clone());
        }
        self.is_deleted(key).then_some(None)
    }

    /// The changes that are no range deletes.
    pub(crate) fn into_changes(self) -> BTreeMap<Bytes, Option<Bytes>> {
        self.changes
    }

    fn is_deleted(&self, key: &[u8]) -> bool {
        self.deleted.iter().any(|range| range.contains(key))
    }
}

fn within<'a>(map: &'a BTreeMap<Bytes, Option<Bytes>>, range: &KeyRange) -> Within<'a, Bytes, Option<Bytes>> {
    // A range that is empty may be inverted, which no map takes.
    let bounds = match range.end() {
        _ if range.is_empty() => (Bound::Unbounded, Bound::Excluded(&b""[..])),
        Some(end) => (Bound::Included(&range.start()[..]), Bound::Excluded(&end[..])),
        None => (Bound::Included(&range.start()[..]), Bound::Unbounded),
    };
    map.range::<[u8], _>(bounds)
}
