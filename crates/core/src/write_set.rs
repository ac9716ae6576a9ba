//! What a store applies: operations over all keyspaces, in order, all or nothing, under preconditions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::{Cursor, EncodedOps, KeyRange, Keyspace, LinkId, Op, OpsPart, StoreError, StoreLimits, meta};

/// Operations that a store applies atomically, if the preconditions hold.
///
/// A write set is a list of [`Chunk`]s that share buffers with whoever made them: the body of a record that came
/// from a socket is a chunk as it is. Cloning copies no operation.
#[derive(Debug, Clone, Default)]
pub struct WriteSet {
    preconditions: Arc<[Precondition]>,
    chunks: Arc<[Chunk]>,
}

/// Operations on one keyspace.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The keyspace.
    pub keyspace: Keyspace,
    /// The operations, in order.
    pub ops: EncodedOps,
}

/// What a key of [`Keyspace::Meta`] must hold, inside the transaction that applies the write set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Precondition {
    /// The key.
    pub key: Bytes,
    /// Its value, or `None` for absent.
    pub value: Option<Bytes>,
}

impl WriteSet {
    /// Begins a write set.
    pub fn builder() -> WriteSetBuilder {
        WriteSetBuilder::default()
    }

    /// What must hold, or else the store answers `HeadMoved` and changes nothing.
    pub fn preconditions(&self) -> &[Precondition] {
        &self.preconditions
    }

    /// The operations in the chunks they came in.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The operations in the chunks they came in. Where this was the only handle, each of the chunks is now.
    pub fn into_chunks(mut self) -> Vec<Chunk> {
        match Arc::get_mut(&mut self.chunks) {
            Some(chunks) => chunks
                .iter_mut()
                .map(|chunk| Chunk { keyspace: chunk.keyspace, ops: std::mem::take(&mut chunk.ops) })
                .collect(),
            None => self.chunks.to_vec(),
        }
    }

