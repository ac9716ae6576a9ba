//! Following one connection: the session decides, this loop moves bytes and hands work to the apply task.

use std::sync::Arc;
use std::time::Duration;

use replikv_core::{
    Durability, EncodedOps, KeyRange, Keyspace, ReplicaStore, ReplicaStoreExt, ScanOptions, StoreError, StoreLimits,
    WriteSet,
};
use replikv_proto::layout::{Epochs, Head, Identity, Kept, Stored};
use replikv_proto::{
    Applier, DecoderLimits, Mode, Refusal, RejectCode, Resync, SlaveAction, SlaveSession, SlaveSessionConfig, Welcome,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::apply::{ApplyTask, Backlog, Item, Queue};
use super::relay::Facts;
use super::status::Tracker;
use super::verify::{Job, Outcome};
use super::{Ending, FollowError, Slave};
use crate::stored;
use crate::transport::{Connection, Driven};

/// How many of the slave's checkpoints travel in its hello.
const CHECKPOINTS: usize = 64;
/// How long last words may take on a connection that does not drain.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

impl<S: ReplicaStore> Slave<S> {
    /// Follows the master at the other end of `stream`, from where the store stands, until the connection ends.
    ///
    /// Everything that arrived whole is applied before this returns.
    ///
    /// # Cancel safety
    /// If dropped, following stops. The store stays at a batch boundary; what was received and not yet committed is
    /// sent again on the next connection.
    ///
    /// # Errors
    /// [`FollowError`]; its `is_retryable` tells whether another connection can help. Where master and slave do not
    /// fit, nothing is written.
    pub async fn follow<T>(&self, stream: T) -> Result<Ending, FollowError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let _alone = self.inner.active.clone().try_lock_owned().map_err(|_| FollowError::AlreadyFollowing)?;
        let mut dropped = WhenDropped(Some(&self.inner.tracker));
        let result = self.follow_alone(stream).await;
        dropped.0 = None;
        match &result {
            Ok(Ending::Shutdown | Ending::Answered) => self.inner.tracker.stopped(),
            Ok(Ending::Goodbye { words, .. }) => self.inner.tracker.disconnected(words.clone()),
            Err(error) => self.inner.tracker.failed(error),
        }
        result
    }

    async fn follow_alone<T>(&self, stream: T) -> Result<Ending, FollowError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let inner = &self.inner;
        let interrupted = inner.gate.interrupted();
        let abandoned = interrupted.child_token();
        let _abandon_on_drop = abandoned.clone().drop_guard();
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        let (ready, prepared) = oneshot::channel();
        let slave = self.clone();
        // The turn is waited for, held and given back by the task: a shutdown does not depend on who polls this future.
        let applying = tokio::spawn(async move {
            let Some(turn) = slave.turn(&abandoned).await else { return Ok(()) };
            let result = slave.take_turn(abandoned, ready).await;
            drop((turn, end));
            result
        });
        let Ok(Prepared { session, queue, backlog }) = prepared.await else {
            join(applying).await?;
            return self.ended(&interrupted, Ok(Ending::Shutdown));
        };

        let mut connection = Connection::new(stream, DecoderLimits::default())
            .reading(inner.config.compression)
            .counted(inner.metrics.traffic());
        let mut session = SlaveSession::new(session, inner.clock.now());
        let driven = self.drive(&mut connection, &mut session, &queue, &backlog, &ended).await;
        drop(queue);
        let applied = join(applying).await;
        session.handle_progress(inner.tracker.progress());
        if inner.closing.is_cancelled() {
            // After the last ack: behind a goodbye it would not be sent.
            session.shut("the slave was shut down");
        } else if interrupted.is_cancelled() {
            session.shut("the slave is fenced, and follows nobody of this epoch any more");
        }
        self.last_words(&mut connection, &mut session).await;
        applied?;
        self.ended(&interrupted, driven)
    }

    // A connection that a fence has ended may be tried again, and then is judged by the fence.
    fn ended(
        &self,
        interrupted: &CancellationToken,
        driven: Result<Ending, FollowError>,
    ) -> Result<Ending, FollowError> {
        if !interrupted.is_cancelled() || self.inner.closing.is_cancelled() {
            return driven;
        }
        let words = "this slave is about to be fenced, which has ended the connection".to_owned();
        let about_to_be = Refusal { code: RejectCode::Fenced, words, retry: true };
        Err(FollowError::Refused(self.inner.tracker.fence().map_or(about_to_be, |fence| fence.refusal())))
    }

    // A write set of an earlier connection may still be in flight: where the store stands is known afterwards.
    async fn turn(&self, abandoned: &CancellationToken) -> Option<OwnedMutexGuard<()>> {
        let entering = async {
            // Whoever puts up a fence ends those who are in, and nobody comes in between.
            let _entering = self.inner.gate.entrance.lock().await;
            self.inner.following.clone().lock_owned().await
        };
        tokio::select! {
            biased;
            () = self.inner.closing.cancelled() => None,
            () = abandoned.cancelled() => None,
            turn = entering => Some(turn),
        }
    }

    async fn take_turn(
        &self,
        abandoned: CancellationToken,
        ready: oneshot::Sender<Prepared>,
    ) -> Result<(), FollowError> {
        let inner = &self.inner;
        inner.reopen().await?;
        let session = self.session().await?;
        let target = inner.config.group_bytes.unwrap_or_else(|| inner.store.preferred_write_set());
        let target = target.min(session.limits.max_batch).max(1);
        // Who says how many bytes a group has, means all of them.
        let by_store = inner.config.group_bytes.is_none().then(|| inner.store.preferred_operations());
        let mut applier = Applier::new(inner.config.link.clone(), session.cursor.clone(), target)
            .most_operations(by_store.unwrap_or(usize::MAX))
            .resyncing(session.resync);
        if let Some(relay) = &inner.relay {
            applier = applier.keeping_log(stored::read(&inner.store, Head::KEY).await?);
            relay.take_turn(&inner.store).await?;
        }
        inner.tracker.rewound(session.cursor.as_ref());
        self.sync_what_was_left().await?;
        let (queue, items, backlog) = Queue::new(target.saturating_mul(2));
        let task = ApplyTask::new(inner.clone(), items, backlog.clone(), applier, abandoned);
        if ready.send(Prepared { session, queue, backlog }).is_err() {
            return Ok(());
        }
        task.run().await
    }

    // What an unknown outcome or a failed sync has left there may not be durable, and nothing need come that it is synced
    // with. Before the master is heard: a resync leaves the history that is spoken of here.
    async fn sync_what_was_left(&self) -> Result<(), FollowError> {
        let inner = &self.inner;
        if inner.tracker.is_unsynced() {
            let applied = inner.tracker.progress().applied;
            if let Err(error) = inner.store.sync().await {
                return Err(inner.give_up(error).await);
            }
            inner.tracker.synced(applied);
        }
        Ok(())
    }

    async fn session(&self) -> Result<SlaveSessionConfig, StoreError> {
        let inner = &self.inner;
        let cursor = self.stored_cursor().await?;
        let holds_data = cursor.is_none() && !inner.store.is_keyspace_empty(Keyspace::Data).await?;
        Ok(SlaveSessionConfig {
            slave: inner.config.name.clone(),
            nonce: inner.nonce,
            cursor,
            holds_data,
            checkpoints: stored::checkpoint_positions(&inner.store, CHECKPOINTS).await?,
            limits: usable(inner.store.limits(), inner.relay.is_some()),
            ranges: inner.ranges.clone(),
            temporary: inner.config.temporary,
            handshake_timeout: inner.config.handshake_timeout,
            on_divergence: inner.config.on_divergence,
            resync: stored::read(&inner.store, Resync::KEY).await?,
            fence: inner.standing_fence().await?,
        })
    }

    async fn drive<T>(
        &self,
        connection: &mut Connection<T>,
        session: &mut SlaveSession,
        queue: &Queue,
        backlog: &Backlog,
        applying_ended: &CancellationToken,
    ) -> Result<Ending, FollowError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let inner = &self.inner;
        let mut progress = inner.tracker.subscribe();
        let mut asked = None;
        loop {
            session.handle_progress(inner.tracker.progress());
            self.ask_what_is_wanted(session, &mut asked);
            let mut more = false;
            while let Some(action) = session.poll_action() {
                match action {
                    SlaveAction::Send(message) => connection.send(&message)?,
                    SlaveAction::Begin(cursor) => queue.push(Item::Begin(cursor)),
                    SlaveAction::Resync(cursor, resync, epochs) => {
                        // What is told from here on is about the history that it joins.
                        inner.tracker.resyncs(&cursor);
                        tracing::warn!(
                            target: "replikv::slave",
                            follower = %inner.config.name,
                            reason = ?resync.reason,
                            seq = %resync.was.seq,
                            "this slave's history has parted from its master's: it resyncs, and quarantines what it loses"
                        );
                        queue.push(Item::Resync(cursor, resync, epochs));
                    }
                    SlaveAction::Apply(record) => queue.push(Item::Record(record)),
                    SlaveAction::ApplyPortion(portion) => queue.push(Item::Portion(portion)),
                    SlaveAction::Copy(content) => queue.push(Item::Content(content)),
                    SlaveAction::Touch(touched) => queue.push(Item::Touched(touched)),
                    SlaveAction::Covered { range, read_at } => queue.push(Item::Covered(range, read_at)),
                    SlaveAction::Probed(probed) => {
                        if let Some(job) = asked.take() {
                            queue.push(Item::Probed(probed, job));
                        }
                    }
                    SlaveAction::Checkpoints(checkpoints) => queue.push(Item::Checkpoints(checkpoints)),
                    SlaveAction::ReadPage { range, max_bytes } => {
                        let (covered, entries) = self.read_own(range, max_bytes).await?;
                        session.handle_page(&covered, &entries);
                        // One page, then the connection has its turn: answers to earlier questions may be there.
                        more = true;
                        break;
                    }
                    SlaveAction::Waiting(welcome) => {
                        connection.set_limits(self.decodes(&welcome.limits));
                        inner.tracker.waiting(&welcome);
                    }
                    SlaveAction::Welcomed(welcome) => {
                        connection.set_limits(self.decodes(&welcome.limits));
                        self.keep_what_was_told(&welcome).await?;
                        if inner.relay.is_some() {
                            queue.push(Item::Facts(Facts::of(&welcome)));
                        }
                        inner.tracker.welcomed(&welcome);
                        inner.metrics.welcomed();
                        tracing::info!(
                            target: "replikv::slave",
                            follower = %inner.config.name,
                            source = %welcome.source,
                            seq = %welcome.head.seq,
                            "the master has accepted this slave"
                        );
                    }
                    SlaveAction::Contact(source) => inner.tracker.contact(source, inner.clock.now()),
                    SlaveAction::Close(Ok(goodbye)) => {
                        return Ok(Ending::Goodbye { reason: goodbye.reason, words: goodbye.words });
                    }
                    SlaveAction::Close(Err(refusal)) => return Err(FollowError::Refused(refusal)),
                }
            }
            let room = backlog.has_room();
            if !room {
                // It is this side that does not listen: silence is not the master's fault.
                session.handle_bytes(inner.clock.now());
            } else if let Some(message) = connection.next_message()? {
                session.handle_message(inner.clock.now(), message)?;
                continue;
            }
            let deadline = session.poll_timeout().map(|at| inner.clock.instant(at));
            tokio::select! {
                biased;
                // The goodbye follows the last ack, once everything is applied.
                () = inner.closing.cancelled() => return Ok(Ending::Shutdown),
                // Its own result says why.
                () = applying_ended.cancelled() => return Ok(Ending::Shutdown),
                driven = connection.drive(room) => if driven? == Driven::Read {
                    let now = inner.clock.now();
                    session.handle_bytes(now);
                    inner.tracker.heard(now.monotonic);
                },
                _ = progress.changed() => {}
                () = backlog.drained() => {}
                () = inner.desk.filled() => {}
                () = sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    session.handle_timeout(inner.clock.now())?;
                }
                () = tokio::task::yield_now(), if more => {}
            }
        }
    }

    // Range deletes of a few bytes may be longer by a few once they are clipped.
    fn decodes(&self, limits: &StoreLimits) -> DecoderLimits {
        let room = if self.inner.ranges.is_all() { 1 } else { 2 };
        DecoderLimits::for_batches(limits.max_batch.saturating_mul(room))
    }

    // For the day on which this slave is promoted, or opened while its master is away and others want to follow it.
    async fn keep_what_was_told(&self, welcome: &Welcome) -> Result<(), StoreError> {
        let (epochs, kept) = (Epochs(welcome.epochs.clone()), Kept { limits: welcome.limits });
        let store = &*self.inner.store;
        let keeps = self.inner.relay.is_some();
        // The epochs of a history that it has yet to join come with the first group of that.
        let parts = matches!(welcome.mode, Mode::Resync { .. });
        let same = parts || stored::read(store, Epochs::KEY).await?.as_ref() == Some(&epochs);
        if same && (!keeps || stored::read(store, Kept::KEY).await? == Some(kept)) {
            return Ok(());
        }
        let mut writes = WriteSet::builder();
        // Not once it was promoted: a master knows its history better.
        writes.require(Identity::KEY, Some(Identity::slave().to_bytes()));
        if !parts {
            writes.put(Keyspace::Meta, Epochs::KEY, epochs.to_bytes())?;
        }
        if keeps {
            writes.put(Keyspace::Meta, Kept::KEY, kept.to_bytes())?;
        }
        // If it cannot be kept the connection ends, and the next one tries again: promoted without it, this slave would take
        // others of its own history for strangers.
        store.apply(writes.build(), Durability::Buffered).await
    }

    // What somebody wants to know goes to a master that can tell, once what is here is a state of it.
    fn ask_what_is_wanted(&self, session: &mut SlaveSession, asked: &mut Option<Job>) {
        let inner = &self.inner;
        match session.verifies() {
            Some(true) if session.may_probe() && inner.tracker.is_consistent() => {
                if let Some((probe, job)) = inner.desk.take() {
                    session.probe(probe);
                    *asked = Some(job);
                }
            }
            Some(false) => {
                if let Some((_, job)) = inner.desk.take() {
                    // Whoever asked may be gone.
                    drop(job.answer.send(Outcome::Unsupported));
                }
            }
            Some(true) | None => {}
        }
    }

    // What is compared is not covered, and nothing else writes to it: no moment has to be named.
    async fn read_own(&self, range: KeyRange, max_bytes: usize) -> Result<(KeyRange, EncodedOps), StoreError> {
        let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(max_bytes);
        let page = self.inner.store.scan(Keyspace::Data, range.clone(), options).await?;
        let end = page.rest().map_or_else(|| range.end().cloned(), |rest| Some(rest.start().clone()));
        Ok((KeyRange::new(range.start().clone(), end), page.ops().clone()))
    }

    // The last ack and the goodbye, as far as the connection still takes them.
    async fn last_words<T>(&self, connection: &mut Connection<T>, session: &mut SlaveSession)
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        while let Some(action) = session.poll_action() {
            if let SlaveAction::Send(message) = action
                && connection.send(&message).is_err()
            {
                return;
            }
        }
        // Nobody is left to hear about a failure.
        drop(timeout(LAST_WORDS, connection.finish()).await);
    }
}

