//! Answering whoever asks how a slave is.

use bytes::Bytes;
use replikv_core::ReplicaStore;
use replikv_proto::{
    DecoderLimits, Goodbye, GoodbyeReason, Message, ProtocolError, Refusal, RejectCode, Request, RequestBody, Response,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep_until, timeout};

use super::Slave;
use crate::ServeError;
use crate::clock::ahead;
use crate::transport::{Connection, ConnectionError};

/// Questions are short.
const LIMITS: DecoderLimits = DecoderLimits { control: 64 << 10, data: 64 << 10 };

impl<S: ReplicaStore> Slave<S> {
    /// Answers questions for this slave's [`status`](Self::status) at the other end of `stream`, as
    /// [`remote_status`](crate::remote_status) asks them, until that end closes or has not asked for as long as a
    /// handshake may take. Everything else is refused by name: no data can be read or written this way.
    ///
    /// # Cancel safety
    /// If dropped, answering stops.
    ///
    /// # Errors
    /// [`ServeError`]. Whatever is asked, the slave is not affected.
    pub async fn serve_status<T>(&self, stream: T) -> Result<(), ServeError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let mut connection = Connection::new(stream, LIMITS);
        let result = self.answer_all(&mut connection).await;
        // Last words that cannot be sent are not missed by anybody.
        drop(timeout(super::follow::LAST_WORDS, connection.finish()).await);
        result
    }

    async fn answer_all<T>(&self, connection: &mut Connection<T>) -> Result<(), ServeError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let patience = self.inner.config.handshake_timeout;
        let mut deadline = ahead(patience);
        let mut answered = false;
        loop {
            while connection.has_room()
                && let Some(message) = connection.next_message()?
            {
                match message {
                    Message::Request(request) => {
                        connection.send(&Message::Response(self.answer(&request)))?;
                        deadline = ahead(patience);
                        answered = true;
                    }
                    Message::Goodbye(_) => return Ok(()),
                    Message::Hello(_) => {
                        let words = "this is a slave: it tells its status, and serves nobody";
                        let refusal = Refusal::new(RejectCode::Unsupported, words);
                        connection.send(&Message::Reject(refusal.clone().into()))?;
                        return Err(ServeError::Refused(refusal));
                    }
                    message => {
                        let what = format!("{} has no place here", message.name());
                        return Err(ProtocolError::Misbehaved { what }.into());
                    }
                }
            }
            tokio::select! {
                biased;
                () = self.inner.closing.cancelled() => {
                    let words = "the slave was shut down".into();
                    connection.send(&Message::Goodbye(Goodbye { reason: GoodbyeReason::Closing, words }))?;
                    return Ok(());
                }
                driven = connection.drive(connection.has_room()) => match driven {
                    Ok(_) => {}
                    // Whoever has its answer may just go.
                    Err(ConnectionError::Closed) if answered => return Ok(()),
                    Err(error) => return Err(error.into()),
                },
                () = sleep_until(deadline) => {
                    return Err(ProtocolError::Silent { seconds: patience.as_secs() }.into());
                }
            }
        }
    }

    fn answer(&self, request: &Request) -> Response {
        let body = match request.body {
            RequestBody::Status => {
                serde_json::to_vec(&self.status()).map(Bytes::from).map_err(|error| error.to_string())
            }
            _ => Err("this slave does not know the question".into()),
        };
        Response { id: request.id, body }
    }
}
