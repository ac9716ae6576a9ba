//! An LMDB master feeds a sled slave: first what was there before, then what is written.

use replikv::{
    Durability, Keyspace, LmdbOptions, LmdbStore, Master, MasterConfig, ReplicaStore, Slave, SlaveConfig, SledStore,
    WriteSet,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;

    // A store that was in use before replication was thought of.
    let store = LmdbStore::open(dir.path().join("central"), LmdbOptions::default())?;
    let mut before = WriteSet::builder();
    for number in 0..1000u32 {
        before.put(Keyspace::Data, format!("before/{number:04}"), "from the old days")?;
    }
    store.apply(before.build(), Durability::Synced).await?;

    let master = Master::open(store, MasterConfig::default()).await?;
    let slave = Slave::open(SledStore::open(dir.path().join("edge"))?, SlaveConfig::new("edge-1")).await?;

    // Any byte stream will do; this one stays in the process.
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });

    let token = master.put("after", "live").await?;
    slave.wait_applied(token).await?;
    assert!(slave.get("before/0999").await?.is_some());
    assert!(slave.get("after").await?.is_some());
    println!("sled holds what LMDB holds, up to record {}", token.seq);

    slave.shutdown().await?;
    Ok(master.shutdown().await?)
}
