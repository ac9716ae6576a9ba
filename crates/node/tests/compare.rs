//! A slave that fell behind the log: it compares, while writes go on, whatever happens meanwhile.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};

use crate::support::{
    self, Error, Store, assert_equal, connect, contents, entries, follow, followed, master, serve, slave, soon,
};
use crate::support::{store, store_with, until};
use replikv_core::{Batch, Durability, KeyRange, Keyspace, Op, ReplicaStore, ReplicaStoreExt, Seq, WriteSet};
use replikv_memory::MemoryStore;
use replikv_node::{Ending, FollowError, Master, MasterConfig, Slave, SlaveState};
use replikv_proto::{GoodbyeReason, RejectCode, Retention};
use replikv_testkit::FaultStore;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

const ENTRIES: u32 = 4_000;

/// Small pages, so that an answer is one of many, and hardly any log.
fn config() -> MasterConfig {
    let retention = Retention { max_bytes: 10_000, max_age_ms: None, hold_back_bytes: 0 };
    MasterConfig::default().retention(retention).ring_bytes(1000).chunk_bytes(8_000)
}

fn rng(test: &str) -> fastrand::Rng {
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_917);
    println!("reproduce: REPLIKV_SEED={seed} cargo test -p replikv-node --all-features --test node compare::{test}");
    fastrand::Rng::with_seed(seed)
}

/// Puts, deletes and range deletes, all over the keys.
fn batch(rng: &mut fastrand::Rng) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..rng.usize(1..5) {
        let key = rng.u32(..ENTRIES + 500).to_be_bytes();
        batch = match rng.u8(..12) {
            0 => batch.delete_range(key..(u32::from_be_bytes(key) + rng.u32(1..30)).to_be_bytes()),
            1..=3 => batch.delete(key),
            _ => batch.put(key, vec![rng.u8(..); rng.usize(1..200)]),
        };
    }
    batch
}

