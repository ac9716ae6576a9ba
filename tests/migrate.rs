//! An application moves from one engine to another while it writes: what it was told is there, each write once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{Error, Store, assert_equal, contents, open, print_seed, seed, soon};
use bytes::Bytes;
use fastrand::Rng;
use replikv::{
    Abort, Batch, Durability, Keyspace, Master, MasterConfig, MemoryStore, Op, OpenError, Retention, Seq, Slave,
    SlaveConfig, TransactView, VerifyOptions, WriteError, WriteSet, read_log,
};
use tokio::sync::RwLock;
use tokio::time::sleep;

const WRITERS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(60);
const COUNTER: &[u8] = b"counter";
const MOMENT: Duration = Duration::from_millis(1);

/// What everybody has.
struct Application {
    /// Whoever is master by now.
    current: RwLock<Master<Store>>,
    /// How many writes were acknowledged.
    written: AtomicU64,
    /// How many were refused, since their master had handed over.
    refused: AtomicU64,
    stop: AtomicBool,
}

impl Application {
    async fn until(&self, count: &AtomicU64, more: u64) {
        let wanted = count.load(Ordering::Relaxed) + more;
        soon(async {
            while count.load(Ordering::Relaxed) < wanted {
                sleep(MOMENT).await;
            }
        })
        .await;
    }
}

/// What one writer was told.
#[derive(Debug, Default)]
struct Told {
    holds: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The key of each write: no two write the same.
    keys: Vec<Vec<u8>>,
    /// How many of them went through the counter.
    counted: u64,
}

fn number(value: Option<Bytes>) -> Result<u64, Abort> {
    let number = value.map_or(Ok([0; 8]), |value| value[..].try_into());
    number.map(u64::from_be_bytes).map_err(|_| Abort::refuse("it is no number"))
}

fn counts(view: &TransactView<'_>, batch: Batch) -> Result<Batch, Abort> {
    Ok(batch.put(COUNTER, (number(view.get(COUNTER)?)? + 1).to_be_bytes()))
}

