//! A master is written to as fast as it takes batches, with a slave in another process and without one.

use std::time::Instant;

use super::figure::Sample;
use super::peer::Order;
use super::workload::{Entries, write};
use super::{Place, serve};
use crate::{args, ui};

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let (base, (rate, both)) = if place.base_first {
        let base = alone(place, args).await?;
        (base, with_slave(place, args).await?)
    } else {
        let rates = with_slave(place, args).await?;
        (alone(place, args).await?, rates)
    };
    let goal = (place.kind == "memory").then_some(0.9);
    Ok(vec![
        Sample::rate("live", place.kind, "written, with a slave", rate, base).goal(goal),
        Sample::rate("live", place.kind, "until the slave has all", both, base),
    ])
}

async fn alone(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<f64> {
    let alone = place.master("alone").await?;
    let (rate, _) = write(&alone, Entries::new(args).take(args.entries), args.batch).await?;
    alone.shutdown().await?;
    drop(alone);
    place.remove("alone")?;
    Ok(rate)
}

/// Entries a second until all is written, and until the slave has it.
pub(super) async fn with_slave(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<(f64, f64)> {
    let master = place.master("master").await?;
    let from = serve(&master).await?;
    let until = master.put("first", "").await?.seq.as_u64();
    let mut slave = place.peer("slave")?;
    slave.ask(&Order::Follow { from, until }).await?;
    let start = Instant::now();
    let (rate, last) = write(&master, Entries::new(args).take(args.entries), args.batch).await?;
    let until = last.map_or(0, |last| last.seq.as_u64());
    slave.ask(&Order::Follow { from, until }).await?;
    let both = ui::rate(args.entries as u64, start.elapsed());
    slave.end().await?;
    master.shutdown().await?;
    drop(master);
    place.remove("master")?;
    place.remove("slave")?;
    Ok((rate, both))
}
