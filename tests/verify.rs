//! Proof of equality on every backend: no false alarm while writers write as fast as they can, and what differs is found
//! and mended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Error, Store, assert_equal, batch, open, print_seed, seed, soon};
use fastrand::Rng;
use replikv::{Durability, Keyspace, Master, MasterConfig, Seq, Slave, SlaveConfig, VerifyOptions, WriteSet};

/// Behind the longest key of any batch, and behind the end of any range that is deleted: no writer reaches it.
const MINE: &[u8] = &[0xFF; 7];
/// Few keys, so that all of them are hot.
const ROUNDS: u32 = 12;

async fn verifies(master_kind: &str, slave_kind: &str) -> Result<(), Error> {
    let seed = seed();
    print_seed(&format!("--test integration verify::{master_kind}_to_{slave_kind}"), seed);
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir()?;
    let master = Master::open(open(master_kind, &dir.path().join("master")), MasterConfig::default()).await?;
    let slave = Slave::open(open(slave_kind, &dir.path().join("slave")), SlaveConfig::new("edge")).await?;
    for _ in 0..100 {
        master.write(batch(&mut rng)).await?;
    }
    let (here, there) = tokio::io::duplex(64 << 10);
    let serving = tokio::spawn({
        let master = master.clone();
        async move { master.serve(there).await }
    });
    let following = tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow(here).await }
    });
    soon(slave.wait_caught_up()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4).map(|_| tokio::spawn(write(master.clone(), rng.fork(), stop.clone()))).collect();
    let begun = slave.status().position.ok_or("it follows")?.seq;
    let (mut round, mut ranges) = (0, 0);
    while round < ROUNDS || slave.status().position.is_none_or(|at| at.seq.since(begun) < 300) {
        let chunk = [500, 5_000, 1 << 20][round as usize % 3];
        let report = soon(slave.verify(VerifyOptions::default().chunk_bytes(chunk))).await?;
        assert!(report.is_equal(), "a false alarm in round {round}: {report:?}");
        let mut writes = WriteSet::builder();
        writes.put(Keyspace::Data, MINE, "1")?;
        slave.store().apply(writes.build(), Durability::Buffered).await?;
        let report = soon(slave.verify(VerifyOptions::default().chunk_bytes(chunk).repair())).await?;
        assert_eq!((report.different, report.repaired, report.healed), (1, 1, 0), "round {round}: {report:?}");
        assert_eq!(report.differences[0].key, MINE);
        (round, ranges) = (round + 1, ranges + report.ranges);
    }
    println!("{round} rounds, {ranges} ranges, at record {:?}", slave.status().position.map(|at| at.seq));
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        soon(slave.wait_applied(soon(writer).await??)).await?;
    }
    assert_equal(master.store(), slave.store()).await;
    slave.shutdown().await?;
    drop((soon(following).await?, soon(serving).await?));
    master.shutdown().await?;
    Ok(())
}

async fn write(master: Master<Store>, mut rng: Rng, stop: Arc<AtomicBool>) -> Result<Seq, replikv::WriteError> {
    let mut last = Seq::ZERO;
    while !stop.load(Ordering::Relaxed) {
        last = master.write(batch(&mut rng)).await?.seq;
        tokio::task::yield_now().await;
    }
    Ok(last)
}

macro_rules! every_way {
    ($($name:ident: $master:literal, $slave:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() -> Result<(), Error> {
                verifies($master, $slave).await
            }
        )*
    };
}

every_way! {
    memory_to_memory: "memory", "memory";
    lmdb_to_lmdb: "lmdb", "lmdb";
    sled_to_sled: "sled", "sled";
    lmdb_to_sled: "lmdb", "sled";
}
