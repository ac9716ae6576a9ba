//! A planned change of masters, from the side of the one who takes over.

use std::io;
use std::time::Duration;

use replikv_core::ReplicaStore;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::{PromoteError, Promoted, Slave};
use crate::clock::ahead;
use crate::master::ask_to_hand_over;
use crate::{HandedOver, HandoverError, ServeError};

/// How long to wait before the master is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an answer may take beyond what the master waits for.
const ANSWER: Duration = Duration::from_secs(10);

/// Why a slave has not taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeOverError {
    /// The master says no, and why; and whether it goes on. This slave is one as before.
    #[error(transparent)]
    Refused(#[from] HandoverError),
    /// The other side does not hand over: it is a slave, or an older version.
    #[error("the other side does not hand over: {words}")]
    Unsupported {
        /// In its words.
        words: String,
    },
    /// Nobody answers. The master may go on, or have stopped in favour of this slave, which its store then says
    /// (`replikv status --store`). Ask again; or, if the master is gone and has stopped, promote this slave.
    #[error("the master does not answer: it goes on, or has stopped in favour of this slave; ask again ({reason})")]
    Unknown {
        /// What happened when it was last asked.
        reason: String,
    },
    /// The master has stopped, and this slave does not stand where it did: it follows another one. It is a slave as before.
    #[error("the master has stopped at record {}, and this slave stands elsewhere", handed_over.position.seq)]
    Elsewhere {
        /// Where it has stopped.
        handed_over: HandedOver,
    },
    /// The master has stopped in favour of this slave, which could not be promoted. Nothing of it was changed: see why,
    /// and promote it. If it [subscribes to a part of the keys](PromoteError::Filtered), the master was not asked, and goes
    /// on.
    #[error("this slave was not promoted")]
    Promote(#[from] PromoteError),
}

/// A slave that took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TookOver {
    /// What the master said.
    pub handed_over: HandedOver,
    /// The store that was promoted.
    pub promoted: Promoted,
}

impl<S: ReplicaStore> Slave<S> {
    /// Takes over from the master that it follows: asks it to [hand over](crate::Master::hand_over), over streams that
    /// `connect` makes, beside the connection that is followed; and [promotes](Self::promote) this slave once it has
    /// everything. No batch is lost, and never do two masters write. The store is closed: open it with
    /// [`Master::open`](crate::Master::open).
    ///
    /// `patience` bounds how long the master waits for this slave, see there, ten minutes at most; and, if the connection is lost, how long it
    /// is asked again.
    ///
    /// # Cancel safety
    /// If dropped, the master may have stopped in favour of this slave: take over again.
    ///
    /// # Errors
    /// [`TakeOverError`]: the slave is one as before.
    pub async fn take_over<T, F>(
        &self,
        mut connect: impl FnMut() -> F + Send,
        patience: Duration,
    ) -> Result<TookOver, TakeOverError>
    where
        T: AsyncRead + AsyncWrite + Send,
        F: Future<Output = io::Result<T>> + Send,
    {
        // Before anybody stops in its favour.
        if !self.ranges().is_all() {
            return Err(PromoteError::Filtered { ranges: self.ranges().clone() }.into());
        }
        let until = ahead(patience);
        let handed_over = loop {
            let asked = async {
                let stream = connect().await.map_err(ServeError::from)?;
                ask_to_hand_over(stream, &self.inner.config.name, patience).await
            };
            let failed: TakeOverError = match timeout(patience.saturating_mul(2).saturating_add(ANSWER), asked).await {
                Ok(Ok(Ok(handed_over))) => break handed_over,
                // What it says first may pass: this slave may just be connecting.
                Ok(Ok(Err(error @ (HandoverError::NotFollowing { .. } | HandoverError::Unconfirmed { .. })))) => {
                    error.into()
                }
                Ok(Ok(Err(error))) => return Err(error.into()),
                Ok(Err(ServeError::Refused(refusal))) if !refusal.retry => {
                    return Err(TakeOverError::Unsupported { words: refusal.words });
                }
                Ok(Err(error)) => TakeOverError::Unknown { reason: crate::error_chain(&error) },
                Err(_) => TakeOverError::Unknown { reason: "no answer in time".into() },
            };
            if Instant::now() >= until {
                return Err(failed);
            }
            sleep(PAUSE).await;
        };
        if self.status().position != Some(handed_over.position) {
            return Err(TakeOverError::Elsewhere { handed_over });
        }
        let promoted = self.promote().await?;
        Ok(TookOver { handed_over, promoted })
    }

    /// As [`take_over`](Self::take_over), from the master at `address`, HOST:PORT.
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "tcp")]
    pub async fn take_over_tcp(&self, address: &str, patience: Duration) -> Result<TookOver, TakeOverError> {
        self.take_over(|| tokio::net::TcpStream::connect(address), patience).await
    }
}
