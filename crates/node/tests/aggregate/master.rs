//! On a master: each batch with what follows from it, in one record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use replikv_core::{Batch, KeyRange, Keyspace, ReplicaStore, Subspace};
use replikv_memory::MemoryStore;
use replikv_node::aggregate::{Aggregate, Count};
use replikv_node::{
    DeriveAbort, InData, Master, MasterConfig, OpenError, Slave, SlaveConfig, WriteError, backup, promote,
};
use replikv_testkit::FaultStore;
use tokio::task::JoinSet;

use crate::kinds::{Kinds, batch, target, value};
use crate::support::{Contents, Error, Store, connect, contents, followed, put_raw, slave, soon, store};
use crate::{rng, support};

/// What is not derived.
pub(crate) async fn own(store: &impl ReplicaStore) -> Contents {
    contents(store).await.into_iter().filter(|(key, _)| !key.starts_with(b"~")).collect()
}

fn again(store: &Store) -> Store {
    FaultStore::new(store.inner().open_again())
}

#[tokio::test]
async fn each_kind_is_what_the_data_comes_to_at_every_position() -> Result<(), Error> {
    let mut rng = rng("each_kind_is_what_the_data_comes_to_at_every_position");
    let kinds = Kinds::new();
    let mut inner = store();
    for round in 0..6 {
        let master = support::master(&inner, kinds.config(MasterConfig::default())).await;
        for n in 0..40 {
            // Some alone, some many at once.
            let mut writers = JoinSet::new();
            for _ in 0..rng.usize(1..6) {
                let (master, batch) = (master.clone(), batch(&mut rng));
                writers.spawn(async move { master.write(batch).await.map(drop) });
            }
            while let Some(written) = writers.join_next().await {
                written??;
            }
            let when = format!("in round {round}, after {n}");
            kinds.assert_of(&master, &own(&inner).await, &when).await;
        }
        let all = kinds.sum.all(&master).await?;
        assert_eq!(all.at, Some(master.status().published));
        for (group, sum) in all.value {
            assert_eq!(kinds.sum.get(&master, &group).await?, Some(sum));
            assert_eq!(kinds.sum.get_at(&master, &group).await?.at, all.at);
        }
        assert_eq!(kinds.sum.get(&master, &b'z').await?, None);
        master.shutdown().await?;
        inner = again(&inner);
    }
    Ok(())
}

