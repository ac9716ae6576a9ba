//! Writing.

use std::future::{Future, IntoFuture};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use replikv_core::{Batch, ReplicaStore, Token};
use replikv_proto::layout::Superseded;
use replikv_proto::{Abort, Gathered, Intent, TransactView, Work};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::commit::{Queued, Ticket};
use super::{Master, WriteError};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl<S: ReplicaStore> Master<S> {
    /// Commits a batch: all of it or nothing. Await it, or ask for slaves first with [`Write::replicated`].
    ///
    /// When it returns, the batch is readable here, and as durable as the configuration says. It is quickest on a task of a
    /// runtime: what `block_on` itself awaits is on another thread, which the answer has to wake.
    ///
    /// # Cancel safety
    /// If dropped before it has begun to wait for the store, nothing happens. Later, the batch is committed or not,
    /// as a whole.
    ///
    /// # Errors
    /// [`WriteError`]. A batch that breaks a limit is refused before anything else happens.
    pub fn write(&self, batch: Batch) -> Write<'_, S> {
        Write { master: self, batch }
    }

    /// Runs `transaction` at its place in the commit order, and commits the batch that it returns. It sees every batch
    /// before it, those of the same group too.
    ///
    /// It may run several times: do nothing in it but look and decide. Pass on the errors of the view with `?`; refuse
    /// with [`Abort::refuse`].
    ///
    /// # Cancel safety
    /// As [`write`](Self::write).
    ///
    /// # Errors
    /// [`WriteError::Aborted`] if it refused, and as [`write`](Self::write).
    pub async fn transact(
        &self,
        mut transaction: impl FnMut(&TransactView<'_>, Batch) -> Result<Batch, Abort> + Send + 'static,
    ) -> Result<Token, WriteError> {
        let inner = self.inner.clone();
        // It runs on the task that commits, which must outlive whatever it does.
        let function = Box::new(move |view: &TransactView<'_>| {
            let run = AssertUnwindSafe(|| transaction(view, Batch::new()));
            let batch = catch_unwind(run).unwrap_or_else(|_| Err(Abort::refuse("it panicked")))?;
            inner.unclaimed(&batch).map_err(|error| Abort::refuse(error.to_string()))?;
            Ok(batch)
        });
        self.submit(Work::Transact(function), 1024).await.inspect_err(|error| self.inner.metrics.refused(error))
    }

    /// Commits what a link has brought, as a record of this master's own.
    pub(crate) async fn gather(&self, gathered: Gathered) -> Result<Token, WriteError> {
        let bytes = gathered.ops.byte_len();
        self.submit(Work::Gathered(gathered), bytes).await
    }

    /// Returns when everything that was handed over before is decided.
    pub(crate) async fn all_decided(&self) -> Result<(), WriteError> {
        self.may_wait()?;
        self.enqueue(Work::Batch(Batch::new()), 0).await.map(drop)
    }

    // Whether somebody is there to answer, and whoever waits for that holds nobody up.
    fn may_wait(&self) -> Result<(), WriteError> {
        if self.inner.closing.is_cancelled() {
            return Err(WriteError::Closed);
        }
        if self.records_here() {
            return Err(WriteError::RecorderOpen);
        }
        Ok(())
    }

    /// Ends this master's writing for good: what was handed over before is decided, and what comes later is refused, also
    /// by whoever opens the store.
    pub(crate) async fn supersede(&self, mark: Superseded) -> Result<(), WriteError> {
        if self.inner.superseded.load().is_some() {
            return Ok(());
        }
        self.end_reign(mark).await
    }

    /// As [`supersede`](Self::supersede), also if it was tried before and could not be kept.
    pub(super) async fn end_reign(&self, mark: Superseded) -> Result<(), WriteError> {
        let (told, marked) = oneshot::channel();
        self.intents.send(Queued::Superseded(mark, told)).map_err(|_| WriteError::Closed)?;
        Ok(marked.await.map_err(|_| WriteError::Closed)??)
    }

    pub(super) async fn submit(&self, work: Work, bytes: usize) -> Result<Token, WriteError> {
        self.may_wait()?;
        self.inner.wait_for_slaves().await?;
        self.inner.wait_for_handover().await?;
        self.enqueue(work, bytes).await
    }

    async fn enqueue(&self, work: Work, bytes: usize) -> Result<Token, WriteError> {
        let wanted = u32::try_from(permits(bytes).min(permits(self.inner.config.queue_bytes))).unwrap_or(u32::MAX);
        let permit = self.inner.queue.clone().acquire_many_owned(wanted).await.map_err(|_| WriteError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let intent = Intent { ticket: Ticket { answer, _permit: permit }, work };
        self.intents.send(Queued::Intent(intent)).map_err(|_| WriteError::Closed)?;
        let answer = answered.await.map_err(|_| WriteError::Closed)?;
        WriteError::from_answer(answer).map(Token::from).map_err(|error| self.after_reign(error))
    }

    // Why nobody writes here any more.
    fn after_reign(&self, error: WriteError) -> WriteError {
        match (error, &*self.inner.superseded.load()) {
            (WriteError::Fenced, Some(mark)) => WriteError::Superseded { by: mark.by },
            (error, _) => error,
        }
    }

    async fn wait_replicated(&self, token: Token, wanted: usize, limit: Duration) -> Result<(), WriteError> {
        match timeout(limit, self.copied(token, wanted)).await {
            Ok(true) => Ok(()),
            _ => Err(self.not_replicated(token, wanted)),
        }
    }

    /// Waits until `wanted` slaves hold the write on stable storage; false if the master is shut down before.
    pub(crate) async fn copied(&self, token: Token, wanted: usize) -> bool {
        let mut acks = self.inner.sessions.acks();
        while self.inner.sessions.durable(token.seq) < wanted {
            tokio::select! {
                biased;
                () = self.inner.closing.cancelled() => return false,
                changed = acks.changed() => if changed.is_err() {
                    return false;
                },
            }
        }
        true
    }

    pub(crate) fn not_replicated(&self, token: Token, wanted: usize) -> WriteError {
        WriteError::NotReplicated { token, acked: self.inner.sessions.durable(token.seq), wanted }
    }
}

