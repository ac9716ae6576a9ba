//! A map that is full, under a master and under a slave.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::support::contents;
use bytes::Bytes;
use replikv_core::{Batch, Cursor, Durability, Keyspace, LinkId, ReplicaStore, Seq, StoreError, WriteSet};
use replikv_lmdb::{LmdbOptions, LmdbStore};
use replikv_node::{
    Ending, FollowError, HealthState, Master, MasterConfig, Slave, SlaveConfig, SlaveState, WriteError, read_log,
};
use tokio::task::JoinHandle;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Held = BTreeMap<Bytes, Bytes>;

const MIB: usize = 1 << 20;
/// Of each of the two values of a batch.
const LEN: usize = 9_000;

fn open(path: &Path, max: usize) -> LmdbStore {
    LmdbStore::open(path, LmdbOptions::default().map_size(MIB).max_map_size(max)).unwrap()
}

/// Two entries, of which there is never one alone.
fn pair(n: u32, len: usize) -> [(Bytes, Bytes); 2] {
    let entry = |side: &str| (Bytes::from(format!("{side}/{n:05}")), Bytes::from(vec![n as u8; len]));
    [entry("a"), entry("b")]
}

fn batch(pair: &[(Bytes, Bytes); 2]) -> Batch {
    pair.iter().fold(Batch::new(), |batch, (key, value)| batch.put(key, value))
}

async fn held(store: &LmdbStore) -> Held {
    contents(store).await.into_iter().collect()
}

/// A master, and what it has acknowledged.
struct Writer {
    master: Master<LmdbStore>,
    next: u32,
    held: Held,
    records: usize,
}

impl Writer {
    async fn open(path: &Path, max: usize) -> Result<Self, Error> {
        let master = Master::open(open(path, max), MasterConfig::default()).await?;
        Ok(Self { master, next: 0, held: Held::new(), records: 0 })
    }

    fn next(&mut self, len: usize) -> [(Bytes, Bytes); 2] {
        self.next += 1;
        pair(self.next, len)
    }

    /// Writes three batches at once, until all of them are refused; returns what the store says.
    async fn fill(&mut self, len: usize) -> Result<String, Error> {
        loop {
            let pairs = [self.next(len), self.next(len), self.next(len)];
            let [one, two, three] = pairs.each_ref().map(batch);
            let master = &self.master;
            let written = tokio::join!(master.write(one), master.write(two), master.write(three));
            let mut refused = Vec::new();
            for (pair, written) in pairs.into_iter().zip(<[_; 3]>::from(written)) {
                match written {
                    Ok(_) => self.acknowledged(pair),
                    Err(WriteError::Store(StoreError::StoreFull { hint })) => refused.push(hint),
                    Err(error) => return Err(error.into()),
                }
            }
            self.assert_whole().await?;
            if let [.., hint] = &refused[..]
                && refused.len() == 3
            {
                return Ok(hint.clone());
            }
            assert!(self.next < 10_000, "it is never full");
        }
    }

    fn acknowledged(&mut self, pair: [(Bytes, Bytes); 2]) {
        self.held.extend(pair);
        self.records += 1;
    }

    async fn delete(&mut self, until: u32) -> Result<(), WriteError> {
        let end = format!("a/{until:05}");
        self.master.write(Batch::new().delete_range("a/"..&end)).await?;
        self.held.retain(|key, _| !(&b"a/"[..]..end.as_bytes()).contains(&&key[..]));
        self.records += 1;
        Ok(())
    }

    /// What was acknowledged is there, and of what was refused nothing: no entry, and no record.
    async fn assert_whole(&self) -> Result<(), Error> {
        assert!(held(self.master.store()).await == self.held, "it holds something else than it has acknowledged");
        let log = read_log(self.master.store(), Seq::ZERO, usize::MAX).await?;
        // The first record begins the epoch, and holds nothing.
        assert_eq!(log.iter().filter(|record| !record.body().is_empty()).count(), self.records);
        let last = log.last().ok_or("there is no record")?;
        assert_eq!(last.position(), self.master.status().published);
        Ok(())
    }

    async fn reopen(&mut self, path: &Path, max: usize) -> Result<(), Error> {
        self.master.shutdown().await?;
        self.master = Master::open(open(path, max), MasterConfig::default()).await?;
        self.assert_whole().await
    }
}

