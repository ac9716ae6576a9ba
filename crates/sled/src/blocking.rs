//! sled behind the synchronous contract.
//!
//! One tree, keys prefixed by their keyspace. A batch of sled keeps no order and has no range delete, so write sets are
//! resolved first. An iterator of sled is no snapshot, so pages are taken under a lock that excludes `apply`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread::sleep;
use std::time::Duration;

use bytes::Bytes;
use replikv_blocking::BlockingStore;
use replikv_core::{Durability, KeyRange, Keyspace, Page, PageBuilder, ScanOptions, StoreError, StoreLimits, WriteSet};

use crate::{SledOptions, names};

/// An open database.
#[derive(Debug)]
pub(crate) struct Blocking {
    database: sled::Db,
    path: PathBuf,
    /// Files of large values that are on stable storage.
    synced_blobs: Mutex<BTreeSet<OsString>>,
    /// Pages are taken shared, write sets applied exclusively.
    view: RwLock<()>,
}

/// Larger keys and values work in sled, and cost more than they are worth.
const LIMITS: StoreLimits = StoreLimits { max_key: 1 << 16, max_value: 256 << 20, max_batch: 256 << 20 };
/// The lock of a database that was dropped a moment ago goes when its threads have ended.
const OPEN_ATTEMPTS: u32 = 40;
const OPEN_PAUSE: Duration = Duration::from_millis(50);

impl Blocking {
    pub(crate) fn open(path: &Path, options: &SledOptions) -> Result<Self, StoreError> {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(options.cache_bytes)
            // Durability is decided write set by write set.
            .flush_every_ms(None);
        let mut attempt = 0;
        let database = loop {
            match names::begin(path).and_then(|()| config.open()) {
                Ok(database) => break database,
                Err(error) if is_locked(&error) && attempt < OPEN_ATTEMPTS => {
                    attempt += 1;
                    sleep(OPEN_PAUSE);
                }
                Err(error) if is_locked(&error) => {
                    let holder = format!("{} is open in this or another process", path.display());
                    return Err(StoreError::Busy { holder });
                }
                Err(sled::Error::Io(error)) => {
                    return Err(StoreError::backend(format!("{} cannot be opened: {error}", path.display())));
                }
                Err(error) => return Err(failed(error)),
            }
        };
        names::settle(path)
            .map_err(|error| StoreError::backend(format!("{} cannot be synced: {error}", path.display())))?;
        Ok(Self { database, path: path.to_path_buf(), synced_blobs: Mutex::default(), view: RwLock::new(()) })
    }

    // `flush` starts writing pages out on Linux and does not wait for the disk; a sync of the files does. Large values
    // are in files of their own, which are written once; they come first, since recovery passes over the name of a large
    // value that is not there as if it had never been written.
    fn sync_files(&self) -> Result<(), StoreError> {
        self.sync_blobs()?;
        self.database.flush().map_err(unknown)?;
        // What sled has moved meanwhile.
        self.sync_blobs()?;
        sync_file(&self.path.join("db"))
    }

    fn sync_blobs(&self) -> Result<(), StoreError> {
        let blobs = self.path.join("blobs");
        let Ok(entries) = std::fs::read_dir(&blobs) else { return Ok(()) };
        let mut synced = self.synced_blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let present: BTreeSet<OsString> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        let new: Vec<_> = present.difference(&synced).collect();
        for blob in &new {
            sync_file(&blobs.join(blob))?;
        }
        if !new.is_empty() {
            sync_file(&blobs)?;
        }
        *synced = present;
        Ok(())
    }

    fn keys(&self, keyspace: Keyspace, range: &KeyRange) -> Result<Vec<Bytes>, StoreError> {
        let entries = self.database.range(prefixed_range(keyspace, range));
        entries.keys().map(|key| Ok(Bytes::copy_from_slice(&key.map_err(failed)?[1..]))).collect()
    }
}

impl BlockingStore for Blocking {
    // Synced whatever is asked for: of what sled has written since the last sync, power loss leaves any part, and a store
    // must keep a beginning of it, or nothing.
    fn apply(&self, writes: &WriteSet, _durability: Durability) -> Result<(), StoreError> {
        {
            // Nothing under this lock keeps anything half done that a panic could leave behind.
            let _excluded = self.view.write().unwrap_or_else(PoisonError::into_inner);
            for required in writes.preconditions() {
                let held = self.database.get(prefixed(Keyspace::Meta, &required.key)).map_err(failed)?;
                if held.as_deref() != required.value.as_deref() {
                    return Err(StoreError::HeadMoved);
                }
            }
            let mut batch = sled::Batch::default();
            let resolved = writes.resolve(|keyspace, range| self.keys(keyspace, range))?;
            for (keyspace, key, value) in resolved.iter() {
                match value {
                    Some(value) => batch.insert(prefixed(keyspace, key), value),
                    None => batch.remove(prefixed(keyspace, key)),
                }
            }
            self.database.apply_batch(batch).map_err(unknown)?;
        }
        self.sync_files()
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self.database.get(prefixed(keyspace, key)).map_err(failed)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let mut page = PageBuilder::new(range.clone(), options);
        if range.is_empty() {
            return Ok(page.finish());
        }
        let _shared = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let mut entries = self.database.range(prefixed_range(keyspace, &range));
        while let Some(entry) = if options.reverse { entries.next_back() } else { entries.next() } {
            let (key, value) = entry.map_err(failed)?;
            if page.push(&key[1..], &value).is_full() {
                break;
            }
        }
        Ok(page.finish())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.sync_files()
    }

    fn limits(&self) -> StoreLimits {
        LIMITS
    }
}

fn sync_file(path: &Path) -> Result<(), StoreError> {
    match File::open(path).and_then(|file| file.sync_all()) {
        // A large value that was replaced meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::Fatal { reason: format!("{} cannot be synced: {error}", path.display()) }),
        Ok(()) => Ok(()),
    }
}

fn prefix(keyspace: Keyspace) -> u8 {
    match keyspace {
        Keyspace::Data => b'd',
        Keyspace::Log => b'l',
        Keyspace::Meta => b'm',
    }
}

fn prefixed(keyspace: Keyspace, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 1);
    bytes.push(prefix(keyspace));
    bytes.extend_from_slice(key);
    bytes
}

fn prefixed_range(keyspace: Keyspace, range: &KeyRange) -> std::ops::Range<Vec<u8>> {
    let end = range.end().map_or_else(|| vec![prefix(keyspace) + 1], |end| prefixed(keyspace, end));
    prefixed(keyspace, range.start())..end
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn failed(error: sled::Error) -> StoreError {
    match error {
        sled::Error::Corruption { at, .. } => StoreError::Corrupt { what: format!("a page is damaged, at {at:?}") },
        sled::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            StoreError::StoreFull { hint: "no space is left on the disk".into() }
        }
        error => StoreError::backend(error),
    }
}

// Once a batch was handed over, an error does not tell how far it came.
fn unknown(error: sled::Error) -> StoreError {
    match failed(error) {
        StoreError::Backend { source, .. } => StoreError::backend_unknown(source.to_string()),
        error => StoreError::backend_unknown(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_of_a_keyspace_is_its_prefix() {
        for keyspace in Keyspace::ALL {
            let range = prefixed_range(keyspace, &KeyRange::all());
            assert!(range.contains(&prefixed(keyspace, &[0xFF; 100])));
            for other in Keyspace::ALL.into_iter().filter(|other| *other != keyspace) {
                assert!(!range.contains(&prefixed(other, &[0])) && !range.contains(&prefixed(other, &[0xFF; 9])));
            }
        }
    }
}
