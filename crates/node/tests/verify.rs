//! Proof of equality while writes go on: no false alarms, every difference by key, and repairs that lose nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Error, Store, assert_equal, connect, contents, master, slave, soon, store, store_with, until};
use bytes::Bytes;
use replikv_core::{Batch, Durability, KeyRange, Keyspace, ReplicaStore, Seq, WriteSet};
use replikv_memory::MemoryStore;
use replikv_node::{
    DifferenceKind, Master, MasterConfig, Slave, SlaveConfig, VerifyError, VerifyOptions, VerifyReport,
};
use replikv_testkit::FaultStore;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const ENTRIES: u32 = 2_000;

fn rng(test: &str) -> fastrand::Rng {
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_125);
    println!("reproduce: REPLIKV_SEED={seed} cargo test -p replikv-node --all-features --test node verify::{test}");
    fastrand::Rng::with_seed(seed)
}

/// Behind everybody's back.
async fn tamper(store: &impl ReplicaStore, key: &[u8], value: Option<&[u8]>) -> Result<(), Error> {
    let mut writes = WriteSet::builder();
    match value {
        Some(value) => writes.put(Keyspace::Data, key, value)?,
        None => writes.delete(Keyspace::Data, key)?,
    };
    Ok(store.apply(writes.build(), Durability::Buffered).await?)
}

/// Writes to a few keys as fast as the master takes it, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<(u64, Seq)>>,
}

impl Load {
    /// All writers write below `keys`; those of `spare` are left alone.
    fn start<S: ReplicaStore>(master: &Master<S>, rng: &mut fastrand::Rng, keys: u32, spare: &[u32]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |mut rng: fastrand::Rng| {
            let (master, stop, spare) = (master.clone(), stop.clone(), spare.to_vec());
            tokio::spawn(async move {
                let (mut batches, mut last) = (0, Seq::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let mut batch = Batch::new();
                    for _ in 0..rng.usize(1..4) {
                        let n = rng.u32(..keys);
                        let end = (n + rng.u32(1..4)).min(keys);
                        batch = match rng.u8(..10) {
                            _ if spare.iter().any(|spared| (n..end.max(n + 1)).contains(spared)) => batch,
                            0 => batch.delete_range(n.to_be_bytes()..end.to_be_bytes()),
                            1..=2 => batch.delete(n.to_be_bytes()),
                            _ => batch.put(n.to_be_bytes(), vec![rng.u8(..); rng.usize(..120)]),
                        };
                    }
                    last = master.write(batch).await.unwrap().seq;
                    batches += 1;
                    tokio::task::yield_now().await;
                }
                (batches, last)
            })
        };
        let writers = (0..4).map(|_| writer(rng.fork())).collect();
        Self { stop, writers }
    }

    /// How many batches were written, once the slave has applied the last one.
    async fn end<S: ReplicaStore>(self, slave: &Slave<S>) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut batches = 0;
        for writer in self.writers {
            let (written, last) = soon(writer).await.unwrap();
            soon(slave.wait_applied(last)).await.unwrap();
            batches += written;
        }
        batches
    }
}

async fn caught_up() -> Result<(Master<Store>, Slave<Store>), Error> {
    let master = master(&store_with(ENTRIES).await, MasterConfig::default()).await;
    let slave = slave(&store(), "edge").await;
    Ok((master, slave))
}

fn found(report: &VerifyReport) -> Vec<(Bytes, DifferenceKind)> {
    report.differences.iter().map(|difference| (difference.key.clone(), difference.kind)).collect()
}

