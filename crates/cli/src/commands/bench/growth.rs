//! What an entry costs as a store grows. A store of so many entries is copied, written to and caught up with, each against
//! the raw store of the same size: where both get slower alike, the ratio stays.

use bytes::Bytes;
use replikv::ReplicaStore;

use super::figure::Sample;
use super::peer::Order;
use super::workload::{Entries, Key, ingest, write};
use super::{Place, serve};
use crate::args::{self, Keys};
use crate::store::{self, Store};
use crate::ui;

/// How what is there already is loaded, on either side, at most: as large as the store likes it. In batches of this sled
/// would take 3 GB of memory for each million.
const LOAD: usize = 10_000;
/// What a slave's groups are compared with.
const RAW: usize = 1_000;
const RING: usize = 64 << 10;

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for &size in &args.sizes {
        // A slave that misses more than there is data would not go through the log.
        let count = args.entries.min(size);
        let raw = raw(place, size, count, args).await?;
        samples.extend(replicated(place, size, count, &raw, args).await?);
    }
    Ok(samples)
}

/// Entries a second of a store without a log.
struct Raw {
    loaded: f64,
    /// As a master is written to.
    written: f64,
    /// As the best that somebody would do who applies what comes.
    applied: f64,
}

fn load(store: &Store, args: &args::Bench) -> usize {
    let entries = store.preferred_write_set() / (size_of::<Key>() + args.value);
    entries.min(store.preferred_operations()).clamp(1, LOAD)
}

async fn raw(place: &Place<'_>, size: usize, count: usize, args: &args::Bench) -> anyhow::Result<Raw> {
    let raw = place.open("raw")?;
    let loaded = ingest(&raw, Grown::of(size, args.value), load(&raw, args)).await?;
    let written = ingest(&raw, Entries::part(args, 1).take(count), args.batch).await?;
    let applied = ingest(&raw, Entries::part(args, 2).take(count), RAW).await?;
    raw.close().await?;
    drop(raw);
    place.remove("raw")?;
    Ok(Raw { loaded, written, applied })
}

async fn replicated(
    place: &Place<'_>,
    size: usize,
    count: usize,
    raw: &Raw,
    args: &args::Bench,
) -> anyhow::Result<[Sample; 3]> {
    let store = place.open("master")?;
    ingest(&store, Grown::of(size, args.value), load(&store, args)).await?;
    // What a ring in memory holds would be served from there.
    let master = store::open_master(store, place.kind, place.config().ring_bytes(RING)).await?;
    let from = serve(&master).await?;
    let first = master.put("first", "").await?;
    let mut slave = place.peer("slave")?;
    let copy = slave.ask(&Order::Follow { from, until: first.seq.as_u64() }).await?;
    anyhow::ensure!(copy.copies == 1, "the slave did not copy");
    slave.ask(&Order::Leave).await?;
    let (written, last) = write(&master, Entries::part(args, 1).take(count), args.batch).await?;
    let until = last.map_or(0, |last| last.seq.as_u64());
    let log = slave.ask(&Order::Follow { from, until }).await?;
    anyhow::ensure!((log.copies, log.comparisons) == (1, 0), "the slave did not go through the log");
    slave.end().await?;
    master.shutdown().await?;
    drop(master);
    place.remove("master")?;
    place.remove("slave")?;
    let there = ui::thousands(size as u64);
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let (copied, caught_up) = (size as f64 / copy.seconds, count as f64 / log.seconds);
    let sample = |what: &str, rate, base| Sample::rate("growth", place.kind, format!("{there}: {what}"), rate, base);
    Ok([
        sample("copy", copied, raw.loaded),
        sample(&format!("written in batches of {}", args.batch), written, raw.written),
        sample("catch-up", caught_up, raw.applied),
    ])
}

/// So many entries in key order, of random keys, one at a time: they need not fit into memory.
struct Grown {
    values: Entries,
    rng: fastrand::Rng,
    step: u128,
    next: u128,
    left: usize,
}

impl Grown {
    fn of(size: usize, value: usize) -> Self {
        let step = u128::MAX / (size as u128 + 1);
        let values = Entries::seeded(Keys::Random, value, 0);
        Self { values, rng: fastrand::Rng::with_seed(11), step, next: 0, left: size }
    }
}

impl Iterator for Grown {
    type Item = (Key, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let key = self.next + self.rng.u128(..self.step);
        self.next += self.step;
        let (_, value) = self.values.next()?;
        Some((key.to_be_bytes(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_already_comes_in_key_order_and_all_of_it() {
        let keys: Vec<Key> = Grown::of(1000, 8).map(|(key, _)| key).collect();
        assert_eq!(keys.len(), 1000);
        assert!(keys.is_sorted_by(|a, b| a < b));
    }
}
