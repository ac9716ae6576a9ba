//! An empty slave copies its master, against the same entries in key order straight into the store, in whichever batches it
//! takes fastest.

use super::figure::Sample;
use super::peer::Order;
use super::workload::{Entries, ingest, sorted};
use super::{Place, Raw, serve};
use crate::args;

const BATCHES: [usize; 3] = [1_000, 10_000, 100_000];

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let mut best: f64 = 0.0;
    for batch in BATCHES {
        best = best.max(place.raw([Raw { part: 0, entries: args.entries, sorted: true, batch }], args).await?);
    }
    // What was there before it became a master's.
    let store = place.open("master")?;
    ingest(&store, sorted(Entries::new(args).take(args.entries)).into_iter(), 10_000).await?;
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
