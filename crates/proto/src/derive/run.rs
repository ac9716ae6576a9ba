//! Running derives over changes.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Bytes, BytesMut};
use replikv_core::{EncodedOps, KeyRange, Op, StoreError};

use super::{Change, DeriveAbort, DeriveView, Derived, Derives, Known, Overlay, Placed, Wants};

/// Why nothing is derived for now, or at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// This is to be read first.
    Unread(Wants),
    /// One has refused.
    Refused {
        /// Which.
        name: String,
        /// Why.
        reason: String,
    },
}

/// What derives make of one write set, whose changes come in parts.
#[derive(Debug)]
pub struct DeriveRun<'a> {
    derives: &'a Derives,
    overlay: Overlay,
    known: Known,
}

impl<'a> DeriveRun<'a> {
    /// Nothing is known of the store, and nothing derived.
    pub fn new(derives: &'a Derives) -> Self {
        Self { derives, overlay: Overlay::default(), known: Known::default() }
    }

    /// Derives what follows from `changes`, which are in the order of their keys and come after those before.
    ///
    /// # Errors
    /// [`Stopped::Unread`]: read that, hand it to [`fetched`](Self::fetched) and [`fetched_range`](Self::fetched_range), and
    /// call this again.
    pub fn derive(&mut self, changes: &[Change]) -> Result<(), Stopped> {
        let derived = derive_all(self.derives.placed(), changes, &self.overlay, &self.known)?;
        self.overlay.extend(derived);
        Ok(())
    }

    /// Values as the store held them before the write set.
    pub fn fetched(&mut self, values: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) {
        self.known.extend(values);
    }

    /// All entries of `range` as the store held them before the write set.
    pub fn fetched_range(&mut self, range: KeyRange, entries: impl IntoIterator<Item = (Bytes, Bytes)>) {
        self.known.extend_range(range, entries);
    }

    /// What follows from all changes, in the order of keys.
    ///
    /// # Errors
    /// None that can happen: keys have a prefix.
    pub fn into_ops(self) -> Result<EncodedOps, StoreError> {
        encode(&self.overlay.into_changes())
    }
}

/// Runs all derives over `changes`.
pub(crate) fn derive_all(
    derives: &[Placed],
    changes: &[Change],
    overlay: &Overlay,
    known: &Known,
) -> Result<BTreeMap<Bytes, Option<Bytes>>, Stopped> {
    let (mut all, mut wants) = (BTreeMap::new(), Wants::default());
    for placed in derives {
        let source = placed.derive.source();
        let begin = changes.partition_point(|change| change.key < *source.start());
        let len = changes[begin..].partition_point(|change| source.contains(&change.key));
        let own = &changes[begin..begin + len];
        if own.is_empty() {
            continue;
        }
        let view = DeriveView::new(overlay, known, &placed.space);
        let mut derived = Derived::default();
        let run = AssertUnwindSafe(|| placed.derive.derive(own, &view, &mut derived));
        match catch_unwind(run).unwrap_or_else(|_| Err(DeriveAbort::refuse("it panicked"))) {
            Ok(()) => {
                let entries = derived.into_entries().into_iter();
                all.extend(entries.map(|(key, value)| (placed.space.key(key), value)));
            }
            Err(DeriveAbort::Unread) => {
                let wanted = view.into_wants();
                // Nothing would be read, and it would ask for ever.
                if wanted.is_empty() {
                    return Err(refused(placed, "it waits for what it has not asked for"));
                }
                wants.extend(wanted);
            }
            Err(DeriveAbort::Refused(reason)) => return Err(refused(placed, &reason)),
        }
    }
    if wants.is_empty() { Ok(all) } else { Err(Stopped::Unread(wants)) }
}

fn refused(placed: &Placed, reason: &str) -> Stopped {
    Stopped::Refused { name: placed.derive.name().to_owned(), reason: reason.to_owned() }
}

/// What `ops` change, in the order of keys: of what any of `derives` is asked about, and none of them has derived.
pub(crate) fn changes_of(
    derives: &[Placed],
    ops: &EncodedOps,
    overlay: &Overlay,
    known: &Known,
) -> Result<Vec<Change>, Wants> {
    let sources: Vec<KeyRange> = derives.iter().map(|placed| placed.derive.source()).collect();
    let is_asked = |key: &[u8]| {
        sources.iter().any(|source| source.contains(key)) && !derives.iter().any(|it| it.target.strip(key).is_some())
    };
    let (mut after, mut wants) = (BTreeMap::<Bytes, Option<Bytes>>::new(), Wants::default());
    let buffer = ops.as_bytes();
    for op in ops {
        match op {
            Op::Put { key, value } if is_asked(key) => {
                after.insert(buffer.slice_ref(key), Some(buffer.slice_ref(value)));
            }
            Op::Delete { key } if is_asked(key) => drop(after.insert(buffer.slice_ref(key), None)),
            Op::DeleteRange { start, end } => {
                let range = KeyRange::new(buffer.slice_ref(start), end.map(|end| buffer.slice_ref(end)));
                after.iter_mut().filter(|(key, _)| range.contains(key)).for_each(|(_, value)| *value = None);
                for met in sources.iter().map(|source| source.intersect(&range)).filter(|met| !met.is_empty()) {
                    match known.under(&met, overlay) {
                        Some(entries) => {
                            let asked = entries.into_iter().filter(|(key, _)| is_asked(key));
                            asked.for_each(|(key, _)| drop(after.insert(key, None)));
                        }
                        None => wants.extend(Wants { ranges: vec![met], ..Wants::default() }),
                    }
                }
            }
            Op::Put { .. } | Op::Delete { .. } => {}
        }
    }
    let mut changes = Vec::with_capacity(after.len());
    for (key, new) in after {
        match overlay.get(&key).or_else(|| known.get(&key)) {
            Some(old) if old == new => {}
            Some(old) => changes.push(Change { key, old, new }),
            None => drop(wants.keys.insert(key)),
        }
    }
    if wants.is_empty() { Ok(changes) } else { Err(wants) }
}

/// Changes as operations, in the order of keys.
pub(crate) fn encode(changes: &BTreeMap<Bytes, Option<Bytes>>) -> Result<EncodedOps, StoreError> {
    let mut buffer = BytesMut::new();
    for (key, value) in changes {
        match value {
            Some(value) => Op::Put { key, value }.encode_into(&mut buffer),
            None => Op::Delete { key }.encode_into(&mut buffer),
        }
    }
    EncodedOps::from_bytes(buffer.freeze()).map_err(StoreError::backend)
}
