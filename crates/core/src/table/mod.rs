//! Typed keys and values over a [`Subspace`].
//!
//! A table turns typed reads and writes into bytes: keys through an order-preserving [`TableKey`], values through a
//! [`ValueCodec`]. It holds no data and opens nothing; any number of tables share a store.

mod key;
mod value;

use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

pub use key::{KeyError, TableKey};
#[cfg(feature = "json")]
pub use value::Json;
pub use value::{Postcard, Raw, ValueCodec};

use crate::{Batch, DataReader, KeyRange, ScanOptions, StoreError, Subspace};

/// A typed view of a subspace: `K` sorts as its bytes do, `V` is encoded by `C`.
///
/// ```
/// use replikv_core::{Batch, Subspace, Table};
/// let ages: Table<String, u32> = Table::new("ages", Subspace::named("ages"));
/// let batch = ages.put(Batch::new(), &"alice".to_string(), &42)?;
/// assert_eq!(batch.len(), 1);
/// # Ok::<(), replikv_core::table::TableError>(())
/// ```
#[derive(Debug)]
pub struct Table<K, V, C = Postcard> {
    name: String,
    subspace: Subspace,
    types: Types<K, V, C>,
}

type Types<K, V, C> = PhantomData<fn() -> (K, V, C)>;

impl<K, V, C> Clone for Table<K, V, C> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), subspace: self.subspace.clone(), types: PhantomData }
    }
}

impl<K: TableKey, V, C: ValueCodec<V>> Table<K, V, C> {
    /// A table over `subspace`. The name appears in errors only.
    pub fn new(name: impl Into<String>, subspace: Subspace) -> Self {
        Self { name: name.into(), subspace, types: PhantomData }
    }

    /// The stored key of `key`.
    pub fn key(&self, key: &K) -> Vec<u8> {
        let mut bytes = self.subspace.prefix().to_vec();
        key.encode(&mut bytes);
        bytes
    }

    /// The stored keys of a range.
    pub fn range(&self, range: impl RangeBounds<K>) -> KeyRange {
        let bound = |bound: Bound<&K>| bound.map(|key| self.key(key));
        let whole = self.subspace.range();
        KeyRange::from_bounds((bound(range.start_bound()), bound(range.end_bound()))).intersect(&whole)
    }

    /// Adds a put to `batch`.
    ///
    /// # Errors
    /// [`TableError::Encode`] if the value cannot be encoded.
    pub fn put(&self, batch: Batch, key: &K, value: &V) -> Result<Batch, TableError> {
        let key = self.key(key);
        let value = C::encode(value).map_err(|source| TableError::Encode { table: self.name.clone(), source })?;
        Ok(batch.put(key, value))
    }

    /// Adds a delete to `batch`.
    #[must_use]
    pub fn delete(&self, batch: Batch, key: &K) -> Batch {
        batch.delete(self.key(key))
    }

    /// Adds a range delete to `batch`.
    #[must_use]
    pub fn delete_range(&self, batch: Batch, range: impl RangeBounds<K>) -> Batch {
        batch.delete_range(self.range(range))
    }

    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// [`TableError::Value`] if what is stored is no `V`; what the store reports.
    pub async fn get(&self, reader: &(impl DataReader + ?Sized), key: &K) -> Result<Option<V>, TableError> {
        let key = self.key(key);
        let Some(bytes) = reader.get_data(&key).await? else { return Ok(None) };
        self.value(&key, &bytes).map(Some)
    }

    /// One page of entries, and where to go on; `from` is [`range`](Self::range) or what an earlier page left.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`TableError::Key`] if a stored key is no `K`.
    pub async fn page(
        &self,
        reader: &(impl DataReader + ?Sized),
        from: KeyRange,
        options: ScanOptions,
    ) -> Result<(Vec<(K, V)>, Option<KeyRange>), TableError> {
        let page = reader.scan_data(from.intersect(&self.subspace.range()), options).await?;
        let mut entries = Vec::with_capacity(page.len());
        for (key, value) in page.iter() {
            entries.extend(self.decode(key, value)?);
        }
        Ok((entries, page.rest().cloned()))
    }

    /// A stored entry with its types, as `changes` or a transaction meets it; `None` if the key lies outside of the table.
    ///
    /// # Errors
    /// [`TableError::Key`] if the key is no `K`, [`TableError::Value`] if the value is no `V`.
    pub fn decode(&self, key: &[u8], value: &[u8]) -> Result<Option<(K, V)>, TableError> {
        let Some(mut rest) = self.subspace.strip(key) else { return Ok(None) };
        let decoded = K::decode(&mut rest).and_then(|key| if rest.is_empty() { Ok(key) } else { Err(KeyError) });
        let typed = decoded.map_err(|_| TableError::Key { table: self.name.clone(), key: escape(key) })?;
        Ok(Some((typed, self.value(key, value)?)))
    }

    fn value(&self, key: &[u8], bytes: &[u8]) -> Result<V, TableError> {
        let value = C::decode(bytes);
        value.map_err(|source| TableError::Value { table: self.name.clone(), key: escape(key), source })
    }
}

fn escape(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

/// What can go wrong between types and bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// A stored key is not of the table's key type: something else writes into its subspace.
    #[error("table {table}: the key {key} is not of the table's key type")]
    Key {
        /// The table.
        table: String,
        /// The stored key, escaped.
        key: String,
    },
    /// A stored value does not decode.
    #[error("table {table}: the value of {key} does not decode")]
    Value {
        /// The table.
        table: String,
        /// The stored key, escaped.
        key: String,
        /// What the codec said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value does not encode.
    #[error("table {table}: the value does not encode")]
    Encode {
        /// The table.
        table: String,
        /// What the codec said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
