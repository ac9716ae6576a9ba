//! Dynasties: trees whose nodes change their places. Relays and leaves are promoted, and whoever was below one of them goes
//! on below it; masters come back as slaves below any node.

use replikv_core::KeyRanges;

use super::context::{Happening, MILLI};
use super::slave::Slave;
use super::world::World;
use super::{Config, Fault, Scene, Topology};

impl World {
    pub(super) fn populate_dynasty(&mut self, config: &Config) {
        let nodes = 3 + self.ctx.top_rng.usize(1..=config.max_slaves.clamp(1, 4));
        self.add_nodes(nodes);
        for node in 0..nodes {
            // The last ones are leaves, and may want a part of the keys.
            let keeps_log = node < 2 || node * 4 < nodes * 3;
            let ranges = if keeps_log { KeyRanges::all() } else { self.ranges() };
            (self.slaves[node].keeps_log, self.slaves[node].ranges) = (keeps_log, ranges);
            let above = self.ctx.top_rng.usize(0..=node);
            if above < node && self.slaves[above].keeps_log {
                self.below(node, above);
            }
        }
        self.ctx.after(200 * MILLI, Happening::Reorder);
        self.ctx.after(300 * MILLI, Happening::Plan);
    }

    /// A slave follows another node: as what it is, a master or a relay.
    pub(super) fn below(&mut self, slave: usize, upstream: usize) {
        let relays = self.ctx.topology == Topology::Dynasty && !self.slaves[upstream].idle;
        if relays {
            self.slaves[slave].parent = Some(upstream);
        } else {
            (self.slaves[slave].parent, self.slaves[slave].target) = (None, upstream);
        }
    }

    /// A node has become a master, or a slave: those below it stay where they are.
    pub(super) fn goes_on_below(&mut self, upstream: usize) {
        if self.ctx.topology != Topology::Dynasty {
            return;
        }
        for slave in 0..self.slaves.len() {
            let Slave { parent, target, .. } = &self.slaves[slave];
            let is_below = parent.map_or(*target == upstream, |parent| parent == upstream);
            if slave != upstream && is_below {
                if self.slaves[upstream].idle && self.slaves[slave].counts() {
                    self.ctx.coverage.met(Scene::RelayPromoted);
                }
                self.below(slave, upstream);
            }
        }
    }

    /// A node that somebody is sent to, whether he will be served there or not.
    pub(super) fn somewhere(&mut self, node: usize) -> Option<usize> {
        let dynasty = self.ctx.topology == Topology::Dynasty;
        let fit = |other: &usize| *other != node && (self.slaves[*other].idle || self.slaves[*other].keeps_log);
        let fit: Vec<usize> = (0..self.slaves.len()).filter(|other| dynasty && fit(other)).collect();
        (!fit.is_empty()).then(|| fit[self.ctx.top_rng.usize(0..fit.len())])
    }

    /// A slave finds another parent: ahead of it or behind, of a newer epoch or an older one, above it or below.
    pub(super) fn reparent_one(&mut self) {
        let slaves: Vec<usize> = self.active_slaves().collect();
        if slaves.is_empty() || !self.known.contains(&Fault::Reparented) || !self.ctx.inject(Fault::Reparented) {
            return;
        }
        let slave = slaves[self.ctx.top_rng.usize(0..slaves.len())];
        if let Some(upstream) = self.somewhere(slave) {
            self.send(slave, upstream);
        }
    }

    /// Everybody is below the master, at any depth: whoever is not, or knows of a newer epoch, is sent to it.
    pub(super) fn straighten_below(&mut self, master: usize) {
        let slaves: Vec<usize> = self.active_slaves().collect();
        for slave in &slaves {
            let moves = self.slaves[*slave].parent.is_none() && self.slaves[*slave].target != master;
            if moves || self.is_lost(*slave, master) {
                self.send(*slave, master);
            }
            self.slaves[*slave].target = master;
        }
    }

    fn is_lost(&self, slave: usize, master: usize) -> bool {
        let stands = self.ctx.stores[self.slaves[slave].store].visible.cursor().map(|cursor| cursor.position);
        let reigns = self.ctx.stores[self.masters[master].store].head().map(|head| head.position);
        let newer = stands.zip(reigns).is_some_and(|(own, master)| own.epoch.number > master.epoch.number);
        if newer && self.slaves[slave].parent.is_some() {
            return true;
        }
        let mut at = slave;
        for _ in 0..self.slaves.len() {
            let Some(parent) = self.slaves[at].parent else { return false };
            let above = &self.slaves[parent];
            if above.idle || !above.keeps_log || above.ending.is_some() {
                return true;
            }
            at = parent;
        }
        // A circle.
        true
    }
}
