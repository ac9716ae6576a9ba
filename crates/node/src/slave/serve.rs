//! Serving slaves of a slave's own.

use std::sync::Arc;

use async_trait::async_trait;
use replikv_core::{Epoch, KeyRange, ReplicaStore, StoreError};
use replikv_proto::{
    Above, Content, DecoderLimits, Message, Refusal, Reject, RejectCode, Request, Response, SlotKind, SlotName,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::follow::LAST_WORDS;
use super::relay::Relay;
use super::{Ending, Slave};
use crate::ServeError;
use crate::master::history::History;
use crate::master::serve::{Lobby, Serves, lobby, no_room, serve_slave};
use crate::reads::serve::tell;
use crate::transport::Connection;

/// How often a page is read beside the groups that are committed, before one of these has to wait for it.
const BESIDE: usize = 2;

impl<S: ReplicaStore> Slave<S> {
    /// Serves a slave of this one at the other end of `stream`, as [`Master::serve`](crate::Master::serve) does, until the
    /// connection ends; or answers whoever reads there. Only a slave that [keeps the log](super::SlaveConfig::keep_log)
    /// has slaves of its own; another one answers reads, and refuses whoever follows.
    ///
    /// A slave that is ahead of this one waits until this one has come as far. While this one copies, compares or
    /// resyncs it serves nobody: whoever follows is told to come again.
    ///
    /// # Cancel safety
    /// If dropped, serving stops; the other slave goes on from where it is on its next connection.
    ///
    /// # Errors
    /// [`ServeError`]. Whatever the other side does, this slave is not affected.
    pub async fn serve<T>(&self, stream: T) -> Result<Ending, ServeError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let Some(relay) = &self.inner.relay else { return self.serve_reads(stream).await.map(|()| Ending::Answered) };
        let mut connection = Connection::new(stream, DecoderLimits::for_hello(self.inner.store.limits().max_key));
        let permit = relay.rooms.sessions.clone().try_acquire_owned();
        let Ok(permit) = permit else { return refuse(&mut connection, no_room(false)).await };
        let patience = self.inner.config.handshake_timeout;
        let entered = lobby(&mut connection, self, &self.inner.closing, patience, &relay.rooms, permit).await;
        let (hello, permit) = match entered {
            Lobby::Enters(hello, permit) => (*hello, permit),
            Lobby::Ended(result) => {
                drop(timeout(LAST_WORDS, connection.finish()).await);
                return result;
            }
        };
        let Some(history) = relay.served() else {
            let reject = Reject { code: RejectCode::Busy, words: relay.reason().into(), retry: true };
            return refuse(&mut connection, reject).await;
        };
        let mut connection = connection.counted(history.traffic());
        let refused = permit.is_none().then(|| no_room(true));
        let relaying = Relaying { slave: self, relay, history };
        serve_slave(&relaying, &mut connection, Some(hello), refused).await
    }

    /// Drops the slot of a slave of this one: the log is no longer kept for it while it is away. False if there is none of
    /// that name, or this slave keeps no log.
    ///
    /// # Cancel safety
    /// The slot is dropped; it may come back with a crash before the next second has passed.
    pub fn forget(&self, kind: SlotKind, name: &str) -> bool {
        self.inner.relay.as_ref().is_some_and(|relay| relay.forget(&SlotName { kind, name: name.into() }))
    }
}

async fn refuse<T>(connection: &mut Connection<T>, reject: Reject) -> Result<Ending, ServeError>
where
    T: AsyncRead + AsyncWrite + Send,
{
    let refusal = Refusal::from(reject);
    let sent = connection.send(&Message::Reject(refusal.clone().into()));
    // Last words that cannot be sent are not missed by anybody.
    drop(timeout(LAST_WORDS, connection.finish()).await);
    sent.map_err(ServeError::from).and(Err(ServeError::Refused(refusal)))
}

/// A slave, as one connection to a slave of its own sees it.
struct Relaying<'a, S> {
    slave: &'a Slave<S>,
    relay: &'a Relay<S>,
    history: Arc<History<Arc<S>>>,
}

#[async_trait]
impl<S: ReplicaStore> Serves<Arc<S>> for Relaying<'_, S> {
    fn history(&self) -> &History<Arc<S>> {
        &self.history
    }

    async fn read_exactly(&self, range: &KeyRange, max_bytes: usize) -> Result<Content, StoreError> {
        for _ in 0..BESIDE {
            if let Some(content) = self.history.read_between_heads(range, max_bytes).await? {
                return Ok(content);
            }
        }
        let _no_group = self.relay.commits.lock().await;
        let changed = || StoreError::Transient { reason: "the data has changed while it was read".into() };
        self.history.read_between_heads(range, max_bytes).await?.ok_or_else(changed)
    }

    // It is the master that is superseded, and nobody here writes.
    async fn superseded(&self, _by: Epoch) {}

    fn tell(&self, request: &Request) -> Response {
        tell(self.slave, request.id, &request.body)
    }

    fn above(&self) -> Option<Above> {
        let inner = &self.slave.inner;
        let (_, at) = inner.tracker.read_at(inner.clock.now());
        Some(Above { lag: at.lag, silence_ms: at.last_contact_ms })
    }
}
