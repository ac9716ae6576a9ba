//! A slave that subscribes to key ranges: it gets these, and nothing of any other key leaves the master.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::support::{
    self, Contents, Error, Following, Serving, Store, contents, copy_of, full, master, serve, soon, store, store_with,
    until,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use replikv_core::{
    Batch, DataReader, KeyRange, KeyRanges, Keyspace, Op, ReplicaStoreExt, ScanOptions, Seq, StoreError,
};
use replikv_node::{
    BalanceConfig, BalancedReader, ChangeOp, ChangesFrom, Commit, Displaced, FollowError, HandoverError, KeepLog,
    Master, MasterConfig, OpenError, PromoteError, Quarantine, ReadError, Reader, Resync, Slave, SlaveConfig,
    SlaveState, TakeOverError, VerifyOptions, WriteError, backup, subscription,
};
use replikv_proto::{
    Compaction, Decoder, DecoderLimits, Event, Heartbeat, InvalidSubscription, Message, Passage, RejectCode, Retention,
};
use replikv_testkit::{ApplyFault, FaultStore};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// What is in every key and value that no slave subscribes to.
const SECRET: &[u8] = b"SECRET";

/// Everything that a slave has received.
#[derive(Debug, Clone, Default)]
struct Received(Arc<Mutex<Vec<u8>>>);

impl Received {
    /// How often a value of this range was received since the last look.
    fn take(&self, marker: &str) -> usize {
        let bytes = self.0.lock().unwrap();
        bytes.windows(marker.len()).filter(|window| *window == marker.as_bytes()).count()
    }

    fn forget(&self) {
        self.0.lock().unwrap().clear();
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    #[track_caller]
    fn holds_no_secret(&self) {
        let bytes = self.0.lock().unwrap();
        let found = bytes.windows(SECRET.len()).position(|window| window == SECRET);
        assert_eq!(found, None, "what a slave does not subscribe to was sent to it, of {} bytes", bytes.len());
    }
}

/// A connection whose slave's side writes down what it receives.
struct Tapped(DuplexStream, Received);

impl AsyncRead for Tapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(cx, buf);
        self.1.0.lock().unwrap().extend_from_slice(&buf.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn connect(master: &Master<Store>, slave: &Slave<Store>, received: &Received) -> (Serving, Following) {
    let (here, there) = tokio::io::duplex(64 << 10);
    let (slave, here) = (slave.clone(), Tapped(here, received.clone()));
    (serve(master, there), tokio::spawn(async move { slave.follow(here).await }))
}

/// Quick heartbeats: where nothing touches its ranges, a slave hears how far it is with these.
fn config() -> MasterConfig {
    MasterConfig::default().heartbeat(Duration::from_millis(20))
}

fn prefixes(prefixes: &[&str]) -> KeyRanges {
    prefixes.iter().map(KeyRange::prefix).collect()
}

async fn open(store: &Store, ranges: KeyRanges) -> Result<Slave<Store>, OpenError> {
    Slave::open(store.clone(), SlaveConfig::new("edge").subscribe(ranges)).await
}

/// The same store, as another process would open it.
fn again(store: &Store) -> Store {
    FaultStore::new(store.inner().open_again())
}

async fn within(master: &Master<Store>, ranges: &KeyRanges) -> Contents {
    contents(master.store()).await.into_iter().filter(|(key, _)| ranges.contains(key)).collect()
}

async fn assert_holds(master: &Master<Store>, slave: &Slave<Store>, ranges: &KeyRanges) {
    assert_eq!(slave.ranges(), ranges);
    assert!(contents(slave.store()).await == within(master, ranges).await, "it does not hold what it subscribes to");
}

/// Follows until everything is there, and ends.
async fn catch_up(master: &Master<Store>, slave: &Slave<Store>, received: &Received) -> Result<(), Error> {
    let seq = master.status().published.seq;
    loop {
        let (serving, mut following) = connect(master, slave, received);
        let done = tokio::select! {
            biased;
            end = &mut following => {
                // The log was trimmed meanwhile, say.
                end??;
                false
            }
            caught_up = soon(async {
                slave.wait_applied(seq).await?;
                slave.wait_caught_up().await
            }) => {
                caught_up?;
                true
            }
        };
        following.abort();
        drop(soon(serving).await);
        if done {
            return Ok(());
        }
    }
}

fn rng(test: &str) -> fastrand::Rng {
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_128);
    println!("reproduce: REPLIKV_SEED={seed} cargo test -p replikv-node --all-features --test node filters::{test}");
    fastrand::Rng::with_seed(seed)
}

/// Two prefixes that may be subscribed to, and keys around them, all of which hold a secret.
fn key(rng: &mut fastrand::Rng) -> String {
    let number = rng.u32(..60);
    match rng.u8(..8) {
        0..=2 => format!("c/{number:02}"),
        3..=4 => format!("m/{number:02}"),
        5 => format!("a/SECRET{number:02}"),
        6 => format!("f/SECRET{number:02}"),
        _ => format!("z/SECRET{number:02}"),
    }
}

fn batch(rng: &mut fastrand::Rng) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..rng.usize(1..5) {
        let key = key(rng);
        let open = key.starts_with("c/") || key.starts_with("m/");
        let value = format!("{}{}", if open { "open" } else { "SECRET" }, "x".repeat(rng.usize(..300)));
        batch = match rng.u8(..12) {
            0 => {
                let other = self::key(rng);
                batch.delete_range(key.clone().min(other.clone())..key.max(other))
            }
            1 => batch.delete_range(KeyRange::from_bounds(key..)),
            2..=3 => batch.delete(key),
            _ => batch.put(key, value),
        };
    }
    batch
}

