//! A page that is read while a commit comes to nothing, and another one takes its number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{
    Batch, Durability, KeyRange, Keyspace, Op, Page, ReplicaStore, ReplicaStoreExt, ScanOptions, StoreError,
    StoreLimits, WriteSet,
};
use replikv_memory::MemoryStore;
use replikv_node::{Master, MasterConfig, Slave, SlaveConfig, WriteError};
use tokio::sync::Semaphore;
use tokio::time::timeout;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("it does not take that long")
}

/// A store that shows a write set, and then has lost it; and whose scans can be held until long after they have looked.
#[derive(Debug, Clone)]
struct Forgetful {
    store: MemoryStore,
    steps: Arc<Steps>,
}

#[derive(Debug)]
struct Steps {
    armed: AtomicBool,
    shown: Semaphore,
    may_be_lost: Semaphore,
    looked: Semaphore,
    may_tell: Semaphore,
}

fn doomed(writes: &WriteSet) -> bool {
    writes.ops().any(|(keyspace, op)| keyspace == Keyspace::Data && matches!(op, Op::Put { key: b"doomed", .. }))
}

impl Forgetful {
    fn new(store: MemoryStore) -> Self {
        let [shown, may_be_lost, looked, may_tell] = [0; 4].map(Semaphore::new);
        let armed = AtomicBool::new(false);
        Self { store, steps: Arc::new(Steps { armed, shown, may_be_lost, looked, may_tell }) }
    }

    /// What every key of the log, of `Meta` and of the data was before `writes`.
    async fn before(&self, writes: &WriteSet) -> Result<WriteSet, StoreError> {
        let mut back = WriteSet::builder();
        for (keyspace, op) in writes.ops() {
            if let Op::Put { key, .. } = op {
                match self.store.get(keyspace, key).await? {
                    Some(value) => back.put(keyspace, key, value)?,
                    None => back.delete(keyspace, key)?,
                };
            }
        }
        Ok(back.build())
    }
}

async fn pass(gate: &Semaphore) {
    gate.acquire().await.expect("nobody closes it").forget();
}

#[async_trait]
impl ReplicaStore for Forgetful {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        if !doomed(&writes) {
            return self.store.apply(writes, durability).await;
        }
        let back = self.before(&writes).await?;
        self.store.apply(writes, durability).await?;
        self.steps.shown.add_permits(1);
        pass(&self.steps.may_be_lost).await;
        self.store.apply(back, durability).await?;
        Err(StoreError::Fatal { reason: "the power went".into() })
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(keyspace, key).await
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let page = self.store.scan(keyspace, range, options).await;
        if keyspace == Keyspace::Data && self.steps.armed.swap(false, Ordering::SeqCst) {
            self.steps.looked.add_permits(1);
            pass(&self.steps.may_tell).await;
        }
        page
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.store.sync().await
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        self.store.reopen().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.store.close().await
    }

    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }
}

#[tokio::test]
async fn a_page_that_shows_what_was_lost_is_never_sent() {
    use futures_util::TryStreamExt;
    // Data that was there before: slaves copy it.
    let source = MemoryStore::new();
    source.apply_one(Keyspace::Data, Op::Put { key: b"old", value: b"1" }).await.unwrap();
    let store = Forgetful::new(source);
    let steps = store.steps.clone();
    let master = Master::open(store, MasterConfig::default().heartbeat(Duration::from_secs(60))).await.unwrap();

    let writer = master.clone();
    let lost = tokio::spawn(async move { writer.write(Batch::new().put("doomed", "1")).await });
    soon(pass(&steps.shown)).await;
    // The slave's page is read while the doomed entry is there.
    steps.armed.store(true, Ordering::SeqCst);
    let copy = MemoryStore::new();
    let slave = Slave::open(copy.open_again(), SlaveConfig::new("edge")).await.unwrap();
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(there).await });
    tokio::spawn(async move { following.follow(here).await });
    soon(pass(&steps.looked)).await;
    // It is lost, and another record takes its number, before the page arrives.
    steps.may_be_lost.add_permits(1);
    assert!(matches!(soon(lost).await.unwrap(), Err(WriteError::OutcomeUnknown { .. })));
    let token = soon(master.put("new", "1")).await.unwrap();
    steps.may_tell.add_permits(1);

    soon(slave.wait_applied(token)).await.unwrap();
    let entries = copy.entries(Keyspace::Data, KeyRange::all(), ScanOptions::default());
    let keys: Vec<Bytes> = entries.map_ok(|(key, _)| key).try_collect().await.unwrap();
    assert_eq!(keys, ["new", "old"]);
}
