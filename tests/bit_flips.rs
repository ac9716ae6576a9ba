//! Every single bit of what goes over the wire, and of what stands in the log, is flipped once: refused, or harmless.
//!
//! Sessions are real ones: a slave that copies, one that resumes from the log, one that compares. In each, every bit of
//! either direction is flipped in a session of its own. Whatever comes of it, the slave holds what its master had at the
//! slave's position, or says that it is not consistent and holds nothing that its master never had; then an honest
//! connection makes it whole. Time is virtual: a length that has become larger waits for its bytes until somebody gives up.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::wire::Wire;
use crate::support::{Error, Store, contents};
use bytes::Bytes;
use futures_util::TryStreamExt;
use replikv::{
    Batch, Durability, Ending, FollowError, KeyRange, Keyspace, LinkId, Master, MasterConfig, MemoryStore, Reader,
    RejectCode, RemoteReader, RemoteReaderConfig, ReplicaStore, ReplicaStoreExt, Retention, ScanOptions, Seq, Slave,
    SlaveConfig, WaitError, WaitFor, WriteSet,
};

/// A store as it is at some time, to be made again as often as it is needed.
#[derive(Clone, Default)]
struct Image(Vec<(Keyspace, Bytes, Bytes)>);

impl Image {
    async fn of(store: &MemoryStore) -> Self {
        let mut image = Self::default();
        for keyspace in [Keyspace::Data, Keyspace::Log, Keyspace::Meta] {
            let entries = store.entries(keyspace, KeyRange::all(), ScanOptions::default());
            let entries: Vec<(Bytes, Bytes)> = entries.try_collect().await.unwrap();
            image.0.extend(entries.into_iter().map(|(key, value)| (keyspace, key, value)));
        }
        image
    }

    async fn store(&self) -> Store {
        let mut writes = WriteSet::builder();
        for (keyspace, key, value) in &self.0 {
            writes.put(*keyspace, key, value).unwrap();
        }
        let store: Store = Arc::new(MemoryStore::new());
        store.apply(writes.build(), Durability::Synced).await.unwrap();
        store
    }
}

/// A master and a slave, and everything that the master has ever had.
#[derive(Clone)]
struct Setting {
    master: Image,
    config: MasterConfig,
    slave: Image,
    /// What the master had after each record.
    history: BTreeMap<u64, Vec<(Bytes, Bytes)>>,
    /// Every entry that the master had at any time.
    ever: HashSet<(Bytes, Bytes)>,
}

impl Setting {
    /// A master that has had `old` entries before it was one, and then batches: the slave has the first `before` of them,
    /// and not those that `after` writes.
    async fn new(config: MasterConfig, old: u8, before: u8, after: u64) -> Result<Self, Error> {
        let memory = MemoryStore::new();
        let store: Store = Arc::new(memory.clone());
        let mut writes = WriteSet::builder();
        for n in 0..old {
            writes.put(Keyspace::Data, [b'o', n], [n; 4])?;
        }
        store.apply(writes.build(), Durability::Synced).await?;
        let master = Master::open(store.clone(), config.clone()).await?;
        let mut setting = Self {
            master: Image::default(),
            config,
            slave: Image::default(),
            history: BTreeMap::new(),
            ever: HashSet::new(),
        };
        setting.note(&master, &store).await;
        for n in 0..before {
            master.write(batch(n)).await?;
            setting.note(&master, &store).await;
        }
        if before > 0 {
            let copy = MemoryStore::new();
            let store: Store = Arc::new(copy.clone());
            let slave = Slave::open(store, SlaveConfig::new("edge").temporary()).await?;
            let (here, there) = tokio::io::duplex(64 << 10);
            setting.connect(&master, &slave, Wire::new(here), Wire::new(there)).await;
            slave.shutdown().await?;
            setting.slave = Image::of(&copy.open_again()).await;
        }
        for n in 0..after {
            master.write(batch(before.wrapping_add(n as u8))).await?;
            setting.note(&master, &store).await;
        }
        master.shutdown().await?;
        setting.master = Image::of(&memory.open_again()).await;
        Ok(setting)
    }

    async fn note(&mut self, master: &Master<Store>, store: &Store) {
        let found = contents(store).await;
        self.ever.extend(found.iter().cloned());
        self.history.insert(master.status().published.seq.as_u64(), found);
    }

