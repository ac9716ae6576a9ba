//! redb behind the synchronous contract.

use std::ops::Bound;
use std::path::Path;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use replikv_blocking::BlockingStore;
use replikv_core::{
    Durability, KeyRange, Keyspace, Op, Page, PageBuilder, ScanOptions, StoreError, StoreLimits, WriteSet,
};

use crate::RedbOptions;
use crate::error::{failed, unknown};
use crate::file;

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

const DATA: Table = TableDefinition::new("data");
const LOG: Table = TableDefinition::new("replikv-log");
const META: Table = TableDefinition::new("replikv-meta");

pub(crate) const TABLES: [Table; 3] = [DATA, LOG, META];

/// Larger keys and values work in redb, and cost more than they are worth.
const LIMITS: StoreLimits = StoreLimits { max_key: 1 << 16, max_value: 256 << 20, max_batch: 256 << 20 };

/// An open database.
#[derive(Debug)]
pub(crate) struct Blocking {
    database: Database,
}

impl Blocking {
    pub(crate) fn open(path: &Path, options: &RedbOptions) -> Result<Self, StoreError> {
        Ok(Self { database: file::open(path, options)? })
    }
}

fn table(keyspace: Keyspace) -> Table {
    match keyspace {
        Keyspace::Data => DATA,
        Keyspace::Log => LOG,
        Keyspace::Meta => META,
    }
}

fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let end = range.end().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
    (Bound::Included(&range.start()[..]), end)
}

impl BlockingStore for Blocking {
    // Synced whatever is asked for: what redb commits without that is in memory only, and a killed process must lose
    // nothing.
    fn apply(&self, writes: &WriteSet, _durability: Durability) -> Result<(), StoreError> {
        let txn = self.database.begin_write().map_err(failed)?;
        {
            let mut data = txn.open_table(DATA).map_err(failed)?;
            let mut log = txn.open_table(LOG).map_err(failed)?;
            let mut meta = txn.open_table(META).map_err(failed)?;
            for required in writes.preconditions() {
                let found = meta.get(&required.key[..]).map_err(failed)?;
                if found.as_ref().map(redb::AccessGuard::value) != required.value.as_deref() {
                    return Err(StoreError::HeadMoved);
                }
            }
            for (keyspace, op) in writes.ops() {
                let table = match keyspace {
                    Keyspace::Data => &mut data,
                    Keyspace::Log => &mut log,
                    Keyspace::Meta => &mut meta,
                };
                match op {
                    Op::Put { key, value } => drop(table.insert(key, value).map_err(unknown)?),
                    Op::Delete { key } => drop(table.remove(key).map_err(unknown)?),
                    Op::DeleteRange { start, end } => {
                        if end.is_none_or(|end| start < end) {
                            let end = end.map_or(Bound::Unbounded, Bound::Excluded);
                            let gone = table.retain_in::<&[u8], _>((Bound::Included(start), end), |_, _| false);
                            gone.map_err(unknown)?;
                        }
                    }
                }
            }
        }
        txn.commit().map_err(unknown)
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let txn = self.database.begin_read().map_err(failed)?;
        let table = txn.open_table(table(keyspace)).map_err(failed)?;
        let value = table.get(key).map_err(failed)?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }

    fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let mut page = PageBuilder::new(range.clone(), options);
        if range.is_empty() {
            return Ok(page.finish());
        }
        let txn = self.database.begin_read().map_err(failed)?;
        let table = txn.open_table(table(keyspace)).map_err(failed)?;
        let mut entries = table.range::<&[u8]>(bounds(&range)).map_err(failed)?;
        while let Some(entry) = if options.reverse { entries.next_back() } else { entries.next() } {
            let (key, value) = entry.map_err(failed)?;
            if page.push(key.value(), value.value()).is_full() {
                break;
            }
        }
        Ok(page.finish())
    }

    // Every write set is on stable storage already.
    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn limits(&self) -> StoreLimits {
        LIMITS
    }
}
