//! A run: nodes, the network between them, and the two phases.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use fastrand::Rng;
use replikv_core::{KeyRange, KeyRanges, Keyspace, Op};
use replikv_proto::{LogParts, PathNode, View};

use super::context::{Context, Happening, MILLI, Moment, Node, Owner, Passing};
use super::fencing::Asked;
use super::handover::TakeOver;
use super::link::{Conn, Ends, Side};
use super::master::Master;
use super::oracle::Invariant;
use super::print;
use super::slave::{Ending, Slave};
use super::store::{Maps, Reply};
use super::verdict::{Judged, Verdict};
use super::work;
use super::{Config, Fault, Report, Scene, Topology, Violation};

/// Runs seeds.
#[derive(Debug)]
pub struct Simulation;

impl Simulation {
    /// Runs one seed to its end, or to the first thing that does not hold. The same seed and settings give the same
    /// report.
    pub fn run(seed: u64, config: &Config) -> Report {
        let mut world = World::new(seed, config);
        #[cfg(feature = "planted-bugs")]
        let _planted = config.bug.map(super::Bug::plant);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).into()));
            world.ctx.oracle.fail(Invariant::NoPanic, words.unwrap_or_else(|| "a panic without words".into()));
        }
        world.report(seed, config)
    }
}

/// All nodes of a run.
#[derive(Debug)]
pub(super) struct World {
    pub(super) ctx: Context,
    pub(super) masters: Vec<Master>,
    pub(super) slaves: Vec<Slave>,
    /// Older images of the stores of masters.
    pub(super) images: Vec<(usize, Maps)>,
    /// Which faults this seed knows.
    pub(super) known: Vec<Fault>,
    sessions: u64,
    /// Those who take over, and those who are asked to wait for an epoch, by question.
    pub(super) takeovers: BTreeMap<u64, TakeOver>,
    pub(super) pledging: BTreeMap<u64, Asked>,
    pub(super) questions: u64,
    tickets: u64,
    events: u64,
    chaos_ends: Moment,
    deadline: Moment,
    settled: bool,
    outcome: (usize, usize),
    /// Nobody writes for a while.
    pub(super) rests: bool,
}

/// A relay that somebody follows.
struct Above {
    store: usize,
    served: Option<(View, LogParts)>,
    path: Vec<PathNode>,
}

/// No run needs as many; one that does runs in circles.
const MOST_EVENTS: u64 = 20_000_000;
const CHECK_EVERY: Moment = 50 * MILLI;

impl World {
    fn new(seed: u64, config: &Config) -> Self {
        let mut ctx = Context::new(seed, config);
        // Each seed knows about half of all faults; where only a few are allowed, all of these.
        let few = Fault::ALL.iter().filter(|fault| config.allows(**fault)).count() * 2 < Fault::ALL.len();
        let mut knows = |fault: Fault| if few { config.allows(fault) } else { ctx.fault_rng.u8(0..100) < 55 };
        // The last one means something only where slaves subscribe to parts of the keys.
        // And others only where nodes change their places.
        let apart = [
            Fault::Resubscribed,
            Fault::Promotion,
            Fault::Demotion,
            Fault::Moved,
            Fault::Reparented,
            Fault::Unlinked,
            Fault::TakeOver,
            Fault::FencedPromotion,
            Fault::LostAnswer,
        ];
        let others = Fault::ALL.iter().copied().filter(|fault| !apart.contains(fault));
        let mut known: Vec<Fault> = others.filter(|fault| knows(*fault)).collect();
        known.extend(apart[1..].iter().filter(|fault| config.allows(**fault)));
        known.extend(Some(Fault::Resubscribed).filter(|fault| ctx.filters && config.allows(*fault)));
        known.retain(|fault| ctx.topology.knows(*fault));
        let mut world = Self {
            ctx,
            masters: Vec::new(),
            slaves: Vec::new(),
            images: Vec::new(),
            known,
            sessions: 0,
            takeovers: BTreeMap::new(),
            pledging: BTreeMap::new(),
            questions: 0,
            tickets: 0,
            events: 0,
            chaos_ends: config.millis * MILLI,
            deadline: (config.millis + config.heal_millis) * MILLI,
            settled: false,
            outcome: (0, 0),
            rests: false,
        };
        match world.ctx.topology {
            Topology::Star => world.populate(config),
            Topology::Failover => world.populate_failover(config),
            Topology::Tree => world.populate_tree(config),
            Topology::Dynasty => world.populate_dynasty(config),
            Topology::Centre => world.populate_centre(config),
        }
        world.begin();
        world
    }

