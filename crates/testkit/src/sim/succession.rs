//! Slaves that are promoted, and masters that come back as slaves.
//!
//! Every node has a store that is a master's at one time and a slave's at another. The one who is responsible makes all
//! the mistakes that can be made: promotes while the master goes on, promotes two at once, leaves slaves where they were,
//! and sends others to a master whose time is over.

use replikv_core::{Cursor, KeyRanges};
use replikv_proto::OnDivergence;
use replikv_proto::layout::Role;

use super::context::{Happening, MILLI, Moment};
use super::store::Maps;
use super::world::World;
use super::{Config, Fault, Topology};

impl World {
    pub(super) fn populate_failover(&mut self, config: &Config) {
        let nodes = 2 + self.ctx.top_rng.usize(1..=config.max_slaves.clamp(1, 4));
        self.add_nodes(nodes);
        self.slaves[0].ranges = KeyRanges::all();
        self.ctx.replicated = self.ctx.plan_rng.usize(1..nodes);
        self.ctx.after(200 * MILLI, Happening::Reorder);
        self.ctx.after(300 * MILLI, Happening::Plan);
    }

    /// Nodes that are a master at one time and a slave at another: at first all are slaves of the first one.
    pub(super) fn add_nodes(&mut self, nodes: usize) {
        for node in 0..nodes {
            let store = self.ctx.add_store(Maps::default());
            let sync_every = self.sync_every();
            let master = self.add_master(store, sync_every, false);
            self.masters[master].idle = node > 0;
            let slave = self.add_slave(format!("node-{node}"), store, 0, false);
            let slave = &mut self.slaves[slave];
            slave.idle = node == 0;
            if self.ctx.top_rng.u8(0..3) > 0 {
                slave.ranges = KeyRanges::all();
            }
            if self.ctx.top_rng.u8(0..3) > 0 {
                slave.on_divergence = OnDivergence::Resync;
            }
        }
        for node in 0..nodes {
            // They were started together; one of both is not there.
            if node == 0 {
                self.slaves[node].kill(&mut self.ctx, false);
            } else {
                self.masters[node].kill(&mut self.ctx, false);
            }
        }
    }

    /// Nodes change their places.
    pub(super) fn reorder(&mut self) {
        if self.ctx.healing {
            return;
        }
        let next = self.pace();
        self.ctx.after(next, Happening::Reorder);
        match self.ctx.top_rng.u8(0..10) {
            0..4 => self.promote_one(),
            4..7 => self.demote_one(),
            _ if self.ctx.topology == Topology::Dynasty && self.ctx.top_rng.u8(0..3) > 0 => self.reparent_one(),
            _ => self.move_one(),
        }
    }

    fn pace(&mut self) -> Moment {
        let delay = self.ctx.config.pace.map_or(250 * MILLI, |millis| millis * MILLI);
        self.ctx.top_rng.u64(1..=delay)
    }

    fn promote_one(&mut self) {
        // One that died while it was promoted may be a master already.
        let is_slave = |node: &usize| {
            let identity = self.ctx.stores[self.slaves[*node].store].identity();
            identity.is_none_or(|identity| identity.role == Role::Slave) && !self.slaves[*node].is_promoting()
        };
        let fit: Vec<usize> = self.active_slaves().filter(is_slave).collect();
        if fit.len() < 2 || !self.known.contains(&Fault::Promotion) || !self.ctx.inject(Fault::Promotion) {
            return;
        }
        let node = fit[self.ctx.top_rng.usize(0..fit.len())];
        let target = if self.ctx.topology == Topology::Dynasty { self.newest() } else { self.slaves[node].target };
        // Its master is gone; or goes on, and nobody can know.
        match self.ctx.top_rng.u8(0..6) {
            0 => self.take_down(self.masters[target].store, false),
            1 => self.take_down(self.masters[target].store, true),
            _ => {}
        }
        if self.masters[target].is_down() {
            let back = self.ctx.top_rng.u64(MILLI..=1_000 * MILLI);
            self.ctx.after(back, Happening::Pass(super::context::Passing::MasterBack(target)));
        }
        self.slaves[node].promote(&mut self.ctx);
        // Somebody else has had the same idea.
        if fit.len() > 2 && self.ctx.top_rng.u8(0..4) == 0 {
            let others: Vec<usize> = fit.into_iter().filter(|other| *other != node).collect();
            let other = others[self.ctx.top_rng.usize(0..others.len())];
            if self.ctx.inject(Fault::Promotion) {
                self.slaves[other].promote(&mut self.ctx);
            }
        }
        // Some move over as soon as they can.
        for other in self.active_slaves().collect::<Vec<_>>() {
            if self.ctx.top_rng.bool() {
                self.below(other, node);
                self.slaves[other].drop_follow(&mut self.ctx);
            }
        }
    }

    fn demote_one(&mut self) {
        let newest = self.newest();
        let outdated: Vec<usize> = self.active_masters().filter(|node| *node != newest).collect();
        if outdated.is_empty() || !self.known.contains(&Fault::Demotion) || !self.ctx.inject(Fault::Demotion) {
            return;
        }
        let node = outdated[self.ctx.top_rng.usize(0..outdated.len())];
        let upstream = self.somewhere(node).unwrap_or(newest);
        self.demote(node, upstream);
    }

