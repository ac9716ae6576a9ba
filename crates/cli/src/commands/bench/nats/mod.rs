//! The same work by streams of NATS JetStream and their mirrors, in the same round, where `nats-server` is installed.
//!
//! A stream is a log: its messages are not looked up by key, and nothing is overwritten. It is acknowledged when it is written,
//! and synced every now and then.

mod server;

use std::time::Instant;

use self::server::{Client, Server};
use super::figure::Sample;
use super::workload::Entries;
use super::{Place, catch_up, fan_in, live};
use crate::{args, ui};

/// Streams that flow into one.
const SOURCES: usize = 4;
const STREAM: &str = "stream";
const MIRROR: &str = "mirror";

pub(super) async fn round(place: &Place<'_>, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let storage = match place.kind {
        "lmdb" | "fjall" => Storage::File,
        "memory" => Storage::Memory,
        _ => return Ok(Vec::new()),
    };
    let mut samples = Vec::new();
    let mut tell = |what: &str, words: &str, ours, theirs| {
        let what = format!("{what}; NATS {}, {words}", storage.words());
        samples.push(Sample::rate("nats", &place.words(), what, ours, theirs));
    };
    let across = [(false, "a mirror in the same server"), (true, "a mirror across a leaf node")];
    let ours = catch_up::through_log(place, args).await?;
    for (leaf, words) in across {
        tell("catch-up", words, ours, mirrored_later(place, args, storage, leaf).await?);
    }
    let (_, ours) = live::with_slave(place, args).await?;
    for (leaf, words) in across {
        tell("live", words, ours, mirrored_live(place, args, storage, leaf).await?);
    }
    if place.kind == "memory" {
        let ours = fan_in::gather(place, SOURCES, 1, args).await?;
        tell("fan-in", "4 streams into one", ours, gathered(place, args, storage).await?);
    }
    Ok(samples)
}

/// Where streams and mirrors are.
#[derive(Debug, Clone, Copy)]
enum Storage {
    File,
    Memory,
}

impl Storage {
    fn words(self) -> &'static str {
        match self {
            Self::File => "in files, not synced",
            Self::Memory => "in memory",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Memory => "memory",
        }
    }
}

/// A server with a stream, and where its mirror is to be: in the same server, or in one that is a leaf node of it.
struct Pair {
    hub: Server,
    leaf: Option<Server>,
    writer: Client,
    /// At the mirror.
    watcher: Client,
    mirror: serde_json::Value,
}

impl Pair {
    async fn start(place: &Place<'_>, storage: Storage, leaf: bool) -> anyhow::Result<Self> {
        let hub = Server::start(&place.path("nats"), "hub", None).await?;
        let mut writer = hub.client().await?;
        writer.create(STREAM, &stream(STREAM, storage)).await?;
        let mut of = serde_json::json!({ "name": STREAM });
        let leaf = if leaf {
            of["external"] = serde_json::json!({ "api": hub.api() });
            Some(Server::start(&place.path("nats"), "leaf", Some(&hub)).await?)
        } else {
            None
        };
        let mut watcher = leaf.as_ref().unwrap_or(&hub).client().await?;
        if leaf.is_some() {
            watcher.wait_for_api(&hub.api()).await?;
        }
        let mirror = serde_json::json!({ "name": MIRROR, "storage": storage.name(), "mirror": of });
        Ok(Self { hub, leaf, writer, watcher, mirror })
    }

    async fn end(self, place: &Place<'_>) -> anyhow::Result<()> {
        if let Some(leaf) = self.leaf {
            leaf.end().await?;
        }
        self.hub.end().await?;
        place.remove("nats")
    }
}

fn stream(name: &str, storage: Storage) -> serde_json::Value {
    serde_json::json!({ "name": name, "subjects": [name], "storage": storage.name() })
}

// Entries a second into a mirror that is made when they are all there.
async fn mirrored_later(place: &Place<'_>, args: &args::Bench, storage: Storage, leaf: bool) -> anyhow::Result<f64> {
    let mut pair = Pair::start(place, storage, leaf).await?;
    pair.writer.fill(STREAM, Entries::new(args).take(args.entries), args.batch).await?;
    tokio::time::sleep(catch_up::REST).await;
    let start = Instant::now();
    pair.watcher.create(MIRROR, &pair.mirror).await?;
    pair.watcher.wait_for(MIRROR, args.entries).await?;
    let rate = ui::rate(args.entries as u64, start.elapsed());
    pair.end(place).await?;
    Ok(rate)
}

// Entries a second until a mirror has them that was there before them.
async fn mirrored_live(place: &Place<'_>, args: &args::Bench, storage: Storage, leaf: bool) -> anyhow::Result<f64> {
    let mut pair = Pair::start(place, storage, leaf).await?;
    pair.watcher.create(MIRROR, &pair.mirror).await?;
    // A mirror that has had a message is connected.
    pair.writer.fill(STREAM, Entries::part(args, 1).take(1), 1).await?;
    pair.watcher.wait_for(MIRROR, 1).await?;
    let start = Instant::now();
    pair.writer.fill(STREAM, Entries::new(args).take(args.entries), args.batch).await?;
    pair.watcher.wait_for(MIRROR, args.entries + 1).await?;
    let rate = ui::rate(args.entries as u64, start.elapsed());
    pair.end(place).await?;
    Ok(rate)
}

// Entries a second from several streams, each with a writer, until the stream that has them as its sources has all.
async fn gathered(place: &Place<'_>, args: &args::Bench, storage: Storage) -> anyhow::Result<f64> {
    let server = Server::start(&place.path("nats"), "hub", None).await?;
    let mut centre = server.client().await?;
    let names: Vec<String> = (0..SOURCES).map(|number| format!("{STREAM}-{number}")).collect();
    let mut writers = Vec::new();
    for name in &names {
        let mut writer = server.client().await?;
        writer.create(name, &stream(name, storage)).await?;
        writers.push((name.clone(), writer));
    }
    let sources: Vec<_> = names.iter().map(|name| serde_json::json!({ "name": name })).collect();
    let all = serde_json::json!({ "name": "all", "storage": storage.name(), "sources": sources });
    centre.create("all", &all).await?;
    for (name, writer) in &mut writers {
        writer.fill(name, Entries::part(args, 0).take(1), 1).await?;
    }
    centre.wait_for("all", SOURCES).await?;
    let share = args.entries / SOURCES;
    let mut writing = tokio::task::JoinSet::new();
    let start = Instant::now();
    for (number, (name, mut writer)) in writers.into_iter().enumerate() {
        let (entries, batch) = (Entries::part(args, number), args.batch);
        writing.spawn(async move { writer.fill(&name, entries.take(share), batch).await });
    }
    while let Some(ended) = writing.join_next().await {
        ended??;
    }
    centre.wait_for("all", SOURCES * (share + 1)).await?;
    let rate = ui::rate((SOURCES * share) as u64, start.elapsed());
    server.end().await?;
    place.remove("nats")?;
    Ok(rate)
}
