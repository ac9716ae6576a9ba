//! Verifying, step by step: how a range is read at one point of the history, who waits for it, and what becomes of a
//! question that nobody waits for any more.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{
    Error, Serving, Store, assert_equal, connect, contents, follow, master, put_raw, serve, slave, soon, store,
    store_with, until,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use replikv_core::{Cursor, KeyRange, Keyspace, LinkId, Position, ReplicaStore, Seq, StoreError, meta};
use replikv_node::{
    Codec, DifferenceKind, Displaced, FollowError, Master, MasterConfig, Quarantine, Resync, ServeError, Slave,
    SlaveConfig, VerifyError, VerifyOptions, VerifyOutcome, VerifyReport,
};
use replikv_proto::layout::{Head, Stored};
use replikv_proto::{DecoderLimits, Message, Welcome};
use replikv_testkit::{FaultStore, Held};
use tokio::task::JoinHandle;
use tokio_util::codec::Framed;

/// How often a page is read beside the writers, and between two groups, before less is read.
const BESIDE: usize = 2;
const BETWEEN: usize = 16;
const ROUNDS: usize = 8;

fn verify(slave: &Slave<Store>, options: VerifyOptions) -> JoinHandle<Result<VerifyReport, VerifyError>> {
    let slave = slave.clone();
    tokio::spawn(async move { slave.verify(options).await })
}

fn hold_reads(store: &Store, times: usize) -> Vec<Held> {
    (0..times).map(|_| store.faults().hold_read(Keyspace::Data)).collect()
}

/// A master with ten entries, and a slave that has them.
async fn ten(config: SlaveConfig) -> Result<(Master<Store>, Slave<Store>, Serving), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    for n in 0..10u8 {
        master.put([n], "right").await?;
    }
    let slave = Slave::open(store(), config).await?;
    let (serving, _) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    Ok((master, slave, serving))
}

#[tokio::test]
async fn a_page_that_a_batch_was_committed_beside_is_read_again() -> Result<(), Error> {
    let (master, slave, _) = ten(SlaveConfig::new("edge")).await?;
    let mut held = hold_reads(master.store(), BESIDE);
    let verifying = verify(&slave, VerifyOptions::default());
    for (n, read) in held.drain(..).enumerate() {
        soon(read.reached()).await;
        // It has read what was there before, and looks at the head afterwards.
        master.put([3], format!("number {n}")).await?;
        read.release();
    }
    let report = soon(verifying).await??;
    assert!(report.is_equal(), "a false alarm: {report:?}");
    assert_eq!(report.position, Some(master.status().published));
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test]
async fn a_range_that_is_hot_is_read_between_two_groups_and_the_slave_tells_of_that_very_record() -> Result<(), Error> {
    let (master, slave, _) = ten(SlaveConfig::new("edge")).await?;
    let mut held = hold_reads(master.store(), BESIDE + 1);
    let verifying = verify(&slave, VerifyOptions::default());
    let between = held.pop().ok_or("one more")?;
    for read in held {
        soon(read.reached()).await;
        master.put([3], "hot").await?;
        read.release();
    }
    soon(between.reached()).await;
    let at = master.status().published;
    // The task that commits is what reads: the next batch waits for it.
    let writing = tokio::spawn({
        let master = master.clone();
        async move { master.put([3], "later").await }
    });
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert!(!writing.is_finished() && master.status().published == at);
    between.release();
    let later = soon(writing).await??;
    let report = soon(verifying).await??;
    assert!(report.is_equal(), "a false alarm: {report:?}");
    // The slave has compared what it held there, though it may have heard of the next record meanwhile.
    assert_eq!(report.position, Some(at));
    soon(slave.wait_applied(later)).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}

// A group that was folded while the one before it was committed is not there yet when the answer is.
#[tokio::test]
async fn an_answer_waits_for_the_groups_that_were_folded_before_it() -> Result<(), Error> {
    // The second batch is a whole group, and behind both there is room for the answer.
    let (master, slave, _) = ten(SlaveConfig::new("edge").group_bytes(2_000)).await?;
    let applying = slave.store().faults().hold_apply();
    master.put([3], "committed").await?;
    soon(applying.reached()).await;
    let last = master.put([3], "folded".repeat(400)).await?;
    let verifying = verify(&slave, VerifyOptions::default().repair());
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    applying.release();
    let report = soon(verifying).await??;
    assert!(report.is_equal(), "a false alarm: {report:?}");
    assert_eq!(report.position.map(|at| at.seq), Some(last.seq));
    assert_equal(&master, &slave).await;
    Ok(())
}

