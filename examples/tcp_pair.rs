//! Master and slave as two programs:
//!
//! ```sh
//! cargo run --example tcp_pair -- master      # in one terminal
//! cargo run --example tcp_pair -- slave       # in another; stop and start it as you like
//! ```

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use replikv::{LmdbOptions, LmdbStore, Master, MasterConfig, Slave, SlaveConfig};
use tokio::net::TcpListener;
use tokio::time::sleep;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const ADDRESS: &str = "127.0.0.1:9999";

#[tokio::main]
async fn main() -> Result {
    let dir = std::env::temp_dir().join("replikv-tcp-pair");
    match std::env::args().nth(1).as_deref() {
        Some("master") => master(&dir, TcpListener::bind(ADDRESS).await?, usize::MAX).await,
        Some("slave") => slave(&dir, ADDRESS.parse()?).await,
        // Both at once, for a moment.
        Some("both") => {
            let dir = tempfile::tempdir()?;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            let (writing, reading) = (master(dir.path(), listener, 5), slave(dir.path(), address));
            tokio::select! {
                written = writing => written,
                read = reading => read,
            }
        }
        _ => Err("say master or slave".into()),
    }
}

async fn master(dir: &Path, listener: TcpListener, writes: usize) -> Result {
    let store = LmdbStore::open(dir.join("master"), LmdbOptions::default())?;
    let master = Master::open(store, MasterConfig::default()).await?;
    println!("the master serves on {}", listener.local_addr()?);
    tokio::spawn(master.clone().serve_tcp(listener));
    for count in 0..writes {
        master.put("count", count.to_string()).await?;
        sleep(Duration::from_millis(200)).await;
    }
    Ok(master.shutdown().await?)
}

async fn slave(dir: &Path, address: SocketAddr) -> Result {
    let store = LmdbStore::open(dir.join("slave"), LmdbOptions::default())?;
    let slave = Slave::open(store, SlaveConfig::new("example")).await?;
    let following = slave.clone();
    tokio::spawn(async move { following.follow_tcp(address).await });
    let mut progress = slave.subscribe();
    while progress.changed().await.is_ok() {
        if let Some(count) = slave.get("count").await? {
            println!("the slave has counted to {}", String::from_utf8_lossy(&count));
        }
    }
    Ok(())
}
