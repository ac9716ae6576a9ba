//! Serving one connection: the session decides, this loop moves bytes and asks the store.

use std::future::ready;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use replikv_core::{Epoch, KeyRange, Keyspace, Position, ReplicaStore, ScanOptions, Seq, StoreError};
use replikv_proto::layout::{Head, Superseded};
use replikv_proto::{
    Above, Content, DecoderLimits, FenceRefusal, FenceRequest, Fenced, Goodbye, GoodbyeReason, LogAnswer, MasterAction,
    MasterSession, MasterSessionConfig, Message, Reject, RejectCode, Relay, Request, RequestBody, Response, SlotName,
    View,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::history::{History, Rooms};
use super::listening::Listening;
use super::sessions::{Entered, Joined};
use super::{Master, ServeError};
use crate::clock::ahead;
use crate::reads::ask_for_json;
use crate::reads::serve::{Asked, Ended as Asking, Refused, Wish, answer_all, tell};
use crate::slave::Ending;
use crate::stored;
use crate::transport::{Connection, ConnectionError, Piece};

/// How long whoever asks for a handover may have the master wait for its slave, and so its writers.
const LONGEST_HANDOVER: Duration = Duration::from_secs(600);
/// How long last words may take on a connection that does not drain.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Who serves a history to slaves.
#[async_trait]
pub(crate) trait Serves<S: ReplicaStore>: Send + Sync {
    fn history(&self) -> &History<S>;

    /// A page of `range` as it is right after one record, and that record.
    async fn read_exactly(&self, range: &KeyRange, max_bytes: usize) -> Result<Content, StoreError>;

    /// A slave has been in a later epoch.
    async fn superseded(&self, by: Epoch);

    /// The answer to a question of somebody who follows.
    fn tell(&self, request: &Request) -> Response;

    /// What it knows of its master, if it has one.
    fn above(&self) -> Option<Above> {
        None
    }
}

#[async_trait]
impl<S: ReplicaStore> Serves<S> for Master<S> {
    fn history(&self) -> &History<S> {
        &self.inner.history
    }

    async fn read_exactly(&self, range: &KeyRange, max_bytes: usize) -> Result<Content, StoreError> {
        self.inner.read_exactly(&self.intents, range, max_bytes).await
    }

    async fn superseded(&self, by: Epoch) {
        // Before the slave is told: whoever hears of it finds nobody here who still writes.
        if let Err(error) = self.supersede(Superseded { by: Some(by) }).await {
            tracing::error!(
                target: "replikv::master", source = %self.inner.source, error = %crate::error_chain(&error),
                "that another master was promoted cannot be kept"
            );
        }
    }

    fn tell(&self, request: &Request) -> Response {
        tell(self, request.id, &request.body)
    }
}

/// Serves the slave at the other end of `connection`, whose hello may have arrived already; or refuses it.
pub(crate) async fn serve_slave<S, T>(
    node: &impl Serves<S>,
    connection: &mut Connection<T>,
    hello: Option<Message>,
    refused: Option<Reject>,
) -> Result<Ending, ServeError>
where
    S: ReplicaStore,
    T: AsyncRead + AsyncWrite + Send,
{
    let history = node.history();
    if history.serving.compression {
        connection.compress(history.packing.clone());
    }
    // Subscribed first: what changes after the session's look at it is told.
    let views = history.view.subscribe();
    let (config, view) = (history.session_config(), history.view());
    let mut session = MasterSession::new(config, view, history.epochs.clone(), history.clock.now());
    if let Some(reject) = refused {
        session.refuse(reject.into());
    }
    let driver =
        Driver { node, inner: history, views, entered: None, listening: None, slot: None, piece: None, ending: None };
    let result = driver.run(connection, &mut session, hello).await;
    if let Err(ServeError::Refused(refusal)) = &result {
        history.metrics.session_refused(refusal.code);
    }
    if let Err(ServeError::Store(_)) = &result {
        // The session has ended with a goodbye, which the loop has not come to send.
        while let Some(action) = session.poll_action() {
            if let MasterAction::Send(message) = action {
                drop(connection.send(&message));
            }
        }
    }
    // Last words that cannot be sent are not missed by anybody.
    drop(timeout(LAST_WORDS, connection.finish()).await);
    result
}

impl<S: ReplicaStore> Master<S> {
    /// Serves the slave at the other end of `stream` until the connection ends; or answers whoever reads there, as a
    /// [`RemoteReader`](crate::RemoteReader) does.
    ///
    /// Memory for it is bounded by a few chunks, however slow the slave is.
    ///
    /// # Cancel safety
    /// If dropped, serving stops; the slave goes on from where it is on its next connection.
    ///
    /// # Errors
    /// [`ServeError`]. Whatever a slave does, the master and its other slaves are not affected.
    pub async fn serve<T>(&self, stream: T) -> Result<Ending, ServeError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let inner = &*self.inner;
        let mut connection =
            Connection::new(stream, DecoderLimits::for_hello(inner.limits.max_key)).counted(inner.metrics.traffic());
        let permit = inner.rooms.sessions.clone().try_acquire_owned();
        let (hello, permit) = match permit {
            Ok(permit) => match lobby(
                &mut connection,
                self,
                &inner.closing,
                inner.serving.handshake_timeout,
                &inner.rooms,
                permit,
            )
            .await
            {
                Lobby::Enters(message, permit) => (Some(*message), permit),
                Lobby::Ended(result) => {
                    drop(timeout(LAST_WORDS, connection.finish()).await);
                    return result;
                }
            },
            Err(_) => (None, None),
        };
        let refused = permit.is_none().then(|| no_room(hello.is_some()));
        serve_slave(self, &mut connection, hello, refused).await
    }
}

