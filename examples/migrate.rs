//! An application moves from one engine to another while it writes: LMDB to sled, and on to memory.
//!
//! ```sh
//! cargo run --all-features --example migrate
//! ```
//!
//! The new store begins as a slave. When it is near, the master hands over: writers wait for a moment, and go on with the
//! new master. Nothing that was acknowledged is lost, and each store is compared with the one before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use replikv::{
    Batch, KeyRange, Keyspace, LmdbOptions, LmdbStore, Master, MasterConfig, MemoryStore, ReplicaStore,
    ReplicaStoreExt, ScanOptions, Slave, SlaveConfig, SledStore, WriteError,
};
use tokio::sync::RwLock;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Store = Arc<dyn ReplicaStore>;

/// What the application writes to, wherever that is by now.
type Current = Arc<RwLock<Master<Store>>>;

const WRITERS: u64 = 4;
/// How long the old master waits for the new store.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let lmdb: Store = Arc::new(LmdbStore::open(dir.path().join("lmdb"), LmdbOptions::default())?);
    let first = Master::open(lmdb, MasterConfig::default()).await?;
    for part in 0..50u64 {
        let entries = part * 100..(part + 1) * 100;
        first.write(entries.fold(Batch::new(), |batch, n| batch.put(key(WRITERS, n), "there before"))).await?;
    }
    let current: Current = Arc::new(RwLock::new(first));
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let write_on = |writer| tokio::spawn(write(writer, current.clone(), stop.clone(), written.clone()));
    let writers: Vec<_> = (0..WRITERS).map(write_on).collect();

    // A store that is promoted is closed, and opened again as a master's: in memory it is the same one.
    let sled = || SledStore::open(dir.path().join("sled")).map(|store| Arc::new(store) as Store);
    let memory = MemoryStore::new();
    let memory = || Ok(Arc::new(memory.open_again()) as Store);
    migrate("sled", sled, &current, &written).await?;
    migrate("memory", memory, &current, &written).await?;

    stop.store(true, Ordering::Relaxed);
    let master = current.read().await.clone();
    let mut acknowledged = 0;
    for (number, writer) in (0..WRITERS).zip(writers) {
        for n in 0..writer.await?? {
            if master.get(key(number, n)).await?.as_deref() != Some(&n.to_be_bytes()[..]) {
                return Err(format!("write {n} of writer {number} is lost").into());
            }
            acknowledged += 1;
        }
    }
    println!("all {acknowledged} acknowledged writes are there");
    Ok(())
}

/// Moves the application to the store that `open` opens, which is empty.
async fn migrate(
    name: &str,
    open: impl Fn() -> Result<Store, replikv::StoreError>,
    current: &Current,
    written: &AtomicU64,
) -> Result<(), Error> {
    let old = current.read().await.clone();
    let (before, begun) = (written.load(Ordering::Relaxed), Instant::now());
    let slave = Slave::open(open()?, SlaveConfig::new(name)).await?;
    let (here, there) = tokio::io::duplex(1 << 20);
    let (serving, following) = (old.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(there).await });
    tokio::spawn(async move { following.follow(here).await });
    slave.wait_caught_up().await?;
    let (during, copy) = (written.load(Ordering::Relaxed) - before, begun.elapsed());

    let handed_over = old.hand_over(name, PATIENCE).await?;
    let begun = Instant::now();
    let mut place = current.write().await;
    let promoted = slave.promote().await?;
    if promoted.last != handed_over.position {
        return Err("the new store stands elsewhere".into());
    }
    let new = Master::open(open()?, MasterConfig::default()).await?;
    let waited = Duration::from_micros(handed_over.pause_us) + begun.elapsed();
    // While nobody writes: an application would not wait for this.
    let entries = equal(old.store(), new.store()).await?;
    *place = new;
    drop(place);
    old.shutdown().await?;
    println!("moved to {name}: {during} writes during the copy of {copy:.1?}, {entries} entries equal");
    // Each writer says the next one when it has an answer.
    let write = copy.as_secs_f64() * WRITERS as f64 / during.max(1) as f64;
    let (writes, copies) = (waited.as_secs_f64() / write, waited.as_secs_f64() / copy.as_secs_f64());
    println!("  writers waited {waited:.1?}: {writes:.1} times as long as for a write, {copies:.2} times the copy");

    // It goes on with the new engine.
    let until = written.load(Ordering::Relaxed) + 200;
    while written.load(Ordering::Relaxed) < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Writes until it is told to stop. A write that the old master has refused is said again to the new one.
async fn write(writer: u64, current: Current, stop: Arc<AtomicBool>, written: Arc<AtomicU64>) -> Result<u64, Error> {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let master = current.read().await.clone();
        match master.put(key(writer, n), n.to_be_bytes()).await {
            Ok(_) => {
                n += 1;
                written.fetch_add(1, Ordering::Relaxed);
            }
            Err(WriteError::Superseded { .. } | WriteError::Closed) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(n)
}

/// Compares all entries of two stores; returns how many there are.
async fn equal(one: &Store, other: &Store) -> Result<usize, Error> {
    let all = |store: &Store| {
        let store = store.clone();
        async move {
            let entries = store.entries(Keyspace::Data, KeyRange::all(), ScanOptions::default());
            entries.try_collect::<Vec<(Bytes, Bytes)>>().await
        }
    };
    let (one, other) = (all(one).await?, all(other).await?);
    if one != other {
        return Err("the stores differ".into());
    }
    Ok(one.len())
}

fn key(writer: u64, n: u64) -> Vec<u8> {
    [writer.to_be_bytes(), n.to_be_bytes()].concat()
}
