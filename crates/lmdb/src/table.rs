//! One ordered map over several named databases: each table holds the keys that begin with its prefix, the rest database
//! all others.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::Write;
use std::ops::Bound;

use bytes::Bytes;
use heed::{PutFlags, RoTxn, RwTxn};
use replikv_core::{KeyRange, Keyspace, LargePut, StoreError, Subspace};

use crate::databases::Database;
use crate::options::LmdbOrder;

/// A named database, and the keys that live in it.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) database: Database,
    pub(crate) order: LmdbOrder,
    prefix: Bytes,
    /// The full keys that live here. The prefix itself is none of them: a native key is not empty.
    range: KeyRange,
}

/// The databases of a store.
#[derive(Debug)]
pub(crate) struct Tables {
    /// The rest database first, then the tables by prefix.
    data: Vec<Table>,
    log: Table,
    meta: Table,
    pub(crate) book: Database,
}

/// A part of a range, within one table.
#[derive(Debug)]
pub(crate) struct Segment<'t> {
    pub(crate) table: &'t Table,
    /// In wire form, without the prefix.
    pub(crate) inner: KeyRange,
}

impl Segment<'_> {
    /// The full keys of it.
    pub(crate) fn full_range(&self) -> KeyRange {
        let full = |inner: &[u8]| Bytes::from([&self.table.prefix[..], inner].concat());
        let end = self.inner.end().map(|end| full(end)).or_else(|| self.table.range.end().cloned());
        KeyRange::new(full(self.inner.start()), end)
    }
}

/// The prefix of a table that has all keys of its keyspace.
const NO_PREFIX: Bytes = Bytes::new();

impl Table {
    pub(crate) fn of_subspace(name: &str, database: Database, order: LmdbOrder, space: &Subspace) -> Self {
        let prefix = space.prefix().clone();
        let range = space.range().after(&prefix);
        Self { name: name.into(), database, order, prefix, range }
    }

    pub(crate) fn whole(name: &str, database: Database) -> Self {
        Self { name: name.into(), database, order: LmdbOrder::Bytes, prefix: NO_PREFIX, range: KeyRange::all() }
    }

    /// The full keys that live here.
    pub(crate) fn range(&self) -> &KeyRange {
        &self.range
    }

