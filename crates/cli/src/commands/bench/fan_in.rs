//! Many masters in memory, one centre in another process: until it has everything, against one master that writes as much.

use std::time::Instant;

use super::figure::Sample;
use super::peer::Order;
use super::workload::{Entries, write};
use super::{Place, serve};
use crate::{args, ui};

const MASTERS: [usize; 2] = [4, 16];

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for masters in MASTERS {
        // As many writers.
        let base = gather(place, 1, masters, args).await?;
        let rate = gather(place, masters, 1, args).await?;
        let goal = (masters == 16).then_some(0.9);
        samples.push(Sample::rate("fan-in", place.kind, format!("{masters} masters"), rate, base).goal(goal));
    }
    Ok(samples)
}

/// Entries a second from so many masters in memory, each with so many writers, until the centre has all.
pub(super) async fn gather(place: &Place<'_>, count: usize, writers: usize, args: &args::Bench) -> anyhow::Result<f64> {
    let name = "centre";
    let mut centre = place.peer(name)?;
    let sources = Place::new("memory", 0, args)?;
    let mut masters = Vec::new();
    let mut from = Vec::new();
    for _ in 0..count {
        let master = sources.master("").await?;
        from.push((serve(&master).await?, master.put("first", "").await?.seq.as_u64()));
        masters.push(master);
    }
    centre.ask(&Order::Gather { from: from.clone() }).await?;
    let mut writing = tokio::task::JoinSet::new();
    let start = Instant::now();
    let share = args.entries / (count * writers);
    for number in 0..count * writers {
        let index = number % count;
        let (master, entries, batch) = (masters[index].clone(), Entries::part(args, number), args.batch);
        writing.spawn(async move { anyhow::Ok((index, write(&master, entries.take(share), batch).await?.1)) });
    }
    while let Some(ended) = writing.join_next().await {
        let (index, last) = ended??;
        from[index].1 = from[index].1.max(last.map_or(0, |last| last.seq.as_u64()));
    }
    centre.ask(&Order::Gather { from }).await?;
    let rate = ui::rate((share * count * writers) as u64, start.elapsed());
    for master in masters {
        master.shutdown().await?;
    }
    centre.end().await?;
    place.remove(name)?;
    Ok(rate)
}