/// Whoever connects may ask first, and need not go on to follow. A reader gives its place among the slaves back.
pub(crate) async fn lobby<T>(
    connection: &mut Connection<T>,
    node: &impl Asked,
    closing: &CancellationToken,
    patience: Duration,
    rooms: &Rooms,
    permit: OwnedSemaphorePermit,
) -> Lobby
where
    T: AsyncRead + AsyncWrite + Send,
{
    let (mut place, mut reading) = (Some(permit), None);
    let admit = |wish| {
        // A fence is put up with all places of readers taken, too.
        if wish == Wish::Fence {
            return Ok(());
        }
        let permit = rooms.readers.clone().try_acquire_owned().map_err(|_| Refused::Busy)?;
        (place, reading) = (None, Some(permit));
        Ok(())
    };
    let ended = answer_all(connection, node, closing, patience, admit).await;
    let result = match ended {
        Ok(Asking::Other(message)) => return Lobby::Enters(message, place),
        Ok(Asking::Closing) => Ok(Ending::Shutdown),
        Ok(Asking::Goodbye(goodbye)) => Ok(said(&goodbye)),
        Ok(Asking::Left) => Ok(Ending::Answered),
        Err(error) => Err(error),
    };
    drop(reading);
    Lobby::Ended(result)
}

pub(crate) enum Lobby {
    /// It has something else to say than questions. Without a permit it has read before.
    Enters(Box<Message>, Option<OwnedSemaphorePermit>),
    Ended(Result<Ending, ServeError>),
}

/// Why somebody finds no place among those who follow.
pub(crate) fn no_room(has_read: bool) -> Reject {
    let words = match has_read {
        true => "this connection reads: follow on another one",
        false => "this node serves as many slaves as it may",
    };
    Reject { code: RejectCode::Busy, words: words.into(), retry: true }
}

impl<S: ReplicaStore> Asked for Master<S> {
    fn status_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&self.status())
    }

    fn hand_over(&self, successor: String, patience: Duration) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let handed_over = Self::hand_over(self, &successor, patience.min(LONGEST_HANDOVER)).await;
            serde_json::to_vec(&handed_over).map_err(|error| error.to_string())
        })
    }

    fn fence(&self, _request: FenceRequest) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        let refused: Result<Fenced, _> = Err(FenceRefusal::Master { epoch: self.inner.view().published.epoch });
        Box::pin(ready(serde_json::to_vec(&refused).map_err(|error| error.to_string())))
    }
}

struct Driver<'a, N, S> {
    node: &'a N,
    inner: &'a History<S>,
    views: watch::Receiver<View>,
    entered: Option<Entered>,
    /// Of a slave that subscribes to a part of the keys.
    listening: Option<Listening<'a>>,
    /// The slot of the slave, if it is to have one.
    slot: Option<SlotName>,
    /// The records that were read last, for the message that tells them.
    piece: Option<Piece>,
    ending: Option<Ending>,
}

