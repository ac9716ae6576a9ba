//! A slave becomes the master, the old one is superseded, and comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use crate::support::{self, Error, Store, assert_equal, connect, contents, full, master, slave, soon, store};
use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{Batch, Keyspace, ReplicaStore, Seq};
use replikv_memory::MemoryStore;
use replikv_node::{
    Displaced, FollowError, HealthState, Master, MasterConfig, OpenError, PromoteError, Quarantine, Resync, Slave,
    SlaveConfig, SlaveState, WriteError, promote,
};
use replikv_proto::layout::{Epochs, Stored};
use replikv_proto::{RejectCode, Retention};
use replikv_testkit::{ApplyFault, FaultStore};

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

/// The same store, as another process would open it.
fn again(store: &Store) -> Store {
    FaultStore::new(store.inner().open_again())
}

/// Follows until everything is there, and ends with the last acknowledgement.
async fn catch_up(master: &Master<Store>, slave: &Slave<Store>) -> Result<(), Error> {
    let (serving, mut following) = connect(master, slave);
    let seq = master.status().published.seq;
    tokio::select! {
        biased;
        end = &mut following => return Err(format!("it ended: {end:?}").into()),
        caught_up = soon(async {
            slave.wait_applied(seq).await?;
            slave.wait_caught_up().await
        }) => caught_up?,
    }
    following.abort();
    drop(soon(serving).await);
    Ok(())
}

async fn refused(master: &Master<Store>, slave: &Slave<Store>) -> RejectCode {
    let (_serving, following) = connect(master, slave);
    match soon(following).await.unwrap() {
        Err(FollowError::Refused(refusal)) => refusal.code,
        end => panic!("{end:?}"),
    }
}

async fn open(store: &Store) -> Master<Store> {
    master(&again(store), MasterConfig::default()).await
}

#[tokio::test]
async fn a_promoted_slave_goes_on_with_the_history_and_others_move_over() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let stores = [store(), store(), store()];
    let slaves = [slave(&stores[0], "one").await, slave(&stores[1], "two").await, slave(&stores[2], "behind").await];
    for n in 0..10u8 {
        old.put([b'a' + n], "old").await?;
    }
    catch_up(&old, &slaves[2]).await?;
    for n in 0..10u8 {
        old.put([b'k' + n], "old").await?;
    }
    catch_up(&old, &slaves[0]).await?;
    catch_up(&old, &slaves[1]).await?;
    let last = old.status().published;
    let promoted = soon(slaves[0].promote()).await?;
    assert_eq!((promoted.last, promoted.first.seq, promoted.first.epoch.number), (last, Seq::new(22), 2));
    let new = open(&stores[0]).await;
    assert_eq!((new.source(), new.status().published), (old.source(), promoted.first));
    let token = new.put("new", "epoch").await?;
    // At the same position: it resumes, and hears of two records.
    let (_serving, _following) = connect(&new, &slaves[1]);
    soon(slaves[1].wait_applied(token)).await?;
    assert_eq!((slaves[1].status().comparisons, slaves[1].status().records), (0, 23));
    assert_equal(&new, &slaves[1]).await;
    // Behind it: what it missed is in nobody's log, and is compared.
    let (_serving, _following) = connect(&new, &slaves[2]);
    soon(slaves[2].wait_applied(token)).await?;
    assert_eq!(slaves[2].status().comparisons, 1);
    assert_equal(&new, &slaves[2]).await;
    Ok(())
}

#[tokio::test]
async fn a_master_that_meets_a_newer_epoch_never_writes_again() -> Result<(), Error> {
    let kept = store();
    let old = master(&kept, MasterConfig::default()).await;
    let stores = [store(), store()];
    let slaves = [slave(&stores[0], "one").await, slave(&stores[1], "two").await];
    old.put("k", "1").await?;
    catch_up(&old, &slaves[0]).await?;
    catch_up(&old, &slaves[1]).await?;
    soon(slaves[0].promote()).await?;
    let new = open(&stores[0]).await;
    new.put("k", "2").await?;
    catch_up(&new, &slaves[1]).await?;
    // Until they meet nobody can know.
    old.put("late", "1").await?;
    assert_eq!(refused(&old, &slaves[1]).await, RejectCode::Superseded);
    let gone = old.put("later", "1").await.unwrap_err();
    assert!(matches!(gone, WriteError::Superseded { by: Some(epoch) } if epoch.number == 2), "{gone}");
    let gone = old.transact(|_, batch| Ok(batch.put("later", "1"))).await.unwrap_err();
    assert!(matches!(gone, WriteError::Superseded { .. }), "{gone}");
    let health = old.status().health;
    assert!(health.state == HealthState::Replaced && health.reason.contains("promoted"), "{health:?}");
    assert_eq!(slaves[1].get("k").await?.as_deref(), Some(&b"2"[..]), "a slave loses nothing to it");
    old.shutdown().await?;
    // Nor does whoever opens it next, whatever he says.
    for config in [MasterConfig::default(), MasterConfig::default().new_epoch()] {
        let opened = Master::open(again(&kept), config).await;
        assert!(matches!(opened, Err(OpenError::Superseded { .. })));
    }
    Ok(())
}

