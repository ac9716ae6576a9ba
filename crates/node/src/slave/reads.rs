//! Reading a slave, knowing of which moment that is.

use replikv_core::{Cursor, ReplicaStore, Seq, StoreError};
use replikv_proto::WaitFor;

use super::{Slave, wait};
use crate::reader::Read;
use crate::{ReadAt, ReadError};

impl<S: ReplicaStore> Slave<S> {
    /// What `read` reads, and of which moment it is.
    pub(crate) async fn read_with<R, F>(
        &self,
        after: Option<WaitFor>,
        read: impl Fn() -> F,
    ) -> Result<Read<R>, ReadError>
    where
        F: Future<Output = Result<R, StoreError>>,
    {
        // Before the read: what was applied by now is in it.
        let (progress, before) = self.inner.tracker.read_at(self.inner.clock.now());
        let behind = || ReadError::Behind { at: before.includes.map_or(Seq::ZERO, |position| position.seq) };
        if let Some(write) = after
            && !wait::reached(&progress, write)?
        {
            return Err(behind());
        }
        let value = read().await?;
        // After it, and from the store: the cursor moves with the data, and what is told of it comes later.
        let cursor = self.stored_cursor().await?;
        let shows = cursor.as_ref().map(|cursor| cursor.position);
        let same = before.includes.map(|position| position.source) == shows.map(|position| position.source);
        let consistent = before.consistent && same && cursor.as_ref().is_some_and(Cursor::is_consistent);
        if after.is_some() && !consistent {
            return Err(behind());
        }
        Ok(Read { value, at: ReadAt { shows, consistent, ..before } })
    }
}
