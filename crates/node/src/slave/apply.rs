//! The task that commits: takes what has arrived, a group at a time, into the store.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use replikv_core::{
    Cursor, Durability, KeyRange, Keyspace, Outcome as StoreOutcome, Position, ReplicaStore, ScanOptions, StoreError,
    WriteSet, WriteSetBuilder,
};
use replikv_proto::layout::Epochs;
use replikv_proto::{
    Applier, Content, Differing, Displaced, Displacing, Group, Portion, ProbeCheck, Probed, Record, RejectCode, Resync,
    Touched,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::follow::LAST_WORDS;
use super::relay::Facts;
use super::status::Applied;
use super::verify::{Compared, Difference, Job, Outcome};
use super::{FollowError, Inner};
use crate::changes::AppliedGroup;
use crate::clock::ahead;

/// What a connection hands over.
#[derive(Debug)]
pub(super) enum Item {
    Begin(Cursor),
    Resync(Cursor, Resync, Epochs),
    Record(Record),
    Portion(Portion),
    Content(Content),
    Touched(Touched),
    Covered(KeyRange, Position),
    Checkpoints(Vec<Position>),
    Probed(Box<Probed>, Job),
    /// What the master tells of the history, for those who follow this slave.
    Facts(Facts),
}

impl Item {
    fn byte_len(&self) -> usize {
        match self {
            Self::Begin(_) | Self::Resync(..) | Self::Facts(_) => 0,
            Self::Record(record) => record.byte_len(),
            Self::Portion(portion) => portion.byte_len(),
            Self::Content(content) => content.entries.byte_len(),
            Self::Touched(touched) => touched.ops.byte_len(),
            Self::Covered(range, _) => Applier::covered_len(range),
            Self::Checkpoints(_) => 0,
            Self::Probed(probed, _) => probed.byte_len(),
        }
    }
}

/// How much was handed over and is not committed yet. The connection is not read while it is full.
#[derive(Debug)]
pub(super) struct Backlog {
    bytes: AtomicUsize,
    cap: usize,
    drained: Notify,
}

impl Backlog {
    pub(super) fn new(cap: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), cap, drained: Notify::new() }
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Acquire) < self.cap
    }

    pub(super) async fn drained(&self) {
        self.drained.notified().await;
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.drained.notify_one();
    }
}

/// The connection's end of the queue.
#[derive(Debug)]
pub(super) struct Queue {
    items: mpsc::UnboundedSender<Item>,
    backlog: Arc<Backlog>,
}

impl Queue {
    /// A queue that holds back its filler beyond `cap` bytes, and the end that [`ApplyTask`] takes from.
    pub(super) fn new(cap: usize) -> (Self, mpsc::UnboundedReceiver<Item>, Arc<Backlog>) {
        let backlog = Arc::new(Backlog::new(cap));
        let (items, receiver) = mpsc::unbounded_channel();
        (Self { items, backlog: backlog.clone() }, receiver, backlog)
    }

    /// Hands an item over. A queue whose task has ended takes no more; the task's own error says why.
    pub(super) fn push(&self, item: Item) {
        self.backlog.add(item.byte_len());
        drop(self.items.send(item));
    }
}

/// Applies one connection's records and pages.
#[derive(Debug)]
pub(super) struct ApplyTask<S> {
    pub(super) inner: Arc<Inner<S>>,
    pub(super) items: mpsc::UnboundedReceiver<Item>,
    pub(super) backlog: Arc<Backlog>,
    pub(super) applier: Applier,
    /// Cancelled when the connection's owner lost interest: the group in flight is decided, the rest is dropped.
    pub(super) abandoned: CancellationToken,
    /// What becomes of the answers that the applier holds, in order.
    jobs: VecDeque<Job>,
    sync_at: Option<Instant>,
    /// What the master has told, and is not known to those who follow this slave.
    facts: Option<Facts>,
}

