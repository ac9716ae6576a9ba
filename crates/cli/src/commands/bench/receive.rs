//! Connections that follow a master as slaves do, and only count what they are sent: what a master can feed, whatever a slave
//! does with it. What Redis is asked for beside it is the same.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::BytesMut;
use replikv::proto::{Encoder, FRAME_HEADER_LEN, Heartbeat, Hello, Message, OnDivergence, PREAMBLE_LEN};
use replikv::{Seq, StoreLimits};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::{JoinHandle, JoinSet};

/// Whole records, and nothing else: docs/protocol.md.
const RECORDS: u8 = 6;
/// As often as any slave says that it is there.
const EVERY: Duration = Duration::from_secs(1);

/// All that read from one master.
#[derive(Debug, Default)]
pub(super) struct Receivers(Vec<Receiver>);

#[derive(Debug)]
struct Receiver {
    read: BufReader<OwnedReadHalf>,
    /// Says that it is there.
    alive: JoinHandle<()>,
    /// Bytes of records that it was sent.
    seen: u64,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.alive.abort();
    }
}

impl Receivers {
    /// Connects until there are so many, and reads until each was sent so many bytes of records.
    pub(super) async fn receive(&mut self, from: SocketAddr, receivers: usize, bytes: u64) -> anyhow::Result<()> {
        for number in self.0.len()..receivers {
            self.0.push(Receiver::connect(from, number as u64).await?);
        }
        let mut reading = JoinSet::new();
        for mut receiver in self.0.drain(..) {
            reading.spawn(async move {
                receiver.read_until(bytes).await?;
                anyhow::Ok(receiver)
            });
        }
        while let Some(receiver) = reading.join_next().await {
            self.0.push(receiver??);
        }
        Ok(())
    }
}

impl Receiver {
    async fn connect(from: SocketAddr, number: u64) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(from).await.context("the master cannot be reached")?;
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        let (encoder, mut out) = (Encoder::new(), BytesMut::new());
        encoder.encode_preamble(&mut out);
        let any = usize::MAX >> 1;
        let hello = Hello {
            slave: format!("receiver-{number}"),
            nonce: number,
            cursor: None,
            holds_data: false,
            checkpoints: Vec::new(),
            limits: StoreLimits { max_key: any, max_value: any, max_batch: any },
            ranges: Vec::new(),
            path: Vec::new(),
            temporary: true,
            on_divergence: OnDivergence::default(),
        };
        encoder.encode(&Message::Hello(hello), &mut out)?;
        write.write_all(&out).await?;
        let mut read = BufReader::with_capacity(64 << 10, read);
        read.read_exact(&mut [0; PREAMBLE_LEN]).await.context("the master does not answer")?;
        Ok(Self { read, alive: tokio::spawn(say_that_it_is_there(write)), seen: 0 })
    }

    async fn read_until(&mut self, bytes: u64) -> anyhow::Result<()> {
        let mut header = [0; FRAME_HEADER_LEN];
        while self.seen < bytes {
            self.read.read_exact(&mut header).await.context("the master has closed the connection")?;
            let [l0, l1, l2, l3, kind, ..] = header;
            let mut left = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
            if kind == RECORDS {
                self.seen += left;
            }
            let mut payload = (&mut self.read).take(left);
            while left > 0 {
                let length = payload.fill_buf().await?.len();
                ensure!(length > 0, "the master has closed the connection");
                payload.consume(length);
                left -= length as u64;
            }
        }
        Ok(())
    }
}

async fn say_that_it_is_there(mut write: OwnedWriteHalf) {
    let mut out = BytesMut::new();
    let beat = Heartbeat::Follower { applied: Seq::ZERO, durable: Seq::ZERO, consistent: false };
    if Encoder::new().encode(&Message::Heartbeat(beat), &mut out).is_err() {
        return;
    }
    // Whoever reads notices that the connection has ended.
    loop {
        tokio::time::sleep(EVERY).await;
        if write.write_all(&out).await.is_err() {
            return;
        }
    }
}