#[tokio::test]
async fn nothing_outside_its_ranges_reaches_a_slave_by_any_way() -> Result<(), Error> {
    let compaction = Compaction { window_bytes: 2_000, window_records: 10 };
    let by_touches = goes_every_way(config().compaction(compaction).ring_bytes(1_000), true).await?;
    assert!(by_touches.status().compacted.is_some());
    // Behind the log, without any.
    let retention = Retention { max_bytes: 20_000, max_age_ms: None, hold_back_bytes: 0 };
    let by_comparing = goes_every_way(config().retention(retention).ring_bytes(1_000), false).await?;
    assert!(by_comparing.status().compacted.is_none() && by_comparing.status().floor.seq > Seq::new(1_000));
    Ok(())
}

async fn goes_every_way(config: MasterConfig, compacts: bool) -> Result<Master<Store>, Error> {
    let mut rng = rng("nothing_outside_its_ranges_reaches_a_slave_by_any_way");
    let ranges = prefixes(&["c/", "m/"]);
    let received = Received::default();
    let source = store();
    for n in 0..300 {
        let key = key(&mut rng);
        let value = if key.contains("SECRET") { format!("SECRET{n}") } else { format!("open{n}") };
        support::put_raw(&source, Keyspace::Data, key.as_bytes(), value.as_bytes()).await?;
    }
    let master = master(&source, config.chunk_bytes(2_000)).await;
    let held = store();
    let slave = open(&held, ranges.clone()).await?;
    // A copy, while writes go on.
    let (serving, following) = connect(&master, &slave, &received);
    for _ in 0..100 {
        master.write(batch(&mut rng)).await?;
        tokio::task::yield_now().await;
    }
    soon(slave.wait_applied(master.status().published.seq)).await?;
    assert_holds(&master, &slave, &ranges).await;
    // Proof that they are equal, of what it subscribes to; also where an entry is wrong, and its neighbours are asked for.
    held.apply_one(Keyspace::Data, Op::Put { key: b"c/30", value: b"wrong" }).await?;
    let report = soon(slave.verify(VerifyOptions::default().repair().chunk_bytes(500))).await?;
    assert_eq!((report.different, report.repaired), (1, 1), "{report:?}");
    following.abort();
    drop(soon(serving).await);
    // Touches, records and, behind the log, comparisons.
    for round in 0..12 {
        for _ in 0..[30, 400, 120][round % 3] {
            master.write(batch(&mut rng)).await?;
        }
        let stands = slave.status().position.map_or(Seq::ZERO, |position| position.seq);
        match compacts {
            // What it lacks is no longer there in full.
            true if round % 3 == 1 => {
                let begins = || master.status().compacted.is_some_and(|compacted| compacted.position.seq > stands);
                until(begins).await;
            }
            // Nor is it there at all.
            false if round % 3 == 1 => {
                while master.status().floor.seq <= stands {
                    master.write(batch(&mut rng)).await?;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            _ => {}
        }
        catch_up(&master, &slave, &received).await?;
        assert_holds(&master, &slave, &ranges).await;
    }
    let status = slave.status();
    assert!(compacts || status.comparisons > 0, "{status:?}");
    received.holds_no_secret();
    assert!(received.take("open") > 100, "{} values were sent", received.take("open"));
    Ok(master)
}

#[tokio::test]
async fn a_set_that_grows_shrinks_or_is_replaced_costs_what_is_new() -> Result<(), Error> {
    let source = store();
    for prefix in ["a", "b", "c", "d"] {
        for n in 0..50 {
            let (key, value) = (format!("{prefix}/{n:02}"), format!("<{prefix}>"));
            support::put_raw(&source, Keyspace::Data, key.as_bytes(), value.as_bytes()).await?;
        }
    }
    let master = master(&source, config()).await;
    let received = Received::default();
    let mut held = store();
    let mut seen = Vec::new();
    for wanted in [&["a/", "b/"][..], &["a/", "b/", "c/"], &["b/"], &["c/", "d/"], &[""]] {
        let ranges = prefixes(wanted);
        let slave = open(&held, ranges.clone()).await?;
        catch_up(&master, &slave, &received).await?;
        assert_holds(&master, &slave, &ranges).await;
        seen.push(["<a>", "<b>", "<c>", "<d>"].map(|marker| received.take(marker)));
        received.forget();
        assert_eq!(subscription(slave.store()).await?, (!ranges.is_all()).then_some(ranges));
        slave.shutdown().await?;
        held = again(&held);
    }
    // Each time what is new was sent, and nothing else.
    assert_eq!(seen, [[50, 50, 0, 0], [0, 0, 50, 0], [0; 4], [0, 0, 50, 50], [50, 50, 0, 0]]);
    Ok(())
}

#[tokio::test]
async fn a_slave_that_is_told_nothing_keeps_the_set_that_it_had() -> Result<(), Error> {
    let master = master(&store_with(10).await, config()).await;
    let mut held = store();
    let ranges = KeyRanges::from(KeyRange::from_bounds(5u32.to_be_bytes()..));
    for say in [true, false, false] {
        let config = SlaveConfig::new("edge");
        let slave = Slave::open(held.clone(), if say { config.subscribe(ranges.clone()) } else { config }).await?;
        catch_up(&master, &slave, &Received::default()).await?;
        assert_holds(&master, &slave, &ranges).await;
        assert_eq!(slave.status().ranges, Some(ranges.clone()));
        slave.shutdown().await?;
        held = again(&held);
    }
    Ok(())
}

#[tokio::test]
async fn a_change_of_the_set_that_dies_at_any_step_is_gone_on_with() -> Result<(), Error> {
    let source = store_with(10_000).await;
    let master = master(&source, config()).await;
    let low = KeyRanges::from(KeyRange::from_bounds(..9_000u32.to_be_bytes()));
    let high = KeyRanges::from(KeyRange::from_bounds(8_500u32.to_be_bytes()..));
    let slave_store = store();
    let slave = open(&slave_store, low.clone()).await?;
    catch_up(&master, &slave, &Received::default()).await?;
    slave.shutdown().await?;
    let mut died = 0;
    for step in 0.. {
        for (fault, back) in [(ApplyFault::Refuse(full()), false), (ApplyFault::UnknownButApplied, true)] {
            let held = copy_of(&again(&slave_store)).await;
            held.faults().apply_after(step, fault);
            let opened = open(&held, high.clone()).await;
            died += usize::from(opened.is_err());
            drop(opened);
            held.faults().clear();
            // Whoever opens it next goes on, or goes back.
            let ranges = if back && step % 2 == 0 { &low } else { &high };
            let slave = open(&again(&held), ranges.clone()).await?;
            catch_up(&master, &slave, &Received::default()).await?;
            assert_holds(&master, &slave, ranges).await;
        }
        if step > 6 {
            break;
        }
    }
    assert!(died >= 8, "it died {died} times");
    Ok(())
}

#[tokio::test]
async fn a_copy_of_new_ranges_that_is_cut_goes_on_and_changes_with_the_set() -> Result<(), Error> {
    let mut rng = rng("a_copy_of_new_ranges_that_is_cut_goes_on_and_changes_with_the_set");
    let source = store_with(3_000).await;
    let master = master(&source, config().chunk_bytes(3_000)).await;
    let mut held = store();
    for _ in 0..25 {
        let bound = |rng: &mut fastrand::Rng| rng.u32(..3_500).to_be_bytes();
        let ranges: KeyRanges =
            (0..rng.usize(1..4)).map(|_| KeyRange::from_bounds(bound(&mut rng)..bound(&mut rng))).collect();
        if ranges.is_empty() {
            continue;
        }
        let slave = open(&held, ranges.clone()).await?;
        if rng.bool() {
            catch_up(&master, &slave, &Received::default()).await?;
            assert_holds(&master, &slave, &ranges).await;
        } else {
            let (serving, following) = connect(&master, &slave, &Received::default());
            for _ in 0..rng.u8(..20) {
                let key = bound(&mut rng);
                master.write(Batch::new().put(key, "new").delete(bound(&mut rng))).await?;
                tokio::task::yield_now().await;
            }
            following.abort();
            drop(soon(serving).await);
        }
        slave.shutdown().await?;
        held = again(&held);
        assert!(contents(&held).await.iter().all(|(key, _)| ranges.contains(key)), "it holds what it never wanted");
    }
    let slave = open(&held, KeyRanges::all()).await?;
    catch_up(&master, &slave, &Received::default()).await?;
    assert_holds(&master, &slave, &KeyRanges::all()).await;
    Ok(())
}

#[tokio::test]
async fn quiet_batches_cost_a_slave_no_message() -> Result<(), Error> {
    let source = store();
    // Nothing is told by heartbeats.
    let master = master(&source, MasterConfig::default().heartbeat(Duration::from_secs(3600))).await;
    let (received, held) = (Received::default(), store());
    let slave = open(&held, prefixes(&["loud/"])).await?;
    let (_serving, _following) = connect(&master, &slave, &received);
    let first = master.put("loud/1", "1").await?;
    soon(slave.wait_applied(first)).await?;
    let settled = || master.status().slaves.iter().all(|seen| seen.consistent && seen.applied == first.seq);
    until(settled).await;
    received.forget();
    for n in 0..2_000 {
        master.put(format!("quiet/{n}"), "SECRET").await?;
    }
    assert_eq!(received.len(), 0, "2,000 batches that touch nothing, and something was sent");
    let loud = master.put("loud/2", "2").await?;
    soon(slave.wait_applied(loud)).await?;
    assert!(received.len() < 1_500, "{} bytes", received.len());
    received.holds_no_secret();
    assert_eq!(slave.status().position.map(|position| position.seq), Some(loud.seq));
    // The chain of checkpoints is as whole as any other slave's.
    let checkpoints = support::entries(&held, Keyspace::Meta).await;
    let count = checkpoints.iter().filter(|(key, _)| key.starts_with(b"checkpoint/")).count();
    assert_eq!(count as u64, loud.seq.as_u64() / 256);
    Ok(())
}

#[tokio::test]
async fn where_nothing_touches_its_ranges_a_slave_hears_how_far_it_is_with_the_heartbeat() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let held = store();
    let slave = open(&held, prefixes(&["loud/"])).await?;
    let (_serving, _following) = connect(&master, &slave, &Received::default());
    for n in 0..300 {
        let token = master.put(format!("quiet/{n}"), "1").await?;
        if n % 100 == 0 {
            soon(slave.wait_applied(token)).await?;
        }
    }
    soon(slave.wait_caught_up()).await?;
    until(|| slave.status().state == SlaveState::Following).await;
    assert_eq!(slave.status().lag.map(|lag| lag.bytes), Some(0));
    assert!(contents(&held).await.is_empty());
    Ok(())
}

#[tokio::test]
async fn reads_outside_its_ranges_say_so() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let token = master.write(Batch::new().put("a/1", "1").put("b/1", "1")).await?;
    let held = store();
    let slave = open(&held, prefixes(&["a/"])).await?;
    let (_serving, _following) = connect(&master, &slave, &Received::default());
    soon(slave.wait_applied(token)).await?;
    let unknown = |error: StoreError| matches!(error, StoreError::NotSubscribed { .. });
    assert_eq!(slave.get("a/1").await?, Some(Bytes::from_static(b"1")));
    assert_eq!(slave.get("a/2").await?, None);
    assert!(slave.get("b/1").await.is_err_and(unknown));
    assert!(slave.get("nowhere").await.is_err_and(unknown));
    assert_eq!(slave.scan(KeyRange::prefix("a/"), ScanOptions::default()).await?.len(), 1);
    assert!(slave.scan(KeyRange::all(), ScanOptions::default()).await.is_err_and(unknown));
    assert!(slave.scan(KeyRange::from_bounds("a/".."b"), ScanOptions::default()).await.is_err_and(unknown));
    assert!(slave.get_data(b"b/1").await.is_err_and(unknown));
    let read = Reader::read(&slave, b"b/1", None).await;
    assert!(matches!(read, Err(ReadError::Store(StoreError::NotSubscribed { .. }))), "{read:?}");
    assert!(slave.changes(ChangesFrom::Now, [KeyRange::prefix("b/")]).await.is_err());

    // Whoever spreads reads gets no wrong answer from it, and its other reads still go there.
    let whole: Arc<dyn Reader> = Arc::new(master.clone());
    let balanced = BalancedReader::new([Arc::new(slave.clone()) as Arc<dyn Reader>, whole], BalanceConfig::default());
    for _ in 0..40 {
        assert_eq!(balanced.get_after(token, "a/1").await?, Some(Bytes::from_static(b"1")));
        assert_eq!(balanced.get_after(token, "b/1").await?, Some(Bytes::from_static(b"1")));
        assert_eq!(balanced.get_data(b"b/2").await?, None);
    }
    let shares = balanced.shares();
    assert!(shares[0].reads > 0 && shares[0].failures == 0, "{shares:?}");
    let patience = BalanceConfig::default().patience(Duration::from_millis(20));
    let alone = BalancedReader::new([Arc::new(slave) as Arc<dyn Reader>], patience);
    let refused = alone.get_after(token, "b/1").await;
    assert!(
        matches!(&refused, Err(ReadError::NobodyWithin { reasons }) if reasons.contains("subscribes")),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn its_changes_are_those_of_its_ranges() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let held = store();
    let slave = open(&held, prefixes(&["a/"])).await?;
    let (_serving, _following) = connect(&master, &slave, &Received::default());
    soon(slave.wait_applied(master.put("a/0", "0").await?)).await?;
    let mut changes = slave.changes(ChangesFrom::Now, []).await?;
    master.put("b/1", "1").await?;
    let token = master.write(Batch::new().put("a/1", "1").put("b/2", "2").delete("a/0")).await?;
    let mut ops = Vec::new();
    while let Some(change) = soon(changes.next()).await {
        let change = change?;
        ops.extend(change.ops());
        if change.position().seq == token.seq {
            break;
        }
    }
    let key = Bytes::from_static;
    let put = ChangeOp::Put { key: key(b"a/1"), value: key(b"1") };
    let delete = ChangeOp::Delete { key: key(b"a/0") };
    ops.sort_by_key(|op| matches!(op, ChangeOp::Delete { .. }));
    assert_eq!(ops, [put, delete]);
    Ok(())
}

#[tokio::test]
async fn it_is_not_promoted_and_vouches_for_nothing() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let held = store();
    let ranges = prefixes(&["a/"]);
    let slave = open(&held, ranges.clone()).await?;
    let (_serving, _following) = connect(&master, &slave, &Received::default());
    let written = master.write(Batch::new().put("a/1", "1")).replicated(1, Duration::from_millis(200)).await;
    assert!(matches!(written, Err(WriteError::NotReplicated { acked: 0, .. })), "{written:?}");
    soon(slave.wait_applied(master.status().published.seq)).await?;
    until(|| master.status().slaves.first().is_some_and(|seen| seen.ranges == Some(ranges.clone()))).await;
    let json = serde_json::to_value(master.status())?;
    assert_eq!(json["slaves"][0]["ranges"], serde_json::json!([{ "start": "a/", "end": "a0" }]));
    let json = serde_json::to_value(slave.status())?;
    assert_eq!(json["ranges"], serde_json::json!([{ "start": "a/", "end": "a0" }]));
    // Its master does not stop in favour of it, and it does not ask for that.
    let refused = master.hand_over("edge", Duration::from_secs(1)).await;
    assert!(matches!(refused, Err(HandoverError::Filtered { .. })), "{refused:?}");
    let nobody = || std::future::ready(Err::<DuplexStream, _>(std::io::Error::other("nobody is to be asked")));
    let refused = slave.take_over(nobody, Duration::from_secs(1)).await;
    assert!(matches!(refused, Err(TakeOverError::Promote(PromoteError::Filtered { .. }))), "{refused:?}");
    master.put("a/2", "2").await?;
    let refused = slave.promote().await;
    assert!(matches!(&refused, Err(PromoteError::Filtered { ranges: held }) if *held == ranges), "{refused:?}");
    // It is a slave as before.
    let slave = open(&again(&held), ranges.clone()).await?;
    catch_up(&master, &slave, &Received::default()).await?;
    assert_holds(&master, &slave, &ranges).await;
    Ok(())
}