fn key(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// Four rounds of verifying under full load: nothing may be found, since nothing is wrong.
async fn no_false_alarm<S: ReplicaStore>(test: &str, source: S, target: S, rounds: u32) -> Result<(), Error> {
    let mut rng = rng(test);
    let master = Master::open(source, MasterConfig::default()).await?;
    for n in 0..ENTRIES {
        if n % 100 == 0 {
            let batch = (n..n + 100).fold(Batch::new(), |batch, n| batch.put(n.to_be_bytes(), [7; 100]));
            master.write(batch).await?;
        }
    }
    let slave = Slave::open(target, SlaveConfig::new("edge")).await?;
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
    let load = Load::start(&master, &mut rng, ENTRIES / 10, &[]);
    let begun = slave.status().position.ok_or("it follows")?.seq;
    let (mut ranges, mut positions) = (0, Vec::new());
    let mut round = 0;
    // However slow the writers are, many of their batches fall into it.
    while round < rounds || slave.status().position.is_none_or(|at| at.seq.since(begun) < 400) {
        let chunk = [700, 8_000, 64_000][round as usize % 3];
        let report = soon(slave.verify(VerifyOptions::default().chunk_bytes(chunk))).await?;
        assert_eq!((report.is_equal(), found(&report)), (true, Vec::new()), "a false alarm in round {round}");
        assert!(report.entries >= u64::from(ENTRIES - ENTRIES / 10) && report.bytes > report.entries);
        ranges += report.ranges;
        positions.extend(report.position.map(|at| at.seq));
        round += 1;
    }
    let batches = load.end(&slave).await;
    println!("{ranges} ranges compared while {batches} batches were written");
    assert!(positions.is_sorted() && positions.first() < positions.last(), "{positions:?}");
    // The slave has gone on applying, and is what its master is.
    assert!(contents(master.store()).await == contents(slave.store()).await, "master and slave differ");
    following.abort();
    drop(soon(serving).await);
    soon(slave.shutdown()).await?;
    soon(master.shutdown()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_false_alarm_under_full_load_in_memory() -> Result<(), Error> {
    let test = "there_is_no_false_alarm_under_full_load_in_memory";
    no_false_alarm(test, MemoryStore::new(), MemoryStore::new(), 12).await
}

#[tokio::test]
async fn whatever_differs_behind_the_slaves_back_is_found_by_key() -> Result<(), Error> {
    let (master, slave) = caught_up().await?;
    let (_serving, _following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    let first = soon(slave.verify(VerifyOptions::default())).await?;
    assert_eq!((first.is_equal(), first.entries), (true, u64::from(ENTRIES)));
    tamper(slave.store(), &key(5), Some(b"another")).await?;
    tamper(slave.store(), &key(700), None).await?;
    tamper(slave.store(), b"\xFFmine", Some(b"1")).await?;
    let wanted = vec![
        (key(5), DifferenceKind::Value),
        (key(700), DifferenceKind::Missing),
        (Bytes::from_static(b"\xFFmine"), DifferenceKind::Extra),
    ];
    for chunk in [1, 300, 5_000, 1 << 20] {
        let report = soon(slave.verify(VerifyOptions::default().chunk_bytes(chunk))).await?;
        assert_eq!((found(&report), report.different, report.repaired), (wanted.clone(), 3, 0), "chunk {chunk}");
        assert_eq!((report.is_equal(), report.healed), (false, 0));
    }
    // What is not asked about is not looked at.
    let range = KeyRange::new(key(100), Some(key(701)));
    let report = soon(slave.verify(VerifyOptions::default().ranges([range]))).await?;
    assert_eq!(found(&report), [(key(700), DifferenceKind::Missing)]);
    assert_eq!(report.entries, 600);
    // Nothing was mended, since nobody asked for it.
    assert_eq!(contents(slave.store()).await.len(), ENTRIES as usize);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differences_are_found_and_mended_while_their_neighbours_are_written() -> Result<(), Error> {
    let mut rng = rng("differences_are_found_and_mended_while_their_neighbours_are_written");
    let (master, slave) = caught_up().await?;
    let (_serving, _following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    // Among the hottest keys, and not written themselves: they stay wrong until they are mended.
    let spare = [7, 20, 33];
    let load = Load::start(&master, &mut rng, 60, &spare);
    for round in 0..20 {
        tamper(slave.store(), &key(7), Some(b"another")).await?;
        tamper(slave.store(), &key(20), None).await?;
        tamper(slave.store(), &[&key(33)[..], b"mine"].concat(), Some(b"1")).await?;
        let wanted = vec![
            (key(7), DifferenceKind::Value),
            (key(20), DifferenceKind::Missing),
            (Bytes::from([&key(33)[..], b"mine"].concat()), DifferenceKind::Extra),
        ];
        let options = VerifyOptions::default().chunk_bytes([200, 3_000, 100_000][round % 3]).repair();
        let report = soon(slave.verify(options)).await?;
        assert_eq!((found(&report), report.repaired, report.healed), (wanted, 3, 0), "round {round}");
        let again = soon(slave.verify(VerifyOptions::default())).await?;
        assert!(again.is_equal(), "round {round}: {:?}", found(&again));
    }
    assert!(load.end(&slave).await > 100);
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_never_undoes_what_is_being_written() -> Result<(), Error> {
    let mut rng = rng("a_repair_never_undoes_what_is_being_written");
    let (master, slave) = caught_up().await?;
    let (_serving, _following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    let load = Load::start(&master, &mut rng, 40, &[]);
    let mut mended = 0;
    for _ in 0..40 {
        for _ in 0..5 {
            let n = rng.u32(..40);
            let value = rng.bool().then_some(&b"another"[..]);
            tamper(slave.store(), &key(n), value).await?;
        }
        let report = soon(slave.verify(VerifyOptions::default().repair())).await?;
        assert!(report.differences.iter().all(|difference| difference.key < key(40)), "{:?}", found(&report));
        mended += report.repaired;
    }
    assert!(load.end(&slave).await > 100 && mended > 0);
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test]
async fn the_list_of_keys_is_bounded_and_all_are_counted_and_mended() -> Result<(), Error> {
    let (master, slave) = caught_up().await?;
    let (_serving, _following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    for n in 0..500 {
        tamper(slave.store(), &key(n * 3), None).await?;
    }
    let options = VerifyOptions::default().chunk_bytes(2_000).max_differences(7).repair();
    let report = soon(slave.verify(options.clone())).await?;
    assert_eq!((report.differences.len(), report.different, report.repaired), (7, 500, 500));
    assert_eq!(found(&report)[6], (key(18), DifferenceKind::Missing));
    assert_equal(&master, &slave).await;
    // More than goes into one transaction.
    let mut writes = WriteSet::builder();
    for n in 0..30_000u32 {
        writes.put(Keyspace::Data, [&b"\xFFmine"[..], &n.to_be_bytes(), &[1; 60]].concat(), "1")?;
    }
    slave.store().apply(writes.build(), Durability::Buffered).await?;
    let report = soon(slave.verify(options)).await?;
    assert_eq!((report.differences.len(), report.different, report.repaired), (7, 30_000, 30_000));
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test]
async fn verifying_goes_on_over_connections_that_die() -> Result<(), Error> {
    let (master, slave) = caught_up().await?;
    let (_serving, following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    tamper(slave.store(), &key(ENTRIES - 1), None).await?;
    let (tell, mut told) = watch::channel(VerifyReport::default());
    let verifying = tokio::spawn({
        let slave = slave.clone();
        async move { slave.verify(VerifyOptions::default().chunk_bytes(1_000).progress(tell).repair()).await }
    });
    let mut following = following;
    for cut in 1..=5 {
        soon(told.wait_for(|report| report.ranges >= cut * 10)).await?;
        following.abort();
        drop(following.await);
        following = connect(&master, &slave).1;
    }
    let report = soon(verifying).await??;
    assert_eq!(found(&report), [(key(ENTRIES - 1), DifferenceKind::Missing)]);
    // None was left out, and none was taken twice.
    assert_eq!(report.entries, u64::from(ENTRIES) - 1);
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test]
async fn a_connection_that_stays_away_ends_it_with_what_was_found() -> Result<(), Error> {
    let (master, slave) = caught_up().await?;
    let (_serving, following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    tamper(slave.store(), &key(0), None).await?;
    let (tell, mut told) = watch::channel(VerifyReport::default());
    let options = VerifyOptions::default().chunk_bytes(1).progress(tell).patience(std::time::Duration::from_millis(50));
    let verifying = tokio::spawn({
        let slave = slave.clone();
        async move { slave.verify(options).await }
    });
    soon(told.wait_for(|report| report.ranges >= 10)).await?;
    following.abort();
    drop(following.await);
    let Err(VerifyError::Interrupted { report }) = soon(verifying).await? else { panic!("it was interrupted") };
    assert!(report.ranges >= 10);
    assert_eq!(found(&report), [(key(0), DifferenceKind::Missing)]);
    Ok(())
}

#[tokio::test]
async fn only_one_who_follows_and_is_consistent_verifies_and_only_once_at_a_time() -> Result<(), Error> {
    let source = store_with(ENTRIES).await;
    let master = master(&source, MasterConfig::default().chunk_bytes(1_000)).await;
    let target = FaultStore::new(MemoryStore::new());
    let slave = slave(&target, "edge").await;
    assert_eq!(soon(slave.verify(VerifyOptions::default())).await, Err(VerifyError::NotConnected));
    let (_serving, _following) = connect(&master, &slave);
    until(|| slave.subscribe().borrow().connected).await;
    if !slave.subscribe().borrow().consistent {
        assert_eq!(soon(slave.verify(VerifyOptions::default())).await, Err(VerifyError::NotConsistent));
    }
    soon(slave.wait_caught_up()).await?;
    let (tell, mut told) = watch::channel(VerifyReport::default());
    let first = tokio::spawn({
        let slave = slave.clone();
        let options = VerifyOptions::default().chunk_bytes(1_000).bytes_per_second(1_000).progress(tell);
        async move { slave.verify(options).await }
    });
    soon(told.wait_for(|report| report.ranges > 0)).await?;
    assert_eq!(soon(slave.verify(VerifyOptions::default())).await, Err(VerifyError::AlreadyVerifying));
    // Dropped, it leaves nothing behind.
    first.abort();
    drop(first.await);
    assert!(soon(slave.verify(VerifyOptions::default())).await?.is_equal());
    let last = tokio::spawn({
        let slave = slave.clone();
        let options = VerifyOptions::default().chunk_bytes(1_000).bytes_per_second(1_000);
        async move { slave.verify(options).await }
    });
    soon(slave.shutdown()).await?;
    assert_eq!(soon(last).await?, Err(VerifyError::Closed));
    Ok(())
}
