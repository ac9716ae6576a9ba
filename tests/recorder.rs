//! Applications that record their own LMDB transactions, as masters of anything.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Error, print_seed, seed, soon};
use fastrand::Rng;
use replikv::heed::byteorder::NativeEndian;
use replikv::heed::types::{Bytes, Str, U64};
use replikv::heed::{
    CommitOrAbort, Database, DatabaseFlags, Env, EnvFlags, EnvOpenOptions, IntegerComparator, RwTxn, WithTls,
};
use replikv::lmdb::{LmdbMaster, RecorderError};
use replikv::{
    Batch, BlockingError, KeyRange, Keyspace, LmdbOptions, LmdbOrder, LmdbStore, Master, MasterConfig, MemoryStore,
    ReplicaStore, ScanOptions, Slave, SlaveConfig, StoreError, Subspace, Token, WriteError, read_log,
};

type Names = Database<'static, Str, Str>;
type Numbers = Database<'static, U64<NativeEndian>, Bytes, IntegerComparator>;
type Backwards = Database<'static, Bytes, Bytes>;

/// The application, before it knew of replication.
#[derive(Clone)]
struct App {
    env: Env<WithTls>,
    names: Names,
    numbers: Numbers,
    backwards: Backwards,
    local: Names,
}

impl App {
    fn open(dir: &Path) -> Self {
        Self::open_with(dir, EnvFlags::empty())
    }

    #[allow(unsafe_code, reason = "heed asks its caller to vouch for the file")]
    fn open_with(dir: &Path, flags: EnvFlags) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let mut open = EnvOpenOptions::new();
        open.max_dbs(16).map_size(1 << 30);
        // SAFETY: nothing but LMDB touches the file.
        let env = unsafe { open.flags(flags).open(dir) }.unwrap();
        let wtxn = env.write_txn().unwrap();
        let databases = env.create_databases_and_commit(wtxn, |opener, wtxn| {
            let names = opener.create_database::<Str, Str>(wtxn, Some("names"))?;
            let local = opener.create_database::<Str, Str>(wtxn, Some("local"))?;
            let mut numbers = opener.database_options().types().key_comparator::<IntegerComparator>();
            let numbers = numbers.name("numbers").create(wtxn)?;
            let mut backwards = opener.database_options().types::<Bytes, Bytes>();
            let backwards = backwards.name("backwards").flags(DatabaseFlags::REVERSE_KEY).create(wtxn)?;
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((names, numbers, backwards, local)))
        });
        let (names, numbers, backwards, local) = databases.unwrap().unwrap_commit();
        Self { env, names, numbers, backwards, local }
    }

    /// For a test that reads on its own thread: that may end while the last handle of the environment is dropped
    /// elsewhere, which LMDB does not allow. So there is one that never is.
    fn never_closes(self) -> Self {
        std::mem::forget(self.env.clone());
        self
    }

    fn store(&self) -> LmdbStore {
        LmdbStore::from_env(self.env.clone(), options()).unwrap()
    }

    async fn master(&self) -> Master<LmdbStore> {
        Master::open(self.store(), MasterConfig::default()).await.unwrap()
    }

    fn wtxn(&self) -> RwTxn<'_> {
        self.env.write_txn().unwrap()
    }
}

fn options() -> LmdbOptions {
    LmdbOptions::default()
        .table(Subspace::raw("names/"), "names")
        .table_in_order(Subspace::raw("numbers/"), "numbers", LmdbOrder::IntegerKeys)
        .table_in_order(Subspace::raw("backwards/"), "backwards", LmdbOrder::ReverseKeys)
}

/// One recorded transaction of everything; the number makes it different from others.
fn record(app: &App, master: &Master<LmdbStore>, number: u64, rng: &mut Rng) -> Token {
    let mut wtxn = app.wtxn();
    let mut recorder = master.begin(&mut wtxn).unwrap();
    let name = format!("name-{}", rng.u8(..50));
    recorder.put(&app.names, &name, &number.to_string()).unwrap();
    recorder.put(&app.numbers, &rng.u64(..1000), &number.to_be_bytes()).unwrap();
    recorder.put(&app.backwards, &number.to_be_bytes()[5..], b"").unwrap();
    match rng.u8(..10) {
        0 => drop(recorder.delete(&app.names, &format!("name-{}", rng.u8(..50))).unwrap()),
        1 => {
            let start = rng.u64(..1000);
            recorder.delete_range(&app.numbers, &(start..start + 50)).unwrap();
        }
        2 => {
            let below: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Excluded(&[9, 0, 30]));
            recorder.delete_range(&app.backwards, &below).unwrap();
        }
        3 => recorder.note("noted"),
        _ => {}
    }
    recorder.finish().unwrap().commit(wtxn).unwrap()
}