const ATTEMPTS: u32 = 6;
/// From how many bytes on a write set is applied by a task of its own.
const LARGE: usize = 1 << 20;
/// How much of the slave's own data is read at once to see what is displaced, in bytes.
const QUARANTINE_BYTES: usize = 1 << 20;
/// How much of it is read at once to compare it, in bytes.
const VERIFY_BYTES: usize = 256 << 10;
/// From how many bytes on what mends a range is committed before the rest of it is looked at.
const MEND_BYTES: usize = 1 << 20;

impl<S: ReplicaStore> ApplyTask<S> {
    pub(super) fn new(
        inner: Arc<Inner<S>>,
        items: mpsc::UnboundedReceiver<Item>,
        backlog: Arc<Backlog>,
        applier: Applier,
        abandoned: CancellationToken,
    ) -> Self {
        Self { inner, items, backlog, applier, abandoned, jobs: VecDeque::new(), sync_at: None, facts: None }
    }

    /// Commits until the connection has handed over its last item, or has been abandoned. Once the slave shuts down, a
    /// connection that nobody polls is not waited for: it holds what only this task gives back.
    pub(super) async fn run(mut self) -> Result<(), FollowError> {
        let mut folded = None;
        let mut open = true;
        while !self.abandoned.is_cancelled() {
            while let Ok(item) = self.items.try_recv() {
                self.push(item);
            }
            if folded.is_none()
                && let Some(probed) = self.applier.take_probed()
            {
                self.compare(&probed).await?;
                continue;
            }
            if let Some((relay, facts)) = self.inner.relay.as_ref().zip(self.facts.take()) {
                relay.learn(&self.inner.store, facts).await?;
            }
            let group = match folded.take() {
                Some(group) => Some(group),
                None => self.next_group()?,
            };
            match group {
                Some(group) => folded = self.commit(group).await?,
                None if !open => break,
                None => tokio::select! {
                    biased;
                    () = self.abandoned.cancelled() => break,
                    item = self.items.recv() => match item {
                        Some(item) => self.push(item),
                        None => open = false,
                    },
                    () = closing_for(&self.inner.closing, LAST_WORDS) => break,
                    () = sleep_until(self.sync_at.unwrap_or_else(Instant::now)), if self.sync_at.is_some() => {}
                },
            }
            if self.sync_at.is_some_and(|at| Instant::now() >= at) {
                self.sync().await?;
            }
        }
        if self.sync_at.is_some() { self.sync().await } else { Ok(()) }
    }

    fn push(&mut self, item: Item) {
        match item {
            Item::Begin(cursor) => self.applier.begin(cursor),
            Item::Resync(cursor, resync, epochs) => {
                if let Some(relay) = &self.inner.relay {
                    relay.resyncs();
                }
                self.applier.begin_resync(cursor, resync, epochs);
            }
            Item::Record(record) => self.applier.push_record(record),
            Item::Portion(portion) => self.applier.push_portion(portion),
            Item::Content(content) => self.applier.push_content(content),
            Item::Touched(touched) => self.applier.push_touched(touched),
            Item::Covered(range, read_at) => self.applier.push_covered(range, read_at),
            Item::Checkpoints(checkpoints) => self.applier.push_checkpoints(checkpoints),
            Item::Probed(probed, job) => {
                self.applier.push_probed(probed);
                self.jobs.push_back(job);
            }
            Item::Facts(facts) => self.facts = Some(facts),
        }
    }

    fn next_group(&mut self) -> Result<Option<Group>, StoreError> {
        if let Some(relay) = &self.inner.relay {
            self.applier.tell_uptime(relay.uptime_ms());
        }
        self.applier.next_group()
    }

