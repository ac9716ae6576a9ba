//! One master in memory, many slaves that discard what they get, all in one other process: entries delivered a second,
//! against those delivered to one slave.

use std::time::Instant;

use super::figure::Sample;
use super::peer::Order;
use super::workload::{Entries, write};
use super::{Place, serve};
use crate::{args, ui};

const SLAVES: [usize; 5] = [1, 16, 64, 256, 1_000];
/// Entries that are delivered for each row at most: with more slaves fewer are written.
const MOST: usize = 6_400_000;

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    if place.kind != "memory" {
        // The store decides nothing here: slaves are fed from memory.
        return Ok(Vec::new());
    }
    let mut samples = Vec::new();
    let mut base = None;
    for slaves in SLAVES {
        let count = args.entries.min(MOST / slaves);
        let master = place.master("master").await?;
        let from = serve(&master).await?;
        let until = master.put("first", "").await?.seq.as_u64();
        let mut peer = place.peer("slave")?;
        peer.ask(&Order::Fan { from, slaves, until, prefix: None }).await?;
        let start = Instant::now();
        let (_, last) = write(&master, Entries::new(args).take(count), args.batch).await?;
        let until = last.map_or(0, |last| last.seq.as_u64());
        peer.ask(&Order::Fan { from, slaves, until, prefix: None }).await?;
        let rate = ui::rate((count * slaves) as u64, start.elapsed());
        let base = *base.get_or_insert(rate);
        samples.push(Sample::rate("fan-out", place.kind, format!("delivered to {slaves}"), rate, base));
        peer.end().await?;
        master.shutdown().await?;
    }
    Ok(samples)
}
