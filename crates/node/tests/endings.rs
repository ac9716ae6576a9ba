//! Endings: of a slave whose connection nobody polls, of a session whose slave does not read, and what is said last.

use std::time::Duration;

use crate::support::{self, Error, Store, assert_equal, connect, follow, master, serve, slave, soon, store, until};
use futures_util::{FutureExt, SinkExt, StreamExt};
use replikv_core::{Coverage, Cursor, Durability, Epoch, StoreLimits};
use replikv_node::{Codec, Ending, Master, MasterConfig, Slave, SlaveConfig};
use replikv_proto::{DecoderLimits, GoodbyeReason, Hello, Message, OnDivergence};
use tokio::io::DuplexStream;
use tokio_util::codec::Framed;

fn framed(stream: DuplexStream) -> Framed<DuplexStream, Codec> {
    Framed::new(stream, Codec::new(DecoderLimits::for_batches(1 << 20)))
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_follow_that_nobody_polls() -> Result<(), Error> {
    let copy = store();
    let master = master(&store(), MasterConfig::default()).await;
    let slave = slave(&copy, "edge").await;
    let (here, there) = tokio::io::duplex(64 << 10);
    let _serving = serve(&master, there);
    let token = master.put("a", "1").await?;
    let mut following = std::pin::pin!(slave.follow(here));
    tokio::select! {
        ended = &mut following => panic!("{ended:?}"),
        applied = soon(slave.wait_applied(token)) => applied?,
    }
    // It is alive, and nobody polls it any more.
    soon(slave.shutdown()).await?;
    assert_eq!(soon(following).await?, Ending::Shutdown);
    Ok(())
}

#[tokio::test]
async fn a_follow_that_waits_for_its_turn_and_is_not_polled_gives_it_back() -> Result<(), Error> {
    let copy = store();
    let master = master(&store(), MasterConfig::default()).await;
    let slave = slave(&copy, "edge").await;
    master.put("a", "1").await?;
    let held = copy.faults().hold_apply();
    let (_, first) = connect(&master, &slave);
    soon(held.reached()).await;
    first.abort();
    drop(first.await);
    let (here, _there) = tokio::io::duplex(64 << 10);
    let mut second = std::pin::pin!(slave.follow(here));
    // Once: it waits for the write set of the first connection.
    assert!((&mut second).now_or_never().is_none());
    tokio::task::yield_now().await;
    held.release();
    soon(slave.shutdown()).await?;
    assert_eq!(soon(second).await?, Ending::Shutdown);
    Ok(())
}

// A slave that says hello from the beginning of the log, and reads nothing.
async fn stalled(master: &Master<Store>) -> Result<(Framed<DuplexStream, Codec>, support::Serving), Error> {
    for n in 0..500u32 {
        master.put(n.to_be_bytes(), [1; 1_000]).await?;
    }
    let (here, there) = tokio::io::duplex(512);
    let serving = serve(master, there);
    let mut stream = framed(here);
    let hello = Hello {
        slave: "stalled".into(),
        nonce: 1,
        cursor: Some(Cursor {
            position: replikv_proto::origin(master.source(), Epoch { number: 1, nonce: 0 }),
            coverage: Coverage::default(),
        }),
        holds_data: false,
        checkpoints: Vec::new(),
        limits: StoreLimits { max_key: 1 << 16, max_value: 1 << 30, max_batch: 1 << 30 },
        ranges: Vec::new(),
        path: Vec::new(),
        temporary: false,
        on_divergence: OnDivergence::Refuse,
    };
    stream.send(Message::Hello(hello)).await?;
    // Time is simulated: everything happens that can, and the session's buffer is full.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!serving.is_finished());
    Ok((stream, serving))
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_slave_does_not_read_ends_with_its_master() -> Result<(), Error> {
    let config = MasterConfig::default().heartbeat(Duration::from_secs(24 * 3600));
    let master = master(&store(), config).await;
    let (_stream, serving) = stalled(&master).await?;
    soon(master.shutdown()).await?;
    assert_eq!(soon(serving).await??, Ending::Shutdown);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_replaced_gives_its_permit_back_though_its_slave_does_not_read() -> Result<(), Error> {
    let config = MasterConfig::default().heartbeat(Duration::from_secs(24 * 3600)).max_sessions(2);
    let master = master(&store(), config).await;
    let (_stream, serving) = stalled(&master).await?;
    let (newer, other) = (slave(&store(), "stalled").await, slave(&store(), "other").await);
    connect(&master, &newer);
    soon(serving).await??;
    connect(&master, &other);
    soon(other.wait_caught_up()).await?;
    assert_equal(&master, &other).await;
    Ok(())
}

#[tokio::test]
async fn the_last_ack_of_a_shutdown_comes_before_its_goodbye() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    // What is applied becomes durable when the slave shuts down, and not before.
    let day = Duration::from_secs(24 * 3600);
    let config = SlaveConfig::new("edge").durability(Durability::Buffered).sync_every(day);
    let slave = Slave::open(store(), config).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let (near, far) = tokio::io::duplex(64 << 10);
    let following = follow(&slave, here);
    let _serving = serve(&master, far);
    let relaying = tokio::spawn(async move {
        let (mut from_slave, mut from_master) = (framed(there), framed(near));
        let mut said = Vec::new();
        loop {
            tokio::select! {
                message = from_slave.next() => match message {
                    Some(Ok(message)) => {
                        said.push(message.clone());
                        drop(from_master.send(message).await);
                    }
                    _ => return said,
                },
                Some(Ok(message)) = from_master.next() => drop(from_slave.send(message).await),
            }
        }
    });
    let token = master.put("a", "1").await?;
    soon(slave.wait_applied(token)).await?;
    soon(slave.shutdown()).await?;
    assert_eq!(soon(following).await??, Ending::Shutdown);
    let said = soon(relaying).await?;
    let [.., Message::Ack(ack), Message::Goodbye(goodbye)] = &said[..] else { panic!("{said:?}") };
    assert_eq!((ack.applied, ack.durable, goodbye.reason), (token.seq, token.seq, GoodbyeReason::Closing));
    Ok(())
}

#[tokio::test]
async fn settings_without_a_limit_are_none() -> Result<(), Error> {
    let config = MasterConfig::default()
        .max_sessions(usize::MAX)
        .log_readers(usize::MAX)
        .heartbeat(Duration::MAX)
        .handshake_timeout(Duration::MAX);
    let master = master(&store(), config).await;
    let config = SlaveConfig::new("edge")
        .durability(Durability::Buffered)
        .sync_every(Duration::MAX)
        .handshake_timeout(Duration::MAX);
    let slave = Slave::open(store(), config).await?;
    let (_, following) = connect(&master, &slave);
    let token = master.put("a", "1").await?;
    soon(slave.wait_applied(token)).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let asked = slave.clone();
    let answering = tokio::spawn(async move { asked.serve_status(there).await });
    soon(replikv_node::remote_status(here)).await?;
    soon(answering).await??;
    assert!(!following.is_finished());
    until(|| slave.status().connections == 1).await;
    Ok(())
}
