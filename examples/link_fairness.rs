//! How long what a quiet master writes takes to its centre: while a busy one writes as fast as it can, and while none does.
//!
//! ```sh
//! cargo run --release --all-features --example link_fairness
//! ```
//!
//! Ten masters in memory, one centre in LMDB, synced, over in-process streams. Nine masters write one entry at a time, and
//! wait until it is in the centre. The tenth writes batches of a thousand entries, as many as its centre takes, or nothing.
//! Five pairs; the ratios are of one pair each.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use replikv::{
    Batch, Centre, LinkConfig, LinkId, LinkStore, LmdbOptions, LmdbStore, Master, MasterConfig, MemoryStore, Slave,
    SlaveConfig,
};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Link = Slave<LinkStore<LmdbStore>>;

const QUIET: usize = 9;
const PAIRS: usize = 5;
const WINDOW: Duration = Duration::from_secs(5);
/// How long a quiet master rests between two writes.
const REST: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let mut ratios = Vec::new();
    println!("| pair | p50 alone | p99 alone | p50 beside | p99 beside | busy entries/s | ratio of p50 | of p99 |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for pair in 1..=PAIRS {
        let (alone, _) = measure(&dir.path().join(format!("alone-{pair}")), false).await?;
        let (beside, entries) = measure(&dir.path().join(format!("beside-{pair}")), true).await?;
        let ratio = |at: usize| quantile(&beside, at).as_secs_f64() / quantile(&alone, at).as_secs_f64();
        println!(
            "| {pair} | {:.1?} | {:.1?} | {:.1?} | {:.1?} | {} | {:.2} | {:.2} |",
            quantile(&alone, 50),
            quantile(&alone, 99),
            quantile(&beside, 50),
            quantile(&beside, 99),
            entries / WINDOW.as_secs(),
            ratio(50),
            ratio(99)
        );
        ratios.push((ratio(50), ratio(99)));
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "median of the ratios: p50 {:.2}, p99 {:.2}",
        median(ratios.iter().map(|ratio| ratio.0).collect()),
        median(ratios.iter().map(|ratio| ratio.1).collect())
    );
    Ok(())
}

/// How long each write of the quiet ones took to be in the centre, and how many entries the busy one brought there.
async fn measure(dir: &Path, busy: bool) -> Result<(Vec<Duration>, u64), Error> {
    let centre = Centre::open(LmdbStore::open(dir, LmdbOptions::default())?).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut quiet = Vec::new();
    for number in 0..QUIET {
        let (master, link) = linked(&centre, &format!("quiet-{number}")).await?;
        quiet.push(tokio::spawn(write_and_wait(master, link, stop.clone())));
    }
    let (master, link) = linked(&centre, "busy").await?;
    let brought = Arc::new(AtomicU64::new(0));
    let writing = busy.then(|| tokio::spawn(write_all(master, link, stop.clone(), brought.clone())));
    // What begins is not measured.
    tokio::time::sleep(WINDOW / 5).await;
    let before = brought.load(Ordering::Relaxed);
    tokio::time::sleep(WINDOW).await;
    let entries = brought.load(Ordering::Relaxed) - before;
    stop.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for writer in quiet {
        took.extend(writer.await??);
    }
    if let Some(writing) = writing {
        writing.await??;
    }
    took.sort_unstable();
    Ok((took, entries))
}

async fn linked(centre: &Centre<LmdbStore>, name: &str) -> Result<(Master<MemoryStore>, Link), Error> {
    let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
    let link = centre.link(LinkConfig::new(LinkId::new(name)?, SlaveConfig::new("centre"))).await?;
    let (here, there) = tokio::io::duplex(1 << 20);
    let (serving, following) = (master.clone(), link.clone());
    tokio::spawn(async move { serving.serve(there).await });
    tokio::spawn(async move { following.follow(here).await });
    link.wait_caught_up().await?;
    Ok((master, link))
}

async fn write_and_wait(
    master: Master<MemoryStore>,
    link: Link,
    stop: Arc<AtomicBool>,
) -> Result<Vec<Duration>, Error> {
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let token = master.put(fastrand::u64(..1000).to_be_bytes(), [7; 100]).await?;
        link.wait_applied(token).await?;
        took.push(begun.elapsed());
        tokio::time::sleep(REST).await;
    }
    Ok(took)
}

/// Writes as much as the centre takes: what it has not is bounded, as it is for whoever must not outpace it.
async fn write_all(
    master: Master<MemoryStore>,
    link: Link,
    stop: Arc<AtomicBool>,
    brought: Arc<AtomicU64>,
) -> Result<(), Error> {
    let mut under_way = std::collections::VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let batch =
            (0..1000).fold(Batch::new(), |batch, _| batch.put(fastrand::u64(..100_000).to_be_bytes(), [7; 100]));
        under_way.push_back(master.write(batch).await?);
        if under_way.len() > 32
            && let Some(oldest) = under_way.pop_front()
        {
            link.wait_applied(oldest).await?;
            brought.fetch_add(1000, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or_default()
}
