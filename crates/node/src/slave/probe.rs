//! Answering whoever asks how a slave is, and whoever reads from it.

use futures_util::future::BoxFuture;
use replikv_core::ReplicaStore;
use replikv_proto::{DecoderLimits, FenceRequest, Message, ProtocolError, Refusal, RejectCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::Slave;
use crate::ServeError;
use crate::reads::serve::{Asked, Ended, Refused, Wish, answer_all};
use crate::transport::Connection;

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
        let refused = |_| Err(Refused::Never("this address tells the status of a slave, and nothing of its data"));
        self.answer(stream, LIMITS, refused).await
    }

    /// Answers reads at the other end of `stream`, as a [`RemoteReader`](crate::RemoteReader) asks them, and questions
    /// for the status, until that end closes or has not asked for as long as a handshake may take. Whoever is on the
    /// other side can read everything that the slave holds, and change nothing of it; and can [fence](Self::fence) it, for
    /// the promotion of another slave.
    ///
    /// Questions are answered one after the other, so that a connection pins one answer and a buffer; those who wait
    /// for a write wait beside that, 64 of a connection at most.
    ///
    /// # Cancel safety
    /// If dropped, answering stops.
    ///
    /// # Errors
    /// [`ServeError`]. Whatever is asked, the slave is not affected.
    pub async fn serve_reads<T>(&self, stream: T) -> Result<(), ServeError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let max_key = self.inner.store.limits().max_key;
        self.answer(stream, DecoderLimits::for_hello(max_key), |_| Ok(())).await
    }

    async fn answer<T>(
        &self,
        stream: T,
        limits: DecoderLimits,
        admit: impl FnMut(Wish) -> Result<(), Refused> + Send,
    ) -> Result<(), ServeError>
    where
        T: AsyncRead + AsyncWrite + Send,
    {
        let mut connection = Connection::new(stream, limits);
        let patience = self.inner.config.handshake_timeout;
        let ended = answer_all(&mut connection, self, &self.inner.closing, patience, admit).await;
        let result = match ended {
            Ok(Ended::Other(message)) => match *message {
                Message::Hello(_) => {
                    let words = "this address of a slave answers questions, and serves nobody who follows";
                    let refusal = Refusal::new(RejectCode::Unsupported, words);
                    let sent = connection.send(&Message::Reject(refusal.clone().into()));
                    sent.map_err(ServeError::from).and(Err(ServeError::Refused(refusal)))
                }
                message => {
                    let what = format!("{} has no place here", message.name());
                    Err(ProtocolError::Misbehaved { what }.into())
                }
            },
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        // Last words that cannot be sent are not missed by anybody.
        drop(timeout(super::follow::LAST_WORDS, connection.finish()).await);
        result
    }
}

impl<S: ReplicaStore> Asked for Slave<S> {
    fn status_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&self.status())
    }

    fn fence(&self, request: FenceRequest) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let fenced = Self::fence(self, &request).await;
            serde_json::to_vec(&fenced).map_err(|error| error.to_string())
        })
    }
}
