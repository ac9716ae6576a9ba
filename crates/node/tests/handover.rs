//! A master stops in favour of a slave, and nothing is lost.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Error, Store, assert_equal, connect, contents, master, slave, soon, store};
use replikv_core::{Batch, StoreError, Token};
use replikv_node::{HandoverError, HealthState, Master, MasterConfig, OpenError, Slave, TakeOverError, WriteError};
use replikv_testkit::{ApplyFault, FaultStore};
use tokio::io::DuplexStream;

const PATIENCE: Duration = Duration::from_secs(60);

/// The same store, as another process would open it.
fn again(store: &Store) -> Store {
    FaultStore::new(store.inner().open_again())
}

/// Connections to ask the master on.
fn dial(master: &Master<Store>) -> impl FnMut() -> std::future::Ready<io::Result<DuplexStream>> + Send {
    let master = master.clone();
    move || {
        let (here, there) = tokio::io::duplex(64 << 10);
        let serving = master.clone();
        tokio::spawn(async move { serving.serve(there).await });
        std::future::ready(Ok(here))
    }
}

async fn following(master: &Master<Store>, slave: &Slave<Store>) {
    drop(connect(master, slave));
    soon(slave.wait_applied(master.status().published.seq)).await.unwrap();
    soon(slave.wait_caught_up()).await.unwrap();
}

/// Writes until it is refused; returns what was acknowledged.
async fn write_on(master: Master<Store>, writer: u8) -> (BTreeMap<Vec<u8>, Token>, WriteError) {
    let mut acknowledged = BTreeMap::new();
    for n in 0u32.. {
        let key = [&[b'w', writer][..], &n.to_be_bytes()].concat();
        match master.write(Batch::new().put(&key, "value")).await {
            Ok(token) => drop(acknowledged.insert(key, token)),
            Err(error) => return (acknowledged, error),
        }
        tokio::task::yield_now().await;
    }
    unreachable!("it ends")
}

