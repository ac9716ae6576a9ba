//! Backups: taken while the store is used, opened as what their owner says, and never by accident.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{
    self, Error, Store, assert_equal, chain, connect, contents, copy_of, entries, followed, full, master, soon, store,
    until,
};
use bytes::Bytes;
use replikv_core::{Batch, Keyspace, Op, ReplicaStoreExt, Seq};
use replikv_node::{
    BackupError, Commit, FollowError, Master, MasterConfig, OpenError, Slave, SlaveConfig, backup, mark_backup,
    read_log,
};
use replikv_proto::layout::Role;
use replikv_proto::{RejectCode, Retention};
use replikv_testkit::{ApplyFault, FaultStore};

fn again(store: &Store) -> Store {
    FaultStore::new(store.inner().open_again())
}

fn from_backup(name: &str) -> SlaveConfig {
    SlaveConfig::new(name).from_backup()
}

async fn write(master: &Master<Store>, from: u32, to: u32) {
    for n in from..to {
        master.put(format!("key {n:05}"), vec![b'v'; 60]).await.unwrap();
    }
}

/// What the data was after the record numbered `seq`, by the log.
async fn state_at(store: &Store, seq: Seq) -> Vec<(Bytes, Bytes)> {
    let mut state = BTreeMap::new();
    for record in read_log(store, Seq::ZERO, usize::MAX).await.unwrap() {
        if record.header().seq > seq {
            break;
        }
        for op in record.body() {
            match op {
                Op::Put { key, value } => {
                    state.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                }
                Op::Delete { key } => drop(state.remove(key)),
                Op::DeleteRange { start, end } => {
                    state.retain(|key, _| &key[..] < start || end.is_some_and(|end| &key[..] >= end));
                }
            }
        }
    }
    state.into_iter().collect()
}

