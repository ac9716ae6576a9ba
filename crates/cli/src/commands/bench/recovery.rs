//! A slave that fell behind the log compares, against the copy that it would otherwise need: entries of the whole store a
//! second.

use replikv::{Batch, Master, MasterConfig, Retention};

use super::figure::Sample;
use super::peer::Order;
use super::workload::{Entries, Key, ingest, sorted};
use super::{Place, serve};
use crate::args;
use crate::store::{self, Store};

/// Of a thousand entries so many change, in each pass.
const CHANGED: [usize; 3] = [0, 1, 10];

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let store = place.open("master")?;
    ingest(&store, sorted(Entries::new(args).take(args.entries)).into_iter(), 10_000).await?;
    // Hardly any log is kept: whoever is away falls behind it.
    let retention = Retention { max_bytes: 1, max_age_ms: None, hold_back_bytes: 0 };
    let master = store::open_master(store, place.kind, MasterConfig::default().retention(retention)).await?;
    let from = serve(&master).await?;
    let mut until = master.put("last", "").await?.seq.as_u64();
    let mut slave = place.peer("slave")?;
    let copied = slave.ask(&Order::Follow { from, until }).await?;
    anyhow::ensure!(copied.copies == 1, "the slave did not copy");
    let mut samples = Vec::new();
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = |seconds: f64| args.entries as f64 / seconds;
    let keys: Vec<Key> = Entries::new(args).take(args.entries).map(|entry| entry.0).collect();
    let mut rng = fastrand::Rng::with_seed(11);
    let mut others = Entries::part(args, 2);
    for (before, changed) in (0..).zip(CHANGED) {
        slave.ask(&Order::Leave).await?;
        until = change(&master, &keys, changed, until, (&mut rng, &mut others)).await?;
        let answer = slave.ask(&Order::Follow { from, until }).await?;
        anyhow::ensure!(answer.comparisons == before + 1, "the slave did not compare");
        let what = format!("{} % changed", f64::from(u16::try_from(changed)?) / 10.0);
        samples.push(Sample::rate("recovery", place.kind, what, rate(answer.seconds), rate(copied.seconds)));
    }
    slave.end().await?;
    master.shutdown().await?;
    Ok(samples)
}

// Changes so many of a thousand entries, and writes until nobody who was there before finds the log.
async fn change(
    master: &Master<Store>,
    keys: &[Key],
    changed: usize,
    before: u64,
    (rng, others): (&mut fastrand::Rng, &mut Entries),
) -> anyhow::Result<u64> {
    let mut batch = Batch::new();
    for _ in 0..keys.len() * changed / 1_000 {
        let value = others.next().map(|entry| entry.1).unwrap_or_default();
        batch = batch.put(keys[rng.usize(..keys.len())], value);
    }
    master.write(batch.put("last", before.to_be_bytes())).await?;
    while master.status().floor.seq.as_u64() <= before {
        master.put("last", rng.u64(..).to_be_bytes()).await?;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    Ok(master.put("last", "").await?.seq.as_u64())
}
