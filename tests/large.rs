//! Large and awkward data: through the write, the log, fragments, the copy and the stream of changes.

use crate::support::{Error, Store, assert_equal, open, soon};
use futures_util::TryStreamExt;
use replikv::{
    Batch, ChangeOp, ChangesFrom, KeyRange, Keyspace, Master, MasterConfig, ReplicaStore, ScanOptions, Slave,
    SlaveConfig, StoreLimits, WriteError,
};
use tokio::net::TcpListener;

const MIB: usize = 1 << 20;

/// A master with these limits, a slave that has caught up, and what it takes to write on.
struct Pair {
    master: Master<Store>,
    slave: Slave<Store>,
    _dir: tempfile::TempDir,
}

impl Pair {
    async fn new(master_kind: &str, slave_kind: &str, limits: StoreLimits) -> Result<Self, Error> {
        let dir = tempfile::tempdir()?;
        let store = open(master_kind, &dir.path().join("master"));
        let master = Master::open(store, MasterConfig::default().limits(limits)).await?;
        let slave = Self::follow(&master, open(slave_kind, &dir.path().join("slave")), "edge").await?;
        Ok(Self { master, slave, _dir: dir })
    }

    async fn follow(master: &Master<Store>, store: Store, name: &str) -> Result<Slave<Store>, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(master.clone().serve_tcp(listener));
        let slave = Slave::open(store, SlaveConfig::new(name)).await?;
        let following = slave.clone();
        tokio::spawn(async move { following.follow_tcp(address).await });
        soon(slave.wait_caught_up()).await?;
        Ok(slave)
    }

    async fn write(&self, batch: Batch) -> Result<(), Error> {
        let token = soon(async { self.master.write(batch).await }).await?;
        soon(self.slave.wait_applied(token)).await?;
        assert_equal(self.master.store(), self.slave.store()).await;
        Ok(())
    }
}

fn limits(max_value: usize, max_batch: usize) -> StoreLimits {
    StoreLimits { max_key: 511, max_value, max_batch }
}

// Bytes that no fragment boundary leaves in place by accident.
fn value(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 257) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_of_many_frames_arrives_by_the_log_by_the_copy_and_as_a_change() -> Result<(), Error> {
    let pair = Pair::new("lmdb", "lmdb", limits(48 * MIB, 50 * MIB)).await?;
    let mut changes = pair.master.changes(ChangesFrom::Now, []).await?;
    let large = value(48 * MIB);
    pair.write(Batch::new().put("large", &large)).await?;
    let change = soon(changes.try_next()).await?.ok_or("the stream has ended")?;
    let Some(ChangeOp::Put { value, .. }) = change.ops().next() else { return Err("no put".into()) };
    assert!(value == large, "the change holds the value");
    // A second slave gets it from the log, or by a copy, whichever is less.
    pair.master.write(Batch::new().put("small", "")).await?;
    let late = Pair::follow(&pair.master, open("memory", std::path::Path::new("")), "late").await?;
    assert_equal(pair.master.store(), late.store()).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_value_that_was_there_before_is_copied() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let store = open("lmdb", &dir.path().join("master"));
    let mut before = replikv::WriteSet::builder();
    before.put(Keyspace::Data, "a", value(40 * MIB))?;
    before.put(Keyspace::Data, "b", "small")?;
    before.put(Keyspace::Data, "c", value(MIB + 1))?;
    store.apply(before.build(), replikv::Durability::Synced).await?;
    let master = Master::open(store, MasterConfig::default().limits(limits(40 * MIB, 44 * MIB))).await?;
    let slave = Pair::follow(&master, open("sled", &dir.path().join("slave")), "edge").await?;
    assert_equal(master.store(), slave.store()).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_as_large_as_allowed_goes_through_and_one_byte_more_does_not() -> Result<(), Error> {
    let pair = Pair::new("memory", "lmdb", limits(MIB, 8 * MIB)).await?;
    let mut batch = Batch::new();
    let mut n = 0u32;
    while batch.byte_len() + MIB / 2 < 8 * MIB {
        batch = batch.put(n.to_be_bytes(), value(300_000));
        n += 1;
    }
    // Fills up to the last byte: the tag, the key, and both lengths come on top of the value.
    let rest = 8 * MIB - batch.byte_len();
    let fitting = (0..16).map(|over| batch.clone().put("last", value(rest - over)));
    let full = fitting.into_iter().find(|batch| batch.byte_len() == 8 * MIB).ok_or("no batch of that size")?;
    let over = full.clone().delete("x");
    let refused = pair.master.write(over).await;
    assert!(matches!(refused, Err(WriteError::Store(replikv::StoreError::BatchTooLarge { .. }))), "{refused:?}");
    assert!(pair.master.get("last").await?.is_none(), "nothing of it was written");
    pair.write(full).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_tiny_operations_are_one_batch() -> Result<(), Error> {
    let pair = Pair::new("memory", "memory", limits(MIB, 64 * MIB)).await?;
    let mut batch = Batch::new();
    for n in 0..1_000_000u32 {
        // Overwrites and deletes among them.
        let key = (n % 700_000).to_be_bytes();
        batch.push(match n % 5 {
            4 => replikv::Op::Delete { key: &key },
            _ => replikv::Op::Put { key: &key, value: b"" },
        });
    }
    pair.write(batch).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_keys_of_every_byte_and_empty_values_arrive() -> Result<(), Error> {
    let pair = Pair::new("lmdb", "sled", limits(MIB, 8 * MIB)).await?;
    let mut batch = Batch::new();
    for byte in 0..=255u8 {
        batch = batch.put([byte; 511], "").put([byte], [byte]).put([[byte; 510].as_slice(), b"\x00"].concat(), "x");
    }
    pair.write(batch).await?;
    pair.write(Batch::new().delete_range([0x7F; 511]..[0x90; 511])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_under_one_prefix_are_paged_without_a_gap() -> Result<(), Error> {
    let pair = Pair::new("memory", "lmdb", limits(MIB, 64 * MIB)).await?;
    let mut token = None;
    for chunk in 0..30u32 {
        let keys = (0..10_000u32).map(|n| format!("one-prefix/{:08}", chunk * 10_000 + n));
        let batch = keys.fold(Batch::new(), |batch, key| batch.put(key, "v"));
        token = Some(pair.master.write(batch).await?);
    }
    soon(pair.slave.wait_applied(token.ok_or("nothing was written")?)).await?;
    let mut rest = Some(KeyRange::prefix("one-prefix/"));
    let mut found = 0u32;
    while let Some(range) = rest {
        let page = pair.slave.scan(range, ScanOptions::default().max_entries(999)).await?;
        for (key, _) in page.iter() {
            assert_eq!(key, format!("one-prefix/{found:08}").as_bytes());
            found += 1;
        }
        rest = page.rest().cloned();
    }
    assert_eq!(found, 300_000);
    assert_equal(pair.master.store(), pair.slave.store()).await;
    Ok(())
}
