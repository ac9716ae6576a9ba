//! The task that holds the connection of a remote reader.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use replikv_proto::{
    Answered, AnsweredBody, DecoderLimits, Goodbye, GoodbyeReason, Message, Request, RequestBody, Response,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{RemoteReaderConfig, Seen, unreachable};
use crate::clock::ahead;
use crate::transport::{Connection, ConnectionError, Driven};
use crate::{ReadError, ReaderStatus, error_chain};

/// How many questions are asked and not answered yet, at most. Who waits for a write does not count.
const IN_FLIGHT: usize = 256;
/// The id of the questions where the other side stands. All others have higher ones.
const STANDING: u32 = 0;
/// How long last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A question, and who waits for the answer.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) id: u32,
    pub(super) body: RequestBody,
    pub(super) answer: oneshot::Sender<Result<Reply, ReadError>>,
}

/// What came back.
#[derive(Debug)]
pub(super) enum Reply {
    Answered(Box<AnsweredBody>),
    /// It does not answer, in its words.
    Words(String),
}

/// What was asked on the connection that stands.
#[derive(Debug, Default)]
struct Pending {
    reads: HashMap<u32, oneshot::Sender<Result<Reply, ReadError>>>,
    waits: HashMap<u32, oneshot::Sender<Result<Reply, ReadError>>>,
}

impl Pending {
    fn answer(&mut self, id: u32, reply: Reply) {
        // What was forgotten is answered nevertheless, if it was asked; and nobody minds who has gone meanwhile.
        if let Some(answer) = self.reads.remove(&id).or_else(|| self.waits.remove(&id)) {
            drop(answer.send(Ok(reply)));
        }
    }

    fn fail(self, reason: &str) {
        for answer in self.reads.into_values().chain(self.waits.into_values()) {
            drop(answer.send(Err(lost(reason))));
        }
    }
}

fn lost(reason: &str) -> ReadError {
    ReadError::Unreachable { reason: reason.into() }
}

pub(super) struct Link {
    config: RemoteReaderConfig,
    asked: mpsc::Receiver<Ask>,
    forgotten: mpsc::UnboundedReceiver<u32>,
    seen: Arc<ArcSwap<Seen>>,
    closing: CancellationToken,
}

impl Link {
    pub(super) fn new(
        config: RemoteReaderConfig,
        asked: mpsc::Receiver<Ask>,
        forgotten: mpsc::UnboundedReceiver<u32>,
        seen: Arc<ArcSwap<Seen>>,
        closing: CancellationToken,
    ) -> Self {
        Self { config, asked, forgotten, seen, closing }
    }

    /// Connects, and connects again, until nobody is left who could ask.
    pub(super) async fn run<T, F>(mut self, mut connect: impl FnMut() -> F + Send)
    where
        T: AsyncRead + AsyncWrite + Send,
        F: Future<Output = io::Result<T>> + Send,
    {
        let (first, longest) = self.config.backoff;
        let mut pause = first;
        let closing = self.closing.clone();
        loop {
            let connecting = timeout(self.config.connect_timeout, connect());
            let connected = tokio::select! {
                biased;
                () = closing.cancelled() => return,
                connected = connecting => connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            };
            let reason = match connected {
                Ok(stream) => {
                    let mut pending = Pending::default();
                    let (ended, told) = self.converse(stream, &mut pending).await;
                    let Err(error) = ended else { return };
                    // That there is no connection is said by whoever is told why.
                    let reason = match error {
                        ReadError::Unreachable { reason } => reason,
                        error => error_chain(&error),
                    };
                    pending.fail(&reason);
                    if told {
                        pause = first;
                    }
                    reason
                }
                Err(error) => error_chain(&error),
            };
            tracing::debug!(target: "replikv::reader", error = %reason, "a reader has no connection");
            self.see(unreachable(reason.clone()));
            let half = pause / 2;
            if !self.pause(half + half.mul_f64(fastrand::f64()), &reason).await {
                return;
            }
            pause = pause.saturating_mul(2).min(longest);
        }
    }

