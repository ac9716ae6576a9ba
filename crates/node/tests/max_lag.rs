//! Writers wait for a slave that is further behind than they may leave it, and for nobody else.

use std::time::Duration;

use crate::support::{
    self, Error, Serving, Store, assert_equal, connect, follow, followed, master, serve, slave, soon, store,
    store_with, until,
};
use replikv_core::{Seq, Token};
use replikv_node::{Master, MasterConfig, SlaveConfig, WriteError};
use replikv_proto::{Retention, SlotKind};
use tokio::task::JoinHandle;

/// A record of these tests has fewer bytes than this.
const RECORD: u64 = 500;
const MAX_LAG: u64 = 10 * RECORD;

// Nobody is given up, or taken for stuck, because a machine is busy.
fn config() -> MasterConfig {
    MasterConfig::default().heartbeat(Duration::from_secs(600)).max_lag(MAX_LAG)
}

async fn put(master: &Master<Store>, n: u32) -> Result<Token, WriteError> {
    master.put(n.to_be_bytes(), [7; 300]).await
}

/// A writer of so many records, one after the other.
fn writer(master: &Master<Store>, records: u32) -> JoinHandle<Result<(), WriteError>> {
    let master = master.clone();
    tokio::spawn(async move {
        for n in 0..records {
            put(&master, n).await?;
        }
        Ok(())
    })
}

/// Lets everything run until nothing more comes of it: the clock stands still, and only moves once nobody has work.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

fn slave_at(master: &Master<Store>) -> Seq {
    master.status().slaves.iter().map(|slave| slave.applied).max().unwrap_or(Seq::ZERO)
}

fn records(master: &Master<Store>) -> u64 {
    master.status().records
}

/// A slave that follows, and whose next apply hangs; a master that has counted it.
async fn stalled(master: &Master<Store>) -> (support::Following, Serving, replikv_testkit::Held, Store) {
    let held = store();
    let edge = slave(&held, "edge").await;
    let (serving, following) = connect(master, &edge);
    soon(edge.wait_caught_up()).await.unwrap();
    until(|| master.status().slaves.iter().any(|slave| slave.consistent)).await;
    let gate = held.faults().hold_apply();
    (following, serving, gate, held)
}

#[tokio::test(start_paused = true)]
async fn writers_wait_for_a_slow_slave_and_both_end_equal() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let held = store();
    let edge = slave(&held, "edge").await;
    let (_serving, _following) = connect(&master, &edge);
    soon(edge.wait_caught_up()).await?;
    until(|| master.status().slaves.iter().any(|slave| slave.consistent)).await;
    let gate = held.faults().hold_apply();
    let writing = writer(&master, 200);
    settle().await;
    let written = records(&master);
    assert!((10..30).contains(&written), "{written} records, and each has less than {RECORD} bytes");
    settle().await;
    assert_eq!(records(&master), written, "they wait");
    gate.release();
    soon(writing).await??;
    soon(edge.wait_caught_up()).await?;
    assert_equal(&master, &edge).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_that_disconnects_frees_the_writers_at_once() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let (following, serving, gate, _held) = stalled(&master).await;
    let writing = writer(&master, 200);
    settle().await;
    assert!(records(&master) < 200);
    let before = tokio::time::Instant::now();
    serving.abort();
    soon(writing).await??;
    assert!(before.elapsed() < Duration::from_secs(600), "nobody's patience was needed");
    following.abort();
    gate.release();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_that_is_stuck_is_left_out_until_it_moves() -> Result<(), Error> {
    let heartbeat = Duration::from_secs(2);
    let master = master(&store(), config().heartbeat(heartbeat)).await;
    let (_following, _serving, gate, held) = stalled(&master).await;
    let before = tokio::time::Instant::now();
    soon(writer(&master, 200)).await??;
    let waited = before.elapsed();
    assert!(waited >= 4 * heartbeat && waited < 5 * heartbeat, "{waited:?}: once, and not for every write");
    // It still says that it lives.
    assert_eq!(master.status().slaves.len(), 1);
    gate.release();
    until(|| master.status().slaves.iter().all(|slave| slave.lag_seqs == 0)).await;
    // It has moved, and counts again.
    let gate = held.faults().hold_apply();
    let before = tokio::time::Instant::now();
    soon(writer(&master, 200)).await??;
    assert!(before.elapsed() >= 4 * heartbeat);
    gate.release();
    Ok(())
}

// A copy takes as long as it takes, and ends with what was written meanwhile.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_slave_that_copies_and_once_it_has_it_counts() -> Result<(), Error> {
    let master = master(&store_with(5000).await, config()).await;
    let held = store();
    let edge = slave(&held, "edge").await;
    // Something is copied, so that the master has heard how far it is.
    held.faults().pass_applies(2);
    let gate = held.faults().hold_apply();
    let (_serving, _following) = connect(&master, &edge);
    soon(gate.reached()).await;
    settle().await;
    assert_eq!(edge.status().state, replikv_node::SlaveState::Copying);
    let before = tokio::time::Instant::now();
    soon(writer(&master, 200)).await??;
    assert!(before.elapsed() < Duration::from_secs(60), "{:?}", before.elapsed());
    gate.release();
    soon(edge.wait_caught_up()).await?;
    until(|| master.status().slaves.iter().any(|slave| slave.consistent)).await;
    let gate = held.faults().hold_apply();
    let writing = writer(&master, 200);
    settle().await;
    assert!(!writing.is_finished());
    gate.release();
    soon(writing).await??;
    Ok(())
}

