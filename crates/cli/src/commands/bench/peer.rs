//! The other process of a measurement: it follows as it is told, and says how long that took.
//!
//! It reads a command a line on standard input, and answers each with a line on standard output. It ends with its input.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::net::SocketAddr;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use anyhow::{Context, anyhow, bail};
use hdrhistogram::Histogram;
use replikv::{
    Centre, Compression, Durability, KeyRange, LinkConfig, LinkId, LinkStore, Master, ReplicaStore, Seq, Slave,
    SlaveConfig,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::compression::Counted;
use super::discard::DiscardStore;
use super::receive::Receivers;
use super::redis::Drain;
use super::workload::{Entries, ingest, sorted, write};
use crate::args::{self, Keys};
use crate::store::{self, Store};

/// What a peer can be told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Follow that master, if it does not yet, until it has that record. Answered with the time from here on.
    Follow { from: SocketAddr, until: u64 },
    /// As `Follow`, over a connection whose bytes are counted. Answered with these as well, and with the processor time
    /// that went into it.
    Count { from: SocketAddr, until: u64 },
    /// Let the connection go.
    Leave,
    /// As `Follow`, but of a centre with a link to each of these masters, until each has its record.
    Gather { from: Vec<(SocketAddr, u64)> },
    /// Let so many slaves follow, that keep nothing, until each has that record. With a prefix they subscribe to it alone.
    Fan { from: SocketAddr, slaves: usize, until: u64, prefix: Option<String> },
    /// Let so many connections that only count what they are sent follow, until each has had so many bytes of records.
    Receive { from: SocketAddr, receivers: usize, bytes: u64 },
    /// Let so many replica connections to a Redis server read what they are sent, until each has had so many bytes.
    Drain { from: SocketAddr, receivers: usize, bytes: u64 },
    /// Put entries straight into the store, synced. Answered with the time that took.
    Ingest(Ingest),
    /// Serve a master in memory. Answered with its address, and the memory that the process has.
    Host,
    /// Let that master write so many entries. Answered with the time that took.
    Write { entries: usize, batch: usize, value: usize, keys: Keys },
    /// Answered with the memory that the process has, and the processor time that it has used.
    Weigh,
    /// Answered when these records are applied, with quantiles of the time since what their values say they were written
    /// at.
    Watch { first: u64, last: u64 },
}

/// Which entries are put into a store, and how many at once.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Ingest {
    pub(super) part: usize,
    pub(super) entries: usize,
    /// In key order, and not as they come.
    pub(super) sorted: bool,
    pub(super) batch: usize,
    pub(super) value: usize,
    pub(super) keys: Keys,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) seconds: f64,
    /// How often it began to copy, and to compare, since it was started.
    pub(super) copies: u64,
    pub(super) comparisons: u64,
    pub(super) micros: Option<Quantiles>,
    pub(super) address: Option<SocketAddr>,
    /// Bytes of memory that the process has.
    pub(super) resident: f64,
    /// Bytes that have arrived.
    pub(super) received: u64,
    /// Seconds of processor time.
    pub(super) processor: f64,
}

/// Microseconds.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Quantiles {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

impl Quantiles {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "nanoseconds of seconds")]
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }

    pub(super) fn named(&self) -> [(&'static str, f64); 4] {
        [("p50", self.p50), ("p99", self.p99), ("p99.9", self.p999), ("longest", self.max)]
    }
}

