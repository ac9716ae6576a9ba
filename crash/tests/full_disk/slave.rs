//! A slave whose disk fails while it follows, and in the middle of a copy.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use replikv::{
    Durability, Ending, FollowError, HealthState, Keyspace, LinkId, Master, MasterConfig, MemoryStore, ReplicaStore,
    Seq, Slave, SlaveConfig, StoreError, WriteError, WriteSet,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{KEYS, Store, Trial, generation, survives, value, whole};

/// For how long a write waits for a slave that cannot take it. Longer finds no fault with a slave that is well.
const IN_VAIN: Duration = Duration::from_millis(200);
/// Of a copy, what comes before the disk fails: a part of the 80 kB that all of it has.
const FIRST_BYTES: u64 = 30_000;

fn config() -> SlaveConfig {
    SlaveConfig::new("edge")
}

fn buffered() -> SlaveConfig {
    config().durability(Durability::Buffered).sync_every(Duration::from_millis(10))
}

/// A master in memory, and the slave whose disk fails. The record numbered n is the generation n.
struct Pair {
    master: Master<MemoryStore>,
    slave: Slave<Store>,
}

impl Pair {
    async fn open(trial: &Trial, source: MemoryStore, config: SlaveConfig) -> Self {
        // A copy is a page of two entries after the other.
        let master = Master::open(source, MasterConfig::default().chunk_bytes(4_000)).await.unwrap();
        Self { master, slave: Slave::open(trial.open(), config).await.unwrap() }
    }

    fn head(&self) -> Seq {
        self.master.status().published.seq
    }

    fn next(&self) -> u32 {
        u32::try_from(self.head().as_u64() + 1).unwrap()
    }

    async fn write(&self) {
        self.master.write(generation(self.next())).await.unwrap();
    }

    async fn write_in_vain(&self) {
        let written = self.master.write(generation(self.next())).replicated(1, IN_VAIN).await;
        assert!(matches!(written, Err(WriteError::NotReplicated { acked: 0, .. })), "its disk fails: {written:?}");
    }

    /// One connection, until it ends.
    async fn follow(&self) -> Result<Ending, FollowError> {
        let (here, there) = tokio::io::duplex(64 << 10);
        tokio::join!(self.slave.follow(here), self.master.serve(there)).0
    }

    /// What the master takes for durable on the slave.
    fn acknowledged(&self) -> Seq {
        let status = self.master.status();
        let slots = status.slots.iter().map(|slot| slot.position.seq);
        status.slaves.iter().map(|slave| slave.durable).chain(slots).max().unwrap_or(Seq::ZERO)
    }

    fn acknowledges_nothing_after(&self, durable: Seq) {
        let seen = (self.slave.status().durable, self.acknowledged());
        assert!(seen.0 <= durable && seen.1 <= durable, "{seen:?} is called durable, {durable} is");
    }

