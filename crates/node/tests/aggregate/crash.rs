//! A crash at any write: data and aggregates never part.

use replikv_core::{Durability, Keyspace, ReplicaStoreExt};
use replikv_memory::MemoryStore;
use replikv_node::{Master, MasterConfig, Slave, SlaveConfig};
use replikv_testkit::{ApplyFault, FaultStore};

use crate::kinds::{Kinds, batch};
use crate::master::own;
use crate::slave::connect;
use crate::support::{Error, contents, soon, store};
use crate::{rng, support};

const FAULTS: [ApplyFault; 3] =
    [ApplyFault::UnknownButApplied, ApplyFault::UnknownAndAbsent, ApplyFault::UnknownAndUnsyncedLost];

#[tokio::test]
async fn a_slave_that_loses_power_at_any_write_holds_what_its_data_comes_to() -> Result<(), Error> {
    let mut rng = rng("a_slave_that_loses_power_at_any_write_holds_what_its_data_comes_to");
    let kinds = Kinds::new();
    let master = support::master(&store(), MasterConfig::default()).await;
    let mut held = store();
    for crash in 0..60 {
        let faults = held.faults();
        let opened = async {
            let derives = kinds.on(held.clone()).await;
            // What is synced write by write shows whether two writes were one.
            let durability = if crash % 2 == 0 { Durability::Synced } else { Durability::Buffered };
            let config = SlaveConfig::new("edge").durability(durability).group_bytes(300);
            Slave::open(derives, config).await
        };
        let slave = opened.await?;
        faults.apply_after(rng.usize(..4), FAULTS[crash % 3].clone());
        let (serving, following) = connect(&master, &slave);
        for _ in 0..8 {
            master.write(batch(&mut rng)).await?;
            tokio::task::yield_now().await;
        }
        // It ends by the fault, or was faster than that.
        let end = tokio::select! {
            end = following => end.is_ok(),
            applied = soon(slave.wait_applied(master.status().published.seq)) => applied.is_ok(),
        };
        assert!(end);
        drop(serving);
        // What it holds at once, after a power loss, before it follows anybody.
        held = held.power_loss().await?;
        held.faults().clear();
        let derives = kinds.on(held.clone()).await;
        kinds.assert_of(&derives, &contents(&held).await, &format!("after crash {crash}")).await;
    }
    let derives = kinds.on(held.clone()).await;
    let slave = Slave::open(derives, SlaveConfig::new("edge")).await?;
    let (_serving, _following) = connect(&master, &slave);
    soon(slave.wait_applied(master.status().published.seq)).await?;
    assert_eq!(contents(&held).await, contents(master.store()).await);
    kinds.assert_of(&slave, &contents(&held).await, "in the end").await;
    Ok(())
}

#[tokio::test]
async fn a_master_that_loses_power_at_any_write_holds_what_its_data_comes_to() -> Result<(), Error> {
    let mut rng = rng("a_master_that_loses_power_at_any_write_holds_what_its_data_comes_to");
    let kinds = Kinds::new();
    let mut held = store();
    for crash in 0..60 {
        let config = kinds.config(MasterConfig::default());
        // The first ones crash while all is derived for the first time.
        held.faults().apply_after(if crash < 20 { crash } else { rng.usize(..8) }, FAULTS[crash % 3].clone());
        if let Ok(master) = Master::open(held.clone(), config).await {
            for _ in 0..6 {
                // Some are answered as unknown.
                drop(master.write(batch(&mut rng)).await);
            }
        }
        held = held.power_loss().await?;
        held.faults().clear();
        let master = support::master(&held, kinds.config(MasterConfig::default())).await;
        kinds.assert_of(&master, &own(&held).await, &format!("after crash {crash}")).await;
        held = held.power_loss().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_derived_for_the_first_time_is_never_taken_for_whole_before_it_is() -> Result<(), Error> {
    let mut rng = rng("what_is_derived_for_the_first_time_is_never_taken_for_whole_before_it_is");
    let inner = MemoryStore::new();
    for n in 0..4_500u32 {
        let key = [&[b'a' + rng.u8(..6)], &n.to_be_bytes()[..]].concat();
        inner
            .apply_one(Keyspace::Data, replikv_core::Op::Put { key: &key, value: &crate::kinds::value(&mut rng) })
            .await?;
    }
    let kinds = Kinds::new();
    for crash in 0..8 {
        let copy = FaultStore::new(MemoryStore::new());
        for (key, value) in contents(&inner).await.into_iter().step_by(1 + crash % 3) {
            copy.inner().apply_one(Keyspace::Data, replikv_core::Op::Put { key: &key, value: &value }).await?;
        }
        copy.faults().apply_after(crash, FAULTS[1 + crash % 2].clone());
        let builder = replikv_node::DerivedStore::builder(copy.clone());
        let cut = builder.derive(kinds.sum.clone()).derive(kinds.top.clone()).open().await;
        let copy = copy.power_loss().await?;
        copy.faults().clear();
        let derives = kinds.on(copy.clone()).await;
        kinds.assert_of(&derives, &contents(&copy).await, &format!("after crash {crash}: {:?}", cut.is_err())).await;
    }
    Ok(())
}
