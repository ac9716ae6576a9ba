//! The whole thing in one command.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use replikv::{Batch, KeyRange, Master, MasterConfig, Slave, SlaveConfig, Token};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::NO;
use super::import::{Source, import};
use crate::args;
use crate::formats::Columns;
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::store::{self, Store};
use crate::ui;

const DATA: &[u8] = include_bytes!("../../data/UnicodeData.txt");
/// What is written after the import: so many batches of so many operations.
const BATCHES: usize = 1500;
const OPS: usize = 20;

pub(crate) async fn run(args: args::Demo, json: bool) -> anyhow::Result<ExitCode> {
    let source = match &args.input {
        Some(path) => Source::open(path, args.format, Columns::default(), store::LIMITS).await?,
        None => Source::included("the included UnicodeData.txt", DATA, b';'),
    };
    let dir = tempfile::Builder::new().prefix("replikv-demo-").tempdir()?;
    let mut interrupt = Interrupt::new()?;
    let mut second = Interrupt::new()?;
    let mut demo = Demo::open(dir.path()).await?;
    let result = tokio::select! {
        biased;
        () = second.wait() => None,
        result = demo.show(source, &mut interrupt) => Some(result),
    };
    demo.child.take().map(kill).transpose()?;
    demo.master.shutdown().await?;
    let Some(result) = result else { return Ok(ExitCode::from(INTERRUPTED)) };
    let figures = result?;
    if json {
        say!("{}", serde_json::to_string(&figures)?)?;
    } else {
        figures.print()?;
    }
    Ok(if figures.equal { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

struct Demo<'a> {
    dir: &'a Path,
    master: Master<Store>,
    address: SocketAddr,
    child: Option<Child>,
}

/// What was measured.
#[derive(Debug, Default, serde::Serialize)]
struct Figures {
    entries: u64,
    import_seconds: f64,
    copy_to_sled_seconds: f64,
    written_meanwhile: u64,
    killed_at: u64,
    head_at_resume: u64,
    resume_seconds: f64,
    live_latency_ms: f64,
    compared: u64,
    equal: bool,
}

impl<'a> Demo<'a> {
    async fn open(dir: &'a Path) -> anyhow::Result<Self> {
        let url = format!("lmdb:{}", dir.join("master").display());
        let master = store::open_master(store::open(&url)?, &url, MasterConfig::default()).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port on loopback")?;
        let address = listener.local_addr()?;
        tokio::spawn(master.clone().serve_tcp(listener));
        Ok(Self { dir, master, address, child: None })
    }

    async fn show(&mut self, source: Source, interrupt: &mut Interrupt) -> anyhow::Result<Figures> {
        let mut figures = Figures::default();
        let master = self.master.clone();

        let bar = ui::bar("importing", source.entries);
        let start = Instant::now();
        let imported =
            import(&master, "the demo's master", source, interrupt, |entries| bar.set_position(entries)).await?;
        bar.finish_and_clear();
        figures.entries = imported.entries;
        figures.import_seconds = start.elapsed().as_secs_f64();
        let token = imported.token.context("there is nothing to import")?;
        step(&format!("imported {} entries into an LMDB master", ui::thousands(imported.entries)));

        let start = Instant::now();
        let sled = self.follow("sled", "first").await?;
        sled.wait_applied(token).await?;
        figures.copy_to_sled_seconds = start.elapsed().as_secs_f64();
        step("a sled slave has copied them over TCP");

        let second = self.dir.join("second");
        self.child = Some(self.spawn_follower(&second)?);
        let writing = tokio::spawn(write_on(master.clone(), self.keys().await?));
        figures.killed_at = self.kill_in_mid_stream().await?;
        step(&format!("a second slave, in a process of its own, was killed (SIGKILL) at record {}", figures.killed_at));
        let written = writing.await??;
        figures.written_meanwhile = (BATCHES * OPS) as u64;
        step(&format!("meanwhile {} more operations were written", ui::thousands(figures.written_meanwhile)));

        figures.head_at_resume = written.seq.as_u64();
        let start = Instant::now();
        let lmdb = self.follow("lmdb", "second").await?;
        lmdb.wait_applied(written).await?;
        figures.resume_seconds = start.elapsed().as_secs_f64();
        step(&format!("it was started again, and has gone on to record {}", written.seq));

        figures.live_latency_ms = live_latency(&master, &sled).await?;
        let last = master.put("demo/last", "word").await?;
        sled.wait_applied(last).await?;
        lmdb.wait_applied(last).await?;

        figures.equal = true;
        for slave in [&sled, &lmdb] {
            let bar = ui::bar("comparing", None);
            let tell = |key: &bytes::Bytes, difference| {
                note!("{}: {difference:?}", ui::printable(key));
            };
            let found = store::compare(master.store(), slave.store(), tell, |n| bar.set_position(n)).await?;
            bar.finish_and_clear();
            figures.compared = found.equal;
            figures.equal &= found.is_equal() && found.equal > 0;
            slave.shutdown().await?;
        }
        Ok(figures)
    }

    async fn follow(&self, kind: &str, name: &str) -> anyhow::Result<Slave<Store>> {
        let url = format!("{kind}:{}", self.dir.join(name).display());
        let slave = Slave::open(store::open(&url)?, SlaveConfig::new(name)).await?;
        let (following, address) = (slave.clone(), self.address);
        tokio::spawn(async move {
            if let Err(error) = following.follow_tcp(address).await {
                note!("replikv: a slave stopped: {error}");
            }
        });
        Ok(slave)
    }

    fn spawn_follower(&self, store: &Path) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("where this program is")?;
        let url = format!("lmdb:{}", store.display());
        Command::new(program)
            .args(["follow", "--store", &url, "--id", "second", "--from", &self.address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("a second process cannot be started")
    }

    async fn keys(&self) -> anyhow::Result<Vec<bytes::Bytes>> {
        let mut pages = store::pages(self.master.store(), KeyRange::all(), false);
        let page = pages.try_next().await?.context("there is nothing to write to")?;
        Ok(page.entries().map(|(key, _)| key).collect())
    }

    // Once it has applied some of what is being written, and not all.
    async fn kill_in_mid_stream(&mut self) -> anyhow::Result<u64> {
        let start = Instant::now();
        let first = self.master.status().published.seq.as_u64();
        while start.elapsed() < Duration::from_secs(30) {
            let status = self.master.status();
            let seen = status.slaves.iter().find(|slave| slave.name == "second" && slave.consistent);
            if let Some(slave) = seen.filter(|slave| slave.applied.as_u64() > first) {
                let applied = slave.applied.as_u64();
                self.child.take().map(kill).transpose()?;
                return Ok(applied);
            }
            sleep(Duration::from_millis(2)).await;
        }
        bail!("the second slave did not come up")
    }
}

fn kill(mut child: Child) -> anyhow::Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

// Overwrites, deletes and new entries, at a pace that a person can see.
async fn write_on(master: Master<Store>, keys: Vec<bytes::Bytes>) -> anyhow::Result<Token> {
    let mut rng = fastrand::Rng::with_seed(1);
    let bar = ui::bar("writing", Some((BATCHES * OPS) as u64));
    let mut last = None;
    for round in 0..BATCHES {
        let mut batch = Batch::new();
        for op in 0..OPS {
            let key = &keys[rng.usize(..keys.len())];
            batch = match op {
                0 => batch.delete(key),
                1 => batch.put(format!("demo/{round:06}"), "new"),
                _ => batch.put(key, format!("revised in round {round}")),
            };
        }
        last = Some(master.write(batch).await?);
        bar.inc(OPS as u64);
        sleep(Duration::from_micros(500)).await;
    }
    bar.finish_and_clear();
    last.context("nothing was written")
}

// From the call of `write` until the entry is readable, and durable, on the slave: the median of many.
async fn live_latency(master: &Master<Store>, slave: &Slave<Store>) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for round in 0..101u32 {
        let start = Instant::now();
        let token = master.put("demo/latency", round.to_string()).await?;
        slave.wait_applied(token).await?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2].as_secs_f64() * 1e3)
}

fn step(words: &str) {
    note!("- {words}");
}

impl Figures {
    fn print(&self) -> std::io::Result<()> {
        let per_second = |count: u64, seconds: f64| ui::rate_words(ui::rate(count, Duration::from_secs_f64(seconds)));
        let seconds = |seconds| ui::time_words(Duration::from_secs_f64(seconds));
        let mut table = ui::table(["what", "entries or records", "time", "rate"]);
        let mut row = |what: &str, count: u64, time: f64| {
            table.add_row([what.to_string(), ui::thousands(count), seconds(time), per_second(count, time)]);
        };
        row("import into the LMDB master", self.entries, self.import_seconds);
        row("copy to the sled slave, from the start of it", self.entries, self.copy_to_sled_seconds);
        let missed = self.head_at_resume.saturating_sub(self.killed_at);
        row("records that the killed slave made up for", missed, self.resume_seconds);
        say!("{table}")?;
        say!("a write is readable on the sled slave after {:.2} ms (median)", self.live_latency_ms)?;
        match self.equal {
            true => say!("master and both slaves are equal: {} entries each", ui::thousands(self.compared)),
            false => say!("master and slaves DIFFER"),
        }
    }
}
