//! Measurements: medians, and ratios against something that the same round has measured as well.
//!
//! Every scenario measures its own baseline, in the same round and on the same disk. Who follows is a process of its own
//! ([`peer`]), as in real life, over TCP on the loopback interface.

mod catch_up;
mod compression;
mod copy;
mod derive;
mod discard;
mod fan_in;
mod fan_out;
mod figure;
mod growth;
mod idle;
mod latency;
mod level_master;
mod live;
mod nats;
mod peer;
mod plot;
mod receive;
mod recovery;
mod redis;
mod rounds;
mod summary;
mod workload;
mod write;
mod writers;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use replikv::{Commit, Master, MasterConfig, Retention};

pub(crate) use self::peer::run as peer;

use self::figure::{Row, Sample};
use self::peer::{Ingest, Order, Peer};
use crate::args::{self, Scenario};
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::store::{self, Store};
use crate::ui;

pub(crate) async fn run(args: args::Bench, json: bool) -> anyhow::Result<ExitCode> {
    let mut interrupt = Interrupt::new()?;
    let abandoned = async {
        match args.round {
            Some(_) => rounds::abandoned().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        // The stores go with the guards of their directories, and the processes with their guards.
        () = interrupt.wait() => Ok(ExitCode::from(INTERRUPTED)),
        () = abandoned => Ok(ExitCode::from(INTERRUPTED)),
        measured = measure(&args, json) => measured.map(|()| ExitCode::SUCCESS),
    }
}

async fn measure(args: &args::Bench, json: bool) -> anyhow::Result<()> {
    let sizes = args.sizes.iter().all(|size| *size > 0);
    ensure!(
        args.batch > 0 && args.entries > 0 && args.rounds > 0 && sizes,
        "a measurement needs at least one of everything"
    );
    ensure!(args.value <= store::LIMITS.max_value / 2, "such a value does not fit into a batch");
    let kinds = kinds(args)?;
    if let (Some(number), [scenario], [kind]) = (args.round, &args.scenarios[..], &kinds[..]) {
        let samples = round(*scenario, kind, number, args).await?;
        return Ok(say!("{}", serde_json::to_string(&samples)?)?);
    }
    if args.scenarios.is_empty() && !args.all {
        ensure!(args.plot.is_none(), "--plot draws what scenarios measure: name one, or --all");
        return summary::run(args, &kinds, json).await;
    }
    let scenarios = if args.all { Scenario::ALL } else { &args.scenarios };
    let bar = ui::bar("measuring", Some((args.rounds * scenarios.len()) as u64));
    let mut rows: Vec<Row> = Vec::new();
    for &scenario in scenarios {
        let mut samples = Vec::new();
        for number in 0..args.rounds {
            for kind in &kinds {
                let measured = rounds::apart(scenario, kind, number, args).await;
                samples.extend(measured.with_context(|| format!("{scenario:?}"))?);
            }
            bar.inc(1);
        }
        ensure!(args.all || !samples.is_empty(), "{scenario:?} is not measured on {}", kinds.join(", "));
        rows.extend(Row::medians(samples));
    }
    bar.finish_and_clear();
    if let Some(dir) = &args.plot {
        plot::draw(dir, &rows, args)?;
    }
    if json {
        say!("{}", serde_json::to_string(&rows)?)?;
        return Ok(());
    }
    let beside = scenarios.iter().all(|scenario| scenario.is_comparison());
    let synced = if beside { "" } else { ", synced" };
    let what = match scenarios {
        [Scenario::Compression] => workload::words_of_text(args),
        _ => workload::words(args),
    };
    say!("{what}{synced}; medians of {} rounds", args.rounds)?;
    say!("{}", if beside { figure::table_beside(&rows) } else { figure::table(&rows) })?;
    Ok(())
}

fn kinds(args: &args::Bench) -> anyhow::Result<Vec<&str>> {
    let all = ["lmdb", "sled", "redb", "fjall", "memory"];
    for kind in &args.stores {
        ensure!(all.contains(&kind.as_str()), "{kind}: no store that can be measured; there are {}", all.join(", "));
    }
    Ok(if args.stores.is_empty() { all.into() } else { args.stores.iter().map(String::as_str).collect() })
}

async fn round(scenario: Scenario, kind: &str, number: usize, args: &args::Bench) -> anyhow::Result<Vec<Sample>> {
    let mut place = Place::new(kind, number, args)?;
    // Most of what this is compared with syncs now and then. fjall gains most by doing so as well.
    place.buffered = scenario.is_comparison() && kind == "fjall";
    Ok(match scenario {
        Scenario::Write => write::round(&place, args).await?,
        Scenario::Writers => writers::round(&place, args).await?,
        Scenario::CatchUp => catch_up::round(&place, args).await?,
        Scenario::Copy => copy::round(&place, args).await?,
        Scenario::Recovery => recovery::round(&place, args).await?,
        Scenario::Live => live::round(&place, args).await?,
        Scenario::Latency => latency::round(&place, args).await?,
        Scenario::FanOut => fan_out::round(&place, args).await?,
        Scenario::Idle => idle::round(&place, args).await?,
        Scenario::Growth => growth::round(&place, args).await?,
        Scenario::Derive => derive::round(&place, args).await?,
        Scenario::Compression => compression::round(&place, args).await?,
        Scenario::Redis => redis::round(&place, args).await?,
        Scenario::Nats => nats::round(&place, args).await?,
        Scenario::LevelMaster => level_master::round(&place, args).await?,
        Scenario::FanIn => fan_in::round(&place, args).await?,
    })
}

/// Where the stores of one kind are, for one round. They go with it.
#[derive(Debug)]
struct Place<'a> {
    kind: &'a str,
    /// What is compared with what: the one is measured first in every other round, since the first one warms up the other.
    base_first: bool,
    /// Master and slave sync every second, and a slave is sent what is not synced yet.
    buffered: bool,
    dir: tempfile::TempDir,
}