    fn populate(&mut self, config: &Config) {
        let masters = 1 + usize::from(self.ctx.work_rng.u8(0..3) == 0);
        for _ in 0..masters {
            let mut image = Maps::default();
            if self.ctx.work_rng.u8(0..10) < 3 {
                let keys = self.ctx.sizes.keys;
                for _ in 0..u64::from(keys) * 2 {
                    let rng = &mut self.ctx.work_rng;
                    let (key, value) = (work::key(rng, keys), work::value(rng));
                    image.change(Keyspace::Data, Op::Put { key: &key, value: &value });
                }
            }
            let store = self.ctx.add_store(image);
            let sync_every = self.sync_every();
            self.add_master(store, sync_every, false);
        }
        let slaves = self.ctx.work_rng.usize(1..=config.max_slaves);
        for number in 0..slaves {
            let store = self.ctx.add_store(Maps::default());
            let target = if self.ctx.work_rng.u8(0..4) == 0 { masters - 1 } else { 0 };
            let node = self.add_slave(format!("slave-{number}"), store, target, false);
            if self.ctx.work_rng.u8(0..30) == 0 {
                self.slaves[node].limits.max_value = 16;
            }
        }
    }

    fn begin(&mut self) {
        self.ctx.after(1, Happening::Work);
        let last_act = self.chaos_ends.saturating_sub(100 * MILLI);
        self.ctx.after(last_act, Happening::Pass(Passing::LastAct));
        self.ctx.after(self.ctx.sizes.fault_delay, Happening::Fault);
    }

    pub(super) fn sync_every(&mut self) -> Option<Moment> {
        let rng = &mut self.ctx.work_rng;
        (rng.u8(0..10) < 4).then(|| rng.u64(5..150) * MILLI)
    }

    pub(super) fn add_master(&mut self, store: usize, sync_every: Option<Moment>, extra: bool) -> usize {
        let node = self.masters.len();
        let mut master = Master::new(node, store, sync_every);
        master.extra = extra;
        master.start(&mut self.ctx);
        self.masters.push(master);
        node
    }

    pub(super) fn add_slave(&mut self, name: String, store: usize, target: usize, extra: bool) -> usize {
        let node = self.slaves.len();
        let sync_every = self.sync_every();
        let mut slave = Slave::new(node, name, store, target, sync_every);
        slave.extra = extra;
        slave.ranges = self.ranges();
        slave.start(&mut self.ctx);
        self.slaves.push(slave);
        node
    }

    /// What a slave subscribes to: everything, or a few ranges.
    pub(super) fn ranges(&mut self) -> KeyRanges {
        let Context { range_rng: rng, sizes, filters, .. } = &mut self.ctx;
        if !*filters || rng.u8(0..4) == 0 {
            return KeyRanges::all();
        }
        let count = 1 + usize::from(rng.bool());
        let range = |rng: &mut Rng| match rng.u8(0..4) {
            0 => KeyRange::prefix([b'a' + rng.u8(0..4)]),
            1 => KeyRange::from_bounds(work::key(rng, sizes.keys)..),
            2 => KeyRange::only(work::key(rng, sizes.keys)),
            _ => {
                let (one, other) = (work::key(rng, sizes.keys), work::key(rng, sizes.keys));
                KeyRange::from_bounds(one.clone().min(other.clone())..=one.max(other))
            }
        };
        (0..count).map(|_| range(rng)).collect()
    }

