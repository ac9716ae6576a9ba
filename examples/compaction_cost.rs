//! What compaction by key costs the writer, and what it leaves: the log after many overwrites, and what a slave that was
//! away all the time receives.
//!
//! ```sh
//! cargo run --release --example compaction_cost -- 10000000 100000 lmdb
//! ```

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::TryStreamExt;
use replikv::proto::{Decoder, DecoderLimits, Event, Message};
use replikv::{
    Batch, Compaction, KeyRange, Keyspace, LogPart, Master, MasterConfig, Record, ReplicaStore, ReplicaStoreExt,
    Retention, ScanOptions, Seq, Slave, SlaveConfig, read_log_parts,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Store = Arc<dyn ReplicaStore>;
type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

const VALUE: usize = 100;
const BATCH: usize = 100;
const ROUNDS: usize = 20;

#[tokio::main]
async fn main() -> Res<()> {
    let mut args = std::env::args().skip(1);
    let overwrites: usize = args.next().map_or(Ok(200_000), |n| n.parse())?;
    let keys: u64 = args.next().map_or(Ok(2_000), |n| n.parse())?;
    let kind = args.next().unwrap_or_else(|| "memory".into());
    let dir = tempfile::tempdir()?;
    let retention = Retention { max_bytes: u64::MAX, max_age_ms: None, hold_back_bytes: u64::MAX };
    let config = || MasterConfig::default().retention(retention).ring_bytes(1 << 20);
    let window = Compaction { window_bytes: 4 << 20, window_records: 256 };
    let plain = Master::open(open(&kind, &dir.path().join("plain"))?, config()).await?;
    let compacting = Master::open(open(&kind, &dir.path().join("compacting"))?, config().compaction(window)).await?;
    let slave = Slave::open(open(&kind, &dir.path().join("slave"))?, SlaveConfig::new("edge")).await?;
    follow(&compacting, &slave).await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;

    println!("{overwrites} overwrites of {keys} keys in batches of {BATCH}, values of {VALUE} bytes, {kind}, synced");
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let (mut took_without, mut took_with, mut drained) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        // One after the other, again and again: what the machine does beside falls on both.
        took_without += overwrite(&plain, overwrites / ROUNDS, keys, &mut rng, &mut without).await?;
        took_with += overwrite(&compacting, overwrites / ROUNDS, keys, &mut rng, &mut with).await?;
        let begun = Instant::now();
        settled(&compacting, &window).await;
        drained += begun.elapsed();
    }
    println!("| | p50 | p99 | p99.9 | longest | writing |");
    println!("| --- | --- | --- | --- | --- | --- |");
    without.sort_unstable();
    with.sort_unstable();
    let at = |sorted: &[Duration], share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
    for (name, sorted, took) in [("as it is", &without, took_without), ("compacting", &with, took_with)] {
        let [p50, p99, p999, longest] = [0.5, 0.99, 0.999, 1.0].map(|share| at(sorted, share));
        println!("| {name} | {p50:.2?} | {p99:.2?} | {p999:.2?} | {longest:.2?} | {took:.2?} |");
    }
    let ratio = |share| at(&with, share).as_secs_f64() / at(&without, share).as_secs_f64();
    println!("| ratio | {:.2} | {:.2} | {:.2} | {:.2} | |", ratio(0.5), ratio(0.99), ratio(0.999), ratio(1.0));
    println!("compaction went on for {drained:.2?} after writers had paused");

    let (mut full, mut touched, mut runs, mut after) = (0, 0, 0, Seq::ZERO);
    while let Some(last) = {
        let parts = read_log_parts(compacting.store(), after, 1000).await?;
        for part in &parts {
            match part {
                LogPart::Full(_) => full += 1,
                LogPart::Compacted { run, .. } => (runs, touched) = (runs + 1, touched + run.entries),
                _ => {}
            }
        }
        parts.last().map(LogPart::end)
    } {
        after = last.seq;
    }
    let bytes = |master: &Master<Store>| master.status().retained_bytes >> 10;
    println!("the log: {full} records in full, {touched} touches in {runs} runs, {} KiB", bytes(&compacting));
    println!("as it is: {} records, {} KiB", plain.status().published.seq, bytes(&plain));
    let cost = follow(&compacting, &slave).await?;
    println!(
        "a slave that was away received {} values of touches, {} records, {} bytes in {:.2?}",
        cost.values, cost.records, cost.bytes, cost.time
    );
    equal(compacting.store(), slave.store()).await?;
    plain.shutdown().await?;
    compacting.shutdown().await?;
    Ok(())
}

