//! The key ranges that a slave subscribes to: what its store has kept, and what the configuration says.

use replikv_core::{Durability, KeyRange, KeyRanges, Keyspace, ReplicaStore, ScanOptions, StoreError, WriteSet, meta};
use replikv_proto::Subscription;
use replikv_proto::layout::Stored;

use super::SlaveConfig;
use crate::{OpenError, stored};

/// How many entries go in one step.
const STEP: usize = 4096;

/// The ranges that the configuration names. Where it names none they stay what they were.
pub(super) async fn wanted<S: ReplicaStore>(store: &S, config: &SlaveConfig) -> Result<KeyRanges, OpenError> {
    let wanted = match &config.ranges {
        Some(wanted) => wanted.clone(),
        None => subscription(store).await?.unwrap_or_default(),
    };
    Subscription::check(&wanted)?;
    Ok(wanted)
}

/// Brings the store to the ranges that are wanted.
///
/// Whoever dies on the way goes on when the store is opened again, with whatever ranges: see [`Subscription::change`].
pub(super) async fn settle<S: ReplicaStore>(
    store: &S,
    config: &SlaveConfig,
    wanted: &KeyRanges,
) -> Result<(), StoreError> {
    let kept: Option<Subscription> = stored::read(store, Subscription::KEY).await?;
    let cursor = store.cursor(&config.link).await?;
    let mut now = kept.clone();
    if let Some(change) = Subscription::change(kept.as_ref(), cursor.as_ref(), wanted) {
        let mut writes = WriteSet::builder();
        writes.require(Subscription::KEY, kept.as_ref().map(Stored::to_bytes));
        writes.require(meta::cursor_key(&config.link), cursor.as_ref().map(replikv_core::Cursor::to_bytes));
        match &change.subscription {
            Some(subscription) => writes.put(Keyspace::Meta, Subscription::KEY, subscription.to_bytes())?,
            None => writes.delete(Keyspace::Meta, Subscription::KEY)?,
        };
        if let Some(cursor) = &change.cursor {
            writes.set_cursor(&config.link, cursor);
        }
        store.apply(writes.build(), Durability::Synced).await?;
        tracing::info!(
            target: "replikv::slave", follower = %config.name, ranges = %wanted,
            "the slave subscribes to other key ranges than before"
        );
        now = change.subscription;
    }
    if let Some(subscription) = now.filter(|subscription| !subscription.dropping.is_empty()) {
        for range in &subscription.dropping {
            drop_range(store, range.clone()).await?;
        }
        let mut writes = WriteSet::builder();
        writes.require(Subscription::KEY, Some(subscription.to_bytes()));
        writes.put(Keyspace::Meta, Subscription::KEY, subscription.settled().to_bytes())?;
        store.apply(writes.build(), Durability::Synced).await?;
    }
    Ok(())
}

/// The key ranges that the store of a slave subscribes to, as it has kept them; `None` if that is every key.
///
/// # Errors
/// `NewerFormat` if a newer program wrote it.
pub async fn subscription<S: ReplicaStore>(store: &S) -> Result<Option<KeyRanges>, StoreError> {
    let kept: Option<Subscription> = stored::read(store, Subscription::KEY).await?;
    Ok(kept.map(|kept| kept.ranges))
}

// In bounded steps: a range may hold any number of entries.
async fn drop_range<S: ReplicaStore>(store: &S, range: KeyRange) -> Result<(), StoreError> {
    let mut rest = Some(range);
    while let Some(range) = rest.take() {
        let page = store.scan(Keyspace::Data, range.clone(), ScanOptions::default().max_entries(STEP)).await?;
        if page.is_empty() {
            break;
        }
        rest = page.rest().cloned();
        let end = rest.as_ref().map_or_else(|| range.end().cloned(), |rest| Some(rest.start().clone()));
        let mut writes = WriteSet::builder();
        writes.delete_range(Keyspace::Data, &KeyRange::new(range.start().clone(), end));
        store.apply(writes.build(), Durability::Buffered).await?;
    }
    Ok(())
}