#[tokio::test]
async fn sets_that_nobody_can_subscribe_to_are_refused() -> Result<(), Error> {
    let refused = open(&store(), KeyRanges::none()).await;
    assert!(matches!(refused, Err(OpenError::Subscription(InvalidSubscription::Empty))));
    let many = (0..65u8).map(|key| KeyRange::only([key, 1])).collect();
    let refused = open(&store(), many).await;
    assert!(matches!(refused, Err(OpenError::Subscription(InvalidSubscription::TooMany { ranges: 65, .. }))));
    Ok(())
}

#[tokio::test]
async fn a_backup_of_it_goes_on_with_its_ranges_and_one_of_its_master_is_cut_to_them() -> Result<(), Error> {
    let source = store();
    let master = master(&source, config()).await;
    for n in 0..200 {
        master.put(format!("{}/{n}", ["a", "b"][n % 2]), "1").await?;
    }
    let (held, ranges) = (store(), prefixes(&["a/"]));
    let slave = open(&held, ranges.clone()).await?;
    catch_up(&master, &slave, &Received::default()).await?;
    slave.shutdown().await?;
    let copy = store();
    backup(&again(&held), &copy, |_| {}).await?;
    master.put("a/more", "1").await?;
    let slave = Slave::open(copy, SlaveConfig::new("copy")).await?;
    catch_up(&master, &slave, &Received::default()).await?;
    assert_holds(&master, &slave, &ranges).await;

    let copy = store();
    master.backup(&copy, |_| {}).await?;
    master.put("a/again", "1").await?;
    let slave = Slave::open(copy, SlaveConfig::new("cut").from_backup().subscribe(ranges.clone())).await?;
    assert!(contents(slave.store()).await.iter().all(|(key, _)| key.starts_with(b"a/")));
    let received = Received::default();
    catch_up(&master, &slave, &received).await?;
    assert_holds(&master, &slave, &ranges).await;
    assert_eq!(received.take("a/1"), 0, "what was in the backup was sent again");
    Ok(())
}