#[tokio::test]
async fn an_old_master_rejoins_and_keeps_what_nobody_else_had() -> Result<(), Error> {
    let kept = store();
    let old = master(&kept, MasterConfig::default()).await;
    let standby = store();
    let next = slave(&standby, "next").await;
    for n in 0..100u8 {
        old.put([n, n], "shared").await?;
    }
    catch_up(&old, &next).await?;
    // Never replicated.
    old.write(Batch::new().put("lost", "put").put([5, 5], "changed").delete([6, 6])).await?;
    old.shutdown().await?;
    soon(next.promote()).await?;
    let new = open(&standby).await;
    new.put("new", "1").await?;
    let plain = Slave::open(again(&kept), SlaveConfig::new("old")).await;
    assert!(matches!(plain, Err(OpenError::Role { .. })), "not by accident");
    let rejoining = Slave::open(again(&kept), SlaveConfig::new("old").rejoin()).await?;
    let code = refused(&new, &rejoining).await;
    assert!(matches!(code, RejectCode::Diverged | RejectCode::SlaveAhead), "{code:?}");
    rejoining.shutdown().await?;
    let lost = Kept::default();
    let config = SlaveConfig::new("old").rejoin().resync(lost.clone());
    let rejoining = Slave::open(again(&kept), config).await?;
    let (_serving, _following) = connect(&new, &rejoining);
    soon(rejoining.wait_caught_up()).await?;
    assert_equal(&new, &rejoining).await;
    let lost = lost.0.lock().unwrap().clone();
    let expected = [(&b"\x05\x05"[..], &b"changed"[..]), (b"lost", b"put")];
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(key, value)| (Bytes::from_static(key), Bytes::from_static(value))).collect();
    assert_eq!(lost, expected);
    Ok(())
}

#[tokio::test]
async fn two_promotions_at_one_position_refuse_each_other() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let stores = [store(), store(), store(), store()];
    let mut slaves = Vec::new();
    for (n, store) in stores.iter().enumerate() {
        slaves.push(slave(store, &format!("slave-{n}")).await);
    }
    old.put("k", "1").await?;
    for slave in &slaves {
        catch_up(&old, slave).await?;
    }
    let (one, two) = (soon(slaves[0].promote()).await?, soon(slaves[1].promote()).await?);
    assert_eq!((one.last, one.first.epoch.number), (two.last, two.first.epoch.number));
    assert_ne!(one.first.epoch.nonce, two.first.epoch.nonce);
    let (one, two) = (open(&stores[0]).await, open(&stores[1]).await);
    catch_up(&one, &slaves[2]).await?;
    catch_up(&two, &slaves[3]).await?;
    assert_eq!(refused(&two, &slaves[2]).await, RejectCode::Diverged);
    assert_eq!(refused(&one, &slaves[3]).await, RejectCode::Diverged);
    // Neither is superseded by an equal.
    one.put("k", "one").await?;
    two.put("k", "two").await?;
    Ok(())
}

// The record that would tell is damaged; whose epoch reigned there is known all the same.
#[tokio::test]
async fn a_twin_has_diverged_also_where_the_record_of_the_other_is_damaged() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let stores = [store(), store()];
    old.put("k", "1").await?;
    for (n, store) in stores.iter().enumerate() {
        let slave = slave(store, &format!("slave-{n}")).await;
        catch_up(&old, &slave).await?;
        soon(slave.promote()).await?;
    }
    let (one, two) = (open(&stores[0]).await, open(&stores[1]).await);
    let twin = support::followed(&two, "twin").await;
    let began = two.status().published.seq;
    one.put("k", "2").await?;
    one.put("k", "3").await?;
    one.shutdown().await?;
    let damaged = again(&stores[0]);
    damaged.damage(Keyspace::Log, &began.to_key(), |record| record.truncate(9)).await?;
    let one = master(&damaged, MasterConfig::default().ring_bytes(0)).await;
    assert_eq!(refused(&one, &slave(&twin, "twin").await).await, RejectCode::Diverged);
    Ok(())
}