#[tokio::test]
async fn a_transaction_is_derived_from_like_a_batch() -> Result<(), Error> {
    let kinds = Kinds::new();
    let inner = store();
    let master = support::master(&inner, kinds.config(MasterConfig::default())).await;
    for n in 0..20u8 {
        master
            .transact(move |view, batch| {
                Ok(match view.get("ab")? {
                    Some(held) => batch.put("ab", [held[0] + 1, 90 + n]).delete("ac"),
                    None => batch.put("ab", [91]).put("ac", [92]),
                })
            })
            .await?;
        kinds.assert_of(&master, &own(&inner).await, "after a transaction").await;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_derived_belongs_to_nobody_else() -> Result<(), Error> {
    let kinds = Kinds::new();
    let inner = store();
    let master = support::master(&inner, kinds.config(MasterConfig::default())).await;
    master.put("ab", "cd").await?;
    let refused = [
        Batch::new().put("~/sum/x", "1"),
        Batch::new().delete("~/sum/m"),
        Batch::new().put("ac", "cd").delete_range(KeyRange::all()),
    ];
    for batch in refused {
        assert!(matches!(master.write(batch).await, Err(WriteError::Derived { .. })));
    }
    let transacted = master.transact(|_, batch| Ok(batch.put("~/sum/x", "1"))).await;
    assert!(matches!(transacted, Err(WriteError::Aborted { .. })));
    assert!(master.get("ac").await?.is_none());
    kinds.assert_of(&master, &own(&inner).await, "after refusals").await;
    master.put("~free", "1").await?;
    Ok(())
}

#[tokio::test]
async fn a_batch_from_which_nothing_can_be_derived_is_refused_with_words() -> Result<(), Error> {
    let picky: Aggregate<String, Count> = Aggregate::new("picky", 1, Count, |_, value, emit| {
        let text = std::str::from_utf8(value).map_err(|_| DeriveAbort::refuse("it is no text"))?;
        emit.to(text.to_owned(), ());
        Ok(())
    });
    let inner = store();
    let config = || MasterConfig::default().derive(target("picky"), picky.clone());
    let master = support::master(&inner, config()).await;
    let mut writers = JoinSet::new();
    for n in 0..50u8 {
        let master = master.clone();
        writers.spawn(async move { (n, master.put([b'k', n], if n % 5 == 0 { &b"\xFF"[..] } else { b"text" }).await) });
    }
    while let Some(written) = writers.join_next().await {
        match written? {
            (n, Err(WriteError::NotDerived { name, reason })) => {
                assert_eq!((n % 5, &*name, &*reason), (0, "picky", "it is no text"));
            }
            (n, written) => assert!(n % 5 != 0 && written.is_ok(), "{n}: {written:?}"),
        }
    }
    assert_eq!(picky.get(&master, &"text".into()).await?, Some(40));
    // What is there already cannot be derived from: nothing is opened, and the store is as it was.
    master.shutdown().await?;
    let (inner, plain) = (again(&inner), again(&inner));
    let master = support::master(&plain, MasterConfig::default()).await;
    master.put("bad", b"\xFF").await?;
    master.shutdown().await?;
    let refused = Master::open(inner.clone(), config()).await.map(drop);
    assert!(matches!(&refused, Err(OpenError::Derive { name, .. }) if name == "picky"), "{refused:?}");
    let master = support::master(&again(&inner), MasterConfig::default()).await;
    assert_eq!(master.get("bad").await?.as_deref(), Some(&b"\xFF"[..]));
    Ok(())
}

#[tokio::test]
async fn what_was_left_out_or_is_of_another_version_is_derived_anew() -> Result<(), Error> {
    let mut rng = rng("what_was_left_out_or_is_of_another_version_is_derived_anew");
    let kinds = Kinds::new();
    let inner = store();
    // Data before there was a master, and before there was anything to derive.
    put_raw(&inner, Keyspace::Data, b"ab", b"cd").await?;
    let master = support::master(&inner, kinds.config(MasterConfig::default())).await;
    kinds.assert_of(&master, &own(&inner).await, "of what was there").await;
    master.write(batch(&mut rng)).await?;
    let head = master.status().published;
    master.shutdown().await?;
    // Nothing is derived anew that is there.
    let inner = again(&inner);
    let master = support::master(&inner, kinds.config(MasterConfig::default())).await;
    assert_eq!(master.status().published, head);
    master.shutdown().await?;
    // Somebody writes who does not derive.
    let inner = again(&inner);
    let master = support::master(&inner, MasterConfig::default()).await;
    for _ in 0..30 {
        let key = [b'a' + rng.u8(..6), b'a' + rng.u8(..20)];
        master.put(key, value(&mut rng)).await?;
    }
    master.shutdown().await?;
    let inner = again(&inner);
    let master = support::master(&inner, kinds.config(MasterConfig::default())).await;
    kinds.assert_of(&master, &own(&inner).await, "after it was left out").await;
    let head = master.status().published;
    master.shutdown().await?;
    let (inner, newer) = (again(&inner), Kinds::version(2));
    let master = support::master(&inner, newer.config(MasterConfig::default())).await;
    newer.assert_of(&master, &own(&inner).await, "by another version").await;
    assert!(master.status().published.seq > head.seq);
    Ok(())
}

#[tokio::test]
async fn a_target_that_holds_something_else_is_left_alone() -> Result<(), Error> {
    let kinds = Kinds::new();
    let inner = store();
    put_raw(&inner, Keyspace::Data, b"~/sum/mine", b"1").await?;
    let refused = Master::open(inner.clone(), kinds.config(MasterConfig::default())).await.map(drop);
    assert!(matches!(&refused, Err(OpenError::Derive { name, .. }) if name == "sum"), "{refused:?}");
    assert_eq!(inner.inner().open_again().get(Keyspace::Data, b"~/sum/mine").await?.as_deref(), Some(&b"1"[..]));
    let config = MasterConfig::default().derive(target("a"), kinds.sum.clone()).derive(target("a"), kinds.min.clone());
    let refused = Master::open(store(), config).await.map(drop);
    assert!(matches!(&refused, Err(OpenError::Derive { name, .. }) if name == "min"), "{refused:?}");
    let config = MasterConfig::default().derive(Subspace::root(), kinds.sum.clone());
    assert!(matches!(Master::open(store(), config).await.map(drop), Err(OpenError::Derive { .. })));
    Ok(())
}

#[tokio::test]
async fn recordings_are_refused_where_something_is_derived() -> Result<(), Error> {
    let kinds = Kinds::new();
    let inner = store();
    let master = support::master(&inner, kinds.config(MasterConfig::default())).await;
    let head = inner.get(Keyspace::Meta, b"head").await?;
    assert!(matches!(master.begin_recording(head.as_deref()), Err(WriteError::NotDerived { .. })));
    Ok(())
}

#[tokio::test]
async fn slaves_hold_what_is_derived_and_go_on_with_it_when_they_are_promoted() -> Result<(), Error> {
    let mut rng = rng("slaves_hold_what_is_derived_and_go_on_with_it_when_they_are_promoted");
    let kinds = Kinds::new();
    let master = support::master(&store(), kinds.config(MasterConfig::default())).await;
    for _ in 0..50 {
        master.write(batch(&mut rng)).await?;
    }
    let held = followed(&master, "edge").await;
    let reading = slave(&held, "edge").await;
    let data = own(&held).await;
    kinds.sum.all(&InData::new(&reading, target("sum"))).await?;
    for (group, sum) in kinds.sum.all(&master).await?.value {
        assert_eq!(kinds.sum.get(&InData::new(&reading, target("sum")), &group).await?, Some(sum));
    }
    reading.shutdown().await?;
    let held = again(&held);
    promote(&held).await?;
    let promoted = support::master(&again(&held), kinds.config(MasterConfig::default())).await;
    kinds.assert_of(&promoted, &data, "after a promotion").await;
    // One record for the epoch, and one for each mark: nothing was derived anew.
    assert_eq!(promoted.status().published.seq.as_u64(), master.status().published.seq.as_u64() + 1 + 8);
    for _ in 0..20 {
        promoted.write(batch(&mut rng)).await?;
    }
    kinds.assert_of(&promoted, &own(promoted.store()).await, "after more").await;
    Ok(())
}

#[tokio::test]
async fn a_slave_that_was_promoted_and_written_to_without_deriving_is_derived_anew() -> Result<(), Error> {
    let kinds = Kinds::new();
    let master = support::master(&store(), kinds.config(MasterConfig::default())).await;
    master.put("ab", "cd").await?;
    let held = followed(&master, "edge").await;
    promote(&held).await?;
    let plain = support::master(&again(&held), MasterConfig::default()).await;
    plain.put("ac", "cde").await?;
    plain.shutdown().await?;
    let held = again(&held);
    let promoted = support::master(&held, kinds.config(MasterConfig::default())).await;
    kinds.assert_of(&promoted, &own(&held).await, "after a promotion").await;
    Ok(())
}

#[tokio::test]
async fn a_backup_that_is_taken_under_writes_holds_what_its_data_comes_to() -> Result<(), Error> {
    let mut rng = rng("a_backup_that_is_taken_under_writes_holds_what_its_data_comes_to");
    let kinds = Kinds::new();
    let inner = store();
    let master = support::master(&inner, kinds.config(MasterConfig::default())).await;
    for n in 0..600u32 {
        master.put([&[b'a' + (n % 20) as u8], &n.to_be_bytes()[..]].concat(), value(&mut rng)).await?;
    }
    let (stop, writing) = (Arc::new(AtomicBool::new(false)), master.clone());
    let (stopped, mut other) = (stop.clone(), rng.fork());
    let writer = tokio::spawn(async move {
        while !stopped.load(Ordering::SeqCst) {
            writing.write(batch(&mut other)).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let copy = MemoryStore::new();
    master.backup(&copy, |_| {}).await?;
    stop.store(true, Ordering::SeqCst);
    writer.await?;
    let copy = FaultStore::new(copy);
    let restored = support::master(&copy, kinds.config(MasterConfig::default().new_epoch())).await;
    kinds.assert_of(&restored, &own(&copy).await, "of a backup").await;
    // A store that derives for itself leaves that out of its backups.
    let (derived, second) = (kinds.on(MemoryStore::new()).await, MemoryStore::new());
    let slave = Slave::open(derived.clone(), SlaveConfig::new("edge")).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let _serving = support::serve(&restored, there);
    let following = slave.clone();
    let following = tokio::spawn(async move { following.follow(here).await });
    soon(slave.wait_caught_up()).await?;
    following.abort();
    drop(following.await);
    backup(derived.inner(), &second, |_| {}).await?;
    let meta = support::entries(&second, Keyspace::Meta).await;
    assert!(!meta.is_empty() && meta.iter().all(|(key, _): &(Bytes, Bytes)| !key.starts_with(b"derived/")));
    Ok(())
}

#[tokio::test]
async fn a_slave_of_a_slave_store_reads_the_same() -> Result<(), Error> {
    let kinds = Kinds::new();
    let master = support::master(&store(), kinds.config(MasterConfig::default())).await;
    let held = store();
    let edge = slave(&held, "edge").await;
    let (_serving, _following) = connect(&master, &edge);
    let token = master.put("ab", "cde").await?;
    soon(edge.wait_applied(token)).await?;
    let data = own(&held).await;
    let reader = InData::new(&edge, target("joined"));
    let (groups, rest) = kinds.joined.page(&reader, kinds.joined.groups(), Default::default()).await?;
    assert!(rest.is_none());
    assert_eq!(groups.len(), crate::kinds::groups(&data).len());
    Ok(())
}
