//! Writing in the application's own transaction, and noting what was written.

use std::borrow::Cow;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use heed::types::Bytes;
use heed::{BytesEncode, Database, RoTxn, RwTxn};
use replikv_core::{Batch, KeyRange, Keyspace, Op, StoreError, StoreLimits, WriteSet};

use crate::adopt::{AnyEnv, on_env};
use crate::table::{Change, Tables};
use crate::write::{self, Failed};

/// Writes to the tables of a store in a transaction of the application's, and notes each change as an operation: what a
/// recorder is made of. It does not know what becomes of the operations.
///
/// It belongs to one transaction. After an error other than a refusal, abort that.
#[derive(Debug)]
pub struct Scribe {
    env: AnyEnv,
    tables: Arc<Tables>,
    limits: StoreLimits,
    commits_are_synced: bool,
    batch: Batch,
    /// The table of the last call, which is tried first.
    last: usize,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScribeError {
    /// The database is no table of the store: nothing was written. Name it with
    /// [`LmdbOptions::table`](crate::LmdbOptions::table), or write to it with the transaction itself.
    #[error("{database} is no table of the store: what is written to it would reach no slave")]
    NoTable {
        /// The database, as far as heed tells what it is.
        database: String,
    },
    /// It was refused, and nothing was written; or the store failed, and the transaction must be aborted.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// LMDB or a codec failed.
    #[error("the database failed")]
    Heed(#[from] heed::Error),
}

impl From<Change> for ScribeError {
    fn from(change: Change) -> Self {
        match change {
            Change::Unfit(error) => Self::Store(error),
            Change::Heed(error) => Self::Heed(error),
        }
    }
}

/// Which of the tables a handle stands for.
enum Found {
    At(usize),
    /// It holds nothing, as others may.
    Empty,
    Nowhere,
}

impl Scribe {
    pub(crate) fn new(env: AnyEnv, tables: Arc<Tables>, limits: StoreLimits, commits_are_synced: bool) -> Self {
        Self { env, tables, limits, commits_are_synced, batch: Batch::new(), last: 0 }
    }

    /// Sets `key` to `value`, as heed's `put` does.
    ///
    /// # Errors
    /// [`ScribeError`]; `KeyTooLong` where prefix and key together are longer than the limit.
    ///
    /// # Panics
    /// As heed does, if database and transaction belong to different environments.
    pub fn put<'a, KC, DC, C, CDUP>(
        &mut self,
        txn: &mut RwTxn<'_>,
        database: &Database<'_, KC, DC, C, CDUP>,
        key: &'a KC::EItem,
        value: &'a DC::EItem,
    ) -> Result<(), ScribeError>
    where
        KC: BytesEncode<'a>,
        DC: BytesEncode<'a>,
    {
        let native = KC::bytes_encode(key).map_err(heed::Error::Encoding)?;
        let value = DC::bytes_encode(value).map_err(heed::Error::Encoding)?;
        if native.is_empty() {
            return Err(StoreError::KeyEmpty.into());
        }
        let raw = database.remap_types::<Bytes, Bytes>();
        let index = match self.find(&raw, txn)? {
            Found::At(index) => index,
            Found::Empty => self.find_empty(&raw, txn)?.ok_or_else(|| no_table(database))?,
            Found::Nowhere => return Err(no_table(database)),
        };
        let key = self.full_key(txn, index, &native)?;
        let max = self.limits.max_value;
        if value.len() > max {
            return Err(StoreError::ValueTooLarge { len: value.len(), max }.into());
        }
        self.check_room(key.len() + value.len())?;
        raw.put(txn, &native, &value)?;
        self.batch.push(Op::Put { key: &key, value: &value });
        Ok(())
    }

    /// Removes `key`, as heed's `delete` does. False if it was not there: then there is nothing to note.
    ///
    /// # Errors
    /// [`ScribeError`].
    ///
    /// # Panics
    /// As heed does, if database and transaction belong to different environments.
    pub fn delete<'a, KC, DC, C, CDUP>(
        &mut self,
        txn: &mut RwTxn<'_>,
        database: &Database<'_, KC, DC, C, CDUP>,
        key: &'a KC::EItem,
    ) -> Result<bool, ScribeError>
    where
        KC: BytesEncode<'a>,
    {
        let native = KC::bytes_encode(key).map_err(heed::Error::Encoding)?;
        if native.is_empty() {
            return Err(StoreError::KeyEmpty.into());
        }
        let raw = database.remap_types::<Bytes, Bytes>();
        let index = match self.find(&raw, txn)? {
            Found::At(index) => index,
            Found::Empty => return Ok(false),
            Found::Nowhere => return Err(no_table(database)),
        };
        let tables = self.tables.clone();
        let table = &tables.data()[index];
        let key = self.full_key(txn, index, &native)?;
        self.check_room(key.len())?;
        let was_there = table.delete(txn, &key)?;
        if was_there {
            self.batch.push(Op::Delete { key: &key });
        }
        Ok(was_there)
    }

