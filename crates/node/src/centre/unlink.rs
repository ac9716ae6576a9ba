//! Undoing a link: its data, if it is to go, what it knew, and at last its claim.

use replikv_core::{Durability, KeyRange, Keyspace, LinkId, ReplicaStore, ScanOptions, StoreError, WriteSet};
use replikv_proto::{Claim, ClaimState};

use super::Inner;

/// What becomes of the entries of a link that is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlinked {
    /// They stay, as data that no link claims.
    KeepData,
    /// They are removed first.
    RemoveData,
}

/// How an undoing that was begun goes on.
pub(super) fn begun(claim: &Claim) -> Option<Unlinked> {
    match claim.state {
        ClaimState::Leaving => Some(Unlinked::KeepData),
        ClaimState::Removing => Some(Unlinked::RemoveData),
        _ => None,
    }
}

/// The state in which `claim` is given up. Data that has begun to go is not left half there.
pub(super) fn state(claim: &Claim, unlinked: Unlinked) -> ClaimState {
    match (claim.state, unlinked) {
        (ClaimState::Removing, _) | (_, Unlinked::RemoveData) => ClaimState::Removing,
        (_, Unlinked::KeepData) => ClaimState::Leaving,
    }
}

/// Removes what a link leaves behind, so that none of it comes back. Its cursor goes first, durably: what is left of the data
/// is nobody's state any more.
pub(super) async fn empty<S: ReplicaStore>(centre: &Inner<S>, link: &LinkId, claim: &Claim) -> Result<(), StoreError> {
    loop {
        let setbacks = centre.setbacks();
        remove(centre, link, Keyspace::Meta, Claim::knowledge(link).range()).await?;
        if !synced(centre, setbacks).await? {
            continue;
        }
        if claim.state == ClaimState::Removing {
            remove(centre, link, Keyspace::Data, claim.target().range()).await?;
            if !synced(centre, setbacks).await? {
                continue;
            }
        }
        return Ok(());
    }
}

// False if another link's failure may have brought back some of what was removed since.
async fn synced<S: ReplicaStore>(centre: &Inner<S>, setbacks: u64) -> Result<bool, StoreError> {
    let result = centre.store.sync().await;
    centre.setbacks.note(&result);
    result?;
    Ok(centre.setbacks() == setbacks)
}

// One page of keys at a time: other links get their turn in between.
async fn remove<S: ReplicaStore>(
    centre: &Inner<S>,
    link: &LinkId,
    keyspace: Keyspace,
    range: KeyRange,
) -> Result<(), StoreError> {
    const STEP: usize = 1024;
    let mut rest = Some(range);
    while let Some(range) = rest.take() {
        let page = centre.store.scan(keyspace, range.clone(), ScanOptions::default().max_entries(STEP)).await?;
        if page.is_empty() {
            break;
        }
        rest = page.rest().cloned();
        let end = rest.as_ref().map_or_else(|| range.end().cloned(), |rest| Some(rest.start().clone()));
        let mut writes = WriteSet::builder();
        writes.delete_range(keyspace, &KeyRange::new(range.start().clone(), end));
        centre.writer.apply(&centre.store, link, writes.build(), Durability::Buffered).await?;
    }
    Ok(())
}
