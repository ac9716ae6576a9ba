//! Deriving: entries that follow from other entries, written in the same atomic write as these.
//!
//! A [`Derive`] sees what a write changes, key by key, and says what follows from that. A master asks it about each
//! batch, and what follows is part of the batch; a store that derives for itself asks about each write set. There several
//! batches are one, and ranges are replaced by what was copied or compared: what is derived must be a function of the
//! entries that there are, whichever way they came.

mod layers;
mod run;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use replikv_core::{KeyRange, Subspace};
use serde::{Deserialize, Serialize};

pub(crate) use self::layers::{Known, Overlay};
pub use self::run::{DeriveRun, Stopped};
pub(crate) use self::run::{changes_of, derive_all, encode};
use crate::layout::Stored;

/// One entry that a write changes: never to what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its key.
    pub key: Bytes,
    /// Its value before the write; `None` if it was not there.
    pub old: Option<Bytes>,
    /// Its value after the write; `None` if it goes.
    pub new: Option<Bytes>,
}

/// What follows from entries.
///
/// # Contract
/// After any sequence of changes, what is derived depends on nothing but the entries that there are then: not on their
/// order, nor on how many writes they came in. Several writes may be seen as one, one write may be seen in parts, and an
/// entry may come again after it went. A `derive` that looks at nothing but the changes and its own entries, and undoes for
/// `old` what it did for `new`, keeps that. It may run more than once for the same changes; it must do nothing but look and
/// decide.
pub trait Derive: Send + Sync + 'static {
    /// Its name: what it has derived is stored under it. 1 to 64 bytes.
    fn name(&self) -> &str;

    /// Counts up whenever it derives something else than before from the same entries: what is stored is then derived
    /// anew when the store is opened.
    fn version(&self) -> u32;

    /// The entries that it is asked about. Default: all.
    fn source(&self) -> KeyRange {
        KeyRange::all()
    }

    /// Says what follows from `changes`, which are in the order of their keys, one of each. `view` shows what is derived so
    /// far.
    ///
    /// # Errors
    /// What `view` returns, to be passed on with `?`: what was asked for is read first then, and this runs again.
    /// [`DeriveAbort::refuse`]: on a master the batch is refused; a slave stops following, since it can neither leave out
    /// what its master wrote nor derive from it.
    fn derive(&self, changes: &[Change], view: &DeriveView<'_>, out: &mut Derived) -> Result<(), DeriveAbort>;
}

/// Why nothing was derived.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeriveAbort {
    /// Something must be read first; it runs again then. Pass it on with `?`.
    Unread,
    /// It cannot be derived.
    Refused(String),
}

impl DeriveAbort {
    /// Refuses; `reason` reaches whoever wrote, or the status of the slave.
    pub fn refuse(reason: impl Into<String>) -> Self {
        Self::Refused(reason.into())
    }
}

impl std::fmt::Display for DeriveAbort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unread => f.write_str("something must be read first"),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for DeriveAbort {}

/// What is to be read before it can be derived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    /// These keys.
    pub keys: BTreeSet<Bytes>,
    /// All of these ranges.
    pub ranges: Vec<KeyRange>,
}

impl Wants {
    /// True if nothing is.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.is_empty()
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.keys.extend(other.keys);
        for range in other.ranges {
            if !self.ranges.contains(&range) {
                self.ranges.push(range);
            }
        }
    }
}

/// What one [`Derive`] has derived so far. Keys are its own: others see nothing of them.
#[derive(Debug)]
pub struct DeriveView<'a> {
    overlay: &'a Overlay,
    known: &'a Known,
    space: &'a Subspace,
    wants: RefCell<Wants>,
}

impl<'a> DeriveView<'a> {
    pub(crate) fn new(overlay: &'a Overlay, known: &'a Known, space: &'a Subspace) -> Self {
        Self { overlay, known, space, wants: RefCell::default() }
    }

