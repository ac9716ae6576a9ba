//! What a master derives: whether it is there when the store is opened, and deriving it where it is not.
//!
//! What is derived is data, and so is the mark that says that it is all there: a slave that is promoted has both. In `Meta`
//! stands which targets there are, for whoever opens the store without deriving: from then on nothing of it can be trusted.

use replikv_core::{
    Batch, Durability, KeyRange, Keyspace, ReplicaStore, ReplicaStoreExt, ScanOptions, Seq, StoreError, Subspace,
    WriteSet,
};
use replikv_proto::layout::Stored;
use replikv_proto::{Derive, DeriveMark, DeriveState, Derives, EpochStart, Work};

use super::{Master, WriteError};
use crate::OpenError;
use crate::centre::Claims;

/// What the keys of `Meta` begin with under which targets are listed; then comes the name.
const LISTED: &[u8] = b"derive/";
/// How much data is read at once to derive from it, in bytes.
const PAGE_BYTES: usize = 256 << 10;
/// How many entries at most.
const PAGE_ENTRIES: usize = 1024;

/// Sees that what is configured is apart from each other, and from what links have to themselves.
pub(super) fn check(derives: &Derives, claims: &Claims) -> Result<(), OpenError> {
    derives.check().map_err(|(name, reason)| OpenError::Derive { name, reason })?;
    for (link, claim) in claims.iter() {
        if let Some((derive, _)) = derives.meets(&claim.target().range()) {
            let reason = format!("its target overlaps the claim of link {link}");
            return Err(OpenError::Derive { name: derive.name().to_owned(), reason });
        }
    }
    Ok(())
}

impl<S: ReplicaStore> Master<S> {
    /// Sees that what is configured is derived, and that nobody takes the rest for it. Nobody writes meanwhile.
    pub(super) async fn settle_derives(&self, opened_at: Seq) -> Result<(), OpenError> {
        let listed = self.listed().await?;
        for (name, target) in &listed {
            let configured = self.inner.config.derives.iter();
            if !configured.into_iter().any(|(derive, own)| derive.name() == name && own == target) {
                self.give_up(name, target).await?;
            }
        }
        for (derive, target) in self.inner.config.derives.clone().iter() {
            let name = derive.name();
            if !listed.iter().any(|(listed, _)| listed == name) {
                self.list(name, Some(target)).await?;
            }
            let mark = self.mark_in(target).await?;
            match &mark {
                Some(mark) if mark.name != name => {
                    let reason = format!("its target holds what {} derives", mark.name);
                    return Err(OpenError::Derive { name: name.to_owned(), reason });
                }
                Some(mark) if mark.state == DeriveState::Complete && mark.version == derive.version() => {
                    let epoch = self.inner.committer.epoch;
                    if mark.epoch == (epoch.number, epoch.nonce) {
                        continue;
                    }
                    if nothing_since(&self.inner.epochs, mark.epoch, opened_at) {
                        self.mark(derive.as_ref(), target, DeriveState::Complete).await?;
                        continue;
                    }
                }
                None if self.inner.store.first(Keyspace::Data, target.range()).await?.is_some() => {
                    let reason = "its target holds data of something else".into();
                    return Err(OpenError::Derive { name: name.to_owned(), reason });
                }
                _ => {}
            }
            self.derive_anew(derive.as_ref(), target).await?;
        }
        Ok(())
    }

    async fn derive_anew(&self, derive: &dyn Derive, target: &Subspace) -> Result<(), OpenError> {
        let name = derive.name();
        tracing::info!(target: "replikv::master", source = %self.inner.source, derive = %name, "is derived anew");
        let building = self.marked(derive, DeriveState::Building).to_bytes();
        let begin = Batch::new().delete_range(target.range()).put(DeriveMark::key(target), building);
        self.commit_derived(name, Work::Batch(begin)).await?;
        let mut rest = Some(derive.source());
        while let Some(range) = rest.take() {
            let options = ScanOptions::default().max_entries(PAGE_ENTRIES).max_bytes(PAGE_BYTES);
            let page = self.inner.store.scan(Keyspace::Data, range, options).await?;
            rest = page.rest().cloned();
            let work = Work::Derive { name: name.to_owned(), entries: page.entries().collect() };
            self.commit_derived(name, work).await?;
        }
        self.mark(derive, target, DeriveState::Complete).await
    }

