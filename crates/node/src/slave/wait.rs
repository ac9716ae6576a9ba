//! Waiting until a write is here.

use replikv_core::{ReplicaStore, SourceId, Token};
use replikv_proto::{EpochStart, WaitFor};

use super::{Slave, SlaveProgress, WaitError};

impl<S: ReplicaStore> Slave<S> {
    /// Waits until the write is applied here, and the slave is at a batch boundary that includes it: read your writes.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// [`WaitError`]. There is no timeout: wrap it in one.
    pub async fn wait_applied(&self, write: impl Into<WaitFor>) -> Result<(), WaitError> {
        let write = write.into();
        self.wait_until(|progress| reached(progress, write)).await
    }

    /// Waits until the slave holds everything that its master had published when it last told, and is consistent.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// [`WaitError::Closed`].
    pub async fn wait_caught_up(&self) -> Result<(), WaitError> {
        self.wait_until(|progress| {
            let caught_up = progress.connected
                && progress.consistent
                && progress.head.zip(progress.position).is_some_and(|(head, position)| position.seq >= head.seq);
            Ok(caught_up)
        })
        .await
    }

    async fn wait_until(
        &self,
        mut done: impl FnMut(&SlaveProgress) -> Result<bool, WaitError>,
    ) -> Result<(), WaitError> {
        let mut progress = self.subscribe();
        loop {
            if done(&progress.borrow_and_update())? {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = self.inner.closing.cancelled() => return Err(WaitError::Closed),
                changed = progress.changed() => changed.map_err(|_| WaitError::Closed)?,
            }
        }
    }
}

pub(super) fn reached(progress: &SlaveProgress, write: WaitFor) -> Result<bool, WaitError> {
    let Some(position) = progress.position else { return Ok(false) };
    if let WaitFor::Token(token) = write {
        let usurped = token.epoch.number == position.epoch.number && token.epoch.nonce != position.epoch.nonce;
        check(&token, position.source, &progress.epochs)?;
        if usurped {
            return Err(WaitError::Superseded);
        }
    }
    Ok(progress.consistent && position.seq >= write.seq())
}

/// Whether a write can be in the history of these epochs.
pub(crate) fn check(token: &Token, source: SourceId, epochs: &[EpochStart]) -> Result<(), WaitError> {
    if token.source != source {
        return Err(WaitError::ForeignSource);
    }
    // A token of an earlier epoch is good up to where the next epoch began.
    let ended = epochs.iter().filter(|start| start.epoch.number > token.epoch.number);
    let superseded = ended.map(|start| start.first).min().is_some_and(|first| token.seq >= first);
    if superseded { Err(WaitError::Superseded) } else { Ok(()) }
}