    /// Says at once what will be read, so that one trip to the store brings it all.
    ///
    /// # Errors
    /// [`DeriveAbort::Unread`] unless all of it is there.
    pub fn fetch<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k [u8]>,
        ranges: impl IntoIterator<Item = KeyRange>,
    ) -> Result<(), DeriveAbort> {
        let mut all = true;
        for key in keys {
            all &= self.get(key).is_ok();
        }
        for range in ranges {
            let range = self.space.range_of(&range);
            if !self.known.covers(&range) {
                self.wants.borrow_mut().ranges.push(range);
                all = false;
            }
        }
        if all { Ok(()) } else { Err(DeriveAbort::Unread) }
    }

    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// [`DeriveAbort::Unread`] if the key was not read yet: pass it on with `?`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DeriveAbort> {
        let key = self.space.key(key);
        if let Some(change) = self.overlay.get(&key) {
            return Ok(change);
        }
        self.known.get(&key).ok_or_else(|| {
            self.wants.borrow_mut().keys.insert(key);
            DeriveAbort::Unread
        })
    }

    /// All entries of `range`, in order. They are held in memory.
    ///
    /// # Errors
    /// [`DeriveAbort::Unread`] if the range was not read yet: pass it on with `?`.
    pub fn scan(&self, range: &KeyRange) -> Result<Vec<(Bytes, Bytes)>, DeriveAbort> {
        let range = self.space.range_of(range);
        let Some(entries) = self.known.under(&range, self.overlay) else {
            self.wants.borrow_mut().ranges.push(range);
            return Err(DeriveAbort::Unread);
        };
        let prefix = self.space.prefix().len();
        Ok(entries.into_iter().map(|(key, value)| (key.slice(prefix..), value)).collect())
    }

    pub(crate) fn into_wants(self) -> Wants {
        self.wants.into_inner()
    }
}

/// What a [`Derive`] derives: of each of its keys the last word counts.
#[derive(Debug, Default)]
pub struct Derived {
    entries: BTreeMap<Bytes, Option<Bytes>>,
}

impl Derived {
    /// Sets `key` to `value`.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.entries.insert(key.into(), Some(value.into()));
    }

    /// Removes `key`, if it is there.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.entries.insert(key.into(), None);
    }

    pub(crate) fn into_entries(self) -> BTreeMap<Bytes, Option<Bytes>> {
        self.entries
    }
}

/// Derives, each with where its entries go.
#[derive(Clone, Default)]
pub struct Derives(Vec<Placed>);

/// A derive, and where its entries go.
#[derive(Clone)]
pub(crate) struct Placed {
    pub(crate) derive: Arc<dyn Derive>,
    pub(crate) target: Subspace,
    pub(crate) space: Subspace,
}

impl Derives {
    /// Adds one whose entries go to `target`.
    pub fn push(&mut self, target: Subspace, derive: Arc<dyn Derive>) {
        let space = space_in(&target);
        self.0.push(Placed { derive, target, space });
    }

    /// Each, with where its entries go.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<dyn Derive>, &Subspace)> + '_ {
        self.0.iter().map(|placed| (&placed.derive, &placed.target))
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one whose target meets `range`.
    pub fn meets(&self, range: &KeyRange) -> Option<(&Arc<dyn Derive>, &Subspace)> {
        self.iter().find(|(_, target)| !target.range().intersect(range).is_empty())
    }

    /// Sees that names and targets are apart.
    ///
    /// # Errors
    /// The name of one, and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        for (index, placed) in self.0.iter().enumerate() {
            let name = placed.derive.name();
            let refuse = |reason: String| Err((name.to_owned(), reason));
            if name.is_empty() || name.len() > MAX_NAME {
                return refuse(format!("its name does not have 1 to {MAX_NAME} bytes"));
            }
            if placed.target.prefix().is_empty() {
                return refuse("its target is the whole key space".into());
            }
            for other in &self.0[..index] {
                if other.derive.name() == name {
                    return refuse("another one has the same name".into());
                }
                if other.target.overlaps(&placed.target) {
                    return refuse(format!("its target overlaps that of {}", other.derive.name()));
                }
            }
        }
        Ok(())
    }

    /// The only one named `name`.
    #[must_use]
    pub fn only(&self, name: &str) -> Self {
        Self(self.0.iter().filter(|placed| placed.derive.name() == name).cloned().collect())
    }

    pub(crate) fn placed(&self) -> &[Placed] {
        &self.0
    }
}

impl std::fmt::Debug for Derives {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|placed| placed.derive.name())).finish()
    }
}

/// The longest name of a derive, in bytes.
const MAX_NAME: usize = 64;

/// Where what is derived lies in a target.
pub fn space_in(target: &Subspace) -> Subspace {
    Subspace::raw(target.key(b"d"))
}

/// What is said of a target: which derive has filled it, and whether it is through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeriveMark {
    /// The name.
    pub name: String,
    /// The version that derived it.
    pub version: u32,
    /// Whether what is derived is all that follows from the entries.
    pub state: DeriveState,
    /// On a master: the number and the nonce of the epoch in which that is so.
    pub epoch: (u64, u64),
}

/// Whether what is derived can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeriveState {
    /// It is being derived for the first time, or anew.
    Building,
    /// It is what follows from the entries.
    Complete,
    /// Somebody has written without deriving: it is derived anew.
    Stale,
}

impl DeriveMark {
    /// Its key in a target.
    pub fn key(target: &Subspace) -> Bytes {
        target.key(b"m")
    }
}

impl Stored for DeriveMark {
    const WHAT: &'static str = "the mark of what is derived";
}

#[cfg(test)]
mod tests;
