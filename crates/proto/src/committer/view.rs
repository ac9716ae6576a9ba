//! What a condition or a transaction sees: the store, and every batch before it, those of its own group too.

use std::collections::BTreeMap;

use bytes::Bytes;
use replikv_core::{EncodedOps, KeyRange, Op};

/// Why a transaction did not come to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Abort {
    /// A key must be read first; the transaction runs again then. Pass it on with `?`.
    Missing(Bytes),
    /// The transaction decided against it.
    Refused(String),
}

impl Abort {
    /// Decides against it; `reason` reaches the caller.
    pub fn refuse(reason: impl Into<String>) -> Self {
        Self::Refused(reason.into())
    }
}

impl std::fmt::Display for Abort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(key) => write!(f, "{} must be read first", key.escape_ascii()),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Abort {}

/// The data at one place in the commit order.
#[derive(Debug)]
pub struct TransactView<'a> {
    overlay: &'a Overlay,
    known: &'a BTreeMap<Bytes, Option<Bytes>>,
}

impl<'a> TransactView<'a> {
    pub(super) fn new(overlay: &'a Overlay, known: &'a BTreeMap<Bytes, Option<Bytes>>) -> Self {
        Self { overlay, known }
    }

    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// [`Abort::Missing`] if the key was not read yet: pass it on with `?`, and the transaction runs again.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, Abort> {
        let key = key.as_ref();
        if let Some(change) = self.overlay.get(key) {
            return Ok(change);
        }
        self.known.get(key).cloned().ok_or_else(|| Abort::Missing(Bytes::copy_from_slice(key)))
    }
}

/// The changes of a group so far.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    changes: BTreeMap<Bytes, Option<Bytes>>,
    deleted: Vec<KeyRange>,
}

impl Overlay {
    pub(super) fn add(&mut self, ops: &EncodedOps) {
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

    // `Some` if the group has decided about the key.
    fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        if let Some(change) = self.changes.get(key) {
            return Some(change.clone());
        }
        self.deleted.iter().any(|range| range.contains(key)).then_some(None)
    }
}
