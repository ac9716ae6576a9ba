//! What it costs a slave that fell behind the log to catch up, against a copy: bytes, rounds, time, memory. And what it
//! costs those who write meanwhile, under budgets of so many bytes a second; 0 stands for none.
//!
//! ```sh
//! cargo run --release --all-features --example recovery_cost -- 1000000 lmdb
//! cargo run --release --all-features --example recovery_cost -- 300000 lmdb writers 0 33554432 8388608
//! ```

mod memory;
mod wire;
mod writer;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use replikv::{
    Batch, KeyRange, Keyspace, Master, MasterConfig, ReplicaStore, ReplicaStoreExt, Retention, ScanOptions, Slave,
    SlaveConfig,
};

use self::memory::Memory;
use self::wire::{Heard, follow};

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
    if args.next().is_some_and(|what| what == "writers") {
        let budgets = args.map(|budget| budget.parse()).collect::<Result<Vec<u64>, _>>()?;
        return writer::run(entries, &kind, &budgets, dir.path()).await;
    }
    let open = |name: &str| open(&kind, &dir.path().join(name));
    // Hardly any log is kept: whoever is away falls behind it.
    let retention = Retention { max_bytes: 1, max_age_ms: None, hold_back_bytes: 0 };
    let master = Master::open(open("master")?, MasterConfig::default().retention(retention)).await?;
    let mut rng = fastrand::Rng::with_seed(7);
    let mut keys: Vec<[u8; 16]> = (0..entries).map(|_| rng.u128(..).to_be_bytes()).collect();
    write(&master, keys.iter(), 0).await?;
    behind(&master, 0).await?;

    println!("{entries} entries of {} bytes, {kind}", 16 + VALUE);
    println!("| changed | bytes | of a copy | rounds | questions | time | of a copy | memory |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let slave = Slave::open(open("slave")?, SlaveConfig::new("edge")).await?;
    let memory = Memory::watch();
    let (copy, copied) = follow(&master, &slave, Heard::AtOnce).await?;
    println!("| copy | {} | 100 % | | | {copied:.2?} | 1 | {} |", copy.bytes, memory.most());
    let mut round = 0;
    for percent in [0.0, 0.01, 0.1, 1.0, 10.0, 100.0] {
        let count = (entries as f64 * percent / 100.0).round() as usize;
        let mut rounds = 0;
        // The first tells rounds, the second everything else.
        for heard in [Heard::Late, Heard::AtOnce] {
            round += 1;
            change(&master, &mut keys, count, &mut rng, round).await?;
            let from = slave.status().position.map_or(0, |position| position.seq.as_u64());
            behind(&master, from).await?;
            let memory = Memory::watch();
            let (cost, took) = follow(&master, &slave, heard).await?;
            if slave.status().comparisons != u64::from(round) {
                return Err("the slave did not compare".into());
            }
            if heard == Heard::Late {
                rounds = cost.rounds;
                continue;
            }
            let share = cost.bytes as f64 / copy.bytes as f64 * 100.0;
            let slower = took.as_secs_f64() / copied.as_secs_f64();
            println!(
                "| {percent} % | {} | {share:.2} % | {rounds} | {} | {took:.2?} | {slower:.2} | {} |",
                cost.bytes,
                cost.questions,
                memory.most()
            );
            // With fewer entries the first pass alone weighs more. About a million entries are asked for at once.
            let most_rounds = 10 * entries.div_ceil(1_000_000) as u64;
            if percent <= 0.1 && entries >= 100_000 && (share > 3.0 || rounds > most_rounds) {
                let words =
                    "a thousandth must cost at most 3 percent of a copy, in at most 10 rounds for a million entries";
                return Err(words.into());
            }
        }
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

// Half of them get another value, a quarter go, and as many are new.
async fn change(
    master: &Master<Store>,
    keys: &mut Vec<[u8; 16]>,
    count: usize,
    rng: &mut fastrand::Rng,
    round: u8,
) -> Res<()> {
    rng.shuffle(keys);
    let gone = keys.split_off(keys.len() - count / 4);
    for gone in gone.chunks(BATCH) {
        master.write(gone.iter().fold(Batch::new(), Batch::delete)).await?;
    }
    write(master, keys[..count - 2 * gone.len()].iter(), round).await?;
    let new: Vec<[u8; 16]> = gone.iter().map(|_| rng.u128(..).to_be_bytes()).collect();
    write(master, new.iter(), round).await?;
    keys.extend(new);
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
