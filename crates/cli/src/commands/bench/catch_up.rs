//! A slave that was away goes through the log, against the same entries straight into the store, in batches of 1,000, as
//! they come. Both begin with half as many other entries: a slave that misses more than there is data would not go through
//! the log.

use std::time::Duration;

use super::figure::Sample;
use super::peer::Order;
use super::workload::{Entries, ingest, sorted, write};
use super::{Place, Raw, serve};
use crate::{args, store};

const RAW: usize = 1_000;
const LOAD: usize = 10_000;
const RING: usize = 64 << 10;
/// The slave comes back so long after the last write: what the master's store still does behind it is not the slave's.
pub(super) const REST: Duration = Duration::from_secs(1);

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let there = Raw { part: 1, entries: args.entries / 2 + 1, sorted: true, batch: LOAD };
    let base = place.raw([there, Raw { part: 0, entries: args.entries, sorted: false, batch: RAW }], args).await?;
    let rate = through_log(place, args).await?;
    let goal = match place.kind {
        "lmdb" => Some(6.0),
        "redb" => Some(4.0),
        "fjall" | "memory" => Some(2.0),
        _ => Some(1.0),
    };
    Ok(vec![Sample::rate("catch-up", place.kind, format!("batches of {}", args.batch), rate, base).goal(goal)])
}

/// How many entries a second a slave gets through that was away.
pub(super) async fn through_log(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<f64> {
    let store = place.open("master")?;
    ingest(&store, sorted(Entries::part(args, 1).take(args.entries / 2 + 1)).into_iter(), LOAD).await?;
    // What a ring in memory holds would be served from there.
    let config = place.config().ring_bytes(RING);
    let master = store::open_master(store, place.kind, config).await?;
    let from = serve(&master).await?;
    // It holds what was there, and misses what follows.
    let first = master.put("first", "").await?;
    let mut slave = place.peer("slave")?;
    let there = slave.ask(&Order::Follow { from, until: first.seq.as_u64() }).await?;
    slave.ask(&Order::Leave).await?;
    let (_, last) = write(&master, Entries::new(args).take(args.entries), args.batch).await?;
    let until = last.map_or(0, |last| last.seq.as_u64());
    tokio::time::sleep(REST).await;
    let answer = slave.ask(&Order::Follow { from, until }).await?;
    let same = (answer.copies, answer.comparisons) == (there.copies, there.comparisons);
    anyhow::ensure!(same, "the slave did not go through the log");
    slave.end().await?;
    master.shutdown().await?;
    drop(master);
    place.remove("master")?;
    place.remove("slave")?;
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    Ok(args.entries as f64 / answer.seconds)
}
