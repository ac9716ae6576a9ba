//! Slots, as a master keeps them: noted by sessions and consumers, written by the commit task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use replikv_core::{
    Durability, KeyRange, Keyspace, Position, ReplicaStore, ReplicaStoreExt, ScanOptions, Seq, StoreError,
};
use replikv_proto::layout::Stored;
use replikv_proto::{Slot, SlotKind, SlotLimits, SlotName, SlotState, SlotTime, SlotView, Slots};
use serde::Serialize;

use super::Master;
use super::history::History;

/// A slot, as its master knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SlotSeen {
    /// Its name.
    pub name: String,
    /// Whether a slave's or a consumer's.
    pub kind: SlotKind,
    /// How it stands.
    pub state: SlotState,
    /// The last record that its owner holds durably.
    pub position: Position,
    /// How many published records its owner does not.
    pub lag_seqs: u64,
    /// When it was last heard of; milliseconds since the Unix epoch.
    pub seen_unix_ms: u64,
    /// True if the log is kept for it: no other slot is further behind.
    pub holds_log: bool,
}

/// The slots of one master, and what was acknowledged since they were last written.
#[derive(Debug)]
pub(crate) struct SlotBook {
    slots: Mutex<Slots>,
    acks: Mutex<BTreeMap<SlotName, Seq>>,
    /// Consumers that somebody has open.
    open: Mutex<BTreeSet<SlotName>>,
}

impl SlotBook {
    pub(crate) fn new(slots: Slots) -> Self {
        Self { slots: Mutex::new(slots), acks: Mutex::default(), open: Mutex::default() }
    }

    /// Reads what is stored.
    pub(crate) async fn read<S: ReplicaStore>(store: &S, limits: SlotLimits) -> Result<Slots, StoreError> {
        use futures_util::TryStreamExt;
        let mut stored = Vec::new();
        let mut entries = store.entries(Keyspace::Meta, KeyRange::prefix(SlotName::PREFIX), ScanOptions::default());
        while let Some((key, value)) = entries.try_next().await? {
            // A kind of slot that a newer program knows is left alone.
            if let Some(name) = SlotName::from_key(&key) {
                stored.push((name, Slot::from_bytes(&value)?));
            }
        }
        Ok(Slots::new(limits, stored))
    }

    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut Slots) -> R) -> R {
        // Nothing that runs under these locks can panic half way.
        look(&mut self.slots.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes what a slave holds durably. The slot follows when it is next written.
    pub(super) fn note(&self, name: SlotName, durable: Seq) {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).insert(name, durable);
    }

    /// Opens a consumer; false if somebody has it open.
    pub(crate) fn open(&self, name: &SlotName) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone())
    }

    /// Closes a consumer.
    pub(crate) fn shut(&self, name: &SlotName) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Drops every slot.
    pub(crate) fn forget_all(&self) {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.with(|slots| {
            for slot in slots.all(Seq::ZERO) {
                slots.forget(&slot.name);
            }
        });
    }

    /// Drops an acknowledgement that no slot knows of yet; false if there is none.
    fn forget_ack(&self, name: &SlotName) -> bool {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).remove(name).is_some()
    }

    fn take_acks(&self) -> BTreeMap<SlotName, Seq> {
        std::mem::take(&mut *self.acks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: ReplicaStore> Master<S> {
    /// Drops a slot: the log is no longer kept for its owner, who gets a new one when it comes back. False if there is
    /// none of that name.
    ///
    /// # Cancel safety
    /// The slot is dropped; it may come back with a crash before the next second has passed.
    pub fn forget(&self, kind: SlotKind, name: &str) -> bool {
        self.inner.forget_slot(&SlotName { kind, name: name.into() })
    }
}

impl<S> History<S> {
    pub(crate) fn slots(&self) -> &SlotBook {
        &self.slots
    }

    /// Drops a slot; false if there is none.
    pub(crate) fn forget_slot(&self, name: &SlotName) -> bool {
        // What was acknowledged a moment ago would bring it back.
        let acknowledged = self.slots.forget_ack(name);
        let found = self.slots.with(|slots| slots.forget(name)) || acknowledged;
        self.wake.notify_one();
        found
    }

    /// The accumulated running time of masters on this store, in milliseconds.
    pub(crate) fn uptime_ms(&self) -> u64 {
        let running = self.clock.now().monotonic.as_millis();
        self.uptime_before.saturating_add(u64::try_from(running).unwrap_or(u64::MAX))
    }

    /// Keeps the log from what is published now on, up to the cap, for as long as the guard lives.
    pub(crate) fn hold_log(&self) -> HeldLog<'_, S> {
        // Under the lock: what is trimmed meanwhile lies before.
        let mut held = self.held_logs();
        let from = self.view().published.seq;
        held.push(from);
        drop(held);
        HeldLog { history: self, from }
    }

    /// The record from which backups need the log.
    pub(super) fn held_by_backups(&self) -> Option<Seq> {
        self.held_logs().iter().min().copied()
    }

    fn held_logs(&self) -> MutexGuard<'_, Vec<Seq>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn slot_time(&self) -> SlotTime {
        SlotTime { unix_ms: crate::clock::unix_ms(), uptime_ms: self.uptime_ms() }
    }
}