    /// Commits `group`. If a whole further group arrives meanwhile, it is folded and returned.
    async fn commit(&mut self, mut group: Group) -> Result<Option<Group>, FollowError> {
        let durability = self.inner.config.durability;
        let mut folded = None;
        let begun = Instant::now();
        if let Some(displacing) = &group.displacing {
            self.quarantine(displacing).await?;
        }
        // A large value is the store's alone, which frees it while it copies it. What the store does not take then is not
        // there to be tried again: the next connection brings it.
        let once = !group.writes.is_joined() && !self.inner.feed.is_heard();
        let mut kept = Some(std::mem::take(&mut group.writes));
        if let Some(relay) = &self.inner.relay {
            relay.hand(group.cursor.position, group.log.as_ref());
        }
        self.inner.tracker.handed(&group.cursor);
        for attempt in 0.. {
            let writes = if once { kept.take() } else { kept.clone() };
            let Some(writes) = writes else { break };
            match self.apply(writes, durability, &mut folded).await {
                Ok(()) => break,
                Err(error) if error.is_retryable() && attempt < ATTEMPTS && kept.is_some() => {
                    sleep(Duration::from_millis(10 << attempt)).await;
                }
                Err(error) => return Err(self.inner.give_up(error).await),
            }
        }
        if let Some(relay) = &self.inner.relay {
            relay.committed(&self.inner.store, group.log.take()).await?;
        }
        self.inner.metrics.applied(group.records, begun.elapsed());
        if self.inner.feed.is_heard() {
            let cursor = group.cursor.clone();
            self.inner.feed.tell(AppliedGroup { cursor, records: group.records, time: group.time, writes: kept });
        }
        self.inner.tracker.applied(&Applied {
            cursor: group.cursor,
            records: group.records,
            received: group.received,
            time: group.time,
            durable: durability == Durability::Synced,
        });
        self.backlog.remove(group.bytes);
        if durability == Durability::Buffered && self.sync_at.is_none() {
            self.sync_at = Some(ahead(self.inner.config.sync_every));
        }
        Ok(folded)
    }

    // Before anything of the group is applied: what it takes the place of is nowhere else.
    async fn quarantine(&self, displacing: &Displacing) -> Result<(), FollowError> {
        let inner = &self.inner;
        let none = || FollowError::Quarantine { source: io::Error::other("none is configured") };
        let quarantine = inner.config.quarantine.as_ref().ok_or_else(none)?;
        let mut kept = 0;
        for content in &displacing.contents {
            let mut rest = Some(content.range.clone());
            while let Some(range) = rest.take() {
                let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(QUARANTINE_BYTES);
                let page = inner.store.scan(Keyspace::Data, range, options).await?;
                let displaced = Displacing::displaced(content, page.ops());
                if !displaced.is_empty() {
                    kept += displaced.len() as u64;
                    let words = |source| FollowError::Quarantine { source };
                    quarantine.keep(&displacing.resync, displaced).await.map_err(words)?;
                }
                rest = page.rest().cloned();
            }
        }
        if kept > 0 {
            inner.tracker.quarantined(kept);
        }
        Ok(())
    }

    // Everything before it is committed, and nothing after it: the store holds what the master's answer speaks of.
    async fn compare(&mut self, probed: &Probed) -> Result<(), FollowError> {
        // Whoever no longer waits for it wants nothing mended either.
        if let Some(job) = self.jobs.pop_front().filter(|job| !job.answer.is_closed()) {
            let there = |cursor: &&Cursor| cursor.is_consistent() && cursor.position == probed.at;
            let outcome = match self.applier.cursor().filter(there).cloned() {
                Some(cursor) => Outcome::Compared(self.compare_at(cursor, probed, &job).await?),
                None => Outcome::NotConsistent,
            };
            drop(job.answer.send(outcome));
        }
        self.backlog.remove(probed.byte_len());
        Ok(())
    }

