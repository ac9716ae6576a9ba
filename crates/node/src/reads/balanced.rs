//! Reads spread over many readers: within a bound of staleness, after a write, never backwards.
//!
//! Which reader is asked is a guess from what each last said of itself. What counts is the answer, which names its
//! moment: one that is not within the bound is not used, and another reader is asked.
//!
//! Of two readers that are drawn at random the less busy one is asked. That keeps the busiest one close to the average
//! without anybody knowing all loads, and no reader that looks idle, because it has just come back, is run over by
//! everybody at once. It is ten lines; a service stack for it would bring readiness, buffers and weights that nobody
//! here needs.

mod judge;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fastrand::Rng;
use futures_util::future::select_ok;
use replikv_core::{DataReader, KeyRange, Page, ScanOptions, StoreError};
use replikv_proto::WaitFor;
use tokio::time::{Instant, sleep, timeout};

use self::judge::Judge;
use super::ReadSession;
use crate::clock::ahead;
use crate::reader::Reading;
use crate::{Changes, ChangesError, ChangesFrom, Health, HealthState, ReadError, Reader, ReaderStatus, WaitError};

/// How often readers are looked at while none is within the bound.
const RECHECK: Duration = Duration::from_millis(25);

/// The settings of a [`BalancedReader`]. Each has a default.
#[derive(Debug, Clone)]
pub struct BalanceConfig {
    max_lag_seqs: Option<u64>,
    max_lag: Option<Duration>,
    patience: Duration,
    attempt_timeout: Duration,
    rest: Duration,
    seed: Option<u64>,
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self {
            max_lag_seqs: None,
            max_lag: Some(Duration::from_secs(10)),
            patience: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(5),
            rest: Duration::from_millis(500),
            seed: None,
        }
    }
}

impl BalanceConfig {
    /// How many records a read may lack, of those that any of the readers, or the fallback, was seen to have, or to have
    /// been told of by its master. Default: `None`, any number.
    #[must_use]
    pub fn max_lag_seqs(mut self, records: Option<u64>) -> Self {
        self.max_lag_seqs = records;
        self
    }

    /// How old a read may be: how long ago the reader last heard of its master if nothing is missing, or else the age of
    /// the last record that it has. A bound below the master's heartbeat leaves no reader while nobody writes. Default:
    /// 10 seconds. `None`: any age, also of a reader that has lost its master for good.
    #[must_use]
    pub fn max_lag(mut self, age: Option<Duration>) -> Self {
        self.max_lag = age;
        self
    }

    /// How long a read waits for a reader to come within the bound, if neither one nor the fallback can answer.
    /// Default: one second.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long one reader may take for one read, before another one is asked. Default: 5 seconds.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout;
        self
    }

    /// How long a reader that has failed, or whose answer was not within the bound, is asked only if nobody else can answer. Default: 500 milliseconds.
    #[must_use]
    pub fn rest(mut self, rest: Duration) -> Self {
        self.rest = rest;
        self
    }

    /// What the random choices are drawn from, for tests. Default: `None`, another one each time.
    #[must_use]
    pub fn seed(mut self, seed: Option<u64>) -> Self {
        self.seed = seed;
        self
    }
}

/// What went to one reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReaderShare {
    /// Reads that it answered.
    pub reads: u64,
    /// Reads that it failed, and that were asked elsewhere.
    pub failures: u64,
    /// Answers that were not within the bound, or came before what they were to include, and were asked elsewhere.
    pub unfit: u64,
    /// Reads that it is asked at the moment.
    pub asked: usize,
}

/// Reads from whichever of its readers is close enough behind, and not busy.
///
/// Readers are slaves, in this process or on the other side of a connection, or whatever else is a [`Reader`] of the
/// same source. One that fails, lags, copies or compares is left out, and asked again once it is well. A read that
/// fails on one reader is asked on another one: a reader that dies costs time, and no read.
///
/// How stale a read can be is bounded by [`BalanceConfig`]. Reads that must include a write name its token
/// ([`get_after`](Self::get_after)); reads that must never go back to what is older than what was seen go through a
/// [`session`](Self::session).
///
/// Handles are cheap to clone and share everything.
///
/// # Cancel safety
/// Of every method: nothing is changed.
#[derive(Debug, Clone)]
pub struct BalancedReader {
    inner: Arc<Inner>,
}

struct Inner {
    readers: Vec<Entry>,
    fallback: Option<Entry>,
    config: BalanceConfig,
    judge: Judge,
    rng: Mutex<Rng>,
    /// What every read includes.
    floor: Mutex<Option<WaitFor>>,
}

struct Entry {
    reader: Arc<dyn Reader>,
    asked: AtomicUsize,
    reads: AtomicU64,
    failures: AtomicU64,
    unfit: AtomicU64,
    rests_until: Mutex<Option<Instant>>,
}

