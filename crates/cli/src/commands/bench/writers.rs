//! Many writers of single entries, each durable: what committing them together gains, against one transaction each.

use std::time::Instant;

use super::Place;
use super::figure::Sample;
use super::workload::{Entries, ingest};
use crate::{args, ui};

const WRITERS: usize = 512;
/// Transactions of the baseline, and writes of each writer.
const ALONE: usize = 1_000;
const EACH: usize = 40;

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let raw = place.open("raw")?;
    let base = ingest(&raw, Entries::new(args).take(ALONE), 1).await?;
    raw.close().await?;
    let master = place.master("master").await?;
    let mut entries = Entries::new(args);
    let start = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let (master, entries) = (master.clone(), entries.by_ref().take(EACH).collect::<Vec<_>>());
        writers.spawn(async move {
            for (key, value) in entries {
                master.put(key, value).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    let rate = ui::rate((WRITERS * EACH) as u64, start.elapsed());
    master.shutdown().await?;
    let goal = (place.kind == "lmdb").then_some(15.0);
    Ok(vec![Sample::rate("writers", place.kind, format!("{WRITERS} writers"), rate, base).goal(goal)])
}