// What it lacks is gone: it will have to compare, and nothing that it could apply is waited for.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_slave_whose_records_are_trimmed_or_for_one_that_is_forgotten() -> Result<(), Error> {
    let retention = Retention { max_bytes: RECORD, max_age_ms: None, hold_back_bytes: 0 };
    // The log is trimmed in steps of some hundred records.
    let master = master(&store(), config().retention(retention).max_lag(1000 * RECORD)).await;
    let (following, serving, gate, held) = stalled(&master).await;
    let before = tokio::time::Instant::now();
    soon(writer(&master, 3000)).await??;
    assert!(before.elapsed() < Duration::from_secs(600), "{:?}", before.elapsed());
    assert!(master.status().floor.seq > slave_at(&master));
    following.abort();
    serving.abort();
    until(|| master.status().slaves.is_empty()).await;
    assert!(master.forget(SlotKind::Slave, "edge"));
    soon(writer(&master, 200)).await??;
    assert!(before.elapsed() < Duration::from_secs(600), "{:?}", before.elapsed());
    gate.release();
    drop(held);
    Ok(())
}

// Its store is broken, and whoever supervises it starts it again and again.
#[tokio::test(start_paused = true)]
async fn a_slave_that_connects_again_and_again_and_applies_nothing_is_not_waited_for() -> Result<(), Error> {
    let heartbeat = Duration::from_secs(2);
    let master = master(&store(), config().heartbeat(heartbeat)).await;
    let held = followed(&master, "edge").await;
    let before = tokio::time::Instant::now();
    for n in 0..50 {
        put(&master, n).await?;
    }
    let mut written = 50;
    let mut gates = Vec::new();
    while written < 200 {
        // The same store each time, which hangs whenever something is to be applied.
        let again = support::copy_of(&held).await;
        gates.push(again.faults().hold_apply());
        let edge = slave(&again, "edge").await;
        let (serving, following) = connect(&master, &edge);
        until(|| master.status().slaves.iter().any(|slave| slave.consistent)).await;
        soon(gates[gates.len() - 1].reached()).await;
        for _ in 0..5 {
            soon(put(&master, written)).await?;
            written += 1;
        }
        following.abort();
        serving.abort();
        until(|| master.status().slaves.is_empty()).await;
    }
    assert!(before.elapsed() < 4 * heartbeat, "{:?}", before.elapsed());
    Ok(())
}

// Whoever gives up on a write and tries again does not make a stuck slave look as if it had just begun to hang.
#[tokio::test(start_paused = true)]
async fn a_slave_is_stuck_however_often_writers_lose_patience() -> Result<(), Error> {
    let heartbeat = Duration::from_secs(2);
    let master = master(&store(), config().heartbeat(heartbeat)).await;
    let (_following, _serving, gate, _held) = stalled(&master).await;
    let before = tokio::time::Instant::now();
    let mut written = 0;
    while written < 100 && before.elapsed() < 20 * heartbeat {
        written += u32::from(tokio::time::timeout(heartbeat, put(&master, written)).await.is_ok());
    }
    assert_eq!(written, 100);
    gate.release();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_writers_that_wait() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let (_following, _serving, gate, _held) = stalled(&master).await;
    let writers: Vec<_> = (0..5).map(|_| writer(&master, 200)).collect();
    settle().await;
    let written = records(&master);
    soon(master.shutdown()).await?;
    for writing in writers {
        assert!(matches!(soon(writing).await?, Err(WriteError::Closed)));
    }
    assert_eq!(records(&master), written);
    gate.release();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_temporary_slave_or_where_no_limit_is_set() -> Result<(), Error> {
    for temporary in [false, true] {
        let config = if temporary { config() } else { config().max_lag(None) };
        let master = master(&store(), config).await;
        let held = store();
        let edge = SlaveConfig::new("edge");
        let edge = if temporary { edge.temporary() } else { edge };
        let edge = replikv_node::Slave::open(held.clone(), edge).await?;
        let (here, there) = tokio::io::duplex(64 << 10);
        let (_serving, _following) = (serve(&master, there), follow(&edge, here));
        soon(edge.wait_caught_up()).await?;
        until(|| master.status().slaves.iter().any(|slave| slave.consistent)).await;
        let gate = held.faults().hold_apply();
        let before = tokio::time::Instant::now();
        soon(writer(&master, 200)).await??;
        assert!(before.elapsed() < Duration::from_secs(600));
        gate.release();
    }
    Ok(())
}