    async fn compare_at(&mut self, cursor: Cursor, probed: &Probed, job: &Job) -> Result<Compared, FollowError> {
        let inner = self.inner.clone();
        let mut check = ProbeCheck::new(probed);
        let mut findings = Findings { max: job.max_differences, ..Findings::default() };
        findings.mending = job.repair.then(|| self.mending());
        let mut rest = Some(probed.range.clone());
        while let Some(range) = rest.take() {
            let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(VERIFY_BYTES);
            let page = inner.store.scan(Keyspace::Data, range, options).await?;
            check.push_page(page.ops(), |differing| findings.add(differing))?;
            rest = page.rest().cloned();
            // A slave may hold any number of entries that its master does not.
            if let Some(mending) = findings.mending.take_if(|mending| mending.byte_len() > MEND_BYTES) {
                self.mend(&cursor, mending).await?;
                findings.mending = Some(self.mending());
            }
        }
        let checked = check.finish(|differing| findings.add(differing))?;
        // A second process that moves the cursor has another state in the store, and no difference is one.
        if !checked.equal && inner.store.cursor(&inner.config.link).await?.as_ref() != Some(&cursor) {
            return Err(FollowError::Fenced);
        }
        if let Some(mending) = findings.mending.take_if(|mending| mending.byte_len() > 0) {
            self.mend(&cursor, mending).await?;
        }
        let repaired = if job.repair { findings.count } else { 0 };
        let read_bytes = checked.bytes.max(probed.read_bytes());
        inner.metrics.compared(read_bytes);
        Ok(Compared {
            range: probed.range.clone(),
            at: probed.at,
            entries: checked.entries,
            bytes: checked.bytes,
            read_bytes,
            equal: checked.equal,
            different: findings.count,
            differences: findings.listed,
            repaired,
        })
    }

    fn mending(&self) -> Mending {
        let displaced = self.inner.config.quarantine.is_some().then(Vec::new);
        Mending { writes: self.applier.mending(), displaced, displaced_bytes: 0 }
    }

    // At this point of the history the master holds just this: what comes after is applied on top of it.
    async fn mend(&mut self, cursor: &Cursor, mut mending: Mending) -> Result<(), FollowError> {
        let durability = self.inner.config.durability;
        let inner = self.inner.clone();
        let displaced = mending.displaced.take().filter(|displaced| !displaced.is_empty());
        if let Some((displaced, quarantine)) = displaced.zip(inner.config.quarantine.as_ref()) {
            let (at, kept) = (cursor.position, displaced.len() as u64);
            // They have one history, and stand at one point of it.
            let why = Resync { reason: RejectCode::Diverged, was: at, ancestor: Some(at) };
            quarantine.keep(&why, displaced).await.map_err(|source| FollowError::Quarantine { source })?;
            inner.tracker.quarantined(kept);
        }
        let writes = mending.writes.build();
        for attempt in 0.. {
            match inner.store.apply(writes.clone(), durability).await {
                Ok(()) => break,
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                    sleep(Duration::from_millis(10 << attempt)).await;
                }
                Err(error) => return Err(self.inner.give_up(error).await),
            }
        }
        if inner.feed.is_heard() {
            let cursor = cursor.clone();
            inner.feed.tell(AppliedGroup { cursor, records: 0, time: None, writes: Some(writes) });
        }
        if durability == Durability::Buffered && self.sync_at.is_none() {
            self.sync_at = Some(ahead(inner.config.sync_every));
        }
        Ok(())
    }

    // The store's future is polled until it answers, whatever else goes on: a write set is never left undecided here.
    async fn apply(
        &mut self,
        writes: WriteSet,
        durability: Durability,
        folded: &mut Option<Group>,
    ) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        let commits = inner.relay.as_ref().map(|relay| &relay.commits);
        // Whoever reads at one point of the history comes first.
        let _alone = match commits {
            Some(commits) => Some(commits.lock().await),
            None => None,
        };
        let apply = apply_beside(&inner.store, writes, durability);
        tokio::pin!(apply);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                result = &mut apply => return result,
                item = self.items.recv(), if open && folded.is_none() => match item {
                    Some(item) => {
                        self.push(item);
                        if self.applier.pending_bytes() >= self.applier.target() {
                            *folded = self.next_group()?;
                        }
                    }
                    None => open = false,
                },
            }
        }
    }

    async fn sync(&mut self) -> Result<(), FollowError> {
        self.sync_at = None;
        let applied = self.inner.tracker.progress().applied;
        match self.inner.store.sync().await {
            Ok(()) => {
                self.inner.tracker.synced(applied);
                Ok(())
            }
            Err(error) => Err(self.inner.give_up(error).await),
        }
    }
}