    /// Removes every key of `range`, as heed's `delete_range` does. False if there was none.
    ///
    /// # Errors
    /// [`ScribeError`].
    ///
    /// # Panics
    /// As heed does, if database and transaction belong to different environments.
    pub fn delete_range<'a, KC, DC, C, CDUP, R>(
        &mut self,
        txn: &mut RwTxn<'_>,
        database: &Database<'_, KC, DC, C, CDUP>,
        range: &'a R,
    ) -> Result<bool, ScribeError>
    where
        KC: BytesEncode<'a>,
        R: RangeBounds<KC::EItem>,
    {
        let raw = database.remap_types::<Bytes, Bytes>();
        let index = match self.find(&raw, txn)? {
            Found::At(index) => index,
            Found::Empty => return Ok(false),
            Found::Nowhere => return Err(no_table(database)),
        };
        let tables = self.tables.clone();
        let table = &tables.data()[index];
        let bound = |bound: Bound<&'a KC::EItem>| -> Result<Bound<Vec<u8>>, heed::Error> {
            let encoded = |key| KC::bytes_encode(key).map_err(heed::Error::Encoding);
            Ok(match bound {
                Bound::Included(key) => Bound::Included(table.full_key(&encoded(key)?).into_owned()),
                Bound::Excluded(key) => Bound::Excluded(table.full_key(&encoded(key)?).into_owned()),
                Bound::Unbounded => Bound::Unbounded,
            })
        };
        let range = KeyRange::from_bounds((bound(range.start_bound())?, bound(range.end_bound())?));
        let range = range.intersect(table.range());
        let mut any = false;
        // Of the rest database, only what lies between the tables.
        for segment in tables.segments(Keyspace::Data, &range) {
            if std::ptr::eq(segment.table, table) {
                let full = segment.full_range();
                self.check_room(full.start().len() + full.end().map_or(0, bytes::Bytes::len))?;
                if table.delete_range(txn, &segment.inner)? {
                    self.batch.push(Op::delete_range(&full));
                    any = true;
                }
            }
        }
        Ok(any)
    }

    /// Attaches a note to the record.
    pub fn note(&mut self, note: impl AsRef<[u8]>) {
        self.batch = std::mem::take(&mut self.batch).note(note);
    }

    /// What was noted, in order. Begins anew.
    pub fn take(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    /// Reads a key of any keyspace in the transaction.
    ///
    /// # Errors
    /// What LMDB reports.
    pub fn read<'t>(&self, txn: &'t RoTxn<'_>, keyspace: Keyspace, key: &[u8]) -> Result<Option<&'t [u8]>, StoreError> {
        self.tables.table(keyspace, key).get(txn, key)
    }

    /// Puts a write set into the transaction, if its preconditions hold. After an error, abort the transaction.
    ///
    /// # Errors
    /// As `ReplicaStore::apply`.
    pub fn write(&self, txn: &mut RwTxn<'_>, writes: &WriteSet) -> Result<(), StoreError> {
        write::write(&self.tables, txn, writes.clone()).map_err(|failed| match failed {
            Failed::MapFull => StoreError::StoreFull { hint: "open the environment with a larger map_size".into() },
            Failed::MapResized => StoreError::backend("another process has made the map larger"),
            Failed::Unchanged(error) | Failed::Unknown(error) => error,
        })
    }

    /// Whether the transaction is on stable storage once it is committed.
    pub fn commits_are_synced(&self) -> bool {
        self.commits_are_synced
    }

    /// Whether the transaction of this number, or a later one, is committed.
    pub fn is_committed(&self, txn_id: usize) -> bool {
        on_env!(&self.env, env => env.info().last_txn_id) >= txn_id
    }

    // heed does not tell which database a handle stands for. But two handles stand for the same one if, in the same
    // transaction, their first entries lie at the same address: databases share no page.
    fn find<C, CDUP>(
        &mut self,
        database: &Database<'_, Bytes, Bytes, C, CDUP>,
        txn: &RoTxn<'_>,
    ) -> Result<Found, ScribeError> {
        let Some((sought, _)) = database.first(txn)? else { return Ok(Found::Empty) };
        let tables = self.tables.data();
        for index in std::iter::once(self.last).chain(0..tables.len()) {
            let first = tables[index].database.first(txn)?;
            if first.is_some_and(|(key, _)| std::ptr::eq(key.as_ptr(), sought.as_ptr())) {
                self.last = index;
                return Ok(Found::At(index));
            }
        }
        Ok(Found::Nowhere)
    }

    // As above, of a database that holds nothing: for the moment it gets an entry. A key of this width can be held in
    // every order.
    fn find_empty<C, CDUP>(
        &mut self,
        database: &Database<'_, Bytes, Bytes, C, CDUP>,
        txn: &mut RwTxn<'_>,
    ) -> Result<Option<usize>, ScribeError> {
        let probe = 0usize.to_ne_bytes();
        match database.put(txn, &probe, &[]) {
            // It wants values of one size: no table does.
            Err(heed::Error::Mdb(heed::MdbError::BadValSize)) => return Ok(None),
            put => put?,
        }
        let found = self.find(database, txn)?;
        database.delete(txn, &probe)?;
        Ok(match found {
            Found::At(index) => Some(index),
            Found::Empty | Found::Nowhere => None,
        })
    }

    fn full_key<'k>(&self, txn: &RoTxn<'_>, index: usize, native: &'k [u8]) -> Result<Cow<'k, [u8]>, ScribeError> {
        let table = &self.tables.data()[index];
        table.check(native.len(), table.width(txn)?)?;
        let key = table.full_key(native);
        let max = self.limits.max_key;
        if key.len() > max {
            return Err(StoreError::KeyTooLong { len: key.len(), max }.into());
        }
        let home = self.tables.index(&key);
        if home != index {
            let reason = format!("it begins with the prefix of table {}", self.tables.data()[home].name);
            return Err(StoreError::KeyUnfit { table: table.name.clone(), reason }.into());
        }
        Ok(key)
    }

    fn check_room(&self, bytes: usize) -> Result<(), ScribeError> {
        // Beside the bytes, an operation takes its tag and its lengths.
        let (len, max) = (self.batch.byte_len() + bytes + 22, self.limits.max_batch);
        if len > max { Err(StoreError::BatchTooLarge { len, max }.into()) } else { Ok(()) }
    }
}

fn no_table<KC, DC, C, CDUP>(database: &Database<'_, KC, DC, C, CDUP>) -> ScribeError {
    ScribeError::NoTable { database: format!("{database:?}") }
}