/// What was lost, by key.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<BTreeMap<Bytes, Bytes>>>);

#[async_trait]
impl Quarantine for Kept {
    async fn keep(&self, _: &Resync, entries: Vec<Displaced>) -> std::io::Result<()> {
        self.0.lock().unwrap().extend(entries.into_iter().map(|Displaced { key, value }| (key, value)));
        Ok(())
    }
}

#[tokio::test]
async fn it_resyncs_within_its_ranges() -> Result<(), Error> {
    let source = store();
    let before = master(&source, config()).await;
    before.write(Batch::new().put("a/1", "1").put("b/SECRET", "SECRET")).await?;
    before.shutdown().await?;
    let image = copy_of(&again(&source)).await;
    let before = master(&again(&source), config()).await;
    let (held, ranges, kept) = (store(), prefixes(&["a/"]), Kept::default());
    let config_of = || SlaveConfig::new("edge").subscribe(prefixes(&["a/"])).resync(kept.clone());
    let slave = Slave::open(held.clone(), config_of()).await?;
    before.put("a/lost", "lost").await?;
    catch_up(&before, &slave, &Received::default()).await?;
    slave.shutdown().await?;
    // Restored from before that, and written to since.
    let restored = master(&image, config()).await;
    for n in 0..5 {
        restored.put(format!("b/SECRET{n}"), "SECRET").await?;
    }
    let slave = Slave::open(again(&held), config_of()).await?;
    let received = Received::default();
    catch_up(&restored, &slave, &received).await?;
    assert_holds(&restored, &slave, &ranges).await;
    assert_eq!(slave.status().resyncs, 1);
    assert_eq!(kept.0.lock().unwrap().keys().collect::<Vec<_>>(), ["a/lost"]);
    received.holds_no_secret();
    Ok(())
}