#[tokio::test]
async fn nothing_is_lost_and_there_are_never_two_masters() -> Result<(), Error> {
    let (kept, next) = (store(), store());
    let old = master(&kept, MasterConfig::default()).await;
    let (successor, other) = (slave(&next, "next").await, slave(&store(), "other").await);
    following(&old, &successor).await;
    let (_serving, ended) = connect(&old, &other);
    let writers: Vec<_> = (0..4).map(|writer| tokio::spawn(write_on(old.clone(), writer))).collect();
    let before = old.status().published.seq;
    soon(async {
        while old.status().published.seq.as_u64() < before.as_u64() + 100 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let took_over = soon(successor.take_over(dial(&old), PATIENCE)).await?;
    assert_eq!(took_over.promoted.last, took_over.handed_over.position);
    assert_eq!(old.status().published, took_over.handed_over.position, "nothing was written afterwards");
    let mut acknowledged = BTreeMap::new();
    for writer in writers {
        let (written, error) = soon(writer).await?;
        assert!(matches!(error, WriteError::Superseded { by: None }), "{error}");
        acknowledged.extend(written);
    }
    assert!(acknowledged.len() >= 100);
    assert!(matches!(old.put("late", "").await, Err(WriteError::Superseded { by: None })));
    let health = old.status().health;
    assert!(health.state == HealthState::Replaced && health.reason.contains("handed over"), "{health:?}");
    let new = master(&again(&next), MasterConfig::default()).await;
    let held: BTreeMap<_, _> = contents(new.store()).await.into_iter().collect();
    for (key, token) in &acknowledged {
        assert!(held.contains_key(&key[..]), "{token:?}");
    }
    assert_eq!(held.len(), acknowledged.len());
    // The others get the last record from the old master, and move over without a copy or a comparison.
    soon(other.wait_applied(took_over.handed_over.position.seq)).await?;
    old.shutdown().await?;
    drop(soon(ended).await);
    let token = new.put("after", "").await?;
    drop(connect(&new, &other));
    soon(other.wait_applied(token)).await?;
    assert_eq!((other.status().comparisons, other.status().records), (0, token.seq.as_u64()));
    assert_equal(&new, &other).await;
    let opened = Master::open(again(&kept), MasterConfig::default()).await;
    assert!(matches!(opened, Err(OpenError::Superseded { .. })));
    Ok(())
}

#[tokio::test]
async fn a_slave_that_does_not_have_everything_in_time_leaves_the_master_as_it_was() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let held_store = store();
    let next = slave(&held_store, "next").await;
    let soon_over = Duration::from_millis(50);
    let error = old.hand_over("next", soon_over).await.unwrap_err();
    assert!(matches!(&error, HandoverError::NotFollowing { name } if name == "next"), "{error}");
    following(&old, &next).await;
    let held = held_store.faults().hold_apply();
    old.put("k", "v").await?;
    let error = soon(old.hand_over("next", soon_over)).await.unwrap_err();
    assert!(matches!(&error, HandoverError::TooFarBehind { name, .. } if name == "next"), "{error}");
    soon(old.put("k", "it goes on")).await?;
    // Dropped while it waits, it has not happened.
    let dropped = tokio::time::timeout(soon_over, old.hand_over("next", PATIENCE)).await;
    assert!(dropped.is_err());
    soon(old.put("k", "it goes on")).await?;
    drop(held);
    let handed_over = soon(old.hand_over("next", PATIENCE)).await?;
    assert_eq!(handed_over.position, old.status().published);
    assert!(matches!(old.put("k", "late").await, Err(WriteError::Superseded { by: None })));
    Ok(())
}

#[tokio::test]
async fn writers_wait_until_the_slave_has_what_was_under_way() -> Result<(), Error> {
    let (kept, next_store) = (store(), store());
    let old = master(&kept, MasterConfig::default()).await;
    let next = slave(&next_store, "next").await;
    following(&old, &next).await;
    // A write that nobody has seen yet when it is asked, and that takes its time to reach the slave.
    let committing = kept.faults().hold_apply();
    let put = |key: &'static str| {
        let master = old.clone();
        tokio::spawn(async move { master.put(key, "").await })
    };
    let under_way = put("under way");
    soon(committing.reached()).await;
    let applying = next_store.faults().hold_apply();
    let handing_over = tokio::spawn({
        let master = old.clone();
        async move { master.hand_over("next", PATIENCE).await }
    });
    settle().await;
    let late = put("late");
    settle().await;
    committing.release();
    soon(applying.reached()).await;
    settle().await;
    assert!(!handing_over.is_finished(), "the slave does not hold it yet");
    assert!(!late.is_finished(), "writers wait");
    let token = soon(under_way).await??;
    applying.release();
    assert_eq!(soon(handing_over).await??.position.seq, token.seq);
    assert!(matches!(soon(late).await?, Err(WriteError::Superseded { by: None })));
    Ok(())
}

/// Lets everybody do what they can.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

// Whoever asks over a connection may ask for as long as it likes.
#[tokio::test(start_paused = true)]
async fn nobody_who_asks_holds_writers_up_for_ever() -> Result<(), Error> {
    let (kept, next_store) = (store(), store());
    let old = master(&kept, MasterConfig::default()).await;
    let next = slave(&next_store, "next").await;
    following(&old, &next).await;
    let committing = kept.faults().hold_apply();
    let under_way = tokio::spawn({
        let master = old.clone();
        async move { master.put("under way", "").await }
    });
    soon(committing.reached()).await;
    let applying = next_store.faults().hold_apply();
    let begun = tokio::time::Instant::now();
    let taking_over = tokio::spawn({
        let (next, old) = (next.clone(), old.clone());
        async move { next.take_over(dial(&old), Duration::MAX).await }
    });
    settle().await;
    committing.release();
    soon(under_way).await??;
    let failed = taking_over.await?;
    let refused = matches!(&failed, Err(TakeOverError::Refused(HandoverError::TooFarBehind { .. })));
    assert!(refused && begun.elapsed() < Duration::from_secs(1300), "{failed:?} after {:?}", begun.elapsed());
    old.put("goes", "on").await?;
    drop(applying);
    Ok(())
}

