//! The same work by Redis and its replicas, in the same round, where `redis-server` is installed.
//!
//! What Redis replicates is in memory and not synced, and its replicas are copied by a snapshot; it has no log on disk.
//! Each row says what stands against what.

mod server;

use std::time::Instant;

use anyhow::ensure;
use hdrhistogram::Histogram;

use self::server::{Config, Server, set};
use super::figure::Sample;
use super::peer::{Order, Peer, Quantiles, key, now};
use super::workload::{Entries, ingest, write};
use super::{Place, serve};
use crate::{args, ui};

const RECEIVERS: usize = 64;
const WRITES: u64 = 2_000;
/// Entries that are delivered to each receiver.
const DELIVERED: usize = 100_000;
/// Commands that are sent before the first answer is read.
const PIPELINE: usize = 100;

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    match place.kind {
        "lmdb" => copies(place, args).await,
        "memory" => {
            let mut samples = latencies(place, args).await?;
            samples.push(receivers(place, args).await?);
            Ok(samples)
        }
        _ => Ok(Vec::new()),
    }
}

// An empty slave, LMDB to LMDB, synced, against an empty replica.
async fn copies(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let store = place.open("master")?;
    ingest(&store, Entries::sorted(args).into_iter(), 10_000).await?;
    let master = super::master_of(store, place.kind).await?;
    let from = serve(&master).await?;
    let until = master.put("last", "").await?.seq.as_u64();
    let mut slave = Peer::start(&place.url("slave"))?;
    let copied = slave.ask(&Order::Follow { from, until }).await?;
    ensure!(copied.copies == 1, "the slave did not copy");
    slave.end().await?;
    master.shutdown().await?;
    drop(master);
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = args.entries as f64 / copied.seconds;
    let mut samples = Vec::new();
    for (config, words, goal) in [
        (Config::Quickest, "against the quickest full sync", 1.5),
        (Config::Default, "against the default full sync", 4.0),
    ] {
        let server = Server::start(config, &place.path("redis-master"), None).await?;
        let mut client = server.client().await?;
        client.fill(Entries::new(args).take(args.entries), PIPELINE).await?;
        // The time is that of a replica that is there already, and told whom to follow.
        let replica = Server::start(config, &place.path("redis-replica"), None).await?;
        let mut there = replica.client().await?;
        let began = Instant::now();
        there.replicate(&server).await?;
        there.wait_for_size(args.entries).await?;
        let base = ui::rate(args.entries as u64, began.elapsed());
        replica.end().await?;
        server.end().await?;
        samples.push(Sample::rate("redis", place.kind, format!("copy, {words}"), rate, base).goal(Some(goal)));
    }
    Ok(samples)
}

// From a write to where it can be read on the slave, against from SET to when the replica tells of it.
async fn latencies(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let ours = super::latency::closed_loop(place, args, WRITES).await?;
    let server = Server::start(Config::Quickest, &place.path("redis-master"), None).await?;
    let replica = Server::start(Config::Quickest, &place.path("redis-replica"), Some("KEA")).await?;
    let mut writer = server.client().await?;
    replica.client().await?.replicate(&server).await?;
    replica.client().await?.wait_for_link().await?;
    let mut watcher = replica.client().await?;
    watcher.watch_sets().await?;
    let mut histogram = Histogram::<u64>::new(3)?;
    let value = vec![0x5A; args.value];
    for number in 0..WRITES {
        let start = now();
        writer.send(&set(&key(number), &value)).await?;
        watcher.next_event().await?;
        histogram.record(now() - start)?;
        writer.skip_replies(1).await?;
    }
    replica.end().await?;
    server.end().await?;
    let theirs = Quantiles::of(&histogram);
    let pairs = ours.named().into_iter().zip(theirs.named());
    Ok(pairs
        .take(2)
        .map(|((name, ours), (_, theirs))| {
            let mut sample = Sample::micros("redis", place.kind, format!("write to readable, {name}"), ours);
            sample.base = Some(theirs);
            sample.goal(Some(1.0))
        })
        .collect())
}

// Entries delivered a second to receivers that discard them: slaves that check what they get, against raw replica
// connections that only count bytes.
async fn receivers(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Sample> {
    let entries = || Entries::new(args).take(DELIVERED);
    let master = place.master("master").await?;
    let from = serve(&master).await?;
    let until = master.put("first", "").await?.seq.as_u64();
    let mut peer = Peer::start(&place.url("slave"))?;
    peer.ask(&Order::Fan { from, slaves: RECEIVERS, until, prefix: None }).await?;
    let start = Instant::now();
    let (_, last) = write(&master, entries(), PIPELINE).await?;
    let until = last.map_or(0, |last| last.seq.as_u64());
    peer.ask(&Order::Fan { from, slaves: RECEIVERS, until, prefix: None }).await?;
    let ours = ui::rate((DELIVERED * RECEIVERS) as u64, start.elapsed());
    peer.end().await?;
    master.shutdown().await?;

    let server = Server::start(Config::Quickest, &place.path("redis-master"), None).await?;
    let mut writer = server.client().await?;
    // Whoever reads sits in another process here as well.
    let mut peer = Peer::start(&place.url("slave"))?;
    let each = set(&[0; 16], &vec![0; args.value]).len() as u64 * DELIVERED as u64;
    peer.ask(&Order::Drain { from: server.address(), receivers: RECEIVERS, bytes: 0 }).await?;
    let start = Instant::now();
    writer.fill(entries(), PIPELINE).await?;
    peer.ask(&Order::Drain { from: server.address(), receivers: RECEIVERS, bytes: each }).await?;
    let theirs = ui::rate((DELIVERED * RECEIVERS) as u64, start.elapsed());
    peer.end().await?;
    server.end().await?;
    Ok(Sample::rate("redis", place.kind, format!("delivered to {RECEIVERS} receivers"), ours, theirs).goal(Some(2.0)))
}

pub(super) use self::server::Drain;
