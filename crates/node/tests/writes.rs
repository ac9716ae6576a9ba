//! Conditions, transactions, groups, writers that wait and writers that give up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{Error, Store, chain, contents, full, master, serve, soon, store, until};
use futures_util::FutureExt;
use futures_util::future::join_all;
use replikv_core::{Batch, Keyspace, ReplicaStore, StoreError, Token};
use replikv_node::{Master, MasterConfig, WriteError, remote_status};
use replikv_proto::Abort;
use replikv_testkit::{ApplyFault, Held};
use tokio::task::JoinHandle;

// A first write that hangs in the store: whatever is written meanwhile becomes the next group.
async fn gather(master: &Master<Store>) -> (Held, JoinHandle<Result<Token, WriteError>>) {
    let held = master.store().faults().hold_apply();
    let writing = tokio::spawn({
        let master = master.clone();
        async move { master.put("first", "v").await }
    });
    soon(held.reached()).await;
    (held, writing)
}

fn count_up(master: &Master<Store>) -> impl Future<Output = Result<Token, WriteError>> + Send + use<> {
    let master = master.clone();
    async move {
        let counted = master.transact(|view, batch| {
            let count = view.get("count")?.map_or(0, |value| value[0]);
            if count == 9 { Err(Abort::refuse("enough")) } else { Ok(batch.put("count", [count + 1])) }
        });
        counted.await
    }
}

#[tokio::test]
async fn conditions_and_transactions_see_the_batches_of_their_own_group() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    master.put("old", "1").await?;
    let groups = master.status().groups;
    let (held, first) = gather(&master).await;
    let batches = [
        Batch::new().expect_absent("k").put("k", "1"),
        Batch::new().expect_absent("k").put("k", "never"),
        Batch::new().expect("k", "1").expect("old", "1").put("k", "2").delete("old"),
        Batch::new().expect("old", "1").put("never", "v"),
        Batch::new().expect_absent("old").delete_range("k".."l"),
        Batch::new().expect_absent("k").expect("first", "v").put("k", "3"),
    ];
    let writing = join_all(batches.map(|batch| {
        let master = master.clone();
        async move { master.write(batch).await }
    }));
    let counting = join_all((0..12).map(|_| count_up(&master)));
    let mut all = Box::pin(futures_util::future::join(writing, counting));
    assert!((&mut all).now_or_never().is_none(), "all of them wait behind the one that hangs");
    held.release();
    let (written, counted) = soon(all).await;
    soon(first).await??;
    let outcomes: Vec<_> = written.iter().map(Result::is_ok).collect();
    assert_eq!(outcomes, [true, false, true, false, true, true]);
    assert!(matches!(&written[1], Err(WriteError::Conflict { key }) if &key[..] == b"k"));
    assert!(matches!(&written[3], Err(WriteError::Conflict { key }) if &key[..] == b"old"));
    assert_eq!(counted.iter().filter(|result| result.is_ok()).count(), 9);
    let refused = counted.last().ok_or("twelve were counted")?;
    assert!(matches!(refused, Err(WriteError::Aborted { reason }) if reason == "enough"), "{refused:?}");
    assert_eq!(master.status().groups - groups, 2, "the one that hung, and all the others");
    let found: Vec<_> = contents(&store).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(found, ["count", "first", "k"]);
    assert_eq!(master.get("k").await?.as_deref(), Some(&b"3"[..]));
    assert_eq!(master.get("count").await?.as_deref(), Some(&[9][..]));
    assert_eq!(chain(&store).await.len(), 1 + 2 + 4 + 9);
    Ok(())
}