    /// One session in which a bit may be flipped, and an honest one. Says how many bytes went either way.
    async fn run(&self, flip: Flip) -> [u64; 2] {
        let (source, copy) = (self.master.store().await, self.slave.store().await);
        let master = Master::open(source.clone(), self.config.clone()).await.unwrap();
        let slave = Slave::open(copy.clone(), SlaveConfig::new("edge").temporary()).await.unwrap();
        let (here, there) = tokio::io::duplex(64 << 10);
        let (mut here, mut there) = (Wire::new(here), Wire::new(there));
        match &flip {
            Flip::None | Flip::Stored { .. } => {}
            Flip::ToSlave(bit) => here = here.flip(*bit),
            Flip::ToMaster(bit) => there = there.flip(*bit),
        }
        let read = [here.counter(), there.counter()];
        self.connect(&master, &slave, here, there).await;
        self.check(&copy, &flip).await;
        let bytes = read.map(|read| read.load(Ordering::Relaxed));

        // However it went, another connection or two make the slave whole.
        let mut ended = None;
        for _ in 0..10 {
            if contents(&copy).await == contents(&source).await {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (here, there) = tokio::io::duplex(64 << 10);
            ended = self.connect(&master, &slave, Wire::new(here), Wire::new(there)).await;
        }
        match ended {
            Some(Err(FollowError::Refused(refusal))) if matches!(flip, Flip::Stored { .. }) => {
                assert_eq!(refusal.code, RejectCode::NeedsCompare, "{refusal}");
                self.check(&copy, &flip).await;
            }
            ended => {
                let equal = contents(&copy).await == contents(&source).await;
                assert!(equal, "{flip:?}: it does not recover: {ended:?}");
            }
        }
        bytes
    }

    // Until the slave has everything, or either side ends it, or nothing comes any more.
    async fn connect(&self, master: &Master<Store>, slave: &Slave<Store>, here: Wire, there: Wire) -> Ended {
        let done = async {
            slave.wait_applied(master.status().published.seq).await.unwrap();
            slave.wait_caught_up().await.unwrap();
        };
        tokio::select! {
            biased;
            () = done => None,
            ended = slave.follow(here) => Some(ended),
            // The slave has still to hear of it.
            () = async { drop(master.serve(there).await); std::future::pending().await } => None,
            () = tokio::time::sleep(Duration::from_secs(600)) => None,
        }
    }

    async fn check(&self, copy: &Store, flip: &Flip) {
        let found = contents(copy).await;
        match copy.cursor(&LinkId::default()).await.unwrap() {
            Some(cursor) if cursor.is_consistent() => {
                let expected = &self.history[&cursor.position.seq.as_u64()];
                assert!(*expected == found, "{flip:?}: at {} it holds something else", cursor.position);
            }
            _ => {
                assert!(
                    found.iter().all(|entry| self.ever.contains(entry)),
                    "{flip:?}: it holds what its master never had"
                );
            }
        }
    }

    /// Every bit of either direction.
    async fn flip_every_bit(&self) {
        let [to_slave, to_master] = self.run(Flip::None).await;
        assert!(to_slave > 400 && to_master > 60, "{to_slave} and {to_master} bytes are no session");
        for bit in 0..to_slave * 8 {
            self.run(Flip::ToSlave(bit)).await;
        }
        for bit in 0..to_master * 8 {
            self.run(Flip::ToMaster(bit)).await;
        }
        println!("{} bits of a session of {to_slave} and {to_master} bytes", 8 * (to_slave + to_master));
    }
}

/// How following has ended, if it was not stopped.
type Ended = Option<Result<Ending, FollowError>>;

#[derive(Debug)]
#[allow(dead_code, reason = "shown when a test fails")]
enum Flip {
    None,
    Stored { record: usize, bit: usize },
    ToSlave(u64),
    ToMaster(u64),
}

fn batch(n: u8) -> Batch {
    let batch = Batch::new().put([b'k', n % 13], [n, n, b'v', n]).note([n]);
    if n % 5 == 4 {
        batch.delete([b'k', n / 2 % 13]).delete_range([b'o', n]..[b'o', n.saturating_add(2)])
    } else {
        batch
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_session_that_copies() -> Result<(), Error> {
    // What is older than the log comes as content of ranges.
    let setting = Setting::new(MasterConfig::default(), 60, 0, 3).await?;
    setting.flip_every_bit().await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn of_a_session_that_resumes() -> Result<(), Error> {
    let setting = Setting::new(MasterConfig::default(), 0, 4, 6).await?;
    setting.flip_every_bit().await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn of_a_session_that_compares() -> Result<(), Error> {
    let trimmed = Retention { max_bytes: 1_000, max_age_ms: None, hold_back_bytes: 1_000 };
    let setting = Setting::new(MasterConfig::default().retention(trimmed), 90, 4, 300).await?;
    setting.flip_every_bit().await;
    Ok(())
}

/// Questions and answers, the right ones or errors. Says how many bytes went either way.
async fn read(master: &Master<Store>, expected: &[(Bytes, Bytes)], flip: &Flip) -> [u64; 2] {
    let (here, there) = tokio::io::duplex(64 << 10);
    let (mut here, mut there) = (Wire::new(here), Wire::new(there));
    match flip {
        Flip::None | Flip::Stored { .. } => {}
        Flip::ToSlave(bit) => here = here.flip(*bit),
        Flip::ToMaster(bit) => there = there.flip(*bit),
    }
    let read = [here.counter(), there.counter()];
    let serving = tokio::spawn({
        let master = master.clone();
        async move { master.serve(there).await }
    });
    let reader = RemoteReader::over(here, RemoteReaderConfig::default());
    let head = master.status().published;
    let mut failed = 0;
    for (key, value) in &expected[..3] {
        match reader.read(key, Some(WaitFor::Token(head.into()))).await {
            Ok(read) => {
                assert_eq!(read.value.as_ref(), Some(value), "{flip:?}");
                assert_eq!((read.at.includes, read.at.shows), (Some(head), Some(head)), "{flip:?}");
            }
            Err(_) => failed += 1,
        }
    }
    match reader.read(b"nothing", None).await {
        Ok(read) => assert_eq!(read.value, None, "{flip:?}"),
        Err(_) => failed += 1,
    }
    match reader.scan(KeyRange::all(), ScanOptions::default()).await {
        Ok(page) => assert_eq!(page.entries().collect::<Vec<_>>(), expected, "{flip:?}"),
        Err(_) => failed += 1,
    }
    match reader.wait_applied(head.seq.into()).await {
        Ok(()) => assert!(matches!(
            reader.wait_applied(Seq::new(1).into()).await,
            Ok(()) | Err(WaitError::Unreachable { .. })
        )),
        Err(_) => failed += 1,
    }
    assert!(failed == 0 || !matches!(flip, Flip::None), "{failed} honest questions have no answer");
    drop(reader);
    // Whatever came, it ends, and the master goes on.
    drop(serving.await);
    read.map(|read| read.load(Ordering::Relaxed))
}

#[tokio::test(start_paused = true)]
async fn of_reads() -> Result<(), Error> {
    let setting = Setting::new(MasterConfig::default(), 0, 4, 6).await?;
    let store = setting.master.store().await;
    let expected = contents(&store).await;
    let master = Master::open(store, setting.config.clone()).await?;
    let [to_reader, to_master] = read(&master, &expected, &Flip::None).await;
    assert!(to_reader > 600 && to_master > 300, "{to_reader} and {to_master} bytes are no session");
    for bit in 0..to_reader * 8 {
        read(&master, &expected, &Flip::ToSlave(bit)).await;
    }
    for bit in 0..to_master * 8 {
        read(&master, &expected, &Flip::ToMaster(bit)).await;
    }
    println!("{} bits of {to_reader} and {to_master} bytes", 8 * (to_reader + to_master));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn of_the_stored_log() -> Result<(), Error> {
    // Nothing is in memory: what a slave is sent is read from the store.
    let setting = Setting::new(MasterConfig::default().ring_bytes(0), 0, 4, 6).await?;
    let records: Vec<usize> =
        (0..setting.master.0.len()).filter(|at| setting.master.0[*at].0 == Keyspace::Log).collect();
    assert_eq!(records.len(), 11);
    let mut bits = 0;
    for at in records {
        for bit in 0..setting.master.0[at].2.len() * 8 {
            let mut damaged = setting.clone();
            let value = &mut damaged.master.0[at].2;
            let mut bytes = value.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            *value = bytes.into();
            damaged.run(Flip::Stored { record: at, bit }).await;
            bits += 1;
        }
    }
    println!("{bits} bits of 11 records");
    Ok(())
}
