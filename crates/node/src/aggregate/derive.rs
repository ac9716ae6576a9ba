//! An aggregate as what follows from changes.
//!
//! Two kinds of entries: `g` and the group, with how many values there are and their summary; where values are kept, `v`
//! and the group and the key of an entry, each escaped, with the values that the entry contributes, in the order in which
//! the map gave them. Each value begins with a format byte; the rest is postcard.

use std::collections::BTreeMap;

use bytes::Bytes;
use replikv_core::table::TableKey;
use replikv_core::{KeyRange, Subspace};
use replikv_proto::{Change, Derive, DeriveAbort, DeriveView, Derived};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Aggregate, Combine, Emit, Update};

/// The format of what is stored.
const FORMAT: u8 = 1;
/// What the keys of summaries begin with.
pub(super) const SUMMARIES: &[u8] = b"g";
/// What the keys of values begin with.
const VALUES: &[u8] = b"v";

/// What becomes of one entry's contribution to one group.
struct Touch<V> {
    entry: Bytes,
    old: Vec<V>,
    new: Vec<V>,
    /// As they are kept.
    kept: Option<Bytes>,
}

type Touches<V> = BTreeMap<Bytes, Vec<Touch<V>>>;

impl<G: TableKey + 'static, C: Combine> Derive for Aggregate<G, C> {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn version(&self) -> u32 {
        self.shared.version
    }

    fn source(&self) -> KeyRange {
        self.shared.source.clone()
    }

    fn derive(&self, changes: &[Change], view: &DeriveView<'_>, out: &mut Derived) -> Result<(), DeriveAbort> {
        let touches = self.touches(changes)?;
        let keys: Vec<Bytes> = touches.keys().map(|group| summary_key(group)).collect();
        view.fetch(keys.iter().map(|key| &key[..]), [])?;
        let mut unread = false;
        for ((group, touches), key) in touches.into_iter().zip(keys) {
            // Every group is gone through, so that all that must be read is read in one trip.
            match self.update(&group, touches, &key, view, out) {
                Err(DeriveAbort::Unread) => unread = true,
                updated => updated?,
            }
        }
        if unread { Err(DeriveAbort::Unread) } else { Ok(()) }
    }
}

