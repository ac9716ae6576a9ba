//! A connection that is cut at random bytes, a thousand times.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::support::{Error, Store, assert_equal, batch, print_seed, seed, soon};
use fastrand::Rng;
use replikv::{FollowError, Master, MasterConfig, MemoryStore, Slave, SlaveConfig};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// A stream that fails after a number of bytes, both ways counted together.
struct Cut {
    stream: DuplexStream,
    left: Arc<AtomicI64>,
}

impl Cut {
    fn broken(&self) -> bool {
        self.left.load(Ordering::Relaxed) <= 0
    }
}

fn reset() -> std::io::Error {
    std::io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Cut {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.broken() {
            return Poll::Ready(Err(reset()));
        }
        let left = usize::try_from(self.left.load(Ordering::Relaxed)).unwrap_or(0);
        let mut part = buf.take(left);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut part);
        let read = part.filled().len();

        let bytes = part.filled().to_vec();
        buf.put_slice(&bytes);
        self.left.fetch_sub(i64::try_from(read).unwrap_or(0), Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.broken() {
            return Poll::Ready(Err(reset()));
        }
        let left = usize::try_from(self.left.load(Ordering::Relaxed)).unwrap_or(0);
        let polled = Pin::new(&mut self.stream).poll_write(cx, &bytes[..bytes.len().min(left)]);
        if let Poll::Ready(Ok(written)) = polled {
            self.left.fetch_sub(i64::try_from(written).unwrap_or(0), Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_connection_cut_at_random_bytes_a_thousand_times_ends_equal() -> Result<(), Error> {
    let seed = seed();
    print_seed("--test integration cuts", seed);
    let mut rng = Rng::with_seed(seed);
    let store = || -> Store { Arc::new(MemoryStore::new()) };
    // Small chunks, so that copies and catch-ups take many messages.
    let config = MasterConfig::default().chunk_bytes(700).ring_bytes(20_000);
    let master = Master::open(store(), config).await?;
    for _ in 0..50 {
        master.write(batch(&mut rng)).await?;
    }
    let mut slave = Slave::open(store(), SlaveConfig::new("cut")).await?;
    let (mut cut, mut ended) = (0, 0);
    while cut < 1000 {
        // Now and then a slave begins anew, so that copies are cut as well as streams.
        if rng.u8(..50) == 0 {
            slave = Slave::open(store(), SlaveConfig::new("cut")).await?;
        }
        master.write(batch(&mut rng)).await?;
        let (here, there) = tokio::io::duplex(rng.usize(1..5000));
        let budget = match rng.u8(..4) {
            0 => rng.i64(1..300),
            1 => rng.i64(1..3_000),
            _ => rng.i64(1..60_000),
        };
        let there = Cut { stream: there, left: Arc::new(AtomicI64::new(budget)) };
        let serving = tokio::spawn({
            let master = master.clone();
            async move { master.serve(here).await }
        });
        let head = master.status().published.seq;
        let followed = soon(async {
            tokio::select! {
                followed = slave.follow(there) => Some(followed),
                _ = async { slave.wait_applied(head).await.ok(); tokio::time::sleep(Duration::from_millis(1)).await } => None,
            }
        })
        .await;
        match followed {
            None => ended += 1,
            Some(Err(FollowError::Connection(_) | FollowError::Protocol(_))) => cut += 1,
            Some(other) => return Err(format!("a cut connection ended as {other:?}").into()),
        }
        // The master's side sees the end of the stream, whatever it is doing.
        drop(soon(serving).await?);
    }
    println!("{cut} cuts, {ended} connections that caught up first");

    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });
    let token = master.put("last", "word").await?;
    soon(slave.wait_applied(token)).await?;
    assert_equal(master.store(), slave.store()).await;
    Ok(())
}
