//! How contributions become one summary.

use std::marker::PhantomData;

use replikv_proto::DeriveAbort;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a summary is after a value came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// What it would be if all were combined anew.
    Done,
    /// Nobody can tell: all are combined anew.
    Recompute,
}

/// How the values of a group become one summary.
///
/// [`combine`](Self::combine) says what it is. [`add`](Self::add) and [`remove`](Self::remove) are shortcuts, and must come
/// to the very same; where they cannot tell, the group is combined anew from its values, which are kept for that.
pub trait Combine: Send + Sync + 'static {
    /// What an entry contributes.
    type Value: Serialize + DeserializeOwned + Send;
    /// What comes out.
    type Summary: Serialize + DeserializeOwned + Send;

    /// Whether values are kept. Without, nothing is stored but the summary, and `add` and `remove` must always be able to
    /// tell.
    const KEEPS: bool = true;

    /// The summary of `values`, of which there is at least one, in the order of the keys of their entries.
    ///
    /// # Errors
    /// [`DeriveAbort::refuse`]: then so is the batch.
    fn combine(&self, values: &mut dyn Iterator<Item = Self::Value>) -> Result<Self::Summary, DeriveAbort>;

    /// A value came, anywhere in the order. Default: combine anew.
    ///
    /// # Errors
    /// As [`combine`](Self::combine).
    fn add(&self, summary: &mut Self::Summary, value: &Self::Value) -> Result<Update, DeriveAbort> {
        let _ = (summary, value);
        Ok(Update::Recompute)
    }

    /// A value went that was one of several. Default: combine anew.
    ///
    /// # Errors
    /// As [`combine`](Self::combine).
    fn remove(&self, summary: &mut Self::Summary, value: &Self::Value) -> Result<Update, DeriveAbort> {
        let _ = (summary, value);
        Ok(Update::Recompute)
    }
}

/// A combine whose summaries can be combined again, as a centre does with those of its masters: to the same as if all
/// values had been combined in one place.
pub trait Merge: Combine {
    /// Takes another summary in.
    ///
    /// # Errors
    /// As [`Combine::combine`].
    fn merge(&self, summary: &mut Self::Summary, other: &Self::Summary) -> Result<(), DeriveAbort>;

    /// Takes a summary out that was taken in. Default: combine anew.
    ///
    /// # Errors
    /// As [`Combine::combine`].
    fn unmerge(&self, summary: &mut Self::Summary, other: &Self::Summary) -> Result<Update, DeriveAbort> {
        let _ = (summary, other);
        Ok(Update::Recompute)
    }
}

fn overflow() -> DeriveAbort {
    DeriveAbort::refuse("the sum does not fit into 128 bits")
}

fn wrong() -> DeriveAbort {
    DeriveAbort::refuse("what is to be taken out was never taken in: the map does not always give the same")
}

/// The sum of whole numbers. One step for each change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum;

impl Combine for Sum {
    type Value = i128;
    type Summary = i128;
    const KEEPS: bool = false;

    fn combine(&self, values: &mut dyn Iterator<Item = i128>) -> Result<i128, DeriveAbort> {
        let mut sum = 0i128;
        for value in values {
            sum = sum.checked_add(value).ok_or_else(overflow)?;
        }
        Ok(sum)
    }

    fn add(&self, summary: &mut i128, value: &i128) -> Result<Update, DeriveAbort> {
        *summary = summary.checked_add(*value).ok_or_else(overflow)?;
        Ok(Update::Done)
    }

    fn remove(&self, summary: &mut i128, value: &i128) -> Result<Update, DeriveAbort> {
        *summary = summary.checked_sub(*value).ok_or_else(overflow)?;
        Ok(Update::Done)
    }
}

impl Merge for Sum {
    fn merge(&self, summary: &mut i128, other: &i128) -> Result<(), DeriveAbort> {
        self.add(summary, other).map(drop)
    }

    fn unmerge(&self, summary: &mut i128, other: &i128) -> Result<Update, DeriveAbort> {
        self.remove(summary, other)
    }
}

/// The sum of floating point numbers, always added in the order of the keys of their entries, so that the same entries give
/// the same bits. Each change of a group adds all of it anew.
#[derive(Debug, Clone, Copy, Default)]
pub struct FloatSum;

impl Combine for FloatSum {
    type Value = f64;
    type Summary = f64;

    fn combine(&self, values: &mut dyn Iterator<Item = f64>) -> Result<f64, DeriveAbort> {
        Ok(values.fold(0.0, |sum, value| sum + value))
    }
}

/// How many contributions there are. One step for each change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count;

