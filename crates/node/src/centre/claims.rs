//! Which links there are, and which of them are open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use replikv_core::{
    Durability, KeyRange, Keyspace, LinkId, Placement, ReplicaStore, ScanOptions, StoreError, Subspace, WriteSet,
};
use replikv_proto::layout::Stored;
use replikv_proto::{Claim, ClaimState, rival};

use super::{Inner, LinkError, Unlinked, unlink};

/// The claims of a store, as they are stored. One handle changes them at a time.
#[derive(Debug)]
pub(crate) struct Claims {
    held: BTreeMap<LinkId, Claim>,
    /// A write of them was begun, and nobody knows what has come of it.
    in_doubt: bool,
}

impl Claims {
    pub(crate) async fn read<S: ReplicaStore>(store: &S) -> Result<Self, StoreError> {
        let mut claims = BTreeMap::new();
        let mut rest = Some(KeyRange::prefix(Claim::PREFIX));
        while let Some(range) = rest.take() {
            let page = store.scan(Keyspace::Meta, range, ScanOptions::default()).await?;
            for (key, value) in page.iter() {
                let name = key.strip_prefix(Claim::PREFIX).and_then(|name| std::str::from_utf8(name).ok());
                let link = name.and_then(|name| LinkId::new(name).ok());
                let link = link.ok_or_else(|| StoreError::Corrupt { what: "a claim of no link".into() })?;
                claims.insert(link, Claim::from_bytes(value)?);
            }
            rest = page.rest().cloned();
        }
        Ok(Self { held: claims, in_doubt: false })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&LinkId, &Claim)> {
        self.held.iter()
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = (LinkId, Claim)> {
        self.held.into_iter()
    }

    /// What is claimed, by whom.
    pub(super) fn ranges(&self) -> Vec<(LinkId, KeyRange)> {
        self.held.iter().map(|(link, claim)| (link.clone(), claim.target().range())).collect()
    }

    /// Links whose undoing was begun.
    pub(super) fn leaving(&self) -> Vec<(LinkId, Unlinked)> {
        let leaving = self.held.iter().filter_map(|(link, claim)| Some((link.clone(), unlink::begun(claim)?)));
        leaving.collect()
    }

    /// Reads them again after a write that was dropped, or has failed: it may be there.
    pub(super) async fn settle<S: ReplicaStore>(&mut self, centre: &Inner<S>) -> Result<(), StoreError> {
        if self.in_doubt {
            // What is read is acted upon: it must not be lost afterwards.
            centre.store.sync().await?;
            *self = Self::read(&*centre.store).await?;
            centre.writer.claimed(self.ranges());
        }
        Ok(())
    }

    /// Sees that `link` has the target of `placement`, and nobody else anything of it.
    pub(super) async fn claim<S: ReplicaStore>(
        &mut self,
        centre: &Inner<S>,
        link: &LinkId,
        placement: &Placement,
    ) -> Result<(), LinkError> {
        let target = placement.target();
        let claim = Claim::new(target).stripping(placement.strip());
        if let Some(held) = self.held.get(link) {
            return again(link, held, &claim);
        }
        if let Some(other) = rival(&self.held, link, target) {
            let held = self.held.get(other).map(|claim| words(&claim.target())).unwrap_or_default();
            let (link, wanted, other) = (link.clone(), words(target), other.clone());
            return Err(LinkError::Claimed { link, wanted, other, held });
        }
        if let Some((derive, held)) = centre.writer.derives().and_then(|derives| derives.meets(&target.range())) {
            let (link, wanted, name) = (link.clone(), words(target), derive.name().to_owned());
            return Err(LinkError::Derived { link, wanted, name, held: words(held) });
        }
        self.write(centre, link, claim).await
    }

    /// Undoes a link, in bounded steps.
    pub(super) async fn unlink<S: ReplicaStore>(
        &mut self,
        centre: &Inner<S>,
        link: &LinkId,
        unlinked: Unlinked,
    ) -> Result<(), LinkError> {
        let held = self.held.get(link).cloned().ok_or_else(|| LinkError::NoSuchLink { link: link.clone() })?;
        let leaving = held.given_up(unlink::state(&held, unlinked));
        if leaving != held {
            self.write(centre, link, leaving.clone()).await?;
        }
        // The claim goes once nothing of what it has claimed can come back.
        unlink::empty(centre, link, &leaving).await?;
        let mut writes = WriteSet::builder();
        writes.require(Claim::key(link), Some(leaving.to_bytes()));
        writes.delete(Keyspace::Meta, Claim::key(link))?;
        self.commit(centre, writes.build()).await?;
        self.held.remove(link);
        centre.writer.claimed(self.ranges());
        Ok(())
    }

    async fn write<S: ReplicaStore>(
        &mut self,
        centre: &Inner<S>,
        link: &LinkId,
        claim: Claim,
    ) -> Result<(), LinkError> {
        let mut writes = WriteSet::builder();
        writes.require(Claim::key(link), self.held.get(link).map(Claim::to_bytes));
        writes.put(Keyspace::Meta, Claim::key(link), claim.to_bytes())?;
        self.commit(centre, writes.build()).await?;
        self.held.insert(link.clone(), claim);
        centre.writer.claimed(self.ranges());
        Ok(())
    }

    async fn commit<S: ReplicaStore>(&mut self, centre: &Inner<S>, writes: WriteSet) -> Result<(), StoreError> {
        self.in_doubt = true;
        centre.store.apply(writes, Durability::Synced).await?;
        self.in_doubt = false;
        Ok(())
    }
}

// A link that is there is opened as it was before.
fn again(link: &LinkId, held: &Claim, wanted: &Claim) -> Result<(), LinkError> {
    if held.state != ClaimState::Held {
        return Err(LinkError::Leaving { link: link.clone() });
    }
    let (target, strip) = (wanted.target(), wanted.strip());
    if held.target() != target {
        return Err(LinkError::Moved { link: link.clone(), held: words(&held.target()), wanted: words(&target) });
    }
    if held.strip() != strip {
        return Err(LinkError::Strips { link: link.clone(), held: words(&held.strip()), wanted: words(&strip) });
    }
    Ok(())
}

fn words(space: &Subspace) -> String {
    space.prefix().escape_ascii().to_string()
}

/// The links that are open in this process.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<BTreeSet<LinkId>>);

impl Links {
    /// Takes a link for the caller alone.
    pub(super) fn open(self: &Arc<Self>, link: &LinkId) -> Result<Lease, LinkError> {
        if !self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(link.clone()) {
            return Err(LinkError::Open { link: link.clone() });
        }
        Ok(Lease { links: self.clone(), link: link.clone() })
    }

    pub(super) fn is_open(&self, link: &LinkId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(link)
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A link that is open; given back when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    links: Arc<Links>,
    link: LinkId,
}

impl Lease {
    /// How many links are open.
    pub(super) fn open_links(&self) -> usize {
        self.links.count()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.links.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.link);
    }
}
