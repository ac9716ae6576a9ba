//! What users write: operations, conditions and a note, all or nothing.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::{EncodedOps, KeyRange, Op, Ops, StoreError, StoreLimits};

/// The longest note of a batch, in bytes.
pub const MAX_NOTE_LEN: usize = 4096;

/// Operations that are committed, logged and replicated together, or not at all.
///
/// Built by value, encoded as it is built. Keys and values are checked when the batch is written: an empty key, or
/// one that is too long, refuses the whole batch.
///
/// ```
/// use replikv_core::Batch;
/// let batch = Batch::new().put("greeting", "hello").delete("old").delete_range("tmp/".."tmp0");
/// assert_eq!(batch.len(), 3);
/// ```
#[derive(Clone, Default)]
pub struct Batch {
    ops: BytesMut,
    len: usize,
    conditions: Vec<Condition>,
    note: Bytes,
    empty_key: bool,
    longest_key: usize,
    longest_value: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` to `value`.
    #[must_use]
    pub fn put(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.push(Op::Put { key: key.as_ref(), value: value.as_ref() });
        self
    }

    /// Removes `key`, if it is there.
    #[must_use]
    pub fn delete(mut self, key: impl AsRef<[u8]>) -> Self {
        self.push(Op::Delete { key: key.as_ref() });
        self
    }

    /// Removes every key of `range` that is there when the batch is committed, or was put earlier in this batch.
    #[must_use]
    pub fn delete_range(mut self, range: impl Into<KeyRange>) -> Self {
        self.push(Op::delete_range(&range.into()));
        self
    }

    /// The batch is committed only if `key` holds `value` at its place in the commit order.
    #[must_use]
    pub fn expect(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.condition(key.as_ref(), Some(Bytes::copy_from_slice(value.as_ref())));
        self
    }

    /// The batch is committed only if `key` is absent at its place in the commit order.
    #[must_use]
    pub fn expect_absent(mut self, key: impl AsRef<[u8]>) -> Self {
        self.condition(key.as_ref(), None);
        self
    }

    /// Attaches up to [`MAX_NOTE_LEN`] bytes of the application's to the record: a trace id, an origin, a mark.
    #[must_use]
    pub fn note(mut self, note: impl AsRef<[u8]>) -> Self {
        self.note = Bytes::copy_from_slice(note.as_ref());
        self
    }

    /// Appends one operation in place, for loops.
    pub fn push(&mut self, op: Op<'_>) {
        match op {
            Op::Put { key, value } => {
                self.see_key(key);
                self.longest_value = self.longest_value.max(value.len());
            }
            Op::Delete { key } => self.see_key(key),
            // A bound is one byte longer than a key at most; a longer one matches no key differently.
            Op::DeleteRange { .. } => {}
        }
        op.encode_into(&mut self.ops);
        self.len += 1;
    }

    /// The operations, in order, borrowed.
    pub fn ops(&self) -> impl Iterator<Item = Op<'_>> + '_ {
        Ops::new(&self.ops)
    }

    /// How many operations.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is neither an operation nor a note: there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.len == 0 && self.note.is_empty()
    }

    /// The size of its encoded operations.
    pub fn byte_len(&self) -> usize {
        self.ops.len()
    }

    /// What must hold for it to be committed.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// Checks it against the limits of a store.
    ///
    /// # Errors
    /// `KeyEmpty`, `KeyTooLong`, `ValueTooLarge` or `BatchTooLarge`.
    pub fn check(&self, limits: &StoreLimits) -> Result<(), StoreError> {
        if self.empty_key {
            return Err(StoreError::KeyEmpty);
        }
        if self.longest_key > limits.max_key {
            return Err(StoreError::KeyTooLong { len: self.longest_key, max: limits.max_key });
        }
        if self.longest_value > limits.max_value {
            return Err(StoreError::ValueTooLarge { len: self.longest_value, max: limits.max_value });
        }
        if self.note.len() > MAX_NOTE_LEN {
            return Err(StoreError::ValueTooLarge { len: self.note.len(), max: MAX_NOTE_LEN });
        }
        if self.ops.len() > limits.max_batch {
            return Err(StoreError::BatchTooLarge { len: self.ops.len(), max: limits.max_batch });
        }
        Ok(())
    }

    /// Its parts: operations, conditions, note.
    ///
    /// # Errors
    /// `KeyEmpty`, since encoded operations promise that no key is.
    pub fn into_parts(self) -> Result<(EncodedOps, Vec<Condition>, Bytes), StoreError> {
        if self.empty_key {
            return Err(StoreError::KeyEmpty);
        }
        Ok((EncodedOps::trusted(self.ops.freeze()), self.conditions, self.note))
    }

    fn condition(&mut self, key: &[u8], value: Option<Bytes>) {
        self.see_key(key);
        self.conditions.push(Condition { key: Bytes::copy_from_slice(key), value });
    }

    fn see_key(&mut self, key: &[u8]) {
        self.empty_key |= key.is_empty();
        self.longest_key = self.longest_key.max(key.len());
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("ops", &self.len)
            .field("bytes", &self.ops.len())
            .field("conditions", &self.conditions.len())
            .finish_non_exhaustive()
    }
}

/// What a key must hold for a batch to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The key, in the user's data.
    pub key: Bytes,
    /// Its value, or `None` for absent.
    pub value: Option<Bytes>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: StoreLimits = StoreLimits { max_key: 4, max_value: 8, max_batch: 64 };

    #[test]
    fn limits_are_named_when_they_are_broken() {
        assert!(Batch::new().put("key", "value").check(&LIMITS).is_ok());
        assert!(matches!(Batch::new().delete("").check(&LIMITS), Err(StoreError::KeyEmpty)));
        assert!(matches!(Batch::new().delete("longer").check(&LIMITS), Err(StoreError::KeyTooLong { len: 6, max: 4 })));
        assert!(matches!(Batch::new().put("k", [0; 9]).check(&LIMITS), Err(StoreError::ValueTooLarge { len: 9, .. })));
        let mut many = Batch::new();
        (0..30).for_each(|_| many.push(Op::Delete { key: b"key" }));
        assert!(matches!(many.check(&LIMITS), Err(StoreError::BatchTooLarge { max: 64, .. })));
    }

    #[test]
    fn what_is_as_large_as_a_limit_fits() {
        let note = |len: usize| Batch::new().put("keys", [0; 8]).note(vec![0; len]);
        let batch = note(MAX_NOTE_LEN);
        let limits = StoreLimits { max_batch: batch.byte_len(), ..LIMITS };
        assert!(batch.check(&limits).is_ok());
        let longer = note(MAX_NOTE_LEN + 1).check(&limits);
        assert!(matches!(longer, Err(StoreError::ValueTooLarge { max: MAX_NOTE_LEN, .. })));
    }

    #[test]
    fn a_note_alone_is_something_to_commit() {
        assert!(Batch::new().is_empty());
        assert!(!Batch::new().note("deploy 7").is_empty());
    }

    #[test]
    fn what_is_expected_is_kept_beside_what_is_done() {
        let batch = Batch::new().put("a", "1").expect("b", "2").expect_absent("c").delete("d");
        assert_eq!((batch.len(), Batch::new().len()), (2, 0));
        let ops: Vec<_> = batch.ops().map(|op| format!("{op:?}")).collect();
        assert_eq!(ops.len(), 2);
        let (encoded, conditions, _) = batch.into_parts().unwrap();
        assert_eq!(encoded.iter().count(), 2);
        let expected = |key: &'static str, value: Option<&'static str>| Condition {
            key: key.into(),
            value: value.map(Into::into),
        };
        assert_eq!(conditions, [expected("b", Some("2")), expected("c", None)]);
        assert!(matches!(Batch::new().expect("", "1").into_parts(), Err(StoreError::KeyEmpty)));
    }
}
