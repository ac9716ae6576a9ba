//! What the log costs the writer: batches through a master, against the same batches straight into the store. For large
//! ones, also against whoever writes straight into the store what a master does: what is missing there is the store's.

use std::time::Instant;

use bytes::{BufMut, BytesMut};
use replikv::{Durability, Keyspace, ReplicaStore, WriteSet};

use super::Place;
use super::figure::Sample;
use super::workload::{Entries, batches, ingest, write};
use crate::{args, ui};

const BATCHES: [usize; 4] = [1, 10, 100, 1_000];
/// No row takes longer than this number of transactions.
const MOST: usize = 2_000;

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for batch in BATCHES {
        let count = args.entries.min(batch * MOST);
        let (base, rate) = if place.base_first {
            let base = raw(place, count, batch, args).await?;
            (base, logged(place, count, batch, args).await?)
        } else {
            let rate = logged(place, count, batch, args).await?;
            (raw(place, count, batch, args).await?, rate)
        };
        let goal = (batch >= 100).then(|| goal(place.kind)).flatten();
        samples.push(Sample::rate("write", place.kind, format!("batches of {batch}"), rate, base).goal(goal));
        if batch >= 100 {
            let what = format!("batches of {batch}, to each twice");
            samples.push(Sample::rate("write", place.kind, what, rate, twice(place, count, batch, args).await?));
        }
    }
    Ok(samples)
}

async fn raw(place: &Place<'_>, count: usize, batch: usize, args: &args::Bench) -> anyhow::Result<f64> {
    let raw = place.open("raw")?;
    let rate = ingest(&raw, Entries::new(args).take(count), batch).await?;
    raw.close().await?;
    drop(raw);
    place.remove("raw")?;
    Ok(rate)
}

// Each batch as entries, as one value beside them, and a small value that is replaced: in one transaction, as a log is.
async fn twice(place: &Place<'_>, count: usize, batch: usize, args: &args::Bench) -> anyhow::Result<f64> {
    let raw = place.open("raw")?;
    let start = Instant::now();
    for (number, batch) in batches(Entries::new(args).take(count), batch).enumerate() {
        let mut writes = WriteSet::builder();
        let mut all = BytesMut::new();
        for (key, value) in batch {
            all.put_slice(&key);
            all.put_slice(&value);
            writes.put(Keyspace::Data, key, value)?;
        }
        let number = (number as u64).to_be_bytes();
        writes.put(Keyspace::Log, number, all)?.put(Keyspace::Meta, "head", number)?;
        raw.apply(writes.build(), Durability::Synced).await?;
    }
    let rate = ui::rate(count as u64, start.elapsed());
    raw.close().await?;
    drop(raw);
    place.remove("raw")?;
    Ok(rate)
}

async fn logged(place: &Place<'_>, count: usize, batch: usize, args: &args::Bench) -> anyhow::Result<f64> {
    let master = place.master("master").await?;
    let (rate, _) = write(&master, Entries::new(args).take(count), batch).await?;
    master.shutdown().await?;
    drop(master);
    place.remove("master")?;
    Ok(rate)
}

fn goal(kind: &str) -> Option<f64> {
    match kind {
        "lmdb" | "fjall" => Some(0.9),
        "sled" | "redb" => Some(0.8),
        _ => None,
    }
}
