//! Compaction by key on real stores: reopened in between, and followed across backends.

use std::error::Error;
use std::time::Duration;

use futures_util::TryStreamExt;
use replikv::{
    Batch, Compaction, KeyRange, Keyspace, LmdbOptions, LmdbStore, LogPart, Master, MasterConfig, ReplicaStore,
    ReplicaStoreExt, Retention, ScanOptions, Seq, Slave, SlaveConfig, SledStore, read_log_parts,
};
use tokio::time::{sleep, timeout};

type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

const KEYS: u32 = 300;

fn config() -> MasterConfig {
    let retention = Retention { max_bytes: u64::MAX, max_age_ms: None, hold_back_bytes: u64::MAX };
    let compaction = Compaction { window_bytes: 8_000, window_records: 10 };
    MasterConfig::default().retention(retention).compaction(compaction).ring_bytes(0)
}

// The limit only turns a hang into a failure.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(120), future).await.expect("nothing hangs")
}

async fn overwrite(master: &Master<impl ReplicaStore>, rounds: u32) -> Res<()> {
    for round in 0..rounds {
        let batch = (0..100).fold(Batch::new(), |batch, n| {
            batch.put(((round * 37 + n * 3) % KEYS).to_be_bytes(), (round * 100 + n).to_be_bytes())
        });
        let gone = (round * 11 % KEYS).to_be_bytes();
        master.write(batch.delete(gone).delete_range([0, 0, 0, 7]..[0, 0, 0, 9])).await?;
    }
    Ok(())
}

async fn compacted(master: &Master<impl ReplicaStore>) {
    soon(async {
        loop {
            let status = master.status();
            let full = status.compacted.map_or(0, |compacted| compacted.log_bytes);
            if status.log_bytes - full < 30_000 {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn visit(master: &Master<impl ReplicaStore>, slave: &Slave<impl ReplicaStore>) -> Res<()> {
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    let serving = tokio::spawn(async move { serving.serve(here).await });
    let following = tokio::spawn(async move { following.follow(there).await });
    soon(slave.wait_caught_up()).await?;
    // Its last acknowledgement has arrived: its slot will stand where it stands.
    let published = master.status().published.seq;
    soon(async {
        while !master.status().slaves.iter().any(|slave| slave.durable == published) {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    following.abort();
    drop(following.await);
    drop(soon(serving).await?);
    let all = || (Keyspace::Data, KeyRange::all(), ScanOptions::default());
    let left: Vec<_> = {
        let (k, r, o) = all();
        master.store().entries(k, r, o).try_collect().await?
    };
    let right: Vec<_> = {
        let (k, r, o) = all();
        slave.store().entries(k, r, o).try_collect().await?
    };
    assert!(left == right, "master and slave differ");
    Ok(())
}

async fn goes_through_a_compacted_log<M, S>(open: impl Fn() -> Res<M>, edge: S) -> Res<()>
where
    M: ReplicaStore,
    S: ReplicaStore,
{
    let first = Master::open(open()?, config()).await?;
    overwrite(&first, 20).await?;
    let slave = Slave::open(edge, SlaveConfig::new("edge")).await?;
    visit(&first, &slave).await?;
    // Its slot is written within a second: by it the slave is known later.
    soon(async {
        while !first.status().slots.iter().any(|slot| slot.position == first.status().published) {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    overwrite(&first, 200).await?;
    compacted(&first).await;
    first.shutdown().await?;

    let master = Master::open(open()?, config()).await?;
    let (comparisons, records) = (slave.status().comparisons, slave.status().records);
    visit(&master, &slave).await?;
    assert_eq!(slave.status().comparisons, comparisons, "it resumed");
    assert!(slave.status().records - records < 60, "and did not go through every batch");

    slave.shutdown().await?;
    let published = master.status().published.seq;
    // While it compacts, what is touched moves, and a reader of several pages may meet it twice.
    master.shutdown().await?;
    let log = open()?;
    let (mut touched, mut at) = (0, Seq::ZERO);
    while let Some(last) = {
        let parts = read_log_parts(&log, at, 7).await?;
        let entries = parts.iter().map(|part| match part {
            LogPart::Compacted { touched, .. } => touched.len(),
            _ => 0,
        });
        touched += entries.sum::<usize>();
        parts.last().map(LogPart::end)
    } {
        at = last.seq;
    }
    assert_eq!(at, published, "the parts follow one another up to the end");
    // One of each key, and the one range that is deleted over and over.
    assert!((1..=KEYS as usize + 1).contains(&touched), "{touched}");
    Ok(log.close().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sled_slave_goes_through_the_compacted_log_of_an_lmdb_master() -> Res<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("master");
    let open = || Ok(LmdbStore::open(&path, LmdbOptions::default())?);
    goes_through_a_compacted_log(open, SledStore::open(dir.path().join("edge"))?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lmdb_slave_goes_through_the_compacted_log_of_a_sled_master() -> Res<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("master");
    let open = || Ok(SledStore::open(&path)?);
    goes_through_a_compacted_log(open, LmdbStore::open(dir.path().join("edge"), LmdbOptions::default())?).await
}