    /// A key without the prefix, still in wire form. `key` must be one that lives here.
    fn inner<'k>(&self, key: &'k [u8]) -> &'k [u8] {
        key.get(self.prefix.len()..).unwrap_or_default()
    }

    /// The full key of a native one.
    pub(crate) fn full_key<'k>(&self, native: &'k [u8]) -> Cow<'k, [u8]> {
        let inner = self.order.turn(native);
        if self.prefix.is_empty() { inner } else { Cow::Owned([&self.prefix[..], &inner].concat()) }
    }

    /// The native form of a full key that lives here.
    ///
    /// # Errors
    /// `KeyUnfit` if the table cannot hold it.
    pub(crate) fn native<'k>(&self, txn: &RoTxn<'_>, key: &'k [u8]) -> Result<Cow<'k, [u8]>, StoreError> {
        let inner = self.inner(key);
        self.check(inner.len(), self.width(txn)?)?;
        Ok(self.order.turn(inner))
    }

    /// The width of integer keys, if there are any.
    pub(crate) fn width(&self, txn: &RoTxn<'_>) -> Result<Option<usize>, StoreError> {
        if self.order != LmdbOrder::IntegerKeys {
            return Ok(None);
        }
        Ok(self.database.first(txn).map_err(read_failed)?.map(|(key, _)| key.len()))
    }

    /// # Errors
    /// `KeyUnfit` if a key of this length cannot be held beside those of `width`.
    pub(crate) fn check(&self, len: usize, width: Option<usize>) -> Result<(), StoreError> {
        match self.order.refuses(len, width) {
            Some(reason) => Err(StoreError::KeyUnfit { table: self.name.clone(), reason }),
            None => Ok(()),
        }
    }

    pub(crate) fn get<'t>(&self, txn: &'t RoTxn<'_>, key: &[u8]) -> Result<Option<&'t [u8]>, StoreError> {
        let native = self.native(txn, key)?;
        self.database.get(txn, &native).map_err(read_failed)
    }

    /// Puts a full key that lives here.
    pub(crate) fn put(&self, txn: &mut RwTxn<'_>, tail: &mut Tail, key: &[u8], value: &[u8]) -> Result<(), Change> {
        let inner = self.inner(key);
        tail.load(self, txn)?;
        self.check(inner.len(), tail.width)?;
        let native = self.order.turn(inner);
        let flags = if tail.is_below(inner) { PutFlags::APPEND } else { PutFlags::empty() };
        self.database.put_with_flags(txn, flags, &native, value)?;
        tail.put(self, inner);
        Ok(())
    }

    /// Puts a full key that lives here, the value piece by piece: each is freed as soon as it is copied, so that the value
    /// is in memory once, and a piece of it twice.
    pub(crate) fn put_large(&self, txn: &mut RwTxn<'_>, tail: &mut Tail, put: LargePut) -> Result<(), Change> {
        // Its own copy: the key must outlive what it came with.
        let key = put.key().to_vec();
        let inner = self.inner(&key);
        tail.load(self, txn)?;
        self.check(inner.len(), tail.width)?;
        let native = self.order.turn(inner);
        self.database.put_reserved(txn, &native, put.value_len(), |space| {
            put.into_segments().into_iter().try_for_each(|segment| space.write_all(&segment))
        })?;
        tail.put(self, inner);
        Ok(())
    }

    /// Deletes a full key that lives here, if it is there.
    pub(crate) fn delete(&self, txn: &mut RwTxn<'_>, key: &[u8]) -> Result<bool, Change> {
        let native = self.native(txn, key)?;
        Ok(self.database.delete(txn, &native)?)
    }

    /// Deletes what lies in `inner`, a range in wire form and without the prefix. True if anything did.
    pub(crate) fn delete_range(&self, txn: &mut RwTxn<'_>, inner: &KeyRange) -> Result<bool, Change> {
        // The smallest key is a zero byte.
        let from_first = inner.start().len() <= 1 && inner.start().iter().all(|byte| *byte == 0);
        if from_first && inner.end().is_none() {
            let had_any = !self.database.is_empty(txn)?;
            // What is empty is left alone: clearing it would touch it.
            if had_any {
                self.database.clear(txn)?;
            }
            return Ok(had_any);
        }
        let width = self.width(txn)?;
        let Some((start, end)) = self.order.bounds(inner, width) else { return Ok(false) };
        if self.order == LmdbOrder::Bytes {
            let bounds = (as_slice(&start), as_slice(&end));
            return Ok(self.database.delete_range(txn, &bounds)? > 0);
        }
        // heed compares ends as bytes.
        let mut any = false;
        loop {
            let mut keys: Vec<Vec<u8>> = Vec::new();
            for entry in self.database.range(txn, &(as_slice(&start), Bound::Unbounded))? {
                let (native, _) = entry?;
                if keys.len() == DELETED_AT_ONCE
                    || inner.end().is_some_and(|end| self.order.turn(native)[..] >= end[..])
                {
                    break;
                }
                keys.push(native.to_vec());
            }
            for native in &keys {
                any |= self.database.delete(txn, native)?;
            }
            if keys.len() < DELETED_AT_ONCE {
                return Ok(any);
            }
        }
    }
}

const DELETED_AT_ONCE: usize = 1024;

impl Tables {
    pub(crate) fn new(rest: Table, mut tables: Vec<Table>, log: Table, meta: Table, book: Database) -> Self {
        tables.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        tables.insert(0, rest);
        Self { data: tables, log, meta, book }
    }

    /// Those of the data: the rest database first, then the tables by prefix.
    pub(crate) fn data(&self) -> &[Table] {
        &self.data
    }

    /// What the pages of the data take.
    pub(crate) fn data_bytes(&self, txn: &RoTxn<'_>) -> Result<u64, StoreError> {
        self.data.iter().try_fold(0, |bytes, table| {
            let pages = table.database.stat(txn).map_err(read_failed)?;
            Ok(bytes + (pages.leaf_pages + pages.overflow_pages) as u64 * u64::from(pages.page_size))
        })
    }

