//! Verifying in the background: when it begins, what it may read, who goes first, and what is told of it. On a clock that
//! jumps to the next thing that happens.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{Error, Store, assert_equal, connect, master, put_raw, store, store_with};
use replikv_core::{Keyspace, ReplicaStore};
use replikv_memory::MemoryStore;
use replikv_node::{
    DifferenceKind, Master, MasterConfig, Slave, SlaveConfig, SlaveStatus, Verification, VerifyError, VerifyOptions,
    VerifyOutcome,
};
use tokio::time::{Instant, sleep, timeout};

const ENTRIES: u32 = 2_000;
const HOUR: Duration = Duration::from_secs(3_600);
/// What is read at once, at most.
const CHUNK: usize = 2_000;

// What the clock says costs nothing, as long as it is far more than anything takes.
async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    timeout(1_000 * HOUR, future.into_future()).await.expect("nothing hangs")
}

/// Looks every second.
async fn told(slave: &Slave<Store>, condition: impl Fn(&SlaveStatus) -> bool) -> SlaveStatus {
    soon(async {
        while !condition(&slave.status()) {
            sleep(Duration::from_secs(1)).await;
        }
        slave.status()
    })
    .await
}

async fn caught_up(config: SlaveConfig) -> Result<(Master<Store>, Slave<Store>), Error> {
    let master = master(&store_with(ENTRIES).await, MasterConfig::default().chunk_bytes(CHUNK)).await;
    let slave = Slave::open(store(), config).await?;
    connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    Ok((master, slave))
}

fn config() -> SlaveConfig {
    SlaveConfig::new("edge").verify_every(HOUR)
}

fn is_after(slave: &SlaveStatus, before: Option<&Verification>) -> bool {
    slave.verification.as_ref() != before
}

