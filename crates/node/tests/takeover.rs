//! Two masters on one store: the older one must not tell what the newer one wrote as if it were its own.

use std::time::Duration;

use replikv_core::{Keyspace, Op, ReplicaStoreExt, StoreError};
use replikv_memory::MemoryStore;
use replikv_node::{Master, MasterConfig, ServeError, Slave, SlaveConfig, SlaveState};
use tokio::time::timeout;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::test]
async fn a_master_whose_store_was_taken_over_sends_no_page_of_it() -> Result<(), Error> {
    let store = MemoryStore::new();
    // Data that was there before, so that a slave has to copy.
    store.apply_one(Keyspace::Data, Op::Put { key: b"a", value: b"1" }).await?;
    let old = Master::open(store.open_again(), MasterConfig::default()).await?;
    let new = Master::open(store.open_again(), MasterConfig::default()).await?;
    new.put("b", "2").await?;

    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let following = tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow(here).await }
    });
    let served = timeout(Duration::from_secs(60), old.serve(there)).await?;
    assert!(matches!(served, Err(ServeError::Store(StoreError::HeadMoved))), "{served:?}");
    drop(timeout(Duration::from_secs(60), following).await??);
    let status = slave.status();
    assert_eq!(status.state, SlaveState::Copying, "it must not call a state consistent that the master never named");
    assert_eq!(slave.get("b").await?, None);

    let (here, there) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move { new.serve(there).await });
    tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow(here).await }
    });
    timeout(Duration::from_secs(60), slave.wait_caught_up()).await??;
    assert_eq!(slave.get("b").await?.as_deref(), Some(&b"2"[..]));
    Ok(())
}