impl Entry {
    fn new(reader: Arc<dyn Reader>) -> Self {
        let (asked, count) = (AtomicUsize::new(0), || AtomicU64::new(0));
        Self { reader, asked, reads: count(), failures: count(), unfit: count(), rests_until: Mutex::default() }
    }

    fn rests(&self, now: Instant) -> bool {
        lock(&self.rests_until).is_some_and(|until| until > now)
    }

    fn share(&self) -> ReaderShare {
        ReaderShare {
            reads: self.reads.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            unfit: self.unfit.load(Ordering::Relaxed),
            asked: self.asked.load(Ordering::Relaxed),
        }
    }
}

/// A read that is under way on a reader.
struct Asking<'a>(&'a Entry);

impl<'a> Asking<'a> {
    fn begin(entry: &'a Entry) -> Self {
        entry.asked.fetch_add(1, Ordering::Relaxed);
        Self(entry)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asked.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that runs under these locks can panic half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far a round over all readers got.
enum Round<T> {
    Answered(Reading<T>),
    /// No reader will ever answer otherwise.
    Final(ReadError),
    /// Nobody answered. Why, for each.
    Nobody(Vec<String>),
}

impl BalancedReader {
    /// Reads from `readers`.
    pub fn new(readers: impl IntoIterator<Item = Arc<dyn Reader>>, config: BalanceConfig) -> Self {
        Self::make(readers, None, config)
    }

    /// Reads from `readers`, and from `fallback`, the master as a rule, when none of them can answer. It is not asked
    /// otherwise; but what it has counts for how far readers are behind. Nor is it asked once another master goes on in its
    /// place, as far as it says so, or readers have been in a later epoch.
    pub fn with_fallback(
        readers: impl IntoIterator<Item = Arc<dyn Reader>>,
        fallback: Arc<dyn Reader>,
        config: BalanceConfig,
    ) -> Self {
        Self::make(readers, Some(fallback), config)
    }

    fn make(
        readers: impl IntoIterator<Item = Arc<dyn Reader>>,
        fallback: Option<Arc<dyn Reader>>,
        config: BalanceConfig,
    ) -> Self {
        let rng = config.seed.map_or_else(Rng::new, Rng::with_seed);
        let inner = Inner {
            readers: readers.into_iter().map(Entry::new).collect(),
            fallback: fallback.map(Entry::new),
            judge: Judge::new(config.max_lag_seqs, config.max_lag),
            rng: Mutex::new(rng),
            floor: Mutex::default(),
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The value of `key` that `after`, a token as a rule, or something later has left: read your writes.
    ///
    /// # Errors
    /// [`ReadError`]; [`ReadError::NobodyWithin`] if no reader can answer in time.
    pub async fn get_after(
        &self,
        after: impl Into<WaitFor> + Send,
        key: impl AsRef<[u8]> + Send,
    ) -> Result<Option<Bytes>, ReadError> {
        Ok(self.read(key.as_ref(), Some(after.into())).await?.value)
    }

    /// Reads that never go back: each includes all that was seen by the reads before it.
    pub fn session(&self) -> ReadSession {
        ReadSession::new(self.clone())
    }

    /// What went to each reader, in their order.
    pub fn shares(&self) -> Vec<ReaderShare> {
        self.inner.readers.iter().map(Entry::share).collect()
    }

    /// What went to the fallback, if there is one.
    pub fn fallback_share(&self) -> Option<ReaderShare> {
        self.inner.fallback.as_ref().map(Entry::share)
    }

    async fn balance<T, F>(
        &self,
        after: Option<WaitFor>,
        read: impl Fn(Arc<dyn Reader>, Option<WaitFor>) -> F,
    ) -> Result<Reading<T>, ReadError>
    where
        F: Future<Output = Result<Reading<T>, ReadError>>,
    {
        let until = ahead(self.inner.config.patience);
        // Those that rest are asked before nobody is.
        let mut everybody = self.inner.fallback.is_none();
        loop {
            let floor = *lock(&self.inner.floor);
            let all = later(after, floor);
            let reasons = match self.inner.round(all, everybody, |reader| read(reader, all)).await {
                Round::Answered(read) => return Ok(read),
                // What all reads were to include is no part of the history any more.
                Round::Final(ReadError::Wait(WaitError::Superseded)) if all != after => {
                    let mut kept = lock(&self.inner.floor);
                    *kept = kept.filter(|kept| Some(*kept) != floor);
                    continue;
                }
                Round::Final(error) => return Err(error),
                Round::Nobody(reasons) => reasons,
            };
            if everybody && Instant::now() >= until {
                return Err(ReadError::NobodyWithin { reasons: reasons.join("; ") });
            }
            if everybody {
                self.inner.something_changes(all).await;
            }
            everybody = true;
        }
    }
}

impl Inner {
    /// Asks one reader after the other, then the fallback.
    async fn round<T, F>(
        &self,
        after: Option<WaitFor>,
        everybody: bool,
        read: impl Fn(Arc<dyn Reader>) -> F,
    ) -> Round<T>
    where
        F: Future<Output = Result<Reading<T>, ReadError>>,
    {
        let statuses: Vec<ReaderStatus> = self.readers.iter().map(|entry| entry.reader.status()).collect();
        let last_resort = self.fallback.as_ref().map(|fallback| fallback.reader.status());
        last_resort.iter().for_each(|status| self.judge.saw_status(status));
        statuses.iter().for_each(|status| self.judge.saw_status(status));
        let mut reasons: Vec<Option<String>> = vec![None; self.readers.len()];
        let mut hopeless = Vec::new();
        while let Some(chosen) = self.choose(&statuses, after, everybody, &mut reasons) {
            match self.attempt(&self.readers[chosen], true, &read).await {
                Ok(read) => return Round::Answered(read),
                Err(error) if is_final(&error) => return Round::Final(error),
                Err(error) => {
                    reasons[chosen] = Some(error.to_string());
                    hopeless.push(error);
                }
            }
        }
        let mut reasons: Vec<String> = reasons.into_iter().flatten().collect();
        let unfit = last_resort.and_then(|status| self.judge.fallback(&status).err());
        match (&self.fallback, unfit) {
            (Some(_), Some(unfit)) => reasons.push(format!("the fallback: {unfit}")),
            (Some(fallback), None) => match self.attempt(fallback, false, &read).await {
                Ok(read) => return Round::Answered(read),
                Err(error) if is_final(&error) => return Round::Final(error),
                Err(error) => {
                    reasons.push(format!("the fallback: {error}"));
                    hopeless.push(error);
                }
            },
            (None, _) => {}
        }
        // One reader may be of another history. When all who were asked say so, it is what was asked for.
        let never =
            |error: &ReadError| matches!(error, ReadError::Wait(WaitError::Superseded | WaitError::ForeignSource));
        if !hopeless.is_empty() && hopeless.iter().all(never) {
            return Round::Final(hopeless.swap_remove(0));
        }
        Round::Nobody(reasons)
    }

    /// The next reader to ask: of two that were drawn, the less busy one. Those that have a reason against them already
    /// were asked, or are not fit.
    fn choose(
        &self,
        statuses: &[ReaderStatus],
        after: Option<WaitFor>,
        everybody: bool,
        reasons: &mut [Option<String>],
    ) -> Option<usize> {
        let now = Instant::now();
        let mut groups: [Vec<usize>; 3] = Default::default();
        for (at, status) in statuses.iter().enumerate() {
            if reasons[at].is_some() {
                continue;
            }
            if let Err(unfit) = self.judge.status(status) {
                reasons[at] = Some(unfit.to_string());
                continue;
            }
            // What a reader last said of itself may be old: one that seemed behind may have what is wanted by now.
            let seems_behind = after.is_some_and(|after| status.position.is_none_or(|at| at.seq < after.seq()));
            match self.readers[at].rests(now) {
                true if everybody => groups[2].push(at),
                true => reasons[at] = Some("it failed a moment ago".into()),
                false => groups[usize::from(seems_behind)].push(at),
            }
        }
        let group = groups.into_iter().find(|group| !group.is_empty())?;
        let mut rng = lock(&self.rng);
        let first = rng.usize(..group.len());
        if group.len() == 1 {
            return Some(group[first]);
        }
        let second = (first + rng.usize(1..group.len())) % group.len();
        let busy = |at: usize| self.readers[at].asked.load(Ordering::Relaxed);
        let (first, second) = (group[first], group[second]);
        Some(if busy(second) < busy(first) { second } else { first })
    }

    async fn attempt<T, F>(
        &self,
        entry: &Entry,
        bounded: bool,
        read: &impl Fn(Arc<dyn Reader>) -> F,
    ) -> Result<Reading<T>, ReadError>
    where
        F: Future<Output = Result<Reading<T>, ReadError>>,
    {
        let asking = Asking::begin(entry);
        let answer = timeout(self.config.attempt_timeout, read(entry.reader.clone())).await;
        drop(asking);
        let error = match answer {
            Ok(Ok(read)) => match self.judge.answer(&read.at, bounded) {
                Ok(()) => {
                    entry.reads.fetch_add(1, Ordering::Relaxed);
                    *lock(&entry.rests_until) = None;
                    return Ok(read);
                }
                Err(unfit) => {
                    entry.unfit.fetch_add(1, Ordering::Relaxed);
                    *lock(&entry.rests_until) = Some(ahead(self.config.rest));
                    return Err(ReadError::NobodyWithin { reasons: unfit.to_string() });
                }
            },
            // It is well, and does not have what is asked for: another one may.
            Ok(Err(error @ (ReadError::Behind { .. } | ReadError::Store(StoreError::NotSubscribed { .. })))) => {
                entry.unfit.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
            Ok(Err(error)) => error,
            Err(_) => ReadError::Unreachable { reason: "it takes too long".into() },
        };
        if !is_final(&error) {
            entry.failures.fetch_add(1, Ordering::Relaxed);
            *lock(&entry.rests_until) = Some(ahead(self.config.rest));
        }
        Err(error)
    }

    /// Returns when it is worth looking again.
    async fn something_changes(&self, after: Option<WaitFor>) {
        let waits = after.into_iter().flat_map(|after| {
            let fit = self.readers.iter().filter(|entry| self.judge.status(&entry.reader.status()).is_ok());
            fit.map(move |entry| entry.reader.wait_applied(after))
        });
        let waits: Vec<_> = waits.collect();
        let waiting = !waits.is_empty();
        let reached = async move { if waiting { select_ok(waits).await.map(drop) } else { Ok(()) } };
        tokio::select! {
            biased;
            Ok(()) = reached, if waiting => {
                // It may still be that nobody is fit to be read.
                tokio::task::yield_now().await;
            }
            () = sleep(RECHECK) => {}
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares: Vec<ReaderShare> = self.readers.iter().map(Entry::share).collect();
        f.debug_struct("BalancedReader").field("config", &self.config).field("shares", &shares).finish_non_exhaustive()
    }
}

// What the reader says about the question, and every other one would say.
fn is_final(error: &ReadError) -> bool {
    matches!(error, ReadError::Store(StoreError::KeyEmpty | StoreError::KeyTooLong { .. }) | ReadError::TooLarge { .. })
}

fn later(one: Option<WaitFor>, other: Option<WaitFor>) -> Option<WaitFor> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.seq() > one.seq() { other } else { one }),
        (one, other) => one.or(other),
    }
}

#[async_trait]
impl Reader for BalancedReader {
    async fn read(&self, key: &[u8], after: Option<WaitFor>) -> Result<Reading<Option<Bytes>>, ReadError> {
        let key = Bytes::copy_from_slice(key);
        let read = |reader: Arc<dyn Reader>, after| {
            let key = key.clone();
            async move { reader.read(&key, after).await }
        };
        self.balance(after, read).await
    }

    async fn read_page(
        &self,
        range: KeyRange,
        options: ScanOptions,
        after: Option<WaitFor>,
    ) -> Result<Reading<Page>, ReadError> {
        let read = |reader: Arc<dyn Reader>, after| {
            let range = range.clone();
            async move { reader.read_page(range, options, after).await }
        };
        self.balance(after, read).await
    }

    /// Refused with [`ChangesError::Unsupported`]: changes are of one reader. Read those of one.
    async fn changes(&self, _from: ChangesFrom, _ranges: Vec<KeyRange>) -> Result<Changes, ChangesError> {
        Err(ChangesError::Unsupported)
    }

    /// Waits until a write is readable on one of the readers, or the fallback. From then on every read through this
    /// reader, and its clones, includes it.
    async fn wait_applied(&self, write: WaitFor) -> Result<(), WaitError> {
        loop {
            let entries = self.inner.readers.iter().chain(&self.inner.fallback);
            let waits: Vec<_> = entries.map(|entry| entry.reader.wait_applied(write)).collect();
            let reached = if waits.is_empty() { Err(WaitError::Closed) } else { select_ok(waits).await.map(drop) };
            match reached {
                Ok(()) => {
                    let mut floor = lock(&self.inner.floor);
                    *floor = later(*floor, Some(write));
                    return Ok(());
                }
                // Of all, the last one to give up. A connection comes back.
                Err(WaitError::Unreachable { .. }) => sleep(RECHECK).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// That of the reader which is furthest, of those that are within the bound; or else of the fallback.
    fn status(&self) -> ReaderStatus {
        let statuses = self.inner.readers.iter().map(|entry| entry.reader.status());
        let fit = statuses.filter(|status| self.inner.judge.status(status).is_ok());
        let best = fit.max_by_key(|status| status.position.map(|position| position.seq));
        let fallback = || self.inner.fallback.as_ref().map(|entry| entry.reader.status());
        best.or_else(fallback).unwrap_or_else(|| ReaderStatus {
            health: Health {
                state: HealthState::Disconnected,
                reason: "no reader is within the bound".into(),
                since_unix_ms: crate::clock::unix_ms(),
            },
            position: None,
            consistent: false,
            lag: None,
            last_contact_ms: None,
        })
    }
}

#[async_trait]
impl DataReader for BalancedReader {
    async fn get_data(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.read(key, None).await?.value)
    }

    async fn scan_data(&self, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        Ok(self.read_page(range, options, None).await?.value)
    }
}