#[tokio::test]
async fn a_conflict_is_told_only_once_its_group_is_decided() -> Result<(), Error> {
    let outcomes = [ApplyFault::Refuse(full()), ApplyFault::UnknownAndAbsent, ApplyFault::UnknownButApplied];
    for fault in outcomes {
        let unchanged = matches!(fault, ApplyFault::Refuse(_));
        let store = store();
        let master = master(&store, MasterConfig::default()).await;
        let (held, first) = gather(&master).await;
        store.faults().next_apply(fault);
        let write = |batch: Batch| {
            let master = master.clone();
            async move { master.write(batch).await }
        };
        let both = tokio::spawn(futures_util::future::join(
            write(Batch::new().put("k", "1")),
            // What it conflicts with is not there if its group is not.
            write(Batch::new().expect_absent("k").put("k", "2")),
        ));
        tokio::task::yield_now().await;
        held.release();
        soon(first).await??;
        for result in <[_; 2]>::from(soon(both).await?) {
            match result {
                Err(WriteError::Store(StoreError::StoreFull { .. })) => assert!(unchanged),
                Err(WriteError::OutcomeUnknown { .. }) => assert!(!unchanged),
                other => panic!("the group was not committed: {other:?}"),
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn writers_wait_when_the_queue_is_full_and_a_group_stays_small() -> Result<(), Error> {
    const QUEUE: usize = 100 << 10;
    const VALUE: usize = 10 << 10;
    let store = store();
    let master = master(&store, MasterConfig::default().queue_bytes(QUEUE)).await;
    let (held, first) = gather(&master).await;
    let answered = Arc::new(AtomicU32::new(0));
    let writers: Vec<_> = (0..200u32)
        .map(|n| {
            let (master, answered) = (master.clone(), answered.clone());
            tokio::spawn(async move {
                master.put(n.to_be_bytes(), vec![1; VALUE]).await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(answered.load(Ordering::Relaxed), 0);
    held.release();
    soon(first).await??;
    soon(join_all(writers)).await;
    assert_eq!(answered.load(Ordering::Relaxed), 200);
    // Each batch is in it twice, as operations and as a record.
    let largest = store.faults().calls().largest_apply;
    assert!(largest < 2 * QUEUE + 4 * VALUE, "a group of {largest} bytes");
    assert!(largest > QUEUE, "and yet writers share groups");
    Ok(())
}

#[tokio::test]
async fn a_batch_larger_than_the_queue_goes_through_alone() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default().queue_bytes(1000)).await;
    let writes = (0..5u8).map(|n| master.put([n], vec![n; 100_000]));
    for result in soon(join_all(writes)).await {
        result?;
    }
    assert_eq!(contents(&store).await.len(), 5);
    Ok(())
}

#[tokio::test]
async fn a_dropped_write_is_there_as_a_whole_or_not_at_all() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default().queue_bytes(4096)).await;
    let (mut there, mut absent) = (0, 0);
    for round in 0..50u8 {
        let batch = || (0..3u8).fold(Batch::new(), |batch, key| batch.put([round, key], vec![1; 500]));
        let (held, first) = gather(&master).await;
        let mut dropped = Box::pin(master.write(batch()).into_future());
        // Even rounds: it never began. Odd ones: it waits for the store.
        if round % 2 == 1 {
            assert!((&mut dropped).now_or_never().is_none());
        }
        drop(dropped);
        held.release();
        soon(first).await??;
        master.put("after", [round]).await?;
        let range = replikv_core::KeyRange::prefix([round]);
        let found = master.scan(range, Default::default()).await?.len();
        match found {
            0 => absent += 1,
            3 => there += 1,
            _ => panic!("{found} of 3 keys are there"),
        }
    }
    assert_eq!((there, absent), (25, 25));
    // Nobody who gave up keeps a place in the queue.
    soon(join_all((0..20u8).map(|n| master.put([n], vec![0; 1000])))).await;
    Ok(())
}

#[tokio::test]
async fn a_writer_that_gives_up_while_it_waits_for_room_leaves_nothing() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default().queue_bytes(1000)).await;
    let (held, first) = gather(&master).await;
    let mut filling = Box::pin(master.put("filling", vec![0; 2000]));
    assert!((&mut filling).now_or_never().is_none());
    let mut waiting = Box::pin(master.put("waiting", "v"));
    assert!((&mut waiting).now_or_never().is_none());
    drop(waiting);
    held.release();
    soon(first).await??;
    soon(filling).await?;
    master.put("after", "v").await?;
    assert!(master.get("waiting").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_shutdown_commits_what_waits() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    let (held, first) = gather(&master).await;
    let waiting = tokio::spawn(join_all((0..10u8).map(|n| {
        let master = master.clone();
        async move { master.put([n], "v").await }
    })));
    tokio::task::yield_now().await;
    let closing = tokio::spawn({
        let master = master.clone();
        async move { master.shutdown().await }
    });
    tokio::task::yield_now().await;
    held.release();
    soon(first).await??;
    for result in soon(waiting).await? {
        result?;
    }
    soon(closing).await??;
    assert_eq!(contents(&store.inner().open_again()).await.len(), 11);
    Ok(())
}

#[tokio::test]
async fn the_status_never_waits_for_a_store_that_hangs() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    let (held, first) = gather(&master).await;
    let reads = [Keyspace::Data, Keyspace::Log, Keyspace::Meta].map(|keyspace| store.faults().hold_read(keyspace));
    let reading = tokio::spawn({
        let store = store.clone();
        async move { store.get(Keyspace::Data, b"k").await }
    });
    soon(reads[0].reached()).await;
    // Not awaited: it has no way to wait.
    let status = master.status();
    assert_eq!(status.handed.seq, status.published.seq.next().unwrap());
    let (here, there) = tokio::io::duplex(1024);
    serve(&master, there);
    let remote = soon(remote_status(here)).await?;
    assert!(String::from_utf8(remote.to_vec())?.contains("\"published\""));
    assert!(!first.is_finished() && !reading.is_finished());
    drop((held, reads));
    soon(first).await??;
    soon(reading).await??;
    Ok(())
}

#[tokio::test]
async fn a_failed_read_for_a_condition_fails_the_write_and_nothing_else() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    master.put("k", "1").await?;
    store.faults().fail_reads(Keyspace::Data, 1, &StoreError::Corrupt { what: "a page".into() });
    // Never taken for absent.
    let failed = master.write(Batch::new().expect_absent("k").put("k", "2")).await;
    assert!(matches!(failed, Err(WriteError::Store(StoreError::Corrupt { .. }))), "{failed:?}");
    master.write(Batch::new().expect("k", "1").put("k", "3")).await?;
    until(|| master.status().published.seq.as_u64() == 3).await;
    Ok(())
}
