//! Threads around a synchronous store.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use bytes::Bytes;
use futures_channel::oneshot;
use replikv_core::{
    Durability, KeyRange, Keyspace, Outcome, Page, ReplicaStore, ScanOptions, StoreError, StoreLimits, StoreStats,
    WriteSet,
};

use crate::BlockingStore;
use crate::gate::Gate;

/// How many threads, and how long a queue.
#[derive(Debug, Clone, Copy)]
pub struct ThreadedOptions {
    /// How many write sets may wait for the writer before callers do. Default: 64.
    pub queue: usize,
    /// How many threads take pages, and point reads that are not inline. Default: 4.
    pub readers: usize,
}

impl Default for ThreadedOptions {
    fn default() -> Self {
        Self { queue: 64, readers: 4 }
    }
}

/// A [`BlockingStore`] as a [`ReplicaStore`].
///
/// Write sets are applied one after the other on a thread of their own; pages are taken on a few others. The store is
/// opened by a function, so that it can be opened again: after an unknown outcome, a failed sync or a panic every call
/// fails with `Fatal` until [`reopen`](ReplicaStore::reopen) has succeeded.
///
/// When it is closed, or its last handle is gone, the threads that read have ended before the store is dropped: what a
/// thread leaves to the store on its way out (LMDB's reader slots) finds it there.
#[derive(Debug)]
pub struct Threaded<B> {
    shared: Arc<Shared<B>>,
    writer: async_channel::Sender<WriterJob>,
    readers: async_channel::Sender<ReaderJob<B>>,
    limits: StoreLimits,
    preferred_write_set: usize,
    preferred_operations: usize,
}

type Opener<B> = Box<dyn Fn() -> Result<B, StoreError> + Send + Sync>;
type Answer<T> = oneshot::Sender<Result<T, StoreError>>;
type ReaderJob<B> = Box<dyn FnOnce(&Shared<B>) + Send>;

enum WriterJob {
    Apply { writes: WriteSet, durability: Durability, answer: Answer<()>, claim: Arc<Claim> },
    Sync { answer: Answer<()>, claim: Arc<Claim> },
    Reopen { answer: Answer<()>, claim: Arc<Claim> },
    Close { answer: Answer<()>, claim: Arc<Claim> },
}

struct Shared<B> {
    /// Readers hold it for a call; the writer thread takes it exclusively to open and to close.
    state: RwLock<State<B>>,
    /// Gone once the store is closed: it may hold what the store is made of.
    open: Mutex<Option<Opener<B>>>,
    gate: Gate,
}

#[derive(Debug)]
enum State<B> {
    Open { store: B, inline: bool },
    Broken { reason: String },
    Closed,
}

impl<B> std::fmt::Debug for Shared<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl<B: BlockingStore> Threaded<B> {
    /// Opens the store with `open`, which is kept for opening it again, and starts its threads. They end when the last
    /// handle is gone.
    ///
    /// # Errors
    /// What `open` returns; a panic in it is `Corrupt`.
    pub fn open(
        name: &str,
        options: ThreadedOptions,
        open: impl Fn() -> Result<B, StoreError> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let open: Opener<B> = Box::new(open);
        let state = State::opened(guarded_open(&open)?);
        let State::Open { store, .. } = &state else { return Err(StoreError::Closed) };
        let limits = store.limits();
        let (preferred_write_set, preferred_operations) = (store.preferred_write_set(), store.preferred_operations());
        let shared =
            Arc::new(Shared { state: RwLock::new(state), open: Mutex::new(Some(open)), gate: Gate::default() });
        let (readers, jobs) = async_channel::bounded::<ReaderJob<B>>(options.readers.max(1) * 16);
        let mut reading = Readers { jobs, threads: Vec::new() };
        for number in 0..options.readers.max(1) {
            let (own, jobs) = (shared.clone(), reading.jobs.clone());
            reading.threads.push(spawn(format!("{name}-reader-{number}"), move || {
                while let Ok(job) = jobs.recv_blocking() {
                    job(&own);
                }
            })?);
        }
        let (writer, jobs) = async_channel::bounded(options.queue.max(1));
        let own = shared.clone();
        spawn(format!("{name}-writer"), move || write_loop(&own, &jobs, reading))?;
        Ok(Self { shared, writer, readers, limits, preferred_write_set, preferred_operations })
    }

    /// Calls `call` with the store, on the caller's thread, which waits for it: for what a backend offers beyond the
    /// contract. Keep it short: the store can be neither closed nor opened anew meanwhile. A write whose caller went
    /// away may still be under way.
    ///
    /// A panic of `call` passes through, and is not held against the store.
    ///
    /// # Errors
    /// `Closed`, `Fatal` if the store must be reopened first, and whatever `call` returns.
    pub fn with_store<T>(&self, call: impl FnOnce(&B) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // Shared guards are not poisoned by a panic.
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        call(state.store()?)
    }

