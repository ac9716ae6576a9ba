//! Visible, durable and published are three moments.

use std::time::Duration;

use crate::support::{
    self, Error, Store, assert_equal, chain, connect, contents, follow, master, serve, slave, soon, store, store_with,
    until,
};
use futures_util::FutureExt;
use replikv_core::{Batch, LinkId, ReplicaStore, Seq};
use replikv_node::{Commit, FollowError, HealthState, Master, MasterConfig, Slave, SlaveConfig, WriteError};
use replikv_proto::RejectCode;
use replikv_testkit::{ApplyFault, Lost};

const NEVER: Duration = Duration::from_secs(24 * 3600);
const AT_ONCE: Duration = Duration::from_millis(1);

fn buffered(sync_every: Duration) -> MasterConfig {
    MasterConfig::default().commit(Commit::Buffered { sync_every })
}

fn put(master: &Master<Store>, key: &'static str) -> tokio::task::JoinHandle<Result<replikv_core::Token, WriteError>> {
    let master = master.clone();
    tokio::spawn(async move { master.put(key, "v").await })
}

#[tokio::test]
async fn a_synced_record_is_published_only_once_the_store_has_said_so() -> Result<(), Error> {
    let (store, copy) = (store(), store());
    let master = master(&store, MasterConfig::default()).await;
    let slave = slave(&copy, "edge").await;
    connect(&master, &slave);
    let before = master.put("a", "v").await?;
    soon(slave.wait_applied(before)).await?;
    let held = store.faults().hold_apply_visible();
    let writing = put(&master, "b");
    soon(held.reached()).await;
    let next = before.seq.next().unwrap();
    assert!(master.get("b").await?.is_some(), "readers of the master see it");
    let status = master.status();
    assert_eq!((status.published.seq, status.handed.seq), (before.seq, next));
    assert!(master.subscribe().reached(next).now_or_never().is_none());
    assert!(!writing.is_finished());
    assert_eq!(slave.status().position.map(|position| position.seq), Some(before.seq));
    held.release();
    let token = soon(writing).await??;
    assert_eq!(soon(master.subscribe().reached(next)).await?.seq, token.seq);
    soon(slave.wait_applied(token)).await?;
    Ok(())
}