#[tokio::test]
async fn what_holds_no_state_of_a_master_is_not_promoted() -> Result<(), Error> {
    let empty = store();
    Slave::open(empty.clone(), SlaveConfig::new("empty")).await?;
    assert!(matches!(promote(&empty).await, Err(PromoteError::Empty)));
    assert!(matches!(promote(&MemoryStore::new()).await, Err(PromoteError::NoSlave)));
    let source = support::store_with(4_000).await;
    let old = master(&source, MasterConfig::default().chunk_bytes(8_000)).await;
    assert!(matches!(promote(&again(&source)).await, Err(PromoteError::NoSlave)));
    let copying = store();
    let slave = slave(&copying, "copying").await;
    copying.faults().pass_applies(5);
    let held = copying.faults().hold_apply();
    let (_serving, following) = connect(&old, &slave);
    soon(held.reached()).await;
    assert_eq!(slave.status().state, SlaveState::Copying);
    following.abort();
    held.release();
    let refused = soon(slave.promote()).await;
    assert!(matches!(refused, Err(PromoteError::CatchingUp)), "{refused:?}");
    // It is a slave as before, and goes on.
    let slave = Slave::open(again(&copying), SlaveConfig::new("copying")).await?;
    catch_up(&old, &slave).await?;
    assert_equal(&old, &slave).await;
    assert!(soon(slave.promote()).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn a_slave_behind_the_trimmed_log_of_a_promoted_master_knows_it_by_the_epochs() -> Result<(), Error> {
    let retention = Retention { max_bytes: 2_000, max_age_ms: None, hold_back_bytes: 0 };
    let stores = [store(), store(), store()];
    let first = master(&store(), MasterConfig::default()).await;
    let behind = slave(&stores[2], "behind").await;
    first.put("k", "1").await?;
    let next = slave(&stores[0], "next").await;
    catch_up(&first, &behind).await?;
    catch_up(&first, &next).await?;
    soon(next.promote()).await?;
    let second = master(&again(&stores[0]), MasterConfig::default().retention(retention)).await;
    let other = slave(&stores[1], "other").await;
    for n in 0..50u8 {
        second.put([n], [n; 100]).await?;
    }
    catch_up(&second, &other).await?;
    soon(other.promote()).await?;
    let third = open(&stores[1]).await;
    third.put("k", "3").await?;
    // It stands in the first epoch, and the third master's log begins long after that.
    catch_up(&third, &behind).await?;
    assert_equal(&third, &behind).await;
    Ok(())
}

fn failovers() -> usize {
    std::env::var("REPLIKV_FAILOVERS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(60)
}

/// Nodes of which one writes; again and again it is lost, the most advanced of the others is promoted, and it comes back.
#[tokio::test]
async fn after_any_number_of_failovers_all_are_equal_and_what_was_discarded_is_quarantined() -> Result<(), Error> {
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_125);
    println!(
        "reproduce: REPLIKV_SEED={seed} cargo test -p replikv-node --all-features --test node promotion::after_any_number"
    );
    let mut rng = fastrand::Rng::with_seed(seed);
    const NODES: usize = 4;
    let lost = Kept::default();
    let stores: Vec<_> = (0..NODES).map(|_| store()).collect();
    let name = |n: usize| format!("node-{n}");
    let config = |n: usize| SlaveConfig::new(name(n)).rejoin().resync(lost.clone());
    let mut reigning = 0;
    let mut written = BTreeSet::new();
    let mut top = master(&again(&stores[0]), MasterConfig::default()).await;
    let mut slaves: Vec<Option<Slave<Store>>> = vec![None; NODES];
    for n in 1..NODES {
        slaves[n] = Some(Slave::open(again(&stores[n]), config(n)).await?);
    }
    let mut next_key = 0u64;
    for round in 0..failovers() {
        // Some follow to some point of it, and are cut.
        for _ in 0..rng.usize(1..4) {
            for _ in 0..rng.usize(0..6) {
                next_key += 1;
                let key = Bytes::copy_from_slice(&next_key.to_be_bytes());
                top.put(&key, round.to_be_bytes()).await?;
                written.insert(key);
            }
            let n = rng.usize(..NODES);
            if let Some(slave) = &slaves[n] {
                catch_up(&top, slave).await?;
            }
        }
        // The master is lost, with what nobody else has.
        soon(top.shutdown()).await?;
        let position =
            |slave: &Slave<Store>| slave.status().position.map(|position| (position.epoch.number, position.seq));
        let ready = |slave: &&Slave<Store>| slave.status().consistent;
        let mut standing: Vec<_> =
            (0..NODES).filter_map(|n| Some((position(slaves[n].as_ref().filter(ready)?)?, n))).collect();
        standing.sort_unstable();
        let Some((_, next)) = standing.pop() else {
            top = open(&stores[reigning]).await;
            continue;
        };
        // Mostly the most advanced one; an operator may err. Whoever has not heard of the newest epoch would begin an older
        // one, and be superseded by all who have.
        let newest = position(slaves[next].as_ref().ok_or("it stands there")?).map(|(epoch, _)| epoch);
        standing.retain(|((epoch, _), _)| Some(*epoch) == newest);
        let next = if rng.u8(..4) == 0 { rng.choice(&standing).map_or(next, |(_, n)| *n) } else { next };
        let Some(slave) = slaves[next].take() else { continue };
        soon(slave.promote()).await?;
        slaves[reigning] = Some(Slave::open(again(&stores[reigning]), config(reigning)).await?);
        top = open(&stores[next]).await;
        reigning = next;
    }
    top.put("end", "").await?;
    let held: BTreeSet<_> = contents(top.store()).await.into_iter().map(|(key, _)| key).collect();
    for slave in slaves.iter().flatten() {
        catch_up(&top, slave).await?;
        assert_equal(&top, slave).await;
    }
    let lost = lost.0.lock().unwrap();
    let discarded: Vec<_> = written.iter().filter(|key| !held.contains(*key)).collect();
    println!("{} writes, {} discarded, {} quarantined", written.len(), discarded.len(), lost.len());
    for key in &discarded {
        assert!(lost.contains_key(*key), "{} is nowhere", key.escape_ascii());
    }
    assert!(failovers() < 60 || !discarded.is_empty(), "nothing was ever lost");
    Ok(())
}

#[tokio::test]
async fn what_a_newer_epoch_holds_is_not_overwritten_by_an_old_master() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let standby = store();
    let next = slave(&standby, "next").await;
    old.put("k", "1").await?;
    catch_up(&old, &next).await?;
    soon(next.promote()).await?;
    let new = open(&standby).await;
    new.put("k", "2").await?;
    let edge = store();
    let lost = Kept::default();
    let follower = Slave::open(edge.clone(), SlaveConfig::new("edge").resync(lost.clone())).await?;
    catch_up(&new, &follower).await?;
    // A wrong address, and a slave that would resync: it does not.
    assert_eq!(refused(&old, &follower).await, RejectCode::Superseded);
    assert_eq!(follower.get("k").await?.as_deref(), Some(&b"2"[..]));
    assert!(lost.0.lock().unwrap().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_slave_that_cannot_keep_the_epochs_of_its_master_comes_again_and_keeps_them_then() -> Result<(), Error> {
    let first = master(&store(), MasterConfig::default()).await;
    first.put("k", "1").await?;
    let kept = store();
    let one = slave(&kept, "one").await;
    kept.faults().next_apply(ApplyFault::Refuse(full()));
    let (_serving, following) = connect(&first, &one);
    let end = soon(following).await?;
    assert!(matches!(end, Err(FollowError::Store(_))), "{end:?}");
    catch_up(&first, &one).await?;
    let told = kept.get(Keyspace::Meta, Epochs::KEY).await?.map(|told| Epochs::from_bytes(&told));
    assert_eq!(told.transpose()?.map(|told| told.0.len()), Some(1));
    Ok(())
}

#[tokio::test]
async fn a_slave_that_parts_keeps_the_epochs_of_its_own_history_until_it_has_joined_the_other_one() -> Result<(), Error>
{
    let old = master(&store(), MasterConfig::default()).await;
    let stores = [store(), store(), store()];
    let slaves = [slave(&stores[0], "one").await, slave(&stores[1], "two").await];
    let config = SlaveConfig::new("three").resync(Kept::default());
    let third = Slave::open(again(&stores[2]), config).await?;
    old.put("k", "1").await?;
    catch_up(&old, &slaves[0]).await?;
    catch_up(&old, &slaves[1]).await?;
    // Twins. The third slave follows one of both, and is then sent to the other one.
    slaves[0].promote().await?;
    slaves[1].promote().await?;
    let (one, two) = (open(&stores[0]).await, open(&stores[1]).await);
    one.put("of", "one").await?;
    two.put("of", "two").await?;
    catch_up(&one, &third).await?;
    let epochs = || async {
        let told = stores[2].get(Keyspace::Meta, Epochs::KEY).await?.ok_or("nothing is kept")?;
        Ok::<_, Error>(Epochs::from_bytes(&told)?.0.last().map(|start| start.epoch))
    };
    let own = one.status().published.epoch;
    assert_eq!(epochs().await?, Some(own));
    third.store().faults().next_apply(ApplyFault::Refuse(full()));
    let (_serving, following) = connect(&two, &third);
    let end = soon(following).await?;
    assert!(matches!(end, Err(FollowError::Store(_))), "{end:?}");
    assert_eq!(epochs().await?, Some(own), "its data is of the history that it was about to leave");
    catch_up(&two, &third).await?;
    assert_eq!(epochs().await?, Some(two.status().published.epoch));
    assert_equal(&two, &third).await;
    Ok(())
}