#[tokio::test(start_paused = true)]
async fn it_comes_every_interval_and_tells_what_it_has_found() -> Result<(), Error> {
    let began = Instant::now();
    let (master, slave) = caught_up(config()).await?;
    sleep(HOUR - began.elapsed() - Duration::from_secs(1)).await;
    let status = slave.status();
    assert_eq!((status.verification, status.last_verified_ms), (None, None), "before its time");
    let status = told(&slave, |status| status.verification.is_some()).await;
    let first = status.verification.ok_or("it is told")?;
    assert_eq!((first.outcome, first.reason.as_deref()), (VerifyOutcome::Equal, None));
    assert_eq!((first.report.entries, first.report.different), (u64::from(ENTRIES), 0));
    assert!(first.report.ranges > 50 && first.report.bytes > 200_000);
    assert!(status.last_verified_ms.is_some_and(|millis| millis <= 2_000), "{:?}", status.last_verified_ms);
    // A slave that was changed behind its back is found.
    for n in 0..12u32 {
        put_raw(slave.store(), Keyspace::Data, &(n * 100).to_be_bytes(), b"wrong").await?;
    }
    let status = told(&slave, |status| is_after(status, Some(&first))).await;
    let second = status.verification.ok_or("it is told")?;
    let hours = began.elapsed().as_secs_f64() / HOUR.as_secs_f64();
    assert!((2.0..2.1).contains(&hours), "{hours}");
    assert_eq!((second.outcome, second.report.different), (VerifyOutcome::Different, 12));
    assert_eq!((second.report.different_ranges, second.report.repaired), (12, 0));
    let kinds: Vec<_> = second.report.differences.iter().map(|found| found.kind).collect();
    assert_eq!(kinds, [DifferenceKind::Value; 10], "no more keys than these");
    assert_eq!(&second.report.differences[1].key[..], 100u32.to_be_bytes());
    // By hand, it is mended, and that is told as well.
    soon(slave.verify(VerifyOptions::default().repair())).await?;
    let by_hand = slave.status().verification.ok_or("it is told")?;
    assert_eq!((by_hand.outcome, by_hand.report.repaired), (VerifyOutcome::Different, 12));
    let status = told(&slave, |status| is_after(status, Some(&by_hand))).await;
    assert_eq!(status.verification.map(|last| last.outcome), Some(VerifyOutcome::Equal));
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn it_reads_no_faster_than_it_may() -> Result<(), Error> {
    let began = Instant::now();
    let (_master, slave) = caught_up(config().verify_bytes_per_second(1_000)).await?;
    let status = told(&slave, |status| status.verification.is_some()).await;
    let took = (began.elapsed() - HOUR).as_secs();
    let bytes = status.verification.ok_or("it is told")?.report.bytes;
    // What was read last is paid for by nobody.
    let (least, most) = ((bytes - CHUNK as u64) / 1_000 - 3, bytes / 1_000 + 3);
    assert!((least..=most).contains(&took), "{bytes} bytes in {took} seconds");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn whoever_verifies_by_hand_goes_first() -> Result<(), Error> {
    let (_master, slave) = caught_up(config().verify_bytes_per_second(100)).await?;
    // It takes a third of an hour and more; this is in the middle of it.
    sleep(HOUR + Duration::from_secs(600)).await;
    let before = Instant::now();
    let by_hand = soon(slave.verify(VerifyOptions::default())).await?;
    assert!(by_hand.is_equal() && before.elapsed() < Duration::from_secs(60), "{:?}", before.elapsed());
    let told_then = slave.status().verification;
    assert_eq!(told_then.as_ref().map(|last| &last.report), Some(&by_hand));
    // The other one goes on where it was.
    let status = told(&slave, |status| is_after(status, told_then.as_ref())).await;
    let last = status.verification.ok_or("it is told")?;
    assert_eq!((last.outcome, last.report.entries), (VerifyOutcome::Equal, u64::from(ENTRIES)));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_is_waited_for_as_long_as_the_interval() -> Result<(), Error> {
    let master = master(&store_with(ENTRIES).await, MasterConfig::default().chunk_bytes(CHUNK)).await;
    let slave = Slave::open(store(), config().verify_bytes_per_second(1_000)).await?;
    // Nobody is there: nothing begins, and nothing is told.
    sleep(5 * HOUR).await;
    assert_eq!(slave.status().verification, None);
    let (_, following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    sleep(Duration::from_secs(60)).await;
    following.abort();
    sleep(HOUR / 2).await;
    assert_eq!(slave.status().verification, None, "it is waited for");
    let (_, following) = connect(&master, &slave);
    let first = told(&slave, |status| status.verification.is_some()).await.verification.ok_or("it is told")?;
    assert_eq!((first.outcome, first.report.entries), (VerifyOutcome::Equal, u64::from(ENTRIES)));
    sleep(HOUR + Duration::from_secs(60)).await;
    following.abort();
    let status = told(&slave, |status| is_after(status, Some(&first))).await;
    let second = status.verification.ok_or("it is told")?;
    assert_eq!(second.outcome, VerifyOutcome::Unfinished);
    assert!(second.reason.is_some_and(|reason| reason.starts_with("the connection was lost for too long, after ")));
    assert!(second.report.ranges > 0 && second.report.entries < u64::from(ENTRIES));
    // Nothing was finished since.
    assert!(status.last_verified_ms.is_some_and(|millis| u128::from(millis) > 2 * HOUR.as_millis()));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_that_nobody_holds_is_gone_in_the_middle_of_it() -> Result<(), Error> {
    let master = master(&store_with(ENTRIES).await, MasterConfig::default().chunk_bytes(CHUNK)).await;
    let held: Arc<dyn ReplicaStore> = Arc::new(MemoryStore::new());
    let gone = Arc::downgrade(&held);
    let slave = Slave::open(held, config().verify_bytes_per_second(100)).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move { master.serve(there).await });
    let following = tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow(here).await }
    });
    soon(slave.wait_caught_up()).await?;
    sleep(HOUR + Duration::from_secs(60)).await;
    following.abort();
    drop(following.await);
    drop(slave);
    let before = Instant::now();
    while gone.upgrade().is_some() {
        sleep(Duration::from_millis(100)).await;
        assert!(before.elapsed() < HOUR / 2, "it is kept open");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_that_is_shut_down_verifies_no_more() -> Result<(), Error> {
    let (_master, slave) = caught_up(config().verify_bytes_per_second(100)).await?;
    sleep(HOUR + Duration::from_secs(60)).await;
    soon(slave.shutdown()).await?;
    sleep(3 * HOUR).await;
    assert_eq!(slave.status().verification, None);
    assert_eq!(soon(slave.verify(VerifyOptions::default())).await, Err(VerifyError::Closed));
    Ok(())
}
