//! On a slave: whatever way entries come and go.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use replikv_core::{Batch, Durability, KeyRange, Keyspace, Op, ReplicaStore, ReplicaStoreExt};
use replikv_node::aggregate::{Aggregate, Count};
use replikv_node::{
    DeriveAbort, DerivedStore, Displaced, Ending, FollowError, HealthState, Master, MasterConfig, Quarantine, Resync,
    Slave, SlaveConfig, VerifyOptions,
};
use replikv_proto::{GoodbyeReason, Retention};
use replikv_testkit::FaultStore;

use crate::kinds::{Kinds, batch, value};
use crate::support::{Error, Following, Serving, Store, contents, put_raw, serve, soon, store};
use crate::{rng, support};

pub(crate) type Deriving = DerivedStore<Store>;

/// Keeps nothing.
#[derive(Debug)]
pub(crate) struct Discard;

#[async_trait]
impl Quarantine for Discard {
    async fn keep(&self, _: &Resync, _: Vec<Displaced>) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn connect<S: ReplicaStore>(master: &Master<Store>, slave: &Slave<S>) -> (Serving, Following) {
    let (here, there) = tokio::io::duplex(64 << 10);
    let slave = slave.clone();
    (serve(master, there), tokio::spawn(async move { slave.follow(here).await }))
}

/// Follows until it has what is published now, however often its connection ends by the way.
pub(crate) async fn catch_up<S: ReplicaStore>(master: &Master<Store>, slave: &Slave<S>) -> Result<(), Error> {
    let seq = master.status().published.seq;
    loop {
        let (serving, mut following) = connect(master, slave);
        let done = tokio::select! {
            end = &mut following => match end? {
                Ok(Ending::Goodbye { reason: GoodbyeReason::Trimmed, .. }) => false,
                other => return Err(format!("{other:?}").into()),
            },
            applied = soon(slave.wait_applied(seq)) => applied.map(|()| true)?,
        };
        following.abort();
        drop(soon(serving).await);
        if done {
            return Ok(());
        }
    }
}

/// Hardly any log, and small pages.
fn small() -> MasterConfig {
    let retention = Retention { max_bytes: 4_000, max_age_ms: None, hold_back_bytes: 0 };
    MasterConfig::default().retention(retention).ring_bytes(1000).chunk_bytes(500)
}

async fn check(kinds: &Kinds, master: &Master<Store>, slave: &Slave<Deriving>, when: &str) {
    let data = contents(slave.store()).await;
    assert_eq!(data, contents(master.store()).await, "{when}");
    kinds.assert_of(slave, &data, when).await;
    let at = kinds.sum.all(slave).await.unwrap().at;
    assert_eq!(at, slave.status().position, "{when}");
}

#[tokio::test]
async fn the_same_by_log_copy_comparison_repair_and_resync() -> Result<(), Error> {
    let mut rng = rng("the_same_by_log_copy_comparison_repair_and_resync");
    let kinds = Kinds::new();
    let source = store();
    for n in 0..300u16 {
        put_raw(&source, Keyspace::Data, &[b'a' + (n % 6) as u8, b'a' + (n % 20) as u8, n as u8], &value(&mut rng))
            .await?;
    }
    let master = support::master(&source, small()).await;
    let held = store();
    // A copy, with writes meanwhile.
    let slave = Slave::open(kinds.on(held.clone()).await, SlaveConfig::new("edge")).await?;
    let (serving, following) = connect(&master, &slave);
    let mut token = master.put("ab", "cd").await?;
    for _ in 0..60 {
        token = master.write(batch(&mut rng)).await?;
        tokio::task::yield_now().await;
    }
    soon(slave.wait_applied(token)).await?;
    check(&kinds, &master, &slave, "after a copy").await;
    // By the log, live.
    for _ in 0..30 {
        token = master.write(batch(&mut rng)).await?;
        soon(slave.wait_applied(token)).await?;
        check(&kinds, &master, &slave, "after a batch").await;
    }
    // Repaired.
    for key in ["ab", "bb", "cc"] {
        slave.store().apply_one(Keyspace::Data, Op::Put { key: key.as_bytes(), value: b"eee" }).await?;
    }
    slave.store().apply_one(Keyspace::Data, Op::DeleteRange { start: b"d", end: Some(b"e") }).await?;
    let report = soon(slave.verify(VerifyOptions::default().repair())).await?;
    assert!(report.repaired > 0, "{report:?}");
    check(&kinds, &master, &slave, "after a repair").await;
    following.abort();
    drop(soon(serving).await);
    soon(slave.shutdown()).await?;
    // Compared, with what it has beside.
    let held = FaultStore::new(held.inner().open_again());
    support::until(|| master.forget(replikv_proto::SlotKind::Slave, "edge")).await;
    let slave = Slave::open(kinds.on(held.clone()).await, SlaveConfig::new("edge")).await?;
    slave.store().apply_one(Keyspace::Data, Op::Put { key: b"\xFFmine", value: b"cde" }).await?;
    let before = slave.status().position.ok_or("it has followed")?;
    while master.status().floor.seq <= before.seq {
        master.write(batch(&mut rng)).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    catch_up(&master, &slave).await?;
    assert!(slave.status().comparisons > 0);
    check(&kinds, &master, &slave, "after a comparison").await;
    soon(slave.shutdown()).await?;
    // Another master, of whose history it knows nothing.
    let other = support::master(&store(), small()).await;
    for _ in 0..40 {
        other.write(batch(&mut rng)).await?;
    }
    // A master that holds nothing at all would be refused.
    other.put("ba", "cab").await?;
    let held = FaultStore::new(held.inner().open_again());
    let config = SlaveConfig::new("edge").adopt_source(Discard);
    let slave = Slave::open(kinds.on(held.clone()).await, config).await?;
    let (_serving, _following) = connect(&other, &slave);
    support::until(|| slave.status().resyncs == 1).await;
    let token = other.put("ae", "edc").await?;
    soon(slave.wait_applied(token)).await?;
    check(&kinds, &other, &slave, "after a resync").await;
    Ok(())
}

#[tokio::test]
async fn many_batches_that_are_folded_come_to_the_same() -> Result<(), Error> {
    let mut rng = rng("many_batches_that_are_folded_come_to_the_same");
    let kinds = Kinds::new();
    let master = support::master(&store(), MasterConfig::default()).await;
    for _ in 0..400 {
        master.write(batch(&mut rng)).await?;
    }
    let held = store();
    let slave = Slave::open(kinds.on(held.clone()).await, SlaveConfig::new("edge")).await?;
    let before = held.faults().calls().applies;
    catch_up(&master, &slave).await?;
    assert!(held.faults().calls().applies - before < 200, "they were not folded");
    check(&kinds, &master, &slave, "after a catch-up").await;
    Ok(())
}

#[tokio::test]
async fn a_slave_that_cannot_derive_stops_and_says_why() -> Result<(), Error> {
    let picky = |version| {
        Aggregate::new("picky", version, Count, move |_, value, emit| {
            let text = std::str::from_utf8(value).ok().map(str::to_owned);
            let text = text.or_else(|| (version > 1).then(String::new));
            emit.to(text.ok_or_else(|| DeriveAbort::refuse("it is no text"))?, ());
            Ok(())
        })
    };
    let master = support::master(&store(), MasterConfig::default()).await;
    let held = store();
    let derives = DerivedStore::builder(held.clone()).derive(picky(1)).open().await?;
    let slave = Slave::open(derives, SlaveConfig::new("edge")).await?;
    let (_serving, following) = connect(&master, &slave);
    soon(slave.wait_applied(master.put("a", "text").await?)).await?;
    let bad = master.put("b", b"\xFF").await?;
    let end = soon(following).await?;
    let error = end.expect_err("it cannot go on");
    assert!(matches!(&error, FollowError::Store(_)) && !error.is_retryable(), "{error}");
    assert_eq!(error.to_string(), "picky cannot derive from what was written: it is no text");
    let health = slave.status().health;
    assert_eq!(health.state, HealthState::Blocked);
    assert!(format!("{health:?}").contains("it is no text"), "{health:?}");
    // Nothing of it is there, and nothing after it.
    assert!(slave.get("b").await?.is_none());
    assert_eq!(picky(1).get(&slave, &"text".into()).await?, Some(1));
    soon(slave.shutdown()).await?;
    // One that can derive goes on where it stood.
    let held = FaultStore::new(held.inner().open_again());
    let derives = DerivedStore::builder(held).derive(picky(2)).open().await?;
    let slave = Slave::open(derives, SlaveConfig::new("edge")).await?;
    let (_serving, _following) = connect(&master, &slave);
    soon(slave.wait_applied(bad)).await?;
    assert_eq!(picky(2).get(&slave, &String::new()).await?, Some(1));
    Ok(())
}

#[tokio::test]
async fn a_slave_that_followed_without_deriving_derives_anew() -> Result<(), Error> {
    let kinds = Kinds::new();
    let master = support::master(&store(), MasterConfig::default()).await;
    master.put("ab", "cd").await?;
    let held = store();
    let slave = Slave::open(kinds.on(held.clone()).await, SlaveConfig::new("edge")).await?;
    catch_up(&master, &slave).await?;
    soon(slave.shutdown()).await?;
    let held = FaultStore::new(held.inner().open_again());
    let plain = support::slave(&held, "edge").await;
    master.write(Batch::new().put("ac", "cde").delete("ab")).await?;
    catch_up(&master, &plain).await?;
    soon(plain.shutdown()).await?;
    let held = FaultStore::new(held.inner().open_again());
    let slave = Slave::open(kinds.on(held).await, SlaveConfig::new("edge")).await?;
    check(&kinds, &master, &slave, "when it derives again").await;
    // A master on it derives for itself as well.
    soon(slave.shutdown()).await?;
    let store = kinds.on(store()).await;
    let here = Master::open(store.clone(), MasterConfig::default()).await?;
    here.put("ab", "cde").await?;
    here.write(Batch::new().delete_range(KeyRange::from_bounds("a"..)).put("ad", "efg")).await?;
    kinds.assert_of(&store, &contents(&store).await, "on a master").await;
    assert_eq!(kinds.sum.all(&store).await?.at, Some(here.status().published));
    store.apply_one(Keyspace::Data, Op::Delete { key: b"ad" }).await?;
    store.apply(replikv_core::WriteSet::builder().build(), Durability::Synced).await?;
    Ok(())
}
