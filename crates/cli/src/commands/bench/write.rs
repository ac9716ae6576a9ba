//! What the log costs the writer: batches through a master, against the same batches straight into the store.

use super::Place;
use super::figure::Sample;
use super::workload::{Entries, ingest, write};
use crate::args;

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