impl<N, S> Drop for Driver<'_, N, S> {
    fn drop(&mut self) {
        // First: a slot that is made meanwhile must not take it for connected.
        self.entered = None;
        if let Some(name) = &self.slot {
            self.inner.slots.with(|slots| slots.disconnected(name, self.inner.slot_time()));
        }
    }
}

impl<N: Serves<S>, S: ReplicaStore> Driver<'_, N, S> {
    async fn run<T>(
        mut self,
        connection: &mut Connection<T>,
        session: &mut MasterSession,
        hello: Option<Message>,
    ) -> Result<Ending, ServeError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let inner = self.inner;
        if let Some(hello) = hello {
            session.handle_message(inner.clock.now(), hello)?;
        }
        let (mut closing, mut looked) = (false, false);
        let mut replaced = CancellationToken::new();
        let mut leave_at = None;
        loop {
            let (mut reads, mut more) = (0, false);
            while connection.has_room() && !more {
                let Some(action) = session.poll_action() else { break };
                if reads_store(&action) {
                    reads += 1;
                    // The bytes have their turn, in both directions, before a further read.
                    more = reads > 1 || connection.has_output();
                }
                if let Some(end) = self.execute(action, connection, session).await? {
                    return end;
                }
                if let Some(entered) = &self.entered {
                    replaced = entered.session().replaced.clone();
                }
            }
            while let Some(message) = connection.next_message()? {
                if let Message::Goodbye(goodbye) = &message {
                    self.ending = Some(said(goodbye));
                }
                session.handle_message(inner.clock.now(), message)?;
            }
            // What was decided by these messages is done before anything is waited for.
            let mut wake_now = false;
            // What is published for others is told when there is something to be told, or the time has come.
            let listening = self.listening.as_ref().filter(|_| session.is_quiet());
            if listening.is_none() && self.views.has_changed().unwrap_or(false) {
                session.handle_view(*self.views.borrow_and_update());
                wake_now = true;
            }
            if !more && (wake_now || (connection.has_room() && session.has_action())) {
                continue;
            }
            let deadline = session.poll_timeout().map(|at| inner.clock.instant(at));
            // A session that has ended waits for nothing but room for its last words, which a stalled slave never makes.
            leave_at = deadline.is_none().then(|| leave_at.unwrap_or_else(|| Instant::now() + LAST_WORDS));
            tokio::select! {
                biased;
                () = inner.closing.cancelled(), if !closing => {
                    closing = true;
                    self.ending = Some(Ending::Shutdown);
                    session.shut(GoodbyeReason::Closing, inner.farewell());
                }
                () = replaced.cancelled(), if !closing => {
                    closing = true;
                    if let Some(entered) = &self.entered {
                        let (reason, words) = entered.session().farewell();
                        session.shut(reason, words);
                    }
                }
                () = sleep_until(leave_at.unwrap_or_else(Instant::now)), if leave_at.is_some() => {
                    return Ok(self.ending.take().unwrap_or(Ending::Shutdown));
                }
                driven = connection.drive(true) => drop(driven?),
                changed = self.views.changed(), if listening.is_none() => if changed.is_ok() {
                    session.handle_view(*self.views.borrow_and_update());
                },
                () = heard(listening), if listening.is_some() => {
                    session.handle_view(*self.views.borrow_and_update());
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    // Once: how far it is comes before the head that it is compared with.
                    looked = listening.is_some() && !looked;
                    if looked {
                        session.handle_view(*self.views.borrow_and_update());
                    } else {
                        self.tell_above(session);
                        session.handle_timeout(inner.clock.now())?;
                    }
                }
                () = tokio::task::yield_now(), if more => {}
            }
        }
    }

    async fn execute<T>(
        &mut self,
        action: MasterAction,
        connection: &mut Connection<T>,
        session: &mut MasterSession,
    ) -> Result<Option<Result<Ending, ServeError>>, ServeError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let inner = self.inner;
        match action {
            MasterAction::Send(message) => {
                if let Message::Goodbye(goodbye) = &message {
                    self.ending.get_or_insert_with(|| said(goodbye));
                }
                match self.piece {
                    Some(piece) if matches!(message, Message::Records(_)) => connection.send_shared(&message, piece)?,
                    _ => connection.send(&message)?,
                }
            }
            MasterAction::Locate(positions) => {
                let located = self.stored(session, inner.locate(&positions).await)?;
                session.handle_located(&located);
            }
            MasterAction::MeasureData { at_most } => {
                let bytes = self.stored(session, inner.measure_data(at_most).await)?;
                session.handle_data_size(bytes);
            }
            MasterAction::ReadRecords { after, max_bytes, may_pass } => {
                self.piece = None;
                let listening = self.listening.as_ref();
                let answer = match listening.and_then(|listening| inner.told(listening, after, may_pass)) {
                    Some(answer) => answer,
                    None => {
                        // What goes to a slave of a part of the keys goes to nobody else.
                        let shared = connection.compression().filter(|_| listening.is_none());
                        let read = self.stored(session, inner.read_records(after, max_bytes, shared).await)?;
                        if let (LogAnswer::Records { last, .. }, Some(_)) = (&read, shared) {
                            self.piece = Some(Piece { after: after.seq, last: *last });
                        }
                        read
                    }
                };
                session.handle_records(answer);
            }
            MasterAction::ReadPage { range, max_bytes } => {
                let content = self.stored(session, inner.read_page(range, max_bytes).await)?;
                // The page may show what was handed to the store since the session last looked.
                session.handle_view(inner.view());
                session.handle_page(content);
            }
            MasterAction::ReadExactly { range, max_bytes } => {
                let content = self.stored(session, self.node.read_exactly(&range, max_bytes).await)?;
                session.handle_view(inner.view());
                session.handle_page(content);
            }
            MasterAction::LookUp { keys, max_bytes } => {
                let (values, read_at) = self.stored(session, inner.look_up(&keys, max_bytes).await)?;
                session.handle_view(inner.view());
                session.handle_values(&values, read_at);
            }
            MasterAction::Joined { slave, nonce, start, temporary, ranges } => {
                let listening = (!ranges.is_all()).then(|| inner.listen(&ranges));
                let compression = connection.compression();
                let joined = Joined { name: &slave, nonce, temporary, ranges, compression, start };
                match inner.sessions.enter(joined, inner.clock.now().monotonic) {
                    Ok(entered) => (self.entered, self.listening) = (Some(entered), listening),
                    Err(refusal) => {
                        session.refuse(refusal);
                        return Ok(None);
                    }
                }
                tracing::info!(
                    target: "replikv::master", source = %inner.source, follower = %slave, seq = %start,
                    "a slave has connected"
                );
                inner.metrics.session_accepted();
                self.tell_above(session);
                // A question of a comparison is the longest that a slave has to say.
                connection.set_limits(DecoderLimits { control: 2 << 20, data: 1 << 20 });
                if !temporary {
                    let name = SlotName::slave(slave);
                    inner.slots.with(|slots| slots.connected(&name, inner.slot_time()));
                    self.slot = Some(name);
                }
            }
            MasterAction::Verified(position) => {
                if let Some(name) = &self.slot {
                    inner.slots.with(|slots| slots.verified(name, position));
                }
            }
            MasterAction::Superseded(epoch) => self.node.superseded(epoch).await,
            MasterAction::Progress(progress) => {
                if let Some(entered) = &self.entered {
                    let view = inner.view();
                    let bytes = inner.log_bytes_at(progress.applied, &view);
                    entered.progress(progress, bytes, inner.is_close(bytes, &view), inner.clock.now().monotonic);
                    if let Some(name) = self.slot.as_ref().filter(|_| progress.durable > Seq::ZERO) {
                        inner.slots.note(name.clone(), progress.durable);
                    }
                }
            }
            MasterAction::Answer(request) => session.respond(self.node.tell(&request)),
            MasterAction::Close(Some(refusal)) => return Ok(Some(Err(ServeError::Refused(refusal)))),
            MasterAction::Close(None) => {
                let ending = self.ending.take();
                return Ok(Some(Ok(ending.unwrap_or(Ending::Shutdown))));
            }
        }
        Ok(None)
    }

    fn tell_above(&self, session: &mut MasterSession) {
        if let Some(above) = self.node.above() {
            session.handle_above(above);
        }
    }

    // A read that failed ends the session: it is never told to a slave as if it were an answer.
    fn stored<R>(&self, session: &mut MasterSession, result: Result<R, StoreError>) -> Result<R, ServeError> {
        result.map_err(|error| {
            session.shut(GoodbyeReason::Closing, "the master's store failed");
            error.into()
        })
    }
}