/// Nanoseconds of the clock that both processes read.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A peer, seen from whom it belongs to. It is killed when this goes.
#[derive(Debug)]
pub(super) struct Peer {
    process: Child,
    orders: ChildStdin,
    answers: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Peer {
    pub(super) fn start(url: &str, buffered: bool, compress: Option<Compression>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the program cannot find itself")?;
        let mut process = Command::new(program)
            .args(["bench-peer", "--store", url])
            .args(buffered.then_some("--buffered"))
            .args(compress.into_iter().flat_map(|algorithm| ["--compress", algorithm.name()]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("a second process cannot be started")?;
        let pipes = process.stdin.take().zip(process.stdout.take()).context("a second process has no pipes")?;
        Ok(Self { process, orders: pipes.0, answers: BufReader::new(pipes.1).lines() })
    }

    pub(super) async fn ask(&mut self, order: &Order) -> anyhow::Result<Answer> {
        self.tell(order).await?;
        self.hear().await
    }

    /// Without waiting for the answer.
    pub(super) async fn tell(&mut self, order: &Order) -> anyhow::Result<()> {
        let line = serde_json::to_string(order)? + "\n";
        self.orders.write_all(line.as_bytes()).await.context("the second process has ended")
    }

    /// Ends the process, and waits until it is gone: nothing of it is left to disturb what is measured next.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.process.kill().await.context("the second process cannot be ended")
    }

    pub(super) async fn hear(&mut self) -> anyhow::Result<Answer> {
        let line = self.answers.next_line().await?.context("the second process has ended")?;
        let answer: Result<Answer, String> = serde_json::from_str(&line)?;
        answer.map_err(|words| anyhow!("the second process: {words}"))
    }
}

/// The program as a peer.
pub(crate) async fn run(args: args::BenchPeer) -> anyhow::Result<ExitCode> {
    let (sender, mut orders) = mpsc::unbounded_channel();
    // Standard input blocks.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if line.is_ok_and(|line| sender.send(line).is_err()) {
                return;
            }
        }
    });
    let durability = if args.buffered { Durability::Buffered } else { Durability::Synced };
    let mut follower = Follower {
        url: args.store,
        durability,
        compress: args.compress,
        slave: None,
        centre: None,
        fan: Vec::new(),
        receivers: Receivers::default(),
        drain: Drain::default(),
        master: None,
        raw: None,
    };
    while let Some(line) = orders.recv().await {
        let answer = match serde_json::from_str(&line) {
            Ok(order) => follower.obey(order).await.map_err(|error| format!("{error:#}")),
            Err(error) => Err(error.to_string()),
        };
        say!("{}", serde_json::to_string(&answer)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

struct Follower {
    url: String,
    durability: Durability,
    compress: Option<Compression>,
    slave: Option<(Slave<Store>, Option<JoinHandle<()>>)>,
    centre: Option<Links>,
    fan: Vec<Slave<DiscardStore>>,
    receivers: Receivers,
    drain: Drain,
    master: Option<Master<Store>>,
    raw: Option<Store>,
}

struct Links {
    centre: Centre<Store>,
    links: BTreeMap<SocketAddr, Slave<LinkStore<Store>>>,
}

impl Follower {
    async fn obey(&mut self, order: Order) -> anyhow::Result<Answer> {
        match order {
            Order::Follow { from, until } => self.follow(from, until).await,
            Order::Count { from, until } => self.count(from, until).await,
            Order::Leave => {
                // As a connection that breaks: what it holds stays, also in memory.
                if let Some(following) = self.slave.as_mut().and_then(|slave| slave.1.take()) {
                    following.abort();
                    drop(following.await);
                }
                Ok(Answer::default())
            }
            Order::Gather { from } => self.gather(from).await,
            Order::Fan { from, slaves, until, prefix } => self.fan(from, slaves, until, prefix.as_deref()).await,
            Order::Receive { from, receivers, bytes } => {
                self.receivers.receive(from, receivers, bytes).await?;
                Ok(Answer::default())
            }
            Order::Drain { from, receivers, bytes } => {
                self.drain.drain(from, receivers, bytes).await?;
                Ok(Answer::default())
            }
            Order::Ingest(entries) => self.ingest(entries).await,
            Order::Host => {
                let master = store::open_master(store::open("memory:")?, "memory", super::keeping()).await?;
                let address = Some(super::serve(&master).await?);
                self.master = Some(master);
                Ok(Answer { address, resident: resident()?, ..Answer::default() })
            }
            Order::Write { entries, batch, value, keys } => {
                let master = self.master.as_ref().context("it hosts no master")?;
                let start = Instant::now();
                write(master, Entries::seeded(keys, value, 0).take(entries), batch).await?;
                Ok(Answer { seconds: start.elapsed().as_secs_f64(), ..Answer::default() })
            }
            Order::Weigh => Ok(Answer { resident: resident()?, processor: processor_time()?, ..Answer::default() }),
            Order::Watch { first, last } => self.watch(first, last).await,
        }
    }

    async fn ingest(&mut self, order: Ingest) -> anyhow::Result<Answer> {
        let store = match &self.raw {
            Some(store) => store,
            None => self.raw.insert(store::open(&self.url)?),
        };
        let entries = Entries::seeded(order.keys, order.value, order.part).take(order.entries);
        let rate = if order.sorted {
            ingest(store, sorted(entries).into_iter(), order.batch).await?
        } else {
            ingest(store, entries, order.batch).await?
        };
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        Ok(Answer { seconds: order.entries as f64 / rate, ..Answer::default() })
    }

    async fn slave(&mut self) -> anyhow::Result<&mut (Slave<Store>, Option<JoinHandle<()>>)> {
        let slave = match self.slave.take() {
            Some(slave) => slave,
            None => {
                let config = SlaveConfig::new("bench").durability(self.durability).compression(self.compress);
                (Slave::open(store::open(&self.url)?, config).await?, None)
            }
        };
        Ok(self.slave.insert(slave))
    }

    async fn count(&mut self, from: SocketAddr, until: u64) -> anyhow::Result<Answer> {
        let (slave, following) = self.slave().await?;
        let (start, before) = (Instant::now(), processor_time()?);
        let stream = TcpStream::connect(from).await.context("the master cannot be reached")?;
        stream.set_nodelay(true)?;
        let (stream, received) = Counted::new(stream);
        let counted = slave.clone();
        *following = Some(tokio::spawn(async move { drop(counted.follow(stream).await) }));
        slave.wait_applied(Seq::new(until)).await?;
        let (seconds, status) = (start.elapsed().as_secs_f64(), slave.status());
        Ok(Answer {
            seconds,
            copies: status.copies,
            comparisons: status.comparisons,
            received: received.load(Ordering::Relaxed),
            processor: processor_time()? - before,
            ..Answer::default()
        })
    }

    async fn follow(&mut self, from: SocketAddr, until: u64) -> anyhow::Result<Answer> {
        let (slave, following) = self.slave().await?;
        let start = Instant::now();
        if following.is_none() {
            *following = Some(tokio::spawn(follow(slave.clone(), from)));
        }
        slave.wait_applied(Seq::new(until)).await?;
        let (seconds, status) = (start.elapsed().as_secs_f64(), slave.status());
        Ok(Answer { seconds, copies: status.copies, comparisons: status.comparisons, ..Answer::default() })
    }

    async fn gather(&mut self, from: Vec<(SocketAddr, u64)>) -> anyhow::Result<Answer> {
        let links = match &mut self.centre {
            Some(links) => links,
            None => {
                let centre = Centre::open(store::open(&self.url)?).await?;
                self.centre.insert(Links { centre, links: BTreeMap::new() })
            }
        };
        for (address, _) in &from {
            if !links.links.contains_key(address) {
                let name = LinkId::new(format!("link-{}", address.port()))?;
                let slave = links.centre.link(LinkConfig::new(name, SlaveConfig::new("bench"))).await?;
                tokio::spawn(follow(slave.clone(), *address));
                links.links.insert(*address, slave);
            }
        }
        let start = Instant::now();
        for (address, until) in from {
            let slave = links.links.get(&address).context("no such link")?;
            slave.wait_applied(Seq::new(until)).await?;
        }
        Ok(Answer { seconds: start.elapsed().as_secs_f64(), ..Answer::default() })
    }

    async fn fan(
        &mut self,
        from: SocketAddr,
        slaves: usize,
        until: u64,
        prefix: Option<&str>,
    ) -> anyhow::Result<Answer> {
        let start = Instant::now();
        for number in self.fan.len()..slaves {
            let mut config = SlaveConfig::new(format!("bench-{number}"));
            if let Some(prefix) = prefix {
                config = config.subscribe(KeyRange::prefix(prefix));
            }
            let slave = Slave::open(DiscardStore::default(), config).await?;
            tokio::spawn(follow(slave.clone(), from));
            self.fan.push(slave);
        }
        for slave in &self.fan {
            slave.wait_applied(Seq::new(until)).await?;
        }
        Ok(Answer { seconds: start.elapsed().as_secs_f64(), ..Answer::default() })
    }

    async fn watch(&mut self, first: u64, last: u64) -> anyhow::Result<Answer> {
        let Some((slave, _)) = &self.slave else { bail!("it does not follow") };
        let mut histogram = Histogram::<u64>::new(3)?;
        for seq in first..=last {
            slave.wait_applied(Seq::new(seq)).await?;
            let seen = now();
            let value = slave.get(key(seq)).await?.context("a record without its entry")?;
            let written = value.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
            histogram.record(seen.saturating_sub(written.context("a value without a time")?))?;
        }
        Ok(Answer { micros: Some(Quantiles::of(&histogram)), ..Answer::default() })
    }
}

/// The key of the write with that number.
pub(super) fn key(seq: u64) -> [u8; 16] {
    u128::from(seq).to_be_bytes()
}

// Until it is shut down. What ends it otherwise is seen by whoever waits, and told.
async fn follow<S: ReplicaStore>(slave: Slave<S>, from: SocketAddr) {
    if let Err(error) = slave.follow_tcp(from).await {
        note!("replikv: the second process no longer follows: {error}");
        // Nobody would answer whoever waits for it.
        std::process::exit(i32::from(crate::FAILED));
    }
}

/// Seconds of processor time that this process has used. The system tells it in steps of ten milliseconds.
pub(super) fn processor_time() -> anyhow::Result<f64> {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").context("this system does not tell the processor time")?;
    // Behind the name of the program, which may hold anything: the state is the third field.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: Vec<f64> = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    match ticks[..] {
        [user, system] => Ok((user + system) / TICKS_A_SECOND),
        _ => bail!("/proc/self/stat has no processor time"),
    }
}

/// Bytes of memory that this process has.
fn resident() -> anyhow::Result<f64> {
    let status =
        std::fs::read_to_string("/proc/self/status").context("this system does not tell how much memory is used")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS in /proc/self/status")?;
    Ok(words.parse::<f64>()? * 1024.0)
}
