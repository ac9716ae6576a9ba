//! Slots decide what is remembered of those who follow, and what of the log is kept for them.
//!
//! A slot is a name and a position, persistent, one for each slave and each named consumer of changes. It costs a
//! position, not a buffer: what lies above the lowest slot is kept in the log, up to a cap; a slot that the log has left
//! behind is lost, and its slave recovers by comparison.

use std::collections::BTreeMap;

use bytes::Bytes;
use replikv_core::{Keyspace, Position, Seq, StoreError, WriteSet};
use serde::{Deserialize, Serialize};

use crate::layout::Stored;
use crate::planted::{self, Bug};

/// Who a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SlotKind {
    /// A slave.
    Slave,
    /// A named consumer of changes.
    Consumer,
}

/// What is stored of a slot, under its [`key`](SlotName::key).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The last record that it holds durably.
    pub position: Position,
    /// When it was last heard of: milliseconds since the Unix epoch. For people.
    pub seen_unix_ms: u64,
    /// The master's accumulated running time then, in milliseconds. For expiry: no clock that jumps expires a slot.
    pub seen_uptime_ms: u64,
}

impl Stored for Slot {
    const WHAT: &'static str = "a slot";
}

/// The name of a slot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotName {
    /// Who it is for.
    pub kind: SlotKind,
    /// The name, unique among its kind.
    pub name: String,
}

impl SlotName {
    /// What the keys of all slots begin with.
    pub const PREFIX: &'static [u8] = b"slot/";

    /// The slot of a slave.
    pub fn slave(name: impl Into<String>) -> Self {
        Self { kind: SlotKind::Slave, name: name.into() }
    }

    /// The slot of a consumer.
    pub fn consumer(name: impl Into<String>) -> Self {
        Self { kind: SlotKind::Consumer, name: name.into() }
    }

    /// Its key.
    pub fn key(&self) -> Bytes {
        let kind: &[u8] = match self.kind {
            SlotKind::Slave => b"slave/",
            SlotKind::Consumer => b"consumer/",
        };
        Bytes::from([Self::PREFIX, kind, self.name.as_bytes()].concat())
    }

    /// Reads what [`key`](Self::key) made; `None` if it is no key of a slot.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let rest = key.strip_prefix(Self::PREFIX)?;
        let split = rest.iter().position(|byte| *byte == b'/')?;
        let name = std::str::from_utf8(&rest[split + 1..]).ok()?;
        match &rest[..split] {
            b"slave" => Some(Self::slave(name)),
            b"consumer" => Some(Self::consumer(name)),
            _ => None,
        }
    }
}

/// How a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SlotState {
    /// Its owner is connected.
    Active,
    /// Its owner is away; what it misses is kept.
    Lagging,
    /// What it misses is no longer in the log: its owner compares, or begins anew.
    Lost,
}

/// How many slots, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotLimits {
    /// At most so many. Whoever comes later is served, and nothing is kept for it.
    pub max: usize,
    /// A slot that was not heard of for so long is dropped: milliseconds of accumulated running time. `None`: never.
    pub expire_after_ms: Option<u64>,
}

/// The slots of a master.
#[derive(Debug)]
pub struct Slots {
    limits: SlotLimits,
    entries: BTreeMap<SlotName, Entry>,
    /// Dropped, and still stored.
    dropped: Vec<SlotName>,
}

#[derive(Debug)]
struct Entry {
    slot: Slot,
    connections: u32,
    /// What is stored of it, as far as it was.
    saved: Option<Slot>,
}

/// When nothing else has changed, a sign of life is written after so long: milliseconds by the wall clock.
const SIGN_OF_LIFE: u64 = 60_000;

/// When something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotTime {
    /// By the wall clock: milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// By the master's accumulated running time, in milliseconds.
    pub uptime_ms: u64,
}

/// A slot, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotView {
    /// Its name.
    pub name: SlotName,
    /// What is stored of it.
    pub slot: Slot,
    /// How it stands.
    pub state: SlotState,
}

impl Slots {
    /// The slots as they are stored.
    pub fn new(limits: SlotLimits, stored: impl IntoIterator<Item = (SlotName, Slot)>) -> Self {
        let entry = |(name, slot)| (name, Entry { slot, connections: 0, saved: Some(slot) });
        Self { limits, entries: stored.into_iter().map(entry).collect(), dropped: Vec::new() }
    }

