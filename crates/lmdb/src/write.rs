//! Applying a write set in one transaction.

use std::io;

use heed::RwTxn;
use replikv_core::{Chunk, KeyRange, Keyspace, Op, OwnedPart, StoreError, WriteSet};

use crate::book::Book;
use crate::env::Environment;
use crate::table::{Change, Tables, Tail};

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

/// Large values are freed piece by piece as they are copied, if nobody else holds `writes`.
pub(crate) fn apply(environment: &Environment, writes: WriteSet) -> Result<(), Failed> {
    let _open = environment.hold().map_err(Failed::Unchanged)?;
    let mut txn = environment.env().write_txn().map_err(classify)?;
    write(environment.tables(), &mut txn, writes)?;
    commit(environment, txn)
}

/// Commits a transaction that changes nothing.
pub(crate) fn settle(environment: &Environment) -> Result<(), Failed> {
    let _open = environment.hold().map_err(Failed::Unchanged)?;
    let mut txn = environment.env().write_txn().map_err(classify)?;
    // LMDB does not commit what touches no page; this does.
    Book::sign(environment.tables().book, &mut txn).map_err(Change::from)?;
    commit(environment, txn)
}

// Only here can an error leave doubt: pages are on their way to the disk.
fn commit(environment: &Environment, txn: RwTxn<'_>) -> Result<(), Failed> {
    txn.commit().map_err(|error| match classify(error) {
        Failed::Unchanged(error @ StoreError::StoreFull { .. }) if !has_panicked(environment) => {
            Failed::Unchanged(error)
        }
        Failed::Unchanged(error) => Failed::Unknown(StoreError::backend_unknown(error)),
        failed => failed,
    })
}

// A meta page that was not written, or in part, is read nevertheless; LMDB begins no transaction any more.
fn has_panicked(environment: &Environment) -> bool {
    matches!(environment.env().write_txn(), Err(heed::Error::Mdb(heed::MdbError::Panic)))
}

/// Puts a write set into a transaction, if its preconditions hold. After an error the transaction must be aborted.
pub(crate) fn write(tables: &Tables, txn: &mut RwTxn<'_>, writes: WriteSet) -> Result<(), Failed> {
    for required in writes.preconditions() {
        let found = tables.table(Keyspace::Meta, &required.key).get(txn, &required.key).map_err(Failed::Unchanged)?;
        if found != required.value.as_deref() {
            return Err(Failed::Unchanged(StoreError::HeadMoved));
        }
    }
    let is_empty = writes.is_empty();
    for Chunk { keyspace, ops } in writes.into_chunks() {
        let mut tails = Tails::default();
        for part in ops.into_parts() {
            match part {
                OwnedPart::Ops(ops) => {
                    for op in &ops {
                        change(tables, txn, &mut tails, keyspace, op)?;
                    }
                }
                OwnedPart::Put(put) => {
                    let index = if keyspace == Keyspace::Data { tables.index(put.key()) } else { 0 };
                    tables.table(keyspace, put.key()).put_large(txn, tails.of(index), put)?;
                }
            }
        }
    }
    // What changes nothing leaves no trace, not even this.
    if !is_empty {
        Book::sign(tables.book, txn).map_err(Change::from)?;
    }
    Ok(())
}

/// One tail for each table of a keyspace.
#[derive(Debug, Default)]
pub(crate) struct Tails(Vec<Tail>);

impl Tails {
    pub(crate) fn of(&mut self, index: usize) -> &mut Tail {
        if self.0.len() <= index {
            self.0.resize_with(index + 1, Tail::default);
        }
        &mut self.0[index]
    }
}

fn change(
    tables: &Tables,
    txn: &mut RwTxn<'_>,
    tails: &mut Tails,
    keyspace: Keyspace,
    op: Op<'_>,
) -> Result<(), Failed> {
    match op {
        Op::Put { key, value } => {
            let index = if keyspace == Keyspace::Data { tables.index(key) } else { 0 };
            tables.table(keyspace, key).put(txn, tails.of(index), key, value)?;
        }
        Op::Delete { key } => drop(tables.table(keyspace, key).delete(txn, key)?),
        Op::DeleteRange { start, end } => {
            let range = KeyRange::new(bytes::Bytes::copy_from_slice(start), end.map(bytes::Bytes::copy_from_slice));
            if !range.is_empty() {
                delete_range(tables, txn, keyspace, &range)?;
            }
        }
    }
    Ok(())
}

pub(crate) fn delete_range(
    tables: &Tables,
    txn: &mut RwTxn<'_>,
    keyspace: Keyspace,
    range: &KeyRange,
) -> Result<(), Change> {
    for segment in tables.segments(keyspace, range) {
        segment.table.delete_range(txn, &segment.inner)?;
    }
    Ok(())
}

impl From<Change> for Failed {
    fn from(change: Change) -> Self {
        match change {
            Change::Unfit(error) => Self::Unchanged(error),
            Change::Heed(error) => classify(error),
        }
    }
}

/// Also what LMDB makes of a write that came short, as the last one does before a disk is full.
const EIO: i32 = 5;

pub(crate) fn classify(error: heed::Error) -> Failed {
    let full = |hint: String| Failed::Unchanged(StoreError::StoreFull { hint });
    match error {
        heed::Error::Mdb(heed::MdbError::MapFull) => Failed::MapFull,
        heed::Error::Mdb(heed::MdbError::MapResized) => Failed::MapResized,
        heed::Error::Mdb(heed::MdbError::TxnFull) => {
            Failed::Unchanged(StoreError::Transient { reason: "the transaction touches too many pages".into() })
        }
        heed::Error::Mdb(heed::MdbError::Panic) => Failed::Unknown(StoreError::Fatal {
            reason: "LMDB could not write its meta page, as on a disk that fails or is full, and begins nothing more"
                .into(),
        }),
        heed::Error::Mdb(heed::MdbError::Corrupted | heed::MdbError::PageNotFound) => {
            Failed::Unchanged(StoreError::Corrupt { what: "a page is damaged".into() })
        }
        heed::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
            full("no space is left on the disk".into())
        }
        heed::Error::Io(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
            full("the disk quota is used up".into())
        }
        heed::Error::Io(error) if cfg!(unix) && error.raw_os_error() == Some(EIO) => {
            Failed::Unchanged(StoreError::backend(format!("the disk fails, or is full: {error}")))
        }
        error => Failed::Unchanged(StoreError::backend(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use replikv_core::Outcome;

    use super::*;

    #[test]
    fn an_environment_that_begins_nothing_more_must_be_opened_anew() {
        let failed = classify(heed::Error::Mdb(heed::MdbError::Panic));
        assert!(matches!(failed, Failed::Unknown(error) if error.outcome() == Outcome::Unknown));
    }
}
