//! The task that commits: the committer decides, this loop executes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use replikv_core::{
    Durability, KeyRange, Keyspace, Outcome, Position, ReplicaStore, ScanOptions, Seq, StoreError, WriteSet,
};
use replikv_proto::layout::{Floor, Head, Stored, Superseded};
use replikv_proto::{
    Answer, CommitGroup, Committer, Compacted, CompactionStep, Expiry, Intent, LogEntry, LogParts, Run, Step,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::Inner;
use super::config::Commit;
use super::exact::ExactRead;
use super::open::log_parts;
use super::recording::Pending;
use super::status::{GroupSize, Trouble};
use crate::stored;

/// Whom to answer. The permit keeps the intent's bytes counted until then.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) answer: oneshot::Sender<Answer>,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// What the commit task is told.
#[derive(Debug)]
pub(super) enum Queued {
    /// Something is to be committed.
    Intent(Intent<Ticket>),
    /// A record may have been committed beside it.
    Recorded,
    /// The history goes on with another master. Answers once that is in the store, if it can be.
    Superseded(Superseded, oneshot::Sender<Result<(), StoreError>>),
    /// A page is to be read between two groups.
    Read(ExactRead),
}

/// Commits one master's groups, one after the other.
#[derive(Debug)]
pub(super) struct CommitTask<S> {
    inner: Arc<Inner<S>>,
    committer: Committer<Ticket>,
    intents: mpsc::UnboundedReceiver<Queued>,
    /// Somebody says that there is a record which was committed beside this task.
    look: bool,
    superseded: Option<(Superseded, oneshot::Sender<Result<(), StoreError>>)>,
    /// What is to be read before the next group.
    reads: Vec<ExactRead>,
    /// The last record that is known to be on stable storage.
    synced: Position,
    /// Committed after it, and not synced yet. Not published either, unless the configuration says so.
    unsynced: Vec<LogEntry>,
    unsynced_bytes: usize,
    sync_at: Option<Instant>,
    trim_at: Instant,
}

const ATTEMPTS: u32 = 6;
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// The most that is read at once for what a batch derives, in bytes: a range that it deletes, a group that is summed anew.
const DERIVE_BYTES: usize = 256 << 20;
const REOPEN_EVERY: Duration = Duration::from_millis(500);

impl<S: ReplicaStore> CommitTask<S> {
    pub(super) fn new(
        inner: Arc<Inner<S>>,
        committer: Committer<Ticket>,
        intents: mpsc::UnboundedReceiver<Queued>,
    ) -> Self {
        let synced = committer.head().position;
        let (unsynced, unsynced_bytes, sync_at, trim_at) = (Vec::new(), 0, None, Instant::now());
        Self {
            inner,
            committer,
            intents,
            look: false,
            superseded: None,
            reads: Vec::new(),
            synced,
            unsynced,
            unsynced_bytes,
            sync_at,
            trim_at,
        }
    }

    pub(super) async fn run(mut self) {
        let mut open = true;
        loop {
            self.take_all();
            if self.look {
                self.look_for_recorded().await;
            }
            if let Some((mark, told)) = self.superseded.take() {
                let marked = self.end_of_reign(mark).await;
                // Whoever asked may be gone.
                drop(told.send(marked));
            }
            for read in std::mem::take(&mut self.reads) {
                self.inner.read_for(read).await;
            }
            match self.committer.step(self.inner.clock.now(), self.inner.uptime_ms()) {
                Step::Fetch(keys) => {
                    self.fetch(keys).await;
                    // What was read belongs to the head that it was read at: nothing may move that before the commit.
                    continue;
                }
                Step::FetchRanges(ranges) => {
                    self.fetch_ranges(ranges).await;
                    continue;
                }
                Step::Commit(group) => self.commit(*group).await,
                Step::Answer(answers) => answer(answers),
                Step::Idle if !open => break,
                Step::Idle => open = self.wait().await,
            }
            if self.sync_at.is_some_and(|at| Instant::now() >= at) {
                self.sync().await;
            }
            if Instant::now() >= self.trim_at {
                self.trim().await;
            }
            // One step, then writers get their turn.
            if let Some(step) = self.inner.workbench.take() {
                self.compact(step).await;
            }
        }
        self.look_for_recorded().await;
        if !self.committer.is_fenced() {
            self.inner.save_slots().await;
        }
        self.sync().await;
    }

    fn take_all(&mut self) {
        while let Ok(queued) = self.intents.try_recv() {
            self.take(queued);
        }
    }

    fn take(&mut self, queued: Queued) {
        match queued {
            Queued::Intent(intent) => self.committer.push(intent),
            Queued::Recorded => self.look = true,
            Queued::Superseded(mark, answer) => self.superseded = Some((mark, answer)),
            Queued::Read(read) => self.reads.push(read),
        }
    }

    // What was handed over before is decided; what comes later is refused, also by whoever opens the store.
    async fn end_of_reign(&mut self, mark: Superseded) -> Result<(), StoreError> {
        // A master that was promoted says more than that this one has handed over.
        let before = self.inner.superseded.load().as_deref().copied().filter(|before| before.by.is_some());
        let mark = before.unwrap_or(mark);
        self.inner.superseded.store(Some(Arc::new(mark)));
        self.committer.fence();
        self.inner.recordings.lock().fence();
        let words = mark.words();
        tracing::warn!(target: "replikv::master", source = %self.inner.source, reason = %words, "nothing more is written");
        self.inner.trouble.store(Arc::new(Trouble::superseded(words)));
        let mut writes = WriteSet::builder();
        writes.put(Keyspace::Meta, Superseded::KEY, mark.to_bytes())?;
        apply(&self.inner, &writes.build(), Durability::Synced).await
    }

    // False once nobody can write any more.
    async fn wait(&mut self) -> bool {
        let wake_at = self.sync_at.map_or(self.trim_at, |at| at.min(self.trim_at));
        let inner = self.inner.clone();
        tokio::select! {
            biased;
            queued = self.intents.recv() => match queued {
                Some(queued) => {
                    self.take(queued);
                    true
                }
                None => false,
            },
            () = inner.closing.cancelled() => {
                // What was sent before is still in the channel, and is committed.
                self.intents.close();
                self.take_all();
                false
            }
            () = inner.wake.notified() => {
                self.trim_at = Instant::now();
                true
            }
            () = inner.workbench.ready.notified() => true,
            () = sleep_until(wake_at) => true,
        }
    }

    async fn fetch(&mut self, keys: Vec<Bytes>) {
        match stored::look_up(&self.inner.store, Keyspace::Data, keys).await {
            Ok(values) => self.committer.fetched(values),
            Err(error) => self.fetch_failed(&error).await,
        }
    }

    async fn fetch_ranges(&mut self, ranges: Vec<KeyRange>) {
        let mut room = DERIVE_BYTES;
        for range in ranges {
            let (mut entries, mut rest) = (Vec::new(), Some(range.clone()));
            while let Some(part) = rest.take() {
                let options = ScanOptions::default().max_entries(usize::MAX);
                match self.inner.store.scan(Keyspace::Data, part, options).await {
                    Ok(page) => {
                        let Some(left) = room.checked_sub(page.ops().byte_len()) else {
                            let reason = format!("more than {DERIVE_BYTES} bytes would have to be read for it");
                            return answer(self.committer.range_too_large(&reason));
                        };
                        room = left;
                        entries.extend(page.entries());
                        rest = page.rest().cloned();
                    }
                    Err(error) => return self.fetch_failed(&error).await,
                }
            }
            self.committer.fetched_range(range, entries);
        }
    }

    async fn fetch_failed(&mut self, error: &StoreError) {
        answer(self.committer.fetch_failed(error));
        if error.outcome() == Outcome::Unknown {
            self.recover(error, None).await;
        }
    }

    async fn commit(&mut self, group: CommitGroup<Ticket>) {
        let handed = group.head.position;
        // Before the store sees it: a page that is read from now on may show it.
        self.inner.recordings.hand(handed);
        self.inner.hand_over(handed);
        let durability = match self.inner.config.commit {
            Commit::Synced => Durability::Synced,
            Commit::Buffered { .. } => Durability::Buffered,
        };
        let begun = Instant::now();
        match apply(&self.inner, &group.writes, durability).await {
            Ok(()) => {
                self.committer.committed(&group);
                self.inner.recordings.lock().committed(handed);
                self.inner.trouble.store(Arc::default());
                let CommitGroup { entries, checkpoints, answers, .. } = group;
                self.inner.keep_checkpoints(checkpoints);
                self.inner.count(GroupSize::of(&entries), Some(begun.elapsed()));
                self.committed(entries, durability);
                answer(answers);
            }
            Err(error) if error.outcome() == Outcome::Unknown => self.settle(group, &error).await,
            Err(StoreError::HeadMoved) => return self.overtaken(group).await,
            // Each fits alone, but perhaps not together.
            Err(
                error
                @ (StoreError::KeyUnfit { .. } | StoreError::BatchTooLarge { .. } | StoreError::NotDerived { .. }),
            ) => match self.committer.taken_apart(group) {
                Ok(refused) => {
                    answer(refused);
                    self.inner.hand_over(self.committer.handed());
                }
                Err(group) => self.refused(*group, error),
            },
            Err(error) => {
                self.inner.trouble.store(Arc::new(Trouble::from_commit(&error)));
                self.refused(group, error);
            }
        }
        self.inner.recordings.decided();
    }

    // The store is unchanged.
    fn refused(&mut self, group: CommitGroup<Ticket>, error: StoreError) {
        self.committer.failed(&error);
        self.inner.hand_over(self.committer.handed());
        let outcome = match error {
            StoreError::HeadMoved => Answer::Fenced,
            error => Answer::Failed(error),
        };
        answer(group.answers.into_iter().map(|(ticket, decided)| (ticket, after_failure(decided, &outcome))));
    }

    // The head is another one: of a record that was committed beside this task, or of another master.
    async fn overtaken(&mut self, group: CommitGroup<Ticket>) {
        match stored::require::<S, Head>(&self.inner.store, Head::KEY).await {
            Ok(found) => {
                let chain = self.inner.recordings.lock().take_chain(self.committer.head().position, found.position);
                if !chain.is_empty() {
                    answer(self.committer.overtaken(group));
                    // Recordings go on giving way: the group goes to the store again at once.
                    return self.adopt(found, chain).await;
                }
                if found.position == self.committer.head().position {
                    // The head stands: it is a link whose cursor somebody else has moved.
                    return self.unfit(group);
                }
                self.fence();
                self.refused(group, StoreError::HeadMoved);
            }
            Err(error) => {
                self.inner.trouble.store(Arc::new(Trouble::from_commit(&error)));
                self.refused(group, error);
            }
        }
        self.inner.recordings.decided();
    }

    // Each is decided anew on its own, so that only the one whose condition does not hold is refused.
    fn unfit(&mut self, group: CommitGroup<Ticket>) {
        match self.committer.taken_apart(group) {
            Ok(refused) => answer(refused),
            Err(group) => {
                self.committer.refused();
                let outcome = Answer::Failed(StoreError::HeadMoved);
                answer(group.answers.into_iter().map(|(ticket, decided)| (ticket, after_failure(decided, &outcome))));
            }
        }
        self.inner.hand_over(self.committer.handed());
        self.inner.recordings.decided();
    }

    fn fence(&self) {
        self.inner.recordings.lock().fence();
        self.inner.trouble.store(Arc::new(Trouble::from_commit(&StoreError::HeadMoved)));
    }

    // Records that were committed beside this task, up to the head `found`, are the history from now on.
    async fn adopt(&mut self, found: Head, chain: Vec<Pending>) {
        self.committer.adopted(found);
        self.inner.hand_over(found.position);
        let synced = chain.iter().all(|pending| pending.synced);
        let mut entries = Vec::with_capacity(chain.len());
        for Pending { lone, .. } in chain {
            self.inner.keep_checkpoints(lone.checkpoints);
            entries.push(lone.entry);
        }
        self.inner.count(GroupSize::of(&entries), None);
        match self.inner.config.commit {
            // A commit that is on stable storage has all before it there as well.
            _ if synced => self.committed(entries, Durability::Synced),
            Commit::Buffered { .. } => self.committed(entries, Durability::Buffered),
            Commit::Synced => {
                self.not_synced_yet(entries);
                self.sync().await;
            }
        }
    }

    async fn look_for_recorded(&mut self) {
        self.look = false;
        self.adopt_what_is_there().await;
        let released = self.inner.recordings.lock().released();
        if released.is_empty() || self.committer.is_fenced() {
            return;
        }
        // Their transactions may still be open. Whoever gets the store's write lock comes after them: what is not there
        // then was aborted.
        let nothing = WriteSet::builder().build();
        match apply(&self.inner, &nothing, Durability::Buffered).await {
            Ok(()) => {
                self.adopt_what_is_there().await;
                self.inner.recordings.lock().forget(&released);
                self.inner.hand_over(self.committer.handed());
            }
            // Looked for again at the next trim.
            Err(error) if error.outcome() == Outcome::Unknown => drop(self.recover(&error, None).await),
            Err(error) => tracing::warn!(
                target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(&error),
                "records of recorders cannot be looked for"
            ),
        }
    }

    async fn adopt_what_is_there(&mut self) {
        let before = self.committer.head().position;
        match stored::require::<S, Head>(&self.inner.store, Head::KEY).await {
            Ok(found) => {
                let chain = self.inner.recordings.lock().take_chain(before, found.position);
                // A head that is nobody's of this master is the fence's to find.
                if !chain.is_empty() {
                    self.adopt(found, chain).await;
                }
            }
            Err(error) if error.outcome() == Outcome::Unknown => drop(self.recover(&error, None).await),
            Err(error) => tracing::warn!(
                target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(&error),
                "the head cannot be read"
            ),
        }
    }

    fn committed(&mut self, entries: Vec<LogEntry>, durability: Durability) {
        if self.inner.config.ship_unsynced {
            self.publish(&entries);
        }
        self.not_synced_yet(entries);
        match self.inner.config.commit {
            Commit::Buffered { sync_every } if durability == Durability::Buffered => {
                let now = Instant::now();
                let at = self.sync_at.get_or_insert(now + sync_every);
                // What waits to be published is held in memory.
                if self.unsynced_bytes > self.inner.config.queue_bytes {
                    *at = now;
                }
            }
            // With all before it: what an earlier sync has failed to bring there is there as well.
            _ => self.on_stable_storage(),
        }
    }

    // The writers are told that nobody knows. Then the store is opened anew, and what it holds is the truth.
    async fn settle(&mut self, mut group: CommitGroup<Ticket>, error: &StoreError) {
        let answers = std::mem::take(&mut group.answers);
        let unknown = Answer::OutcomeUnknown(error.clone());
        answer(answers.into_iter().map(|(ticket, decided)| (ticket, after_failure(decided, &unknown))));
        let size = GroupSize::of(&group.entries);
        self.not_synced_yet(std::mem::take(&mut group.entries));
        let Some(found) = self.recover(error, Some(&group)).await else {
            // Shut down before the store came back; the next open finds the truth.
            return answer_step(self.committer.answer_all(&unknown));
        };
        if found.position == group.head.position {
            self.inner.count(size, None);
            self.inner.keep_checkpoints(group.checkpoints);
        }
        self.sync().await;
    }

    async fn sync(&mut self) {
        if self.sync_at.take().is_none() && self.unsynced.is_empty() {
            return;
        }
        match self.inner.store.sync().await {
            Ok(()) => self.on_stable_storage(),
            Err(error) => {
                if self.recover(&error, None).await.is_some() {
                    self.sync_at = Some(Instant::now() + REOPEN_EVERY);
                }
            }
        }
    }

    fn not_synced_yet(&mut self, entries: Vec<LogEntry>) {
        self.unsynced_bytes += entries.iter().map(LogEntry::byte_len).sum::<usize>();
        self.unsynced.extend(entries);
    }

    fn on_stable_storage(&mut self) {
        let entries = std::mem::take(&mut self.unsynced);
        (self.unsynced_bytes, self.sync_at) = (0, None);
        self.synced = entries.last().map_or(self.synced, |last| last.position);
        self.publish(&entries);
        if !self.committer.is_fenced() {
            self.inner.trouble.store(Arc::default());
        }
    }

    // The store refuses everything: it is opened anew, and what it then holds is the truth. `group` is the one whose
    // outcome is unknown. None if the master ended before the store came back.
    async fn recover(&mut self, error: &StoreError, group: Option<&CommitGroup<Ticket>>) -> Option<Head> {
        tracing::error!(
            target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(error),
            "the store must be opened anew"
        );
        self.inner.trouble.store(Arc::new(Trouble::from_commit(error)));
        let (stored, parts) = self.reopen().await?;
        // What recordings have put on top is adopted afterwards.
        let base = self.inner.recordings.lock().base_of(stored.position);
        let heads = [stored, self.committer.head()].into_iter().chain(group.map(|group| group.head));
        let found = heads.into_iter().find(|head| head.position == base).unwrap_or(stored);
        let own = |entry: &LogEntry| entry.position == found.position;
        match group {
            Some(group) if found.position == group.head.position => self.committer.settled(group, found),
            // A head that went back has lost what was not synced, and only that.
            _ if found.position == self.synced || self.unsynced.iter().any(own) => self.committer.rewound(found),
            _ => {
                self.committer.failed(&StoreError::HeadMoved);
                self.unsynced.clear();
                self.fence();
                return Some(found);
            }
        }
        self.forget_after(found.position);
        self.inner.change_parts(parts);
        self.inner.recordings.lock().went_back(found.position);
        self.inner.hand_over(found.position);
        self.inner.trouble.store(Arc::default());
        // Adopted with the next look, when everything here has its place again.
        self.look |= stored.position != found.position;
        Some(found)
    }

    // What is no longer there is never published, and what was shipped unsynced is no longer served.
    fn forget_after(&mut self, position: Position) {
        self.unsynced.retain(|entry| entry.position.seq <= position.seq);
        self.unsynced_bytes = self.unsynced.iter().map(LogEntry::byte_len).sum();
        self.inner.with_checkpoints(|kept| kept.retain(|checkpoint| checkpoint.position.seq <= position.seq));
        if self.inner.seen.load().published.seq > position.seq {
            self.inner.with_ring(|ring| ring.truncate(position.seq));
            self.inner.history.unpublish(position);
        }
    }

    async fn reopen(&mut self) -> Option<(Head, LogParts)> {
        let inner = self.inner.clone();
        inner.reopened.fetch_add(1, Ordering::AcqRel);
        loop {
            match inner.store.reopen().await {
                Ok(()) => match head_and_parts(&inner.store).await {
                    Ok(found) => return Some(found),
                    Err(error) => {
                        tracing::error!(
                            target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(&error),
                            "the head cannot be read"
                        );
                    }
                },
                Err(error) => {
                    tracing::error!(
                        target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(&error),
                        "the store cannot be opened again"
                    );
                }
            }
            if self.intents.is_closed() {
                // Nobody is left who could write.
                return None;
            }
            tokio::select! {
                biased;
                () = inner.closing.cancelled() => return None,
                () = sleep(REOPEN_EVERY) => {}
            }
        }
    }

    fn publish(&self, entries: &[LogEntry]) {
        let published = self.inner.seen.load().published.seq;
        let fresh = entries.iter().filter(|entry| entry.position.seq > published);
        let Some(last) = entries.last().filter(|last| last.position.seq > published) else { return };
        let (position, log_bytes) = (last.position, last.log_bytes);
        self.inner.with_ring(|ring| fresh.clone().for_each(|entry| ring.push(entry.clone())));
        let missing_bytes = self.inner.parts().missing_bytes();
        self.inner.history.publish(fresh, |view| {
            view.published = position;
            view.log_bytes = log_bytes;
            view.retained_bytes = log_bytes.saturating_sub(missing_bytes);
        });
    }

    // One bounded step, then writers get their turn.
    async fn trim(&mut self) {
        self.trim_at = Instant::now() + TRIM_EVERY;
        if self.committer.is_fenced() {
            // Log and slots are the other master's now.
            return;
        }
        self.inner.save_slots().await;
        // A store that broke under somebody's read or acknowledgement is not left so until the next write.
        if let Err(error) = self.inner.store.get(Keyspace::Meta, Head::KEY).await
            && error.outcome() == Outcome::Unknown
        {
            self.recover(&error, None).await;
            return;
        }
        let damaged = self.inner.damaged.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(seq) = damaged {
            return self.cut(seq).await;
        }
        self.look |= !self.inner.recordings.lock().released().is_empty();
        if self.inner.parts().compacted().is_some() {
            // Its runs go first, in steps of the task that compacts.
            return;
        }
        let published = self.inner.seen.load().published;
        let head = Head { uptime_ms: self.inner.uptime_ms(), position: published, ..self.committer.head() };
        let floor = self.inner.parts().floor.position.seq;
        let above = self.inner.with_checkpoints(|checkpoints| {
            checkpoints.iter().filter(|checkpoint| checkpoint.position.seq > floor).take(1).copied().collect::<Vec<_>>()
        });
        let held = self.inner.held();
        match self.inner.next_trim(&self.inner.config.retention, &head, above, held).await {
            Ok(Some(trim)) => {
                if self.move_floor(trim.floor, trim.writes).await {
                    // There may be more to do.
                    self.trim_at = Instant::now();
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(
                    target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(&error),
                    "trimming is not possible"
                );
            }
        }
    }

    // The log begins after a damaged record: at the next point whose digest is known.
    async fn cut(&mut self, damaged: Seq) {
        let parts = self.inner.parts();
        if damaged <= parts.begins().position.seq {
            return;
        }
        let floor = self.inner.floor_after(damaged);
        if let Some(compacted) = parts.compacted() {
            let until = if damaged > compacted.position.seq { floor } else { self.run_end(damaged, &compacted).await };
            return self.give_up_until(&parts, until).await;
        }
        let mut writes = WriteSet::builder();
        writes.require(Floor::KEY, Some(parts.floor.to_bytes()));
        writes.delete_range(Keyspace::Log, &KeyRange::from_bounds(..=floor.position.seq.to_key()));
        match writes.put(Keyspace::Meta, Floor::KEY, floor.to_bytes()) {
            Ok(writes) => {
                let writes = writes.build();
                self.move_floor(floor, writes).await;
            }
            Err(error) => {
                tracing::error!(
                    target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(&error),
                    "cutting the log is not possible"
                );
            }
        }
    }

    // Where a damaged run ends, if that much can be read of it.
    async fn run_end(&mut self, seq: Seq, compacted: &Compacted) -> Floor {
        let stored = self.inner.store.get(Keyspace::Log, &seq.to_key()).await.ok().flatten().unwrap_or_default();
        match Run::from_bytes(seq, &stored) {
            Ok(run) => Floor { position: run.end, log_bytes: run.log_bytes },
            Err(_) => Floor { position: compacted.position, log_bytes: compacted.log_bytes },
        }
    }

    // The compacted part is no longer served up to there; what is in it goes step by step.
    async fn give_up_until(&mut self, parts: &LogParts, until: Floor) {
        match Expiry::all_until(parts, until).step(&[], false) {
            Ok(step) => self.compact(step).await,
            Err(error) => {
                tracing::error!(
                    target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(&error),
                    "cutting the log is not possible"
                );
            }
        }
    }

    async fn compact(&mut self, step: CompactionStep) {
        // Log and slots may be another master's now; the fence would say so.
        if !self.committer.is_fenced() {
            self.change_log(step.after, &step.writes).await;
        }
        self.inner.workbench.done.notify_one();
    }

    async fn move_floor(&mut self, floor: Floor, writes: WriteSet) -> bool {
        self.change_log(LogParts { floor, ..self.inner.parts() }, &writes).await
    }

    // A write set that changes where the parts of the log begin and end.
    async fn change_log(&mut self, after: LogParts, writes: &WriteSet) -> bool {
        // Told before it is done: nobody is sent to records that are about to go.
        self.inner.change_view(|view| view.floor = after.begins().position);
        match apply(&self.inner, writes, Durability::Buffered).await {
            Ok(()) => {
                self.inner.change_parts(after);
                true
            }
            Err(error) => {
                tracing::warn!(
                    target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(&error),
                    "the log could not be trimmed or compacted"
                );
                if error.outcome() == Outcome::Unknown {
                    self.recover(&error, None).await;
                } else if matches!(error, StoreError::HeadMoved) {
                    self.read_parts().await;
                }
                false
            }
        }
    }
}

impl<S: ReplicaStore> CommitTask<S> {
    // Somebody else has moved it.
    async fn read_parts(&mut self) {
        match log_parts(&self.inner.store).await {
            Ok(parts) => self.inner.change_parts(parts),
            Err(error) => {
                tracing::warn!(
                    target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(&error),
                    "the floor of the log cannot be read"
                );
            }
        }
    }
}

async fn apply<S: ReplicaStore>(inner: &Inner<S>, writes: &WriteSet, durability: Durability) -> Result<(), StoreError> {
    let mut attempt = 0;
    loop {
        match inner.store.apply(writes.clone(), durability).await {
            Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                sleep(Duration::from_millis(10 << attempt)).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

async fn head_and_parts<S: ReplicaStore>(store: &S) -> Result<(Head, LogParts), StoreError> {
    Ok((stored::require(store, Head::KEY).await?, log_parts(store).await?))
}

// What was refused is refused; what would have been committed, or had seen what was not, shares the group's fate.
fn after_failure(decided: Answer, outcome: &Answer) -> Answer {
    match decided {
        Answer::Failed(error) => Answer::Failed(error),
        _ => outcome.clone(),
    }
}

fn answer(answers: impl IntoIterator<Item = (Ticket, Answer)>) {
    for (ticket, decided) in answers {
        // Whoever dropped the write does not want to know.
        drop(ticket.answer.send(decided));
    }
}

fn answer_step(step: Step<Ticket>) {
    if let Step::Answer(answers) = step {
        answer(answers);
    }
}