impl Combine for Count {
    type Value = ();
    type Summary = u64;
    const KEEPS: bool = false;

    fn combine(&self, values: &mut dyn Iterator<Item = ()>) -> Result<u64, DeriveAbort> {
        Ok(values.fold(0, |count, ()| count + 1))
    }

    fn add(&self, summary: &mut u64, (): &()) -> Result<Update, DeriveAbort> {
        *summary = summary.checked_add(1).ok_or_else(overflow)?;
        Ok(Update::Done)
    }

    fn remove(&self, summary: &mut u64, (): &()) -> Result<Update, DeriveAbort> {
        *summary = summary.checked_sub(1).ok_or_else(wrong)?;
        Ok(Update::Done)
    }
}

impl Merge for Count {
    fn merge(&self, summary: &mut u64, other: &u64) -> Result<(), DeriveAbort> {
        *summary = summary.checked_add(*other).ok_or_else(overflow)?;
        Ok(())
    }

    fn unmerge(&self, summary: &mut u64, other: &u64) -> Result<Update, DeriveAbort> {
        *summary = summary.checked_sub(*other).ok_or_else(wrong)?;
        Ok(Update::Done)
    }
}

macro_rules! extreme {
    ($(#[$doc:meta])* $name:ident, $better:tt) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<V>(PhantomData<fn() -> V>);

        impl<V> Clone for $name<V> {
            fn clone(&self) -> Self {
                Self(PhantomData)
            }
        }

        impl<V> Default for $name<V> {
            fn default() -> Self {
                Self(PhantomData)
            }
        }

        impl<V: Ord + Clone + Serialize + DeserializeOwned + Send + 'static> Combine for $name<V> {
            type Value = V;
            type Summary = V;

            fn combine(&self, values: &mut dyn Iterator<Item = V>) -> Result<V, DeriveAbort> {
                let best = values.reduce(|best, value| if value $better best { value } else { best });
                best.ok_or_else(|| DeriveAbort::refuse("there is nothing to combine"))
            }

            fn add(&self, summary: &mut V, value: &V) -> Result<Update, DeriveAbort> {
                if value $better summary {
                    *summary = value.clone();
                }
                Ok(Update::Done)
            }

            fn remove(&self, summary: &mut V, value: &V) -> Result<Update, DeriveAbort> {
                Ok(if value == summary { Update::Recompute } else { Update::Done })
            }
        }

        impl<V: Ord + Clone + Serialize + DeserializeOwned + Send + 'static> Merge for $name<V> {
            fn merge(&self, summary: &mut V, other: &V) -> Result<(), DeriveAbort> {
                self.add(summary, other).map(drop)
            }

            fn unmerge(&self, summary: &mut V, other: &V) -> Result<Update, DeriveAbort> {
                self.remove(summary, other)
            }
        }
    };
}

extreme!(
    /// The least value. One step, unless the least one goes: then the group is looked through.
    Min, <
);
extreme!(
    /// The greatest value. One step, unless the greatest one goes: then the group is looked through.
    Max, >
);

/// The `k` greatest values, greatest first; equal ones count each. One step, unless one of them goes while there are others:
/// then the group is looked through.
#[derive(Debug)]
pub struct TopK<V> {
    k: usize,
    values: PhantomData<fn() -> V>,
}

impl<V> Clone for TopK<V> {
    fn clone(&self) -> Self {
        Self { k: self.k, values: PhantomData }
    }
}

impl<V: Ord> TopK<V> {
    /// The `k` greatest. 0 counts as 1.
    pub fn new(k: usize) -> Self {
        Self { k: k.max(1), values: PhantomData }
    }

    fn insert(&self, top: &mut Vec<V>, value: V) {
        let at = top.partition_point(|held| *held >= value);
        if at < self.k {
            top.insert(at, value);
            top.truncate(self.k);
        }
    }
}

impl<V: Ord + Clone + Serialize + DeserializeOwned + Send + 'static> Combine for TopK<V> {
    type Value = V;
    type Summary = Vec<V>;

    fn combine(&self, values: &mut dyn Iterator<Item = V>) -> Result<Vec<V>, DeriveAbort> {
        let mut top = Vec::new();
        values.for_each(|value| self.insert(&mut top, value));
        Ok(top)
    }

    fn add(&self, summary: &mut Vec<V>, value: &V) -> Result<Update, DeriveAbort> {
        self.insert(summary, value.clone());
        Ok(Update::Done)
    }

    fn remove(&self, summary: &mut Vec<V>, value: &V) -> Result<Update, DeriveAbort> {
        match summary.iter().position(|held| held == value) {
            None => Ok(Update::Done),
            // There are no others.
            Some(at) if summary.len() < self.k => {
                summary.remove(at);
                Ok(Update::Done)
            }
            Some(_) => Ok(Update::Recompute),
        }
    }
}