    // Queues a job of the writer and waits for its answer. If the caller goes away, the job is decided before any later
    // call answers.
    async fn submit(&self, job: impl FnOnce(Answer<()>, Arc<Claim>) -> WriterJob) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        let claim = Arc::new(Claim::default());
        let job = job(answer, claim.clone());
        self.writer.send(job).await.map_err(|_| StoreError::Closed)?;
        let mut waiting = Waiting { shared: &self.shared, claim, answered: false };
        let result = answered.await;
        waiting.answered = true;
        result.unwrap_or_else(|_| Err(StoreError::Fatal { reason: "the writer thread is gone".into() }))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&B) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.shared.gate.wait().await;
        let (answer, answered) = oneshot::channel();
        let job: ReaderJob<B> = Box::new(move |shared| {
            if !answer.is_canceled() {
                drop(answer.send(shared.with_store(read)));
            }
        });
        self.readers.send(job).await.map_err(|_| StoreError::Closed)?;
        answered.await.unwrap_or_else(|_| Err(StoreError::Fatal { reason: "a reader thread is gone".into() }))
    }

    fn check_key(&self, key: &[u8]) -> Result<(), StoreError> {
        match key.len() {
            0 => Err(StoreError::KeyEmpty),
            len if len > self.limits.max_key => Err(StoreError::KeyTooLong { len, max: self.limits.max_key }),
            _ => Ok(()),
        }
    }
}

/// The threads that read.
struct Readers<B> {
    jobs: async_channel::Receiver<ReaderJob<B>>,
    threads: Vec<JoinHandle<()>>,
}

impl<B> Readers<B> {
    /// Takes no more jobs, and waits until those that were taken are done and the threads are gone.
    fn end(&mut self) {
        self.jobs.close();
        for thread in self.threads.drain(..) {
            // A panic of a job was caught, and told to whoever waited for it.
            drop(thread.join());
        }
    }
}

impl<B> Drop for Readers<B> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Settles between a caller that goes away and the writer who answered it.
#[derive(Debug, Default)]
struct Claim(AtomicU8);

const OPEN: u8 = 0;
const ABANDONED: u8 = 1;
const DECIDED: u8 = 2;

struct Waiting<'a, B> {
    shared: &'a Shared<B>,
    claim: Arc<Claim>,
    answered: bool,
}

impl<B> Drop for Waiting<'_, B> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        // Counted before it is claimed: the writer must never count down what is not counted yet.
        self.shared.gate.abandon();
        let claimed = self.claim.0.compare_exchange(OPEN, ABANDONED, Ordering::AcqRel, Ordering::Acquire);
        if claimed.is_err() {
            self.shared.gate.decide();
        }
    }
}

impl Claim {
    fn is_abandoned(&self) -> bool {
        self.0.load(Ordering::Acquire) == ABANDONED
    }

    fn decide(&self, gate: &Gate) {
        if self.0.compare_exchange(OPEN, DECIDED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            gate.decide();
        }
    }
}

fn write_loop<B: BlockingStore>(
    shared: &Shared<B>,
    jobs: &async_channel::Receiver<WriterJob>,
    mut readers: Readers<B>,
) {
    while let Ok(job) = jobs.recv_blocking() {
        let (answer, claim, result) = match job {
            // Nobody waits for it, and it has not begun: it never happens.
            WriterJob::Apply { answer, claim, .. } if claim.is_abandoned() => (answer, claim, Ok(())),
            WriterJob::Apply { writes, durability, answer, claim } => {
                let result = shared.with_store(|store| store.apply_owned(writes, durability));
                shared.break_if_unknown(&result);
                (answer, claim, result)
            }
            WriterJob::Sync { answer, claim } => {
                let result = shared.sync();
                (answer, claim, result)
            }
            WriterJob::Reopen { answer, claim } => (answer, claim, shared.reopen()),
            WriterJob::Close { answer, claim } => (answer, claim, shared.close(&mut readers)),
        };
        // Decided first, answered then: whoever calls next finds no undecided write.
        claim.decide(&shared.gate);
        drop(answer.send(result));
    }
    // The last handle is gone.
    readers.end();
    shared.drop_store();
}

impl<B: BlockingStore> Shared<B> {
    fn with_store<T>(&self, call: impl FnOnce(&B) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let panic = {
            // Panics are caught inside: the lock is never poisoned by one.
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let store = state.store()?;
            match catch_unwind(AssertUnwindSafe(|| call(store))) {
                Ok(result) => return result,
                Err(panic) => panic,
            }
        };
        let reason = format!("the store panicked: {}", panic_words(panic.as_ref()));
        self.set_broken(reason.clone());
        Err(StoreError::Fatal { reason })
    }

