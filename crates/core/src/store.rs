//! The trait that a backend implements.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Cursor, KeyRange, LinkId, Page, ScanOptions, StoreError, StoreLimits, StoreStats, WriteSet, meta};

/// One of the three ordered maps of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keyspace {
    /// The user's entries, exactly as written.
    Data,
    /// Records, by big-endian sequence number.
    Log,
    /// Cursors, identity, checkpoints.
    Meta,
}

impl Keyspace {
    /// All three, in order.
    pub const ALL: [Self; 3] = [Self::Data, Self::Log, Self::Meta];

    /// Its name, in lower case: what backends call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Log => "log",
            Self::Meta => "meta",
        }
    }
}

/// What a store promises when `apply` returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The write set is readable. Power loss may take it, but only together with every later one: what is left is
    /// always a prefix of whole write sets.
    Buffered,
    /// The write set is on stable storage, with all before it. The default, because group commit makes it cheap.
    #[default]
    Synced,
}

/// An ordered map of byte keys in three [`Keyspace`]s, with atomic write sets.
///
/// Everything else in replikv stands on what is said here; `replikv-testkit` has one test for each sentence.
/// Keys are compared as unsigned bytes. Keys have at least one byte; values may be empty. Empty and overlong keys
/// are refused by every method with the same error.
///
/// A store that blocks is best written as a `BlockingStore` of `replikv-blocking`, which brings the threads.
///
/// # After an error
/// [`StoreError::outcome`] says whether the store is unchanged. After an unknown outcome, or a failed sync, every
/// call fails with `Fatal` until [`reopen`](Self::reopen) has succeeded: what the store then holds is the truth.
#[async_trait]
pub trait ReplicaStore: Send + Sync + 'static {
    /// Applies every operation of `writes` in order, over all keyspaces, if its preconditions hold.
    ///
    /// # Atomicity
    /// All or nothing, in every reader's eyes and after a crash. The preconditions are checked inside the same
    /// transaction: two callers that require the same value cannot both succeed if one of them changes it.
    ///
    /// # Durability
    /// Readable on return by every later call; on stable storage on return if `durability` is
    /// [`Synced`](Durability::Synced).
    ///
    /// # Cancel safety
    /// If dropped, the set is wholly applied or wholly absent, and which of both is decided before any later call
    /// answers.
    ///
    /// # Errors
    /// `HeadMoved` if a precondition does not hold; `KeyTooLong`, `ValueTooLarge`, `BatchTooLarge`, `StoreFull`,
    /// `Transient`: the store is unchanged. `Fatal`, and `Backend` with an unknown outcome: reopen it.
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError>;

    /// The value of `key`, or `None`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// `KeyEmpty`, `KeyTooLong`, or what the backend reports.
    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// The values of `keys`, in their order, each as [`get`](Self::get) reads it: a write set may come in between. For
    /// whoever needs many, where each call costs a turn on another thread, or on a network. Default: one after the other.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// As `get`, if it fails for one of them.
    async fn get_many(&self, keyspace: Keyspace, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            values.push(self.get(keyspace, key).await?);
        }
        Ok(values)
    }

    /// One page of `range`, as it was at one instant: never half a write set. Two pages may be of two instants.
    ///
    /// A page holds at least one entry if the range does, however small the limits of `options` are. Bounds may be
    /// longer than any key.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// What the backend reports.
    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError>;

    /// The cursor of `link`, as the last write set that set it left it.
    ///
    /// # Errors
    /// `Corrupt` if what is stored is no cursor.
    async fn cursor(&self, link: &LinkId) -> Result<Option<Cursor>, StoreError> {
        let Some(bytes) = self.get(Keyspace::Meta, &meta::cursor_key(link)).await? else { return Ok(None) };
        let cursor = Cursor::from_bytes(&bytes);
        cursor.map(Some).ok_or_else(|| StoreError::Corrupt { what: format!("the cursor of link {link}") })
    }

    /// Brings everything that was applied so far to stable storage.
    ///
    /// # Cancel safety
    /// If dropped, the sync may or may not happen.
    ///
    /// # Errors
    /// A failed sync is `Fatal`: the kernel may have dropped what it could not write, so a second sync that
    /// succeeds proves nothing. The store refuses everything until it is reopened.
    async fn sync(&self) -> Result<(), StoreError>;

    /// Opens the store anew, after an unknown outcome. Waits for whatever is in flight. A no-op on a store that
    /// is well.
    ///
    /// # Errors
    /// As opening it; the store goes on refusing everything.
    async fn reopen(&self) -> Result<(), StoreError>;

    /// Closes the store: when this returns, it can be opened again, here or in another process. Later calls fail
    /// with `Closed`. Closing twice is no error.
    ///
    /// # Errors
    /// `Fatal` if what was buffered could not be synced; it is closed nevertheless.
    async fn close(&self) -> Result<(), StoreError>;

    /// What fits into it. Constant while it is open.
    fn limits(&self) -> StoreLimits;

    /// How many bytes of operations a write set holds at best, where there is a choice: a slave that is behind, and an
    /// import, hand over about as much at once. A hint, for speed and memory; larger sets work all the same. Default:
    /// 32 MiB, which suits stores whose cost is the number of pages that a transaction touches.
    fn preferred_write_set(&self) -> usize {
        32 << 20
    }

    /// How many operations a write set holds at best, besides: for stores that keep something for each of them. A hint as
    /// [`preferred_write_set`](Self::preferred_write_set) is. Default: as many as these bytes hold.
    fn preferred_operations(&self) -> usize {
        usize::MAX
    }

    /// What it can say of itself, for whoever watches it, and for what is only a matter of speed. Never waits for a write.
    ///
    /// A store that wraps another one passes this on; one that shows a part of it leaves out what counts the whole.
    fn stats(&self) -> StoreStats {
        StoreStats::default()
    }
}