    fn move_one(&mut self) {
        let (slaves, masters): (Vec<usize>, Vec<usize>) =
            (self.active_slaves().collect(), self.active_masters().collect());
        if slaves.is_empty() || !self.known.contains(&Fault::Moved) || !self.ctx.inject(Fault::Moved) {
            return;
        }
        let slave = slaves[self.ctx.top_rng.usize(0..slaves.len())];
        let any = masters[self.ctx.top_rng.usize(0..masters.len())];
        let target = if self.ctx.top_rng.u8(0..3) > 0 { self.newest() } else { any };
        self.send(slave, target);
    }

    // It follows another one, and tries again if it had given up.
    pub(super) fn send(&mut self, slave: usize, target: usize) {
        self.below(slave, target);
        self.slaves[slave].drop_follow(&mut self.ctx);
        if self.slaves[slave].is_down() {
            self.slaves[slave].start(&mut self.ctx);
        }
    }

    // A master becomes a slave.
    fn demote(&mut self, node: usize, target: usize) {
        self.masters[node].kill(&mut self.ctx, false);
        self.ctx.stores[self.masters[node].store].process_died();
        (self.masters[node].idle, self.slaves[node].idle) = (true, false);
        self.slaves[node].rejoins = true;
        self.below(node, target);
        self.goes_on_below(node);
        self.slaves[node].start(&mut self.ctx);
    }

    /// A slave's store has become a master's.
    pub(super) fn take_office(&mut self, node: usize) {
        let slave = &mut self.slaves[node];
        (slave.promoted, slave.idle) = (false, true);
        self.masters[node].idle = false;
        self.masters[node].wall_offset_ms = slave.wall_offset_ms;
        self.masters[node].start(&mut self.ctx);
        self.goes_on_below(node);
    }

    /// Everybody finds his place: there is one master, and all others follow it.
    pub(super) fn order(&mut self) {
        if !self.ctx.topology.passes_on() || self.slaves.iter().any(super::slave::Slave::is_promoting) {
            return;
        }
        for node in self.active_masters().collect::<Vec<_>>() {
            self.resign(node);
        }
        let newest = self.newest();
        self.lift_fences(newest);
        let reigns = self.masters[newest].counts() && !self.masters[newest].superseded;
        for node in self.active_masters().collect::<Vec<_>>() {
            if node != newest || !reigns {
                self.demote(node, newest);
            }
        }
        if !reigns && let Some(heir) = self.heir() {
            // The one who took over is gone: whoever has come furthest in the newest epoch takes over from him.
            return self.slaves[heir].promote(&mut self.ctx);
        }
        if self.ctx.topology == Topology::Dynasty {
            return self.straighten_below(newest);
        }
        for node in self.active_slaves().collect::<Vec<_>>() {
            if self.slaves[node].target != newest {
                self.send(node, newest);
            }
        }
    }

    // A promotion that was believed in, and that a failed sync has taken back: the store is a slave's as before.
    fn resign(&mut self, node: usize) {
        let identity = self.ctx.stores[self.masters[node].store].identity();
        if identity.is_some_and(|identity| identity.role == Role::Slave) {
            self.masters[node].kill(&mut self.ctx, false);
            (self.masters[node].idle, self.slaves[node].idle) = (true, false);
            self.goes_on_below(node);
            self.slaves[node].start(&mut self.ctx);
        }
    }

    // The slave that is as far in the newest epoch as any, once all who were masters stand where they stood.
    fn heir(&self) -> Option<usize> {
        let steps_down = |node: usize| {
            let identity = self.ctx.stores[self.slaves[node].store].identity();
            identity.is_some_and(|identity| identity.role == Role::Master)
        };
        if self.active_slaves().any(steps_down) {
            return None;
        }
        let stands = |node: &usize| {
            let maps = &self.ctx.stores[self.slaves[*node].store].visible;
            let cursor = maps.cursor().filter(|cursor| cursor.is_consistent() && self.slaves[*node].ranges.is_all());
            cursor.map(|Cursor { position, .. }| (position.epoch.number, position.seq, position.epoch.nonce))
        };
        self.active_slaves().filter(|node| stands(node).is_some()).max_by_key(stands)
    }

    // The master of the highest epoch; of twins the one who has come further.
    pub(super) fn newest(&self) -> usize {
        let at = |node: &usize| {
            let head = self.ctx.stores[self.masters[*node].store].head().map(|head| head.position);
            head.map(|head| (head.epoch.number, head.seq, head.epoch.nonce))
        };
        self.active_masters().max_by_key(at).unwrap_or_default()
    }

    fn active_masters(&self) -> impl Iterator<Item = usize> {
        (0..self.masters.len()).filter(|node| self.masters[*node].counts())
    }

    pub(super) fn active_slaves(&self) -> impl Iterator<Item = usize> {
        (0..self.slaves.len()).filter(|node| self.slaves[*node].counts())
    }
}