    /// True if there is no other handle: what is taken out of this one is nobody else's.
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.chunks) == 1
    }

    /// True if every chunk lies in one buffer: it was not too large to arrive in one.
    pub fn is_joined(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.ops.is_joined())
    }

    /// The same with each chunk in one buffer, for stores that put values as a whole. Where this was the only handle, the
    /// buffers of large values are freed one by one while they are copied.
    #[must_use]
    pub fn into_joined(self) -> Self {
        if self.is_joined() {
            return self;
        }
        let preconditions = self.preconditions.clone();
        let chunks = self.into_chunks().into_iter();
        let chunks = chunks.map(|chunk| Chunk { keyspace: chunk.keyspace, ops: chunk.ops.into_joined() }).collect();
        Self { preconditions, chunks }
    }

    /// The operations, in order, borrowed.
    pub fn ops(&self) -> impl Iterator<Item = (Keyspace, Op<'_>)> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.ops.iter().map(move |op| (chunk.keyspace, op)))
    }

    /// The size of its encoded operations.
    pub fn byte_len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.ops.byte_len()).sum()
    }

    /// True if there is no operation.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Checks every key, every value and the whole against the limits of a store.
    ///
    /// # Errors
    /// `KeyTooLong`, `ValueTooLarge` or `BatchTooLarge`. Values are measured in [`Keyspace::Data`] and
    /// [`Keyspace::Meta`]; those of the log are bounded by `max_batch`.
    pub fn check(&self, limits: &StoreLimits) -> Result<(), StoreError> {
        let len = self.byte_len();
        if len > limits.max_batch {
            return Err(StoreError::BatchTooLarge { len, max: limits.max_batch });
        }
        for chunk in self.chunks.iter() {
            let check = |key: &[u8], value: usize| {
                if key.len() > limits.max_key {
                    return Err(StoreError::KeyTooLong { len: key.len(), max: limits.max_key });
                }
                if value > limits.max_value && chunk.keyspace != Keyspace::Log {
                    return Err(StoreError::ValueTooLarge { len: value, max: limits.max_value });
                }
                Ok(())
            };
            for part in chunk.ops.parts() {
                match part {
                    OpsPart::Put(put) => check(put.key(), put.value_len())?,
                    OpsPart::Ops(mut ops) => ops.try_for_each(|op| match op {
                        Op::Put { key, value } => check(key, value.len()),
                        Op::Delete { key } => check(key, 0),
                        Op::DeleteRange { .. } => Ok(()),
                    })?,
                }
            }
        }
        Ok(())
    }

    /// What the operations come to: for each key the last one, sorted by keyspace and key, with range deletes
    /// replaced by deletes of the keys they meet. For stores that keep no order in a batch, or have no range delete.
    ///
    /// `keys_in` lists the keys that the store holds in a range, before this write set.
    ///
    /// # Errors
    /// Whatever `keys_in` returns.
    pub fn resolve<E>(
        &self,
        mut keys_in: impl FnMut(Keyspace, &KeyRange) -> Result<Vec<Bytes>, E>,
    ) -> Result<Resolved<'_>, E> {
        let mut changes: Vec<Change<'_>> = Vec::new();
        let mut reach = Reach::default();
        for (keyspace, op) in self.ops() {
            match op {
                Op::Put { key, value } => changes.push((keyspace, Cow::Borrowed(key), Some(value))),
                Op::Delete { key } => changes.push((keyspace, Cow::Borrowed(key), None)),
                Op::DeleteRange { start, end } => {
                    let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                    if range.is_empty() {
                        continue;
                    }
                    if reach.over(&changes, keyspace, &range) {
                        return self.resolve_ranges(&mut keys_in);
                    }
                    let keys = keys_in(keyspace, &range)?.into_iter();
                    changes.extend(keys.map(|key| (keyspace, Cow::Owned(key.into()), None)));
                }
            }
        }
        // Stable, so that of equal keys the last one stays last; `dedup_by` then keeps it.
        changes.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        changes.dedup_by(|later, kept| {
            let same = later.0 == kept.0 && later.1 == kept.1;
            if same {
                kept.2 = later.2;
            }
            same
        });
        Ok(Resolved(changes))
    }

    // Whatever ranges are deleted after what.
    fn resolve_ranges<E>(
        &self,
        keys_in: &mut impl FnMut(Keyspace, &KeyRange) -> Result<Vec<Bytes>, E>,
    ) -> Result<Resolved<'_>, E> {
        let mut changes: BTreeMap<Place<'_>, Option<&[u8]>> = BTreeMap::new();
        for (keyspace, op) in self.ops() {
            match op {
                Op::Put { key, value } => drop(changes.insert((keyspace, Cow::Borrowed(key)), Some(value))),
                Op::Delete { key } => drop(changes.insert((keyspace, Cow::Borrowed(key)), None)),
                Op::DeleteRange { start, end } => {
                    let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                    if range.is_empty() {
                        continue;
                    }
                    let met = changes.range_mut((keyspace, Cow::Borrowed(start))..);
                    met.take_while(|((ks, key), _)| *ks == keyspace && range.contains(key))
                        .for_each(|(_, value)| *value = None);
                    for key in keys_in(keyspace, &range)? {
                        changes.insert((keyspace, Cow::Owned(key.into())), None);
                    }
                }
            }
        }
        Ok(Resolved(changes.into_iter().map(|((keyspace, key), value)| (keyspace, key, value)).collect()))
    }
}

type Place<'a> = (Keyspace, Cow<'a, [u8]>);
type Change<'a> = (Keyspace, Cow<'a, [u8]>, Option<&'a [u8]>);

/// The least and the greatest of the changes so far, in each keyspace: what copies bring deletes range after range, and what
/// it puts into one lies before the next.
#[derive(Debug, Default)]
struct Reach {
    known: usize,
    bounds: BTreeMap<Keyspace, (usize, usize)>,
}

impl Reach {
    // Whether one of the changes may lie in the range.
    fn over(&mut self, changes: &[Change<'_>], keyspace: Keyspace, range: &KeyRange) -> bool {
        for (at, (keyspace, key, _)) in changes.iter().enumerate().skip(self.known) {
            let (least, greatest) = self.bounds.entry(*keyspace).or_insert((at, at));
            if *key < changes[*least].1 {
                *least = at;
            }
            if *key > changes[*greatest].1 {
                *greatest = at;
            }
        }
        self.known = changes.len();
        self.bounds.get(&keyspace).is_some_and(|(least, greatest)| {
            let (least, greatest) = (&changes[*least].1, &changes[*greatest].1);
            range.start() <= &greatest[..] && range.end().is_none_or(|end| end[..] > least[..])
        })
    }
}

/// The net changes of a write set: one per key, sorted by keyspace and key.
#[derive(Debug)]
pub struct Resolved<'a>(Vec<Change<'a>>);