    /// An owner has connected. Makes no slot.
    pub fn connected(&mut self, name: &SlotName, now: SlotTime) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.connections += 1;
            entry.see(now);
        }
    }

    /// An owner holds this position, and it lies in the history: it becomes the slot's, downwards too. Makes no slot.
    pub fn verified(&mut self, name: &SlotName, position: Position) {
        if let Some(entry) = self.entries.get_mut(name) {
            if planted::is(Bug::SlotNeverLowered) && position.seq < entry.slot.position.seq {
                return;
            }
            entry.slot.position = position;
        }
    }

    /// An owner holds everything up to `position` durably; the slot is made if it is not there. `connected`: it is
    /// connected now. Returns false if there is no slot for it, since there are too many.
    pub fn acked(&mut self, name: &SlotName, position: Position, connected: bool, now: SlotTime) -> bool {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.see(now);
            entry.slot.position = position;
            entry.connections = entry.connections.max(u32::from(connected));
            return true;
        }
        if self.entries.len() >= self.limits.max {
            return false;
        }
        let slot = Slot { position, seen_unix_ms: now.unix_ms, seen_uptime_ms: now.uptime_ms };
        self.dropped.retain(|dropped| dropped != name);
        self.entries.insert(name.clone(), Entry { slot, connections: u32::from(connected), saved: None });
        true
    }

    /// An owner has gone.
    pub fn disconnected(&mut self, name: &SlotName, now: SlotTime) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.connections = entry.connections.saturating_sub(1);
            entry.see(now);
        }
    }

    /// Drops a slot: nothing is kept for it any more. False if there is none.
    pub fn forget(&mut self, name: &SlotName) -> bool {
        let found = self.entries.remove(name).is_some();
        if found {
            self.dropped.push(name.clone());
        }
        found
    }

    /// Drops the slots of those who were not heard of for too long.
    pub fn expire(&mut self, uptime_ms: u64) -> Vec<SlotName> {
        let Some(after) = self.limits.expire_after_ms else { return Vec::new() };
        let expired = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.connections == 0 && uptime_ms.saturating_sub(entry.slot.seen_uptime_ms) > after);
        let expired: Vec<SlotName> = expired.map(|(name, _)| name.clone()).collect();
        for name in &expired {
            self.forget(name);
        }
        expired
    }

    /// The slot whose position is lowest among those that the log still reaches: what lies above it is kept for it.
    pub fn slowest(&self, floor: Seq) -> Option<(&SlotName, Seq)> {
        let reached = self.entries.iter().map(|(name, entry)| (name, entry.slot.position.seq));
        reached.filter(|(_, seq)| *seq >= floor).min_by_key(|(_, seq)| *seq)
    }

    /// The slot of `name`.
    pub fn get(&self, name: &SlotName) -> Option<Slot> {
        self.entries.get(name).map(|entry| entry.slot)
    }

    /// True if a slot stands at this very position: it was a point of the history when it was entered.
    pub fn knows(&self, position: &Position) -> bool {
        self.entries.values().any(|entry| entry.slot.position == *position)
    }

    /// True if the owner of `name` is connected.
    pub fn is_connected(&self, name: &SlotName) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.connections > 0)
    }

    /// All slots, by name.
    pub fn all(&self, floor: Seq) -> Vec<SlotView> {
        let view = |(name, entry): (&SlotName, &Entry)| SlotView {
            name: name.clone(),
            slot: entry.slot,
            state: match entry.slot.position.seq {
                seq if seq < floor => SlotState::Lost,
                _ if entry.connections > 0 => SlotState::Active,
                _ => SlotState::Lagging,
            },
        };
        self.entries.iter().map(view).collect()
    }

    /// What has changed since it was last asked, as one write set. If it cannot be applied, hand it back to
    /// [`unsaved`](Self::unsaved).
    ///
    /// # Errors
    /// None that a caller can meet: building a write set refuses empty keys.
    pub fn take_changes(&mut self) -> Result<Option<WriteSet>, StoreError> {
        let mut writes = WriteSet::builder();
        let mut changed = false;
        for name in self.dropped.drain(..) {
            writes.delete(Keyspace::Meta, name.key())?;
            changed = true;
        }
        for (name, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.is_unsaved()) {
            writes.put(Keyspace::Meta, name.key(), entry.slot.to_bytes())?;
            entry.saved = Some(entry.slot);
            changed = true;
        }
        Ok(changed.then(|| writes.build()))
    }

    /// A write set of [`take_changes`](Self::take_changes) was not applied: everything is written again next time.
    pub fn unsaved(&mut self, writes: &WriteSet) {
        for (_, op) in writes.ops() {
            let replikv_core::Op::Delete { key } = op else { continue };
            if let Some(name) = SlotName::from_key(key).filter(|name| !self.entries.contains_key(name)) {
                self.dropped.push(name);
            }
        }
        self.entries.values_mut().for_each(|entry| entry.saved = None);
    }
}