async fn heard(listening: Option<&Listening<'_>>) {
    match listening {
        Some(listening) => listening.concerned().await,
        None => std::future::pending().await,
    }
}

fn said(goodbye: &Goodbye) -> Ending {
    Ending::Goodbye { reason: goodbye.reason, words: goodbye.words.clone() }
}

fn reads_store(action: &MasterAction) -> bool {
    matches!(
        action,
        MasterAction::Locate(_)
            | MasterAction::MeasureData { .. }
            | MasterAction::ReadRecords { .. }
            | MasterAction::ReadPage { .. }
            | MasterAction::ReadExactly { .. }
            | MasterAction::LookUp { .. }
    )
}

impl<S> History<S> {
    fn session_config(&self) -> MasterSessionConfig {
        let serving = &self.serving;
        MasterSessionConfig {
            source: self.source,
            limits: self.limits,
            heartbeat: serving.heartbeat,
            handshake_timeout: serving.handshake_timeout,
            chunk: serving.chunk,
            compare_bytes_per_second: serving.compare_bytes_per_second,
            checkpoints: self.newest_checkpoints(),
            relay: serving.wait.map(|wait| Relay { path: serving.path.clone(), wait }),
        }
    }
}

impl<S: ReplicaStore> History<S> {
    async fn read_page(&self, range: KeyRange, max_bytes: usize) -> Result<Content, StoreError> {
        let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(max_bytes);
        let (page, read_at) = self.read_at(|| self.store.scan(Keyspace::Data, range.clone(), options)).await?;
        let end = page.rest().map_or_else(|| range.end().cloned(), |rest| Some(rest.start().clone()));
        let covered = KeyRange::new(range.start().clone(), end);
        Ok(Content { range: covered, read_at, entries: page.ops().clone() })
    }