async fn refused(master: &Master<Store>, store: &Store) -> RejectCode {
    let slave = Slave::open(again(store), SlaveConfig::new("edge")).await.unwrap();
    let (_serving, following) = connect(master, &slave);
    match soon(following).await.unwrap() {
        Err(FollowError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_backup_that_is_taken_while_writes_go_on_is_a_state_of_the_master() -> Result<(), Error> {
    let source = store();
    let master = master(
        &source,
        MasterConfig::default().commit(Commit::Buffered { sync_every: std::time::Duration::from_millis(1) }),
    )
    .await;
    // Some pages' worth.
    for n in 0..60u32 {
        master.put(format!("large {n:03}"), vec![7; 100_000]).await?;
    }
    for round in 0..5u64 {
        let before = master.status().published.seq;
        let done = Arc::new(AtomicBool::new(false));
        let writing = tokio::spawn({
            let (master, done) = (master.clone(), done.clone());
            let mut rng = fastrand::Rng::with_seed(round);
            async move {
                let (mut written, mut token) = (0, None);
                while !done.load(Ordering::SeqCst) || written < 50 {
                    let n = rng.u32(..60);
                    let batch = Batch::new().put(format!("large {n:03}"), vec![rng.u8(..); 50_000]);
                    let batch = batch.put(format!("small {:03}", rng.u32(..200)), [rng.u8(..)]);
                    let batch = batch.delete_range(format!("small {n:03}")..format!("small {:03}", n + 5));
                    let batch = batch.delete(format!("large {:03}", rng.u32(..60)));
                    token = Some(master.write(batch).await.unwrap());
                    written += 1;
                    tokio::task::yield_now().await;
                }
                token.unwrap()
            }
        });
        let copy = store();
        let held = source.faults().hold_read(Keyspace::Data);
        let taking = tokio::spawn({
            let (master, copy) = (master.clone(), copy.clone());
            async move { master.backup(&copy, |_| {}).await }
        });
        soon(held.reached()).await;
        until(|| master.status().published.seq.since(before) >= 20).await;
        held.release();
        let backed_up = soon(taking).await??;
        done.store(true, Ordering::SeqCst);
        let head = soon(writing).await?;
        let position = backed_up.position.ok_or("a master has a position")?;
        assert_eq!(backed_up.role, Role::Master);
        assert!(position.seq.since(before) >= 20, "the first page is older than the rest");
        assert!(contents(&copy).await == state_at(&source, position.seq).await, "round {round}");
        assert_eq!(chain(&copy).await.last().copied(), Some(position.seq.as_u64()), "and its log ends there");
        // It goes on from there, and is sent only what came after.
        let slave = Slave::open(copy.clone(), from_backup(&format!("edge {round}"))).await?;
        assert_eq!(slave.status().position, Some(position));
        connect(&master, &slave);
        soon(slave.wait_applied(head)).await?;
        assert_equal(&master, &slave).await;
        assert_eq!(slave.status().records, head.seq.since(position.seq));
        assert_eq!(slave.status().comparisons, 0);
        assert!(entries(&copy, Keyspace::Log).await.is_empty(), "a slave keeps no log");
    }
    Ok(())
}

#[tokio::test]
async fn a_backup_of_a_master_opens_as_nothing_unless_it_is_said_as_what() -> Result<(), Error> {
    let first = master(&store(), MasterConfig::default()).await;
    write(&first, 0, 300).await;
    let copy = store();
    soon(first.backup(&copy, |_| {})).await?;
    let before = (contents(&copy).await, entries(&copy, Keyspace::Meta).await);
    let as_master = Master::open(again(&copy), MasterConfig::default()).await;
    assert!(matches!(&as_master, Err(OpenError::Backup)), "{as_master:?}");
    let words = as_master.map(drop).unwrap_err().to_string();
    assert!(words.contains("--as-slave") && words.contains("--new-epoch"), "{words}");
    let as_slave = Slave::open(again(&copy), SlaveConfig::new("edge")).await;
    assert!(matches!(as_slave, Err(OpenError::Backup)), "{as_slave:?}");
    let copy = again(&copy);
    assert_eq!((contents(&copy).await, entries(&copy, Keyspace::Meta).await), before, "nothing is changed");

    // Slaves: one at the backup, one beyond it.
    let at = followed(&first, "at").await;
    first.put("lost", "1").await?;
    let beyond = followed(&first, "beyond").await;
    let restored = Master::open(copy.clone(), MasterConfig::default().new_epoch()).await?;
    let (old, new) = (first.status().published, restored.status().published);
    assert_eq!((new.source, new.epoch.number), (old.source, old.epoch.number + 1));
    assert_eq!(refused(&restored, &beyond).await, RejectCode::Diverged, "two records of one number");
    restored.put("since", "1").await?;
    assert_eq!(refused(&restored, &beyond).await, RejectCode::Diverged);
    let slave = support::slave(&at, "at").await;
    connect(&restored, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&restored, &slave).await;
    assert_eq!((slave.status().records, slave.status().comparisons), (2, 0), "the epoch, and what came since");
    // From now on it is a master like any other, and the one that it was taken of is not its slaves' any more.
    restored.shutdown().await?;
    slave.shutdown().await?;
    assert_eq!(refused(&first, &again(&at)).await, RejectCode::Superseded);
    assert!(matches!(first.put("late", "1").await, Err(replikv_node::WriteError::Superseded { .. })));
    let restored = master(&again(&copy), MasterConfig::default()).await;
    assert_eq!(restored.status().published.epoch, new.epoch);
    Ok(())
}

#[tokio::test]
async fn a_backup_that_was_cut_short_opens_as_nothing() -> Result<(), Error> {
    let first = master(&store(), MasterConfig::default()).await;
    write(&first, 0, 50).await;
    for passed in 0..8 {
        let copy = store();
        copy.faults().apply_after(passed, ApplyFault::Refuse(full()));
        let taken = soon(first.backup(&copy, |_| {})).await;
        let copy = again(&copy);
        if taken.is_ok() {
            assert!(passed > 3, "mark, data, log, the rest");
            return Ok(());
        }
        if passed == 0 {
            assert!(copy.is_keyspace_empty(Keyspace::Meta).await?);
            continue;
        }
        let as_master = Master::open(copy.clone(), MasterConfig::default().new_epoch()).await;
        assert!(matches!(as_master, Err(OpenError::UnfinishedBackup)), "{passed}: {as_master:?}");
        let as_slave = Slave::open(copy.clone(), from_backup("edge")).await;
        assert!(matches!(as_slave, Err(OpenError::UnfinishedBackup)), "{passed}: {as_slave:?}");
        let over = first.backup(&copy, |_| {}).await;
        assert!(matches!(over, Err(BackupError::NotEmpty)), "{over:?}");
    }
    panic!("it never succeeds");
}

// The log is trimmed while the data is read: without it, nobody knows what changed meanwhile.
#[tokio::test]
async fn the_log_is_kept_for_a_backup_and_one_that_loses_it_is_none() -> Result<(), Error> {
    for kept in [true, false] {
        let hold_back_bytes = if kept { 64 << 20 } else { 0 };
        let retention = Retention { max_bytes: 10_000, max_age_ms: None, hold_back_bytes };
        let source = store();
        let master = master(&source, MasterConfig::default().retention(retention).ring_bytes(1_000)).await;
        write(&master, 0, 1_000).await;
        let begun = master.status().published.seq;
        let held = source.faults().hold_read(Keyspace::Data);
        let copy = store();
        let taking = tokio::spawn({
            let (master, copy) = (master.clone(), copy.clone());
            async move { master.backup(&copy, |_| {}).await }
        });
        soon(held.reached()).await;
        write(&master, 500, 2_000).await;
        if !kept {
            until(|| master.status().floor.seq > begun).await;
        }
        held.release();
        let taken = soon(taking).await?;
        if kept {
            assert_eq!(taken?.position, Some(master.status().published));
            assert!(contents(&copy).await == contents(&source).await);
        } else {
            assert!(matches!(taken, Err(BackupError::Trimmed)), "{taken:?}");
        }
        // Nobody holds it any more.
        write(&master, 0, 600).await;
        until(|| master.status().floor.seq > begun).await;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_store_or_goes_where_something_is_is_not_backed_up() -> Result<(), Error> {
    let (first, data) = (master(&store(), MasterConfig::default()).await, support::store_with(3).await);
    let nowhere = first.backup(&data, |_| {}).await;
    assert!(matches!(nowhere, Err(BackupError::NotEmpty)), "{nowhere:?}");
    assert_eq!(contents(&data).await.len(), 3);
    let nothing = backup(&data, &store(), |_| {}).await;
    assert!(matches!(nothing, Err(BackupError::NoRole)), "{nothing:?}");
    assert!(matches!(mark_backup(&data).await, Err(BackupError::NoRole)));
    Ok(())
}

#[tokio::test]
async fn a_backup_of_a_slave_goes_on_under_a_name_of_its_own() -> Result<(), Error> {
    let first = master(&store(), MasterConfig::default()).await;
    write(&first, 0, 300).await;
    let original = followed(&first, "original").await;
    let copy = store();
    let backed_up = backup(&original, &copy, |_| {}).await?;
    assert_eq!((backed_up.role, backed_up.position), (Role::Slave, Some(first.status().published)));
    assert!(matches!(
        Master::open(again(&copy), MasterConfig::default()).await,
        Err(OpenError::Role { found: Role::Slave, .. })
    ));
    write(&first, 300, 310).await;
    let slave = support::slave(&copy, "copy").await;
    connect(&first, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&first, &slave).await;
    assert_eq!(slave.status().records, 10);
    Ok(())
}

// It is readable before it is durable: what a backup holds must not be taken back by power loss.
#[tokio::test]
async fn a_backup_waits_for_what_it_holds_to_be_published() -> Result<(), Error> {
    let source = store();
    let commit = Commit::Buffered { sync_every: std::time::Duration::from_millis(1) };
    let master = master(&source, MasterConfig::default().commit(commit)).await;
    write(&master, 0, 10).await;
    until(|| master.status().published.seq == Seq::new(11)).await;
    let held = source.faults().hold_sync();
    master.put("not durable yet", "1").await?;
    soon(held.reached()).await;
    let copy = store();
    let mut taking = tokio::spawn({
        let (master, copy) = (master.clone(), copy.clone());
        async move { master.backup(&copy, |_| {}).await }
    });
    // Everything is copied; it is not said to be done.
    until(|| copy.faults().calls().syncs > 0).await;
    assert!(!taking.is_finished());
    tokio::task::yield_now().await;
    held.release();
    let position = soon(&mut taking).await??.position.ok_or("a position")?;
    assert_eq!(position.seq, Seq::new(12));
    assert!(master.status().published.seq >= position.seq);
    Ok(())
}

// A copy of the files, or of a disk, has no mark, and nobody can tell. Whoever knows says so.
#[tokio::test]
async fn a_copy_that_was_made_by_other_means_can_be_marked() -> Result<(), Error> {
    let first = master(&store(), MasterConfig::default()).await;
    write(&first, 0, 10).await;
    let copy = copy_of(first.store()).await;
    assert_eq!(mark_backup(&copy).await?.position, Some(first.status().published));
    assert!(matches!(Master::open(again(&copy), MasterConfig::default()).await, Err(OpenError::Backup)));
    let slave = Slave::open(copy, from_backup("edge")).await?;
    connect(&first, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_eq!(slave.status().records, 0);
    Ok(())
}
