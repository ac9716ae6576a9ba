//! A slave that is slower than its master's writers for good says so, and one that only seems to be does not.

use std::time::Duration;

use crate::support::{Error, Following, Serving, Store, follow, master, serve, soon, store, until};
use replikv_core::Token;
use replikv_node::{HealthState, Master, MasterConfig, Slave, SlaveConfig};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const MINUTE: Duration = Duration::from_secs(60);
/// About as many bytes as one of a writer's records has.
const RECORD: usize = 1100;

/// Small pieces, and a short pipe: what the slave hears is not much older than now.
fn config() -> MasterConfig {
    MasterConfig::default().chunk_bytes(4 << 10)
}

fn connect(master: &Master<Store>, slave: &Slave<Store>) -> (Serving, Following) {
    let (here, there) = tokio::io::duplex(4 << 10);
    (serve(master, there), follow(slave, here))
}

/// Four records a second. Returns the last one when it is told to end.
fn writer(master: &Master<Store>, ended: &tokio_util::sync::CancellationToken) -> JoinHandle<Token> {
    let (master, ended) = (master.clone(), ended.clone());
    tokio::spawn(async move {
        let mut n = 0u32;
        loop {
            let token = master.put((n % 1000).to_be_bytes(), [7; 1024]).await.unwrap();
            if ended.is_cancelled() {
                return token;
            }
            n += 1;
            sleep(Duration::from_millis(250)).await;
        }
    })
}

/// Every apply takes so long: the slave's, and nobody else's.
fn slow(store: &Store, takes: Duration) -> JoinHandle<()> {
    let faults = store.faults().clone();
    tokio::spawn(async move {
        let mut gate = faults.hold_apply();
        loop {
            // None slips through between two.
            let next = faults.hold_apply();
            gate.reached().await;
            sleep(takes).await;
            std::mem::replace(&mut gate, next).release();
        }
    })
}

/// A slave whose groups hold about so many records.
async fn edge(store: &Store, records: usize) -> Slave<Store> {
    Slave::open(store.clone(), SlaveConfig::new("edge").group_bytes(records * RECORD)).await.unwrap()
}

/// Looks every other second. Returns after how long the slave said that it is outpaced.
async fn outpaced_within(slave: &Slave<Store>, limit: Duration) -> Option<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if slave.status().health.state == HealthState::Outpaced {
            return Some(begun.elapsed());
        }
        sleep(Duration::from_secs(2)).await;
    }
    None
}

#[tokio::test(start_paused = true)]
async fn a_slave_that_is_slower_than_the_writer_for_good_says_so_until_it_gains_ground() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let held = store();
    let slave = edge(&held, 2).await;
    let (_serving, _following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    // A quarter of what is written, at most half.
    let slowly = slow(&held, Duration::from_secs(1));
    let ended = tokio_util::sync::CancellationToken::new();
    let writing = writer(&master, &ended);
    let after = outpaced_within(&slave, 30 * MINUTE).await.expect("it only falls behind");
    assert!(after >= 10 * MINUTE, "{after:?}: it might still have caught up");
    let health = slave.status().health;
    assert!(health.reason.contains("slower than its master's writers"), "{}", health.reason);
    assert!(health.reason.contains("for 10 minutes"), "{}", health.reason);
    sleep(5 * MINUTE).await;
    assert_eq!(slave.status().health.state, HealthState::Outpaced, "it stays so");
    // It is as slow as before, and gains ground.
    ended.cancel();
    let last = writing.await?;
    sleep(3 * MINUTE).await;
    let status = slave.status();
    assert_eq!(status.health.state, HealthState::CatchingUp, "{}", status.health.reason);
    assert!(status.lag.is_some_and(|lag| lag.seqs > 100), "it is far behind");
    slowly.abort();
    held.faults().clear();
    soon(slave.wait_applied(last)).await?;
    until(|| slave.status().health.state == HealthState::Ready).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_that_catches_up_in_bursts_never_says_so() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let held = store();
    // Whatever there is goes into one group, which takes longer than a minute: it never catches up wholly.
    let slave = edge(&held, 10_000).await;
    let (_serving, _following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    let _slowly = slow(&held, Duration::from_secs(100));
    let ended = tokio_util::sync::CancellationToken::new();
    let _writing = writer(&master, &ended);
    let outpaced = outpaced_within(&slave, 60 * MINUTE).await;
    assert_eq!(outpaced, None, "{}", slave.status().health.reason);
    assert!(slave.status().lag.is_some_and(|lag| lag.seqs > 200), "it is far behind all the time");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_that_writers_wait_for_is_not_outpaced() -> Result<(), Error> {
    let master = master(&store(), config().max_lag(50 * RECORD as u64)).await;
    let held = store();
    let slave = edge(&held, 2).await;
    let (_serving, _following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    until(|| master.status().slaves.iter().any(|slave| slave.consistent)).await;
    let _slowly = slow(&held, Duration::from_secs(1));
    let ended = tokio_util::sync::CancellationToken::new();
    let _writing = writer(&master, &ended);
    let outpaced = outpaced_within(&slave, 40 * MINUTE).await;
    assert_eq!(outpaced, None, "{}", slave.status().health.reason);
    // The slave has not heard of all of it.
    let lag = master.status().slaves[0].lag_seqs;
    assert!((45..=52).contains(&lag), "{lag}: as far behind as it may be");
    Ok(())
}
