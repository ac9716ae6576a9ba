//! A slave whose master is a relay that is behind: it says so, and does not pass for one that has caught up.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use replikv_core::Batch;
use replikv_memory::MemoryStore;
use replikv_node::{Codec, Ending, FollowError, HealthState, Master, MasterConfig, Slave, SlaveConfig};
use replikv_proto::{DecoderLimits, Message, Mode, Refusal, RejectCode};
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::codec::Framed;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("it does not take that long")
}

type Wire = Framed<DuplexStream, Codec>;

fn framed(stream: DuplexStream) -> Wire {
    Framed::new(stream, Codec::new(DecoderLimits { data: 64 << 20, control: 1 << 20 }))
}

fn follow(slave: &Slave<MemoryStore>) -> (Wire, JoinHandle<Result<Ending, FollowError>>) {
    let (here, there) = tokio::io::duplex(64 << 10);
    let slave = slave.clone();
    (framed(there), tokio::spawn(async move { slave.follow(here).await }))
}

/// A slave that has followed a master and stands at its head, the welcome that it got, and the master.
async fn followed() -> (Master<MemoryStore>, Slave<MemoryStore>, replikv_proto::Welcome) {
    let master =
        Master::open(MemoryStore::new(), MasterConfig::default().heartbeat(Duration::from_secs(60))).await.unwrap();
    for n in 0..10u8 {
        master.write(Batch::new().put([n], "v")).await.unwrap();
    }
    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await.unwrap();
    let (mut wire, following) = follow(&slave);
    let (at_master, upstream) = tokio::io::duplex(64 << 10);
    let serving = master.clone();
    tokio::spawn(async move { serving.serve(at_master).await });
    let (mut to_master, mut from_master) = framed(upstream).split();
    let hello = wire.next().await.unwrap().unwrap();
    to_master.send(hello).await.unwrap();
    let Message::Welcome(welcome) = from_master.next().await.unwrap().unwrap() else { panic!("a welcome") };
    wire.send(Message::Welcome(welcome.clone())).await.unwrap();
    loop {
        let message = soon(from_master.next()).await.unwrap().unwrap();
        let records = matches!(message, Message::Records(_));
        wire.send(message).await.unwrap();
        // So few travel in one message.
        if records {
            break;
        }
    }
    soon(slave.wait_caught_up()).await.unwrap();
    drop(wire);
    assert!(soon(following).await.unwrap().is_err(), "the connection broke");
    (master, slave, welcome)
}

/// Connects `slave` to a relay that knows half of the history and tells it to wait.
async fn told_to_wait(
    slave: &Slave<MemoryStore>,
    welcome: &replikv_proto::Welcome,
) -> (Wire, JoinHandle<Result<Ending, FollowError>>) {
    let (mut wire, following) = follow(slave);
    assert!(matches!(soon(wire.next()).await, Some(Ok(Message::Hello(_)))));
    let head = welcome.floor;
    let wait = replikv_proto::Welcome { mode: Mode::Wait, head, ..welcome.clone() };
    let mut progress = slave.subscribe();
    wire.send(Message::Welcome(wait)).await.unwrap();
    // What it says of itself changes once it has understood.
    soon(progress.changed()).await.unwrap();
    (wire, following)
}

#[tokio::test]
async fn a_slave_that_waits_for_a_relay_is_not_caught_up_and_resumes() {
    let (_master, slave, welcome) = followed().await;
    let (mut wire, following) = told_to_wait(&slave, &welcome).await;
    let status = slave.status();
    assert_eq!((status.health.state, status.lag), (HealthState::CatchingUp, None), "{}", status.health.reason);
    assert!(!slave.subscribe().borrow().connected, "nobody is there who could tell whether it has caught up");
    wire.send(Message::Welcome(welcome)).await.unwrap();
    soon(slave.wait_caught_up()).await.unwrap();
    assert_eq!(slave.status().health.state, HealthState::Ready);
    drop(wire);
    assert!(soon(following).await.unwrap().is_err());
}

#[tokio::test]
async fn a_slave_that_waited_in_vain_is_refused_and_keeps_what_it_has() {
    let (_master, slave, welcome) = followed().await;
    let (mut wire, following) = told_to_wait(&slave, &welcome).await;
    let position = slave.status().position;
    wire.send(Message::Reject(Refusal::new(RejectCode::Diverged, "it has parted").into())).await.unwrap();
    let end = soon(following).await.unwrap();
    assert!(matches!(end, Err(FollowError::Refused(refusal)) if refusal.code == RejectCode::Diverged));
    assert_eq!((slave.status().health.state, slave.status().position), (HealthState::Diverged, position));
}
