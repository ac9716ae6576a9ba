//! Reading what is derived, wherever it lies.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{
    Cursor, DataReader, KeyRange, Keyspace, Page, Position, ReplicaStore, ScanOptions, StoreError, Subspace,
};
use replikv_proto::layout::{Head, Identity, Role, Stored};
use replikv_proto::{DeriveMark, DeriveState, space_in};

use super::DerivedStore;
use super::build::all;
use super::store::{MARKS, entries_of};
use crate::{Centre, Master, Slave, stored};

/// Whatever what is derived can be read from: a master, which keeps it in its data, a [`DerivedStore`], and a slave or a
/// centre on one.
#[async_trait]
pub trait DerivedReader: Send + Sync {
    /// The value of `key` of the derive `name`, or `None`.
    ///
    /// # Errors
    /// `NotDerived` if nothing of that name is derived here; what the store reports.
    async fn get_derived(&self, name: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// One page of `range` of the derive `name`, as it was at one instant.
    ///
    /// # Errors
    /// As [`get_derived`](Self::get_derived).
    async fn scan_derived(&self, name: &str, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError>;

    /// The last batch that is in what is read now; `None` where there is more than one history, as in a centre, or while a
    /// slave holds no state of its master.
    ///
    /// # Errors
    /// What the store reports.
    async fn derived_at(&self) -> Result<Option<Position>, StoreError>;
}

fn unknown(name: &str) -> StoreError {
    StoreError::NotDerived { name: name.to_owned(), reason: "nobody derives it here".into() }
}

async fn page<R>(space: &Subspace, range: KeyRange, read: impl FnOnce(KeyRange) -> R + Send) -> Result<Page, StoreError>
where
    R: Future<Output = Result<Page, StoreError>> + Send,
{
    let page = read(space.range_of(&range)).await?;
    Ok(space.lift(&page, &range))
}

// A position is in the same transactions as what is derived.
async fn position_of<S: ReplicaStore>(store: &S) -> Result<Option<Position>, StoreError> {
    match stored::read::<S, Identity>(store, Identity::KEY).await? {
        Some(Identity { role: Role::Master, .. }) => {
            Ok(stored::read::<S, Head>(store, Head::KEY).await?.map(|head| head.position))
        }
        Some(Identity { role: Role::Slave, .. }) => {
            let Some(link) = crate::slave::only_link(store).await? else { return Ok(None) };
            let cursor = store.cursor(&link).await?;
            Ok(cursor.filter(Cursor::is_consistent).map(|cursor| cursor.position))
        }
        _ => Ok(None),
    }
}

impl<S: ReplicaStore> DerivedStore<S> {
    fn space(&self, name: &str) -> Result<Subspace, StoreError> {
        let known = self.derives().iter().any(|(derive, _)| derive.name() == name);
        if known { Ok(space_in(&entries_of(name))) } else { Err(unknown(name)) }
    }
}

#[async_trait]
impl<S: ReplicaStore> DerivedReader for DerivedStore<S> {
    async fn get_derived(&self, name: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner().get(Keyspace::Meta, &self.space(name)?.key(key)).await
    }

    async fn scan_derived(&self, name: &str, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        page(&self.space(name)?, range, |range| self.inner().scan(Keyspace::Meta, range, options)).await
    }

    async fn derived_at(&self) -> Result<Option<Position>, StoreError> {
        position_of(self.inner()).await
    }
}

impl<S: ReplicaStore> Master<S> {
    fn derived_space(&self, name: &str) -> Result<Subspace, StoreError> {
        let mut derives = self.inner().derives().iter();
        let found = derives.find(|(derive, _)| derive.name() == name);
        found.map(|(_, target)| space_in(target)).ok_or_else(|| unknown(name))
    }
}

#[async_trait]
impl<S: ReplicaStore> DerivedReader for Master<S> {
    async fn get_derived(&self, name: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.get(self.derived_space(name)?.key(key)).await
    }

    async fn scan_derived(&self, name: &str, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        page(&self.derived_space(name)?, range, |range| self.scan(range, options)).await
    }

    async fn derived_at(&self) -> Result<Option<Position>, StoreError> {
        position_of(self.store()).await
    }
}

macro_rules! through {
    ([$($generics:tt)*] $reader:ty, $store:ident) => {
        #[async_trait]
        impl<$($generics)*> DerivedReader for $reader {
            async fn get_derived(&self, name: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
                self.$store().get_derived(name, key).await
            }

            async fn scan_derived(
                &self,
                name: &str,
                range: KeyRange,
                options: ScanOptions,
            ) -> Result<Page, StoreError> {
                self.$store().scan_derived(name, range, options).await
            }

            async fn derived_at(&self) -> Result<Option<Position>, StoreError> {
                self.$store().derived_at().await
            }
        }
    };
}

through!([S: ReplicaStore] Slave<DerivedStore<S>>, store);
through!([S: ReplicaStore] Centre<DerivedStore<S>>, store);
through!([T: DerivedReader + ?Sized] Arc<T>, as_ref);

/// What a master has derived, read where it came with the data: from a slave of that master, from the part of a centre that
/// is a link's, over a connection.
#[derive(Debug)]
pub struct InData<'a, R: ?Sized> {
    reader: &'a R,
    target: Subspace,
}

impl<'a, R: DataReader + ?Sized> InData<'a, R> {
    /// Reads from `reader` what its master derives into `target`. In a centre the keys begin with the prefix of the link:
    /// `Subspace::raw(prefix.key(target.prefix()))`.
    pub fn new(reader: &'a R, target: Subspace) -> Self {
        Self { reader, target }
    }
}

#[async_trait]
impl<R: DataReader + ?Sized> DerivedReader for InData<'_, R> {
    async fn get_derived(&self, _name: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.reader.get_data(&space_in(&self.target).key(key)).await
    }