impl Resolved<'_> {
    /// Each changed key with its new value, or `None` if it goes.
    pub fn iter(&self) -> impl Iterator<Item = (Keyspace, &[u8], Option<&[u8]>)> + '_ {
        self.0.iter().map(|(keyspace, key, value)| (*keyspace, &key[..], *value))
    }

    /// How many keys change.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if none does.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Builds a [`WriteSet`]. Single operations are encoded into one buffer; whole chunks are shared.
#[derive(Debug, Default)]
pub struct WriteSetBuilder {
    preconditions: Vec<Precondition>,
    chunks: Vec<Chunk>,
    open: Option<(Keyspace, BytesMut)>,
}

impl WriteSetBuilder {
    /// The set applies only if `key` of [`Keyspace::Meta`] holds `value`, or is absent.
    pub fn require(&mut self, key: impl Into<Bytes>, value: Option<Bytes>) -> &mut Self {
        self.preconditions.push(Precondition { key: key.into(), value });
        self
    }

    /// Appends one operation.
    ///
    /// # Errors
    /// `KeyEmpty`.
    pub fn push(&mut self, keyspace: Keyspace, op: Op<'_>) -> Result<&mut Self, StoreError> {
        if let Op::Put { key: [], .. } | Op::Delete { key: [] } = op {
            return Err(StoreError::KeyEmpty);
        }
        if self.open.as_ref().is_none_or(|(open, _)| *open != keyspace) {
            self.close_chunk();
        }
        let (_, buffer) = self.open.get_or_insert_with(|| (keyspace, BytesMut::new()));
        op.encode_into(buffer);
        Ok(self)
    }

