//! A slave that is behind says by how much, in bytes of records, from its welcome on.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use replikv_core::Batch;
use replikv_memory::MemoryStore;
use replikv_node::{Codec, Lag, Master, MasterConfig, Slave, SlaveConfig};
use replikv_proto::{DecoderLimits, Message};
use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::codec::Framed;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("it does not take that long")
}

// Nobody is given up because a machine is busy.
fn config() -> MasterConfig {
    MasterConfig::default().heartbeat(Duration::from_secs(60))
}

async fn slave(store: &MemoryStore) -> Slave<MemoryStore> {
    Slave::open(store.open_again(), SlaveConfig::new("edge")).await.unwrap()
}

/// A wire that lets the welcome through, and everything else of the master's only once it is told to.
fn wire() -> (DuplexStream, DuplexStream, oneshot::Sender<()>) {
    let (master, at_master) = tokio::io::duplex(64 << 10);
    let (slave, at_slave) = tokio::io::duplex(64 << 10);
    let (open, opened) = oneshot::channel::<()>();
    let framed = |stream| Framed::new(stream, Codec::new(DecoderLimits { data: 64 << 20, control: 1 << 20 }));
    let (mut to_master, mut from_master) = framed(at_master).split();
    let (mut to_slave, mut from_slave) = framed(at_slave).split();
    tokio::spawn(async move {
        let mut opened = Some(opened);
        while let Some(Ok(message)) = from_master.next().await {
            if !matches!(message, Message::Welcome(_))
                && let Some(opened) = opened.take()
            {
                // A test that is over opens nothing.
                drop(opened.await);
            }
            if to_slave.send(message).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = from_slave.next().await {
            if to_master.send(message).await.is_err() {
                return;
            }
        }
    });
    (master, slave, open)
}

/// What a slave on `store` says of its lag once it is welcomed, and what it says once it has caught up.
async fn lag_before_and_after(master: &Master<MemoryStore>, store: &MemoryStore) -> (Lag, Lag) {
    let slave = slave(store).await;
    let (at_master, at_slave, open) = wire();
    let serving = master.clone();
    tokio::spawn(async move { serving.serve(at_master).await });
    let following = slave.clone();
    tokio::spawn(async move { following.follow(at_slave).await });
    let head = master.status().published.seq;
    let mut progress = slave.subscribe();
    let told = progress.wait_for(|progress| progress.connected && progress.head.is_some_and(|at| at.seq == head));
    soon(told).await.unwrap();
    let before = slave.status().lag.unwrap();
    open.send(()).unwrap();
    soon(slave.wait_caught_up()).await.unwrap();
    let after = slave.status().lag.unwrap();
    slave.shutdown().await.unwrap();
    (before, after)
}

async fn write(master: &Master<MemoryStore>, records: u32) -> u64 {
    for n in 0..records {
        master.write(Batch::new().put(n.to_be_bytes(), [7; 50])).await.unwrap();
    }
    master.status().log_bytes
}

const NONE: Lag = Lag { seqs: 0, bytes: 0, millis: 0 };

#[tokio::test]
async fn a_slave_that_is_behind_tells_by_how_many_bytes() {
    let master = Master::open(MemoryStore::new(), config()).await.unwrap();
    let store = MemoryStore::new();
    let at_first = write(&master, 10).await;
    // A new slave goes through the whole log.
    let (before, after) = lag_before_and_after(&master, &store).await;
    assert_eq!((before.bytes, after), (at_first, NONE));
    // Nothing was missed.
    assert_eq!(lag_before_and_after(&master, &store).await, (NONE, NONE));
    // What was missed, to the byte.
    let at_last = write(&master, 40).await;
    let (before, after) = lag_before_and_after(&master, &store).await;
    assert_eq!((before.seqs, before.bytes, after), (40, at_last - at_first, NONE));
}

#[tokio::test]
async fn a_position_that_has_left_memory_is_measured_from_the_checkpoint_before_it() {
    let master = Master::open(MemoryStore::new(), config().ring_bytes(1000)).await.unwrap();
    let first = master.status().published.seq.as_u64();
    let at_checkpoint = write(&master, u32::try_from(256 - first).unwrap()).await;
    let store = MemoryStore::new();
    let at_slave = write(&master, 44).await;
    lag_before_and_after(&master, &store).await;
    let at_head = write(&master, 300).await;
    let (before, after) = lag_before_and_after(&master, &store).await;
    assert_eq!(before.seqs, 300);
    assert_eq!(before.bytes, at_head - at_checkpoint, "rather overstated than understated: {}", at_head - at_slave);
    assert_eq!(after, NONE);
}