    async fn scan_derived(&self, _name: &str, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        page(&space_in(&self.target), range, |range| self.reader.scan_data(range, options)).await
    }

    async fn derived_at(&self) -> Result<Option<Position>, StoreError> {
        Ok(None)
    }
}

/// What a [`DerivedStore`] has derived, read in the store inside: when nobody has it open, or by another process, where the
/// store can be read by two. What is not derived to the end is not there, and neither is what somebody has left alone who
/// opened the store to write.
#[derive(Debug)]
pub struct InStore<'a, S> {
    store: &'a S,
}

impl<'a, S: ReplicaStore> InStore<'a, S> {
    /// Reads in `store`.
    pub fn new(store: &'a S) -> Self {
        Self { store }
    }

    /// The names of all that is there, in order.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn names(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.versions().await?.into_iter().map(|(name, _)| name).collect())
    }

    /// As [`names`](Self::names), each with the version that it was derived by.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn versions(&self) -> Result<Vec<(String, u32)>, StoreError> {
        let mut versions = Vec::new();
        for (_, value) in all(self.store, KeyRange::prefix(MARKS)).await? {
            let mark = DeriveMark::from_bytes(&value)?;
            versions.extend(Some(mark).filter(is_whole).map(|mark| (mark.name, mark.version)));
        }
        Ok(versions)
    }

    async fn space(&self, name: &str) -> Result<Subspace, StoreError> {
        let key = [MARKS, name.as_bytes()].concat();
        let mark = stored::read::<S, DeriveMark>(self.store, &key).await?;
        mark.filter(is_whole).map(|_| space_in(&entries_of(name))).ok_or_else(|| unknown(name))
    }
}

fn is_whole(mark: &DeriveMark) -> bool {
    mark.state == DeriveState::Complete
}

#[async_trait]
impl<S: ReplicaStore> DerivedReader for InStore<'_, S> {
    async fn get_derived(&self, name: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self.store.get(Keyspace::Meta, &self.space(name).await?.key(key)).await?;
        // Whoever derives anew removes the mark first: what was read meanwhile may be half of it.
        self.space(name).await?;
        Ok(value)
    }

    async fn scan_derived(&self, name: &str, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let read = |range| self.store.scan(Keyspace::Meta, range, options);
        let page = page(&self.space(name).await?, range, read).await?;
        self.space(name).await?;
        Ok(page)
    }

    async fn derived_at(&self) -> Result<Option<Position>, StoreError> {
        position_of(self.store).await
    }
}
