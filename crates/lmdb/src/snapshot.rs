//! One instant of a store, read in place.

use heed::RoTxn;
use replikv_core::{Cursor, KeyRange, Keyspace, LinkId, Position, StoreError, meta};

use crate::entries::Entries;
use crate::table::Tables;

/// A store as it was at one instant. Values are borrowed from the map: nothing is copied.
///
/// See [`LmdbStore::read`](crate::LmdbStore::read).
#[derive(Clone, Copy)]
pub struct Snapshot<'s> {
    txn: &'s RoTxn<'s>,
    tables: &'s Tables,
}

impl<'s> Snapshot<'s> {
    pub(crate) fn new(txn: &'s RoTxn<'s>, tables: &'s Tables) -> Self {
        Self { txn, tables }
    }

    /// The value of `key`, or `None`. Keys are those of the store: of a table, the prefix and the key in byte order.
    ///
    /// # Errors
    /// `KeyEmpty`, `KeyUnfit` if its table cannot hold such a key, or what LMDB reports.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<&'s [u8]>, StoreError> {
        self.get_in(Keyspace::Data, key.as_ref())
    }

    /// The entries of `range`, in key order, over all tables.
    pub fn iter(&self, range: impl Into<KeyRange>) -> Entries<'s> {
        Entries::new(self.tables, self.txn, Keyspace::Data, &range.into(), false)
    }

    /// The entries of `range`, from the last to the first.
    pub fn iter_reverse(&self, range: impl Into<KeyRange>) -> Entries<'s> {
        Entries::new(self.tables, self.txn, Keyspace::Data, &range.into(), true)
    }

    /// The transaction, for the application's own typed databases: they show the same instant.
    pub fn txn(&self) -> &'s RoTxn<'s> {
        self.txn
    }

    /// On a slave: how far it had followed under `link` at this instant.
    ///
    /// # Errors
    /// `Corrupt` if what is stored is no cursor, or what LMDB reports.
    pub fn cursor(&self, link: &LinkId) -> Result<Option<Cursor>, StoreError> {
        let Some(bytes) = self.get_in(Keyspace::Meta, &meta::cursor_key(link))? else { return Ok(None) };
        let cursor = Cursor::from_bytes(bytes);
        cursor.map(Some).ok_or_else(|| StoreError::Corrupt { what: format!("the cursor of link {link}") })
    }

    /// On a slave that follows under the default link: the point of its master's history that this instant is, or `None`
    /// if it is none, before the first contact and while it copies.
    ///
    /// # Errors
    /// As [`cursor`](Self::cursor).
    pub fn position(&self) -> Result<Option<Position>, StoreError> {
        let cursor = self.cursor(&LinkId::default())?;
        Ok(cursor.filter(Cursor::is_consistent).map(|cursor| cursor.position))
    }

    fn get_in(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<&'s [u8]>, StoreError> {
        if key.is_empty() {
            return Err(StoreError::KeyEmpty);
        }
        self.tables.table(keyspace, key).get(self.txn, key)
    }
}

impl std::fmt::Debug for Snapshot<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("txn", &self.txn.id()).finish_non_exhaustive()
    }
}
