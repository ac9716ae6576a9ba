//! A thousand slaves that subscribe to keys that nobody writes: what each costs in memory and in processor time, and all of
//! them their master's writers. The master is in a process of its own, and so are the slaves: memory that was used before
//! would hide theirs.

use std::time::Duration;

use anyhow::Context;

use super::Place;
use super::figure::Sample;
use super::peer::{Order, Peer};
use crate::args;

const SLAVES: usize = 1_000;
/// For so long nobody writes, and processor time is counted. The system tells it in steps of ten milliseconds.
const REST: Duration = Duration::from_secs(5);

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    if place.kind != "memory" {
        return Ok(Vec::new());
    }
    let (base, Beside { rate, memory, master, slave }) = if place.base_first {
        (alone(args).await?, beside(args).await?)
    } else {
        let beside = beside(args).await?;
        (alone(args).await?, beside)
    };
    let words = format!("written, with {SLAVES} idle slaves");
    let micros = |what: &str, seconds: f64| Sample::micros("idle", place.kind, what, seconds * 1e6);
    Ok(vec![
        Sample::rate("idle", place.kind, words, rate, base).goal(Some(0.95)),
        Sample::bytes("idle", place.kind, "memory of one slave at its master", memory),
        micros("processor time of a second of one slave, at its master", master),
        micros("processor time of a second of one slave, its own", slave),
    ])
}

struct Beside {
    /// Entries a second.
    rate: f64,
    /// Bytes of one slave.
    memory: f64,
    /// Seconds of a second of one slave.
    master: f64,
    slave: f64,
}

async fn alone(args: &args::Bench) -> anyhow::Result<f64> {
    let mut master = Peer::start("memory:", false, None)?;
    master.ask(&Order::Host).await?;
    let rate = write(&mut master, args).await?;
    master.end().await?;
    Ok(rate)
}

async fn beside(args: &args::Bench) -> anyhow::Result<Beside> {
    let mut master = Peer::start("memory:", false, None)?;
    let from = master.ask(&Order::Host).await?.address.context("the master has no address")?;
    let mut slaves = Peer::start("memory:", false, None)?;
    // Its first record is the beginning of its epoch.
    let mut fan = async |in_all| {
        let prefix = Some("nobody/".to_owned());
        slaves.ask(&Order::Fan { from, slaves: in_all, until: 1, prefix }).await
    };
    // The first one warms up what all of them share.
    fan(1).await?;
    let before = master.ask(&Order::Weigh).await?.resident;
    fan(SLAVES).await?;
    #[allow(clippy::cast_precision_loss, reason = "a thousand")]
    let (others, all) = ((SLAVES - 1) as f64, SLAVES as f64);
    let memory = (master.ask(&Order::Weigh).await?.resident - before) / others;
    let began = (master.ask(&Order::Weigh).await?.processor, slaves.ask(&Order::Weigh).await?.processor);
    tokio::time::sleep(REST).await;
    let ended = (master.ask(&Order::Weigh).await?.processor, slaves.ask(&Order::Weigh).await?.processor);
    let of_one = |seconds: f64| seconds / REST.as_secs_f64() / all;
    let rate = write(&mut master, args).await?;
    slaves.end().await?;
    master.end().await?;
    Ok(Beside { rate, memory, master: of_one(ended.0 - began.0), slave: of_one(ended.1 - began.1) })
}

// Entries that it writes a second.
async fn write(master: &mut Peer, args: &args::Bench) -> anyhow::Result<f64> {
    let order = Order::Write { entries: args.entries, batch: args.batch, value: args.value, keys: args.keys };
    let seconds = master.ask(&order).await?.seconds;
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    Ok(args.entries as f64 / seconds)
}