impl Entry {
    fn see(&mut self, now: SlotTime) {
        self.slot.seen_unix_ms = now.unix_ms;
        self.slot.seen_uptime_ms = self.slot.seen_uptime_ms.max(now.uptime_ms);
    }

    fn is_unsaved(&self) -> bool {
        self.saved.is_none_or(|saved| {
            saved.position != self.slot.position || self.slot.seen_unix_ms.abs_diff(saved.seen_unix_ms) >= SIGN_OF_LIFE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replikv_core::{Digest, Epoch, Op, SourceId};

    fn position(seq: u64) -> Position {
        Position {
            source: SourceId::from_bytes([1; 16]),
            epoch: Epoch { number: 1, nonce: 2 },
            seq: Seq::new(seq),
            digest: Digest::from_bytes([3; 16]),
        }
    }

    fn at(uptime_ms: u64) -> SlotTime {
        SlotTime { unix_ms: 1_000_000 + uptime_ms, uptime_ms }
    }

    fn slots() -> Slots {
        Slots::new(SlotLimits { max: 3, expire_after_ms: Some(1_000) }, [])
    }

    // What a store would hold after every write set so far.
    fn stored(writes: impl IntoIterator<Item = WriteSet>) -> BTreeMap<SlotName, Slot> {
        let mut map = BTreeMap::new();
        for set in writes {
            for (_, op) in set.ops() {
                match op {
                    Op::Put { key, value } => {
                        map.insert(SlotName::from_key(key).unwrap(), Slot::from_bytes(value).unwrap());
                    }
                    Op::Delete { key } => drop(map.remove(&SlotName::from_key(key).unwrap())),
                    Op::DeleteRange { .. } => panic!("no ranges"),
                }
            }
        }
        map
    }

    #[test]
    fn a_slot_begins_with_the_first_durable_ack() {
        let (mut slots, edge) = (slots(), SlotName::slave("edge"));
        slots.connected(&edge, at(1));
        slots.verified(&edge, position(5));
        assert_eq!(slots.get(&edge), None, "whoever only says hello leaves nothing behind");
        assert!(slots.acked(&edge, position(7), true, at(2)));
        assert_eq!(slots.get(&edge).map(|slot| slot.position), Some(position(7)));
        assert_eq!(slots.all(Seq::ZERO)[0].state, SlotState::Active);
        assert!(slots.is_connected(&edge) && !slots.is_connected(&SlotName::consumer("edge")));
        slots.disconnected(&edge, at(3));
        assert!(!slots.is_connected(&edge));
        assert_eq!(slots.all(Seq::ZERO)[0].state, SlotState::Lagging);
        assert_eq!(slots.all(Seq::new(8))[0].state, SlotState::Lost);
    }

    #[test]
    fn a_verified_hello_sets_the_slot_downwards_too() {
        let (mut slots, edge) = (slots(), SlotName::slave("edge"));
        slots.acked(&edge, position(7), true, at(1));
        slots.connected(&edge, at(2));
        assert_eq!(slots.get(&edge).map(|slot| slot.position.seq), Some(Seq::new(7)));
        slots.verified(&edge, position(4));
        assert_eq!(slots.get(&edge).map(|slot| slot.position.seq), Some(Seq::new(4)));
    }

    #[test]
    fn slots_are_capped_and_expire_by_running_time() {
        let mut slots = slots();
        for name in ["a", "b", "c"] {
            assert!(slots.acked(&SlotName::slave(name), position(1), true, at(0)));
        }
        assert!(!slots.acked(&SlotName::slave("d"), position(1), true, at(0)), "there are too many");
        slots.disconnected(&SlotName::slave("a"), at(500));
        slots.disconnected(&SlotName::slave("b"), at(900));
        assert_eq!(slots.expire(1_500), vec![]);
        assert_eq!(slots.expire(1_501), vec![SlotName::slave("a")]);
        assert_eq!(slots.expire(100_000), vec![SlotName::slave("b")], "whoever is connected does not expire");
        assert!(slots.acked(&SlotName::slave("d"), position(1), true, at(0)));
    }

    #[test]
    fn the_slowest_slot_that_the_log_reaches_holds_it() {
        let mut slots = slots();
        slots.acked(&SlotName::slave("slow"), position(10), true, at(0));
        slots.acked(&SlotName::consumer("index"), position(20), true, at(0));
        assert_eq!(slots.slowest(Seq::new(5)), Some((&SlotName::slave("slow"), Seq::new(10))));
        assert_eq!(slots.slowest(Seq::new(11)), Some((&SlotName::consumer("index"), Seq::new(20))));
        assert_eq!(slots.slowest(Seq::new(21)), None);
        assert!(slots.forget(&SlotName::slave("slow")) && !slots.forget(&SlotName::slave("slow")));
        assert_eq!(slots.slowest(Seq::ZERO).map(|(_, seq)| seq), Some(Seq::new(20)));
    }

    #[test]
    fn what_is_stored_is_what_is_known() -> Result<(), StoreError> {
        let (mut slots, one, two) = (slots(), SlotName::slave("a/b"), SlotName::consumer("a/b"));
        slots.acked(&one, position(1), true, at(0));
        slots.acked(&two, position(2), true, at(0));
        let mut written = vec![slots.take_changes()?.unwrap()];
        assert!(slots.take_changes()?.is_none(), "nothing has changed");
        slots.acked(&one, position(1), true, at(59_999));
        assert!(slots.take_changes()?.is_none(), "a sign of life is not worth a write each time");
        slots.acked(&one, position(1), true, at(60_000));
        written.push(slots.take_changes()?.unwrap());
        slots.acked(&one, position(3), true, at(1));
        slots.forget(&two);
        let lost = slots.take_changes()?.unwrap();
        slots.unsaved(&lost);
        written.push(slots.take_changes()?.unwrap());
        let map = stored(written);
        assert_eq!(map.len(), 1);
        assert_eq!(map[&one].position, position(3));
        let again = Slots::new(SlotLimits { max: 3, expire_after_ms: None }, map);
        assert_eq!(again.all(Seq::ZERO)[0].state, SlotState::Lagging);
        Ok(())
    }

    #[test]
    fn names_survive_their_keys() {
        for name in [SlotName::slave("edge-1"), SlotName::consumer("a/b"), SlotName::slave("ä\u{1F600}")] {
            assert_eq!(SlotName::from_key(&name.key()), Some(name));
        }
        for key in [&b"slot/"[..], b"slot/other/x", b"cursor/slave/x", b"slot/slave/\xFF"] {
            assert_eq!(SlotName::from_key(key), None);
        }
    }

    #[test]
    fn a_slave_is_connected_as_long_as_one_of_its_connections_is() {
        let edge = SlotName::slave("edge");
        let slot = Slot { position: position(4), seen_unix_ms: 0, seen_uptime_ms: 0 };
        let mut slots = Slots::new(SlotLimits { max: 3, expire_after_ms: None }, [(edge.clone(), slot)]);
        for expected in [true, true] {
            slots.connected(&edge, at(7));
            assert_eq!(slots.is_connected(&edge), expected);
        }
        assert_eq!(slots.get(&edge).map(|slot| slot.seen_uptime_ms), Some(7));
        for expected in [true, false] {
            slots.disconnected(&edge, at(8));
            assert_eq!(slots.is_connected(&edge), expected);
        }
    }

    #[test]
    fn a_slot_that_comes_again_is_stored_and_others_that_were_dropped_go() -> Result<(), StoreError> {
        let mut slots = slots();
        let (one, two) = (SlotName::slave("one"), SlotName::slave("two"));
        for name in [&one, &two] {
            slots.acked(name, position(1), true, at(0));
        }
        let first = slots.take_changes()?.unwrap();
        assert!(slots.forget(&one) && slots.forget(&two));
        slots.acked(&one, position(2), true, at(0));
        let second = slots.take_changes()?.unwrap();
        assert_eq!(second.ops().count(), 2);
        assert_eq!(stored([first, second]).into_keys().collect::<Vec<_>>(), [one]);
        Ok(())
    }

    #[test]
    fn a_slot_vouches_for_its_very_position_and_reaches_the_log_that_begins_there() {
        let mut slots = slots();
        assert!(!slots.knows(&position(4)));
        slots.acked(&SlotName::slave("edge"), position(4), false, at(0));
        assert!(slots.knows(&position(4)) && !slots.knows(&position(5)));
        assert!(!slots.knows(&Position { digest: Digest::from_bytes([4; 16]), ..position(4) }));
        assert_eq!(slots.all(Seq::new(4))[0].state, SlotState::Lagging);
    }
}
