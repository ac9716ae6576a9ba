//! A thousand slaves that subscribe to keys that nobody writes: what each costs the master in memory, and all of them its
//! writers.

use anyhow::Context;

use super::figure::Sample;
use super::peer::{Order, Peer};
use super::workload::{Entries, write};
use super::{Place, serve};
use crate::args;

const SLAVES: u32 = 1_000;

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    if place.kind != "memory" {
        return Ok(Vec::new());
    }
    let master = place.master("master").await?;
    let from = serve(&master).await?;
    let until = master.put("first", "").await?.seq.as_u64();
    let mut peer = Peer::start(&place.url("slave"))?;
    // The first one warms up what all of them share.
    let prefix = Some("nobody/".to_string());
    peer.ask(&Order::Fan { from, slaves: 1, until, prefix: prefix.clone() }).await?;
    let before = resident()?;
    peer.ask(&Order::Fan { from, slaves: SLAVES as usize, until, prefix }).await?;
    let each = (resident()? - before) / f64::from(SLAVES - 1);
    let (rate, _) = write(&master, Entries::new(args).take(args.entries), args.batch).await?;
    master.shutdown().await?;
    drop((master, peer));
    let alone = place.master("alone").await?;
    let (base, _) = write(&alone, Entries::new(args).take(args.entries), args.batch).await?;
    alone.shutdown().await?;
    drop(alone);
    let words = format!("written, with {SLAVES} idle slaves");
    Ok(vec![
        Sample::rate("idle", place.kind, words, rate, base).goal(Some(0.95)),
        Sample::bytes("idle", place.kind, "memory of one slave at its master", each),
    ])
}

/// Bytes of memory that this process has.
fn resident() -> anyhow::Result<f64> {
    let status =
        std::fs::read_to_string("/proc/self/status").context("this system does not tell how much memory is used")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS in /proc/self/status")?;
    Ok(words.parse::<f64>()? * 1024.0)
}