// As when applications commit in transactions of their own without a pause.
#[tokio::test]
async fn a_master_whose_data_never_rests_ends_the_connection_and_says_why() -> Result<(), Error> {
    let (master, slave, serving) = ten(SlaveConfig::new("edge")).await?;
    let source = master.store();
    let now = source.get(Keyspace::Meta, Head::KEY).await?.ok_or("a head")?;
    let head = Head::from_bytes(&now)?;
    let before = Head { position: Position { seq: Seq::new(9), ..head.position }, ..head };
    let mut held = hold_reads(source, ROUNDS * (BESIDE + BETWEEN));
    let verifying = verify(&slave, VerifyOptions::default().patience(Duration::from_millis(20)));
    for (n, read) in held.drain(..).enumerate() {
        soon(read.reached()).await;
        let moved = if n % 2 == 0 { before.to_bytes() } else { now.clone() };
        put_raw(source.inner(), Keyspace::Meta, Head::KEY, &moved).await?;
        read.release();
    }
    let ended = soon(serving).await?;
    assert!(matches!(ended, Err(ServeError::Store(StoreError::Transient { .. }))), "{ended:?}");
    assert!(matches!(soon(verifying).await?, Err(VerifyError::Interrupted { .. })));
    // The next connection does better.
    connect(&master, &slave);
    soon(slave.wait_applied(master.put("b", "1").await?)).await?;
    assert!(soon(slave.verify(VerifyOptions::default())).await?.is_equal());
    Ok(())
}

#[tokio::test]
async fn whoever_no_longer_waits_for_an_answer_wants_nothing_mended() -> Result<(), Error> {
    let (master, slave, _) = ten(SlaveConfig::new("edge")).await?;
    put_raw(slave.store(), Keyspace::Data, &[4], b"wrong").await?;
    // The first answer is a sum, the second one brings what mends.
    let mut held = hold_reads(master.store(), 2).into_iter();
    let verifying = verify(&slave, VerifyOptions::default().repair());
    let (sum, entries) = (held.next().ok_or("one")?, held.next().ok_or("two")?);
    soon(sum.reached()).await;
    sum.release();
    soon(entries.reached()).await;
    verifying.abort();
    assert!(soon(verifying).await.is_err_and(|error| error.is_cancelled()));
    entries.release();
    // What comes behind the answer is applied: it was dealt with.
    let behind = master.put("z", "1").await?;
    soon(slave.wait_applied(behind)).await?;
    assert_eq!(slave.get([4]).await?.as_deref(), Some(&b"wrong"[..]));
    // And whoever asks next is answered.
    let report = soon(slave.verify(VerifyOptions::default().repair())).await?;
    assert_eq!((report.different, report.repaired), (1, 1));
    assert_equal(&master, &slave).await;
    Ok(())
}

// Two slaves on one store: what the other one has written is no difference.
#[tokio::test]
async fn a_store_that_another_process_moves_on_is_not_called_different() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    master.put("a", "1").await?;
    master.put("a", "2").await?;
    let slave = slave(&store(), "edge").await;
    let (_serving, following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    let at = slave.status().position.ok_or("it follows")?;
    let moved = Cursor::at(Position { seq: Seq::new(at.seq.as_u64() + 1), ..at });
    put_raw(slave.store(), Keyspace::Meta, &meta::cursor_key(&LinkId::default()), &moved.to_bytes()).await?;
    put_raw(slave.store(), Keyspace::Data, b"a", b"3").await?;
    let verifying = verify(&slave, VerifyOptions::default().patience(Duration::from_millis(20)));
    assert!(matches!(soon(following).await?, Err(FollowError::Fenced)));
    let Err(VerifyError::Interrupted { report }) = soon(verifying).await? else { panic!("it cannot tell") };
    assert!(report.is_equal(), "{report:?}");
    Ok(())
}

#[tokio::test]
async fn a_master_of_an_older_version_is_named_as_the_reason() -> Result<(), Error> {
    let master = master(&store_with(10).await, MasterConfig::default()).await;
    let slave = slave(&store(), "edge").await;
    let (slave_end, to_slave) = tokio::io::duplex(64 << 10);
    let (to_master, master_end) = tokio::io::duplex(64 << 10);
    serve(&master, master_end);
    let mut to_slave = Framed::new(to_slave, Codec::new(DecoderLimits::for_batches(1 << 20)));
    let mut to_master = Framed::new(to_master, Codec::new(DecoderLimits::for_batches(1 << 20)));
    tokio::spawn(async move {
        loop {
            let sent = tokio::select! {
                Some(Ok(message)) = to_slave.next() => {
                    assert!(!matches!(message, Message::Probe(_)), "it would end the session");
                    to_master.send(message).await
                }
                Some(Ok(message)) = to_master.next() => match message {
                    Message::Welcome(welcome) => {
                        to_slave.send(Message::Welcome(Welcome { verifies: false, ..welcome })).await
                    }
                    message => to_slave.send(message).await,
                },
                else => break,
            };
            if sent.is_err() {
                break;
            }
        }
    });
    let following = follow(&slave, slave_end);
    soon(slave.wait_caught_up()).await?;
    let error = soon(slave.verify(VerifyOptions::default())).await.err().ok_or("it cannot tell")?;
    assert_eq!(error, VerifyError::Unsupported);
    assert_eq!(error.to_string(), "the master does not know how to verify: it must be of a newer version");
    let told = slave.status().verification.ok_or("it is told")?;
    assert_eq!((told.outcome, told.reason), (VerifyOutcome::Unfinished, Some(error.to_string())));
    // Nobody is the worse for it.
    let token = master.put("b", "1").await?;
    soon(slave.wait_applied(token)).await?;
    assert!(!following.is_finished());
    Ok(())
}