    async fn mark(&self, derive: &dyn Derive, target: &Subspace, state: DeriveState) -> Result<(), OpenError> {
        let mark = Batch::new().put(DeriveMark::key(target), self.marked(derive, state).to_bytes());
        self.commit_derived(derive.name(), Work::Batch(mark)).await
    }

    fn marked(&self, derive: &dyn Derive, state: DeriveState) -> DeriveMark {
        let epoch = self.inner.committer.epoch;
        let (name, version) = (derive.name().to_owned(), derive.version());
        DeriveMark { name, version, state, epoch: (epoch.number, epoch.nonce) }
    }

    // What it has derived stays, and is data like any other from now on.
    async fn give_up(&self, name: &str, target: &Subspace) -> Result<(), OpenError> {
        if let Some(mark) = self.mark_in(target).await?.filter(|mark| mark.name == name) {
            let stale = DeriveMark { state: DeriveState::Stale, ..mark };
            let batch = Batch::new().put(DeriveMark::key(target), stale.to_bytes());
            self.commit_derived(name, Work::Batch(batch)).await?;
        }
        Ok(self.list(name, None).await?)
    }

    async fn commit_derived(&self, name: &str, work: Work) -> Result<(), OpenError> {
        let committed = self.submit(work, PAGE_BYTES).await;
        committed.map(drop).map_err(|error| match error {
            WriteError::Store(error) => OpenError::Store(error),
            WriteError::NotDerived { name, reason } => OpenError::Derive { name, reason },
            error => OpenError::Derive { name: name.to_owned(), reason: error.to_string() },
        })
    }

    async fn mark_in(&self, target: &Subspace) -> Result<Option<DeriveMark>, StoreError> {
        let found = self.inner.store.get(Keyspace::Data, &DeriveMark::key(target)).await?;
        found.map(|bytes| DeriveMark::from_bytes(&bytes)).transpose()
    }

    async fn listed(&self) -> Result<Vec<(String, Subspace)>, StoreError> {
        let (mut listed, mut rest) = (Vec::new(), Some(KeyRange::prefix(LISTED)));
        while let Some(range) = rest.take() {
            let page = self.inner.store.scan(Keyspace::Meta, range, ScanOptions::default()).await?;
            for (key, value) in page.entries() {
                let name = String::from_utf8_lossy(key.strip_prefix(LISTED).unwrap_or(&key)).into_owned();
                listed.push((name, Subspace::raw(value)));
            }
            rest = page.rest().cloned();
        }
        Ok(listed)
    }

    async fn list(&self, name: &str, target: Option<&Subspace>) -> Result<(), StoreError> {
        let key = [LISTED, name.as_bytes()].concat();
        let mut writes = WriteSet::builder();
        match target {
            Some(target) => writes.put(Keyspace::Meta, key, target.prefix())?,
            None => writes.delete(Keyspace::Meta, key)?,
        };
        self.inner.store.apply(writes.build(), Durability::Synced).await
    }
}

// True if all that was recorded after the epoch of the mark, up to the head, are the beginnings of later epochs.
fn nothing_since(epochs: &[EpochStart], marked: (u64, u64), head: Seq) -> bool {
    let Some(at) = epochs.iter().position(|start| (start.epoch.number, start.epoch.nonce) == marked) else {
        return false;
    };
    let later = &epochs[at + 1..];
    let one_by_one = later.windows(2).all(|pair| pair[0].first.next() == Some(pair[1].first));
    one_by_one && later.last().is_some_and(|last| last.first == head)
}

#[cfg(test)]
mod tests {
    use replikv_core::Epoch;

    use super::*;

    #[test]
    fn what_was_derived_in_an_earlier_epoch_counts_if_nothing_was_written_since() {
        let start = |number, first| EpochStart { epoch: Epoch { number, nonce: number * 7 }, first: Seq::new(first) };
        let epochs = [start(1, 1), start(2, 10), start(3, 11)];
        assert!(nothing_since(&epochs, (1, 7), Seq::new(11)));
        assert!(nothing_since(&epochs, (2, 14), Seq::new(11)));
        assert!(!nothing_since(&epochs, (1, 7), Seq::new(12)), "something was written in the last one");
        assert!(!nothing_since(&epochs, (1, 8), Seq::new(11)), "another history");
        let gap = [start(1, 1), start(2, 10), start(3, 12)];
        assert!(!nothing_since(&gap, (1, 7), Seq::new(12)), "something was written in between");
    }
}
