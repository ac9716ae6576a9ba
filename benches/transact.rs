//! What `transact` gains over a loop of `expect` where writers want the same key.
//!
//! ```sh
//! cargo bench --bench transact
//! ```
//!
//! Writers increment one counter. With `transact` the increment is computed at its place in the commit order; with
//! `expect` it is computed from what was read, and tried again if somebody was faster. Both run on one master of one
//! store, in turns; the ratio is of the same round.

use std::time::{Duration, Instant};

use replikv::{
    Batch, LmdbOptions, LmdbStore, Master, MasterConfig, MemoryStore, ReplicaStore, TransactView, WriteError,
};
use tokio::task::JoinSet;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ROUNDS: usize = 3;
const WRITERS: [u64; 3] = [1, 8, 64];

#[tokio::main]
async fn main() -> Result {
    // `cargo test --benches` only wants to see that it runs.
    let total = if std::env::args().any(|arg| arg == "--bench") { 512 } else { 64 };
    println!("{total} increments of one counter, synced; medians of {ROUNDS} rounds");
    println!(
        "{:>8} {:>8} {:>14} {:>14} {:>8} {:>15}",
        "store", "writers", "transact", "expect", "ratio", "tries a write"
    );
    for writers in WRITERS {
        let dir = tempfile::tempdir()?;
        let lmdb = LmdbStore::open(dir.path(), LmdbOptions::default())?;
        row("lmdb", Master::open(lmdb, MasterConfig::default()).await?, writers, total).await?;
        row("memory", Master::open(MemoryStore::new(), MasterConfig::default()).await?, writers, total).await?;
    }
    Ok(())
}

async fn row<S: ReplicaStore>(store: &str, master: Master<S>, writers: u64, total: u64) -> Result {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (transact, _) = run(&master, writers, total, true).await?;
        let (expect, tries) = run(&master, writers, total, false).await?;
        rounds.push((expect.as_secs_f64() / transact.as_secs_f64(), transact, expect, tries));
    }
    let counted = number(master.get("counter").await?);
    let wanted = 2 * total * ROUNDS as u64;
    if counted != wanted {
        return Err(format!("{counted} of {wanted} increments are there").into());
    }
    rounds.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (ratio, transact, expect, tries) = rounds[ROUNDS / 2];
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let (rate, tries) = (|time: Duration| total as f64 / time.as_secs_f64(), tries as f64 / total as f64);
    println!("{store:>8} {writers:>8} {:>12.0}/s {:>12.0}/s {ratio:>8.2} {tries:>15.2}", rate(transact), rate(expect));
    Ok(master.shutdown().await?)
}

async fn run<S: ReplicaStore>(master: &Master<S>, writers: u64, total: u64, transact: bool) -> Result<(Duration, u64)> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..writers {
        let master = master.clone();
        tasks.spawn(async move {
            let mut tries = 0;
            for _ in 0..total / writers {
                tries += if transact { by_transact(&master).await? } else { by_expect(&master).await? };
            }
            Ok::<_, WriteError>(tries)
        });
    }
    let mut tries = 0;
    while let Some(done) = tasks.join_next().await {
        tries += done??;
    }
    Ok((start.elapsed(), tries))
}

async fn by_transact<S: ReplicaStore>(master: &Master<S>) -> std::result::Result<u64, WriteError> {
    let increment = |view: &TransactView<'_>, batch: Batch| {
        Ok(batch.put("counter", (number(view.get("counter")?) + 1).to_be_bytes()))
    };
    master.transact(increment).await?;
    Ok(1)
}

async fn by_expect<S: ReplicaStore>(master: &Master<S>) -> std::result::Result<u64, WriteError> {
    for tries in 1.. {
        let seen = master.get("counter").await?;
        let next = (number(seen.clone()) + 1).to_be_bytes();
        let batch = match seen {
            Some(seen) => Batch::new().expect("counter", seen),
            None => Batch::new().expect_absent("counter"),
        };
        match master.write(batch.put("counter", next)).await {
            Err(WriteError::Conflict { .. }) => {}
            written => return written.map(|_| tries),
        }
    }
    Ok(u64::MAX)
}

fn number(value: Option<bytes::Bytes>) -> u64 {
    value.and_then(|value| Some(u64::from_be_bytes(value[..].try_into().ok()?))).unwrap_or(0)
}
