//! Reading a master, knowing of which moment that is.

use replikv_core::{ReplicaStore, StoreError};
use replikv_proto::WaitFor;

use super::Master;
use crate::reader::Reading;
use crate::{Lag, ReadAt, ReadError, WaitError, slave};

impl<S: ReplicaStore> Master<S> {
    /// Waits until a write is published.
    pub(crate) async fn wait_published(&self, write: WaitFor) -> Result<(), WaitError> {
        if let WaitFor::Token(token) = &write {
            let published = self.inner.view().published;
            slave::holds(&published, &self.inner.epochs, token)?;
            if token.epoch.number > published.epoch.number {
                // A later reign's: it never comes to this master.
                self.inner.closing.cancelled().await;
                return Err(WaitError::Closed);
            }
        }
        self.subscribe().reached(write.seq()).await.map(drop).map_err(|_| WaitError::Closed)
    }

    /// What `read` reads, and of which moment it is.
    pub(crate) async fn read_with<R, F>(
        &self,
        after: Option<WaitFor>,
        read: impl Fn() -> F,
    ) -> Result<Reading<R>, ReadError>
    where
        F: Future<Output = Result<R, StoreError>>,
    {
        // Before the read: what was published by now is in it.
        let published = self.inner.view().published;
        if let Some(write) = after {
            let there = match &write {
                WaitFor::Seq(seq) => published.seq >= *seq,
                WaitFor::Token(token) => slave::holds(&published, &self.inner.epochs, token)?,
            };
            if !there {
                return Err(ReadError::Behind { at: published.seq });
            }
        }
        let (value, shows) = self.inner.read_at(read).await?;
        let at = ReadAt {
            includes: Some(published),
            shows: Some(shows),
            consistent: true,
            lag: Some(Lag { seqs: 0, bytes: 0, millis: 0 }),
            last_contact_ms: Some(0),
        };
        Ok(Reading { value, at })
    }
}
