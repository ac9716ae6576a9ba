//! Every backend as the master of every backend, over TCP.

use crate::support::{Error, Store, assert_equal, batch, open, print_seed, seed, soon};
use fastrand::Rng;
use replikv::{KeepLog, Master, MasterConfig, Slave, SlaveConfig};
use tokio::net::TcpListener;

async fn replicates(master_kind: &str, slave_kind: &str) -> Result<(), Error> {
    let seed = seed();
    print_seed(&format!("--test integration cross_backend::{master_kind}_to_{slave_kind}"), seed);
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir()?;
    // A master that holds something already, so that the slave begins with a copy.
    let existing = open(master_kind, &dir.path().join("master"));
    let mut before = replikv::WriteSet::builder();
    for n in 0..2_000u32 {
        before.put(replikv::Keyspace::Data, n.to_be_bytes(), [1; 40])?;
    }
    existing.apply(before.build(), replikv::Durability::Synced).await?;
    let config = MasterConfig::default().chunk_bytes(20_000);
    let master = Master::open(existing, config).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(master.clone().serve_tcp(listener));

    for round in 0..3 {
        let slave = Slave::open(open_again(slave_kind, &dir, round).await, SlaveConfig::new("edge")).await?;
        let following = tokio::spawn({
            let slave = slave.clone();
            async move { slave.follow_tcp(address).await }
        });
        let mut token = None;
        for _ in 0..60 {
            token = Some(master.write(batch(&mut rng)).await?);
        }
        soon(slave.wait_applied(token.ok_or("nothing was written")?)).await?;
        assert_equal(master.store(), slave.store()).await;
        slave.shutdown().await?;
        soon(following).await??;
        // What is written now is missed, and must be made up for.
        for _ in 0..20 {
            master.write(batch(&mut rng)).await?;
        }
    }
    master.shutdown().await?;
    soon(serving).await??;
    Ok(())
}

// A store in memory begins anew each time, the others go on.
async fn open_again(kind: &str, dir: &tempfile::TempDir, _round: u32) -> Store {
    open(kind, &dir.path().join("slave"))
}

/// A relay on one backend, below a master and above a slave in memory: it copies, follows, dies, and goes on from what it
/// has kept.
async fn relays(kind: &str) -> Result<(), Error> {
    let seed = seed();
    print_seed(&format!("--test integration cross_backend::{kind}_as_a_relay"), seed);
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir()?;
    let master = Master::open(open("memory", &dir.path().join("master")), MasterConfig::default()).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let top = listener.local_addr()?;
    let serving = tokio::spawn(master.clone().serve_tcp(listener));
    let leaf = Slave::open(open("memory", &dir.path().join("leaf")), SlaveConfig::new("leaf")).await?;
    for round in 0..4 {
        let config = SlaveConfig::new("relay").keep_log(KeepLog::default());
        let relay = Slave::open(open(kind, &dir.path().join("relay")), config).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let middle = listener.local_addr()?;
        let relaying = tokio::spawn(relay.clone().serve_tcp(listener));
        let following = tokio::spawn({
            let relay = relay.clone();
            async move { relay.follow_tcp(top).await }
        });
        // In the last round the leaf has another parent for a while.
        let parent = if round == 3 { top } else { middle };
        let below = tokio::spawn({
            let leaf = leaf.clone();
            async move { leaf.follow_tcp(parent).await }
        });
        let mut token = None;
        for _ in 0..60 {
            token = Some(master.write(batch(&mut rng)).await?);
        }
        let token = token.ok_or("nothing was written")?;
        soon(leaf.wait_applied(token)).await?;
        soon(relay.wait_applied(token)).await?;
        below.abort();
        drop(below.await);
        for store in [relay.store(), leaf.store()] {
            assert_equal(master.store(), store).await;
        }
        assert_eq!((leaf.status().copies, leaf.status().comparisons), (0, 0));
        let kept = replikv::read_log(relay.store(), replikv::Seq::ZERO, usize::MAX).await?;
        assert_eq!(kept, replikv::read_log(master.store(), replikv::Seq::ZERO, usize::MAX).await?);
        relay.shutdown().await?;
        soon(following).await??;
        soon(relaying).await??;
        for _ in 0..20 {
            master.write(batch(&mut rng)).await?;
        }
    }
    master.shutdown().await?;
    soon(serving).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lmdb_as_a_relay() -> Result<(), Error> {
    relays("lmdb").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sled_as_a_relay() -> Result<(), Error> {
    relays("sled").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fjall_as_a_relay() -> Result<(), Error> {
    relays("fjall").await
}

macro_rules! pairs {
    ($($name:ident: $master:literal $slave:literal;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<(), Error> {
            replicates($master, $slave).await
        }
    )*};
}

pairs! {
    memory_to_memory: "memory" "memory";
    memory_to_lmdb: "memory" "lmdb";
    memory_to_sled: "memory" "sled";
    lmdb_to_memory: "lmdb" "memory";
    lmdb_to_lmdb: "lmdb" "lmdb";
    lmdb_to_sled: "lmdb" "sled";
    sled_to_memory: "sled" "memory";
    sled_to_lmdb: "sled" "lmdb";
    sled_to_sled: "sled" "sled";
    lmdb_to_redb: "lmdb" "redb";
    redb_to_lmdb: "redb" "lmdb";
    redb_to_redb: "redb" "redb";
    redb_to_memory: "redb" "memory";
    fjall_to_lmdb: "fjall" "lmdb";
    lmdb_to_fjall: "lmdb" "fjall";
    fjall_to_fjall: "fjall" "fjall";
    fjall_to_memory: "fjall" "memory";
    memory_to_fjall: "memory" "fjall";
    redb_to_fjall: "redb" "fjall";
}