#[tokio::test]
async fn a_slave_of_everything_keeps_nothing_of_this_in_its_store() -> Result<(), Error> {
    let master = master(&store_with(5).await, config()).await;
    let held = store();
    let slave = open(&held, KeyRanges::all()).await?;
    catch_up(&master, &slave, &Received::default()).await?;
    assert_eq!(subscription(slave.store()).await?, None);
    assert_eq!(slave.status().ranges, None);
    let meta = support::entries(&held, Keyspace::Meta).await;
    assert!(meta.iter().all(|(key, _)| key != "subscription"), "{meta:?}");
    assert!(slave.status().position.is_some_and(|position| position.seq > Seq::ZERO));
    Ok(())
}

#[tokio::test]
async fn a_slave_of_a_part_keeps_no_log_for_others_and_loses_nothing_if_it_is_asked_to() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    master.write(Batch::new().put("a/1", "1").put("b/1", "1")).await?;
    let (held, whole) = (store(), store());
    let ranges = prefixes(&["a/"]);
    let slave = open(&held, ranges.clone()).await?;
    catch_up(&master, &slave, &Received::default()).await?;
    slave.shutdown().await?;
    // Whether it says so, or its store does.
    let keeping = || SlaveConfig::new("edge").keep_log(KeepLog::default());
    for config in [keeping(), keeping().subscribe(ranges.clone())] {
        let opened = Slave::open(again(&held), config).await;
        assert!(matches!(opened, Err(OpenError::NoRelay { .. })), "{opened:?}");
    }
    // One of everything that is told to be both is refused before anything is dropped.
    let slave = Slave::open(whole.clone(), SlaveConfig::new("edge")).await?;
    catch_up(&master, &slave, &Received::default()).await?;
    slave.shutdown().await?;
    let opened = Slave::open(again(&whole), keeping().subscribe(ranges.clone())).await;
    assert!(matches!(opened, Err(OpenError::NoRelay { .. })), "{opened:?}");
    assert_eq!(contents(&again(&whole)).await.len(), 2);
    assert_holds(&master, &open(&again(&held), ranges.clone()).await?, &ranges).await;
    Ok(())
}

