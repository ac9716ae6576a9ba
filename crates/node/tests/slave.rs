//! A slave, when its master, its store, its connection or its owner fails.

use std::time::Duration;

use crate::support::{
    self, Error, Store, assert_equal, connect, contents, follow, followed, full, master, serve, slave, soon, store,
    store_with, transient,
};
use futures_util::{FutureExt, SinkExt, StreamExt};
use replikv_core::{
    Batch, Coverage, Cursor, Epoch, KeyRange, Keyspace, LinkId, Op, Position, ReplicaStore, ReplicaStoreExt,
    ScanOptions, Seq, SourceId, StoreError, StoreLimits, Token,
};
use replikv_memory::MemoryStore;
use replikv_node::{
    Codec, Ending, FollowError, HealthState, Master, MasterConfig, ServeError, Slave, SlaveConfig, SlaveState,
    WaitError,
};
use replikv_proto::{DecoderLimits, GoodbyeReason, Hello, Message, Mode, OnDivergence, Record, RejectCode, Welcome};
use replikv_testkit::{ApplyFault, FaultStore};
use tokio_util::codec::Framed;

/// Every batch writes all keys with its number: two numbers side by side are half a batch.
fn generation(number: u64) -> Batch {
    (0..12u8).fold(Batch::new(), |batch, key| batch.put([key], number.to_be_bytes()))
}

async fn whole_generation(store: &impl ReplicaStore) -> Option<u64> {
    let page = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await.unwrap();
    let mut values: Vec<_> = page.entries().map(|(_, value)| value).collect();
    assert!(values.is_empty() || values.len() == 12, "{} keys", values.len());
    values.dedup();
    assert!(values.len() < 2, "two generations");
    values.pop().map(|value| u64::from_be_bytes(value[..].try_into().unwrap()))
}

fn broken() -> StoreError {
    StoreError::backend("the disk says no")
}

#[tokio::test]
async fn a_read_error_of_the_master_ends_the_session_and_is_no_delete() -> Result<(), Error> {
    let (source, copy) = (store_with(2_000).await, store());
    let master = master(&source, MasterConfig::default().chunk_bytes(5_000).ring_bytes(0)).await;
    let slave = slave(&copy, "edge").await;
    let mut failures = 0;
    // The copy fails on each of its pages once, then the log on each of its reads.
    loop {
        drop(source.faults().hold_read(Keyspace::Data));
        source.faults().fail_reads(Keyspace::Data, 1, &broken());
        let (serving, following) = connect(&master, &slave);
        tokio::select! {
            served = serving => assert!(matches!(served?, Err(ServeError::Store(StoreError::Backend { .. })))),
            caught_up = slave.wait_caught_up() => {
                caught_up?;
                following.abort();
                drop(following.await);
                break;
            }
        }
        assert!(matches!(soon(following).await??, Ending::Goodbye { .. }), "it may come back");
        assert!(slave.status().state != SlaveState::Following);
        failures += 1;
    }
    assert!(failures > 10, "{failures}");
    source.faults().clear();
    assert_equal(&master, &slave).await;
    for n in 0..20u32 {
        master.put(n.to_be_bytes(), "new").await?;
    }
    let before = contents(&copy).await;
    source.faults().fail_reads(Keyspace::Log, 1, &broken());
    let (serving, following) = connect(&master, &slave);
    assert!(matches!(soon(serving).await?, Err(ServeError::Store(StoreError::Backend { .. }))));
    assert!(matches!(soon(following).await??, Ending::Goodbye { .. }));
    assert!(contents(&copy).await == before);
    connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&master, &slave).await;
    assert_eq!(master.status().health.state, HealthState::Ready, "the master itself is well");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_whose_store_fails_goes_on_at_a_batch_boundary() -> Result<(), Error> {
    let faults = [
        ApplyFault::Refuse(full()),
        ApplyFault::Refuse(broken()),
        ApplyFault::Refuse(transient()),
        ApplyFault::UnknownButApplied,
        ApplyFault::UnknownAndAbsent,
    ];
    for fault in faults {
        let copy = store();
        let master = master(&store(), MasterConfig::default().chunk_bytes(600)).await;
        let config = SlaveConfig::new("edge").group_bytes(1_500);
        let slave = Slave::open(copy.clone(), config).await?;
        let mut failures = 0;
        for round in 0..20u64 {
            let mut token = None;
            for number in 0..10 {
                token = Some(master.write(generation(round * 10 + number)).await?);
            }
            copy.faults().apply_after(round as usize % 3, fault.clone());
            let (_, following) = connect(&master, &slave);
            let mut following = following;
            loop {
                tokio::select! {
                    applied = slave.wait_applied(token.ok_or("nothing was written")?) => {
                        applied?;
                        break;
                    }
                    ended = &mut following => match ended? {
                        Err(error @ FollowError::Store(_)) => {
                            assert!(error.is_retryable(), "{error}");
                            failures += 1;
                            copy.reopen().await?;
                            let cursor = copy.cursor(&LinkId::default()).await?;
                            // The first record begins the epoch; each batch is one record.
                            let stood = cursor.and_then(|cursor| cursor.position.seq.as_u64().checked_sub(2));
                            assert_eq!(whole_generation(&copy).await, stood, "cursor and data");
                            following = connect(&master, &slave).1;
                        }
                        other => panic!("{other:?}"),
                    },
                }
            }
            copy.faults().clear();
            assert_eq!(whole_generation(&copy).await, Some(round * 10 + 9));
            following.abort();
            drop(following.await);
        }
        let retried = matches!(&fault, ApplyFault::Refuse(error) if error.is_retryable());
        // What is kept of the first welcome is tried again with the next connection; what is applied, on this one.
        assert!(if retried { failures <= 1 } else { failures > 5 }, "{fault:?}: {failures}");
    }
    Ok(())
}

