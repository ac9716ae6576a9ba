//! Measurements: medians, and ratios against the raw store of the same round.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use replikv::{Batch, Durability, Keyspace, MasterConfig, Slave, SlaveConfig, WriteSet};
use tokio::net::TcpListener;

use crate::args;
use crate::store::{self, Store};
use crate::ui;

/// How many writes the latency is the median of.
const WRITES: usize = 201;
/// A slave that catches up is to be served from the log, and not from memory.
const RING: usize = 64 << 10;

pub(super) async fn run(args: &args::Bench, kinds: &[&str], json: bool) -> anyhow::Result<()> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let bar = ui::bar("measuring", Some((args.rounds * kinds.len()) as u64));
    let mut rows = Vec::new();
    for kind in kinds {
        let mut rounds = Vec::new();
        for _ in 0..args.rounds {
            let dir = tempfile::Builder::new().prefix("replikv-bench-").tempdir_in(&parent);
            rounds.push(round(kind, dir.context("no place to measure")?.path(), args).await?);
            bar.inc(1);
        }
        rows.push(Row::median(kind, &rounds));
    }
    bar.finish_and_clear();
    if json {
        say!("{}", serde_json::to_string(&rows)?)?;
        return Ok(());
    }
    say!(
        "{} entries, random 16-byte keys, {}-byte values, {} a batch, synced{}; medians of {} rounds",
        ui::thousands(args.entries as u64),
        args.value,
        args.batch,
        super::workload::ALLOCATOR,
        args.rounds
    )?;
    let mut table =
        ui::table(["store", "raw store", "master", "to raw", "catch-up of a slave", "to raw", "live latency"]);
    for row in &rows {
        table.add_row([
            row.store.clone(),
            ui::rate_words(row.raw),
            ui::rate_words(row.master),
            format!("{:.2}", row.master_to_raw),
            ui::rate_words(row.catch_up),
            format!("{:.2}", row.catch_up_to_raw),
            format!("{:.2} ms", row.latency_ms),
        ]);
    }
    say!("{table}")?;
    Ok(())
}

/// Rates in entries a second.
#[derive(Debug, Clone, serde::Serialize)]
struct Row {
    store: String,
    raw: f64,
    master: f64,
    master_to_raw: f64,
    catch_up: f64,
    catch_up_to_raw: f64,
    latency_ms: f64,
}

impl Row {
    fn median(store: &str, rounds: &[Self]) -> Self {
        let of = |pick: fn(&Self) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Self {
            store: store.into(),
            raw: of(|row| row.raw),
            master: of(|row| row.master),
            master_to_raw: of(|row| row.master_to_raw),
            catch_up: of(|row| row.catch_up),
            catch_up_to_raw: of(|row| row.catch_up_to_raw),
            latency_ms: of(|row| row.latency_ms),
        }
    }
}

async fn round(kind: &str, dir: &Path, args: &args::Bench) -> anyhow::Result<Row> {
    let open = |name: &str| {
        let url = if kind == "memory" { "memory:".into() } else { format!("{kind}:{}", dir.join(name).display()) };
        store::open(&url)
    };
    let raw = raw(&open("raw")?, args).await?;

    let master = store::open_master(open("master")?, kind, MasterConfig::default().ring_bytes(RING)).await?;
    // The slave knows the beginning, and misses everything that follows.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(master.clone().serve_tcp(listener));
    let slave = Slave::open(open("slave")?, SlaveConfig::new("bench")).await?;
    let first = master.put("first", "").await?;
    let following = {
        let slave = slave.clone();
        async move { slave.follow(tokio::net::TcpStream::connect(address).await?).await.map_err(anyhow::Error::from) }
    };
    tokio::select! {
        ended = following => drop(ended?),
        waited = slave.wait_applied(first) => waited?,
    }

    let mut values = Values::new(args);
    let start = Instant::now();
    let mut last = first;
    let mut written = 0;
    while written < args.entries {
        let mut batch = Batch::new();
        for _ in 0..args.batch.min(args.entries - written) {
            let (key, value) = values.next();
            batch = batch.put(key, value);
        }
        written += batch.len();
        last = master.write(batch).await?;
    }
    let master_rate = ui::rate(args.entries as u64, start.elapsed());

    let start = Instant::now();
    let following = tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow_tcp(address).await }
    });
    slave.wait_applied(last).await?;
    let catch_up = ui::rate(args.entries as u64, start.elapsed());

    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let (key, value) = values.next();
        let start = Instant::now();
        let token = master.put(key, value).await?;
        slave.wait_applied(token).await?;
        times.push(start.elapsed());
    }
    times.sort();
    slave.shutdown().await?;
    following.await??;
    master.shutdown().await?;
    let latency: Duration = times[WRITES / 2];
    Ok(Row {
        store: kind.into(),
        raw,
        master: master_rate,
        master_to_raw: master_rate / raw,
        catch_up,
        catch_up_to_raw: catch_up / raw,
        latency_ms: latency.as_secs_f64() * 1e3,
    })
}

async fn raw(store: &Store, args: &args::Bench) -> anyhow::Result<f64> {
    let mut values = Values::new(args);
    let start = Instant::now();
    let mut written = 0;
    while written < args.entries {
        let count = args.batch.min(args.entries - written);
        let mut writes = WriteSet::builder();
        for _ in 0..count {
            let (key, value) = values.next();
            writes.put(Keyspace::Data, key, value)?;
        }
        store.apply(writes.build(), Durability::Synced).await?;
        written += count;
    }
    let rate = ui::rate(args.entries as u64, start.elapsed());
    store.close().await?;
    Ok(rate)
}

struct Values {
    rng: fastrand::Rng,
    value: Vec<u8>,
}

impl Values {
    fn new(args: &args::Bench) -> Self {
        Self { rng: fastrand::Rng::with_seed(7), value: vec![0x5A; args.value] }
    }

    fn next(&mut self) -> ([u8; 16], &[u8]) {
        (self.rng.u128(..).to_be_bytes(), &self.value)
    }
}