/// The queue is counted in kilobytes, so that its permits fit.
pub(super) fn permits(bytes: usize) -> usize {
    bytes / 1024 + 1
}

/// A write that is about to happen: await it.
#[derive(Debug)]
#[must_use = "nothing is written until it is awaited"]
pub struct Write<'a, S> {
    master: &'a Master<S>,
    batch: Batch,
}

impl<'a, S: ReplicaStore> Write<'a, S> {
    /// Waits, once the batch is committed, until `slaves` slaves hold it on stable storage: distinct ones, connected
    /// here, at a batch boundary.
    ///
    /// What that buys: if this master is lost, so many copies of the write exist. It does not undo the write when the
    /// slaves do not answer in time: then the error is [`WriteError::NotReplicated`], and the batch is committed and
    /// stays.
    pub fn replicated(self, slaves: usize, timeout: Duration) -> Replicated<'a, S> {
        Replicated { write: self, slaves, timeout }
    }
}

impl<'a, S: ReplicaStore> IntoFuture for Write<'a, S> {
    type Output = Result<Token, WriteError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self { master, batch } = self;
            let fits = batch.check(&master.inner.limits).map_err(WriteError::from);
            let written = match fits.and_then(|()| master.inner.unclaimed(&batch)) {
                Ok(()) => {
                    // Conditions wait in memory as well.
                    let conditions = batch.conditions().iter();
                    let conditions = conditions.map(|it| it.key.len() + it.value.as_ref().map_or(0, Bytes::len));
                    let bytes = batch.byte_len() + conditions.sum::<usize>();
                    master.submit(Work::Batch(batch), bytes).await
                }
                Err(error) => Err(error),
            };
            written.inspect_err(|error| master.inner.metrics.refused(error))
        })
    }
}

/// A write that waits for slaves: await it.
#[derive(Debug)]
#[must_use = "nothing is written until it is awaited"]
pub struct Replicated<'a, S> {
    write: Write<'a, S>,
    slaves: usize,
    timeout: Duration,
}

impl<'a, S: ReplicaStore> IntoFuture for Replicated<'a, S> {
    type Output = Result<Token, WriteError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let master = self.write.master;
            let token = self.write.await?;
            master.wait_replicated(token, self.slaves, self.timeout).await?;
            Ok(token)
        })
    }
}
