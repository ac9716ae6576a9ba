//! Reading a master, knowing of which moment that is.

use replikv_core::{ReplicaStore, StoreError};
use replikv_proto::WaitFor;

use super::Master;
use crate::reader::Reading;
use crate::{Lag, ReadAt, ReadError, slave};

impl<S: ReplicaStore> Master<S> {
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
            if let WaitFor::Token(token) = &write {
                slave::check(token, self.inner.source, &self.inner.epochs)?;
            }
            if write.seq() > published.seq {
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
