//! A slave whose history has parted from its master's, and whose owner asked for a resync: it becomes what the master is,
//! and what it loses is kept first.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::{
    self, Error, Store, assert_equal, connect, contents, copy_of, entries, followed, master, soon, store, until,
};
use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{Batch, Keyspace, ReplicaStore, StoreError};
use replikv_node::{
    Displaced, Ending, FollowError, HealthState, Master, MasterConfig, Quarantine, Resync, Slave, SlaveConfig,
};
use replikv_proto::layout::{Checkpoint, Stored};
use replikv_proto::{GoodbyeReason, RejectCode, Retention};
use replikv_testkit::{ApplyFault, FaultStore};

/// Keeps in memory, if it is not broken. The store is looked at: what is told must still be in it.
#[derive(Debug, Clone)]
struct Kept {
    store: Store,
    kept: Arc<Mutex<Vec<(Resync, Displaced)>>>,
    broken: Arc<AtomicBool>,
}

impl Kept {
    fn of(store: &Store) -> Self {
        Self { store: store.clone(), kept: Arc::default(), broken: Arc::default() }
    }

    fn all(&self) -> Vec<(Resync, Displaced)> {
        self.kept.lock().unwrap().clone()
    }

    fn entries(&self) -> BTreeMap<Bytes, Bytes> {
        self.all().into_iter().map(|(_, Displaced { key, value })| (key, value)).collect()
    }
}