    // Nobody is kept waiting while there is no connection. False once nobody is left who could ask.
    async fn pause(&mut self, pause: Duration, reason: &str) -> bool {
        let until = ahead(pause);
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return false,
                ask = self.asked.recv() => match ask {
                    Some(ask) => drop(ask.answer.send(Err(lost(reason)))),
                    None => return false,
                },
                // What was asked has failed with the connection.
                Some(_) = self.forgotten.recv() => {}
                () = sleep_until(until) => return true,
            }
        }
    }

    // Ok once nobody is left who could ask. Says, too, whether the other side has ever told where it stands.
    async fn converse<T>(&mut self, stream: T, pending: &mut Pending) -> (Result<(), ReadError>, bool)
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        // Room for what stands before a value.
        let data = self.config.max_answer.saturating_add(64 << 10);
        let mut connection = Connection::new(stream, DecoderLimits { data, control: 64 << 10 });
        // First of all, so that nobody has an answer before it is known where the reader stands.
        let next = ahead(self.config.status_every);
        let mut talk = Talk { told: false, standing_asked: true, heard: Instant::now(), next };
        if let Err(error) = connection.send(&question(STANDING, RequestBody::Standing)) {
            return (Err(lost(&error_chain(&error))), false);
        }
        let ended = self.talk(&mut connection, pending, &mut talk).await;
        let ended = match ended {
            Ok(()) => {
                let goodbye = Goodbye { reason: GoodbyeReason::Closing, words: "the reader has gone".into() };
                drop(connection.send(&Message::Goodbye(goodbye)));
                drop(timeout(LAST_WORDS, connection.finish()).await);
                Ok(())
            }
            Err(error) => Err(error),
        };
        (ended, talk.told)
    }

    async fn talk<T>(
        &mut self,
        connection: &mut Connection<T>,
        pending: &mut Pending,
        talk: &mut Talk,
    ) -> Result<(), ReadError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let failed = |error: ConnectionError| lost(&error_chain(&error));
        loop {
            while let Some(message) = connection.next_message().map_err(failed)? {
                match message {
                    Message::Response(Response { id: STANDING, body }) => {
                        talk.standing_asked = false;
                        talk.told = true;
                        self.see(told(body)?);
                    }
                    Message::Response(Response { id, body }) => {
                        let words = body.map_or_else(|words| words, |_| "it answered another question".into());
                        pending.answer(id, Reply::Words(words));
                    }
                    Message::Answered(Answered { id, body }) => pending.answer(id, Reply::Answered(Box::new(body))),
                    Message::Goodbye(Goodbye { words, .. }) => return Err(lost(&words)),
                    Message::Reject(reject) => return Err(lost(&reject.words)),
                    message => return Err(lost(&format!("{} has no place here", message.name()))),
                }
            }
            let room = connection.has_room() && pending.reads.len() < IN_FLIGHT;
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(()),
                Some(id) = self.forgotten.recv() => {
                    pending.reads.remove(&id);
                    if pending.waits.remove(&id).is_some() {
                        connection.send(&question(id, RequestBody::Forget { id })).map_err(failed)?;
                    }
                }
                () = sleep_until(talk.next) => {
                    talk.next = ahead(self.config.status_every);
                    if !talk.standing_asked {
                        talk.standing_asked = true;
                        connection.send(&question(STANDING, RequestBody::Standing)).map_err(failed)?;
                    } else if talk.heard.elapsed() > self.config.silence {
                        return Err(lost("nothing was heard of it for too long"));
                    }
                }
                ask = self.asked.recv(), if room => {
                    let Some(Ask { id, body, answer }) = ask else { return Ok(()) };
                    // Forgotten before it was asked.
                    if answer.is_closed() {
                        continue;
                    }
                    let waits = matches!(body, RequestBody::Wait(_));
                    if id == STANDING || pending.reads.contains_key(&id) || pending.waits.contains_key(&id) {
                        // After four billion questions: the next id will do.
                        drop(answer.send(Err(ReadError::Busy)));
                        continue;
                    }
                    connection.send(&question(id, body)).map_err(failed)?;
                    let asked = if waits { &mut pending.waits } else { &mut pending.reads };
                    asked.insert(id, answer);
                }
                driven = connection.drive(true) => if driven.map_err(failed)? == Driven::Read {
                    talk.heard = Instant::now();
                },
            }
        }
    }

    fn see(&self, status: ReaderStatus) {
        self.seen.store(Arc::new(Seen { status, at: Instant::now() }));
    }
}

/// What is known of a connection.
struct Talk {
    /// The other side has told where it stands.
    told: bool,
    /// It was asked where it stands, and has not answered yet.
    standing_asked: bool,
    heard: Instant,
    /// When it is asked again.
    next: Instant,
}

fn question(id: u32, body: RequestBody) -> Message {
    Message::Request(Request { id, body })
}

fn told(body: Result<bytes::Bytes, String>) -> Result<ReaderStatus, ReadError> {
    let status = body.map_err(|words| lost(&words))?;
    serde_json::from_slice(&status).map_err(|error| lost(&format!("it does not tell where it stands: {error}")))
}
