//! A store of one's own, on the standard library alone: one append-only file, replayed into a map when it is opened.
//!
//! Each write set is one frame of the file: length, checksum, operations. A frame that is not whole was never
//! acknowledged, and is cut off when the file is opened again. `tests/custom_store.rs` runs the whole conformance suite
//! on it.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use replikv::blocking::{BlockingStore, Threaded, ThreadedOptions};
use replikv::{Durability, KeyRange, Keyspace, Op, Page, PageBuilder, ScanOptions, StoreError, StoreLimits, WriteSet};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// The largest file frame is a write set plus the little that its keyspaces need.
const LIMITS: StoreLimits = StoreLimits { max_key: 1024, max_value: 32 << 20, max_batch: 128 << 20 };
const HEADER: usize = 16;

/// One file, three maps.
#[derive(Debug)]
pub struct FileStore {
    file: Mutex<File>,
    maps: RwLock<[Map; 3]>,
}

/// Opens the store in `dir`, with the threads that make it asynchronous.
pub fn open(dir: &Path) -> Result<Threaded<FileStore>, StoreError> {
    let path = dir.join("store.log");
    Threaded::open("custom", ThreadedOptions::default(), move || FileStore::open(&path))
}

impl FileStore {
    fn open(path: &PathBuf) -> Result<Self, StoreError> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(backend)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { holder: path.display().to_string() }),
            Err(TryLockError::Error(error)) => return Err(backend(error)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(backend)?;
        let mut maps = [Map::new(), Map::new(), Map::new()];
        let mut whole = 0;
        while let Some(frame) = frame(&bytes[whole..]) {
            replay(frame, &mut maps)?;
            whole += HEADER + frame.len();
        }
        // What is left of a write that a crash has cut.
        file.set_len(whole as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(backend)?;
        Ok(Self { file: Mutex::new(file), maps: RwLock::new(maps) })
    }

    fn maps(&self) -> RwLockReadGuard<'_, [Map; 3]> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockingStore for FileStore {
    // One call at a time, on one thread: `Threaded` sees to that.
    fn apply(&self, writes: &WriteSet, durability: Durability) -> Result<(), StoreError> {
        {
            let maps = self.maps();
            let meta = &maps[index(Keyspace::Meta)];
            for condition in writes.preconditions() {
                if meta.get(&condition.key[..]).map(Vec::as_slice) != condition.value.as_deref() {
                    return Err(StoreError::HeadMoved);
                }
            }
        }
        let mut body = Vec::with_capacity(writes.byte_len() + 64);
        for (keyspace, op) in writes.ops() {
            encode(keyspace, op, &mut body);
        }
        let mut frame = Vec::with_capacity(HEADER + body.len());
        frame.extend_from_slice(&(body.len() as u64).to_le_bytes());
        frame.extend_from_slice(&checksum(&body).to_le_bytes());
        frame.extend_from_slice(&body);

        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // How much of a failed write has reached the file, nobody knows: reopening cuts it off, or finds it whole.
        file.write_all(&frame).map_err(StoreError::backend_unknown)?;
        if durability == Durability::Synced {
            file.sync_data().map_err(|error| StoreError::Fatal { reason: error.to_string() })?;
        }
        // All at once for readers, who hold the other side of this lock for a whole page.
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        replay(&body, &mut maps)
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        Ok(self.maps()[index(keyspace)].get(key).map(|value| bytes::Bytes::copy_from_slice(value)))
    }

    fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let mut page = PageBuilder::new(range.clone(), options);
        if range.is_empty() {
            return Ok(page.finish());
        }
        let maps = self.maps();
        let mut entries = maps[index(keyspace)].range::<[u8], _>(bounds(&range));
        while let Some((key, value)) = if options.reverse { entries.next_back() } else { entries.next() } {
            if page.push(key, value).is_full() {
                break;
            }
        }
        Ok(page.finish())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).sync_data().map_err(backend)
    }

    fn limits(&self) -> StoreLimits {
        LIMITS
    }

    fn reads_inline(&self) -> bool {
        true
    }
}

fn index(keyspace: Keyspace) -> usize {
    Keyspace::ALL.iter().position(|each| *each == keyspace).unwrap_or_default()
}

fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let end = range.end().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
    (Bound::Included(&range.start()[..]), end)
}

fn backend(error: io::Error) -> StoreError {
    StoreError::backend(error)
}

// SipHash of the standard library: it finds a torn frame; a store that must find rot would use a longer one.
fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

// The body of the first frame, if it is whole.
fn frame(bytes: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let len = usize::try_from(word(0)?).ok()?;
    let body = bytes.get(HEADER..HEADER.checked_add(len)?)?;
    (checksum(body) == word(8)?).then_some(body)
}

// An operation: a byte for keyspace and kind, then one or two pieces, each with its length.
fn encode(keyspace: Keyspace, op: Op<'_>, out: &mut Vec<u8>) {
    let (kind, one, two) = match op {
        Op::Put { key, value } => (0, key, Some(value)),
        Op::Delete { key } => (1, key, None),
        Op::DeleteRange { start, end: Some(end) } => (2, start, Some(end)),
        Op::DeleteRange { start, end: None } => (3, start, None),
    };
    out.push(kind * 3 + index(keyspace) as u8);
    for piece in std::iter::once(one).chain(two) {
        out.extend_from_slice(&(piece.len() as u32).to_le_bytes());
        out.extend_from_slice(piece);
    }
}

fn piece<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = body.split_at_checked(4)?;
    let (piece, rest) = rest.split_at_checked(u32::from_le_bytes(len.try_into().ok()?) as usize)?;
    *body = rest;
    Some(piece)
}

fn replay(mut body: &[u8], maps: &mut [Map; 3]) -> Result<(), StoreError> {
    let broken = || StoreError::Corrupt { what: "a frame with a good checksum does not decode".into() };
    while let Some((tag, rest)) = body.split_first() {
        body = rest;
        let map = &mut maps[usize::from(tag % 3)];
        let one = piece(&mut body).ok_or_else(broken)?;
        match tag / 3 {
            0 => drop(map.insert(one.to_vec(), piece(&mut body).ok_or_else(broken)?.to_vec())),
            1 => drop(map.remove(one)),
            kind => {
                let end = if kind == 2 { Some(piece(&mut body).ok_or_else(broken)?.to_vec().into()) } else { None };
                let range = KeyRange::new(one.to_vec(), end);
                if !range.is_empty() {
                    let gone: HashSet<Vec<u8>> =
                        map.range::<[u8], _>(bounds(&range)).map(|(key, _)| key.clone()).collect();
                    map.retain(|key, _| !gone.contains(key));
                }
            }
        }
    }
    Ok(())
}

#[allow(dead_code, reason = "the conformance tests include this file for its store alone")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    use replikv::{Batch, Master, MasterConfig, MemoryStore, Slave, SlaveConfig};
    let dir = tempfile::tempdir()?;
    let master = Master::open(open(dir.path())?, MasterConfig::default()).await?;
    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge-1")).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });
    let token = master.write(Batch::new().put("greeting", "hello").delete("old")).await?;
    slave.wait_applied(token).await?;
    println!("a store of 200 lines has fed a slave, up to record {}", token.seq);
    slave.shutdown().await?;
    Ok(master.shutdown().await?)
}
