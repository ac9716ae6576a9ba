//! Aggregates: what entries contribute to groups, summed up in the same writes.

mod combine;
mod derive;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use replikv_core::KeyRange;
use replikv_core::table::TableKey;
use replikv_proto::DeriveAbort;

pub use self::combine::{Again, Combine, Count, FloatSum, Histogram, Max, Merge, Min, Sum, TopK, Update};
pub use self::read::{AggregateError, Aggregated};

/// A summary for each group: a map from entries to what they contribute to which group, and a way to combine what a group
/// gets. The job that map-reduce does for level-master.
///
/// It is a [`Derive`](replikv_proto::Derive): give a clone of it to [`MasterConfig::derive`](crate::MasterConfig::derive)
/// or to a [`DerivedStore`](crate::DerivedStore), and read with it. Whatever way an entry comes, changes or goes, what it
/// contributed is taken out exactly, in the same transaction: a summary is never of another state than the data beside it.
///
/// Groups are keys like those of a [`Table`](replikv_core::Table): they sort as their values do. A group to which nothing
/// contributes is not there.
///
/// # Cost
/// For each entry that changes: the map of its old and its new value, and one read and one write for each group that gets
/// something else than before. [`Sum`], [`Count`] and [`Histogram`] store nothing else. The others keep, for each entry and
/// group, what it contributed, under a key that holds group and key (both must fit into a key of the store, with 12 bytes
/// more); where the summary must be combined anew they read all that the group has, and hold it in memory.
///
/// ```
/// use replikv_node::aggregate::{Aggregate, Sum};
/// // A stock of goods: keys are `warehouse/article`, values are pieces.
/// let pieces: Aggregate<String, Sum> = Aggregate::new("pieces", 1, Sum, |key, value, emit| {
///     let article = String::from_utf8_lossy(key).rsplit('/').next().unwrap_or_default().to_owned();
///     let pieces = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
///     emit.to(article, pieces.unwrap_or(0));
///     Ok(())
/// });
/// ```
pub struct Aggregate<G, C: Combine> {
    shared: Arc<Shared<G, C>>,
}

struct Shared<G, C: Combine> {
    name: String,
    version: u32,
    source: KeyRange,
    combine: C,
    map: Box<Map<G, C::Value>>,
}

type Map<G, V> = dyn Fn(&[u8], &[u8], &mut Emit<G, V>) -> Result<(), DeriveAbort> + Send + Sync;

impl<G, C: Combine> Clone for Aggregate<G, C> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<G, C: Combine> std::fmt::Debug for Aggregate<G, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aggregate").field("name", &self.shared.name).field("version", &self.shared.version).finish()
    }
}

impl<G: TableKey + 'static, C: Combine> Aggregate<G, C> {
    /// An aggregate of all entries. `map` says what an entry, key and value, contributes to which groups; it must always say
    /// the same of the same entry. `version` counts up whenever it says something else than before, or is combined
    /// otherwise.
    pub fn new(
        name: impl Into<String>,
        version: u32,
        combine: C,
        map: impl Fn(&[u8], &[u8], &mut Emit<G, C::Value>) -> Result<(), DeriveAbort> + Send + Sync + 'static,
    ) -> Self {
        Self::of(KeyRange::all(), name, version, combine, map)
    }

    /// As [`new`](Self::new), of the entries of `source`; others cost nothing.
    pub fn of(
        source: KeyRange,
        name: impl Into<String>,
        version: u32,
        combine: C,
        map: impl Fn(&[u8], &[u8], &mut Emit<G, C::Value>) -> Result<(), DeriveAbort> + Send + Sync + 'static,
    ) -> Self {
        let (name, map) = (name.into(), Box::new(map));
        Self { shared: Arc::new(Shared { name, version, source, combine, map }) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }
}

impl<G: TableKey + Send + 'static, C: Merge + Clone> Aggregate<G, C> {
    /// The aggregate of what masters have aggregated: over their parts of a centre, group by group, to the same as if all
    /// their entries had been aggregated in one place.
    ///
    /// `inside` takes, from a key of the centre, what comes after the target that the master derives this aggregate into; it
    /// answers `None` for any other key.
    pub fn again(
        &self,
        name: impl Into<String>,
        version: u32,
        inside: impl for<'k> Fn(&'k [u8]) -> Option<&'k [u8]> + Send + Sync + 'static,
    ) -> Aggregate<G, Again<C>> {
        let parts = self.clone();
        Aggregate::new(name, version, Again::new(self.shared.combine.clone()), move |key, value, emit| {
            let entry = inside(key).and_then(|key| {
                replikv_proto::space_in(&replikv_core::Subspace::root()).strip(key).map(<[u8]>::to_vec)
            });
            if let Some(key) = entry
                && let Some((group, summary)) = parts.entry(&key, value)?
            {
                emit.to(group, summary);
            }
            Ok(())
        })
    }
}

/// Takes what an entry contributes.
#[derive(Debug)]
pub struct Emit<G, V> {
    groups: BTreeMap<Bytes, Vec<V>>,
    group: PhantomData<fn(G)>,
}

impl<G: TableKey, V> Emit<G, V> {
    fn new() -> Self {
        Self { groups: BTreeMap::new(), group: PhantomData }
    }

    /// Contributes `value` to `group`. An entry may contribute to any number of groups, and to one several times.
    #[expect(clippy::needless_pass_by_value, reason = "a group is made for this call: no map keeps one")]
    pub fn to(&mut self, group: G, value: V) {
        let mut key = Vec::new();
        group.encode(&mut key);
        self.groups.entry(key.into()).or_default().push(value);
    }
}