impl<S: ReplicaStore> Inner<S> {
    /// Opens the store anew, and looks again at what is served of it.
    pub(super) async fn reopen(&self) -> Result<(), StoreError> {
        self.unsettle(self.store.reopen()).await
    }

    /// Does something that may open the store anew. What was not synced may be gone then, of the kept log as well.
    pub(super) async fn unsettle<T>(&self, action: impl Future<Output = T>) -> T {
        match &self.relay {
            Some(relay) => relay.unsettle(&self.store, action).await,
            None => action.await,
        }
    }

    // After an unknown outcome the store is opened anew; what it then holds is where the next connection goes on.
    pub(super) async fn give_up(&self, error: StoreError) -> FollowError {
        if error.outcome() == StoreOutcome::Unknown
            && let Err(reopening) = self.reopen().await
        {
            tracing::warn!(
                target: "replikv::slave", follower = %self.config.name, error = %crate::error_chain(&reopening),
                "the slave's store cannot be opened again"
            );
        }
        if let Some(relay) = &self.relay
            && let Err(unsettled) = relay.settle(&self.store).await
        {
            tracing::warn!(
                target: "replikv::slave", follower = %self.config.name, error = %crate::error_chain(&unsettled),
                "where the kept log ends cannot be read"
            );
        }
        error.into()
    }
}

/// What of a range differs.
#[derive(Debug, Default)]
struct Findings {
    count: u64,
    listed: Vec<Difference>,
    max: usize,
    /// What mends it, if that is wanted.
    mending: Option<Mending>,
}

/// What mends a range, or a part of it.
#[derive(Debug)]
struct Mending {
    writes: WriteSetBuilder,
    /// What it takes the place of, if there is a quarantine.
    displaced: Option<Vec<Displaced>>,
    displaced_bytes: usize,
}

impl Findings {
    fn add(&mut self, Differing { key, kind, value, own }: Differing<'_>) -> Result<(), StoreError> {
        self.count += 1;
        if self.listed.len() < self.max {
            self.listed.push(Difference { key: Bytes::copy_from_slice(key), kind });
        }
        let Some(mending) = &mut self.mending else { return Ok(()) };
        if let Some((displaced, own)) = mending.displaced.as_mut().zip(own) {
            mending.displaced_bytes += key.len() + own.len();
            displaced.push(Displaced { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(own) });
        }
        match value {
            Some(value) => mending.writes.put(Keyspace::Data, key, value)?,
            None => mending.writes.delete(Keyspace::Data, key)?,
        };
        Ok(())
    }
}

impl Mending {
    fn byte_len(&self) -> usize {
        self.writes.byte_len() + self.displaced_bytes
    }
}

// A store may take a write set on the thread that asks, without a pause. What is long goes to a task of its own, so that the
// next group is gathered and folded meanwhile. It is waited for here, and decided also where nobody waits any more.
async fn apply_beside<S: ReplicaStore>(
    store: &Arc<S>,
    writes: WriteSet,
    durability: Durability,
) -> Result<(), StoreError> {
    if writes.byte_len() < LARGE {
        return store.apply(writes, durability).await;
    }
    let store = store.clone();
    let applied = tokio::spawn(async move { store.apply(writes, durability).await });
    applied.await.unwrap_or_else(|error| Err(StoreError::backend_unknown(error)))
}

// Whoever is polled hands over what it has, and lets go, long before.
async fn closing_for(closing: &CancellationToken, patience: Duration) {
    closing.cancelled().await;
    sleep(patience).await;
}

#[cfg(test)]
mod tests;
