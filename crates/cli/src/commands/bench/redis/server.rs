//! A Redis server as a child, and as much of its protocol as is needed to measure it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::super::free_address;
use super::super::workload::{Key, batches};

/// How long a server may take to do anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a server is set up. Without files it writes nothing to disk while it is written to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Config {
    pub(super) sync: FullSync,
    pub(super) files: Files,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum FullSync {
    /// As it comes.
    Default,
    /// Replicas are sent a snapshot over the socket at once, without compression and checksums, and load it from there.
    Quickest,
}

/// Whether changes are written to an append-only file, and when that is synced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Files {
    None,
    EverySecond,
    Always,
}

impl Files {
    /// What holds on both sides.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::None => "in memory",
            Self::EverySecond => "with AOF, synced every second",
            Self::Always => "with AOF, always synced",
        }
    }

    fn args(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::EverySecond => &["--appendonly", "yes", "--appendfsync", "everysec"],
            Self::Always => &["--appendonly", "yes", "--appendfsync", "always"],
        }
    }
}

/// It is killed when this goes.
#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    pub(super) async fn start(config: Config, dir: &Path, events: Option<&str>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let address = free_address()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", "", "--dir"]).arg(dir);
        // Replicas that are slow are not cut off: what is measured is how long they take.
        command.args(["--client-output-buffer-limit", "replica 0 0 0"]);
        command.args(config.files.args());
        if matches!(config.sync, FullSync::Quickest) {
            command.args(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
            command.args(["--repl-diskless-load", "swapdb", "--rdbcompression", "no", "--rdbchecksum", "no"]);
            command.args(["--repl-disable-tcp-nodelay", "no"]);
        }
        if let Some(events) = events {
            command.args(["--notify-keyspace-events", events]);
        }
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn();
        let server = Self { process: process.context("redis-server cannot be started: is it installed?")?, address };
        let until = Instant::now() + PATIENCE;
        while server.client().await.is_err() {
            ensure!(Instant::now() < until, "redis-server does not answer");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(server)
    }

    /// Ends it, and waits until it is gone.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.process.kill().await.context("redis-server cannot be ended")
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let mut client = Client::connect(self.address).await?;
        client.command(&["PING"]).await?;
        Ok(client)
    }
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Client {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Client {
    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Ok(Self { read: BufReader::with_capacity(1 << 16, read), write })
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.write.write_all(bytes).await?)
    }

    // A reply of one line, without what it says of itself; a bulk reply with what follows.
    async fn reply(&mut self) -> anyhow::Result<String> {
        let line = self.line().await?;
        match line.split_at_checked(1) {
            Some(("+" | ":", words)) => Ok(words.into()),
            Some(("$", length)) => {
                let mut bytes = vec![0; length.parse::<usize>()? + 2];
                self.read.read_exact(&mut bytes).await?;
                Ok(String::from_utf8_lossy(&bytes).trim_end().into())
            }
            _ => bail!("redis-server answers {line}"),
        }
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        timeout(PATIENCE, self.read.read_until(b'\n', &mut line)).await.context("redis-server does not answer")??;
        ensure!(line.ends_with(b"\r\n"), "redis-server has closed the connection");
        Ok(String::from_utf8_lossy(&line).trim_end().into())
    }

    pub(super) async fn command(&mut self, words: &[&str]) -> anyhow::Result<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.send(&encoded(&words)).await?;
        self.reply().await
    }

    /// Sets all of them, so many at once.
    pub(super) async fn fill(
        &mut self,
        entries: impl Iterator<Item = (Key, Bytes)>,
        pipeline: usize,
    ) -> anyhow::Result<()> {
        for batch in batches(entries, pipeline) {
            let bytes: Vec<u8> = batch.iter().flat_map(|(key, value)| set(key, value)).collect();
            self.send(&bytes).await?;
            self.skip_replies(batch.len()).await?;
        }
        Ok(())
    }

    pub(super) async fn skip_replies(&mut self, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            self.reply().await?;
        }
        Ok(())
    }

    pub(super) async fn replicate(&mut self, master: &Server) -> anyhow::Result<()> {
        self.command(&["REPLICAOF", "127.0.0.1", &master.address.port().to_string()]).await.map(drop)
    }

    pub(super) async fn wait_for_link(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.command(&["INFO", "replication"]).await?.contains("master_link_status:up") {
            ensure!(Instant::now() < until, "the replica does not come up");
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Until the replica is up and holds so many entries. It answers when what came before is in its append-only file, and
    /// synced if it always is.
    pub(super) async fn wait_for_size(&mut self, entries: usize) -> anyhow::Result<()> {
        self.wait_for_link().await?;
        let until = Instant::now() + PATIENCE;
        loop {
            let found: usize = self.command(&["DBSIZE"]).await?.parse()?;
            if found == entries {
                return Ok(());
            }
            ensure!(found < entries, "the replica holds {found} entries, and not {entries}");
            ensure!(Instant::now() < until, "the replica does not get beyond {found} entries of {entries}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Until the replica has an append-only file of its own, if it is to have one.
    pub(super) async fn wait_for_files(&mut self, files: Files) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = self.command(&["INFO", "persistence"]).await?;
            let wanted = if matches!(files, Files::None) { "aof_enabled:0" } else { "aof_enabled:1" };
            ensure!(found.contains(wanted), "the replica does not say {wanted}");
            ensure!(found.contains("aof_last_bgrewrite_status:ok"), "the replica cannot write its append-only file");
            if found.contains("aof_rewrite_in_progress:0") && found.contains("aof_rewrite_scheduled:0") {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the replica does not finish its append-only file");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// From now on it is told of each SET, once it is carried out.
    pub(super) async fn watch_sets(&mut self) -> anyhow::Result<()> {
        self.send(&encoded(&[b"SUBSCRIBE", b"__keyevent@0__:set"])).await?;
        self.message(3).await
    }

    pub(super) async fn next_event(&mut self) -> anyhow::Result<()> {
        self.message(3).await
    }

    async fn message(&mut self, parts: usize) -> anyhow::Result<()> {
        let line = self.line().await?;
        ensure!(line == format!("*{parts}"), "redis-server says {line}");
        self.skip_replies(parts).await
    }
}

/// What sets a key, as it is sent and as it is replicated.
pub(super) fn set(key: &[u8], value: &[u8]) -> Vec<u8> {
    encoded(&[b"SET", key, value])
}

fn encoded(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Replica connections that read what they are sent, and keep nothing.
#[derive(Debug, Default)]
pub(in super::super) struct Drain(Vec<(BufReader<OwnedReadHalf>, OwnedWriteHalf, u64)>);

impl Drain {
    /// Connects until there are so many, and reads until each has had so many bytes of commands.
    pub(in super::super) async fn drain(
        &mut self,
        from: SocketAddr,
        receivers: usize,
        bytes: u64,
    ) -> anyhow::Result<()> {
        for _ in self.0.len()..receivers {
            let mut client = Client::connect(from).await?;
            client.send(&encoded(&[b"PSYNC", b"?", b"-1"])).await?;
            let answer = client.line().await?;
            ensure!(answer.starts_with("+FULLRESYNC"), "redis-server answers {answer}");
            // The snapshot: its length and its bytes, or two marks of 40 bytes around it.
            let mut line = String::new();
            while line.is_empty() {
                line = client.line().await?;
            }
            match line.strip_prefix("$EOF:") {
                Some(mark) => {
                    let mark = mark.as_bytes().to_vec();
                    let mut tail = Vec::new();
                    while !tail.ends_with(&mark) {
                        tail.push(client.read.read_u8().await?);
                    }
                }
                None => {
                    let length: u64 = line.strip_prefix('$').context("no snapshot")?.parse()?;
                    let mut snapshot = (&mut client.read).take(length);
                    tokio::io::copy(&mut snapshot, &mut tokio::io::sink()).await?;
                }
            }
            // Without an acknowledgement nothing is sent after a snapshot over the socket.
            client.send(&encoded(&[b"REPLCONF", b"ACK", b"0"])).await?;
            self.0.push((client.read, client.write, 0));
        }
        let mut reading = tokio::task::JoinSet::new();
        for (mut read, write, mut seen) in self.0.drain(..) {
            reading.spawn(async move {
                while seen < bytes {
                    let length = read.fill_buf().await?.len();
                    ensure!(length > 0, "redis-server has closed a replica's connection");
                    read.consume(length);
                    seen += length as u64;
                }
                anyhow::Ok((read, write, seen))
            });
        }
        while let Some(ended) = reading.join_next().await {
            self.0.push(ended??);
        }
        Ok(())
    }
}
