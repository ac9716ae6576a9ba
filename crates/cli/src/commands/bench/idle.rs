//! A thousand slaves that subscribe to keys that nobody writes: what each costs the master in memory, and all of them its
//! writers. The master is in a process of its own, and so are the slaves: memory that was used before would hide theirs.

use anyhow::Context;

use super::Place;
use super::figure::Sample;
use super::peer::{Order, Peer};
use crate::args;

const SLAVES: usize = 1_000;

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    if place.kind != "memory" {
        return Ok(Vec::new());
    }
    let (base, _) = written(args, None).await?;
    let (rate, each) = written(args, Some("nobody/")).await?;
    let words = format!("written, with {SLAVES} idle slaves");
    Ok(vec![
        Sample::rate("idle", place.kind, words, rate, base).goal(Some(0.95)),
        Sample::bytes("idle", place.kind, "memory of one slave at its master", each),
    ])
}

// Entries that a fresh master writes a second, with slaves of that prefix or without any; and what each of them weighs.
async fn written(args: &args::Bench, prefix: Option<&str>) -> anyhow::Result<(f64, f64)> {
    let mut master = Peer::start("memory:", false, None)?;
    let from = master.ask(&Order::Host).await?.address.context("the master has no address")?;
    let mut slaves = Peer::start("memory:", false, None)?;
    let mut each = 0.0;
    if let Some(prefix) = prefix {
        // Its first record is the beginning of its epoch.
        let mut fan = async |slaves_in_all| {
            let prefix = Some(prefix.to_owned());
            slaves.ask(&Order::Fan { from, slaves: slaves_in_all, until: 1, prefix }).await
        };
        // The first one warms up what all of them share.
        fan(1).await?;
        let before = master.ask(&Order::Weigh).await?.resident;
        fan(SLAVES).await?;
        #[allow(clippy::cast_precision_loss, reason = "a thousand")]
        let others = (SLAVES - 1) as f64;
        each = (master.ask(&Order::Weigh).await?.resident - before) / others;
    }
    let order = Order::Write { entries: args.entries, batch: args.batch, value: args.value, keys: args.keys };
    let seconds = master.ask(&order).await?.seconds;
    slaves.end().await?;
    master.end().await?;
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = args.entries as f64 / seconds;
    Ok((rate, each))
}