    /// Where `key` lives.
    pub(crate) fn table(&self, keyspace: Keyspace, key: &[u8]) -> &Table {
        match keyspace {
            Keyspace::Log => &self.log,
            Keyspace::Meta => &self.meta,
            Keyspace::Data => &self.data[self.index(key)],
        }
    }

    /// Which of [`data`](Self::data) a key lives in.
    pub(crate) fn index(&self, key: &[u8]) -> usize {
        let tables = &self.data[1..];
        // Prefixes do not overlap: only the last one below the key can be its own.
        let below = tables.partition_point(|table| table.prefix[..] < *key);
        if below > 0 && key.starts_with(&tables[below - 1].prefix) { below } else { 0 }
    }

    /// The parts of a range, in key order.
    pub(crate) fn segments(&self, keyspace: Keyspace, range: &KeyRange) -> VecDeque<Segment<'_>> {
        let (rest, tables) = match keyspace {
            Keyspace::Log => (&self.log, &[][..]),
            Keyspace::Meta => (&self.meta, &[][..]),
            Keyspace::Data => (&self.data[0], &self.data[1..]),
        };
        let mut segments = VecDeque::new();
        let mut push = |table, inner: KeyRange| {
            if !inner.is_empty() {
                segments.push_back(Segment { table, inner });
            }
        };
        let mut from = Some(Bytes::new());
        for table in tables {
            let Some(start) = from else { break };
            push(rest, KeyRange::new(start, Some(table.range.start().clone())).intersect(range));
            let part = table.range.intersect(range);
            if !part.is_empty() {
                let cut = table.prefix.len();
                // An end that does not begin with the prefix lies behind the table.
                let end = part.end().filter(|end| end.starts_with(&table.prefix)).map(|end| end.slice(cut..));
                push(table, KeyRange::new(part.start().slice(cut..), end));
            }
            from = table.range.end().cloned();
        }
        if let Some(start) = from {
            push(rest, KeyRange::new(start, None).intersect(range));
        }
        segments
    }
}

/// What is known of the last key of a table: beyond it, entries are appended without a search, and pages are filled to
/// the brim.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    loaded: bool,
    /// No key is above this one: in wire form, without the prefix; empty if there is none.
    at_most: Vec<u8>,
    width: Option<usize>,
}

impl Tail {
    fn load(&mut self, table: &Table, txn: &RoTxn<'_>) -> heed::Result<()> {
        if !self.loaded {
            let last = table.database.last(txn)?;
            self.width = last.map(|(native, _)| native.len());
            self.at_most = last.map(|(native, _)| table.order.turn(native).into_owned()).unwrap_or_default();
            self.loaded = true;
        }
        Ok(())
    }

    fn is_below(&self, inner: &[u8]) -> bool {
        self.at_most[..] < *inner
    }

    fn put(&mut self, table: &Table, inner: &[u8]) {
        if table.order == LmdbOrder::IntegerKeys {
            self.width = Some(inner.len());
        }
        if self.is_below(inner) {
            self.at_most.clear();
            self.at_most.extend_from_slice(inner);
        }
    }
}

/// Why a change could not be made.
#[derive(Debug)]
pub(crate) enum Change {
    /// The table cannot hold it.
    Unfit(StoreError),
    /// LMDB said no.
    Heed(heed::Error),
}

impl From<StoreError> for Change {
    fn from(error: StoreError) -> Self {
        Self::Unfit(error)
    }
}

impl From<heed::Error> for Change {
    fn from(error: heed::Error) -> Self {
        Self::Heed(error)
    }
}

pub(crate) fn as_slice<'a>(bound: &'a Bound<Cow<'_, [u8]>>) -> Bound<&'a [u8]> {
    bound.as_ref().map(|key| &key[..])
}

pub(crate) fn read_failed(error: heed::Error) -> StoreError {
    match error {
        heed::Error::Mdb(heed::MdbError::Corrupted | heed::MdbError::PageNotFound) => {
            StoreError::Corrupt { what: "a page is damaged".into() }
        }
        error => StoreError::backend(error.to_string()),
    }
}
