//! Everything that goes wrong.

use bytes::Bytes;
use replikv_core::Keyspace;
use replikv_proto::Fence;
use replikv_proto::layout::{Checkpoint, Head};

use super::context::{Happening, MILLI, Moment, Node, Passing, SECOND};
use super::link::Side;
use super::slave::Ending;
use super::store::{Armed, Maps};
use super::world::World;
use super::{Fault, Topology};

/// So many nodes at most, with those that are there for a while.
const MOST_NODES: usize = 10;

impl World {
    /// Something goes wrong, and somebody puts right what does not come right by itself.
    pub(super) fn fault(&mut self) {
        if self.ctx.healing {
            return;
        }
        self.operate();
        self.one_fault();
        let delay = self.ctx.fault_rng.u64(1..=self.ctx.sizes.fault_delay * 2);
        self.ctx.after(delay, Happening::Fault);
    }

    /// Something goes wrong.
    pub(super) fn one_fault(&mut self) {
        if self.known.is_empty() || self.ctx.healing {
            return;
        }
        let fault = self.known[self.ctx.fault_rng.usize(0..self.known.len())];
        if self.is_possible(fault) && self.ctx.inject(fault) {
            self.strike(fault);
        }
    }

    // An operator starts again what has ended, and gives an empty store to a slave that is refused.
    fn operate(&mut self) {
        for node in 0..self.masters.len() {
            if self.masters[node].is_fenced()
                && !self.masters[node].extra
                && !self.masters[node].idle
                && self.ctx.fault_rng.u8(0..4) == 0
            {
                self.restart_master(node);
            }
        }
        for node in 0..self.slaves.len() {
            let Some(ending) = self.slaves[node].ending.clone() else { continue };
            if !self.slaves[node].counts() || self.slaves[node].unlinking.is_some() || self.ctx.fault_rng.u8(0..4) > 0 {
                continue;
            }
            let refused = matches!(ending, Ending::Refused(_));
            let wipes = refused && self.ctx.fault_rng.bool() && self.known.contains(&Fault::Wiped);
            if wipes && self.ctx.inject(Fault::Wiped) {
                self.give_image(node, Maps::default());
            } else {
                self.slaves[node].start(&mut self.ctx);
            }
        }
    }