fn open(kind: &str, path: &Path) -> Res<Store> {
    if kind == "memory" {
        return Ok(Arc::new(replikv::MemoryStore::new()));
    }
    Ok(Arc::new(replikv::open(&format!("{kind}:{}", path.display()))?))
}

async fn overwrite(
    master: &Master<Store>,
    count: usize,
    keys: u64,
    rng: &mut fastrand::Rng,
    latencies: &mut Vec<Duration>,
) -> Res<Duration> {
    let begun = Instant::now();
    for _ in 0..count / BATCH {
        let batch = (0..BATCH).fold(Batch::new(), |batch, _| {
            // Spread over the key space, as hashes are.
            let key = rng.u64(..keys).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            batch.put(key.to_be_bytes(), [rng.u8(..); VALUE])
        });
        let asked = Instant::now();
        master.write(batch).await?;
        latencies.push(asked.elapsed());
    }
    Ok(begun.elapsed())
}

// Until the compacted part has come close to the window.
async fn settled(master: &Master<Store>, window: &Compaction) {
    loop {
        let status = master.status();
        let compacted = status.compacted.map_or(0, |compacted| compacted.log_bytes);
        if status.log_bytes.saturating_sub(compacted) <= window.window_bytes + (1 << 20) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[derive(Default)]
struct Cost {
    values: usize,
    records: usize,
    bytes: u64,
    time: Duration,
}

// What the master says is counted on its way.
async fn follow(master: &Master<Store>, slave: &Slave<Store>) -> Res<Cost> {
    let (here, mut inside) = tokio::io::duplex(1 << 20);
    let (mut outside, there) = tokio::io::duplex(1 << 20);
    let serving = tokio::spawn({
        let master = master.clone();
        async move { master.serve(here).await }
    });
    let begun = Instant::now();
    let counted = Arc::new(std::sync::Mutex::new(Cost::default()));
    let bytes = Arc::new(AtomicU64::new(0));
    let relaying = tokio::spawn({
        let (counted, bytes) = (counted.clone(), bytes.clone());
        async move {
            let mut decoder = Decoder::new(DecoderLimits { data: 128 << 20, control: 4 << 20 });
            let mut seen = BytesMut::new();
            let (mut down, mut up) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            loop {
                tokio::select! {
                    read = inside.read(&mut down) => {
                        let read = read.unwrap_or(0);
                        if read == 0 || outside.write_all(&down[..read]).await.is_err() {
                            return;
                        }
                        bytes.fetch_add(read as u64, Ordering::Relaxed);
                        seen.extend_from_slice(&down[..read]);
                        while let Ok(Some(event)) = decoder.decode(&mut seen) {
                            if let Event::Message(message) = event {
                                count(*message, &counted);
                            }
                        }
                    }
                    read = outside.read(&mut up) => {
                        let read = read.unwrap_or(0);
                        if read == 0 || inside.write_all(&up[..read]).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    });
    let following = tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow(there).await }
    });
    slave.wait_caught_up().await?;
    let time = begun.elapsed();
    // Its last acknowledgement has arrived: by its slot it is known later.
    let published = master.status().published.seq;
    while !master.status().slaves.iter().any(|slave| slave.durable == published) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    following.abort();
    drop(following.await);
    relaying.abort();
    serving.abort();
    let mut cost = std::mem::take(&mut *counted.lock().map_err(|_| "a count was lost")?);
    (cost.time, cost.bytes) = (time, bytes.load(Ordering::Relaxed));
    Ok(cost)
}

fn count(message: Message, counted: &std::sync::Mutex<Cost>) {
    let Ok(mut counted) = counted.lock() else { return };
    match message {
        Message::Touched(touched) => counted.values += touched.ops.iter().count(),
        Message::Records(records) => {
            for mut part in records.parts {
                while Record::take(&mut part).is_ok() {
                    counted.records += 1;
                }
            }
        }
        _ => {}
    }
}

async fn equal(master: &Store, slave: &Store) -> Res<()> {
    let options = || ScanOptions::default().max_entries(10_000).max_bytes(4 << 20);
    let mut left = master.pages(Keyspace::Data, KeyRange::all(), options());
    let mut right = slave.pages(Keyspace::Data, KeyRange::all(), options());
    loop {
        match (left.try_next().await?, right.try_next().await?) {
            (None, None) => return Ok(()),
            (Some(one), Some(other)) if one.ops() == other.ops() => {}
            _ => return Err("master and slave differ".into()),
        }
    }
}
