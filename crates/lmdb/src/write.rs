//! Applying a write set in one transaction.

use std::io;
use std::ops::Bound;

use heed::{PutFlags, RwTxn};
use replikv_core::{KeyRange, Keyspace, Op, StoreError, WriteSet};

use crate::env::{Database, Environment};

/// The longest key that LMDB holds.
pub(crate) const MAX_KEY: usize = 511;

/// Why a transaction did not come to a commit.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The map is full: grow it, and apply again.
    MapFull,
    /// Another process has made the map larger: take that over, and apply again.
    MapResized,
    /// Nothing was written.
    Unchanged(StoreError),
    /// Nobody knows.
    Unknown(StoreError),
}

pub(crate) fn apply(environment: &Environment, writes: &WriteSet) -> Result<(), Failed> {
    let _open = environment.hold().map_err(Failed::Unchanged)?;
    let mut txn = environment.env().write_txn().map_err(unchanged)?;
    let meta = environment.database(Keyspace::Meta);
    for required in writes.preconditions() {
        if meta.get(&txn, &required.key).map_err(unchanged)? != required.value.as_deref() {
            return Err(Failed::Unchanged(StoreError::HeadMoved));
        }
    }
    for chunk in writes.chunks() {
        let database = environment.database(chunk.keyspace);
        let mut tail = Tail::Unknown;
        for op in &chunk.ops {
            change(database, &mut txn, &mut tail, op).map_err(unchanged)?;
        }
    }
    commit(txn)
}

/// Commits a transaction that changes nothing.
pub(crate) fn settle(environment: &Environment) -> Result<(), Failed> {
    const KEY: &[u8] = b"\0settle";
    let _open = environment.hold().map_err(Failed::Unchanged)?;
    let mut txn = environment.env().write_txn().map_err(unchanged)?;
    let meta = environment.database(Keyspace::Meta);
    // LMDB does not commit what touches no page.
    meta.put(&mut txn, KEY, &[]).map_err(unchanged)?;
    meta.delete(&mut txn, KEY).map_err(unchanged)?;
    commit(txn)
}

// Only here can an error leave doubt: pages are on their way to the disk.
fn commit(txn: RwTxn<'_>) -> Result<(), Failed> {
    txn.commit().map_err(|error| match classify(error) {
        Failed::Unchanged(error @ StoreError::StoreFull { .. }) => Failed::Unchanged(error),
        Failed::Unchanged(error) => Failed::Unknown(StoreError::backend_unknown(error)),
        failed => failed,
    })
}

/// What is known of the last key of a database: beyond it, entries are appended without a search, and pages are filled
/// to the brim.
enum Tail {
    Unknown,
    /// No key is above this one.
    AtMost(Vec<u8>),
}

impl Tail {
    fn is_below(&mut self, database: Database, txn: &RwTxn<'_>, key: &[u8]) -> heed::Result<bool> {
        if let Self::Unknown = self {
            let last = database.last(txn)?;
            *self = Self::AtMost(last.map(|(key, _)| key.to_vec()).unwrap_or_default());
        }
        Ok(matches!(self, Self::AtMost(last) if &last[..] < key))
    }

    fn raise(&mut self, key: &[u8]) {
        if let Self::AtMost(last) = self {
            last.clear();
            last.extend_from_slice(key);
        }
    }
}

fn change(database: Database, txn: &mut RwTxn<'_>, tail: &mut Tail, op: Op<'_>) -> heed::Result<()> {
    match op {
        Op::Put { key, value } => {
            if tail.is_below(database, txn, key)? {
                tail.raise(key);
                database.put_with_flags(txn, PutFlags::APPEND, key, value)
            } else {
                database.put(txn, key, value)
            }
        }
        Op::Delete { key } => database.delete(txn, key).map(drop),
        Op::DeleteRange { start: [], end: None } => database.clear(txn),
        Op::DeleteRange { start, end } => {
            let range = KeyRange::new(bytes::Bytes::copy_from_slice(start), end.map(bytes::Bytes::copy_from_slice));
            if range.is_empty() { Ok(()) } else { database.delete_range(txn, &bounds(&range)).map(drop) }
        }
    }
}

/// The bounds of a range that is not empty, brought to the length of keys: no key lies between a longer bound and its
/// beginning, except the beginning itself.
pub(crate) fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let start = match &range.start()[..] {
        [] => Bound::Unbounded,
        start if start.len() > MAX_KEY => Bound::Excluded(&start[..MAX_KEY]),
        start => Bound::Included(start),
    };
    let end = match range.end().map(|end| &end[..]) {
        None => Bound::Unbounded,
        Some(end) if end.len() > MAX_KEY => Bound::Included(&end[..MAX_KEY]),
        Some(end) => Bound::Excluded(end),
    };
    (start, end)
}

fn unchanged(error: heed::Error) -> Failed {
    classify(error)
}

fn classify(error: heed::Error) -> Failed {
    let full = |hint: String| Failed::Unchanged(StoreError::StoreFull { hint });
    match error {
        heed::Error::Mdb(heed::MdbError::MapFull) => Failed::MapFull,
        heed::Error::Mdb(heed::MdbError::MapResized) => Failed::MapResized,
        heed::Error::Mdb(heed::MdbError::TxnFull) => {
            Failed::Unchanged(StoreError::Transient { reason: "the transaction touches too many pages".into() })
        }
        heed::Error::Mdb(heed::MdbError::Corrupted | heed::MdbError::PageNotFound) => {
            Failed::Unchanged(StoreError::Corrupt { what: "a page is damaged".into() })
        }
        heed::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
            full("no space is left on the disk".into())
        }
        heed::Error::Io(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
            full("the disk quota is used up".into())
        }
        error => Failed::Unchanged(StoreError::backend(error.to_string())),
    }
}