    fn set_broken(&self, reason: String) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Open { .. }) {
            tracing::error!(
                target: "replikv::store", error = %reason,
                "the store is used no more until it is opened again"
            );
            state.replace(State::Broken { reason });
        }
    }

    fn break_if_unknown(&self, result: &Result<(), StoreError>) {
        if let Err(error) = result
            && error.outcome() == Outcome::Unknown
        {
            self.set_broken(reason(error));
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        match self.with_store(BlockingStore::sync) {
            Err(error @ (StoreError::Closed | StoreError::Fatal { .. })) => {
                self.break_if_unknown(&Err(error.clone()));
                Err(error)
            }
            // The kernel may have dropped what it could not write: only opening anew tells what is there.
            Err(error) => {
                let reason = format!("a sync failed: {}", reason(&error));
                self.set_broken(reason.clone());
                Err(StoreError::Fatal { reason })
            }
            Ok(()) => Ok(()),
        }
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Open { .. } => return Ok(()),
            State::Closed => return Err(StoreError::Closed),
            State::Broken { .. } => {}
        }
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State::opened(guarded_open(open.as_ref().ok_or(StoreError::Closed)?)?);
        Ok(())
    }

    fn close(&self, readers: &mut Readers<B>) -> Result<(), StoreError> {
        let synced = match self.sync() {
            Err(StoreError::Closed) => Ok(()),
            result => result,
        };
        readers.end();
        // Dropped under the lock: when this returns, it can be opened again.
        self.drop_store();
        synced
    }

    fn drop_store(&self) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).replace(State::Closed);
        drop(self.open.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    // `None` if the call must go to a reader thread.
    fn get_inline(&self, keyspace: Keyspace, key: &[u8]) -> Option<Result<Option<Bytes>, StoreError>> {
        {
            // The writer holds it exclusively only to open and to close; nobody waits for that on an async thread.
            let state = self.state.try_read().ok()?;
            match &*state {
                State::Open { inline: true, .. } => {}
                State::Open { .. } => return None,
                other => return other.store().err().map(Err),
            }
        }
        Some(self.with_store(|store| store.get(keyspace, key)))
    }
}

impl<B: BlockingStore> State<B> {
    fn opened(store: B) -> Self {
        let inline = store.reads_inline();
        Self::Open { store, inline }
    }
}

impl<B> State<B> {
    // A store that is broken may panic once more when it is dropped; the writer thread outlives that.
    fn replace(&mut self, new: Self) {
        let old = std::mem::replace(self, new);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(old))) {
            tracing::error!(
                target: "replikv::store", error = panic_words(panic.as_ref()),
                "the store panicked while it was dropped"
            );
        }
    }

    fn store(&self) -> Result<&B, StoreError> {
        match self {
            Self::Open { store, .. } => Ok(store),
            Self::Broken { reason } => Err(StoreError::Fatal { reason: reason.clone() }),
            Self::Closed => Err(StoreError::Closed),
        }
    }
}

// With all causes: whoever comes later is told no other.
fn reason(error: &StoreError) -> String {
    if let StoreError::Fatal { reason } = error {
        return reason.clone();
    }
    let mut words = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !words.ends_with(&cause) {
            words = format!("{words}: {cause}");
        }
    }
    words
}

fn guarded_open<B>(open: &Opener<B>) -> Result<B, StoreError> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| {
        Err(StoreError::Corrupt { what: format!("it panicked while opening: {}", panic_words(panic.as_ref())) })
    })
}

fn panic_words(panic: &(dyn Any + Send)) -> &str {
    let words = panic.downcast_ref::<&str>().copied();
    words.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    thread::Builder::new().name(name).spawn(run).map_err(StoreError::backend)
}

#[async_trait]
impl<B: BlockingStore> ReplicaStore for Threaded<B> {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        writes.check(&self.limits)?;
        self.submit(|answer, claim| WriterJob::Apply { writes, durability, answer, claim }).await
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.check_key(key)?;
        self.shared.gate.wait().await;
        if let Some(result) = self.shared.get_inline(keyspace, key) {
            return result;
        }
        let key = Bytes::copy_from_slice(key);
        self.read(move |store| store.get(keyspace, &key)).await
    }

    async fn get_many(&self, keyspace: Keyspace, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        keys.iter().try_for_each(|key| self.check_key(key))?;
        self.shared.gate.wait().await;
        let inline = keys.iter().map_while(|key| self.shared.get_inline(keyspace, key));
        let mut values: Vec<_> = inline.collect::<Result<_, _>>()?;
        if values.len() < keys.len() {
            // One turn of a reader thread for all of them.
            let rest = keys[values.len()..].to_vec();
            let read = move |store: &B| rest.iter().map(|key| store.get(keyspace, key)).collect::<Result<Vec<_>, _>>();
            values.extend(self.read(read).await?);
        }
        Ok(values)
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.read(move |store| store.scan(keyspace, range, options)).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.submit(|answer, claim| WriterJob::Sync { answer, claim }).await
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        self.submit(|answer, claim| WriterJob::Reopen { answer, claim }).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.submit(|answer, claim| WriterJob::Close { answer, claim }).await
    }

    fn limits(&self) -> StoreLimits {
        self.limits
    }

    fn preferred_write_set(&self) -> usize {
        self.preferred_write_set
    }

    fn preferred_operations(&self) -> usize {
        self.preferred_operations
    }

    fn stats(&self) -> StoreStats {
        // Held exclusively only while it is opened or closed: nobody waits for that here.
        let Ok(state) = self.shared.state.try_read() else { return StoreStats::default() };
        state.store().map(BlockingStore::stats).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
