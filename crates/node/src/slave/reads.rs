//! Reading a slave, knowing of which moment that is.

use replikv_core::{Cursor, ReplicaStore, Seq, StoreError};
use replikv_proto::WaitFor;

use super::{Slave, wait};
use crate::reader::Reading;
use crate::{ReadAt, ReadError};

impl<S: ReplicaStore> Slave<S> {
    /// What `read` reads, and of which moment it is.
    pub(crate) async fn read_with<R, F>(
        &self,
        after: Option<WaitFor>,
        read: impl Fn() -> F,
    ) -> Result<Reading<R>, ReadError>
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
        Ok(Reading { value, at: ReadAt { shows, consistent, ..before } })
    }
}

#[cfg(test)]
mod tests {
    use replikv_memory::MemoryStore;

    use super::*;
    use crate::{Master, MasterConfig, Reader, SlaveConfig};

    type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

    #[tokio::test]
    async fn what_is_applied_while_a_read_runs_may_be_shown_and_is_not_said_to_be_included() -> Result {
        let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
        let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
        let (here, there) = tokio::io::duplex(64 << 10);
        let (serving, following) = (master.clone(), slave.clone());
        tokio::spawn(async move { serving.serve(here).await });
        tokio::spawn(async move { following.follow(there).await });
        let before = master.put("n", "1").await?;
        slave.wait_applied(before).await?;
        // The next write comes between the beginning and the end of the read.
        let (writer, reader) = (&master, &slave);
        let read = slave.read_with(None, || async move {
            let token = writer.put("n", "2").await.map_err(StoreError::backend)?;
            reader.wait_applied(token).await.map_err(StoreError::backend)?;
            reader.get("n").await
        });
        let read = read.await?;
        let (includes, shows) = (read.at.includes.map(|at| at.seq), read.at.shows.map(|at| at.seq));
        assert_eq!((read.value.as_deref(), includes), (Some(&b"2"[..]), Some(before.seq)));
        assert_eq!(shows, before.seq.next());

        let read = master.read_with(None, || async move {
            writer.put("n", "3").await.map_err(StoreError::backend)?;
            Reader::get(writer, b"n").await
        });
        let read = read.await?;
        let (includes, shows) = (read.at.includes.map(|at| at.seq), read.at.shows.map(|at| at.seq));
        assert_eq!((read.value.as_deref(), includes), (Some(&b"3"[..]), before.seq.next()));
        assert_eq!(shows, before.seq.checked_add(2));
        Ok(())
    }
}
