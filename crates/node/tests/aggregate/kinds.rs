//! One aggregate of each kind, and what each comes to, computed from the data alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use replikv_core::{Batch, KeyRange, ReplicaStore, Subspace};
use replikv_node::aggregate::{Aggregate, Combine, Count, Emit, FloatSum, Histogram, Max, Min, Sum, TopK};
use replikv_node::{DeriveAbort, DerivedReader, DerivedStore, MasterConfig};

/// A user's own: what there is, in the order of keys, as text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Joined;

impl Combine for Joined {
    type Value = i64;
    type Summary = String;

    fn combine(&self, values: &mut dyn Iterator<Item = i64>) -> Result<String, DeriveAbort> {
        Ok(values.map(|value| value.to_string()).collect::<Vec<_>>().join(","))
    }
}

/// Which groups an entry contributes to, and what. Keys with `~` are what masters derive.
pub(crate) fn contributions(key: &[u8], value: &[u8]) -> Vec<(u8, i64)> {
    let own = key.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let Some(&first) = own.first().filter(|_| !key.contains(&b'~')) else { return Vec::new() };
    let number = value.iter().take(8).fold(0i64, |number, &byte| number * 7 + i64::from(byte) - 100);
    match number.rem_euclid(5) {
        0 => Vec::new(),
        1 => vec![(first, number), (b'A' + number.rem_euclid(3) as u8, number / 2)],
        2 => vec![(first, number), (first, -number)],
        _ => vec![(first, number)],
    }
}

fn float(value: i64) -> f64 {
    value as f64 * 0.1
}

fn map<V>(of: fn(i64) -> V) -> impl Fn(&[u8], &[u8], &mut Emit<u8, V>) -> Result<(), DeriveAbort> + Send + Sync {
    move |key, value, emit| {
        contributions(key, value).into_iter().for_each(|(group, number)| emit.to(group, of(number)));
        Ok(())
    }
}

const BOUNDS: [i64; 4] = [-500, -10, 0, 700];

#[derive(Debug, Clone)]
pub(crate) struct Kinds {
    pub(crate) sum: Aggregate<u8, Sum>,
    pub(crate) count: Aggregate<u8, Count>,
    pub(crate) min: Aggregate<u8, Min<i64>>,
    pub(crate) max: Aggregate<u8, Max<i64>>,
    pub(crate) top: Aggregate<u8, TopK<i64>>,
    pub(crate) histogram: Aggregate<u8, Histogram<i64>>,
    pub(crate) float: Aggregate<u8, FloatSum>,
    pub(crate) joined: Aggregate<u8, Joined>,
}

impl Kinds {
    pub(crate) fn new() -> Self {
        Self::version(1)
    }

    pub(crate) fn version(version: u32) -> Self {
        Self {
            sum: Aggregate::new("sum", version, Sum, map(i128::from)),
            count: Aggregate::new("count", version, Count, map(|_| ())),
            min: Aggregate::new("min", version, Min::default(), map(|number| number)),
            max: Aggregate::new("max", version, Max::default(), map(|number| number)),
            top: Aggregate::new("top", version, TopK::new(3), map(|number| number)),
            histogram: Aggregate::new("histogram", version, Histogram::new(BOUNDS), map(|number| number)),
            float: Aggregate::new("float", version, FloatSum, map(float)),
            joined: Aggregate::new("joined", version, Joined, map(|number| number)),
        }
    }

    pub(crate) async fn on<S: ReplicaStore>(&self, store: S) -> DerivedStore<S> {
        let builder = DerivedStore::builder(store).derive(self.sum.clone()).derive(self.count.clone());
        let builder = builder.derive(self.min.clone()).derive(self.max.clone()).derive(self.top.clone());
        let builder = builder.derive(self.histogram.clone()).derive(self.float.clone()).derive(self.joined.clone());
        builder.open().await.unwrap()
    }

    pub(crate) fn config(&self, config: MasterConfig) -> MasterConfig {
        let config = config.derive(target("sum"), self.sum.clone()).derive(target("count"), self.count.clone());
        let config = config.derive(target("min"), self.min.clone()).derive(target("max"), self.max.clone());
        let config = config.derive(target("top"), self.top.clone());
        let config = config.derive(target("histogram"), self.histogram.clone());
        config.derive(target("float"), self.float.clone()).derive(target("joined"), self.joined.clone())
    }

    /// Panics unless each aggregate is what `data` comes to.
    pub(crate) async fn assert_of(&self, reader: &impl DerivedReader, data: &[(Bytes, Bytes)], when: &str) {
        let groups = groups(data);
        let wanted =
            |of: fn(&[i64]) -> String| groups.iter().map(|(group, values)| (*group, of(values))).collect::<Vec<_>>();
        macro_rules! check {
            ($($kind:ident: $of:expr),* $(,)?) => {$(
                let found = self.$kind.all(reader).await.unwrap().value;
                let found: Vec<_> = found.into_iter().map(|(group, summary)| (group, format!("{summary:?}"))).collect();
                assert_eq!(found, wanted($of), "{} {when}", stringify!($kind));
            )*};
        }
        check! {
            sum: |all| format!("{:?}", all.iter().map(|&value| i128::from(value)).sum::<i128>()),
            count: |all| format!("{:?}", all.len()),
            min: |all| format!("{:?}", all.iter().min().unwrap()),
            max: |all| format!("{:?}", all.iter().max().unwrap()),
            top: |all| {
                let mut all = all.to_vec();
                all.sort_by(|a, b| b.cmp(a));
                format!("{:?}", &all[..all.len().min(3)])
            },
            histogram: |all| {
                let of = |value: &i64| BOUNDS.iter().filter(|bound| *bound <= value).count();
                format!("{:?}", (0..5).map(|at| all.iter().filter(|value| of(value) == at).count()).collect::<Vec<_>>())
            },
            // As many bits as there are.
            float: |all| format!("{:?}", all.iter().fold(0.0, |sum, &value| sum + float(value))),
            joined: |all| format!("{:?}", all.iter().map(i64::to_string).collect::<Vec<_>>().join(",")),
        }
    }
}

/// Where a master puts what it derives.
pub(crate) fn target(name: &str) -> Subspace {
    Subspace::raw(format!("~/{name}/"))
}

/// All values of each group, in the order of keys.
pub(crate) fn groups(data: &[(Bytes, Bytes)]) -> BTreeMap<u8, Vec<i64>> {
    let mut groups: BTreeMap<u8, Vec<i64>> = BTreeMap::new();
    for (key, value) in data {
        for (group, number) in contributions(key, value) {
            groups.entry(group).or_default().push(number);
        }
    }
    groups
}

/// Puts, overwrites, deletes and range deletes of some hundred keys, below what is derived.
pub(crate) fn batch(rng: &mut fastrand::Rng) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..rng.usize(1..6) {
        let key = [b'a' + rng.u8(..6), b'a' + rng.u8(..20)];
        batch = match rng.u8(..12) {
            0 => {
                let end = [key[0], key[1] + rng.u8(..6)];
                batch.delete_range(KeyRange::from_bounds(key..end))
            }
            1 if rng.u8(..8) == 0 => batch.delete_range(KeyRange::from_bounds(.."~")),
            1..=3 => batch.delete(key),
            _ => batch.put(key, value(rng)),
        };
    }
    batch
}

pub(crate) fn value(rng: &mut fastrand::Rng) -> Vec<u8> {
    (0..rng.usize(1..4)).map(|_| rng.u8(90..112)).collect()
}
