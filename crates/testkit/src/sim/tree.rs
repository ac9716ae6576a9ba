//! Trees: slaves that keep the log and serve slaves of their own, which are sent from one parent to another.

use replikv_core::KeyRanges;
use replikv_proto::RejectCode;

use super::context::{Happening, MILLI, Node};
use super::slave::Ending;
use super::store::Maps;
use super::world::World;
use super::{Config, Fault, Topology};

impl World {
    pub(super) fn populate_tree(&mut self, config: &Config) {
        let store = self.ctx.add_store(Maps::default());
        let sync_every = self.sync_every();
        self.add_master(store, sync_every, false);
        let nodes = 2 + self.ctx.top_rng.usize(1..=config.max_slaves.clamp(1, 5));
        for node in 0..nodes {
            let store = self.ctx.add_store(Maps::default());
            let slave = self.add_slave(format!("node-{node}"), store, 0, false);
            let slave = &mut self.slaves[slave];
            // The last ones are leaves, and may want a part of the keys.
            slave.keeps_log = node < 2 || node * 4 < nodes * 3;
            if slave.keeps_log || self.ctx.top_rng.bool() {
                slave.ranges = KeyRanges::all();
            }
            slave.parent = node.checked_sub(1).filter(|_| self.ctx.top_rng.u8(0..4) > 0);
            if let Some(parent) = self.slaves[node].parent {
                let any = self.ctx.top_rng.usize(0..=parent);
                self.slaves[node].parent = Some(any).filter(|any| self.slaves[*any].keeps_log);
            }
        }
        self.ctx.after(200 * MILLI, Happening::Reorder);
    }

    /// A slave finds another parent: one that is ahead, one that is behind, or one below itself.
    pub(super) fn reparent(&mut self) {
        if self.ctx.healing {
            return;
        }
        let delay = self.ctx.config.pace.map_or(400 * MILLI, |millis| millis * MILLI);
        let next = self.ctx.top_rng.u64(1..=delay);
        self.ctx.after(next, Happening::Reorder);
        if !self.known.contains(&Fault::Reparented) || !self.ctx.inject(Fault::Reparented) {
            return;
        }
        let node = self.ctx.top_rng.usize(0..self.slaves.len());
        let parents: Vec<usize> = (0..self.slaves.len()).filter(|other| self.slaves[*other].keeps_log).collect();
        let any = parents[self.ctx.top_rng.usize(0..parents.len())];
        let parent = Some(any).filter(|any| *any != node && self.ctx.top_rng.u8(0..5) > 0);
        self.follow(node, parent);
    }

    fn follow(&mut self, node: usize, parent: Option<usize>) {
        self.slaves[node].parent = parent;
        self.slaves[node].drop_follow(&mut self.ctx);
        if self.slaves[node].is_down() && self.slaves[node].ending.is_some() {
            self.slaves[node].start(&mut self.ctx);
        }
        self.ctx.wake(Node::Slave(node));
    }

    /// Whoever is below a relay that is refused for good, since nothing shows any more what it shares with the master, is
    /// sent to the master.
    pub(super) fn rescue(&mut self) {
        let lost = Some(Ending::Refused(RejectCode::NeedsCompare));
        for node in 0..self.slaves.len() {
            let parent = self.slaves[node].parent.filter(|_| self.ctx.topology == Topology::Tree);
            if parent.is_some_and(|parent| self.slaves[parent].ending == lost) {
                self.follow(node, None);
            }
        }
    }

    /// Nobody follows himself: whoever is in a circle is sent to a node before him, or to the master.
    pub(super) fn straighten(&mut self) {
        if self.ctx.topology != Topology::Tree {
            return;
        }
        for node in 0..self.slaves.len() {
            if self.slaves[node].parent.is_some_and(|parent| parent >= node) {
                let parent = node.checked_sub(1).filter(|before| self.slaves[*before].keeps_log);
                self.follow(node, parent);
            }
        }
    }
}