impl<G: TableKey + 'static, C: Combine> Aggregate<G, C> {
    /// An entry that this aggregate has derived, as it lies in the data: group and summary; `None` if it is no summary.
    ///
    /// # Errors
    /// [`DeriveAbort::Refused`] if it does not decode.
    pub(super) fn entry(&self, key: &[u8], value: &[u8]) -> Result<Option<(G, C::Summary)>, DeriveAbort> {
        let Some(mut group) = key.strip_prefix(SUMMARIES) else { return Ok(None) };
        let decoded = G::decode(&mut group).ok().filter(|_| group.is_empty());
        let decoded = decoded.ok_or_else(|| DeriveAbort::refuse("a group does not decode"))?;
        let (_, summary) = decode::<(u64, C::Summary)>(value)?;
        Ok(Some((decoded, summary)))
    }

    // What changes for which group. Contributions that stay what they were are none.
    fn touches(&self, changes: &[Change]) -> Result<Touches<C::Value>, DeriveAbort> {
        let mut touches: Touches<C::Value> = BTreeMap::new();
        for change in changes {
            let mut old = self.contributions(&change.key, change.old.as_ref())?;
            let new = self.contributions(&change.key, change.new.as_ref())?;
            for (group, new) in new {
                let old = old.remove(&group).unwrap_or_default();
                let kept = encode(&new)?;
                if encode(&old)? != kept {
                    let touch = Touch { entry: change.key.clone(), old, new, kept: Some(kept) };
                    touches.entry(group).or_default().push(touch);
                }
            }
            for (group, old) in old {
                let touch = Touch { entry: change.key.clone(), old, new: Vec::new(), kept: None };
                touches.entry(group).or_default().push(touch);
            }
        }
        Ok(touches)
    }

    fn contributions(&self, key: &Bytes, value: Option<&Bytes>) -> Result<BTreeMap<Bytes, Vec<C::Value>>, DeriveAbort> {
        let mut emit = Emit::new();
        if let Some(value) = value {
            (self.shared.map)(key, value, &mut emit)?;
        }
        Ok(emit.groups)
    }

    fn update(
        &self,
        group: &Bytes,
        touches: Vec<Touch<C::Value>>,
        key: &Bytes,
        view: &DeriveView<'_>,
        out: &mut Derived,
    ) -> Result<(), DeriveAbort> {
        let combine = &self.shared.combine;
        let (mut count, before) = match view.get(key)? {
            Some(stored) => decode::<(u64, C::Summary)>(&stored).map(|(count, summary)| (count, Some(summary)))?,
            None => (0, None),
        };
        let (mut summary, mut anew) = (before, false);
        for value in touches.iter().flat_map(|touch| &touch.old) {
            count = count.checked_sub(1).ok_or_else(|| {
                DeriveAbort::refuse("more is taken out than was put in: the map does not always give the same")
            })?;
            match &mut summary {
                Some(held) if count > 0 => anew |= combine.remove(held, value)? == Update::Recompute,
                _ => summary = None,
            }
        }
        if count == 0 {
            // Whatever could not be told does not matter any more.
            (summary, anew) = (None, false);
        }
        let mut kept = BTreeMap::new();
        for Touch { entry, new, kept: bytes, .. } in touches {
            for value in new {
                count = count.checked_add(1).ok_or_else(|| DeriveAbort::refuse("there are too many values"))?;
                match &mut summary {
                    Some(held) if !anew => anew |= combine.add(held, &value)? == Update::Recompute,
                    Some(_) => {}
                    None => summary = Some(combine.combine(&mut std::iter::once(value))?),
                }
            }
            if C::KEEPS {
                kept.insert(values_of(group).child(&entry).prefix().clone(), bytes);
            }
        }
        if anew && count > 0 {
            summary = Some(self.combine_anew(group, &kept, view)?);
        }
        match summary {
            Some(summary) => out.put(key.clone(), encode(&(count, summary))?),
            None => out.delete(key.clone()),
        }
        for (key, bytes) in kept {
            match bytes {
                Some(bytes) => out.put(key, bytes),
                None => out.delete(key),
            }
        }
        Ok(())
    }

    fn combine_anew(
        &self,
        group: &Bytes,
        kept: &BTreeMap<Bytes, Option<Bytes>>,
        view: &DeriveView<'_>,
    ) -> Result<C::Summary, DeriveAbort> {
        if !C::KEEPS {
            return Err(DeriveAbort::refuse("it keeps no values, and cannot tell what is left without"));
        }
        let mut all: BTreeMap<Bytes, Bytes> = view.scan(&values_of(group).range())?.into_iter().collect();
        for (key, bytes) in kept {
            match bytes {
                Some(bytes) => all.insert(key.clone(), bytes.clone()),
                None => all.remove(key),
            };
        }
        let mut failed = None;
        let mut values = all.values().flat_map(|bytes| match decode::<Vec<C::Value>>(bytes) {
            Ok(values) => values,
            Err(error) => {
                failed = Some(error);
                Vec::new()
            }
        });
        let summary = self.shared.combine.combine(&mut values);
        drop(values);
        failed.map_or(summary, Err)
    }
}

pub(super) fn summary_key(group: &[u8]) -> Bytes {
    Bytes::from([SUMMARIES, group].concat())
}

fn values_of(group: &[u8]) -> Subspace {
    Subspace::raw(VALUES).child(group)
}

fn encode(value: &impl Serialize) -> Result<Bytes, DeriveAbort> {
    let bytes = postcard::to_extend(value, vec![FORMAT]);
    bytes.map(Bytes::from).map_err(|error| DeriveAbort::refuse(format!("a value cannot be stored: {error}")))
}

pub(super) fn decode<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, DeriveAbort> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            _ => Err(DeriveAbort::refuse(
                "what is stored does not decode: its type has changed, and its version has not",
            )),
        },
        Some((&found, _)) => {
            Err(DeriveAbort::refuse(format!("what is stored has format {found}, and this program {FORMAT}")))
        }
        None => Err(DeriveAbort::refuse("what is stored is empty")),
    }
}
