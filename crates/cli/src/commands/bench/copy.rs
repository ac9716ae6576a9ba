//! An empty slave copies its master, against the same entries in key order straight into the store, in whichever batches it
//! takes fastest.

use super::figure::Sample;
use super::peer::Order;
use super::workload::{Entries, ingest};
use super::{Place, serve};
use crate::args;

const BATCHES: [usize; 3] = [1_000, 10_000, 100_000];

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let entries = Entries::sorted(args);
    let mut best: f64 = 0.0;
    for batch in BATCHES {
        let raw = place.open("raw")?;
        best = best.max(ingest(&raw, entries.iter().cloned(), batch).await?);
        raw.close().await?;
        drop(raw);
        place.remove("raw")?;
    }
    // What was there before it became a master's.
    let store = place.open("master")?;
    ingest(&store, entries.iter().cloned(), 10_000).await?;
    drop(entries);
    let master = place.master_of(store).await?;
    let from = serve(&master).await?;
    let until = master.put("last", "").await?.seq.as_u64();
    let mut slave = place.peer("slave")?;
    let answer = slave.ask(&Order::Follow { from, until }).await?;
    anyhow::ensure!(answer.copies == 1, "the slave did not copy");
    slave.end().await?;
    master.shutdown().await?;
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = args.entries as f64 / answer.seconds;
    Ok(vec![Sample::rate("copy", place.kind, "into an empty slave", rate, best).goal(Some(0.8))])
}