#[tokio::test]
async fn a_relay_serves_slaves_of_a_part_from_its_log_and_by_a_copy() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    for n in 0..50u8 {
        master.write(Batch::new().put([b'a', b'/', n], "1").put([b'b', b'/', n], "1")).await?;
    }
    let relay = Slave::open(store(), SlaveConfig::new("relay").keep_log(KeepLog::default())).await?;
    let (_serving, _following) = connect(&master, &relay, &Received::default());
    soon(relay.wait_caught_up()).await?;
    let ranges = prefixes(&["a/"]);
    let leaf = open(&store(), ranges.clone()).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (relay.clone(), leaf.clone());
    tokio::spawn(async move { serving.serve(there).await });
    tokio::spawn(async move { following.follow(here).await });
    for n in 50..100u8 {
        master
            .write(Batch::new().put([b'a', b'/', n], "2").delete_range(KeyRange::prefix([b'b', b'/', n - 50])))
            .await?;
    }
    let token = master.put("a/last", "").await?;
    soon(leaf.wait_applied(token)).await?;
    assert_holds(&master, &leaf, &ranges).await;
    assert_eq!(contents(leaf.store()).await.len(), 101);
    Ok(())
}

#[tokio::test]
async fn what_does_not_concern_a_slave_is_not_read_for_it() -> Result<(), Error> {
    // Nothing is told by heartbeats, and no record stays in memory: whoever looks at one reads the log.
    let (source, config) = (store(), MasterConfig::default().heartbeat(Duration::from_secs(3600)).ring_bytes(0));
    let master = master(&source, config).await;
    let (received, ranges) = (Received::default(), prefixes(&["loud/"]));
    let slave = open(&store(), ranges.clone()).await?;
    let (_serving, _following) = connect(&master, &slave, &received);
    let first = master.put("loud/1", "1").await?;
    soon(slave.wait_applied(first)).await?;
    until(|| master.status().slaves.iter().all(|seen| seen.consistent && seen.applied == first.seq)).await;
    for round in 0..3 {
        let before = source.faults().calls().scans;
        for n in 0..500 {
            master.put(format!("quiet/{n}"), "SECRET").await?;
        }
        let loud = master.put("loud/2", format!("{round}")).await?;
        soon(slave.wait_applied(loud)).await?;
        let looks = source.faults().calls().scans - before;
        // Its own trimming looks as well, now and then.
        assert!(looks < 50, "{looks} looks at the log for one record");
        assert_holds(&master, &slave, &ranges).await;
    }
    received.holds_no_secret();
    Ok(())
}

