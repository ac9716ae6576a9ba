//! What it costs a slave that fell behind the log to catch up, against a copy: bytes, questions, time.
//!
//! ```sh
//! cargo run --release --example recovery_cost -- 1000000 lmdb
//! ```

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use replikv::proto::{Decoder, DecoderLimits, Event, Message};
use replikv::{
    Batch, KeyRange, Keyspace, Master, MasterConfig, ReplicaStore, ReplicaStoreExt, Retention, ScanOptions, Slave,
    SlaveConfig,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

type Store = Arc<dyn ReplicaStore>;
type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

const VALUE: usize = 100;
const BATCH: usize = 10_000;

#[tokio::main]
async fn main() -> Res<()> {
    let mut args = std::env::args().skip(1);
    let entries: usize = args.next().map_or(Ok(100_000), |entries| entries.parse())?;
    let kind = args.next().unwrap_or_else(|| "memory".into());
    let dir = tempfile::tempdir()?;
    let open = |name: &str| open(&kind, &dir.path().join(name));
    // Hardly any log is kept: whoever is away falls behind it.
    let retention = Retention { max_bytes: 1, max_age_ms: None, hold_back_bytes: 0 };
    let master = Master::open(open("master")?, MasterConfig::default().retention(retention)).await?;
    let mut rng = fastrand::Rng::with_seed(7);
    let keys: Vec<[u8; 16]> = (0..entries).map(|_| rng.u128(..).to_be_bytes()).collect();
    write(&master, keys.iter(), 0).await?;
    behind(&master, 0).await?;

    println!("{entries} entries of {} bytes, {kind}", 16 + VALUE);
    println!("| changed | bytes | of a copy | questions | turns | time |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let slave = Slave::open(open("slave")?, SlaveConfig::new("edge")).await?;
    let copy = follow(&master, &slave).await?;
    println!("| copy | {} | 100 % | | | {:.2?} |", copy.bytes, copy.time);
    for (round, percent) in [0.0, 0.01, 0.1, 1.0, 10.0, 100.0].into_iter().enumerate() {
        let count = (entries as f64 * percent / 100.0).round() as usize;
        let mut changed: Vec<&[u8; 16]> = keys.iter().collect();
        rng.shuffle(&mut changed);
        write(&master, changed.into_iter().take(count), round as u8 + 1).await?;
        let from = slave.status().position.map_or(0, |position| position.seq.as_u64());
        behind(&master, from).await?;
        let cost = follow(&master, &slave).await?;
        if slave.status().comparisons != round as u64 + 1 {
            return Err("the slave did not compare".into());
        }
        let share = cost.bytes as f64 / copy.bytes as f64 * 100.0;
        println!(
            "| {percent} % | {} | {share:.2} % | {} | {} | {:.2?} |",
            cost.bytes, cost.questions, cost.turns, cost.time
        );
    }
    equal(master.store(), slave.store()).await?;
    master.shutdown().await?;
    Ok(())
}

fn open(kind: &str, path: &Path) -> Res<Store> {
    match kind {
        "memory" => Ok(replikv::open("memory:")?),
        kind => Ok(replikv::open(&format!("{kind}:{}", path.display()))?),
    }
}

async fn write(master: &Master<Store>, keys: impl Iterator<Item = &[u8; 16]>, round: u8) -> Res<()> {
    let mut batch = Batch::new();
    for key in keys {
        batch = batch.put(key, [round; VALUE]);
        if batch.len() == BATCH {
            master.write(std::mem::take(&mut batch)).await?;
        }
    }
    if !batch.is_empty() {
        master.write(batch).await?;
    }
    Ok(())
}

// Writes notes until the log no longer reaches back to `seq`.
async fn behind(master: &Master<Store>, seq: u64) -> Res<()> {
    master.forget(replikv::proto::SlotKind::Slave, "edge");
    while master.status().floor.seq.as_u64() <= seq {
        for _ in 0..64 {
            master.write(Batch::new().note("time goes by")).await?;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

struct Cost {
    bytes: u64,
    questions: u64,
    turns: u64,
    time: Duration,
}

/// What passes on the wire, both ways.
#[derive(Default)]
struct Wire {
    bytes: AtomicU64,
    questions: AtomicU64,
    /// How often a question followed an answer: how often somebody may have waited for the other side.
    turns: AtomicU64,
    answered: AtomicU64,
}

async fn follow(master: &Master<Store>, slave: &Slave<Store>) -> Res<Cost> {
    let (at_master, mut master_end) = tokio::io::duplex(256 << 10);
    let (at_slave, mut slave_end) = tokio::io::duplex(256 << 10);
    master_end.flush().await?;
    slave_end.flush().await?;
    let wire = Arc::new(Wire::default());
    let (from_master, to_master) = tokio::io::split(master_end);
    let (from_slave, to_slave) = tokio::io::split(slave_end);
    tokio::spawn(pass(from_master, to_slave, wire.clone()));
    tokio::spawn(pass(from_slave, to_master, wire.clone()));
    let start = Instant::now();
    let (serving, following) = (master.clone(), slave.clone());
    let serving = tokio::spawn(async move { serving.serve(at_master).await });
    let following = tokio::spawn(async move { following.follow(at_slave).await });
    slave.wait_caught_up().await?;
    let time = start.elapsed();
    following.abort();
    drop(following.await);
    drop(serving.await);
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Ok(Cost { bytes: of(&wire.bytes), questions: of(&wire.questions), turns: of(&wire.turns), time })
}

async fn pass(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, wire: Arc<Wire>) -> Res<()> {
    let mut decoder = Decoder::new(DecoderLimits { data: 128 << 20, control: 4 << 20 });
    let (mut chunk, mut seen) = (vec![0; 64 << 10], BytesMut::new());
    loop {
        let len = from.read(&mut chunk).await?;
        if len == 0 {
            return Ok(to.shutdown().await?);
        }
        wire.bytes.fetch_add(len as u64, Ordering::Relaxed);
        seen.extend_from_slice(&chunk[..len]);
        while let Some(event) = decoder.decode(&mut seen)? {
            let Event::Message(message) = event else { continue };
            match *message {
                Message::Compare(_) => {
                    wire.questions.fetch_add(1, Ordering::Relaxed);
                    wire.turns.fetch_add(wire.answered.swap(0, Ordering::Relaxed), Ordering::Relaxed);
                }
                Message::Compared(_) | Message::Ranges(_) => wire.answered.store(1, Ordering::Relaxed),
                _ => {}
            }
        }
        to.write_all(&chunk[..len]).await?;
    }
}

async fn equal(one: &Store, two: &Store) -> Res<()> {
    let options = ScanOptions::default().max_entries(10_000).max_bytes(8 << 20);
    let entries = |store: &Store| {
        let store = store.clone();
        async move {
            let entries = store.entries(Keyspace::Data, KeyRange::all(), options);
            entries.try_collect::<Vec<(Bytes, Bytes)>>().await
        }
    };
    if entries(one).await? == entries(two).await? { Ok(()) } else { Err("the stores differ".into()) }
}