// What the apply task gives the connection to begin with.
struct Prepared {
    session: SlaveSessionConfig,
    queue: Queue,
    backlog: Arc<Backlog>,
}

// Whoever drops the future of `follow` is told nothing, but the status is: a slave that nobody connects any more must not
// look as if it still heard of its master.
struct WhenDropped<'a>(Option<&'a Tracker>);

impl Drop for WhenDropped<'_> {
    fn drop(&mut self) {
        if let Some(tracker) = self.0 {
            tracker.disconnected("following was given up".into());
        }
    }
}

// What a write set holds beside records: a cursor, which is long in the middle of a comparison, and checkpoints. A slave
// that keeps the log writes each record twice.
fn usable(limits: StoreLimits, keeps_log: bool) -> StoreLimits {
    const BESIDE: usize = 2 << 20;
    let beside = BESIDE.min(limits.max_batch / 8);
    let max_batch = limits.max_batch - beside;
    StoreLimits { max_batch: if keeps_log { max_batch / 2 } else { max_batch }, ..limits }
}

async fn join(task: JoinHandle<Result<(), FollowError>>) -> Result<(), FollowError> {
    match task.await {
        Ok(result) => result,
        Err(error) => Err(FollowError::Store(StoreError::Fatal { reason: format!("the apply task died: {error}") })),
    }
}