type Following = JoinHandle<Result<Ending, FollowError>>;

fn connect(master: &Master<LmdbStore>, slave: &Slave<LmdbStore>) -> Following {
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(there).await });
    tokio::spawn(async move { following.follow(here).await })
}

/// Waits for what must happen soon. The limit only turns a hang into a failure.
async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(90), future.into_future()).await.expect("nothing hangs")
}

/// A slave in a map that is large enough has all that the master has.
async fn assert_followed(master: &Master<LmdbStore>, path: &Path) -> Result<(), Error> {
    let slave = Slave::open(open(path, 64 * MIB), SlaveConfig::new("edge")).await?;
    let following = connect(master, &slave);
    let followed = async {
        slave.wait_applied(master.status().published.seq).await?;
        slave.wait_caught_up().await
    };
    soon(followed).await?;
    assert!(held(slave.store()).await == held(master.store()).await, "master and slave differ");
    slave.shutdown().await?;
    soon(following).await??;
    Ok(())
}

#[tokio::test]
async fn a_master_whose_map_is_full_refuses_whole_batches_and_goes_on_once_there_is_room() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let (path, below) = (dir.path().join("master"), dir.path().join("slave"));
    let mut writer = Writer::open(&path, 2 * MIB).await?;
    let hint = writer.fill(LEN).await?;
    assert!(hint.contains("may not grow; raise max_map_size, to 4194304 for example"), "{hint}");
    let health = writer.master.status().health;
    assert!(health.state == HealthState::Blocked && health.reason.contains("max_map_size"), "{health:?}");
    // It serves all the same.
    assert_followed(&writer.master, &below).await?;

    let before = writer.records;
    writer.delete(20).await?;
    assert_eq!(writer.master.status().health.state, HealthState::Ready);
    writer.assert_whole().await?;
    writer.fill(LEN).await?;
    assert!(writer.records > before + 1, "what was deleted makes room");
    assert_followed(&writer.master, &below).await?;

    // As full, and opened again: with the same map, and with a larger one.
    writer.reopen(&path, 2 * MIB).await?;
    let (before, refused) = (writer.records, writer.next);
    writer.fill(LEN).await?;
    assert!(writer.records <= before + 3 && writer.next > refused, "it is as full as before");
    writer.reopen(&path, 8 * MIB).await?;
    let before = writer.records;
    writer.fill(LEN).await?;
    assert!(writer.records > before + 50, "{} records, {before} before", writer.records);
    assert_followed(&writer.master, &below).await?;
    Ok(())
}

/// The state after each record, of a master that one alone writes to.
struct History {
    master: Master<LmdbStore>,
    states: BTreeMap<Seq, Held>,
}

impl History {
    async fn write(&mut self, n: u32) -> Result<Seq, Error> {
        let written = pair(n, LEN);
        let seq = self.master.write(batch(&written)).await?.seq;
        let mut held = self.states.last_key_value().map(|(_, held)| held.clone()).unwrap_or_default();
        held.extend(written);
        self.states.insert(seq, held);
        Ok(seq)
    }

    /// What the slave holds is what its cursor says, and nothing beyond it counts as acknowledged.
    async fn assert_fits(&self, slave: &Slave<LmdbStore>) -> Result<Cursor, Error> {
        let cursor = slave.store().cursor(&LinkId::default()).await?.ok_or("it has begun")?;
        let seq = cursor.position.seq;
        let mut wanted = self.states.get(&seq).cloned().unwrap_or_default();
        wanted.retain(|key, _| cursor.coverage.covers(key));
        assert!(held(slave.store()).await == wanted, "it is not at record {seq}: {cursor:?}");
        let status = slave.status();
        assert_eq!((status.position, status.consistent), (Some(cursor.position), cursor.is_consistent()));
        assert!(status.durable <= seq, "{status:?}");
        for slot in self.master.status().slots {
            assert!(slot.position.seq <= seq && cursor.is_consistent(), "more than it holds: {slot:?}");
        }
        Ok(cursor)
    }
}