    fn run(&mut self) {
        while self.ctx.oracle.violation.is_none() && !self.settled {
            let Some(happening) = self.ctx.next() else {
                return self.ctx.oracle.fail(Invariant::Convergence, "nothing is left to happen");
            };
            self.events += 1;
            if !self.ctx.healing && self.ctx.now >= self.chaos_ends {
                self.heal();
            }
            self.ctx.trace(self.ctx.now);
            self.happen(happening);
            if self.events > MOST_EVENTS {
                self.ctx.oracle.fail(Invariant::Convergence, "too many events: something runs in circles");
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Effect(call) => self.ctx.effect(call),
            Happening::Done(call) => {
                if let Some((owner, reply)) = self.ctx.done(call) {
                    self.answered(owner, reply);
                }
            }
            Happening::Deliver(link, to) => self.deliver(link, to),
            Happening::Wake(node) => self.wake(node),
            Happening::Work => self.work(),
            Happening::Fault => self.fault(),
            Happening::OneFault => self.one_fault(),
            Happening::Pass(passing) => self.pass(passing),
            Happening::Check => self.check(),
            Happening::Reorder if self.ctx.topology == Topology::Tree => self.reparent(),
            Happening::Reorder if self.ctx.topology == Topology::Centre => self.relink(),
            Happening::Gathered(centre) => self.ctx.gathered(centre),
            Happening::Gather(centre) => self.ctx.gather(centre),
            Happening::Unlink(node, life) if life == self.slaves[node].lives => self.unlink(node),
            Happening::Unlink(..) => {}
            Happening::Reorder => self.reorder(),
            Happening::Plan => self.plan(),
            Happening::Handing(handing) => self.handing(handing),
            Happening::Fencing(question) => self.fencing(question),
        }
    }

    fn answered(&mut self, owner: Owner, reply: Reply) {
        match owner {
            Owner::Commit { node, .. }
            | Owner::Compact { node, .. }
            | Owner::Session { node: Node::Master(node), .. } => {
                self.masters[node].answered(&mut self.ctx, owner, reply);
                self.wake(Node::Master(node));
            }
            Owner::Unlink { node, life } => self.unlinked(node, life, reply),
            Owner::Follow { node, .. }
            | Owner::Apply { node, .. }
            | Owner::Tidy { node, .. }
            | Owner::Session { node: Node::Slave(node), .. } => {
                self.slaves[node].answered(&mut self.ctx, owner, reply);
                self.wake(Node::Slave(node));
            }
        }
    }

    /// Lets a node do what it can, and the network move what it was given.
    pub(super) fn wake(&mut self, node: Node) {
        match node {
            Node::Master(node) => {
                self.masters[node].run(&mut self.ctx);
                let Some(process) = &mut self.masters[node].process else { return };
                let links = process.sessions.listening();
                links.into_iter().for_each(|link| self.pull(link, Side::Master));
            }
            Node::Slave(node) => {
                if self.slaves[node].promoted {
                    return self.take_office(node);
                }
                self.slaves[node].run(&mut self.ctx);
                self.ask_others(node);
                if self.slaves[node].wants_connection(self.ctx.now) {
                    self.connect(node);
                }
                if self.slaves[node].listens()
                    && let Some(link) = self.slaves[node].conn().map(|conn| conn.link)
                {
                    self.pull(link, Side::Slave);
                }
                let links = self.slaves[node].relay().map(|relay| relay.sessions.listening()).unwrap_or_default();
                links.into_iter().for_each(|link| self.pull(link, Side::Master));
            }
        }
    }

    // Whoever listens again gets what waits for it.
    fn pull(&mut self, link: usize, to: Side) {
        let pipe = self.ctx.links[link].pipe(to);
        if !pipe.bytes.is_empty() || pipe.ended {
            self.ctx.schedule_delivery(link, to);
        }
    }

    fn connect(&mut self, node: usize) {
        let server = self.slaves[node].server();
        let Some(link) = self.accept(server, node) else {
            return self.slaves[node].not_connected(&mut self.ctx);
        };
        let conn = Conn::new(&self.ctx, link, Side::Slave);
        self.slaves[node].connected(&mut self.ctx, conn);
    }

    /// A connection to somebody who serves, from a slave or from a stranger.
    pub(super) fn accept(&mut self, server: Node, slave: usize) -> Option<usize> {
        let (sessions, served) = match server {
            Node::Master(node) => {
                let wall = self.masters[node].wall_offset_ms;
                let process = self.masters[node].process.as_mut()?;
                process.sessions.wall_offset_ms = wall;
                let open = process.open.as_ref().filter(|open| open.serves())?;
                (&mut process.sessions, &open.served)
            }
            Node::Slave(node) => {
                let relay = self.slaves[node].relay()?;
                let Some(served) = &relay.served else {
                    // It says so, and whoever came tries again.
                    self.ctx.coverage.met(Scene::RelayServesNobody);
                    return None;
                };
                (&mut relay.sessions, served)
            }
        };
        self.sessions += 1;
        let session = self.sessions;
        let link = self.ctx.connect(Ends { server, session, slave });
        sessions.enter(&mut self.ctx, session, link, served);
        Some(link)
    }

    fn deliver(&mut self, link: usize, to: Side) {
        let Ends { server, session, slave } = self.ctx.links[link].ends;
        let Context { links, net_rng, .. } = &mut self.ctx;
        let flip = links[link].flip;
        let pipe = links[link].pipe(to);
        pipe.scheduled = false;
        if pipe.blocked {
            return;
        }
        let receiver = match to {
            Side::Master => {
                let sessions = match server {
                    Node::Master(node) => self.masters[node].process.as_mut().map(|process| &mut process.sessions),
                    Node::Slave(node) => self.slaves[node].relay().map(|relay| &mut relay.sessions),
                };
                let session = sessions.and_then(|sessions| sessions.map.get_mut(&session));
                session.map(|session| (session.listens(), session.conn()))
            }
            Side::Slave => self.slaves.get_mut(slave).and_then(|slave| {
                let listens = slave.listens();
                slave.conn().filter(|conn| conn.link == link).map(|conn| (listens, conn))
            }),
        };
        let Some((listens, conn)) = receiver else {
            // Nobody is there any more.
            pipe.bytes.clear();
            pipe.ended = true;
            return;
        };
        if !listens {
            return;
        }
        let all = pipe.bytes.len();
        let len = if all > 1 && net_rng.bool() { net_rng.usize(1..=all) } else { all };
        let mut bytes = pipe.bytes.split_to(len);
        if flip && len > 0 {
            let bit = net_rng.usize(0..len * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let ended = pipe.ended && pipe.bytes.is_empty();
        let more = !pipe.bytes.is_empty();
        conn.receive(&bytes, ended);
        if flip && len > 0 {
            links[link].flip = false;
        }
        self.ctx.trace(print::mix(link as u64, &bytes));
        if more {
            self.ctx.schedule_delivery(link, to);
        }
        let nodes = [server, Node::Slave(slave)];
        let order = if to == Side::Master { nodes } else { [nodes[1], nodes[0]] };
        for node in order {
            if !matches!(node, Node::Slave(slave) if slave >= self.slaves.len()) {
                self.wake(node);
            }
        }
    }

    fn work(&mut self) {
        if self.ctx.healing {
            return;
        }
        if self.rests {
            return self.ctx.after(20 * MILLI, Happening::Work);
        }
        let delay = self.ctx.sizes.work_delay;
        let (next, burst) = {
            let rng = &mut self.ctx.work_rng;
            let burst = if rng.u8(0..12) == 0 { rng.u64(20..120) } else { rng.u64(0..4) };
            (rng.u64(1..=delay * 2), burst)
        };
        let running: Vec<usize> =
            (0..self.masters.len()).filter(|node| self.masters[*node].opened().is_some()).collect();
        if !running.is_empty() {
            let node = running[self.ctx.work_rng.usize(0..running.len())];
            let quiet = self.ctx.config.quiet;
            self.write(node, if quiet { 1 } else { burst }, quiet);
            // So many single puts that a slave which subscribes to little is not touched by a long run of them.
            if self.ctx.filters && self.ctx.range_rng.u8(0..12) == 0 {
                self.write(node, 200, true);
            }
        }
        self.ctx.after(next, Happening::Work);
    }

    /// Somebody writes so many batches at once; plain puts, if `quiet`.
    pub(super) fn write(&mut self, node: usize, batches: u64, quiet: bool) {
        let store = self.masters[node].store;
        for _ in 0..batches {
            self.tickets += 1;
            let Context { work_rng, sizes, coverage, stores, .. } = &mut self.ctx;
            let now = stores[store].visible.of(Keyspace::Data);
            let (work, promise) = work::draw(work_rng, self.tickets, now, (sizes.keys, quiet), coverage);
            self.masters[node].submit(&mut self.ctx, self.tickets, work, promise);
        }
        if self.ctx.work_rng.u8(0..40) == 0 && !self.masters[node].extra {
            self.images.retain(|(of, _)| self.ctx.stores.len() > *of);
            if self.images.len() > 6 {
                self.images.remove(0);
            }
            self.images.push((store, self.ctx.stores[store].durable.clone()));
        }
        self.wake(Node::Master(node));
    }

    // Faults and writes end. What is one too many goes, what is down comes back.
    fn heal(&mut self) {
        self.ctx.healing = true;
        self.order();
        self.straighten();
        for node in 0..self.masters.len() {
            let master = &mut self.masters[node];
            if master.extra {
                master.kill(&mut self.ctx, false);
            }
        }
        for slave in &mut self.slaves {
            if slave.extra {
                slave.kill(&mut self.ctx, false);
            } else if self.masters[slave.target].extra {
                slave.target = 0;
            }
        }
        self.ctx.stores.iter_mut().for_each(super::store::ModelStore::heal);
        for link in 0..self.ctx.links.len() {
            self.mend(link);
        }
        for node in 0..self.masters.len() {
            let master = &mut self.masters[node];
            let fenced = master.is_fenced() || master.is_overtaken(&self.ctx);
            if !master.extra && !master.idle && (master.process.is_none() || fenced) {
                master.kill(&mut self.ctx, false);
                master.start(&mut self.ctx);
            }
            self.wake(Node::Master(node));
        }
        for node in 0..self.slaves.len() {
            let slave = &mut self.slaves[node];
            if !slave.extra && !slave.idle && slave.process.is_none() && slave.unlinking.is_none() {
                slave.start(&mut self.ctx);
            }
            self.wake(Node::Slave(node));
        }
        self.ctx.after(CHECK_EVERY, Happening::Check);
    }

    fn mend(&mut self, link: usize) {
        self.ctx.links[link].forgive();
        let tainted = self.ctx.links[link].tainted;
        for (to, from) in [(Side::Master, Side::Slave), (Side::Slave, Side::Master)] {
            // A side that hears nothing any more is gone, and its peer learns of it at last.
            let gone = self.ctx.links[link].pipe(from).ended;
            let pipe = self.ctx.links[link].pipe(to);
            let was_blocked = std::mem::replace(&mut pipe.blocked, false);
            pipe.ended |= tainted || (was_blocked && gone);
            if was_blocked || tainted {
                pipe.scheduled = false;
                self.ctx.schedule_delivery(link, to);
            }
        }
    }

    fn check(&mut self) {
        let mut missing = Vec::new();
        let mut outcome = (0, 0);
        self.order();
        self.rescue();
        for node in 0..self.masters.len() {
            let master = &self.masters[node];
            if !master.extra && !master.idle && (master.is_fenced() || master.is_overtaken(&self.ctx)) {
                self.masters[node].kill(&mut self.ctx, false);
                self.masters[node].start(&mut self.ctx);
            }
        }
        for node in 0..self.slaves.len() {
            if self.slaves[node].extra || self.slaves[node].idle {
                continue;
            }
            if self.slaves[node].unlinking.is_some() {
                missing.push(format!("{}: its link is being undone", self.slaves[node].name));
                continue;
            }
            match self.is_settled(node) {
                Ok(true) => outcome.0 += 1,
                Ok(false) => outcome.1 += 1,
                Err(words) => missing.push(format!("{}: {words}", self.slaves[node].name)),
            }
        }
        if missing.is_empty() {
            (self.settled, self.outcome) = (true, outcome);
        } else if self.ctx.now >= self.deadline {
            self.ctx.oracle.fail(Invariant::Convergence, missing.join("; "));
        } else {
            self.ctx.after(CHECK_EVERY, Happening::Check);
        }
    }

    // True if the slave equals its master, false if it is refused as it must be.
    fn is_settled(&mut self, node: usize) -> Result<bool, String> {
        let relay = self.served_by(node);
        let slave = &mut self.slaves[node];
        let master = &self.masters[slave.target];
        let Some(open) = master.opened() else { return Err("its master is not open".into()) };
        let hello = slave.hello(&self.ctx);
        let (view, parts) = relay.as_ref().and_then(|relay| relay.served).unwrap_or((open.view, open.parts));
        let judged = Judged {
            model: &self.ctx.oracle.model,
            store: &self.ctx.stores[relay.as_ref().map_or(master.store, |relay| relay.store)],
            view,
            parts,
            limits: open.limits,
            epochs: Some(&open.epochs[..]).filter(|_| self.ctx.topology != Topology::Star),
            path: relay.as_ref().map(|relay| &relay.path[..]),
            found_empty: None,
        };
        match &slave.ending {
            None => {}
            Some(Ending::Refused(code)) if judged.verdicts(&hello).contains(&Verdict::Refuse(*code)) => {
                return Ok(false);
            }
            Some(ending) => {
                // Somebody looks, and starts it again.
                let words = format!("{ending:?}, which is not what its situation demands");
                slave.start(&mut self.ctx);
                return Err(words);
            }
        }
        let Some(head) = self.ctx.stores[master.store].head() else { return Err("its master has no head".into()) };
        let Some(cursor) = hello.cursor else { return Err("it has no cursor".into()) };
        if view.published != head.position {
            return Err(format!("its master has published up to {} only", view.published));
        }
        if cursor.position != head.position || !cursor.is_consistent() {
            return Err(format!("it stands at {}, its master at {}", cursor.position, head.position));
        }
        let (own, theirs) = (&self.ctx.stores[slave.store].visible, &self.ctx.stores[master.store].visible);
        let ranges = &slave.ranges;
        let wanted = theirs.of(Keyspace::Data).iter().filter(|(key, _)| ranges.contains(key));
        if (ranges.is_all() && own.print != theirs.print) || !own.of(Keyspace::Data).iter().eq(wanted) {
            return Err("it stands where its master stands, and holds other data".into());
        }
        if !slave.tells_durable() {
            return Err("it holds what its master holds, and calls less of it durable".into());
        }
        Ok(true)
    }

    // The relay that a slave follows.
    fn served_by(&mut self, node: usize) -> Option<Above> {
        let parent = self.slaves[node].parent?;
        let store = self.slaves[parent].store;
        let served = self.slaves[parent].relay().and_then(|relay| relay.served.as_ref());
        let path = served.and_then(|served| served.path.clone()).unwrap_or_default();
        Some(Above { store, served: served.map(|served| (served.view, served.parts)), path })
    }

    fn report(self, seed: u64, config: &Config) -> Report {
        let violation: Option<Violation> = self.ctx.oracle.violation.clone();
        Report {
            seed,
            config: config.clone(),
            trace: self.ctx.hash(),
            events: self.events,
            millis: self.ctx.now / MILLI,
            records: self.ctx.oracle.records,
            converged: self.outcome.0,
            refused: self.outcome.1,
            coverage: self.ctx.coverage,
            violation,
        }
    }

    /// An image with data that came from no master.
    pub(super) fn strange_image(&mut self) -> Maps {
        let mut image = Maps::default();
        for key in ["a00", "strange"] {
            let value = Bytes::from_static(b"from elsewhere");
            image.change(Keyspace::Data, Op::Put { key: key.as_bytes(), value: &value });
        }
        image
    }
}