    fn is_possible(&mut self, fault: Fault) -> bool {
        let rare = matches!(fault, Fault::Restore | Fault::EmptyMaster | Fault::StrangeData | Fault::Wiped);
        let crowded = self.masters.len() + self.slaves.len() >= MOST_NODES;
        let adds = matches!(fault, Fault::SecondMaster | Fault::ClonedMaster | Fault::SameName | Fault::SharedStore);
        if rare { self.ctx.fault_rng.u8(0..4) == 0 } else { !adds || !crowded }
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Cut => self.cut(),
            Fault::HalfOpen => self.block(),
            Fault::FlipInFlight => self.on_a_link(|link| link.flip = true),
            Fault::DuplicateMessage => self.on_a_link(|link| link.twice = true),
            Fault::LostMessage => self.on_a_link(|link| link.never = true),
            Fault::Stranger => self.stranger(),
            Fault::SlaveCrash => self.kill_slave(false),
            Fault::SlavePower => self.kill_slave(true),
            Fault::MasterCrash => self.kill_master(false),
            Fault::MasterPower => self.kill_master(true),
            Fault::Transient => self.arm(|_| Armed::Transient),
            Fault::UnknownOutcome => self.arm(|applied| Armed::Unknown { applied }),
            Fault::SyncFailure => self.arm(|_| Armed::SyncFails),
            Fault::ReadError => self.arm(|_| Armed::ReadFails),
            Fault::Full => {
                let store = self.a_store();
                self.ctx.stores[store].full = true;
                self.later(SECOND, Passing::Full(store));
            }
            Fault::SlowStore => {
                let store = self.a_store();
                self.ctx.stores[store].slow = true;
                self.later(SECOND, Passing::Slow(store));
            }
            Fault::FlipStored => self.flip_stored(),
            Fault::ClockJump => self.jump(),
            Fault::Restore => self.restore(),
            Fault::EmptyMaster => {
                let node = self.a_master();
                self.replace_master(node, Maps::default());
            }
            Fault::SecondMaster => {
                let beside = self.a_master();
                let store = self.masters[beside].store;
                self.ctx.stores[store].shared = true;
                self.ctx.stores[store].was_shared = true;
                let node = self.add_master(store, None, true);
                self.later(2 * SECOND, Passing::ExtraMaster(node));
            }
            Fault::ClonedMaster => {
                let image = self.ctx.stores[self.masters[0].store].durable.clone();
                let store = self.ctx.add_store(image);
                let node = self.add_master(store, None, true);
                self.later(8 * SECOND, Passing::ExtraMaster(node));
            }
            Fault::Repoint => {
                let any = self.a_slave();
                let slave = (0..self.slaves.len()).find(|slave| self.copies(*slave)).unwrap_or(any);
                let newest = self.masters.len() - 1;
                let master = if self.ctx.fault_rng.bool() { newest } else { self.ctx.fault_rng.usize(0..=newest) };
                self.slaves[slave].target = master;
                self.slaves[slave].drop_follow(&mut self.ctx);
            }
            Fault::SameName => {
                let like = self.a_slave();
                let (name, target) = (self.slaves[like].name.clone(), self.slaves[like].target);
                let store = self.ctx.add_store(Maps::default());
                let node = self.add_slave(name, store, target, true);
                self.later(SECOND, Passing::ExtraSlave(node));
            }
            Fault::SharedStore => {
                let like = self.a_slave();
                let (name, target) = (format!("{}-too", self.slaves[like].name), self.slaves[like].target);
                let store = self.slaves[like].store;
                self.ctx.stores[store].shared = true;
                self.ctx.stores[store].was_shared = true;
                let node = self.add_slave(name, store, target, true);
                self.slaves[node].ranges = self.slaves[like].ranges.clone();
                self.later(2 * SECOND, Passing::ExtraSlave(node));
            }
            Fault::DroppedFollow => {
                let node = self.a_slave();
                self.slaves[node].drop_follow(&mut self.ctx);
            }
            Fault::Wiped => {
                let node = self.a_slave();
                self.give_image(node, Maps::default());
            }
            Fault::Resubscribed => {
                let node = self.a_slave();
                self.resubscribe(node);
            }
            Fault::Promotion
            | Fault::Demotion
            | Fault::Moved
            | Fault::Reparented
            | Fault::Unlinked
            | Fault::TakeOver
            | Fault::FencedPromotion
            | Fault::LostAnswer => {}
            Fault::StrangeData => {
                let node = self.a_slave();
                let image = self.strange_image();
                self.give_image(node, image);
            }
        }
    }

    /// A fault passes.
    pub(super) fn pass(&mut self, passing: Passing) {
        match passing {
            Passing::Block(link, to) => {
                self.ctx.links[link].pipe(to).blocked = false;
                self.ctx.schedule_delivery(link, to);
            }
            Passing::Full(store) => self.ctx.stores[store].full = false,
            Passing::Slow(store) => self.ctx.stores[store].slow = false,
            Passing::MasterBack(node) if self.masters[node].is_down() => {
                self.masters[node].start(&mut self.ctx);
            }
            Passing::SlaveBack(node) if self.slaves[node].is_down() => {
                self.slaves[node].start(&mut self.ctx);
            }
            Passing::ExtraMaster(node) => {
                self.masters[node].kill(&mut self.ctx, false);
                self.share(self.masters[node].store);
                for slave in self.slaves.iter_mut().filter(|slave| slave.target == node) {
                    slave.target = 0;
                }
            }
            Passing::ExtraSlave(node) => {
                self.slaves[node].kill(&mut self.ctx, false);
                self.share(self.slaves[node].store);
            }
            Passing::Rest { master, step } => self.rest(master, step),
            Passing::LastAct => self.last_act(),
            Passing::Resubscribe(node) if !self.ctx.healing => self.resubscribe(node),
            Passing::MasterBack(_) | Passing::SlaveBack(_) | Passing::Resubscribe(_) => {}
        }
    }

    // One of those who shared a store is gone; there may be others. Its owner counts even while down: it comes back.
    fn share(&mut self, store: usize) {
        let uses = |used: usize, extra: bool, runs: bool| used == store && (!extra || runs);
        let masters = self.masters.iter().filter(|master| uses(master.store, master.extra, master.process.is_some()));
        let slaves = self.slaves.iter().filter(|slave| uses(slave.store, slave.extra, slave.process.is_some()));
        self.ctx.stores[store].shared = masters.count() + slaves.count() > 1;
    }

    fn later(&mut self, most: Moment, passing: Passing) {
        let delay = self.ctx.fault_rng.u64(MILLI..=most);
        self.ctx.after(delay, Happening::Pass(passing));
    }

    fn a_master(&mut self) -> usize {
        let own: Vec<usize> = (0..self.masters.len()).filter(|node| self.masters[*node].counts()).collect();
        own[self.ctx.fault_rng.usize(0..own.len())]
    }

    fn a_slave(&mut self) -> usize {
        let mut own: Vec<usize> = (0..self.slaves.len()).filter(|node| self.slaves[*node].counts()).collect();
        if own.is_empty() {
            // All of them are masters at the moment.
            own = (0..self.slaves.len()).collect();
        }
        own[self.ctx.fault_rng.usize(0..own.len())]
    }

    fn copies(&self, slave: usize) -> bool {
        let slave = &self.slaves[slave];
        let cursor = self.ctx.stores[slave.store].visible.cursor();
        !slave.extra && cursor.is_some_and(|cursor| cursor.coverage.rest().is_some())
    }

    fn a_store(&mut self) -> usize {
        if self.ctx.fault_rng.bool() {
            let node = self.a_master();
            self.masters[node].store
        } else {
            let node = self.a_slave();
            self.ctx.real(self.slaves[node].store)
        }
    }

    fn on_a_link(&mut self, change: impl FnOnce(&mut super::link::Link)) {
        if let Some(link) = self.a_link() {
            change(&mut self.ctx.links[link]);
        }
    }

    fn a_link(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.ctx.links.len()).filter(|link| !self.ctx.links[*link].is_over()).collect();
        (!open.is_empty()).then(|| open[self.ctx.fault_rng.usize(0..open.len())])
    }

    fn cut(&mut self) {
        let Some(link) = self.a_link() else { return };
        for to in [Side::Master, Side::Slave] {
            let len = self.ctx.links[link].pipe(to).bytes.len();
            let kept = self.ctx.fault_rng.usize(0..=len);
            let pipe = self.ctx.links[link].pipe(to);
            pipe.bytes.truncate(kept);
            pipe.ended = true;
            self.ctx.schedule_delivery(link, to);
        }
    }

    fn block(&mut self) {
        let Some(link) = self.a_link() else { return };
        let to = if self.ctx.fault_rng.bool() { Side::Master } else { Side::Slave };
        self.ctx.links[link].pipe(to).blocked = true;
        if self.ctx.fault_rng.bool() {
            self.later(3 * SECOND, Passing::Block(link, to));
        }
    }

    fn stranger(&mut self) {
        let master = self.a_master();
        let Some(link) = self.accept(Node::Master(master), usize::MAX) else { return };
        let len = self.ctx.fault_rng.usize(0..64);
        let mut bytes: Vec<u8> = (0..len).map(|_| self.ctx.fault_rng.u8(..)).collect();
        if self.ctx.fault_rng.bool() {
            let mut hello = replikv_proto::Preamble::OWN.to_bytes().to_vec();
            hello.append(&mut bytes);
            bytes = hello;
        } else if self.ctx.fault_rng.bool() {
            bytes.clear();
        }
        self.ctx.links[link].pipe(Side::Master).bytes.extend_from_slice(&bytes);
        self.ctx.schedule_delivery(link, Side::Master);
    }

    fn kill_slave(&mut self, power: bool) {
        let node = self.a_slave();
        let store = self.slaves[node].store;
        self.take_down(store, power);
        for other in 0..self.slaves.len() {
            let together = self.ctx.real(self.slaves[other].store) == self.ctx.real(store);
            if other == node || (together && self.ctx.topology == Topology::Centre) {
                self.later(SECOND, Passing::SlaveBack(other));
            }
        }
    }

    // Now and then again at once: what was begun is met by the next set, or by the same one.
    fn resubscribe(&mut self, node: usize) {
        let store = self.slaves[node].store;
        // Who keeps the log has all of it.
        if self.ctx.stores[store].shared || self.slaves[node].keeps_log {
            return;
        }
        if self.slaves[node].unlinking.is_some() {
            return;
        }
        if self.ctx.topology == Topology::Centre {
            // The other links of its centre go on.
            self.slaves[node].kill(&mut self.ctx, false);
        } else {
            self.take_down(store, false);
        }
        if self.ctx.range_rng.u8(0..3) > 0 {
            self.slaves[node].ranges = self.ranges();
        }
        self.slaves[node].start(&mut self.ctx);
        if self.ctx.range_rng.bool() {
            let soon = self.ctx.range_rng.u64(1..=6 * self.ctx.sizes.store_delay);
            self.ctx.after(soon, Happening::Pass(Passing::Resubscribe(node)));
        }
    }

    fn kill_master(&mut self, power: bool) {
        let node = self.a_master();
        if power {
            self.take_down(self.masters[node].store, true);
        } else {
            self.masters[node].kill(&mut self.ctx, false);
            self.ctx.stores[self.masters[node].store].process_died();
        }
        self.later(SECOND, Passing::MasterBack(node));
    }

    // Everybody who has this store open is gone; with `power`, what was not synced as well.
    pub(super) fn take_down(&mut self, store: usize, power: bool) {
        let users = self.ctx.users(store);
        let store = self.ctx.real(store);
        let uses = |used: usize| users.contains(&used);
        self.masters.iter_mut().filter(|master| uses(master.store)).for_each(|m| m.kill(&mut self.ctx, power));
        self.slaves.iter_mut().filter(|slave| uses(slave.store)).for_each(|s| s.kill(&mut self.ctx, power));
        if power {
            self.ctx.lose_power(store);
        }
        self.ctx.stores[store].process_died();
        self.unlink_again(store, power);
    }

    fn restart_master(&mut self, node: usize) {
        self.masters[node].kill(&mut self.ctx, false);
        self.masters[node].start(&mut self.ctx);
    }

    fn arm(&mut self, armed: impl Fn(bool) -> Armed) {
        let store = self.a_store();
        for _ in 0..self.ctx.fault_rng.usize(1..4) {
            let applied = self.ctx.fault_rng.bool();
            self.ctx.stores[store].armed.push_back(armed(applied));
        }
    }

    fn flip_stored(&mut self) {
        let node = self.a_master();
        let store = self.masters[node].store;
        let log = self.ctx.stores[store].visible.of(Keyspace::Log);
        if log.is_empty() {
            return;
        }
        let keys: Vec<Bytes> = log.keys().cloned().collect();
        let key = &keys[self.ctx.fault_rng.usize(0..keys.len())];
        let bit = self.ctx.fault_rng.usize(0..10_000);
        self.ctx.stores[store].flip_record(key, bit);
    }

    fn jump(&mut self) {
        let day = 24 * 3600 * 1000_i64;
        let by = self.ctx.fault_rng.i64(-day..day);
        if self.ctx.fault_rng.bool() {
            let node = self.a_master();
            self.masters[node].wall_offset_ms += by;
            self.ctx.wake(Node::Master(node));
        } else {
            let node = self.a_slave();
            self.slaves[node].wall_offset_ms += by;
            self.ctx.wake(Node::Slave(node));
        }
    }

    fn restore(&mut self) {
        let node = self.a_master();
        let store = self.masters[node].store;
        let fit: Vec<usize> = (0..self.images.len()).filter(|image| self.images[*image].0 == store).collect();
        if fit.is_empty() {
            return;
        }
        if self.ctx.fault_rng.u8(0..3) == 0 && !self.rests {
            return self.rest(node, 0);
        }
        let image = self.images[fit[self.ctx.fault_rng.usize(0..fit.len())]].1.clone();
        if self.ctx.fault_rng.bool() {
            self.masters[node].new_epoch = Some(self.ctx.fault_rng.u64(..));
        }
        self.replace_master(node, image);
    }

    // A slave rests at a checkpoint; its master is restored to before it, and writes and trims past it meanwhile. Only
    // the checkpoint can then tell that the histories parted.
    fn rest(&mut self, master: usize, step: u8) {
        let store = self.masters[master].store;
        let head = self.ctx.stores[store].head().map_or(0, |head| head.position.seq.as_u64());
        let missing = (Checkpoint::EVERY - head % Checkpoint::EVERY) % Checkpoint::EVERY;
        let next = |step| Happening::Pass(Passing::Rest { master, step });
        match step {
            0..10 => {
                self.rests = true;
                self.write(master, missing, true);
                let arrived = missing == 0 && head > 0;
                self.ctx.after(150 * MILLI, next(if arrived { 10 } else { step + 1 }));
            }
            10 if missing == 0 => {
                let older = |image: &(usize, Maps)| {
                    let at = image.1.stored::<Head>(Head::KEY);
                    image.0 == store && at.is_some_and(|at| at.position.seq.as_u64() < head)
                };
                let image = self.images.iter().rev().find(|image| older(image)).map(|image| image.1.clone());
                for node in 0..self.slaves.len() {
                    let slave = &self.slaves[node];
                    let cursor = self.ctx.stores[slave.store].visible.cursor();
                    let rests = cursor.is_some_and(|cursor| cursor.position.seq.as_u64() == head);
                    if slave.target == master && !slave.extra && rests {
                        self.take_down(self.slaves[node].store, false);
                        self.ctx.after(2 * SECOND, Happening::Pass(Passing::SlaveBack(node)));
                    }
                }
                if let Some(image) = image {
                    self.take_down(store, false);
                    self.ctx.replace_store(store, image);
                    self.masters[master].start(&mut self.ctx);
                }
                self.ctx.after(200 * MILLI, next(11));
            }
            11 => {
                self.write(master, 4 * Checkpoint::EVERY, true);
                self.rests = false;
            }
            _ => self.rests = false,
        }
    }

    fn last_act(&mut self) {
        if self.known.contains(&Fault::Wiped) && self.ctx.inject(Fault::Wiped) {
            let node = self.a_slave();
            self.give_image(node, Maps::default());
        }
        if self.known.contains(&Fault::Full) && self.ctx.inject(Fault::Full) {
            let node = self.a_master();
            self.ctx.stores[self.masters[node].store].full = true;
            self.write(node, 3, self.ctx.config.quiet);
        }
    }

    fn replace_master(&mut self, node: usize, image: Maps) {
        let store = self.masters[node].store;
        self.take_down(store, false);
        self.ctx.replace_store(store, image);
        self.later(SECOND, Passing::MasterBack(node));
    }

    fn give_image(&mut self, node: usize, image: Maps) {
        let store = self.slaves[node].store;
        self.take_down(store, false);
        // Whoever empties a store that has promised something breaks the promise.
        if self.ctx.stores[store].visible.stored::<Fence>(Fence::KEY).is_none() {
            self.ctx.replace_store(store, image);
        }
        self.slaves[node].start(&mut self.ctx);
    }
}