#[tokio::test]
async fn a_page_that_shows_what_is_not_published_waits_and_is_never_sent_if_it_is_lost() -> Result<(), Error> {
    let (store, copy) = (store_with(50).await, store());
    let master = master(&store, MasterConfig::default()).await;
    let held = store.faults().hold_apply_visible();
    let writing = put(&master, "lost");
    soon(held.reached()).await;
    let scans = store.faults().calls().scans;
    let slave = slave(&copy, "edge").await;
    let (_, following) = connect(&master, &slave);
    until(|| store.faults().calls().scans > scans).await;
    let store = store.power_loss().await?;
    assert!(matches!(soon(writing).await?, Err(WriteError::OutcomeUnknown { .. })));
    drop(master);
    following.abort();
    drop(following.await);
    assert!(copy.get(replikv_core::Keyspace::Data, b"lost").await?.is_none());
    let master = support::master(&store, MasterConfig::default()).await;
    connect(&master, &slave);
    let token = master.put("after", "v").await?;
    soon(slave.wait_applied(token)).await?;
    assert_equal(&master, &slave).await;
    assert!(slave.get("lost").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_page_read_before_a_commit_failed_is_read_again() -> Result<(), Error> {
    let (store, copy) = (store_with(50).await, store());
    let master = master(&store, MasterConfig::default()).await;
    // The page is read while the record is visible; then the store is opened anew, and the record is gone.
    store.faults().refuse_reopens(2);
    let held = store.faults().hold_read(replikv_core::Keyspace::Data);
    let slave = slave(&copy, "edge").await;
    connect(&master, &slave);
    soon(held.reached()).await;
    store.faults().next_apply(ApplyFault::UnknownAndAbsent);
    assert!(matches!(master.put("lost", "v").await, Err(WriteError::OutcomeUnknown { .. })));
    let token = soon(master.put("after", "v")).await?;
    held.release();
    soon(slave.wait_applied(token)).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test]
async fn a_buffered_record_is_published_with_the_sync() -> Result<(), Error> {
    let (store, copy) = (store(), store());
    let master = master(&store, buffered(AT_ONCE)).await;
    let slave = slave(&copy, "edge").await;
    connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    let before = master.status().published.seq;
    let held = store.faults().hold_sync();
    let token = master.write(Batch::new().put("a", "1").put("b", "2")).await?;
    soon(held.reached()).await;
    assert!(master.get("a").await?.is_some(), "writers are answered, readers of the master see it");
    assert_eq!(master.status().published.seq, before);
    assert!(master.subscribe().reached(token.seq).now_or_never().is_none());
    assert!(slave.get("a").await?.is_none());
    held.release();
    soon(slave.wait_applied(token)).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test]
async fn what_waits_for_a_sync_is_bounded_in_memory() -> Result<(), Error> {
    let store = store();
    let master = master(&store, buffered(NEVER).queue_bytes(50_000)).await;
    let mut token = None;
    for n in 0..45u8 {
        token = Some(master.put([n], [7; 5_000]).await?);
    }
    assert!(master.status().published.seq.as_u64() > 20, "no sync was due, and yet it came");
    assert!(token.is_some_and(|token| token.seq > master.status().published.seq), "the last ones still wait");
    Ok(())
}

#[tokio::test]
async fn unsynced_records_are_shipped_if_that_was_asked_for() -> Result<(), Error> {
    let (store, copy) = (store(), store());
    let master = master(&store, buffered(NEVER).ship_unsynced(true)).await;
    let slave = slave(&copy, "edge").await;
    connect(&master, &slave);
    let syncs = store.faults().calls().syncs;
    let token = master.put("a", "1").await?;
    soon(slave.wait_applied(token)).await?;
    assert_eq!(store.faults().calls().syncs, syncs);
    Ok(())
}

// Writes ten records that are synced and ten that are not, to a slave that follows; then the power goes out.
async fn lose_power(config: MasterConfig) -> Result<(Store, Slave<Store>, Seq), Error> {
    let (store, copy) = (store(), store());
    let master = master(&store, config).await;
    let slave = slave(&copy, "edge").await;
    let (_, following) = connect(&master, &slave);
    for n in 0..10u8 {
        master.put([n], "synced").await?;
    }
    store.sync().await?;
    let synced = master.status().handed.seq;
    let mut last = None;
    for n in 0..10u8 {
        last = Some(master.put([n], "lost").await?);
    }
    if master.status().published.seq > synced {
        soon(slave.wait_applied(last.unwrap())).await?;
    }
    let store = store.power_loss().await?;
    drop(master);
    following.abort();
    drop(following.await);
    Ok((store, slave, synced))
}

#[tokio::test]
async fn after_power_loss_no_slave_is_ahead_of_its_master() -> Result<(), Error> {
    let (store, slave, synced) = lose_power(buffered(NEVER)).await?;
    let master = master(&store, buffered(AT_ONCE)).await;
    assert_eq!(master.status().published.seq, synced);
    assert!(slave.status().position.is_none_or(|position| position.seq <= synced));
    connect(&master, &slave);
    let token = master.put("after", "v").await?;
    soon(slave.wait_applied(token)).await?;
    assert_equal(&master, &slave).await;
    assert_eq!(slave.get([0]).await?.as_deref(), Some(&b"synced"[..]));
    Ok(())
}

#[tokio::test]
async fn a_slave_that_was_shipped_what_its_master_lost_is_refused() -> Result<(), Error> {
    let (store, slave, _) = lose_power(buffered(NEVER).ship_unsynced(true)).await?;
    let before = contents(slave.store()).await;
    let master = master(&store, MasterConfig::default()).await;
    let (_, following) = connect(&master, &slave);
    match soon(following).await? {
        Err(FollowError::Refused(refusal)) => assert_eq!(refusal.code, RejectCode::SlaveAhead),
        other => panic!("expected a refusal, got {other:?}"),
    }
    assert_eq!(contents(slave.store()).await, before);
    assert_eq!(slave.status().health.state, HealthState::Diverged);
    Ok(())
}

#[tokio::test]
async fn what_a_killed_master_left_unsynced_is_synced_before_it_is_published() -> Result<(), Error> {
    let (store, copy) = (store(), store());
    let killed = master(&store, buffered(NEVER)).await;
    killed.put("a", "1").await?;
    // As after a kill: nobody has synced, and the store is opened again.
    let again = master(&store, buffered(NEVER)).await;
    let slave = slave(&copy, "edge").await;
    let (_, following) = connect(&again, &slave);
    soon(slave.wait_caught_up()).await?;
    let store = store.power_loss().await?;
    following.abort();
    drop(following.await);
    let last = master(&store, MasterConfig::default()).await;
    let token = last.put("b", "2").await?;
    connect(&last, &slave);
    soon(slave.wait_applied(token)).await?;
    assert_equal(&last, &slave).await;
    Ok(())
}

#[tokio::test]
async fn what_a_killed_slave_left_unsynced_is_synced_before_it_is_acknowledged() -> Result<(), Error> {
    let (store, copy) = (store(), store());
    let master = master(&store, MasterConfig::default()).await;
    let config = SlaveConfig::new("edge").durability(replikv_core::Durability::Buffered).sync_every(NEVER);
    let killed = Slave::open(copy.clone(), config.clone()).await?;
    let (serving, following) = connect(&master, &killed);
    let token = master.put("a", "1").await?;
    soon(killed.wait_applied(token)).await?;
    assert!(killed.status().durable < token.seq);
    let held = copy.faults().hold_sync();
    following.abort();
    soon(held.reached()).await;
    // As a kill before the last sync: it never ends.
    let copy = copy.power_loss().await?;
    drop((held, serving));
    let lost = Slave::open(copy.clone(), config.clone()).await?;
    assert!(lost.status().position.is_none());
    connect(&master, &lost);
    soon(lost.wait_applied(token)).await?;
    let again = Slave::open(copy.clone(), config).await?;
    let durable = again.status().durable;
    assert_eq!(durable, token.seq);
    let cursor = copy.power_loss().await?.cursor(&LinkId::default()).await?;
    assert!(cursor.is_some_and(|cursor| cursor.position.seq >= durable), "what is called durable outlives power loss");
    Ok(())
}

#[tokio::test]
async fn what_a_failure_has_left_on_a_slave_becomes_durable_without_another_write() -> Result<(), Error> {
    let synced = SlaveConfig::new("edge");
    let buffered = SlaveConfig::new("edge").durability(replikv_core::Durability::Buffered).sync_every(AT_ONCE);
    for (config, fault) in [(synced, Some(ApplyFault::UnknownButApplied)), (buffered, None)] {
        let copy = store();
        let master = master(&store(), MasterConfig::default()).await;
        let slave = Slave::open(copy.clone(), config).await?;
        let (_, following) = connect(&master, &slave);
        let before = master.put("before", "v").await?;
        until(|| slave.status().durable == before.seq).await;
        match fault {
            Some(fault) => copy.faults().next_apply(fault),
            None => copy.faults().fail_sync(Lost::Nothing),
        }
        let token = master.put("a", "1").await?;
        assert!(matches!(soon(following).await?, Err(FollowError::Store(_))));
        // The next connection finds it there, and its sync fails as well.
        copy.faults().fail_sync(Lost::Nothing);
        let (_, following) = connect(&master, &slave);
        let error = soon(following).await?.expect_err("the sync fails");
        assert!(matches!(error, FollowError::Store(_)) && error.is_retryable(), "{error:?}");
        assert_eq!(slave.get("a").await?.as_deref(), Some(&b"1"[..]), "it was opened anew");
        assert_eq!(slave.status().durable, before.seq);
        connect(&master, &slave);
        until(|| master.status().slaves.iter().any(|slave| slave.durable == token.seq)).await;
        let cursor = copy.power_loss().await?.cursor(&LinkId::default()).await?;
        assert!(cursor.is_some_and(|cursor| cursor.position.seq == token.seq), "what is called durable outlives it");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_failed_sync_has_lost_is_never_published() -> Result<(), Error> {
    for lost in [Lost::Unsynced, Lost::Nothing] {
        let (store, copy) = (store(), store());
        let master = master(&store, buffered(AT_ONCE)).await;
        let slave = slave(&copy, "edge").await;
        connect(&master, &slave);
        let before = master.put("before", "v").await?;
        soon(slave.wait_applied(before)).await?;
        store.faults().fail_sync(lost);
        let reopens = store.faults().calls().reopens;
        master.write(Batch::new().put("a", "1").put("b", "2")).await?;
        until(|| store.faults().calls().reopens > reopens).await;
        let after = soon(async {
            loop {
                match master.put("after", "v").await {
                    // It met the store before it was open again.
                    Err(WriteError::OutcomeUnknown { .. }) => {}
                    other => return other,
                }
            }
        })
        .await?;
        soon(slave.wait_applied(after)).await?;
        let kept = lost == Lost::Nothing;
        assert_eq!(master.get("a").await?.is_some(), kept);
        assert_eq!(slave.get("b").await?.is_some(), kept);
        assert_equal(&master, &slave).await;
        assert_eq!(chain(&store).await, (1..=after.seq.as_u64()).collect::<Vec<_>>());
        assert_eq!(after.seq.since(before.seq), 1 + u64::from(kept));
        assert_eq!(master.status().health.state, HealthState::Ready);
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_outcome_that_took_unsynced_records_along_is_no_other_master() -> Result<(), Error> {
    let (store, copy) = (store(), store());
    let master = master(&store, buffered(NEVER)).await;
    let slave = slave(&copy, "edge").await;
    connect(&master, &slave);
    master.put("lost", "1").await?;
    store.faults().next_apply(ApplyFault::UnknownAndUnsyncedLost);
    assert!(matches!(master.put("lost too", "1").await, Err(WriteError::OutcomeUnknown { .. })));
    let after = soon(master.put("kept", "1")).await?;
    assert_eq!(after.seq.as_u64(), 2);
    store.sync().await?;
    let found: Vec<_> = contents(&store).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(found, ["kept"]);
    assert_eq!(chain(&store).await, [1, 2]);
    master.shutdown().await?;
    assert!(slave.get("lost").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn records_whose_sync_was_late_are_published_in_their_order() -> Result<(), Error> {
    let (store, copy) = (store(), store());
    let master = master(&store, MasterConfig::default()).await;
    let slave = slave(&copy, "edge").await;
    connect(&master, &slave);
    let before = master.put("before", "0").await?;
    soon(slave.wait_applied(before)).await?;
    // Its outcome is settled by reopening, and the sync that would publish it fails.
    store.faults().next_apply(ApplyFault::UnknownButApplied);
    store.faults().fail_sync(Lost::Nothing);
    assert!(matches!(master.put("a", "1").await, Err(WriteError::OutcomeUnknown { .. })));
    let mut token = soon(master.put("b", "2")).await?;
    for _ in 0..5 {
        token = master.put("c", "3").await?;
    }
    assert_eq!(master.status().published.seq, token.seq);
    soon(slave.wait_applied(token)).await?;
    assert_equal(&master, &slave).await;
    assert_eq!(chain(&store).await, (1..=9).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn shipped_records_that_a_failed_sync_has_lost_are_served_no_longer() -> Result<(), Error> {
    let (store, early, late) = (store(), store(), store());
    let master = master(&store, buffered(NEVER).ship_unsynced(true)).await;
    let ahead = slave(&early, "ahead").await;
    let (here, there) = tokio::io::duplex(64 << 10);
    serve(&master, there);
    let following = follow(&ahead, here);
    let lost = master.put("lost", "1").await?;
    soon(ahead.wait_applied(lost)).await?;
    store.faults().next_apply(ApplyFault::UnknownAndUnsyncedLost);
    assert!(matches!(master.put("x", "1").await, Err(WriteError::OutcomeUnknown { .. })));
    let after = soon(master.put("after", "1")).await?;
    let slave = slave(&late, "late").await;
    connect(&master, &slave);
    soon(slave.wait_applied(after)).await?;
    assert_equal(&master, &slave).await;
    // The one that is ahead finds out by the chain of digests, and says so.
    let mut token = after;
    while !following.is_finished() {
        token = master.put("more", "1").await?;
        tokio::task::yield_now().await;
    }
    assert!(matches!(soon(following).await?, Err(FollowError::Protocol(_))));
    let (_, following) = connect(&master, &ahead);
    assert!(
        matches!(soon(following).await?, Err(FollowError::Refused(refusal)) if refusal.code == RejectCode::Diverged)
    );
    soon(slave.wait_applied(token)).await?;
    Ok(())
}