    /// Appends a put.
    ///
    /// # Errors
    /// `KeyEmpty`.
    pub fn put(
        &mut self,
        keyspace: Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<&mut Self, StoreError> {
        self.push(keyspace, Op::Put { key: key.as_ref(), value: value.as_ref() })
    }

    /// Appends a delete.
    ///
    /// # Errors
    /// `KeyEmpty`.
    pub fn delete(&mut self, keyspace: Keyspace, key: impl AsRef<[u8]>) -> Result<&mut Self, StoreError> {
        self.push(keyspace, Op::Delete { key: key.as_ref() })
    }

    /// Appends a range delete.
    pub fn delete_range(&mut self, keyspace: Keyspace, range: &KeyRange) -> &mut Self {
        if self.open.as_ref().is_none_or(|(open, _)| *open != keyspace) {
            self.close_chunk();
        }
        let (_, buffer) = self.open.get_or_insert_with(|| (keyspace, BytesMut::new()));
        Op::delete_range(range).encode_into(buffer);
        self
    }

    /// Appends operations that are encoded already, without copying them.
    pub fn append(&mut self, keyspace: Keyspace, ops: EncodedOps) -> &mut Self {
        self.close_chunk();
        if !ops.is_empty() {
            self.chunks.push(Chunk { keyspace, ops });
        }
        self
    }

    /// Sets the cursor of `link`, in the same transaction as the rest.
    pub fn set_cursor(&mut self, link: &LinkId, cursor: &Cursor) -> &mut Self {
        let (key, value) = (meta::cursor_key(link), cursor.to_bytes());
        self.close_chunk();
        let mut buffer = BytesMut::new();
        Op::Put { key: &key, value: &value }.encode_into(&mut buffer);
        self.append(Keyspace::Meta, EncodedOps::trusted(buffer.freeze()))
    }

    /// The size of the operations so far.
    pub fn byte_len(&self) -> usize {
        let open = self.open.as_ref().map_or(0, |(_, buffer)| buffer.len());
        open + self.chunks.iter().map(|chunk| chunk.ops.byte_len()).sum::<usize>()
    }

    /// The write set.
    pub fn build(&mut self) -> WriteSet {
        self.close_chunk();
        WriteSet {
            preconditions: std::mem::take(&mut self.preconditions).into(),
            chunks: std::mem::take(&mut self.chunks).into(),
        }
    }

    fn close_chunk(&mut self) {
        if let Some((keyspace, buffer)) = self.open.take() {
            self.chunks.push(Chunk { keyspace, ops: EncodedOps::trusted(buffer.freeze()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Change {
        Put(u8, u8),
        Delete(u8),
        Range(u8, u8),
    }

    fn change() -> impl Strategy<Value = Change> {
        let key = 1..8u8;
        prop_oneof![
            (key.clone(), any::<u8>()).prop_map(|(k, v)| Change::Put(k, v)),
            key.clone().prop_map(Change::Delete),
            (key.clone(), key).prop_map(|(a, b)| Change::Range(a, b)),
        ]
    }

    #[test]
    fn a_set_is_empty_until_something_is_in_it() {
        assert!(WriteSet::builder().build().is_empty());
        let mut writes = WriteSet::builder();
        writes.put(Keyspace::Data, "key", "value").unwrap();
        assert!(!writes.build().is_empty());
    }

    #[test]
    fn the_size_of_a_set_is_that_of_its_chunks_and_of_the_open_one() {
        let mut writes = WriteSet::builder();
        writes.put(Keyspace::Meta, "key", "value").unwrap();
        let one = writes.byte_len();
        writes.put(Keyspace::Data, "key", "value").unwrap();
        assert_eq!((one, writes.byte_len()), (11, 22));
        assert_eq!(writes.build().byte_len(), 22);
    }

    #[test]
    fn a_set_is_held_to_the_limits_of_a_store_and_the_log_to_the_largest_set_alone() {
        let limits = StoreLimits { max_key: 3, max_value: 5, max_batch: 11 };
        let check = |keyspace, key: &str, value: &str, limits: StoreLimits| {
            WriteSet::builder().put(keyspace, key, value).unwrap().build().check(&limits)
        };
        assert!(check(Keyspace::Data, "key", "value", limits).is_ok());
        let tight = StoreLimits { max_batch: 10, ..limits };
        let refused = check(Keyspace::Data, "key", "value", tight);
        assert!(matches!(refused, Err(StoreError::BatchTooLarge { len: 11, max: 10 })));
        let roomy = StoreLimits { max_batch: 99, ..limits };
        let refused = check(Keyspace::Data, "keys", "", roomy);
        assert!(matches!(refused, Err(StoreError::KeyTooLong { len: 4, max: 3 })));
        for keyspace in [Keyspace::Data, Keyspace::Meta] {
            let refused = check(keyspace, "key", "values", roomy);
            assert!(matches!(refused, Err(StoreError::ValueTooLarge { len: 6, max: 5 })));
        }
        assert!(check(Keyspace::Log, "key", "values", roomy).is_ok());
        let deleted = WriteSet::builder().delete(Keyspace::Data, "keys").unwrap().build().check(&roomy);
        assert!(matches!(deleted, Err(StoreError::KeyTooLong { len: 4, .. })));
        let value = vec![Bytes::from_static(b"val"), Bytes::from_static(b"ues")];
        let large = crate::LargePut::new(b"key", value).unwrap().into();
        let large = WriteSet::builder().append(Keyspace::Data, large).build().check(&roomy);
        assert!(matches!(large, Err(StoreError::ValueTooLarge { len: 6, .. })));
    }

    proptest! {
        // In 256 cases, one in eight times, none has a range behind a key that came after a smaller one.
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn what_is_resolved_equals_what_is_applied_in_order(
            before in proptest::collection::btree_map(1..8u8, any::<u8>(), 0..8),
            changes in proptest::collection::vec((any::<bool>(), change()), 0..12),
        ) {
            let mut builder = WriteSet::builder();
            let mut model: BTreeMap<(Keyspace, u8), u8> =
                before.iter().map(|(k, v)| ((Keyspace::Data, *k), *v)).collect();
            for (meta, change) in &changes {
                let keyspace = if *meta { Keyspace::Meta } else { Keyspace::Data };
                match *change {
                    Change::Put(k, v) => {
                        builder.put(keyspace, [k], [v]).unwrap();
                        model.insert((keyspace, k), v);
                    }
                    Change::Delete(k) => {
                        builder.delete(keyspace, [k]).unwrap();
                        model.remove(&(keyspace, k));
                    }
                    Change::Range(a, b) => {
                        builder.delete_range(keyspace, &KeyRange::from_bounds([a]..[b]));
                        model.retain(|(ks, k), _| *ks != keyspace || !(a..b).contains(k));
                    }
                }
            }
            let mut store: BTreeMap<(Keyspace, u8), u8> =
                before.iter().map(|(k, v)| ((Keyspace::Data, *k), *v)).collect();
            let held = store.clone();
            let set = builder.build();
            let resolved = set
                .resolve::<std::convert::Infallible>(|keyspace, range| {
                    let keys = held.keys().filter(|(ks, k)| *ks == keyspace && range.contains(&[*k]));
                    Ok(keys.map(|(_, k)| Bytes::copy_from_slice(&[*k])).collect())
                })
                .unwrap();
            let keys: Vec<_> = resolved.iter().map(|(ks, key, _)| (ks, key.to_vec())).collect();
            prop_assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "sorted, one per key");
            for (keyspace, key, value) in resolved.iter() {
                match value {
                    Some(value) => drop(store.insert((keyspace, key[0]), value[0])),
                    None => drop(store.remove(&(keyspace, key[0]))),
                }
            }
            prop_assert_eq!(store, model);
        }
    }

    #[test]
    fn chunks_share_the_buffers_they_came_in() {
        let mut buffer = BytesMut::new();
        Op::Put { key: b"key", value: b"value" }.encode_into(&mut buffer);
        let ops = EncodedOps::from_bytes(buffer.freeze()).unwrap();
        let address = ops.as_bytes().as_ptr();
        let set = WriteSet::builder().append(Keyspace::Data, ops).build();
        let (_, Op::Put { key, .. }) = set.ops().next().unwrap() else { panic!("a put") };
        assert_eq!(key.as_ptr(), address.wrapping_add(2));
        assert_eq!(set.clone().chunks()[0].ops.as_bytes().as_ptr(), address);
    }

    #[test]
    fn what_is_resolved_counts_its_keys() {
        let none = |_: Keyspace, _: &KeyRange| Ok::<_, std::convert::Infallible>(Vec::new());
        let nothing = WriteSet::builder().build();
        let resolved = nothing.resolve(none).unwrap();
        assert_eq!((resolved.len(), resolved.is_empty()), (0, true));
        let mut writes = WriteSet::builder();
        for key in ["a", "b", "a"] {
            writes.put(Keyspace::Data, key, "value").unwrap();
        }
        let writes = writes.build();
        let resolved = writes.resolve(none).unwrap();
        assert_eq!((resolved.len(), resolved.is_empty()), (2, false));
    }

    #[test]
    fn of_one_handle_chunks_are_taken_and_of_two_they_are_shared() {
        let value = vec![Bytes::from(vec![1; 9]), Bytes::from(vec![2; 9])];
        let large: EncodedOps = crate::LargePut::new(b"key", value).unwrap().into();
        let mut writes = WriteSet::builder();
        writes.append(Keyspace::Data, large.clone()).put(Keyspace::Meta, "a", "1").unwrap();
        let writes = writes.require("a", None).build();
        assert!(writes.is_alone() && !writes.is_joined());
        let other = writes.clone();
        assert!(!writes.is_alone());

        let joined = other.into_joined();
        assert!(joined.is_joined() && writes.is_alone());
        assert_eq!((joined.preconditions(), joined.byte_len()), (writes.preconditions(), writes.byte_len()));
        assert!(joined.ops().eq(writes.ops()));
        assert_eq!(joined.clone().into_joined().chunks().as_ptr(), joined.chunks().as_ptr(), "nothing is left to join");

        let of =
            |chunks: &[Chunk]| -> Vec<_> { chunks.iter().map(|chunk| (chunk.keyspace, chunk.ops.clone())).collect() };
        assert_eq!(of(&joined.clone().into_chunks()), of(joined.chunks()));
        let taken = writes.into_chunks();
        assert_eq!(of(&taken), of(joined.chunks()), "the same bytes, in several buffers");
        assert!(!taken[0].ops.is_joined());
    }
}
