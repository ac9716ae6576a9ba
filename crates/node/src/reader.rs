//! One way to read, whatever holds the data.

use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{DataReader, KeyRange, Page, Position, ReplicaStore, ScanOptions, StoreError};
use replikv_proto::ReadAt;
use serde::{Deserialize, Serialize};

use crate::{Changes, ChangesError, ChangesFrom, Health, Lag, Master, ReadError, Slave, WaitError, WaitFor};

/// What was read, and of which moment it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading<T> {
    /// What was read.
    pub value: T,
    /// Of which moment of the history it is.
    pub at: ReadAt,
}

/// Whatever replicated data can be read from: a master, a slave, one of these on the other side of a network
/// ([`RemoteReader`](crate::RemoteReader)), or several of them ([`BalancedReader`](crate::BalancedReader)).
///
/// `Arc<dyn Reader>` lets a program choose at run time, and a [`Table`](replikv_core::Table) reads through it too.
#[async_trait]
pub trait Reader: DataReader + 'static {
    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// As [`ReplicaStore::get`].
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.get_data(key).await
    }

    /// One page of `range`, as it was at one instant.
    ///
    /// # Errors
    /// As [`ReplicaStore::scan`].
    async fn scan(&self, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.scan_data(range, options).await
    }

    /// The value of `key`, and of which moment it is. With `after`, only if that is in it.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// [`ReadError`]; [`ReadError::Behind`] if `after` is not there yet, or the reader holds no state of its master.
    async fn read(&self, key: &[u8], after: Option<WaitFor>) -> Result<Reading<Option<Bytes>>, ReadError>;

    /// One page of `range`, as it was at one instant, and of which moment it is. With `after`, only if that is in it.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn read_page(
        &self,
        range: KeyRange,
        options: ScanOptions,
        after: Option<WaitFor>,
    ) -> Result<Reading<Page>, ReadError>;

    /// What changes, as a stream of whole batches; see [`Master::changes`] and [`Slave::changes`].
    ///
    /// # Errors
    /// [`ChangesError`].
    async fn changes(&self, from: ChangesFrom, ranges: Vec<KeyRange>) -> Result<Changes, ChangesError>;

    /// Waits until a write is readable here: read your writes. On a master that is so as soon as it is published.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// [`WaitError`]. There is no timeout: wrap it in one.
    async fn wait_applied(&self, write: WaitFor) -> Result<(), WaitError>;

    /// Where it stands, and how it is. Never waits.
    fn status(&self) -> ReaderStatus;
}

/// Where a reader stands, and how it is: what every kind of reader can say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReaderStatus {
    /// How it is.
    pub health: Health,
    /// The last record whose batch is readable; on a master, the last one published. `None` before the first.
    pub position: Option<Position>,
    /// Whether what is read is a state that the master had; not so while a slave copies.
    pub consistent: bool,
    /// How far it is behind; `None` while nobody can tell.
    pub lag: Option<Lag>,
    /// Milliseconds since anything was heard of the master; `None` if nothing ever was. 0 on a master.
    pub last_contact_ms: Option<u64>,
}

#[async_trait]
impl<S: ReplicaStore> Reader for Slave<S> {
    async fn read(&self, key: &[u8], after: Option<WaitFor>) -> Result<Reading<Option<Bytes>>, ReadError> {
        self.read_with(after, || self.get_data(key)).await
    }

    async fn read_page(
        &self,
        range: KeyRange,
        options: ScanOptions,
        after: Option<WaitFor>,
    ) -> Result<Reading<Page>, ReadError> {
        self.read_with(after, || self.scan_data(range.clone(), options)).await
    }

    async fn changes(&self, from: ChangesFrom, ranges: Vec<KeyRange>) -> Result<Changes, ChangesError> {
        Self::changes(self, from, ranges).await
    }

    async fn wait_applied(&self, write: WaitFor) -> Result<(), WaitError> {
        Self::wait_applied(self, write).await
    }

    fn status(&self) -> ReaderStatus {
        let consistent = self.subscribe().borrow().consistent;
        let status = Self::status(self);
        ReaderStatus {
            health: status.health,
            position: status.position,
            consistent,
            lag: status.lag,
            last_contact_ms: status.last_contact_ms,
        }
    }
}

#[async_trait]
impl<S: ReplicaStore> Reader for Master<S> {
    async fn read(&self, key: &[u8], after: Option<WaitFor>) -> Result<Reading<Option<Bytes>>, ReadError> {
        self.read_with(after, || self.get_data(key)).await
    }

    async fn read_page(
        &self,
        range: KeyRange,
        options: ScanOptions,
        after: Option<WaitFor>,
    ) -> Result<Reading<Page>, ReadError> {
        self.read_with(after, || self.scan_data(range.clone(), options)).await
    }

    async fn changes(&self, from: ChangesFrom, ranges: Vec<KeyRange>) -> Result<Changes, ChangesError> {
        Self::changes(self, from, ranges).await
    }

    async fn wait_applied(&self, write: WaitFor) -> Result<(), WaitError> {
        self.wait_published(write).await
    }

    fn status(&self) -> ReaderStatus {
        let status = Self::status(self);
        ReaderStatus {
            health: status.health,
            position: Some(status.published),
            consistent: true,
            lag: Some(Lag { seqs: 0, bytes: 0, millis: 0 }),
            last_contact_ms: Some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use replikv_core::{Batch, Seq, Subspace, Table};
    use replikv_memory::MemoryStore;

    use super::*;
    use crate::{MasterConfig, SlaveConfig};

    #[tokio::test]
    async fn masters_and_slaves_are_read_in_one_way() -> Result<(), Box<dyn std::error::Error>> {
        let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
        let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
        let (here, there) = tokio::io::duplex(1 << 16);
        let (serving, following) = (master.clone(), slave.clone());
        tokio::spawn(async move { serving.serve(here).await });
        tokio::spawn(async move { following.follow(there).await });
        let ages: Table<String, u32> = Table::new("ages", Subspace::named("ages"));
        let token = master.write(ages.put(Batch::new(), &"alice".into(), &42)?).await?;
        let readers: [Arc<dyn Reader>; 2] = [Arc::new(master), Arc::new(slave)];
        for reader in &readers {
            reader.wait_applied(token.into()).await?;
            assert_eq!(ages.get(&**reader, &"alice".into()).await?, Some(42));
            assert!(reader.get(&ages.key(&"alice".into())).await?.is_some());
            assert_eq!(reader.scan(KeyRange::all(), ScanOptions::default()).await?.len(), 1);
            let status = reader.status();
            assert_eq!(status.position.map(|position| position.seq), Some(token.seq));
            assert!(status.consistent);
        }
        Ok(())
    }

    #[tokio::test]
    async fn waiting_ends_when_the_master_is_shut_down() -> Result<(), Box<dyn std::error::Error>> {
        let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
        let waiting = master.clone();
        let waiting = tokio::spawn(async move { Reader::wait_applied(&waiting, Seq::new(99).into()).await });
        master.shutdown().await?;
        assert_eq!(waiting.await?, Err(WaitError::Closed));
        Ok(())
    }

    #[tokio::test]
    async fn a_name_that_is_none_is_refused_when_the_slave_is_opened() {
        for name in ["", "two\nlines"] {
            let refused = Slave::open(MemoryStore::new(), SlaveConfig::new(name)).await;
            assert!(matches!(refused, Err(crate::OpenError::Name(_))), "{name:?}");
        }
    }
}