    // The values of the first of `keys`, as many as fit, and one at least. A slow store is asked for no longer than a
    // heartbeat, then the slave hears of what there is: it would give up a master that is silent.
    async fn look_up(&self, keys: &[Bytes], max_bytes: usize) -> Result<(Vec<Option<Bytes>>, Position), StoreError> {
        let look_up = || async {
            let (mut values, mut bytes) = (Vec::new(), 0);
            let until = ahead(self.serving.heartbeat);
            for key in keys {
                let value = self.store.get(Keyspace::Data, key).await?;
                bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
                values.push(value);
                if bytes >= max_bytes || Instant::now() >= until {
                    break;
                }
            }
            Ok(values)
        };
        self.read_at(look_up).await
    }

    // What `read` reads, and the last record that it may show.
    pub(super) async fn read_at<R, F>(&self, read: impl Fn() -> F) -> Result<(R, Position), StoreError>
    where
        F: Future<Output = Result<R, StoreError>>,
    {
        loop {
            let setbacks = self.setbacks.load(Ordering::SeqCst);
            let found = read().await?;
            let head: Head = stored::require(&self.store, Head::KEY).await?;
            // After the read has ended, not before: what it may show is known only now.
            let read_at = self.seen.load().handed;
            // What came to nothing while it was read may be in it, and `read_at` may already name what came after.
            if self.setbacks.load(Ordering::SeqCst) != setbacks {
                continue;
            }
            if self.is_over() {
                return Err(StoreError::Closed);
            }
            if head.position.seq > read_at.seq {
                // Another master writes to this store. It may show what this one never wrote, and cannot name.
                return Err(StoreError::HeadMoved);
            }
            return Ok((found, read_at));
        }
    }
}

/// Asks the node at the other end of `stream` for its status, as JSON.
///
/// # Errors
/// [`ConnectionError`] if the connection fails; [`Refusal`](replikv_proto::Refusal) words come as [`ServeError::Refused`].
pub async fn remote_status<T>(stream: T) -> Result<Bytes, ServeError>
where
    T: AsyncRead + AsyncWrite + Send,
{
    ask_for_json(stream, RequestBody::Status, 16 << 20).await
}

impl From<std::io::Error> for ServeError {
    fn from(error: std::io::Error) -> Self {
        Self::Connection(ConnectionError::from(error))
    }
}