/// Writes until the log no longer reaches back to `seq`.
async fn trim_past(master: &Master<Store>, seq: Seq, rng: &mut fastrand::Rng) {
    for _ in 0..600 {
        master.write(batch(rng)).await.unwrap();
    }
    soon(async {
        while master.status().floor.seq <= seq {
            master.write(batch(rng)).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn position(slave: &Slave<Store>) -> Seq {
    slave.status().position.map_or(Seq::ZERO, |position| position.seq)
}

/// Follows, and connects again when it is told that its records went away meanwhile.
async fn catch_up(master: &Master<Store>, slave: &Slave<Store>, seq: Seq) {
    loop {
        let (_serving, following) = connect(master, slave);
        tokio::select! {
            end = following => match end.unwrap() {
                Ok(Ending::Goodbye { reason: GoodbyeReason::Trimmed, .. }) => {}
                other => panic!("{other:?}"),
            },
            applied = soon(slave.wait_applied(seq)) => return applied.unwrap(),
        }
    }
}

#[tokio::test]
async fn a_slave_behind_the_log_compares_while_writes_go_on() -> Result<(), Error> {
    let mut rng = rng("a_slave_behind_the_log_compares_while_writes_go_on");
    let source = store_with(ENTRIES).await;
    // Enough log for what is written while the slave compares.
    let retention = Retention { max_bytes: 10_000, max_age_ms: None, hold_back_bytes: 64 << 20 };
    let master = master(&source, config().retention(retention)).await;
    let held = followed(&master, "edge").await;
    until(|| master.forget(replikv_proto::SlotKind::Slave, "edge")).await;
    // What its master never had: found as a difference, and gone.
    held.apply_one(Keyspace::Data, Op::Put { key: b"\xFFmine", value: b"1" }).await?;
    let slave = slave(&held, "edge").await;
    trim_past(&master, position(&slave), &mut rng).await;
    let (_serving, following) = connect(&master, &slave);
    let mut comparing = 0;
    let mut token = None;
    for _ in 0..400 {
        token = Some(master.write(batch(&mut rng)).await?);
        comparing += usize::from(slave.status().state == SlaveState::Comparing);
        tokio::task::yield_now().await;
    }
    soon(slave.wait_applied(token.ok_or("nothing was written")?)).await?;
    assert_equal(&master, &slave).await;
    let status = slave.status();
    assert_eq!((status.comparisons, status.state), (1, SlaveState::Following));
    assert!(comparing > 0, "nothing was written while it compared");
    following.abort();
    Ok(())
}

#[tokio::test]
async fn a_log_that_is_trimmed_during_a_comparison_starts_another_and_never_a_copy() -> Result<(), Error> {
    let mut rng = rng("a_log_that_is_trimmed_during_a_comparison_starts_another_and_never_a_copy");
    let source = store_with(ENTRIES).await;
    // So slow that it is still comparing when it is cut.
    let master = master(&source, config().compare_bytes_per_second(200_000)).await;
    let held = followed(&master, "edge").await;
    let slave = slave(&held, "edge").await;
    for round in 1..=5 {
        trim_past(&master, position(&slave), &mut rng).await;
        let (_serving, following) = connect(&master, &slave);
        until(|| slave.status().comparisons == round && slave.status().state == SlaveState::Comparing).await;
        assert_eq!(slave.status().health.state == replikv_node::HealthState::Outpaced, round >= 4, "round {round}");
        following.abort();
        drop(following.await);
    }
    master.shutdown().await?;
    let master = support::master(&FaultStore::new(source.inner().open_again()), config()).await;
    let token = master.put("last", "word").await?;
    catch_up(&master, &slave, token.seq).await;
    assert_equal(&master, &slave).await;
    assert_ne!(slave.status().health.state, replikv_node::HealthState::Outpaced);
    Ok(())
}

#[tokio::test]
async fn an_interrupted_copy_below_the_log_keeps_what_it_has() -> Result<(), Error> {
    let mut rng = rng("an_interrupted_copy_below_the_log_keeps_what_it_has");
    let master = master(&store_with(ENTRIES).await, config()).await;
    let held = store();
    let slave = slave(&held, "edge").await;
    // Cut in mid copy.
    let (here, there) = tokio::io::duplex(4 << 10);
    let cut = Cut::after(here, 100_000);
    let _serving = serve(&master, there);
    assert!(matches!(soon(slave.follow(cut)).await, Err(FollowError::Connection(_))));
    let copied = contents(&held).await.len();
    assert!((100..ENTRIES as usize).contains(&copied), "{copied}");
    assert_eq!(slave.status().state, SlaveState::Copying);
    trim_past(&master, position(&slave), &mut rng).await;
    let token = master.put("last", "word").await?;
    catch_up(&master, &slave, token.seq).await;
    assert_equal(&master, &slave).await;
    assert!(slave.status().comparisons > 0);
    Ok(())
}

/// A stream that fails after so many bytes, both ways counted together.
struct Cut {
    stream: DuplexStream,
    left: Arc<AtomicI64>,
}

impl Cut {
    fn after(stream: DuplexStream, bytes: i64) -> Self {
        Self { stream, left: Arc::new(AtomicI64::new(bytes)) }
    }

    fn left(&self) -> usize {
        usize::try_from(self.left.load(Ordering::Relaxed)).unwrap_or(0)
    }

    fn count(&self, bytes: usize) {
        self.left.fetch_sub(i64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }
}

fn reset() -> std::io::Error {
    std::io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Cut {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.left() == 0 {
            return Poll::Ready(Err(reset()));
        }
        let mut bytes = vec![0; self.left().min(buf.remaining())];
        let mut part = ReadBuf::new(&mut bytes);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut part);
        buf.put_slice(part.filled());
        self.count(part.filled().len());
        polled
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let left = self.left();
        if left == 0 {
            return Poll::Ready(Err(reset()));
        }
        let polled = Pin::new(&mut self.stream).poll_write(cx, &bytes[..bytes.len().min(left)]);
        if let Poll::Ready(Ok(written)) = polled {
            self.count(written);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// Either side dies now and then, too: both are opened anew on what their stores hold.
#[tokio::test]
async fn a_comparison_that_is_cut_at_random_bytes_again_and_again_ends_equal() -> Result<(), Error> {
    let mut rng = rng("a_comparison_that_is_cut_at_random_bytes_again_and_again_ends_equal");
    let mut source = store_with(ENTRIES).await;
    let mut master = master(&source, config()).await;
    let mut held = followed(&master, "edge").await;
    let mut slave = slave(&held, "edge").await;
    let (mut cuts, mut comparisons, mut in_the_middle) = (0, 0, 0);
    while cuts < 150 {
        if rng.u8(..12) == 0 {
            trim_past(&master, position(&slave), &mut rng).await;
        }
        if rng.u8(..10) == 0 {
            comparisons += slave.status().comparisons;
            slave.shutdown().await?;
            held = FaultStore::new(held.inner().open_again());
            slave = support::slave(&held, "edge").await;
        }
        if rng.u8(..20) == 0 {
            master.shutdown().await?;
            source = FaultStore::new(source.inner().open_again());
            master = support::master(&source, config()).await;
        }
        let (here, there) = tokio::io::duplex(rng.usize(100..20_000));
        let bytes = [rng.i64(1..3_000), rng.i64(1..60_000), rng.i64(1..300_000)][rng.usize(..3)];
        let serving = serve(&master, there);
        let following = slave.clone();
        let mut following = tokio::spawn(async move { following.follow(Cut::after(here, bytes)).await });
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut following => break Some(ended?),
                written = master.write(batch(&mut rng)) => drop(written?),
            }
            if slave.status().lag.is_some_and(|lag| lag.seqs < 2) && slave.status().state == SlaveState::Following {
                following.abort();
                drop((&mut following).await);
                break None;
            }
            tokio::task::yield_now().await;
        };
        match ended {
            None | Some(Ok(Ending::Goodbye { reason: GoodbyeReason::Trimmed, .. })) => {}
            Some(Err(FollowError::Connection(_) | FollowError::Protocol(_))) => cuts += 1,
            Some(other) => return Err(format!("a cut connection ended as {other:?}").into()),
        }
        in_the_middle += usize::from(slave.status().state == SlaveState::Comparing);
        drop(soon(serving).await?);
    }
    comparisons += slave.status().comparisons;
    println!("{cuts} cuts, {comparisons} comparisons, {in_the_middle} times cut in the middle of one");
    assert!(comparisons > 5 && in_the_middle > 5);
    let token = master.put("last", "word").await?;
    catch_up(&master, &slave, token.seq).await;
    assert_equal(&master, &slave).await;
    Ok(())
}

async fn copy_of(store: &Store) -> Store {
    let (source, copy) = (store.inner().open_again(), MemoryStore::new());
    let mut writes = WriteSet::builder();
    for keyspace in Keyspace::ALL {
        for (key, value) in entries(&source, keyspace).await {
            writes.put(keyspace, &key, &value).unwrap();
        }
    }
    copy.apply(writes.build(), Durability::Synced).await.unwrap();
    FaultStore::new(copy)
}

// Two masters of one history: one is a copy of the other, made while neither was open. Nothing about a comparison
// belongs to a connection or to a parent.
#[tokio::test]
async fn a_comparison_goes_on_at_another_parent_of_the_same_history() -> Result<(), Error> {
    let mut rng = rng("a_comparison_goes_on_at_another_parent_of_the_same_history");
    let source = store_with(ENTRIES).await;
    let first = master(&source, config()).await;
    let held = followed(&first, "edge").await;
    let slave = slave(&held, "edge").await;
    trim_past(&first, position(&slave), &mut rng).await;
    first.shutdown().await?;
    let second = copy_of(&source).await;
    let first = master(&FaultStore::new(source.inner().open_again()), config().compare_bytes_per_second(100_000)).await;
    let (_serving, following) = connect(&first, &slave);
    until(|| slave.status().state == SlaveState::Comparing).await;
    // Some of it is covered when the connection ends.
    let link = replikv_core::LinkId::default();
    soon(async {
        while held.cursor(&link).await.unwrap().is_none_or(|cursor| cursor.coverage.ranges().is_empty()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    following.abort();
    drop(following.await);
    let covered = held.cursor(&link).await?.ok_or("no cursor")?;
    assert!(!covered.coverage.is_complete());
    let second = master(&second, config()).await;
    let (here, there) = tokio::io::duplex(64 << 10);
    let (_serving, _following) = (serve(&second, there), follow(&slave, here));
    soon(slave.wait_caught_up()).await?;
    assert_equal(&second, &slave).await;
    assert_eq!(slave.status().comparisons, 1, "it went on, and began no other");
    Ok(())
}

#[tokio::test]
async fn a_slave_that_parted_before_the_log_began_is_refused_and_keeps_what_it_has() -> Result<(), Error> {
    let mut rng = rng("a_slave_that_parted_before_the_log_began_is_refused_and_keeps_what_it_has");
    let source = store_with(100).await;
    let master = master(&source, config()).await;
    let backup = copy_of(&source).await;
    // Past a checkpoint of its own, in a history that the restored master never had.
    for _ in 0..300 {
        master.write(batch(&mut rng)).await?;
    }
    let held = followed(&master, "edge").await;
    let before = contents(&held).await;
    let restored = support::master(&backup, config()).await;
    let slave = slave(&held, "edge").await;
    trim_past(&restored, position(&slave), &mut rng).await;
    match soon(connect(&restored, &slave).1).await? {
        Err(FollowError::Refused(refusal)) => assert_eq!(refusal.code, RejectCode::Diverged),
        other => panic!("{other:?}"),
    }
    assert!(contents(&held).await == before);
    Ok(())
}

#[tokio::test]
async fn a_range_delete_over_what_is_being_compared_takes_what_it_should() -> Result<(), Error> {
    let mut rng = rng("a_range_delete_over_what_is_being_compared_takes_what_it_should");
    let master = master(&store_with(ENTRIES).await, config().compare_bytes_per_second(150_000)).await;
    let held = followed(&master, "edge").await;
    let slave = slave(&held, "edge").await;
    trim_past(&master, position(&slave), &mut rng).await;
    let (_serving, _following) = connect(&master, &slave);
    until(|| slave.status().state == SlaveState::Comparing).await;
    for n in 0..8u32 {
        let (from, to) = (n * 500 + 100, n * 500 + 400);
        master.write(Batch::new().delete_range(from.to_be_bytes()..to.to_be_bytes()).put([0xEE, n as u8], "")).await?;
        tokio::task::yield_now().await;
    }
    assert_eq!(slave.status().state, SlaveState::Comparing, "all of it fell into the comparison");
    let token = master.write(Batch::new().delete_range(KeyRange::prefix([0xEE, 3]))).await?;
    catch_up_or_go_on(&master, &slave, token.seq).await;
    assert_equal(&master, &slave).await;
    Ok(())
}

// The connection that is there may be told that its records are gone.
async fn catch_up_or_go_on(master: &Master<Store>, slave: &Slave<Store>, seq: Seq) {
    let connected = slave.wait_applied(seq);
    tokio::pin!(connected);
    soon(async {
        loop {
            tokio::select! {
                biased;
                applied = &mut connected => return applied.unwrap(),
                () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {
                    if !slave.subscribe().borrow().connected {
                        connect(master, slave);
                    }
                }
            }
        }
    })
    .await;
}

// Else a slave whose master's disk is slow gives up before its welcome, comes back, and has the data counted again.
#[tokio::test(start_paused = true)]
async fn a_slave_does_not_wait_long_for_what_only_tells_which_way_is_cheaper() -> Result<(), Error> {
    let source = store();
    let master = master(&source, MasterConfig::default()).await;
    // Much more log than data: if that were known, the slave would copy.
    for round in 0..4 {
        master.put("k", vec![round; 1 << 20]).await?;
    }
    let held = source.faults().hold_read(Keyspace::Data);
    let (first, second) = (slave(&store(), "first").await, slave(&store(), "second").await);
    let first_ends = connect(&master, &first);
    soon(first.wait_caught_up()).await?;
    assert!(held.is_reached(), "the data was looked at");
    // Nor is it counted for each of them.
    let again = source.faults().hold_read(Keyspace::Data);
    let second_ends = connect(&master, &second);
    soon(second.wait_caught_up()).await?;
    assert!(!again.is_reached(), "what is known is known for a while");
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    let third = slave(&store(), "third").await;
    let third_ends = connect(&master, &third);
    soon(third.wait_caught_up()).await?;
    assert!(again.is_reached(), "it is looked at again");
    assert_equal(&master, &third).await;
    for (_, following) in [first_ends, second_ends, third_ends] {
        following.abort();
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn data_is_not_counted_if_the_store_says_that_there_is_far_more_than_matters() -> Result<(), Error> {
    let source = store();
    let mut writes = WriteSet::builder();
    for n in 0..32_u8 {
        writes.put(Keyspace::Data, [n], vec![n; 1 << 20])?;
    }
    source.apply(writes.build(), Durability::Synced).await?;
    let master = master(&source, MasterConfig::default()).await;
    let slave = slave(&followed(&master, "edge").await, "edge").await;
    // Enough to ask which way is cheaper: much of the log, and little of the data.
    for round in 0..10 {
        master.put([0], vec![round; 1 << 20]).await?;
    }
    let held = source.faults().hold_read(Keyspace::Data);
    let (_serving, following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert!(!held.is_reached(), "the data was counted");
    assert_eq!((slave.status().copies, slave.status().comparisons), (0, 0));
    following.abort();
    Ok(())
}

// A page of the slave's own data ends somewhere between these entries: where it does, nothing of it differs, and all that
// differs lies behind it.
#[tokio::test]
async fn what_a_slave_holds_behind_a_page_of_its_own_is_compared_too() -> Result<(), Error> {
    const LARGE: usize = 16 << 10;
    for kept in 12..20_u32 {
        let inner = MemoryStore::new();
        let mut writes = WriteSet::builder();
        for n in 0..40_u32 {
            writes.put(Keyspace::Data, n.to_be_bytes(), [7; LARGE])?;
        }
        inner.apply(writes.build(), Durability::Synced).await?;
        let master = master(&FaultStore::new(inner), config()).await;
        let slave = slave(&followed(&master, "edge").await, "edge").await;
        until(|| master.forget(replikv_proto::SlotKind::Slave, "edge")).await;
        let mut token = master.write(Batch::new().delete_range(kept.to_be_bytes()..)).await?;
        // The log goes on, and the data stays as it is.
        soon(async {
            while master.status().floor.seq <= token.seq {
                master.write(Batch::new().note([1; 3_000])).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        })
        .await;
        token = master.write(Batch::new().note("last")).await?;
        catch_up(&master, &slave, token.seq).await;
        assert_equal(&master, &slave).await;
        assert_eq!((slave.status().comparisons, contents(slave.store()).await.len()), (1, kept as usize));
    }
    Ok(())
}