impl<'a> Place<'a> {
    fn new(kind: &'a str, round: usize, args: &args::Bench) -> anyhow::Result<Self> {
        let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("replikv-bench-").tempdir_in(&parent);
        Ok(Self {
            kind,
            base_first: round.is_multiple_of(2),
            buffered: false,
            dir: dir.context("no place to measure")?,
        })
    }

    fn url(&self, name: &str) -> String {
        if self.kind == "memory" { "memory:".into() } else { format!("{}:{}", self.kind, self.path(name).display()) }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, name: &str) -> anyhow::Result<Store> {
        store::open(&self.url(name))
    }

    /// A master that keeps its whole log.
    async fn master(&self, name: &str) -> anyhow::Result<Master<Store>> {
        self.master_of(self.open(name)?).await
    }

    async fn master_of(&self, store: Store) -> anyhow::Result<Master<Store>> {
        store::open_master(store, self.kind, self.config()).await
    }

    fn config(&self) -> MasterConfig {
        if !self.buffered {
            return keeping();
        }
        keeping().commit(Commit::Buffered { sync_every: Duration::from_secs(1) }).ship_unsynced(true)
    }

    /// Whoever follows, with a store of that name, in a process of its own.
    fn peer(&self, name: &str) -> anyhow::Result<Peer> {
        Peer::start(&self.url(name), self.buffered, None)
    }

    /// How many entries a second the last of these takes, one after the other, without a master, in a process of its own:
    /// what it leaves of the memory of a process disturbs nobody.
    async fn raw<const N: usize>(&self, parts: [Raw; N], args: &args::Bench) -> anyhow::Result<f64> {
        let mut peer = self.peer("raw")?;
        let mut rate = 0.0;
        for Raw { part, entries, sorted, batch } in parts {
            let order = Ingest { part, entries, sorted, batch, value: args.value, keys: args.keys };
            let answer = peer.ask(&Order::Ingest(order)).await?;
            #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
            let measured = entries as f64 / answer.seconds;
            rate = measured;
        }
        peer.end().await?;
        self.remove("raw")?;
        Ok(rate)
    }

    /// The store, and when it is on disk, where something else stands beside it.
    fn words(&self) -> String {
        match self.kind {
            "memory" => "memory".into(),
            kind if self.buffered => format!("{kind}, synced every second"),
            kind => format!("{kind}, synced"),
        }
    }

    /// Makes room for the next measurement of the round.
    fn remove(&self, name: &str) -> anyhow::Result<()> {
        remove(&self.path(name)).with_context(|| format!("{} cannot be removed", self.path(name).display()))
    }
}

/// What is put into a store that has no log.
#[derive(Debug, Clone, Copy)]
struct Raw {
    part: usize,
    entries: usize,
    sorted: bool,
    batch: usize,
}

// The whole log is kept.
fn keeping() -> MasterConfig {
    let retention = Retention { max_bytes: u64::MAX, max_age_ms: None, hold_back_bytes: u64::MAX };
    MasterConfig::default().retention(retention)
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// Serves a master on the loopback interface, as long as its listener lives.
async fn serve(master: &Master<Store>) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(master.clone().serve_tcp(listener));
    Ok(address)
}

/// An address for a server that is a process of its own. It was free a moment ago; if somebody was quicker, the server does
/// not start, and says so.
fn free_address() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
