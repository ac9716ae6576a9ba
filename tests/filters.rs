//! Slaves that subscribe to key ranges, on every backend: they hold what their master holds there, at its position, and
//! nothing else, whatever is written, restarted and subscribed to anew.

use std::time::Duration;

use crate::support::{Error, Store, batch, contents, key, open, print_seed, seed, soon};
use bytes::Bytes;
use fastrand::Rng;
use replikv::{
    KeyRange, KeyRanges, Master, MasterConfig, Retention, Slave, SlaveConfig, StoreError, VerifyOptions, subscription,
};

const ROUNDS: usize = 10;

fn ranges(rng: &mut Rng) -> KeyRanges {
    let range = |rng: &mut Rng| match rng.u8(..3) {
        0 => KeyRange::prefix(key(rng)),
        1 => KeyRange::from_bounds(key(rng)..),
        _ => {
            let (one, other) = (key(rng), key(rng));
            KeyRange::from_bounds(one.clone().min(other.clone())..=one.max(other))
        }
    };
    let count = rng.usize(1..4);
    (0..count).map(|_| range(rng)).collect()
}

async fn within(store: &Store, ranges: &KeyRanges) -> Vec<(Bytes, Bytes)> {
    contents(store).await.into_iter().filter(|(key, _)| ranges.contains(key)).collect()
}

async fn follows(master_kind: &str, slave_kind: &str) -> Result<(), Error> {
    let seed = seed();
    print_seed(&format!("--test integration filters::{master_kind}_to_{slave_kind}"), seed);
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir()?;
    let retention = Retention { max_bytes: 200_000, max_age_ms: None, hold_back_bytes: 0 };
    let config = MasterConfig::default().heartbeat(Duration::from_millis(20)).retention(retention);
    let master = Master::open(open(master_kind, &dir.path().join("master")), config).await?;
    let mut wanted = ranges(&mut rng);
    for round in 0..ROUNDS {
        if rng.bool() {
            wanted = ranges(&mut rng);
        }
        for _ in 0..rng.usize(0..300) {
            master.write(batch(&mut rng)).await?;
        }
        let config = SlaveConfig::new("edge").subscribe(wanted.clone());
        let slave = Slave::open(open(slave_kind, &dir.path().join("slave")), config).await?;
        let (here, there) = tokio::io::duplex(64 << 10);
        let (serving, following) = (master.clone(), slave.clone());
        let serving = tokio::spawn(async move { serving.serve(there).await });
        let following = tokio::spawn(async move { following.follow(here).await });
        for _ in 0..rng.usize(0..60) {
            master.write(batch(&mut rng)).await?;
        }
        soon(slave.wait_applied(master.status().published.seq)).await?;
        soon(slave.wait_caught_up()).await?;
        let held = within(slave.store(), &KeyRanges::all()).await;
        assert!(held == within(master.store(), &wanted).await, "round {round}: it does not hold {wanted}");
        let report = soon(slave.verify(VerifyOptions::default())).await?;
        assert!(report.is_equal() && report.entries == held.len() as u64, "round {round}: {report:?}");
        let outside = wanted.complement();
        if let Some(range) = outside.iter().next() {
            let read = slave.scan(range.clone(), replikv::ScanOptions::default()).await;
            assert!(matches!(read, Err(StoreError::NotSubscribed { .. })), "round {round}: {read:?}");
        }
        assert_eq!(subscription(slave.store()).await?, (!wanted.is_all()).then(|| wanted.clone()));
        slave.shutdown().await?;
        drop((soon(following).await?, soon(serving).await?));
    }
    master.shutdown().await?;
    Ok(())
}

macro_rules! every_way {
    ($($name:ident: $master:literal, $slave:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() -> Result<(), Error> {
                follows($master, $slave).await
            }
        )*
    };
}

every_way! {
    lmdb_to_lmdb: "lmdb", "lmdb";
    lmdb_to_sled: "lmdb", "sled";
    sled_to_lmdb: "sled", "lmdb";
}