/// See [`History::hold_log`].
#[derive(Debug)]
pub(crate) struct HeldLog<'a, S> {
    history: &'a History<S>,
    from: Seq,
}

impl<S> Drop for HeldLog<'_, S> {
    fn drop(&mut self) {
        let mut held = self.history.held_logs();
        if let Some(at) = held.iter().position(|from| *from == self.from) {
            held.swap_remove(at);
        }
    }
}

impl<S: ReplicaStore> History<S> {
    /// Brings slots up to what was acknowledged, and writes those that have changed. A failure is no loss: an older slot
    /// keeps more of the log, and the next attempt writes it.
    pub(crate) async fn save_slots(&self) {
        let now = self.slot_time();
        for (name, seq) in self.slots.take_acks() {
            match self.position_at(seq).await {
                Ok(Some(position)) => {
                    // Looked up under the lock: whoever leaves does so in the other order, and is counted once.
                    let acked =
                        |slots: &mut Slots| slots.acked(&name, position, self.sessions.is_connected(&name.name), now);
                    if !self.slots.with(acked) {
                        tracing::warn!(
                            target: "replikv::master", source = %self.source, follower = %name.name,
                            "there are too many slots; nothing is kept for this one"
                        );
                    }
                }
                // Trimmed meanwhile: the slot is where it was, and lost.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        target: "replikv::master", source = %self.source, error = %crate::error_chain(&error),
                        "an acknowledged position cannot be read"
                    );
                }
            }
        }
        for name in self.slots.with(|slots| slots.expire(now.uptime_ms)) {
            tracing::info!(
                target: "replikv::master", source = %self.source, follower = %name.name,
                "a slot has expired"
            );
        }
        let writes = match self.slots.with(Slots::take_changes) {
            Ok(Some(writes)) => writes,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(
                    target: "replikv::master", source = %self.source, error = %crate::error_chain(&error),
                    "slots cannot be written"
                );
                return;
            }
        };
        if let Err(error) = self.store.apply(writes.clone(), Durability::Buffered).await {
            tracing::warn!(
                target: "replikv::master", source = %self.source, error = %crate::error_chain(&error),
                "slots could not be written; they are written later"
            );
            self.slots.with(|slots| slots.unsaved(&writes));
        }
    }

    /// Where the slowest of those is for whom the log is kept.
    pub(crate) fn held(&self) -> Option<Seq> {
        let floor = self.view().floor.seq;
        let slot = self.slots.with(|slots| slots.slowest(floor).map(|(_, seq)| seq));
        let backup = self.held_by_backups();
        [slot, self.sessions.slowest(), backup].into_iter().flatten().min()
    }

    pub(crate) fn slots_seen(&self) -> Vec<SlotSeen> {
        let view = self.view();
        let (all, slowest) = self.slots.with(|slots| {
            let slowest = slots.slowest(view.floor.seq).map(|(name, _)| name.clone());
            (slots.all(view.floor.seq), slowest)
        });
        let seen = |SlotView { name, slot, state }: SlotView| SlotSeen {
            holds_log: slowest.as_ref() == Some(&name),
            name: name.name,
            kind: name.kind,
            state,
            position: slot.position,
            lag_seqs: view.published.seq.since(slot.position.seq),
            seen_unix_ms: slot.seen_unix_ms,
        };
        all.into_iter().map(seen).collect()
    }
}