impl<V: Ord + Clone + Serialize + DeserializeOwned + Send + 'static> Merge for TopK<V> {
    fn merge(&self, summary: &mut Vec<V>, other: &Vec<V>) -> Result<(), DeriveAbort> {
        other.iter().for_each(|value| self.insert(summary, value.clone()));
        Ok(())
    }
}

/// How many values lie between bounds: below the first, from each up to the next, and from the last on. One step for each
/// change.
#[derive(Debug, Clone)]
pub struct Histogram<V> {
    bounds: Vec<V>,
}

impl<V: PartialOrd> Histogram<V> {
    /// With these bounds, in ascending order. Other bounds are another version of the aggregate.
    pub fn new(bounds: impl IntoIterator<Item = V>) -> Self {
        Self { bounds: bounds.into_iter().collect() }
    }

    fn count<'a>(&self, summary: &'a mut [u64], value: &V) -> Result<&'a mut u64, DeriveAbort> {
        let at = self.bounds.iter().take_while(|bound| *bound <= value).count();
        summary.get_mut(at).ok_or_else(|| DeriveAbort::refuse("the histogram has other bounds than its version says"))
    }
}

impl<V: PartialOrd + Serialize + DeserializeOwned + Send + Sync + 'static> Combine for Histogram<V> {
    type Value = V;
    type Summary = Vec<u64>;
    const KEEPS: bool = false;

    fn combine(&self, values: &mut dyn Iterator<Item = V>) -> Result<Vec<u64>, DeriveAbort> {
        let mut summary = vec![0; self.bounds.len() + 1];
        for value in values {
            *self.count(&mut summary, &value)? += 1;
        }
        Ok(summary)
    }

    fn add(&self, summary: &mut Vec<u64>, value: &V) -> Result<Update, DeriveAbort> {
        *self.count(summary, value)? += 1;
        Ok(Update::Done)
    }

    fn remove(&self, summary: &mut Vec<u64>, value: &V) -> Result<Update, DeriveAbort> {
        let count = self.count(summary, value)?;
        *count = count.checked_sub(1).ok_or_else(wrong)?;
        Ok(Update::Done)
    }
}

impl<V: PartialOrd + Serialize + DeserializeOwned + Send + Sync + 'static> Merge for Histogram<V> {
    fn merge(&self, summary: &mut Vec<u64>, other: &Vec<u64>) -> Result<(), DeriveAbort> {
        same_bounds(summary, other)?;
        summary.iter_mut().zip(other).for_each(|(count, more)| *count += more);
        Ok(())
    }

    fn unmerge(&self, summary: &mut Vec<u64>, other: &Vec<u64>) -> Result<Update, DeriveAbort> {
        same_bounds(summary, other)?;
        for (count, less) in summary.iter_mut().zip(other) {
            *count = count.checked_sub(*less).ok_or_else(wrong)?;
        }
        Ok(Update::Done)
    }
}

fn same_bounds(one: &[u64], other: &[u64]) -> Result<(), DeriveAbort> {
    if one.len() == other.len() {
        return Ok(());
    }
    Err(DeriveAbort::refuse("two histograms of different bounds"))
}

/// Combines summaries that others have made by `C`.
#[derive(Debug, Clone, Default)]
pub struct Again<C>(C);

impl<C: Merge> Again<C> {
    /// Combines what `combine` has combined.
    pub fn new(combine: C) -> Self {
        Self(combine)
    }
}

impl<C: Merge> Combine for Again<C> {
    type Value = C::Summary;
    type Summary = C::Summary;
    const KEEPS: bool = C::KEEPS;

    fn combine(&self, values: &mut dyn Iterator<Item = C::Summary>) -> Result<C::Summary, DeriveAbort> {
        let mut summary = values.next().ok_or_else(|| DeriveAbort::refuse("there is nothing to combine"))?;
        for value in values {
            self.0.merge(&mut summary, &value)?;
        }
        Ok(summary)
    }

    fn add(&self, summary: &mut C::Summary, value: &C::Summary) -> Result<Update, DeriveAbort> {
        self.0.merge(summary, value).map(|()| Update::Done)
    }

    fn remove(&self, summary: &mut C::Summary, value: &C::Summary) -> Result<Update, DeriveAbort> {
        self.0.unmerge(summary, value)
    }
}