#[async_trait]
impl<T: ReplicaStore + ?Sized> ReplicaStore for Arc<T> {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        (**self).apply(writes, durability).await
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        (**self).get(keyspace, key).await
    }

    async fn get_many(&self, keyspace: Keyspace, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        (**self).get_many(keyspace, keys).await
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        (**self).scan(keyspace, range, options).await
    }

    async fn cursor(&self, link: &LinkId) -> Result<Option<Cursor>, StoreError> {
        (**self).cursor(link).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        (**self).sync().await
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        (**self).reopen().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        (**self).close().await
    }

    fn limits(&self) -> StoreLimits {
        (**self).limits()
    }

    fn preferred_write_set(&self) -> usize {
        (**self).preferred_write_set()
    }

    fn preferred_operations(&self) -> usize {
        (**self).preferred_operations()
    }

    fn stats(&self) -> StoreStats {
        (**self).stats()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::PageBuilder;

    /// It does nothing, and answers each call in its own way.
    struct Answers;

    fn busy(holder: &str) -> Result<(), StoreError> {
        Err(StoreError::Busy { holder: holder.into() })
    }

    #[async_trait]
    impl ReplicaStore for Answers {
        async fn apply(&self, _: WriteSet, _: Durability) -> Result<(), StoreError> {
            busy("apply")
        }

        async fn get(&self, _: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            Ok((key == b"known").then(|| Bytes::from_static(b"got")))
        }

        async fn get_many(&self, _: Keyspace, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
            Ok(vec![Some(Bytes::from_static(b"many")); keys.len() + 1])
        }

        async fn scan(&self, _: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
            let mut page = PageBuilder::new(range, options);
            let _ = page.push(b"key", b"value");
            Ok(page.finish())
        }

        async fn cursor(&self, _: &LinkId) -> Result<Option<Cursor>, StoreError> {
            busy("cursor").map(|()| None)
        }

        async fn sync(&self) -> Result<(), StoreError> {
            busy("sync")
        }

        async fn reopen(&self) -> Result<(), StoreError> {
            busy("reopen")
        }

        async fn close(&self) -> Result<(), StoreError> {
            busy("close")
        }

        fn limits(&self) -> StoreLimits {
            StoreLimits { max_key: 1, max_value: 2, max_batch: 3 }
        }

        fn preferred_write_set(&self) -> usize {
            4
        }

        fn preferred_operations(&self) -> usize {
            6
        }

        fn stats(&self) -> StoreStats {
            StoreStats { foreign_commits: Some(5), ..StoreStats::default() }
        }
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("it answers at once"),
        }
    }

    #[test]
    fn a_shared_store_answers_as_the_store_itself() {
        let store = Arc::new(Answers);
        let told = |result: Result<(), StoreError>| match result {
            Err(StoreError::Busy { holder }) => holder,
            other => panic!("{other:?}"),
        };
        let (writes, key) = (WriteSet::builder().build(), Bytes::from_static(b"key"));
        assert_eq!(told(now(store.apply(writes, Durability::Synced))), "apply");
        assert_eq!(now(store.get(Keyspace::Data, b"known")).unwrap().as_deref(), Some(&b"got"[..]));
        assert_eq!(now(store.get(Keyspace::Data, b"other")).unwrap(), None);
        assert_eq!(now(store.get_many(Keyspace::Data, &[key])).unwrap().len(), 2);
        assert_eq!(now(store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default())).unwrap().len(), 1);
        assert_eq!(told(now(store.cursor(&LinkId::default())).map(drop)), "cursor");
        assert_eq!(told(now(store.sync())), "sync");
        assert_eq!(told(now(store.reopen())), "reopen");
        assert_eq!(told(now(store.close())), "close");
        assert_eq!(store.limits(), StoreLimits { max_key: 1, max_value: 2, max_batch: 3 });
        assert_eq!((store.preferred_write_set(), store.preferred_operations()), (4, 6));
        assert_eq!(store.stats().foreign_commits, Some(5));
    }
}