static NAMES: AtomicUsize = AtomicUsize::new(0);

async fn follow<S: ReplicaStore, T: ReplicaStore>(master: &Master<S>, store: T) -> Slave<T> {
    // A name for each: one of the same name takes the place of another.
    let name = format!("slave-{}", NAMES.fetch_add(1, Ordering::Relaxed));
    let slave = Slave::open(store, SlaveConfig::new(name)).await.unwrap();
    let (here, there) = tokio::io::duplex(1 << 16);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });
    slave
}

async fn all(store: &impl ReplicaStore) -> Vec<(bytes::Bytes, bytes::Bytes)> {
    use futures_util::TryStreamExt;
    use replikv::ReplicaStoreExt;
    store.entries(Keyspace::Data, KeyRange::all(), ScanOptions::default()).try_collect().await.unwrap()
}

/// The log leads from record to record to the head, and applied to nothing comes to the data.
async fn assert_log_and_data_agree(store: &impl ReplicaStore) {
    let records = read_log(store, replikv::Seq::ZERO, usize::MAX).await.unwrap();
    for pair in records.windows(2) {
        pair[1].header().verify_after(&pair[0].position()).unwrap();
    }
    let mut model = BTreeMap::new();
    for record in &records {
        for op in record.body() {
            match op {
                replikv::Op::Put { key, value } => drop(model.insert(key.to_vec(), value.to_vec())),
                replikv::Op::Delete { key } => drop(model.remove(key)),
                replikv::Op::DeleteRange { start, end } => {
                    model.retain(|key, _| &key[..] < start || end.is_some_and(|end| &key[..] >= end));
                }
            }
        }
    }
    let data = all(store).await;
    assert_eq!(data.len(), model.len());
    assert!(data.iter().map(|(key, value)| (&key[..], &value[..])).eq(model.iter().map(|(k, v)| (&k[..], &v[..]))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recorded_reaches_slaves_of_every_kind() -> Result<(), Error> {
    let seed = seed();
    print_seed("--test integration recorder::what_is_recorded_reaches_slaves_of_every_kind", seed);
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir()?;
    let app = App::open(&dir.path().join("app"));
    // What was there before is replicated too.
    let mut wtxn = app.wtxn();
    app.names.put(&mut wtxn, "before", "replication")?;
    app.numbers.put(&mut wtxn, &u64::MAX, b"last")?;
    wtxn.commit()?;
    let master = app.master().await;
    let there = App::open(&dir.path().join("there")).never_closes();
    let memory = follow(&master, MemoryStore::new()).await;
    let sled = follow(&master, replikv::SledStore::open(dir.path().join("sled"))?).await;
    let plain = follow(&master, LmdbStore::open(dir.path().join("plain"), LmdbOptions::default())?).await;
    let tables = follow(&master, there.store()).await;
    let mut last = None;
    for number in 0..300 {
        last = Some(record(&app, &master, number, &mut rng));
    }
    let token = last.unwrap();
    soon(memory.wait_applied(token)).await?;
    soon(sled.wait_applied(token)).await?;
    soon(plain.wait_applied(token)).await?;
    soon(tables.wait_applied(token)).await?;
    let expected = all(master.store()).await;
    assert!(expected.iter().any(|(key, _)| &key[..] == b"names/before"));
    assert_eq!(all(memory.store()).await, expected);
    assert_eq!(all(sled.store()).await, expected);
    assert_eq!(all(plain.store()).await, expected);
    assert_eq!(all(tables.store()).await, expected);
    // The slave's application reads its own typed databases, of the same instant as the position.
    tables.store().read(|snapshot| {
        assert_eq!(there.names.get(snapshot.txn(), "before").unwrap(), Some("replication"));
        assert_eq!(there.numbers.last(snapshot.txn()).unwrap(), Some((u64::MAX, &b"last"[..])));
        assert_eq!(snapshot.get("names/before").unwrap(), Some(&b"replication"[..]));
        assert_eq!(snapshot.position().unwrap().map(Token::from), Some(token));
        assert_eq!(
            snapshot.iter(KeyRange::prefix("numbers/")).count() as u64,
            there.numbers.len(snapshot.txn()).unwrap()
        );
    })?;
    assert_eq!(master.status().foreign_commits, Some(0));
    Ok(master.shutdown().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorders_and_batches_on_many_threads_are_one_history() -> Result<(), Error> {
    const EACH: u64 = 700;
    let seed = seed();
    print_seed("--test integration recorder::recorders_and_batches_on_many_threads_are_one_history", seed);
    let dir = tempfile::tempdir()?;
    let app = App::open_with(dir.path(), EnvFlags::NO_META_SYNC | EnvFlags::NO_SYNC);
    let master = app.master().await;
    let slave = follow(&master, MemoryStore::new()).await;
    let mut writers = Vec::new();
    for thread in 0..3u64 {
        let (app, master) = (app.clone(), master.clone());
        writers.push(tokio::task::spawn_blocking(move || {
            let mut rng = Rng::with_seed(seed ^ thread);
            for number in 0..EACH {
                record(&app, &master, thread * EACH + number, &mut rng);
            }
        }));
    }
    // Each of these adds one to a counter, at its place: none may be lost, and none may count twice.
    let mut counting = Vec::new();
    for _ in 0..4 {
        let master = master.clone();
        counting.push(tokio::spawn(async move {
            for round in 0..EACH / 4 {
                let counted = master.transact(|view, batch| {
                    let count: u64 = match view.get("count")? {
                        Some(value) => u64::from_be_bytes(value[..].try_into().expect("eight bytes")),
                        None => 0,
                    };
                    Ok(batch.put("count", (count + 1).to_be_bytes()))
                });
                counted.await.unwrap();
                let named = master.write(Batch::new().put(format!("names/batch-{round}"), "written"));
                named.await.unwrap();
            }
        }));
    }
    for writer in writers {
        soon(writer).await?;
    }
    for counter in counting {
        soon(counter).await?;
    }
    let token = master.put("names/last", "word").await?;
    let count = master.get("count").await?.unwrap();
    assert_eq!(u64::from_be_bytes(count[..].try_into()?), EACH);
    soon(slave.wait_applied(token)).await?;
    assert_eq!(all(slave.store()).await, all(master.store()).await);
    assert_log_and_data_agree(master.store()).await;
    let status = master.status();
    assert_eq!(status.published.seq, token.seq);
    assert_eq!(status.foreign_commits, Some(0));
    assert_eq!(status.records + 1, token.seq.as_u64(), "each record is counted once; the first began the epoch");
    Ok(master.shutdown().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_recording_leaves_nothing_and_holds_nobody_up() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let app = App::open(dir.path());
    let master = app.master().await;
    master.put("names/a", "1").await?;
    let before = master.status().published;
    for late in [false, true] {
        let mut wtxn = app.wtxn();
        let mut recorder = master.begin(&mut wtxn)?;
        recorder.put(&app.names, "gone", "gone")?;
        let recorded = recorder.finish()?;
        if late {
            wtxn.abort();
            drop(recorded);
        } else {
            drop(recorded);
            wtxn.abort();
        }
    }
    // A slave that copies now is not kept waiting for a record that never comes.
    let slave = follow(&master, MemoryStore::new()).await;
    soon(slave.wait_applied(before.seq)).await?;
    assert_eq!(all(slave.store()).await.len(), 1);
    soon(async {
        while master.status().handed != before {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let token = master.put("names/b", "2").await?;
    assert_eq!(token.seq.as_u64(), before.seq.as_u64() + 1);
    assert_log_and_data_agree(master.store()).await;
    assert_eq!(master.status().foreign_commits, Some(0));
    Ok(master.shutdown().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_commits_by_itself_is_published_soon() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let app = App::open(dir.path());
    let master = app.master().await;
    let slave = follow(&master, MemoryStore::new()).await;
    for dropped_first in [false, true] {
        let mut wtxn = app.wtxn();
        let mut recorder = master.begin(&mut wtxn)?;
        recorder.put(&app.names, "by", "itself")?;
        let recorded = recorder.finish()?;
        let token = recorded.token();
        assert_eq!(master.status().handed.seq, token.seq, "a page that is read from now on may show it");
        if dropped_first {
            drop(recorded);
            wtxn.commit()?;
        } else {
            wtxn.commit()?;
            drop(recorded);
        }
        soon(slave.wait_applied(token)).await?;
        assert_eq!(master.status().published.seq, token.seq);
    }
    // Two in one transaction, and one that records nothing.
    let mut wtxn = app.wtxn();
    let mut recorder = master.begin(&mut wtxn)?;
    recorder.put(&app.names, "one", "1")?;
    let first = recorder.finish()?;
    let mut recorder = master.begin(&mut wtxn)?;
    recorder.put(&app.names, "two", "2")?;
    let second = recorder.finish()?;
    assert_eq!(master.begin(&mut wtxn)?.finish()?.token(), second.token());
    wtxn.commit()?;
    let token = second.token();
    drop((first, second));
    soon(slave.wait_applied(token)).await?;
    assert_log_and_data_agree(master.store()).await;
    assert_eq!(all(slave.store()).await, all(master.store()).await);
    Ok(master.shutdown().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_never_waits_for_its_own_transaction() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let app = App::open(dir.path());
    let master = app.master().await;
    let runtime = tokio::runtime::Handle::current();
    let blocking = master.clone();
    let asked = app.clone();
    let thread = std::thread::spawn(move || {
        let master = blocking;
        let mut wtxn = asked.wtxn();
        let mut recorder = master.begin(&mut wtxn).unwrap();
        recorder.put(&asked.names, "k", "v").unwrap();
        let refused = |error: BlockingError| matches!(error, BlockingError::Write(WriteError::RecorderOpen));
        assert!(refused(master.blocking().put("k", "v").unwrap_err()));
        let transacted = runtime.block_on(master.transact(|_, batch| Ok(batch.put("k", "v"))));
        assert!(matches!(transacted, Err(WriteError::RecorderOpen)));
        assert!(matches!(runtime.block_on(master.shutdown()), Err(StoreError::Busy { .. })));
        let recorded = recorder.finish().unwrap();
        assert!(refused(master.blocking().put("k", "v").unwrap_err()), "the transaction is still open");
        recorded.commit(wtxn).unwrap();
        master.blocking().put("k", "v").unwrap()
    });
    let token = soon(tokio::task::spawn_blocking(move || thread.join())).await?.unwrap();
    assert_eq!(token.seq.as_u64(), 3);
    Ok(master.shutdown().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_table_or_does_not_fit_is_refused_before_it_is_written() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let app = App::open(dir.path());
    let limits = replikv::StoreLimits { max_key: 100, max_value: 50, max_batch: 1000 };
    let master = Master::open(app.store(), MasterConfig::default().limits(limits)).await?;
    let mut wtxn = app.wtxn();
    let mut recorder = master.begin(&mut wtxn)?;
    // The database may be empty or not: it is found out either way.
    for _ in 0..2 {
        let error = recorder.put(&app.local, "k", "v").unwrap_err();
        assert!(matches!(&error, RecorderError::NoTable { .. }), "{error}");
        assert_eq!(app.local.get(recorder.txn(), "k")?, None);
        app.local.put(recorder.txn_mut(), "other", "v")?;
    }
    assert!(matches!(recorder.delete(&app.local, "other"), Err(RecorderError::NoTable { .. })));
    assert!(matches!(recorder.delete_range(&app.local, &..), Err(RecorderError::NoTable { .. })));
    for full in [false, true] {
        let error = recorder.put(&app.names, &"k".repeat(95), "v").unwrap_err();
        assert!(matches!(error, RecorderError::Store(StoreError::KeyTooLong { len: 101, max: 100 })), "{error}");
        let error = recorder.put(&app.names, "k", &"v".repeat(51)).unwrap_err();
        assert!(matches!(error, RecorderError::Store(StoreError::ValueTooLarge { len: 51, max: 50 })));
        assert!(matches!(recorder.put(&app.names, "", "v"), Err(RecorderError::Store(StoreError::KeyEmpty))));
        let as_bytes = app.numbers.remap_types::<Bytes, Bytes>();
        let error = recorder.put(&as_bytes, b"short", b"").unwrap_err();
        assert!(matches!(&error, RecorderError::Store(StoreError::KeyUnfit { table, .. }) if table == "numbers"));
        assert_eq!(app.names.len(recorder.txn())?, u64::from(full));
        assert_eq!(app.numbers.len(recorder.txn())?, u64::from(full));
        recorder.put(&app.names, "k", "v")?;
        recorder.put(&app.numbers, &7, b"")?;
    }
    let many =
        (0..100).try_for_each(|n| recorder.put(&app.names, &n.to_string(), "forty bytes of something, more or less"));
    let too_large = |error: RecorderError| matches!(error, RecorderError::Store(StoreError::BatchTooLarge { .. }));
    assert!(too_large(many.unwrap_err()));
    let filled = (0..100).try_for_each(|_| recorder.put(&app.names, "k", ""));
    assert!(too_large(filled.unwrap_err()));
    assert!(too_large(recorder.delete(&app.names, "k").unwrap_err()));
    assert!(too_large(recorder.delete_range(&app.names, &..).unwrap_err()));
    let token = recorder.finish()?.commit(wtxn)?;
    soon(master.subscribe().reached(token.seq)).await?;
    assert_log_and_data_agree(master.store()).await;
    Ok(master.shutdown().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_bypass_the_recorder_are_counted() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let app = App::open(dir.path()).never_closes();
    let bypass = |app: &App| {
        let mut wtxn = app.wtxn();
        app.names.put(&mut wtxn, "bypassed", "the log").unwrap();
        wtxn.commit().unwrap();
    };
    bypass(&app);
    let master = app.master().await;
    assert_eq!(master.status().foreign_commits, Some(0), "what was there before is part of the base");
    master.put("names/a", "1").await?;
    bypass(&app);
    assert_eq!(master.status().foreign_commits, Some(1), "seen at once");
    master.put("names/b", "1").await?;
    record(&app, &master, 1, &mut Rng::with_seed(1));
    assert_eq!(master.status().foreign_commits, Some(1));
    // A recorder that was dropped while its transaction went on.
    let mut wtxn = app.wtxn();
    let mut recorder = master.begin(&mut wtxn)?;
    recorder.put(&app.names, "half", "recorded")?;
    drop(recorder);
    wtxn.commit()?;
    assert_eq!(master.status().foreign_commits, Some(2));
    master.put("names/c", "1").await?;
    master.shutdown().await?;
    // While no master was running.
    bypass(&app);
    bypass(&app);
    let master = app.master().await;
    assert_eq!(master.status().foreign_commits, Some(4));
    // Where readers belong to threads, and this one's is taken, others read for it.
    let rtxn = app.env.read_txn()?;
    bypass(&app);
    assert_eq!(master.status().foreign_commits, Some(5));
    assert_eq!(master.get("names/bypassed").await?.as_deref(), Some(&b"the log"[..]), "reads go to other threads");
    drop(rtxn);
    Ok(master.shutdown().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_master_fences_recorders_and_batches() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let app = App::open(dir.path());
    let store = Arc::new(app.store());
    let first = Master::open(store.clone(), MasterConfig::default()).await?;
    first.put("names/a", "first").await?;
    let second = Master::open(store.clone(), MasterConfig::default()).await?;
    let record = |master: &Master<Arc<LmdbStore>>, name: &str| -> Result<Token, RecorderError> {
        let mut wtxn = app.wtxn();
        let mut recorder = master.begin(&mut wtxn)?;
        recorder.put(&app.names, name, "recorded")?;
        recorder.finish()?.commit(wtxn)
    };
    // The second one records, and is the only one from then on.
    let token = record(&second, "b")?;
    soon(second.subscribe().reached(token.seq)).await?;
    let error = record(&first, "c").unwrap_err();
    assert!(matches!(error, RecorderError::Master(WriteError::Fenced)), "{error}");
    assert!(matches!(first.put("names/d", "first").await, Err(WriteError::Fenced)));
    assert!(matches!(record(&first, "e"), Err(RecorderError::Master(WriteError::Fenced))));
    second.put("names/f", "second").await?;
    assert_log_and_data_agree(&store).await;
    assert_eq!(all(&store).await.len(), 3);
    // What is shut down records no more, and a recorder that is open then is told at its end.
    let mut wtxn = app.wtxn();
    let recorder = second.begin(&mut wtxn)?;
    let shut = tokio::spawn({
        let second = second.clone();
        async move { second.shutdown().await }
    });
    let mut progress = second.subscribe();
    assert!(soon(progress.reached(replikv::Seq::new(u64::MAX))).await.is_err());
    assert!(matches!(recorder.finish(), Err(RecorderError::Master(WriteError::Closed))));
    wtxn.abort();
    soon(shut).await??;
    assert!(matches!(record(&second, "g"), Err(RecorderError::Master(WriteError::Closed) | RecorderError::Store(_))));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_does_not_fit_refuses_its_own_batch_alone() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let app = App::open(dir.path());
    let master = app.master().await;
    // While a transaction is open, they all gather in one group.
    let wtxn = app.wtxn();
    let writes = (0..20u64).map(|n| {
        let key = if n == 7 { b"numbers/seven".to_vec() } else { [&b"numbers/"[..], &n.to_be_bytes()].concat() };
        let master = master.clone();
        tokio::spawn(async move { master.put(key, "value").await })
    });
    let writes: Vec<_> = writes.collect();
    wtxn.abort();
    for (n, write) in writes.into_iter().enumerate() {
        match soon(write).await? {
            Err(WriteError::Store(StoreError::KeyUnfit { table, .. })) if n == 7 => assert_eq!(table, "numbers"),
            Ok(_) => assert_ne!(n, 7),
            Err(error) => panic!("{n}: {error}"),
        }
    }
    assert_eq!(all(master.store()).await.len(), 19);
    assert_eq!(master.status().health.state, replikv::HealthState::Ready);
    assert_log_and_data_agree(master.store()).await;
    Ok(master.shutdown().await?)
}

const CHILD: &str = "REPLIKV_RECORDER_CHILD";

/// In a child: records without end, some of it while batches are written, until it is killed.
async fn child(dir: &Path) -> Result<(), Error> {
    // Whoever started it may be killed as well.
    std::thread::spawn(|| {
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        std::process::exit(1);
    });
    let app = App::open(dir);
    let master = app.master().await;
    let writing = master.clone();
    tokio::spawn(async move {
        for number in 0u64.. {
            writing.put(format!("names/batch-{}", number % 40), number.to_string()).await.unwrap();
        }
    });
    let mut rng = Rng::new();
    tokio::task::spawn_blocking(move || {
        for number in 0.. {
            record(&app, &master, number, &mut rng);
        }
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_never_parts_data_and_log() -> Result<(), Error> {
    if let Ok(dir) = std::env::var(CHILD) {
        return child(Path::new(&dir)).await;
    }
    let seed = seed();
    print_seed("--test integration recorder::a_kill_never_parts_data_and_log", seed);
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir()?;
    let mut before = 0;
    for _ in 0..10 {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["recorder::a_kill_never_parts_data_and_log", "--exact", "--nocapture"])
            .env(CHILD, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        tokio::time::sleep(Duration::from_millis(rng.u64(100..400))).await;
        child.kill()?;
        child.wait()?;
        let app = App::open(dir.path());
        let store = app.store();
        assert_log_and_data_agree(&store).await;
        assert_eq!(store.stats().foreign_commits, Some(0));
        let records = read_log(&store, replikv::Seq::ZERO, usize::MAX).await?.len();
        assert!(records >= before);
        before = records;
        store.close().await?;
        app.env.prepare_for_closing().wait();
    }
    assert!(before > 100, "the child has hardly recorded anything: {before}");
    let app = App::open(dir.path());
    let master = app.master().await;
    let slave = follow(&master, MemoryStore::new()).await;
    let token = record(&app, &master, 0, &mut rng);
    soon(slave.wait_applied(token)).await?;
    assert_eq!(all(slave.store()).await, all(master.store()).await);
    Ok(master.shutdown().await?)
}