    async fn says_what_is_wrong(&self, trial: &Trial) {
        let reason = loop {
            let health = self.slave.status().health;
            if health.state == HealthState::Blocked {
                break health.reason;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        println!("refused: {reason}");
        let causes = if trial.fills_the_disk() { ["full", "No space left"] } else { ["sync", "Input/output error"] };
        assert!(causes.iter().any(|cause| reason.contains(cause)), "{reason}");
    }

    /// Writes while the disk fails, to a slave that follows for as long as it can.
    async fn is_refused(&self, trial: &Trial) {
        let durable = self.slave.status().durable;
        let (followed, ()) = tokio::join!(self.follow(), self.write_in_vain());
        let error = followed.expect_err("its disk fails");
        assert!(matches!(error, FollowError::Store(_)) && error.is_retryable(), "{error:?}");
        self.says_what_is_wrong(trial).await;
        self.acknowledges_nothing_after(durable);
        match self.slave.store().cursor(&LinkId::default()).await {
            Ok(_) => assert!(self.holds_what_its_cursor_says().await >= durable, "what was acknowledged is there"),
            Err(StoreError::Fatal { .. }) => println!("it waits to be opened again"),
            Err(error) => panic!("{error}"),
        }
    }

    async fn holds_what_its_cursor_says(&self) -> Seq {
        let store = self.slave.store();
        let cursor = store.cursor(&LinkId::default()).await.unwrap().unwrap();
        assert!(cursor.is_consistent());
        assert_eq!(u64::from(whole(store).await), cursor.position.seq.as_u64(), "data and cursor");
        cursor.position.seq
    }

    /// A new connection is all that it needs: nobody writes.
    async fn catches_up(&self) {
        tokio::select! {
            biased;
            ended = self.follow() => panic!("its disk is well: {ended:?}"),
            () = until(|| self.acknowledged() == self.head()) => {}
        }
        assert_eq!(self.holds_what_its_cursor_says().await, self.head(), "what is acknowledged is there");
    }

    async fn ends_equal(self, trial: &Trial) {
        self.slave.shutdown().await.unwrap();
        let store = trial.open();
        let cursor = store.cursor(&LinkId::default()).await.unwrap().unwrap();
        assert!(cursor.is_consistent());
        assert_eq!(cursor.position, self.master.status().published);
        assert_eq!(u64::from(whole(&store).await), cursor.position.seq.as_u64(), "data and cursor");
        assert_eq!(whole(&store).await, whole(self.master.store()).await);
        store.close().await.unwrap();
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn follows(trial: Trial, config: SlaveConfig) {
    let pair = Pair::open(&trial, MemoryStore::new(), config).await;
    for _ in 0..4 {
        for _ in 0..3 {
            pair.write().await;
        }
        pair.catches_up().await;
        trial.goes_wrong();
        for _ in 0..3 {
            pair.is_refused(&trial).await;
        }
        trial.is_well_again();
        pair.catches_up().await;
    }
    pair.ends_equal(&trial).await;
}

/// A store that held data before it became a master's: its slaves begin with a copy.
async fn full_source() -> MemoryStore {
    let source = MemoryStore::new();
    let mut writes = WriteSet::builder();
    for key in 0..KEYS {
        writes.put(Keyspace::Data, format!("{key:03}"), value(0)).unwrap();
    }
    source.apply(writes.build(), Durability::Synced).await.unwrap();
    source
}

/// Stands between a slave and its master. Until it is opened, the first bytes of a connection come through.
struct Gate {
    address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Gate {
    async fn before(master: &Master<MemoryStore>) -> Self {
        let (listener, served) = (listen().await, listen().await);
        let (address, behind) = (listener.local_addr().unwrap(), served.local_addr().unwrap());
        tokio::spawn(master.clone().serve_tcp(served));
        let (open, opened) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((slave, _)) = listener.accept().await {
                tokio::spawn(pass(slave, behind, opened.clone()));
            }
        });
        Self { address, open }
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn pass(mut slave: TcpStream, behind: SocketAddr, mut opened: watch::Receiver<bool>) -> io::Result<u64> {
    let mut master = TcpStream::connect(behind).await?;
    let ((mut from_slave, mut to_slave), (from_master, mut to_master)) = (slave.split(), master.split());
    let to_the_slave = async {
        let mut first = from_master.take(FIRST_BYTES);
        tokio::io::copy(&mut first, &mut to_slave).await?;
        opened.wait_for(|opened| *opened).await.map_err(io::Error::other)?;
        tokio::io::copy(&mut first.into_inner(), &mut to_slave).await
    };
    tokio::select! {
        ended = to_the_slave => ended,
        ended = tokio::io::copy(&mut from_slave, &mut to_master) => ended,
    }
}

async fn copies(trial: Trial) {
    let config = config().reconnect(Duration::from_millis(20), Duration::from_millis(100));
    let pair = Pair::open(&trial, full_source().await, config.group_bytes(8_000)).await;
    let gate = Gate::before(&pair.master).await;
    let following = tokio::spawn({
        let (slave, address) = (pair.slave.clone(), gate.address);
        async move { slave.follow_tcp(address).await }
    });
    until(|| pair.slave.status().groups > 1).await;
    let copied = pair.head();
    trial.goes_wrong();
    gate.open.send(true).unwrap();
    for _ in 0..3 {
        pair.write_in_vain().await;
        pair.says_what_is_wrong(&trial).await;
        pair.acknowledges_nothing_after(copied);
        assert!(!pair.slave.status().consistent, "a part is missing");
    }
    trial.is_well_again();
    // It connects again by itself, and goes on.
    until(|| pair.slave.status().consistent && pair.acknowledged() == pair.head()).await;
    assert_eq!(pair.slave.status().copies, 1, "it goes on where it was");
    assert_eq!(pair.holds_what_its_cursor_says().await, pair.head(), "what is acknowledged is there");
    pair.ends_equal(&trial).await;
    assert_eq!(following.await.unwrap().unwrap(), Ending::Shutdown);
}

#[test]
fn an_lmdb_slave_outlives_a_full_disk() {
    let test = "slave::an_lmdb_slave_outlives_a_full_disk";
    survives(test, "lmdb", "enospc write data.mdb", |trial| follows(trial, config()));
}

#[test]
fn an_lmdb_slave_outlives_a_disk_without_room_for_its_meta_page() {
    let test = "slave::an_lmdb_slave_outlives_a_disk_without_room_for_its_meta_page";
    survives(test, "lmdb", "enospc synced-write data.mdb", |trial| follows(trial, config()));
}

#[test]
fn an_lmdb_slave_trusts_no_failed_sync() {
    let test = "slave::an_lmdb_slave_trusts_no_failed_sync";
    survives(test, "lmdb", "eio sync data.mdb", |trial| follows(trial, config()));
}

#[test]
fn a_sled_slave_trusts_no_failed_sync() {
    let test = "slave::a_sled_slave_trusts_no_failed_sync";
    survives(test, "sled", "eio sync store/db", |trial| follows(trial, config()));
}

#[test]
fn a_redb_slave_outlives_a_full_disk() {
    let test = "slave::a_redb_slave_outlives_a_full_disk";
    survives(test, "redb", "enospc write store", |trial| follows(trial, config()));
}

#[test]
fn a_redb_slave_trusts_no_failed_sync() {
    let test = "slave::a_redb_slave_trusts_no_failed_sync";
    survives(test, "redb", "eio sync store", |trial| follows(trial, config()));
}

#[test]
fn a_fjall_slave_outlives_a_full_disk() {
    let test = "slave::a_fjall_slave_outlives_a_full_disk";
    survives(test, "fjall", "enospc write jnl", |trial| follows(trial, config()));
}

#[test]
fn a_fjall_slave_trusts_no_failed_sync() {
    let test = "slave::a_fjall_slave_trusts_no_failed_sync";
    survives(test, "fjall", "eio sync jnl", |trial| follows(trial, config()));
}

#[test]
fn a_fjall_slave_that_syncs_later_trusts_no_failed_sync() {
    let test = "slave::a_fjall_slave_that_syncs_later_trusts_no_failed_sync";
    survives(test, "fjall", "eio sync jnl", |trial| follows(trial, buffered()));
}

#[test]
fn a_copy_into_lmdb_outlives_a_full_disk() {
    survives("slave::a_copy_into_lmdb_outlives_a_full_disk", "lmdb", "enospc write data.mdb", copies);
}

#[test]
fn a_copy_into_lmdb_trusts_no_failed_sync() {
    survives("slave::a_copy_into_lmdb_trusts_no_failed_sync", "lmdb", "eio sync data.mdb", copies);
}

#[test]
fn a_copy_into_sled_trusts_no_failed_sync() {
    survives("slave::a_copy_into_sled_trusts_no_failed_sync", "sled", "eio sync store/db", copies);
}

#[test]
fn a_copy_into_redb_outlives_a_full_disk() {
    survives("slave::a_copy_into_redb_outlives_a_full_disk", "redb", "enospc write store", copies);
}

#[test]
fn a_copy_into_redb_trusts_no_failed_sync() {
    survives("slave::a_copy_into_redb_trusts_no_failed_sync", "redb", "eio sync store", copies);
}

#[test]
fn a_copy_into_fjall_outlives_a_full_disk() {
    survives("slave::a_copy_into_fjall_outlives_a_full_disk", "fjall", "enospc write jnl", copies);
}

#[test]
fn a_copy_into_fjall_trusts_no_failed_sync() {
    survives("slave::a_copy_into_fjall_trusts_no_failed_sync", "fjall", "eio sync jnl", copies);
}