#[async_trait]
impl Quarantine for Kept {
    async fn keep(&self, resync: &Resync, entries: Vec<Displaced>) -> io::Result<()> {
        for Displaced { key, value } in &entries {
            let held = self.store.get(Keyspace::Data, key).await.map_err(io::Error::other)?;
            assert_eq!(held.as_ref(), Some(value), "what is quarantined is not overwritten yet");
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.kept.lock().unwrap().extend(entries.into_iter().map(|entry| (*resync, entry)));
        Ok(())
    }
}

const ENTRIES: u32 = 2_000;

fn key(n: u32) -> Bytes {
    Bytes::from(format!("key {n:05}"))
}

/// Small pages, so that a comparison takes many answers.
fn config() -> MasterConfig {
    MasterConfig::default().chunk_bytes(8_000)
}

/// A master with data, one restored from a backup of it, and the store of a slave that followed the first one further.
struct Parted {
    restored: Master<Store>,
    slave: Store,
    /// What only the slave still has.
    lost: BTreeMap<Bytes, Bytes>,
}

async fn parted(config: MasterConfig) -> Result<Parted, Error> {
    let first = master(&store(), config.clone()).await;
    for from in (0..ENTRIES).step_by(20) {
        first.write((from..from + 20).fold(Batch::new(), |batch, n| batch.put(key(n), "shared"))).await?;
    }
    let backup = copy_of(first.store()).await;
    let mut lost = BTreeMap::new();
    for n in (0..ENTRIES).step_by(37) {
        let key = if n % 2 == 0 { key(n) } else { Bytes::from(format!("key {n:05} more")) };
        let value = Bytes::from(format!("lost {n}"));
        first.put(&key, &value).await?;
        lost.insert(key, value);
    }
    first.delete(key(1_001)).await?;
    Ok(Parted { slave: followed(&first, "edge").await, restored: master(&backup, config).await, lost })
}

async fn slave(store: &Store, config: SlaveConfig) -> Slave<Store> {
    Slave::open(store.clone(), config).await.unwrap()
}

fn edge() -> SlaveConfig {
    SlaveConfig::new("edge")
}

/// Follows once, and is refused; nothing is changed.
async fn refused(master: &Master<Store>, store: &Store, config: SlaveConfig) -> RejectCode {
    let store = FaultStore::new(store.inner().open_again());
    let before = (contents(&store).await, entries(&store, Keyspace::Meta).await);
    let slave = slave(&store, config).await;
    let (_serving, following) = connect(master, &slave);
    let end = soon(following).await.unwrap();
    assert_eq!((contents(&store).await, entries(&store, Keyspace::Meta).await), before, "nothing is written");
    assert_eq!(slave.status().resyncs, 0);
    slave.shutdown().await.unwrap();
    match end {
        Err(FollowError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    }
}

fn only(code: RejectCode, kept: &Kept) {
    assert!(kept.all().iter().all(|(resync, _)| resync.reason == code), "{code:?}");
}

#[tokio::test]
async fn a_slave_ahead_of_a_restored_master_resyncs_and_what_it_loses_is_kept() -> Result<(), Error> {
    let Parted { restored, slave: held, lost } = parted(config()).await?;
    assert_eq!(refused(&restored, &held, edge()).await, RejectCode::SlaveAhead);
    let held = FaultStore::new(held.inner().open_again());
    let kept = Kept::of(&held);
    let slave = slave(&held, edge().resync(kept.clone())).await;
    let before = slave.status().position.unwrap();
    let (_serving, _following) = connect(&restored, &slave);
    until(|| slave.status().resyncs == 1).await;
    let token = restored.put("after", "1").await?;
    soon(slave.wait_applied(token)).await?;
    assert_equal(&restored, &slave).await;
    // It had changed and added entries; what it had deleted is nothing to keep.
    assert_eq!(kept.entries(), lost);
    assert_eq!(slave.status().quarantined, lost.len() as u64);
    only(RejectCode::SlaveAhead, &kept);
    assert!(kept.all().iter().all(|(resync, _)| resync.was == before));
    // It is a slave like any other again, and resyncs no more.
    soon(slave.wait_caught_up()).await?;
    until(|| slave.status().health.state == HealthState::Ready).await;
    slave.shutdown().await?;
    let held = FaultStore::new(held.inner().open_again());
    assert_eq!(held.get(Keyspace::Meta, Resync::KEY).await?, None);
    let slave = support::slave(&held, "edge").await;
    restored.put("again", "2").await?;
    connect(&restored, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&restored, &slave).await;
    Ok(())
}

#[tokio::test]
async fn one_that_has_parted_resyncs_while_writes_go_on() -> Result<(), Error> {
    let Parted { restored, slave: held, lost } = parted(config()).await?;
    // Past the slave; some of it where the slave has changed something too.
    for n in (0..ENTRIES).step_by(11) {
        restored.put(key(n), "written since").await?;
    }
    assert_eq!(refused(&restored, &held, edge()).await, RejectCode::Diverged);
    let held = FaultStore::new(held.inner().open_again());
    let kept = Kept::of(&held);
    let slave = slave(&held, edge().resync(kept.clone())).await;
    connect(&restored, &slave);
    until(|| slave.status().resyncs == 1).await;
    let mut token = None;
    // Records reach every key, before the comparison does and after it: also those that the slave alone has.
    for n in (0..ENTRIES).rev() {
        let more = format!("key {n:05} more");
        let batch = match n % 3 {
            0 => Batch::new().put(key(n), "during").delete(more),
            1 => Batch::new().put(more, "during"),
            _ => Batch::new().delete_range(key(n)..key(n + 1)),
        };
        token = Some(restored.write(batch).await?);
        if n % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    soon(slave.wait_applied(token.ok_or("nothing was written")?)).await?;
    assert_equal(&restored, &slave).await;
    let found = kept.entries();
    for (key, value) in &lost {
        assert_eq!(found.get(key), Some(value), "{key:?}");
    }
    only(RejectCode::Diverged, &kept);
    Ok(())
}

// The records in which they parted are gone on the master: checkpoints tell.
#[tokio::test]
async fn a_restored_master_that_has_trimmed_past_the_fork_is_found_out_and_can_be_joined() -> Result<(), Error> {
    let retention = Retention { max_bytes: 10_000, max_age_ms: None, hold_back_bytes: 0 };
    let config = config().retention(retention).ring_bytes(1_000);
    let first = master(&store(), config.clone()).await;
    for n in 0..300 {
        first.put(key(n), "shared").await?;
    }
    let backup = copy_of(first.store()).await;
    for n in 300..800 {
        first.put(key(n), "lost").await?;
    }
    let held = followed(&first, "edge").await;
    let restored = master(&backup, config).await;
    for n in 300..2_000 {
        restored.put(key(n), "written since").await?;
    }
    let slave_at = 802;
    until(|| restored.status().floor.seq.as_u64() > slave_at).await;
    assert_eq!(refused(&restored, &held, edge()).await, RejectCode::Diverged);
    let held = FaultStore::new(held.inner().open_again());
    let kept = Kept::of(&held);
    let slave = slave(&held, edge().resync(kept.clone())).await;
    connect(&restored, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&restored, &slave).await;
    assert_eq!(kept.entries(), (300..800).map(|n| (key(n), Bytes::from("lost"))).collect());
    let ancestor = kept.all()[0].0.ancestor.ok_or("they have a checkpoint in common")?;
    assert_eq!(ancestor.seq.as_u64(), 256, "the last before they parted");
    // Checkpoints of the branch that ended would be held against the slave later.
    slave.shutdown().await?;
    let held = FaultStore::new(held.inner().open_again());
    let own = checkpoints(&held).await;
    let theirs = checkpoints(restored.store()).await;
    assert!(!own.is_empty() && own.iter().all(|at| theirs.contains(at)), "{own:?}");
    Ok(())
}

// Checkpoints of the branch that ended lie beyond the new head: they would be held against the slave later.
#[tokio::test]
async fn what_a_slave_knew_of_the_branch_that_ended_is_forgotten() -> Result<(), Error> {
    let first = master(&store(), config()).await;
    for n in 0..300 {
        first.put(key(n), "shared").await?;
    }
    let backup = copy_of(first.store()).await;
    for n in 300..800 {
        first.put(key(n), "lost").await?;
    }
    let held = followed(&first, "edge").await;
    assert_eq!(checkpoints(&held).await.len(), 3);
    let restored = master(&backup, config()).await;
    let kept = Kept::of(&held);
    let slave = slave(&held, edge().resync(kept.clone())).await;
    connect(&restored, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&restored, &slave).await;
    only(RejectCode::SlaveAhead, &kept);
    assert_eq!(checkpoints(&held).await, checkpoints(restored.store()).await);
    Ok(())
}

async fn checkpoints(store: &Store) -> Vec<replikv_core::Position> {
    let all = entries(store, Keyspace::Meta).await;
    let checkpoints = all.iter().filter(|(key, _)| key.starts_with(Checkpoint::PREFIX));
    checkpoints.map(|(_, value)| Checkpoint::from_bytes(value).unwrap().position).collect()
}

#[tokio::test]
async fn another_source_is_adopted_only_if_that_was_said() -> Result<(), Error> {
    let (one, two) = (master(&store(), config()).await, master(&store(), config()).await);
    one.write(Batch::new().put("a", "one's").put("b", "both").put("c", "one's")).await?;
    two.write(Batch::new().put("a", "two's").put("b", "both")).await?;
    let held = followed(&one, "edge").await;
    let kept = Kept::of(&held);
    assert_eq!(refused(&two, &held, edge().resync(kept.clone())).await, RejectCode::ForeignSource);
    let held = FaultStore::new(held.inner().open_again());
    let kept = Kept::of(&held);
    let slave = slave(&held, edge().adopt_source(kept.clone())).await;
    connect(&two, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&two, &slave).await;
    let lost = [("a", "one's"), ("c", "one's")].map(|(key, value)| (Bytes::from(key), Bytes::from(value)));
    assert_eq!(kept.entries(), BTreeMap::from(lost));
    slave.shutdown().await?;
    // From now on it is two's.
    assert_eq!(refused(&one, &held, edge()).await, RejectCode::ForeignSource);
    Ok(())
}

#[tokio::test]
async fn an_empty_master_empties_nobody_whatever_was_said() -> Result<(), Error> {
    let one = master(&store(), config()).await;
    let backup = copy_of(one.store()).await;
    one.put("a", "1").await?;
    let held = followed(&one, "edge").await;
    let (new, restored) = (master(&store(), config()).await, master(&backup, config()).await);
    let kept = Kept::of(&held);
    assert_eq!(refused(&new, &held, edge().adopt_source(kept.clone())).await, RejectCode::ForeignSource);
    assert_eq!(refused(&restored, &held, edge().adopt_source(kept.clone())).await, RejectCode::SlaveAhead);
    // Once it has anything, it is a master like any other.
    restored.put("b", "2").await?;
    let held = FaultStore::new(held.inner().open_again());
    let kept = Kept::of(&held);
    let slave = slave(&held, edge().resync(kept.clone())).await;
    connect(&restored, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_eq!(kept.entries(), BTreeMap::from([(Bytes::from("a"), Bytes::from("1"))]));
    Ok(())
}

#[tokio::test]
async fn data_that_came_from_no_master_is_not_resynced() -> Result<(), Error> {
    let one = master(&store(), config()).await;
    one.put("a", "1").await?;
    let held = support::store_with(3).await;
    let kept = Kept::of(&held);
    assert_eq!(refused(&one, &held, edge().adopt_source(kept)).await, RejectCode::DataWithoutCursor);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_quarantined_is_not_overwritten() -> Result<(), Error> {
    let Parted { restored, slave: held, lost } = parted(config()).await?;
    let kept = Kept::of(&held);
    kept.broken.store(true, Ordering::SeqCst);
    let slave = slave(&held, edge().resync(kept.clone())).await;
    for _ in 0..3 {
        let (_serving, following) = connect(&restored, &slave);
        let end = soon(following).await?;
        assert!(matches!(&end, Err(error @ FollowError::Quarantine { .. }) if error.is_retryable()), "{end:?}");
        let held = contents(&held).await.into_iter().collect::<BTreeMap<_, _>>();
        assert!(lost.iter().all(|(key, value)| held.get(key) == Some(value)));
        assert_eq!(slave.status().health.state, HealthState::Blocked);
    }
    kept.broken.store(false, Ordering::SeqCst);
    connect(&restored, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&restored, &slave).await;
    assert_eq!(kept.entries(), lost);
    Ok(())
}

// The slave dies again and again: before a group is applied, and after it was, and nobody was told.
#[tokio::test]
async fn a_resync_that_dies_again_and_again_ends_equal_and_keeps_everything() -> Result<(), Error> {
    let Parted { restored, slave: held, lost } = parted(config()).await?;
    let kept = Kept::of(&held);
    let (mut store, mut in_the_middle, mut rounds) = (held, 0, 0);
    loop {
        let config = edge().resync(Kept { store: store.clone(), ..kept.clone() }).group_bytes(2_000);
        let slave = slave(&store, config).await;
        rounds += 1;
        let fault = if rounds % 2 == 0 { ApplyFault::UnknownButApplied } else { ApplyFault::UnknownAndAbsent };
        if rounds < 40 {
            store.faults().apply_after(2, fault);
        }
        let (_serving, following) = connect(&restored, &slave);
        tokio::select! {
            end = following => match end? {
                Err(FollowError::Store(StoreError::Backend { .. } | StoreError::Fatal { .. })) => {}
                Ok(Ending::Goodbye { reason: GoodbyeReason::Trimmed, .. }) => {}
                other => panic!("{other:?}"),
            },
            caught_up = soon(slave.wait_caught_up()) => {
                caught_up?;
                assert_equal(&restored, &slave).await;
                break;
            }
        }
        slave.shutdown().await?;
        store = FaultStore::new(store.inner().open_again());
        if let Some(begun) = store.get(Keyspace::Meta, Resync::KEY).await? {
            in_the_middle += 1;
            let begun = Resync::from_bytes(&begun)?;
            assert_eq!(begun.reason, RejectCode::SlaveAhead);
            // What was begun is not forgotten because somebody changed the settings.
            if in_the_middle == 2 {
                assert_eq!(refused(&restored, &store, edge()).await, RejectCode::Diverged);
                store = FaultStore::new(store.inner().open_again());
            }
        }
        restored.put(format!("round {rounds}"), "1").await?;
    }
    assert!(in_the_middle > 5, "{in_the_middle} of {rounds} rounds ended in the middle");
    assert_eq!(kept.entries(), lost);
    assert!(kept.all().iter().all(|(resync, _)| resync.was == kept.all()[0].0.was), "where it stood at first");
    Ok(())
}

// A disk was cloned, and both copies are served: one identity, two histories.
#[tokio::test]
async fn a_cloned_master_is_told_from_the_one_that_was_followed() -> Result<(), Error> {
    let one = master(&store(), config()).await;
    one.put("a", "1").await?;
    let two = master(&copy_of(one.store()).await, config()).await;
    one.put("b", "one's").await?;
    two.put("b", "two's").await?;
    let (of_one, of_two) = (followed(&one, "edge").await, followed(&two, "edge").await);
    assert_eq!((one.source(), one.status().published.seq), (two.source(), two.status().published.seq));
    assert_eq!(refused(&two, &of_one, edge()).await, RejectCode::Diverged);
    assert_eq!(refused(&one, &of_two, edge()).await, RejectCode::Diverged);
    one.put("c", "1").await?;
    assert_eq!(refused(&one, &of_two, edge()).await, RejectCode::Diverged);
    Ok(())
}
