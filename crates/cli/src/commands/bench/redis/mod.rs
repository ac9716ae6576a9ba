//! The same work by Redis and its replicas, in the same round, where `redis-server` is installed.
//!
//! What Redis replicates is in memory; with an append-only file, both sides write down what changes, and sync every second or
//! before each answer. Its replicas are copied by a snapshot; no replica goes through that file. Each row says what stands
//! against what.

mod server;

use std::time::Instant;

use anyhow::ensure;
use hdrhistogram::Histogram;

use self::server::{Config, Files, FullSync, Server, set};
use super::figure::Sample;
use super::peer::{Order, Quantiles, key, now};
use super::workload::{Entries, ingest, sorted, write};
use super::{Place, serve};
use crate::{args, ui};

const RECEIVERS: usize = 64;
const WRITES: u64 = 2_000;
/// Entries that are delivered to each receiver.
const DELIVERED: usize = 100_000;
/// Commands that are sent before the first answer is read.
const PIPELINE: usize = 100;
const IN_MEMORY: Config = Config { sync: FullSync::Quickest, files: Files::None };

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    match place.kind {
        "lmdb" => {
            let mut samples = copies(place, args).await?;
            samples.extend(live(place, args, &[Files::Always, Files::EverySecond]).await?);
            Ok(samples)
        }
        "fjall" => live(place, args, &[Files::EverySecond]).await,
        "memory" => {
            let mut samples = live(place, args, &[Files::None]).await?;
            samples.extend(latencies(place, args).await?);
            samples.extend(receivers(place, args).await?);
            Ok(samples)
        }
        _ => Ok(Vec::new()),
    }
}

// An empty slave, LMDB to LMDB, against an empty replica. Its append-only file is written anew once the snapshot is loaded, and
// synced then whatever the setting: that of every second stands for both.
async fn copies(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let store = place.open("master")?;
    ingest(&store, sorted(Entries::new(args).take(args.entries)).into_iter(), 10_000).await?;
    let master = place.master_of(store).await?;
    let from = serve(&master).await?;
    let until = master.put("last", "").await?.seq.as_u64();
    let mut slave = place.peer("slave")?;
    let copied = slave.ask(&Order::Follow { from, until }).await?;
    ensure!(copied.copies == 1, "the slave did not copy");
    slave.end().await?;
    master.shutdown().await?;
    drop(master);
    place.remove("master")?;
    place.remove("slave")?;
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = args.entries as f64 / copied.seconds;
    let mut samples = Vec::new();
    for (sync, words) in [(FullSync::Quickest, "quickest full sync"), (FullSync::Default, "default full sync")] {
        for files in [Files::None, Files::EverySecond] {
            let base = full_sync(place, args, Config { sync, files }).await?;
            let goal = match (sync, files) {
                (FullSync::Quickest, Files::None) => Some(1.5),
                (FullSync::Default, Files::None) => Some(4.0),
                _ => None,
            };
            let what = format!("copy; Redis {}, {words}", files.words());
            samples.push(Sample::rate("redis", &place.words(), what, rate, base).goal(goal));
        }
    }
    Ok(samples)
}

async fn full_sync(place: &Place<'_>, args: &args::Bench, config: Config) -> anyhow::Result<f64> {
    let server = Server::start(config, &place.path("redis-master"), None).await?;
    let mut client = server.client().await?;
    client.fill(Entries::new(args).take(args.entries), PIPELINE).await?;
    // The time is that of a replica that is there already, and told whom to follow.
    let replica = Server::start(config, &place.path("redis-replica"), None).await?;
    let mut there = replica.client().await?;
    let began = Instant::now();
    there.replicate(&server).await?;
    there.wait_for_size(args.entries).await?;
    there.wait_for_files(config.files).await?;
    let rate = ui::rate(args.entries as u64, began.elapsed());
    end(place, replica, server).await?;
    Ok(rate)
}

async fn end(place: &Place<'_>, replica: Server, server: Server) -> anyhow::Result<()> {
    replica.end().await?;
    server.end().await?;
    place.remove("redis-master")?;
    place.remove("redis-replica")
}

// Written as fast as batches are taken, until the slave has all, against as many SETs in a pipeline as a batch holds, until the
// replica has all.
async fn live(place: &Place<'_>, args: &args::Bench, against: &[Files]) -> anyhow::Result<Vec<Sample>> {
    let (_, rate) = super::live::with_slave(place, args).await?;
    let mut samples = Vec::new();
    for &files in against {
        let base = live_by_redis(place, args, Config { sync: FullSync::Quickest, files }).await?;
        let what = format!("live; Redis {}", files.words());
        samples.push(Sample::rate("redis", &place.words(), what, rate, base));
    }
    Ok(samples)
}

