//! The slots of a simulated master: noted by its sessions, written by its commit task, as in `replikv-node`.

use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use replikv_core::{Durability, KeyRange, Keyspace, Outcome, Position, Seq, StoreError, WriteSet};
use replikv_proto::layout::Stored;
use replikv_proto::{Record, Run, Slot, SlotLimits, SlotName, SlotTime, Slots};

use super::context::{Context, MILLI, Moment};
use super::master::{Process, Task};
use super::serving::Served;
use super::store::{Reply, Request};
use super::{DriverBug, Scene};

/// How many slots a master of a run has, and for how long.
pub(super) fn limits(seed: u64) -> SlotLimits {
    // A stream of its own: what else is drawn stays what it is.
    let mut rng = Rng::with_seed(seed.rotate_left(32));
    SlotLimits { max: rng.usize(1..6), expire_after_ms: rng.bool().then(|| rng.u64(1_000..15_000)) }
}

/// Where those stand for whom a log is kept, by master, as the oracle knows it.
#[derive(Debug, Default)]
pub(super) struct Stands(BTreeMap<usize, BTreeMap<SlotName, Seq>>);

impl Stands {
    // A master is opened: what it stored is what it knows.
    fn read(&mut self, node: usize, stored: &[(SlotName, Slot)]) {
        self.0.insert(node, stored.iter().map(|(name, slot)| (name.clone(), slot.position.seq)).collect());
    }

    fn verified(&mut self, node: usize, name: &SlotName, seq: Seq) {
        if let Some(stands) = self.0.get_mut(&node).and_then(|slots| slots.get_mut(name)) {
            *stands = seq;
        }
    }

    fn acked(&mut self, node: usize, name: &SlotName, seq: Seq) {
        self.0.entry(node).or_default().insert(name.clone(), seq);
    }

    fn expired(&mut self, node: usize, name: &SlotName) {
        self.0.get_mut(&node).and_then(|slots| slots.remove(name));
    }

    /// Somebody for whom the log must be kept, and for whom it is not: it begins after `floor`, and is kept after `held`.
    pub(super) fn forgotten(&self, node: usize, floor: Seq, held: Option<Seq>) -> Option<String> {
        let mut reached = self.0.get(&node)?.iter().filter(|(_, seq)| **seq >= floor);
        let (name, seq) = reached.find(|(_, seq)| held.is_none_or(|held| held > **seq))?;
        Some(format!("{} stands at {seq}, and the log is kept after {held:?} only", name.name))
    }
}

/// The slots, and what was acknowledged since they were last written.
#[derive(Debug)]
pub(super) struct SlotBook {
    slots: Slots,
    acks: BTreeMap<SlotName, Seq>,
    /// How long masters had run on the store before this one.
    uptime_before: u64,
    began: Moment,
}

impl SlotBook {
    /// Of somebody who keeps none.
    pub(super) fn none(now: Moment) -> Self {
        let limits = SlotLimits { max: 0, expire_after_ms: None };
        Self { slots: Slots::new(limits, []), acks: BTreeMap::new(), uptime_before: 0, began: now }
    }

    /// Those of a master's store, whose log begins after `floor`.
    pub(super) fn read(ctx: &mut Context, node: usize, store: usize, floor: Seq, uptime_before: u64) -> Self {
        let maps = &ctx.stores[store].visible;
        let stored = maps.within(Keyspace::Meta, &KeyRange::prefix(SlotName::PREFIX)).into_iter();
        let stored = stored.filter_map(|(key, value)| Some((SlotName::from_key(key)?, Slot::from_bytes(value).ok()?)));
        let mut stored: Vec<(SlotName, Slot)> = stored.collect();
        ctx.oracle.stands.read(node, &stored);
        stored.retain(|(_, slot)| slot.position.seq >= floor || !ctx.planted(DriverBug::LostSlotsDropped));
        let (slots, began) = (Slots::new(ctx.slots, stored), ctx.now);
        Self { slots, acks: BTreeMap::new(), uptime_before, began }
    }

    fn time(&self, ctx: &Context, wall_offset_ms: i64) -> SlotTime {
        let uptime_ms = self.uptime_before + (ctx.now - self.began) / MILLI;
        SlotTime { unix_ms: ctx.clock(wall_offset_ms).unix_ms, uptime_ms }
    }

    /// A slave has been let in.
    pub(super) fn connected(&mut self, ctx: &Context, wall_offset_ms: i64, name: &SlotName) {
        let now = self.time(ctx, wall_offset_ms);
        self.slots.connected(name, now);
    }

    pub(super) fn disconnected(&mut self, ctx: &Context, wall_offset_ms: i64, name: &SlotName) {
        let now = self.time(ctx, wall_offset_ms);
        self.slots.disconnected(name, now);
    }

    /// A slave holds this position, which was found in the history.
    pub(super) fn verified(&mut self, ctx: &mut Context, node: usize, name: &SlotName, position: Position) {
        if self.slots.get(name).is_some_and(|slot| slot.position.seq > position.seq) {
            ctx.coverage.met(Scene::SlotLowered);
        }
        self.slots.verified(name, position);
        ctx.oracle.stands.verified(node, name, position.seq);
    }

