//! A master in LMDB, a slave in memory, and a write that is read on the other side.

use replikv::{Batch, LmdbOptions, LmdbStore, Master, MasterConfig, MemoryStore, Slave, SlaveConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let master = Master::open(LmdbStore::open(dir.path(), LmdbOptions::default())?, MasterConfig::default()).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(master.clone().serve_tcp(listener));

    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge-1")).await?;
    let following = slave.clone();
    tokio::spawn(async move { following.follow_tcp(address).await });

    let token = master.write(Batch::new().put("greeting", "hello").delete("old")).await?;
    slave.wait_applied(token).await?;
    assert_eq!(slave.get("greeting").await?.as_deref(), Some(&b"hello"[..]));
    println!("the slave says {:?}", slave.get("greeting").await?);

    slave.shutdown().await?;
    Ok(master.shutdown().await?)
}
