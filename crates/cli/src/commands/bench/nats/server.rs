//! A NATS server as a child, and as much of its protocol as is needed to measure it: lines, and JSON for JetStream.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::super::free_address;
use super::super::workload::{Key, batches};

/// How long a server may take to do anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// It is killed when this goes.
#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    /// Its JetStream domain as well.
    name: &'static str,
    address: SocketAddr,
    leaves: SocketAddr,
}

impl Server {
    /// As it comes, with JetStream below `dir`; a leaf node of `hub` if there is one.
    pub(super) async fn start(dir: &Path, name: &'static str, hub: Option<&Self>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let (address, leaves) = (free_address()?, free_address()?);
        let leaf_nodes = match hub {
            Some(hub) => format!("remotes: [{{ url: \"nats-leaf://{}\" }}]", hub.leaves),
            None => format!("listen: \"{leaves}\""),
        };
        let config = format!(
            "server_name: {name}\nlisten: \"{address}\"\nleafnodes {{ {leaf_nodes} }}\n\
             jetstream {{ store_dir: {:?}, domain: {name} }}\n",
            dir.join(name)
        );
        let path = dir.join(format!("{name}.conf"));
        std::fs::write(&path, config)?;
        let mut command = Command::new("nats-server");
        command.arg("--config").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.kill_on_drop(true).spawn().context("nats-server cannot be started: is it installed?")?;
        let server = Self { process, name, address, leaves };
        server.client().await?.wait_for_api("$JS.API").await?;
        Ok(server)
    }

    /// Ends it, and waits until it is gone.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.process.kill().await.context("nats-server cannot be ended")
    }

    /// What its JetStream is called by its leaf nodes.
    pub(super) fn api(&self) -> String {
        format!("$JS.{}.API", self.name)
    }

    /// Waits until the server answers.
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let until = Instant::now() + PATIENCE;
        loop {
            match Client::connect(self.address, self.name).await {
                Ok(client) => return Ok(client),
                Err(_) if Instant::now() < until => sleep(Duration::from_millis(10)).await,
                Err(error) => return Err(error.context("nats-server does not answer")),
            }
        }
    }
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Client {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    /// Where answers to this connection go.
    inbox: String,
}

struct Message {
    subject: String,
    payload: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr, name: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // The subjects of a hub and those of its leaf nodes are the same ones.
        let inbox = format!("_INBOX.{name}-{}", stream.local_addr()?.port());
        let (read, write) = stream.into_split();
        let mut client = Self { read: BufReader::with_capacity(1 << 16, read), write, inbox };
        // Whoever asks for what nobody serves is told so, by a message with a header and without content.
        let options = serde_json::json!({ "verbose": false, "headers": true, "no_responders": true });
        client.send(format!("CONNECT {options}\r\nSUB {}.* 1\r\nPING\r\n", client.inbox).as_bytes()).await?;
        while client.line().await? != "PONG" {}
        Ok(client)
    }

    async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.write.write_all(bytes).await?)
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        timeout(PATIENCE, self.read.read_until(b'\n', &mut line)).await.context("nats-server does not answer")??;
        ensure!(line.ends_with(b"\r\n"), "nats-server has closed the connection");
        let line = String::from_utf8_lossy(&line).trim_end().to_string();
        ensure!(!line.starts_with("-ERR"), "nats-server says {line}");
        Ok(line)
    }

    async fn message(&mut self) -> anyhow::Result<Message> {
        loop {
            let line = self.line().await?;
            let words: Vec<&str> = line.split_whitespace().collect();
            // `MSG subject subscription [reply-to] length`; with a header its length comes before that of the whole.
            let (header, length) = match words[..] {
                ["MSG", .., length] => (0, length.parse()?),
                ["HMSG", .., header, length] => (header.parse()?, length.parse::<usize>()?),
                ["PING"] => {
                    self.send(b"PONG\r\n").await?;
                    continue;
                }
                _ => continue,
            };
            let mut payload = vec![0; length + 2];
            self.read.read_exact(&mut payload).await?;
            payload.truncate(length);
            payload.drain(..header.min(length));
            let subject = words.get(1).copied().unwrap_or_default().to_string();
            return Ok(Message { subject, payload });
        }
    }

    // An answer of JetStream's that is no error.
    async fn answer(&mut self) -> anyhow::Result<Value> {
        let message = self.message().await?;
        ensure!(!message.payload.is_empty(), "nobody answers on {}", message.subject);
        let answer: Value = serde_json::from_slice(&message.payload)?;
        if let Some(error) = answer.get("error") {
            bail!("nats-server answers {error}");
        }
        Ok(answer)
    }

    async fn ask(&mut self, subject: &str, payload: &[u8]) -> anyhow::Result<Value> {
        let mut bytes = Vec::new();
        publish(&mut bytes, subject, &self.inbox, &[payload]);
        self.send(&bytes).await?;
        self.answer().await
    }

    /// Until somebody serves that API.
    pub(super) async fn wait_for_api(&mut self, api: &str) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        while let Err(error) = self.ask(&format!("{api}.INFO"), b"").await {
            ensure!(Instant::now() < until, error.context("JetStream does not answer"));
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Makes a stream, which may be a mirror.
    pub(super) async fn create(&mut self, name: &str, config: &Value) -> anyhow::Result<()> {
        let answer = self.ask(&format!("$JS.API.STREAM.CREATE.{name}"), config.to_string().as_bytes()).await?;
        for part in ["/storage", "/mirror/name", "/mirror/external/api"] {
            let same = answer["config"].pointer(part) == config.pointer(part);
            ensure!(same, "nats-server makes another stream than wanted: {answer}");
        }
        Ok(())
    }

    /// Until a stream holds so many messages.
    pub(super) async fn wait_for(&mut self, name: &str, messages: usize) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let info = self.ask(&format!("$JS.API.STREAM.INFO.{name}"), b"").await?;
            let found = info["state"]["messages"].as_u64().context("nats-server does not say what it holds")?;
            if found == messages as u64 {
                return Ok(());
            }
            ensure!(found < messages as u64, "{name} holds {found} messages, and not {messages}");
            ensure!(Instant::now() < until, "{name} does not get beyond {found} messages of {messages}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Publishes all of them, so many at once.
    pub(super) async fn fill(
        &mut self,
        stream: &str,
        entries: impl Iterator<Item = (Key, Bytes)>,
        pipeline: usize,
    ) -> anyhow::Result<()> {
        for batch in batches(entries, pipeline) {
            let mut bytes = Vec::new();
            batch.iter().for_each(|(key, value)| publish(&mut bytes, stream, &self.inbox, &[key, value]));
            self.send(&bytes).await?;
            for _ in batch {
                let answer = self.answer().await?;
                ensure!(answer["seq"].is_u64(), "nats-server does not acknowledge: {answer}");
            }
        }
        Ok(())
    }
}

fn publish(bytes: &mut Vec<u8>, subject: &str, inbox: &str, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    bytes.extend_from_slice(format!("PUB {subject} {inbox}.0 {length}\r\n").as_bytes());
    for part in payload {
        bytes.extend_from_slice(part);
    }
    bytes.extend_from_slice(b"\r\n");
}