#[tokio::test]
async fn asked_again_it_says_the_same_and_nobody_else_is_told() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let (next, other) = (slave(&store(), "next").await, slave(&store(), "other").await);
    following(&old, &next).await;
    following(&old, &other).await;
    let first = soon(old.hand_over("next", PATIENCE)).await?;
    let second = soon(old.hand_over("next", PATIENCE)).await?;
    assert_eq!(first.position, second.position);
    let error = soon(other.take_over(dial(&old), PATIENCE)).await.unwrap_err();
    assert!(matches!(&error, TakeOverError::Refused(HandoverError::Gone { with }) if with == "slave next"), "{error}");
    assert!(other.get("k").await?.is_none(), "it is a slave as before");
    soon(next.take_over(dial(&old), PATIENCE)).await?;
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_again() -> Result<(), Error> {
    let next_store = store();
    let old = master(&store(), MasterConfig::default()).await;
    let next = slave(&next_store, "next").await;
    following(&old, &next).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let (counted, mut dialled, watched) = (asked.clone(), dial(&old), old.clone());
    let connect = move || {
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        let dialled = dialled();
        let watched = watched.clone();
        async move {
            let stream = dialled.await?;
            if !first {
                return Ok(stream);
            }
            // What is asked arrives; before the answer does, the connection is lost.
            let (here, there) = tokio::io::duplex(64 << 10);
            tokio::spawn(async move {
                let (mut from, _into) = tokio::io::split(there);
                let (_answer, mut to) = tokio::io::split(stream);
                let asking = tokio::io::copy(&mut from, &mut to);
                let stopped = async {
                    while watched.put("k", "").await.is_ok() {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::select! {
                    _ = asking => {}
                    () = stopped => {}
                }
            });
            Ok(here)
        }
    };
    let took_over = soon(next.take_over(connect, PATIENCE)).await?;
    assert!(asked.load(Ordering::SeqCst) > 1, "the first answer was lost");
    assert_eq!(took_over.promoted.last, old.status().published);
    Ok(())
}

#[tokio::test]
async fn nobody_answers_and_the_slave_stays_one() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let next = slave(&store(), "next").await;
    following(&old, &next).await;
    let nobody = || std::future::ready(Err::<DuplexStream, _>(io::Error::from(io::ErrorKind::ConnectionRefused)));
    let error = soon(next.take_over(nobody, Duration::from_millis(250))).await.unwrap_err();
    assert!(matches!(error, TakeOverError::Unknown { .. }), "{error}");
    let token = old.put("k", "v").await?;
    soon(next.wait_applied(token)).await?;
    // A slave that answers questions does not hand over.
    let answering = next.clone();
    let slaves = move || {
        let (here, there) = tokio::io::duplex(64 << 10);
        let answering = answering.clone();
        tokio::spawn(async move { answering.serve_status(there).await });
        std::future::ready(Ok(here))
    };
    let error = soon(next.take_over(slaves, PATIENCE)).await.unwrap_err();
    assert!(matches!(&error, TakeOverError::Unsupported { words } if words.contains("slave")), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_master_whose_store_cannot_say_that_it_has_stopped_has_not_handed_over() -> Result<(), Error> {
    let kept = store();
    let old = master(&kept, MasterConfig::default()).await;
    let next = slave(&store(), "next").await;
    following(&old, &next).await;
    // Each attempt of the commit task, and those that come before it.
    for _ in 0..20 {
        kept.faults().next_apply(ApplyFault::Refuse(StoreError::backend("as told")));
    }
    let error = soon(old.hand_over("next", PATIENCE)).await.unwrap_err();
    assert!(matches!(error, HandoverError::Failed { .. }), "{error}");
    assert!(
        matches!(old.put("k", "v").await, Err(WriteError::Superseded { .. })),
        "nobody can tell whether it is kept"
    );
    kept.faults().clear();
    let handed_over = soon(old.hand_over("next", PATIENCE)).await?;
    assert_eq!(handed_over.position, old.status().published);
    old.shutdown().await?;
    let opened = Master::open(again(&kept), MasterConfig::default()).await;
    assert!(matches!(opened, Err(OpenError::Superseded { .. })));
    Ok(())
}