async fn live_by_redis(place: &Place<'_>, args: &args::Bench, config: Config) -> anyhow::Result<f64> {
    let server = Server::start(config, &place.path("redis-master"), None).await?;
    let replica = Server::start(config, &place.path("redis-replica"), None).await?;
    let mut there = replica.client().await?;
    there.replicate(&server).await?;
    there.wait_for_link().await?;
    there.wait_for_files(config.files).await?;
    let mut writer = server.client().await?;
    // Nothing is sent to a replica before it has acknowledged its snapshot, which it does once a second.
    writer.fill(Entries::part(args, 1).take(1), 1).await?;
    there.wait_for_size(1).await?;
    let began = Instant::now();
    writer.fill(Entries::new(args).take(args.entries), args.batch).await?;
    there.wait_for_size(args.entries + 1).await?;
    let rate = ui::rate(args.entries as u64, began.elapsed());
    end(place, replica, server).await?;
    Ok(rate)
}

// From a write to where it can be read on the slave, against from SET to when the replica tells of it.
async fn latencies(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let ours = super::latency::closed_loop(place, args, WRITES).await?;
    let server = Server::start(IN_MEMORY, &place.path("redis-master"), None).await?;
    let replica = Server::start(IN_MEMORY, &place.path("redis-replica"), Some("KEA")).await?;
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
    end(place, replica, server).await?;
    let theirs = Quantiles::of(&histogram);
    let pairs = ours.named().into_iter().zip(theirs.named());
    Ok(pairs
        .take(2)
        .map(|((name, ours), (_, theirs))| {
            let mut sample =
                Sample::micros("redis", &place.words(), format!("write to readable, {name}; Redis in memory"), ours);
            sample.base = Some(theirs);
            sample.goal(Some(1.0))
        })
        .collect())
}

// Entries delivered a second to receivers that discard them: on either side connections that only count bytes. And to slaves
// that check what they get, and keep nothing.
async fn receivers(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<[Sample; 2]> {
    let entries = || Entries::new(args).take(DELIVERED);
    let all = (DELIVERED * RECEIVERS) as u64;
    let master = place.master("master").await?;
    let from = serve(&master).await?;
    let mut peer = place.peer("slave")?;
    let receive = |bytes| Order::Receive { from, receivers: RECEIVERS, bytes };
    peer.ask(&receive(master.status().log_bytes)).await?;
    let start = Instant::now();
    write(&master, entries(), PIPELINE).await?;
    peer.ask(&receive(master.status().log_bytes)).await?;
    let raw = ui::rate(all, start.elapsed());
    peer.end().await?;
    master.shutdown().await?;

    let master = place.master("master").await?;
    let from = serve(&master).await?;
    let mut peer = place.peer("slave")?;
    let fan = |until| Order::Fan { from, slaves: RECEIVERS, until, prefix: None };
    peer.ask(&fan(master.put("first", "").await?.seq.as_u64())).await?;
    let start = Instant::now();
    let (_, last) = write(&master, entries(), PIPELINE).await?;
    peer.ask(&fan(last.map_or(0, |last| last.seq.as_u64()))).await?;
    let checked = ui::rate(all, start.elapsed());
    peer.end().await?;
    master.shutdown().await?;

    let server = Server::start(IN_MEMORY, &place.path("redis-master"), None).await?;
    let mut writer = server.client().await?;
    // Whoever reads sits in another process here as well.
    let mut peer = place.peer("slave")?;
    let each = set(&[0; 16], &vec![0; args.value]).len() as u64 * DELIVERED as u64;
    peer.ask(&Order::Drain { from: server.address(), receivers: RECEIVERS, bytes: 0 }).await?;
    let start = Instant::now();
    writer.fill(entries(), PIPELINE).await?;
    peer.ask(&Order::Drain { from: server.address(), receivers: RECEIVERS, bytes: each }).await?;
    let theirs = ui::rate(all, start.elapsed());
    peer.end().await?;
    server.end().await?;
    let sample = |what, ours| {
        Sample::rate("redis", &place.words(), format!("delivered to {RECEIVERS} {what}; Redis in memory"), ours, theirs)
    };
    Ok([sample("receivers", raw).goal(Some(2.0)), sample("slaves that check it, against receivers", checked)])
}

pub(super) use self::server::Drain;
