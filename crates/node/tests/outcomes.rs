//! Writes that fail, and writes of which nobody knows whether they have.

use std::sync::Arc;

use crate::support::{
    Error, assert_equal, chain, connect, contents, full, master, slave, soon, store, transient, until,
};
use replikv_core::{Batch, Outcome, StoreError};
use replikv_memory::MemoryStore;
use replikv_node::{HealthState, Master, MasterConfig, WriteError};
use replikv_testkit::{ApplyFault, FaultStore};

#[tokio::test]
async fn a_full_store_leaves_the_head_where_it_was() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    let before = master.put("a", "1").await?;
    for error in [full(), StoreError::backend("the disk says no")] {
        store.faults().next_apply(ApplyFault::Refuse(error));
        let failed = master.write(Batch::new().put("b", "2").delete("a")).await;
        assert!(
            matches!(&failed, Err(WriteError::Store(error)) if error.outcome() == Outcome::Unchanged),
            "{failed:?}"
        );
        assert_eq!(contents(&store).await.len(), 1);
        let status = master.status();
        assert_eq!((status.published.seq, status.handed.seq), (before.seq, before.seq));
        assert_eq!(status.health.state, HealthState::Blocked);
    }
    let after = master.put("c", "3").await?;
    assert_eq!(after.seq, before.seq.next().unwrap());
    assert_eq!(master.status().health.state, HealthState::Ready);
    assert_eq!(chain(&store).await, [1, 2, 3]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_transient_error_is_tried_again_and_not_for_ever() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    let faults = store.faults();
    let before = faults.calls().applies;
    (0..3).for_each(|_| faults.next_apply(ApplyFault::Refuse(transient())));
    let token = master.put("a", "1").await?;
    assert_eq!(faults.calls().applies - before, 4);
    (0..100).for_each(|_| faults.next_apply(ApplyFault::Refuse(transient())));
    let failed = soon(master.put("b", "2")).await;
    assert!(matches!(&failed, Err(error) if error.is_retryable()), "{failed:?}");
    faults.clear();
    assert_eq!(master.put("c", "3").await?.seq, token.seq.next().unwrap());
    Ok(())
}

#[tokio::test]
async fn after_an_unknown_outcome_what_the_store_holds_is_published() -> Result<(), Error> {
    for (fault, there) in [(ApplyFault::UnknownButApplied, true), (ApplyFault::UnknownAndAbsent, false)] {
        let (store, copy) = (store(), store());
        let master = master(&store, MasterConfig::default()).await;
        let slave = slave(&copy, "edge").await;
        connect(&master, &slave);
        let before = master.put("a", "1").await?;
        store.faults().refuse_reopens(1);
        store.faults().next_apply(fault);
        let unknown = master.write(Batch::new().put("b", "2").put("c", "3")).await;
        assert!(matches!(unknown, Err(WriteError::OutcomeUnknown { .. })), "{unknown:?}");
        if there {
            // It is published by itself, not only when somebody writes again.
            soon(master.subscribe().reached(before.seq.next().unwrap())).await?;
        }
        let after = soon(master.put("d", "4")).await?;
        assert_eq!(after.seq.since(before.seq), 1 + u64::from(there));
        assert_eq!(master.get("b").await?.is_some(), there);
        assert_eq!(master.get("c").await?.is_some(), there);
        soon(slave.wait_applied(after)).await?;
        assert_equal(&master, &slave).await;
        assert_eq!(chain(&store).await, (1..=after.seq.as_u64()).collect::<Vec<_>>());
        assert_eq!(master.status().health.state, HealthState::Ready);
        assert_eq!(master.status().published.seq, after.seq);
    }
    Ok(())
}

#[tokio::test]
async fn a_write_whose_outcome_is_unknown_says_what_the_store_failed_with() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    for fault in [ApplyFault::UnknownButApplied, ApplyFault::UnknownAndAbsent] {
        store.faults().next_apply(fault);
        let error = soon(master.put("a", "1")).await.expect_err("nobody knows");
        let WriteError::OutcomeUnknown { source } = &error else { panic!("{error:?}") };
        assert_eq!(source.outcome(), Outcome::Unknown);
        let cause = std::error::Error::source(source).map(ToString::to_string);
        assert_eq!(cause.as_deref(), Some("the writer does not answer"));
        soon(master.put("b", "2")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_store_that_cannot_be_reopened_does_not_hold_up_a_shutdown() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    store.faults().refuse_reopens(u32::MAX);
    store.faults().next_apply(ApplyFault::UnknownButApplied);
    assert!(matches!(master.put("a", "1").await, Err(WriteError::OutcomeUnknown { .. })));
    let waiting = tokio::spawn({
        let master = master.clone();
        async move { master.put("b", "2").await }
    });
    until(|| store.faults().calls().reopens > 1).await;
    assert_eq!(master.status().health.state, HealthState::Blocked);
    soon(master.shutdown()).await?;
    assert!(matches!(soon(waiting).await?, Err(WriteError::OutcomeUnknown { .. } | WriteError::Closed)));
    assert!(matches!(master.put("c", "3").await, Err(WriteError::Closed)));
    // What the store holds is what the next master finds.
    let again = master_again(store.inner()).await;
    assert_eq!(again.get("a").await?.as_deref(), Some(&b"1"[..]));
    assert!(again.get("b").await?.is_none());
    assert_eq!(again.put("c", "3").await?.seq.as_u64(), 3);
    Ok(())
}

async fn master_again(store: &MemoryStore) -> Master<MemoryStore> {
    Master::open(store.open_again(), MasterConfig::default()).await.unwrap()
}

#[tokio::test]
async fn a_master_that_nobody_holds_any_more_ends_even_if_its_store_does_not_come_back() -> Result<(), Error> {
    let inner = Arc::new(MemoryStore::new());
    let store = FaultStore::new(inner.clone());
    let faults = store.faults();
    let master = Master::open(store, MasterConfig::default()).await?;
    faults.refuse_reopens(u32::MAX);
    faults.next_apply(ApplyFault::UnknownButApplied);
    assert!(master.put("a", "1").await.is_err());
    drop(master);
    until(|| Arc::strong_count(&inner) == 1).await;
    Ok(())
}

#[tokio::test]
async fn a_read_that_finds_the_store_broken_has_it_reopened() -> Result<(), Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    master.put("a", "1").await?;
    // Somebody else's write, on the same handle of the store, ends in the unknown.
    store.faults().next_apply(ApplyFault::UnknownAndAbsent);
    let writes = replikv_core::WriteSet::builder().delete(replikv_core::Keyspace::Data, "x")?.build();
    assert!(replikv_core::ReplicaStore::apply(&store, writes, Default::default()).await.is_err());
    let conditional = Batch::new().expect("a", "1").put("a", "2");
    assert!(matches!(master.write(conditional.clone()).await, Err(WriteError::Store(StoreError::Fatal { .. }))));
    soon(master.write(conditional)).await?;
    assert_eq!(master.get("a").await?.as_deref(), Some(&b"2"[..]));
    Ok(())
}
