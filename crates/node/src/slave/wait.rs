//! Waiting until a write is here.

use replikv_core::{Position, ReplicaStore, Token};
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
    let there = match write {
        WaitFor::Seq(seq) => position.seq >= seq,
        WaitFor::Token(token) => holds(&position, &progress.epochs, &token)?,
    };
    Ok(progress.consistent && there)
}

/// Whether what stands at `position` of a history with these epochs includes a write, or else can still come to it.
pub(crate) fn holds(position: &Position, epochs: &[EpochStart], token: &Token) -> Result<bool, WaitError> {
    if token.source != position.source {
        return Err(WaitError::ForeignSource);
    }
    // A token of an earlier epoch is good up to where the next epoch began.
    let ended = epochs.iter().filter(|start| start.epoch.number > token.epoch.number);
    let superseded = ended.map(|start| start.first).min().is_some_and(|first| token.seq >= first);
    let usurped = token.epoch.number == position.epoch.number && token.epoch.nonce != position.epoch.nonce;
    if superseded || usurped {
        return Err(WaitError::Superseded);
    }
    // What an earlier reign has written under that number is another record.
    Ok(position.epoch.number >= token.epoch.number && position.seq >= token.seq)
}

#[cfg(test)]
mod tests {
    use replikv_core::{Digest, Epoch, Seq, SourceId};

    use super::*;

    fn position(epoch: u64, seq: u64) -> Position {
        let (source, digest) = (SourceId::from_bytes([7; 16]), Digest::from_bytes([3; 16]));
        Position { source, epoch: Epoch { number: epoch, nonce: epoch }, seq: Seq::new(seq), digest }
    }

    #[test]
    fn a_write_of_a_later_reign_is_not_there_because_an_earlier_one_came_as_far() {
        let token = Token::from(position(2, 10));
        let at = |epoch, seq, first| {
            let epochs = vec![EpochStart { epoch: position(epoch, 1).epoch, first: Seq::new(first) }];
            let progress =
                SlaveProgress { position: Some(position(epoch, seq)), consistent: true, epochs, ..Default::default() };
            reached(&progress, token.into())
        };
        assert_eq!(at(1, 12, 1), Ok(false));
        assert_eq!(at(2, 9, 8), Ok(false));
        assert_eq!(at(2, 10, 8), Ok(true));
        assert_eq!(at(3, 12, 11), Ok(true));
        assert_eq!(at(3, 12, 10), Err(WaitError::Superseded));
        let before = SlaveProgress { position: Some(position(2, 12)), ..Default::default() };
        assert_eq!(reached(&before, token.into()), Ok(false), "it is not consistent");
    }
}