#[tokio::test]
async fn of_two_slaves_with_one_name_the_newer_one_is_served() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    let (one, two) = (slave(&store(), "edge").await, slave(&store(), "edge").await);
    let (serving, first) = connect(&master, &one);
    soon(one.wait_caught_up()).await?;
    let (_, second) = connect(&master, &two);
    match soon(first).await?? {
        Ending::Goodbye { reason, words } => assert_eq!(reason, GoodbyeReason::Replaced, "{words}"),
        other => panic!("{other:?}"),
    }
    drop(soon(serving).await?);
    let token = master.put("a", "1").await?;
    soon(two.wait_applied(token)).await?;
    assert_eq!(master.status().slaves.len(), 1, "the older one's end does not remove the newer one");
    assert!(!second.is_finished());
    assert!(one.get("a").await?.is_none());
    assert_eq!(one.status().health.state, HealthState::Disconnected);
    Ok(())
}

#[tokio::test]
async fn two_slaves_on_one_store_do_not_part_its_data_from_its_cursor() -> Result<(), Error> {
    let copy = store();
    let master = master(&store(), MasterConfig::default()).await;
    let (one, two) = (slave(&copy, "one").await, slave(&copy, "two").await);
    let (first, second) = (connect(&master, &one).1, connect(&master, &two).1);
    for number in 0..50 {
        master.write(generation(number)).await?;
        whole_generation(&copy).await;
    }
    // One of them finds that somebody else moves the cursor, and stops.
    let ended = tokio::select! { ended = first => ended?, ended = second => ended? };
    assert!(matches!(&ended, Err(error @ FollowError::Fenced) if !error.is_retryable()), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn an_empty_master_does_not_wipe_a_full_slave() -> Result<(), Error> {
    let (source, empty) = (MemoryStore::new(), store());
    let own = Master::open(FaultStore::new(source.clone()), MasterConfig::default()).await?;
    // What a backup of the first day holds: the same history, with nothing in it.
    let first_day = MemoryStore::new();
    for keyspace in Keyspace::ALL {
        for (key, value) in support::entries(&source, keyspace).await {
            first_day.apply_one(keyspace, Op::Put { key: &key, value: &value }).await?;
        }
    }
    own.write(generation(1)).await?;
    let full = followed(&own, "edge").await;
    let before = contents(&full).await;
    let strangers = master(&empty, MasterConfig::default()).await;
    let restored = master(&FaultStore::new(first_day), MasterConfig::default()).await;
    for (master, code) in [(strangers, RejectCode::ForeignSource), (restored, RejectCode::SlaveAhead)] {
        let slave = slave(&full, "edge").await;
        match soon(connect(&master, &slave).1).await? {
            Err(error @ FollowError::Refused(_)) => {
                assert!(!error.is_retryable());
                assert!(matches!(error, FollowError::Refused(refusal) if refusal.code == code));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(slave.status().health.state, HealthState::Diverged);
        assert!(contents(&full).await == before);
    }
    Ok(())
}

// A master that offers whatever it is told to.
async fn offer(slave: &Slave<Store>, welcome: Welcome) -> Result<Ending, FollowError> {
    let (here, there) = tokio::io::duplex(64 << 10);
    let following = follow(slave, here);
    let mut master = Framed::new(there, Codec::new(DecoderLimits::default()));
    assert!(matches!(soon(master.next()).await, Some(Ok(Message::Hello(Hello { .. })))));
    master.send(Message::Welcome(welcome)).await.unwrap();
    soon(following).await.unwrap()
}

#[tokio::test]
async fn a_slave_never_lets_itself_be_wiped_whatever_a_master_offers() -> Result<(), Error> {
    let own = master(&store(), MasterConfig::default()).await;
    own.write(generation(1)).await?;
    let full = followed(&own, "edge").await;
    let before = contents(&full).await;
    let slave = slave(&full, "edge").await;
    let head = own.status().published;
    let copy = Welcome {
        source: own.source(),
        epochs: Vec::new(),
        head,
        floor: head,
        limits: own.limits(),
        mode: Mode::Copy { from: head },
        heartbeat_ms: 1000,
        log_bytes: 0,
        behind_bytes: 0,
        verifies: false,
        path: Vec::new(),
        checkpoints: Vec::new(),
    };
    let source = SourceId::from_bytes([9; 16]);
    let elsewhere = Position { source, ..head };
    let foreign = Welcome { source, head: elsewhere, floor: elsewhere, mode: Mode::Resume, ..copy.clone() };
    let greedy = StoreLimits { max_key: usize::MAX, ..own.limits() };
    let large = Welcome { limits: greedy, mode: Mode::Resume, ..copy.clone() };
    let offers =
        [(copy, RejectCode::NeedsCompare), (foreign, RejectCode::ForeignSource), (large, RejectCode::LimitsTooSmall)];
    for (welcome, code) in offers {
        match offer(&slave, welcome).await {
            Err(FollowError::Refused(refusal)) => assert_eq!(refusal.code, code),
            other => panic!("{other:?}"),
        }
        assert!(contents(&full).await == before);
    }
    Ok(())
}

#[tokio::test]
async fn a_slave_that_dies_in_mid_copy_goes_on_where_it_was() -> Result<(), Error> {
    let (source, mut copy) = (store_with(3_000).await, store());
    let master = master(&source, MasterConfig::default().chunk_bytes(5_000)).await;
    let (mut deaths, mut copied) = (0, 0);
    let slave = loop {
        let slave = Slave::open(copy.clone(), SlaveConfig::new("edge").group_bytes(5_000)).await?;
        // Where it dies: in the sixth group of each life.
        copy.faults().pass_applies(5);
        let held = copy.faults().hold_apply();
        let (serving, following) = connect(&master, &slave);
        tokio::select! {
            caught_up = slave.wait_caught_up() => {
                caught_up?;
                break slave;
            }
            () = held.reached() => {}
        }
        copy = copy.power_loss().await?;
        assert!(soon(following).await?.is_err());
        drop(soon(serving).await?);
        deaths += 1;
        let there = contents(&copy).await.len();
        assert!(there > copied, "{there} entries after {copied}");
        copied = there;
        copy.faults().clear();
        // What is written while it is away arrives as well, on either side of where the copy stands.
        for n in [deaths, 2_900] {
            master
                .write(Batch::new().put(u32::to_be_bytes(n), deaths.to_string()).delete(u32::to_be_bytes(n + 50)))
                .await?;
        }
    };
    assert!(deaths > 5, "{deaths}");
    soon(slave.wait_applied(master.status().published.seq)).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}

// Time is simulated: a pause lets everything happen that can.
#[tokio::test(start_paused = true)]
async fn a_stalled_slave_is_read_for_no_further_and_slows_nobody_down() -> Result<(), Error> {
    const CHUNK: usize = 10_000;
    let source = store();
    // Nothing in memory: what is read for a slave is read from the store, where it is counted.
    let config = MasterConfig::default().ring_bytes(0).chunk_bytes(CHUNK).heartbeat(Duration::from_secs(24 * 3600));
    let master = master(&source, config).await;
    for n in 0..1_000u32 {
        master.put(n.to_be_bytes(), [1; 1_000]).await?;
    }
    let (here, there) = tokio::io::duplex(512);
    let stalled = serve(&master, there);
    let mut stream = Framed::new(here, Codec::new(DecoderLimits::for_batches(1 << 20)));
    let origin = replikv_proto::origin(master.source(), Epoch { number: 1, nonce: 0 });
    let limits = StoreLimits { max_key: 1 << 16, max_value: 1 << 30, max_batch: 1 << 30 };
    let hello = Hello {
        slave: "stalled".into(),
        nonce: 1,
        cursor: Some(Cursor { position: origin, coverage: Coverage::default() }),
        holds_data: false,
        checkpoints: Vec::new(),
        limits,
        ranges: Vec::new(),
        path: Vec::new(),
        temporary: false,
        on_divergence: OnDivergence::Refuse,
    };
    let before = source.faults().calls().scans;
    stream.send(Message::Hello(hello)).await?;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let read = source.faults().calls().scans - before;
    assert!((1..=(64 << 10) / CHUNK as u64 + 3).contains(&read), "{read} chunks wait for a slave that does not read");

    let fast = slave(&store(), "fast").await;
    connect(&master, &fast);
    let mut token = None;
    for n in 0..1_000u32 {
        token = Some(master.put(n.to_be_bytes(), [2; 1_000]).await?);
    }
    let token = token.ok_or("nothing was written")?;
    soon(fast.wait_applied(token)).await?;
    assert_equal(&master, &fast).await;
    let status = master.status();
    assert_eq!(status.slaves.iter().find(|slave| slave.name == "stalled").map(|slave| slave.applied.as_u64()), Some(0));
    // Once it reads, nothing is missing.
    let (mut at, mut welcomed) = (origin, false);
    while at.seq < token.seq {
        match soon(stream.next()).await.ok_or("the stream has ended")?? {
            Message::Welcome(_) => welcomed = true,
            Message::Records(records) => {
                for mut part in records.parts {
                    while !part.is_empty() {
                        let record = Record::take(&mut part)?;
                        record.header().verify_after(&at)?;
                        at = record.position();
                    }
                }
            }
            Message::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(welcomed && !stalled.is_finished());
    Ok(())
}

#[tokio::test]
async fn a_shutdown_is_told_to_the_other_side() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    let (one, two) = (slave(&store(), "one").await, slave(&store(), "two").await);
    let ((serving_one, following_one), (serving_two, following_two)) = (connect(&master, &one), connect(&master, &two));
    let token = master.put("a", "1").await?;
    soon(one.wait_applied(token)).await?;
    soon(two.wait_applied(token)).await?;
    one.shutdown().await?;
    assert_eq!(soon(following_one).await??, Ending::Shutdown);
    assert!(matches!(soon(serving_one).await??, Ending::Goodbye { reason: GoodbyeReason::Closing, .. }));
    assert_eq!(one.status().health.state, HealthState::Stopped);
    master.shutdown().await?;
    assert!(matches!(soon(following_two).await??, Ending::Goodbye { reason: GoodbyeReason::Closing, .. }));
    assert_eq!(soon(serving_two).await??, Ending::Shutdown);
    assert_eq!(two.status().health.state, HealthState::Disconnected);
    Ok(())
}

#[tokio::test]
async fn a_follow_that_is_dropped_in_mid_apply_is_decided_before_the_next_one_begins() -> Result<(), Error> {
    for visible in [false, true] {
        let copy = store();
        let master = master(&store(), MasterConfig::default()).await;
        let slave = slave(&copy, "edge").await;
        let mut token = master.write(generation(0)).await?;
        for number in 1..20 {
            let held = if visible { copy.faults().hold_apply_visible() } else { copy.faults().hold_apply() };
            let (serving, following) = connect(&master, &slave);
            soon(held.reached()).await;
            following.abort();
            drop(following.await);
            drop(soon(serving).await?);
            // A second connection waits for the write set of the first one.
            let (_, again) = connect(&master, &slave);
            tokio::task::yield_now().await;
            assert!(!again.is_finished());
            held.release();
            soon(slave.wait_applied(token)).await?;
            assert_eq!(whole_generation(&copy).await, Some(number - 1));
            again.abort();
            drop(again.await);
            token = master.write(generation(number)).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_follow_that_is_dropped_leaves_a_slave_that_knows_it_is_alone() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    let slave = slave(&store(), "edge").await;
    let (_, following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    following.abort();
    drop(following.await);
    let status = slave.status();
    assert_eq!((status.health.state, status.lag), (HealthState::Disconnected, None));
    assert!(slave.wait_caught_up().now_or_never().is_none());
    Ok(())
}

#[tokio::test]
async fn only_one_connection_is_followed_at_a_time() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    let slave = slave(&store(), "edge").await;
    let (_, first) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    let (here, _there) = tokio::io::duplex(1024);
    let second = soon(slave.follow(here)).await;
    assert!(matches!(second, Err(FollowError::AlreadyFollowing)), "{second:?}");
    let token = master.put("a", "1").await?;
    soon(slave.wait_applied(token)).await?;
    assert!(!first.is_finished());
    Ok(())
}

#[tokio::test]
async fn waiting_for_somebody_elses_write_says_so() -> Result<(), Error> {
    let (own, other) =
        (master(&store(), MasterConfig::default()).await, master(&store(), MasterConfig::default()).await);
    let slave = slave(&store(), "edge").await;
    connect(&own, &slave);
    let token = own.put("a", "1").await?;
    soon(slave.wait_applied(token)).await?;
    let foreign = other.put("a", "1").await?;
    assert_eq!(soon(slave.wait_applied(foreign)).await, Err(WaitError::ForeignSource));
    // A token of this history that never was: another master wrote under the same epoch number.
    let usurped = Token { epoch: Epoch { nonce: token.epoch.nonce ^ 1, ..token.epoch }, ..token };
    assert_eq!(soon(slave.wait_applied(usurped)).await, Err(WaitError::Superseded));
    let late = Token { seq: Seq::new(token.seq.as_u64() + 1), ..token };
    assert!(slave.wait_applied(late).now_or_never().is_none(), "it may still come");
    let waiting = tokio::spawn({
        let slave = slave.clone();
        async move { slave.wait_applied(late).await }
    });
    tokio::task::yield_now().await;
    slave.shutdown().await?;
    assert_eq!(soon(waiting).await?, Err(WaitError::Closed));
    Ok(())
}

#[tokio::test]
async fn however_much_one_message_may_aim_for_slaves_take_it() -> Result<(), Error> {
    let limits = StoreLimits { max_key: 100, max_value: 100_000, max_batch: 200_000 };
    let config = MasterConfig::default().limits(limits).chunk_bytes(usize::MAX).ring_bytes(0);
    let master = master(&store(), config).await;
    // Twice as much as slaves have room for.
    let fill = async |with: u8| {
        for n in 0..90u8 {
            master.put([n], vec![with; 99_000]).await?;
        }
        Ok::<_, Error>(())
    };
    fill(1).await?;
    let copy = followed(&master, "edge").await;
    fill(2).await?;
    // From the log, which is longer than the data by now, and the other one a page at a time.
    for (copy, name) in [(copy, "edge"), (store(), "new")] {
        let slave = slave(&copy, name).await;
        let (_, _following) = connect(&master, &slave);
        soon(slave.wait_caught_up()).await?;
        assert_equal(&master, &slave).await;
    }
    Ok(())
}
