//! The same master serves a slave over a Unix socket and another one within the process.

use replikv::{Master, MasterConfig, MemoryStore, Slave, SlaveConfig};
use tokio::net::{UnixListener, UnixStream};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
    let near = Slave::open(MemoryStore::new(), SlaveConfig::new("near")).await?;
    let far = Slave::open(MemoryStore::new(), SlaveConfig::new("far")).await?;

    let dir = tempfile::tempdir()?;
    let path = dir.path().join("replikv.sock");
    let listener = UnixListener::bind(&path)?;
    let (serving, following) = (master.clone(), far.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serving = serving.clone();
            tokio::spawn(async move { serving.serve(stream).await });
        }
    });
    let stream = UnixStream::connect(path).await?;
    tokio::spawn(async move { following.follow(stream).await });

    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), near.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });

    let token = master.put("greeting", "hello").await?;
    near.wait_applied(token).await?;
    far.wait_applied(token).await?;
    println!("both slaves hold record {}", token.seq);

    near.shutdown().await?;
    far.shutdown().await?;
    Ok(master.shutdown().await?)
}