    /// A slave says where it stands, and nobody has looked yet.
    pub(super) fn claimed(&mut self, name: &SlotName, position: Position) {
        self.slots.verified(name, position);
    }

    /// Notes what a slave holds durably. The slot follows when it is next written.
    pub(super) fn note(&mut self, name: SlotName, durable: Seq) {
        if durable > Seq::ZERO {
            self.acks.insert(name, durable);
        }
    }

    /// True if a slot stands at this very position.
    pub(super) fn knows(&self, position: &Position) -> bool {
        self.slots.knows(position)
    }

    /// Where the slowest slot is that the log reaches.
    pub(super) fn slowest(&self, floor: Seq) -> Option<Seq> {
        self.slots.slowest(floor).map(|(_, seq)| seq)
    }
}

impl Process {
    /// Brings slots up to what was acknowledged, and writes those that have changed; then the log is trimmed.
    pub(super) fn save_slots(&mut self, ctx: &mut Context) {
        let Some(open) = &mut self.open else { return };
        let acks: Vec<_> = std::mem::take(&mut open.book.acks).into_iter().collect();
        let (known, wanted): (Vec<_>, Vec<_>) = acks.into_iter().partition(|(_, seq)| in_memory(open, *seq).is_some());
        let known = known.into_iter().map(|(name, seq)| (name, in_memory(open, seq).flatten())).collect();
        if wanted.is_empty() {
            return self.bring_up(ctx, known);
        }
        let keys = wanted.iter().map(|(_, seq)| (Keyspace::Log, Bytes::copy_from_slice(&seq.to_key()))).collect();
        ctx.call(self.store, self.owner(), Request::Get(keys));
        self.task = Task::FindingAcks(known, wanted);
    }

    /// What the log holds of acknowledged records has come.
    pub(super) fn acks_found(
        &mut self,
        ctx: &mut Context,
        mut known: Vec<(SlotName, Option<Position>)>,
        wanted: Vec<(SlotName, Seq)>,
        reply: Reply,
    ) {
        // What cannot be read is acknowledged again.
        if let Ok(values) = reply.got() {
            let found = wanted.into_iter().zip(values);
            known.extend(found.map(|((name, seq), value)| (name, value.and_then(|value| position(seq, value)))));
        }
        self.bring_up(ctx, known);
    }

    fn bring_up(&mut self, ctx: &mut Context, acked: Vec<(SlotName, Option<Position>)>) {
        let Some(open) = &mut self.open else { return };
        let now = open.book.time(ctx, self.wall_offset_ms);
        for (name, position) in acked {
            // Trimmed meanwhile: the slot is where it was, and lost.
            let Some(position) = position else { continue };
            let begins = open.book.slots.get(&name).is_none();
            let connected = self.sessions.names.contains_key(&name.name);
            let there = open.book.slots.acked(&name, position, connected, now);
            if there {
                ctx.oracle.stands.acked(self.node, &name, position.seq);
            }
            if begins {
                ctx.coverage.met(if there { Scene::SlotBegun } else { Scene::SlotsFull });
            }
        }
        for name in open.book.slots.expire(now.uptime_ms) {
            ctx.coverage.met(Scene::SlotExpired);
            ctx.oracle.stands.expired(self.node, &name);
        }
        match open.book.slots.take_changes() {
            Ok(Some(writes)) => {
                ctx.call(self.store, self.owner(), Request::Apply(writes.clone(), Durability::Buffered));
                self.task = Task::WritingSlots(writes);
            }
            _ => self.trim_log(ctx),
        }
    }

    /// A failure is no loss: an older slot keeps more of the log, and the next attempt writes it.
    pub(super) fn slots_written(&mut self, ctx: &mut Context, writes: &WriteSet, result: Result<(), StoreError>) {
        let Some(open) = &mut self.open else { return };
        match result {
            Ok(()) => self.trim_log(ctx),
            Err(error) => {
                open.book.slots.unsaved(writes);
                if error.outcome() == Outcome::Unknown { self.reopen(ctx, None) } else { self.trim_log(ctx) }
            }
        }
    }
}

// The position of the record numbered `seq`, if memory tells; or that it is gone.
#[allow(clippy::option_option, reason = "the outer one is whether that is known")]
fn in_memory(open: &Served, seq: Seq) -> Option<Option<Position>> {
    let compacted = open.parts.compacted().map(|compacted| compacted.position);
    let known = [Some(open.view.published), Some(open.view.floor), compacted].into_iter().flatten();
    let held = open.ring.entry(seq).map(|entry| entry.position);
    match known.chain(held).find(|known| known.seq == seq) {
        Some(known) => Some(Some(known)),
        None if seq < open.full_after().seq => Some(None),
        None => None,
    }
}

fn position(seq: Seq, value: Bytes) -> Option<Position> {
    if Run::is_run(&value) {
        // Compacted meanwhile.
        return Run::from_bytes(seq, &value).ok().map(|run| run.end);
    }
    Record::decode(value).ok().map(|record| record.position())
}
