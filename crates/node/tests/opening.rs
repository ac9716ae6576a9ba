//! Opening stores: those of newer programs, of the other role, damaged ones.

use crate::support::{self, Error, Store, entries, followed, master, store};
use replikv_core::{Keyspace, LinkId, ReplicaStore, StoreError, meta};
use replikv_memory::MemoryStore;
use replikv_node::{Master, MasterConfig, OpenError, Slave, SlaveConfig, role};
use replikv_proto::layout::{Epochs, Floor, Head, Identity, LAYOUT_FORMAT, Role};
use replikv_testkit::FaultStore;

async fn masters_store() -> Result<Store, Error> {
    let store = store();
    let master = master(&store, MasterConfig::default()).await;
    for n in 0..300u32 {
        master.put(n.to_be_bytes(), "v").await?;
    }
    master.shutdown().await?;
    Ok(FaultStore::new(store.inner().open_again()))
}

async fn everything(store: &Store) -> Vec<support::Contents> {
    let mut all = Vec::new();
    for keyspace in Keyspace::ALL {
        all.push(entries(store, keyspace).await);
    }
    all
}

fn newer(value: &mut Vec<u8>) {
    value[0] = LAYOUT_FORMAT + 1;
    value.extend_from_slice(b"fields of the future");
}

#[tokio::test]
async fn a_store_of_a_newer_format_is_refused_by_name_and_left_alone() -> Result<(), Error> {
    for key in [Identity::KEY, Head::KEY, Floor::KEY, Epochs::KEY] {
        let store = masters_store().await?;
        assert!(store.damage(Keyspace::Meta, key, newer).await?);
        let before = everything(&store).await;
        let error = Master::open(store.clone(), MasterConfig::default()).await.err().ok_or("it was opened")?;
        let words = error.to_string();
        assert!(matches!(error, OpenError::Store(StoreError::NewerFormat { found: 2, supported: 1, .. })), "{words}");
        assert!(words.contains("newer format") && words.contains("reads up to 1"), "{words}");
        assert!(everything(&store).await == before, "nothing is written");
    }
    let store = masters_store().await?;
    store.damage(Keyspace::Meta, Identity::KEY, newer).await?;
    assert!(matches!(role(&store).await, Err(StoreError::NewerFormat { .. })));
    let slave = Slave::open(store, SlaveConfig::new("edge")).await;
    assert!(matches!(slave, Err(OpenError::Store(StoreError::NewerFormat { .. }))));
    Ok(())
}

#[tokio::test]
async fn a_damaged_identity_is_no_empty_store() -> Result<(), Error> {
    for key in [Identity::KEY, Head::KEY, Floor::KEY, Epochs::KEY] {
        for damage in [Vec::clear as fn(&mut Vec<u8>), |value| value.truncate(1), |value| value.push(0)] {
            let store = masters_store().await?;
            store.damage(Keyspace::Meta, key, damage).await?;
            let before = everything(&store).await;
            let opened = Master::open(store.clone(), MasterConfig::default()).await;
            assert!(matches!(opened, Err(OpenError::Store(StoreError::Corrupt { .. }))), "{}", key.escape_ascii());
            assert!(everything(&store).await == before);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_damaged_cursor_is_no_missing_cursor() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    master.put("a", "1").await?;
    let store = followed(&master, "edge").await;
    store.damage(Keyspace::Meta, &meta::cursor_key(&LinkId::default()), |cursor| cursor.truncate(9)).await?;
    let opened = Slave::open(store.clone(), SlaveConfig::new("edge")).await;
    assert!(matches!(opened, Err(OpenError::Store(StoreError::Corrupt { .. }))));
    Ok(())
}

#[tokio::test]
async fn a_store_keeps_its_role() -> Result<(), Error> {
    let masters = masters_store().await?;
    assert_eq!(role(&masters).await?, Some(Role::Master));
    let opened = Slave::open(masters.clone(), SlaveConfig::new("edge")).await;
    assert!(matches!(opened, Err(OpenError::Role { found: Role::Master, wanted: Role::Slave })));
    let master = master(&masters, MasterConfig::default()).await;
    let slaves = followed(&master, "edge").await;
    assert_eq!(role(&slaves).await?, Some(Role::Slave));
    let opened = Master::open(slaves.clone(), MasterConfig::default()).await;
    assert!(matches!(opened, Err(OpenError::Role { found: Role::Slave, wanted: Role::Master })));
    let other = SlaveConfig::new("edge").link(LinkId::new("other")?);
    assert!(matches!(Slave::open(slaves, other).await, Err(OpenError::OtherLink { .. })));
    assert_eq!(role(&MemoryStore::new()).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_failed_read_while_opening_begins_no_new_history() -> Result<(), Error> {
    let store = masters_store().await?;
    let before = everything(&store).await;
    store.faults().fail_reads(Keyspace::Meta, 1, &StoreError::backend("the disk says no"));
    assert!(Master::open(store.clone(), MasterConfig::default()).await.is_err());
    assert!(everything(&store).await == before);
    store.faults().fail_reads(Keyspace::Meta, 1, &StoreError::backend("the disk says no"));
    assert!(Slave::open(store.clone(), SlaveConfig::new("edge")).await.is_err());
    assert!(everything(&store).await == before);
    let master = master(&store, MasterConfig::default()).await;
    assert_eq!(master.put("a", "1").await?.seq.as_u64(), 302);
    assert!(store.get(Keyspace::Data, b"a").await?.is_some());
    Ok(())
}