/// Follows until the slave's store is full.
async fn follow_until_full(history: &History, slave: &Slave<LmdbStore>) -> Result<Cursor, Error> {
    let error = soon(connect(&history.master, slave)).await?.unwrap_err();
    let FollowError::Store(StoreError::StoreFull { hint }) = &error else { return Err(error.into()) };
    assert!(hint.contains("raise max_map_size") && error.is_retryable(), "{error}");
    let health = slave.status().health;
    assert!(health.state == HealthState::Blocked && health.reason.contains("max_map_size"), "{health:?}");
    history.assert_fits(slave).await
}

#[tokio::test]
async fn a_slave_whose_map_is_full_stands_where_its_cursor_says_and_goes_on_in_a_larger_one() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let (path, below) = (dir.path().join("master"), dir.path().join("slave"));
    let master = Master::open(open(&path, 64 * MIB), MasterConfig::default()).await?;
    let mut history = History { master, states: BTreeMap::from([(Seq::ZERO, Held::new())]) };
    let config = || SlaveConfig::new("edge").group_bytes(50_000);
    let slave = Slave::open(open(&below, MIB), config()).await?;
    let mut following = connect(&history.master, &slave);
    // Each one is acknowledged by the slave, until it cannot.
    let mut n = 0;
    let error = loop {
        n += 1;
        assert!(n < 1_000, "it is never full");
        let seq = history.write(n).await?;
        tokio::select! {
            biased;
            ended = &mut following => break ended?.unwrap_err(),
            applied = soon(slave.wait_applied(seq)) => applied?,
        }
    };
    assert!(matches!(error, FollowError::Store(StoreError::StoreFull { .. })), "{error}");
    assert!(n > 10, "{n}");
    let cursor = history.assert_fits(&slave).await?;
    assert!(cursor.is_consistent() && cursor.position.seq < history.master.status().published.seq, "{cursor:?}");
    // The master goes on, and the slave does not, however often it tries.
    for n in n + 1..n + 20 {
        history.write(n).await?;
    }
    for _ in 0..3 {
        let again = follow_until_full(&history, &slave).await?;
        assert_eq!(again.position, cursor.position);
    }
    slave.shutdown().await?;
    let slave = Slave::open(open(&below, MIB), config()).await?;
    follow_until_full(&history, &slave).await?;
    slave.shutdown().await?;
    assert_followed(&history.master, &below).await?;
    assert_eq!(history.states.last_key_value().map(|(_, held)| held), Some(&held(history.master.store()).await));
    Ok(())
}

#[tokio::test]
async fn a_copy_that_does_not_fit_is_gone_on_with_in_a_larger_map() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let (path, below) = (dir.path().join("master"), dir.path().join("slave"));
    // There before it was a master's: no log brings it.
    let store = open(&path, 64 * MIB);
    let mut before = WriteSet::builder();
    let mut state = Held::new();
    for (key, value) in (0..100).flat_map(|n| pair(n, LEN)) {
        before.put(Keyspace::Data, &key, &value)?;
        state.insert(key, value);
    }
    store.apply(before.build(), Durability::Synced).await?;
    let master = Master::open(store, MasterConfig::default().chunk_bytes(30_000)).await?;
    let at = master.status().published.seq;
    let mut history = History { master, states: BTreeMap::from([(at, state)]) };
    let slave = Slave::open(open(&below, MIB), SlaveConfig::new("edge").group_bytes(50_000)).await?;
    let mut covered = 0;
    for n in 1_000..1_004 {
        let cursor = follow_until_full(&history, &slave).await?;
        assert!(!cursor.is_consistent() && slave.status().state == SlaveState::Copying, "{cursor:?}");
        let holds = held(slave.store()).await.len();
        assert!(holds > 20 && holds >= covered, "{holds} entries, {covered} before");
        covered = holds;
        // Behind what it has copied.
        history.write(n).await?;
    }
    let copies = slave.status().copies;
    slave.shutdown().await?;
    let slave = Slave::open(open(&below, 64 * MIB), SlaveConfig::new("edge")).await?;
    let following = connect(&history.master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_eq!((copies > 0, slave.status().comparisons), (true, 0), "it goes on with its copy");
    history.assert_fits(&slave).await?;
    assert!(held(slave.store()).await == held(history.master.store()).await, "master and slave differ");
    slave.shutdown().await?;
    soon(following).await??;
    Ok(())
}