/// Writes until it is told to stop. What a master has refused that had handed over is said to the next one.
async fn write(writer: u64, application: Arc<Application>, mut rng: Rng) -> Result<Told, Error> {
    let mut told = Told::default();
    while !application.stop.load(Ordering::Relaxed) {
        let key = [&b"w"[..], &writer.to_be_bytes(), &told.keys.len().to_be_bytes()].concat();
        let value = vec![rng.u8(..); if rng.u8(..50) == 0 { 30_000 } else { rng.usize(..200) }];
        let gone = told.holds.keys().nth(rng.usize(..100)).cloned();
        let mut batch = Batch::new().put(&key, &value);
        if let Some(gone) = &gone {
            batch = batch.delete(gone);
        }
        let counted = rng.bool();
        loop {
            let (master, batch) = (application.current.read().await.clone(), batch.clone());
            let written = match counted {
                true => master.transact(move |view, _| counts(view, batch.clone())).await,
                false => master.write(batch).await,
            };
            match written {
                Ok(_) => break,
                Err(WriteError::Superseded { by: None } | WriteError::Closed) => {
                    application.refused.fetch_add(1, Ordering::Relaxed);
                    sleep(MOMENT).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        application.written.fetch_add(1, Ordering::Relaxed);
        gone.iter().for_each(|gone| drop(told.holds.remove(gone)));
        told.holds.insert(key.clone(), value);
        told.keys.push(key);
        told.counted += u64::from(counted);
        tokio::task::yield_now().await;
    }
    Ok(told)
}

fn config() -> MasterConfig {
    let retention = Retention { max_bytes: u64::MAX, max_age_ms: None, hold_back_bytes: u64::MAX };
    MasterConfig::default().retention(retention)
}

/// The key of each write that is in the log.
async fn logged(master: &Master<Store>) -> Result<Vec<Vec<u8>>, Error> {
    let mut keys = Vec::new();
    for record in read_log(master.store(), Seq::ZERO, usize::MAX).await? {
        keys.extend(record.body().iter().filter_map(|op| match op {
            Op::Put { key, .. } if key != COUNTER => Some(key.to_vec()),
            _ => None,
        }));
    }
    Ok(keys)
}

/// Moves the application to the store that `next` opens, which is empty. Returns what the one before has logged.
async fn migrate(
    application: &Application,
    name: &str,
    next: impl Fn() -> Store,
    before: impl Fn() -> Store,
    rng: &mut Rng,
) -> Result<Vec<Vec<u8>>, Error> {
    let old = application.current.read().await.clone();
    let slave = Slave::open(next(), SlaveConfig::new(name)).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (old.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(there).await });
    tokio::spawn(async move { following.follow(here).await });
    soon(slave.wait_caught_up()).await?;
    let report = soon(slave.verify(VerifyOptions::default())).await?;
    assert!(report.is_equal(), "{report:?}");
    application.until(&application.written, rng.u64(..200)).await;

    let asked = old.clone();
    let dial = move || {
        let (here, there) = tokio::io::duplex(64 << 10);
        let asked = asked.clone();
        tokio::spawn(async move { asked.serve(there).await });
        std::future::ready(Ok(here))
    };
    let took_over = soon(slave.take_over(dial, PATIENCE)).await?;
    assert_eq!(took_over.promoted.last, took_over.handed_over.position);
    // Nobody is told anything else, while there is no master.
    application.until(&application.refused, WRITERS).await;
    assert_eq!(old.status().published, took_over.handed_over.position);
    let store = next();
    assert_equal(old.store(), &store).await;
    let logged = logged(&old).await?;
    *application.current.write().await = Master::open(store, config()).await?;
    old.shutdown().await?;
    let again = Master::open(before(), config()).await.map(drop);
    assert!(matches!(&again, Err(OpenError::Superseded { .. })), "{again:?}");
    // It goes on with the new engine.
    application.until(&application.written, 100).await;
    Ok(logged)
}

fn place(kind: &str, dir: &Path, memory: &MemoryStore) -> Store {
    match kind {
        // Closed and opened again it is the same one.
        "memory" => Arc::new(memory.open_again()),
        kind => open(kind, &dir.join(kind)),
    }
}

async fn moves(test: &str, kinds: [&str; 3]) -> Result<(), Error> {
    let seed = seed();
    print_seed(&format!("--test integration migrate::{test}"), seed);
    let mut rng = Rng::with_seed(seed);
    let (dir, memory) = (tempfile::tempdir()?, MemoryStore::new());
    let at = |kind| place(kind, dir.path(), &memory);
    // What the application had before there was a master.
    let mut there = WriteSet::builder();
    let mut wanted = BTreeMap::new();
    for n in 0..2_000u32 {
        let (key, value) = (n.to_be_bytes().to_vec(), vec![rng.u8(..); rng.usize(..100)]);
        there.put(Keyspace::Data, &key, &value)?;
        wanted.insert(key, value);
    }
    let first = at(kinds[0]);
    first.apply(there.build(), Durability::Synced).await?;
    let application = Arc::new(Application {
        current: RwLock::new(Master::open(first, config()).await?),
        written: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(writer, application.clone(), rng.fork()))).collect();
    let mut logged_keys = Vec::new();
    for pair in kinds.windows(2) {
        let moved = migrate(&application, pair[1], || at(pair[1]), || at(pair[0]), &mut rng).await?;
        logged_keys.extend(moved);
    }
    application.stop.store(true, Ordering::Relaxed);
    let (mut acknowledged, mut counted) = (Vec::new(), 0u64);
    for writer in writers {
        let told = soon(writer).await??;
        wanted.extend(told.holds);
        acknowledged.extend(told.keys);
        counted += told.counted;
    }
    wanted.insert(COUNTER.to_vec(), counted.to_be_bytes().to_vec());
    let last = application.current.read().await.clone();
    logged_keys.extend(logged(&last).await?);
    logged_keys.sort();
    acknowledged.sort();
    assert!(logged_keys == acknowledged, "what is logged is not what was acknowledged, each write once");
    let holds = contents(last.store()).await.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec()));
    assert!(holds.eq(wanted), "the last store holds something else than was acknowledged");
    println!("{} writes, {} of them refused at first", acknowledged.len(), application.refused.load(Ordering::Relaxed));
    last.shutdown().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lmdb_to_sled_to_memory() -> Result<(), Error> {
    moves("lmdb_to_sled_to_memory", ["lmdb", "sled", "memory"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_to_lmdb_to_sled() -> Result<(), Error> {
    moves("memory_to_lmdb_to_sled", ["memory", "lmdb", "sled"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redb_to_fjall_to_lmdb() -> Result<(), Error> {
    moves("redb_to_fjall_to_lmdb", ["redb", "fjall", "lmdb"]).await
}