/// Keeps in memory, and fails as often as it is told to.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    entries: Vec<(Resync, Displaced)>,
    failures: usize,
}

#[async_trait]
impl Quarantine for Kept {
    async fn keep(&self, resync: &Resync, entries: Vec<Displaced>) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap();
        if kept.failures > 0 {
            kept.failures -= 1;
            return Err(io::Error::other("no room"));
        }
        kept.entries.extend(entries.into_iter().map(|entry| (*resync, entry)));
        Ok(())
    }
}

#[tokio::test]
async fn what_a_repair_takes_away_is_quarantined_first() -> Result<(), Error> {
    let kept = Kept::default();
    let (master, slave, _) = ten(SlaveConfig::new("edge").quarantine(kept.clone())).await?;
    let at = slave.status().position.ok_or("it follows")?;
    put_raw(slave.store(), Keyspace::Data, &[4], b"wrong").await?;
    put_raw(slave.store(), Keyspace::Data, b"mine", b"1").await?;
    let report = soon(slave.verify(VerifyOptions::default())).await?;
    assert_eq!((report.different, kept.0.lock().unwrap().entries.len()), (2, 0), "nothing is taken away yet");
    // What cannot be kept is not overwritten; the next connection tries again.
    kept.0.lock().unwrap().failures = 1;
    let verifying = verify(&slave, VerifyOptions::default().repair());
    until(|| !slave.subscribe().borrow().connected).await;
    assert_eq!(slave.get([4]).await?.as_deref(), Some(&b"wrong"[..]));
    let (_serving, following) = connect(&master, &slave);
    let report = soon(verifying).await??;
    assert_eq!((report.different, report.repaired), (2, 2));
    let entry = |key: &'static [u8], value: &'static [u8]| {
        let displaced = Displaced { key: Bytes::from_static(key), value: Bytes::from_static(value) };
        (at, Some(at), displaced)
    };
    let found: Vec<_> =
        kept.0.lock().unwrap().entries.iter().map(|(why, entry)| (why.was, why.ancestor, entry.clone())).collect();
    assert_eq!(found, [entry(&[4], b"wrong"), entry(b"mine", b"1")]);
    assert_eq!((slave.status().quarantined, slave.status().resyncs), (2, 0));
    assert_equal(&master, &slave).await;
    drop(following);
    Ok(())
}

// A quarantine for repairs is no leave to become what another master is.
#[tokio::test]
async fn a_quarantine_alone_lets_no_slave_resync() -> Result<(), Error> {
    let kept = Kept::default();
    let (_, slave, _) = ten(SlaveConfig::new("edge").quarantine(kept.clone())).await?;
    let before = contents(slave.store()).await;
    slave.shutdown().await?;
    let copy = FaultStore::new(slave.store().inner().open_again());
    let slave = Slave::open(copy, SlaveConfig::new("edge").quarantine(kept)).await?;
    let other = master(&store_with(10).await, MasterConfig::default()).await;
    let (_serving, following) = connect(&other, &slave);
    assert!(matches!(soon(following).await?, Err(FollowError::Refused(_))));
    assert_eq!(contents(slave.store()).await, before);
    Ok(())
}

#[tokio::test]
async fn what_is_changed_behind_the_slaves_back_inside_a_hot_range_is_found_there() -> Result<(), Error> {
    let (master, slave, _) = ten(SlaveConfig::new("edge")).await?;
    put_raw(slave.store(), Keyspace::Data, &[4], b"wrong").await?;
    let mut held = hold_reads(master.store(), 2 * (BESIDE + 1));
    let verifying = verify(&slave, VerifyOptions::default().ranges([KeyRange::from_bounds([3]..[6])]));
    for (n, read) in held.drain(..).enumerate() {
        soon(read.reached()).await;
        if n % (BESIDE + 1) < BESIDE {
            master.put([3], format!("hot {n}")).await?;
        }
        read.release();
    }
    let report = soon(verifying).await??;
    let found: Vec<_> = report.differences.iter().map(|found| (found.key.to_vec(), found.kind)).collect();
    assert_eq!((found, report.different_ranges, report.healed), (vec![(vec![4], DifferenceKind::Value)], 1, 0));
    Ok(())
}