#[tokio::test]
async fn what_was_shipped_and_lost_is_not_passed_by() -> Result<(), Error> {
    let source = store();
    let commit = Commit::Buffered { sync_every: Duration::from_secs(3600) };
    let master = master(&source, config().commit(commit).ship_unsynced(true)).await;
    let slave = open(&store(), prefixes(&["loud/"])).await?;
    let (serving, following) = connect(&master, &slave, &Received::default());
    let lost = master.put("loud/lost", "1").await?;
    soon(slave.wait_applied(lost)).await?;
    until(|| master.status().slaves.iter().all(|seen| seen.consistent && seen.applied == lost.seq)).await;
    source.faults().next_apply(ApplyFault::UnknownAndUnsyncedLost);
    assert!(matches!(master.put("x", "1").await, Err(WriteError::OutcomeUnknown { .. })));
    // Enough for a run, which proves nothing of what was before it.
    for n in 0..200 {
        soon(master.put(format!("quiet/{n}"), "1")).await?;
    }
    until(|| following.is_finished()).await;
    drop(serving);
    assert_eq!(slave.status().position.map(|position| position.seq), Some(lost.seq));
    let (_serving, following) = connect(&master, &slave, &Received::default());
    let ended = soon(following).await?;
    assert!(matches!(&ended, Err(FollowError::Refused(refusal)) if refusal.code == RejectCode::Diverged), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn with_a_heartbeat_a_slave_hears_how_far_it_is_before_it_hears_how_far_its_master_is() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let (received, slave) = (Received::default(), open(&store(), prefixes(&["loud/"])).await?);
    let (_serving, _following) = connect(&master, &slave, &received);
    let first = master.put("loud/1", "1").await?;
    soon(slave.wait_applied(first)).await?;
    until(|| master.status().slaves.iter().all(|seen| seen.consistent && seen.applied == first.seq)).await;
    let settled = received.len();
    for n in 0..400 {
        master.put(format!("quiet/{n}"), "1").await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let bytes = received.0.lock().unwrap().clone();
    let mut rest = bytes::BytesMut::from(&bytes[..]);
    let mut decoder = Decoder::new(DecoderLimits { data: 1 << 20, control: 1 << 20 });
    let (mut told, mut beats) = (first.seq, 0);
    while let Some(event) = decoder.decode(&mut rest)? {
        let Event::Message(message) = event else { continue };
        match *message {
            Message::Filtered(filtered) => {
                for passage in filtered.passages {
                    told = match passage {
                        Passage::Share(share) => share.header().seq,
                        Passage::Skipped(run) => run.through.seq,
                    };
                }
            }
            Message::Heartbeat(Heartbeat::Source { head, .. }) if bytes.len() - rest.len() > settled => {
                assert_eq!(told, head.seq, "it was told that it lags behind what does not concern it");
                beats += 1;
            }
            _ => {}
        }
    }
    assert!(beats > 3 && told > first.seq, "{beats} heartbeats, the last one at {told}");
    Ok(())
}
