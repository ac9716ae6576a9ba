//! What every simulated node shares: time, the queue of events, stores, connections, seeded randomness, the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use replikv_core::{Durability, Keyspace, Op, Seq};
use replikv_proto::layout::Role;
use replikv_proto::{Compression, FenceRefusal, Fenced, Now, SlotLimits};

use super::centre::Gatherer;
use super::compact::Plan;
use super::fencing::Question;
use super::handover::{Answer, Handing};
use super::link::{Ends, Link, Side};
use super::oracle::{Before, Oracle};
use super::print;
use super::serving::Served;
use super::slots;
use super::store::{Effect, Maps, ModelStore, Reply, Request};
use super::{Bug, Config, Coverage, DriverBug, Fault, Scene, Topology};

/// A moment of virtual time, in microseconds.
pub(super) type Moment = u64;

pub(super) const MILLI: Moment = 1_000;
pub(super) const SECOND: Moment = 1_000_000;

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happening {
    /// A call takes effect in its store.
    Effect(u64),
    /// A call is answered.
    Done(u64),
    /// Bytes arrive.
    Deliver(usize, Side),
    Wake(Node),
    /// Somebody writes.
    Work,
    /// Something goes wrong, now and again.
    Fault,
    /// Something goes wrong, once.
    OneFault,
    /// What went wrong passes.
    Pass(Passing),
    /// Is everything as it should be at last?
    Check,
    /// Nodes change their places.
    Reorder,
    /// And in order.
    Plan,
    /// A slave takes over from its master.
    Handing(Handing),
    /// A slave asks others to wait for its epoch.
    Fencing(Question),
    /// What links handed over takes effect.
    Gathered(usize),
    /// What they have handed over since is taken.
    Gather(usize),
    /// A link that is being undone goes on with that, in this life of whoever undoes it.
    Unlink(usize, u64),
}

/// A fault that passes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    Block(usize, Side),
    Full(usize),
    Slow(usize),
    MasterBack(usize),
    SlaveBack(usize),
    /// A node that was one too many goes.
    ExtraMaster(usize),
    ExtraSlave(usize),
    /// A master is restored while a slave rests at a checkpoint, step by step.
    Rest {
        master: usize,
        step: u8,
    },
    /// A slave that was started with other key ranges is started again.
    Resubscribe(usize),
    /// The last thing before faults end: a write that fails, and a slave that has everything to copy.
    LastAct,
}

/// A node, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    Master(usize),
    Slave(usize),
}

/// Who waits for the answer of a store. `life` tells one process of a node from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Commit {
        node: usize,
        life: u64,
    },
    /// Of a master: its log is compacted.
    Compact {
        node: usize,
        life: u64,
    },
    Session {
        node: Node,
        life: u64,
        session: u64,
    },
    /// Of a relay: its log is trimmed.
    Tidy {
        node: usize,
        life: u64,
    },
    /// Whoever undoes a link.
    Unlink {
        node: usize,
        life: u64,
    },
    Follow {
        node: usize,
        life: u64,
    },
    Apply {
        node: usize,
        life: u64,
    },
}

impl Owner {
    fn process(self) -> (Node, u64) {
        match self {
            Self::Commit { node, life } | Self::Compact { node, life } => (Node::Master(node), life),
            Self::Session { node, life, .. } => (node, life),
            Self::Follow { node, life }
            | Self::Apply { node, life }
            | Self::Tidy { node, life }
            | Self::Unlink { node, life } => (Node::Slave(node), life),
        }
    }
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) store: usize,
    owner: Owner,
    pub(super) request: Request,
    reply: Option<Reply>,
    number: u64,
    answered_at: Moment,
}

/// How large and how frequent everything is in this run: small, so that what is rare elsewhere is common here.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    pub(super) chunk: usize,
    pub(super) group_bytes: usize,
    pub(super) apply_bytes: usize,
    pub(super) ring: usize,
    /// From how many records on a session whose slave they do not concern passes them by.
    pub(super) least_passed: u64,
    pub(super) high_water: usize,
    pub(super) socket: usize,
    pub(super) max_batch: usize,
    pub(super) retention: u64,
    pub(super) hold_back: u64,
    pub(super) max_age_ms: Option<u64>,
    pub(super) heartbeat: Duration,
    pub(super) store_delay: Moment,
    pub(super) net_delay: Moment,
    pub(super) work_delay: Moment,
    pub(super) fault_delay: Moment,
    /// How many keys there are under each prefix.
    pub(super) keys: u8,
    /// What connections are compressed with, now and then, if this build has anything.
    pub(super) compression: Option<Compression>,
}

/// Hello and welcome are no longer together, with 64 checkpoints in each.
const HANDSHAKE_BYTES: usize = 8 << 10;

impl Sizes {
    fn draw(rng: &mut Rng) -> Self {
        let retention = rng.u64(4_000..60_000);
        let mut sizes = Self {
            chunk: rng.usize(40..700),
            group_bytes: rng.usize(200..8_000),
            apply_bytes: rng.usize(100..4_000),
            ring: rng.usize(0..20_000),
            least_passed: 1 + retention % 6,
            compression: usize::try_from(retention % 13).ok().and_then(|way| Compression::ALL.get(way).copied()),
            high_water: rng.usize(100..2_000),
            socket: rng.usize(64..4_000),
            max_batch: 4_096,
            retention,
            hold_back: retention * rng.u64(1..4),
            max_age_ms: rng.bool().then(|| rng.u64(1_000..10_000)),
            heartbeat: Duration::from_millis(rng.u64(50..400)),
            store_delay: rng.u64(20..3_000),
            net_delay: rng.u64(50..15_000),
            work_delay: rng.u64(4..60) * MILLI,
            fault_delay: rng.u64(60..600) * MILLI,
            keys: if rng.u8(0..4) == 0 { rng.u8(30..80) } else { rng.u8(2..20) },
        };
        // A handshake gets five heartbeats. Where bytes take longer than that, nobody would ever be welcomed.
        let handshake = sizes.net_delay * HANDSHAKE_BYTES.div_ceil(sizes.socket) as u64;
        sizes.heartbeat = sizes.heartbeat.max(Duration::from_micros(handshake / 5));
        sizes
    }
}

/// Shared by all nodes of a run.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) now: Moment,
    pub(super) stores: Vec<ModelStore>,
    pub(super) links: Vec<Link>,
    pub(super) config: Config,
    pub(super) sizes: Sizes,
    pub(super) oracle: Oracle,
    pub(super) coverage: Coverage,
    pub(super) healing: bool,
    /// Whether slaves verify.
    pub(super) verifies: bool,
    /// One stream of numbers for each concern, so that switching a fault off changes as little else as possible.
    pub(super) store_rng: Rng,
    pub(super) net_rng: Rng,
    pub(super) work_rng: Rng,
    pub(super) fault_rng: Rng,
    pub(super) range_rng: Rng,
    pub(super) top_rng: Rng,
    pub(super) plan_rng: Rng,
    /// How many slaves a writer waits for.
    pub(super) replicated: usize,
    /// What masters have said to those who want to take over, and slaves to those who want to be followed, by question.
    pub(super) answers: BTreeMap<u64, Answer>,
    pub(super) pledges: BTreeMap<u64, Result<Fenced, FenceRefusal>>,
    /// Whether slaves subscribe to parts of the keys.
    pub(super) filters: bool,
    /// Whether masters compact their logs, and how.
    pub(super) compacts: Option<Plan>,
    pub(super) slots: SlotLimits,
    pub(super) topology: Topology,
    /// What slaves have quarantined, by store: for ever, and outside of it.
    pub(super) quarantined: BTreeMap<usize, BTreeSet<(Bytes, Bytes)>>,
    queue: BTreeMap<(Moment, u64), Happening>,
    next: u64,
    wakes: BTreeMap<Node, Moment>,
    pub(super) calls: BTreeMap<u64, Call>,
    /// What waits to be committed, by centre.
    pub(super) gatherers: BTreeMap<usize, Gatherer>,
    hash: u64,
    tells: bool,
}

impl Context {
    pub(super) fn new(seed: u64, config: &Config) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut sizes = Sizes::draw(&mut rng);
        sizes.fault_delay = config.pace.map_or(sizes.fault_delay, |millis| millis * MILLI);
        Self {
            now: 0,
            stores: Vec::new(),
            links: Vec::new(),
            config: config.clone(),
            sizes,
            oracle: Oracle::default(),
            coverage: Coverage::default(),
            healing: false,
            verifies: seed % 4 == 3,
            store_rng: rng.fork(),
            net_rng: rng.fork(),
            work_rng: rng.fork(),
            fault_rng: rng.fork(),
            range_rng: rng.fork(),
            top_rng: rng.fork(),
            plan_rng: rng.fork(),
            replicated: 1,
            answers: BTreeMap::new(),
            pledges: BTreeMap::new(),
            topology: config.topology.unwrap_or_else(|| Topology::of(seed)),
            quarantined: BTreeMap::new(),
            filters: seed % 3 == 1,
            compacts: Plan::of(seed, config.topology.unwrap_or_else(|| Topology::of(seed))),
            slots: slots::limits(seed),
            queue: BTreeMap::new(),
            next: 0,
            wakes: BTreeMap::new(),
            calls: BTreeMap::new(),
            gatherers: BTreeMap::new(),
            hash: seed,
            tells: std::env::var_os("REPLIKV_SIM_LOG").is_some(),
        }
    }

    /// True if this bug was planted in a driver.
    pub(super) fn planted(&self, bug: DriverBug) -> bool {
        self.config.bug == Some(Bug::Driver(bug))
    }

    /// The store of the master of a tree; or `store`, if there is none.
    pub(super) fn master_store(&self, store: usize) -> usize {
        let is_master = |store: &ModelStore| store.identity().is_some_and(|identity| identity.role == Role::Master);
        self.stores.iter().position(is_master).unwrap_or(store)
    }

    /// True if some master has begun an epoch of a higher number.
    pub(super) fn newer_epoch(&self, number: u64) -> bool {
        let mut heads = self.stores.iter().filter_map(ModelStore::durable_head);
        heads.any(|head| head.epoch.number > number)
    }

    /// Time, as a node with this wall clock sees it.
    pub(super) fn clock(&self, wall_offset_ms: i64) -> Now {
        let wall = 1_700_000_000_000_i64 + (self.now / MILLI).cast_signed() + wall_offset_ms;
        Now { monotonic: Duration::from_micros(self.now), unix_ms: wall.max(0).cast_unsigned() }
    }

    /// Tells what happens, if somebody wants to read it.
    pub(super) fn tell(&self, words: impl FnOnce() -> String) {
        if self.tells {
            println!("{:>10} {}", self.now, words());
        }
    }

    /// Folds a number into the fingerprint of the run.
    pub(super) fn trace(&mut self, number: u64) {
        self.hash = print::number(self.hash, number);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn after(&mut self, delay: Moment, happening: Happening) {
        self.next += 1;
        self.queue.insert((self.now + delay, self.next), happening);
    }

    pub(super) fn next(&mut self) -> Option<Happening> {
        let ((at, _), happening) = self.queue.pop_first()?;
        self.now = at;
        if let Happening::Wake(node) = happening
            && self.wakes.get(&node) == Some(&at)
        {
            self.wakes.remove(&node);
        }
        Some(happening)
    }

    /// Wakes a node at `at`, or earlier if that was asked for before.
    pub(super) fn wake_at(&mut self, node: Node, at: Moment) {
        let at = at.max(self.now);
        if self.wakes.get(&node).is_some_and(|earlier| *earlier <= at) {
            return;
        }
        self.wakes.insert(node, at);
        self.after(at - self.now, Happening::Wake(node));
    }

    pub(super) fn wake(&mut self, node: Node) {
        self.wake_at(node, self.now);
    }

    /// Injects a fault, if the run allows it.
    pub(super) fn inject(&mut self, fault: Fault) -> bool {
        let allowed = self.config.allows(fault) && !self.healing;
        if allowed {
            self.coverage.injected_one(fault);
            self.tell(|| format!("fault: {}", fault.word()));
            self.trace(fault as u64);
        }
        allowed
    }

    /// What a store held is gone, and this is there instead.
    pub(super) fn replace_store(&mut self, store: usize, image: Maps) {
        self.stores[store].replace(image);
        self.oracle.replaced(store);
    }

    pub(super) fn add_store(&mut self, image: Maps) -> usize {
        self.stores.push(ModelStore::new(image));
        self.stores.len() - 1
    }

    /// Something up to here in the log of a store is damaged: whoever serves it is to cut it there.
    pub(super) fn damaged(&mut self, store: usize, open: &mut Served, seq: Seq) {
        let model = &self.stores[store];
        // What another process has written meanwhile, or a failed sync has taken back, looks like damage.
        let excused = self.coverage.fault(Fault::FlipStored) > 0 || model.was_shared || model.setbacks > 0;
        self.oracle.found_damage(excused, seq);
        open.cut_after(seq);
    }

    /// Calls a store. It takes effect later, and is answered later still.
    pub(super) fn call(&mut self, store: usize, owner: Owner, request: Request) -> u64 {
        self.next += 1;
        let id = self.next;
        let real = self.real(store);
        let applies = matches!(request, Request::Apply(..));
        if real != store && applies {
            let (reply, number, answered_at) = (None, 0, self.now);
            self.calls.insert(id, Call { store, owner, request, reply, number, answered_at });
            self.hand_over(real, id);
            return id;
        }
        let view = store;
        let store = real;
        let slow = if self.stores[store].slow { 100 } else { 1 };
        let delay = |rng: &mut Rng| rng.u64(1..=self.sizes.store_delay * slow);
        let writes = !matches!(request, Request::Get(_) | Request::Scan(..));
        // Now and then a reader is held up, and a lot happens between its read and the answer. Where there are relays a
        // writer as well: a relay's slaves may read what it does not know yet to be there.
        let may_be_held_up = !writes || self.topology.cascades();
        let held_up = if may_be_held_up && self.store_rng.u8(0..16) == 0 { 12 } else { 1 };
        let (until_effect, until_answer) = (delay(&mut self.store_rng), delay(&mut self.store_rng));
        let free_at = if writes { self.stores[store].writer_free_at } else { 0 };
        let effect_at = free_at.max(self.now) + until_effect;
        let answered_at = effect_at + until_answer * held_up;
        if writes {
            self.stores[store].writer_free_at = answered_at;
        }
        self.calls.insert(id, Call { store: view, owner, request, reply: None, number: 0, answered_at });
        self.after(effect_at - self.now, Happening::Effect(id));
        id
    }

    /// A call of a link is decided.
    pub(super) fn decided(&mut self, id: u64, reply: Reply, number: u64) {
        if let Some(call) = self.calls.get_mut(&id) {
            (call.reply, call.number) = (Some(reply), number);
        }
    }

    /// A call takes effect.
    pub(super) fn effect(&mut self, id: u64) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        let real = self.real(call.store);
        let before = Before::of(&self.stores[real], &call.request);
        let (mut reply, effect, number) = self.stores[real].execute(&call.request, &mut self.store_rng);
        if real != call.store {
            match call.request {
                Request::Reopen => self.stores[call.store].setbacks = self.stores[real].setbacks,
                _ => reply = self.knows(call.store).map_or_else(|error| Reply::Done(Err(error)), |()| reply),
            }
        }
        self.tell(|| {
            let store = &self.stores[call.store];
            let at = store.head().map(|head| head.position).or(store.visible.cursor().map(|cursor| cursor.position));
            let at = at.map(|position| position.seq.as_u64());
            let reply = format!("{reply:?}").chars().take(160).collect::<String>();
            format!("effect {id} of {:?} on store {}: {reply}, now at {at:?}", call.owner, call.store)
        });
        self.observe(real, &before, &effect);
        (call.reply, call.number) = (Some(reply), number);
        let answered_at = call.answered_at.max(self.now);
        self.calls.insert(id, call);
        self.after(answered_at - self.now, Happening::Done(id));
    }

    /// A call is answered: to whom, and what.
    pub(super) fn done(&mut self, id: u64) -> Option<(Owner, Reply)> {
        let call = self.calls.remove(&id)?;
        let reply = call.reply?;
        self.tell(|| format!("done {id}"));
        let synced = matches!(call.request, Request::Sync | Request::Apply(_, Durability::Synced));
        if synced && matches!(reply, Reply::Done(Ok(()))) {
            let real = self.real(call.store);
            self.stores[real].persist(call.number);
            if self.topology == Topology::Centre {
                self.look_again(real, false);
            }
        }
        Some((call.owner, reply))
    }

    /// The process that made these calls is gone. A write that has not taken effect yet may still do so, at once.
    pub(super) fn forget_calls(&mut self, node: Node, life: u64, power: bool) {
        let theirs = |call: &Call| call.owner.process() == (node, life);
        let ids: Vec<u64> = self.calls.iter().filter(|(_, call)| theirs(call)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(call) = self.calls.remove(&id) else { continue };
            let writes = matches!(call.request, Request::Apply(..));
            let real = self.real(call.store);
            if real != call.store {
                if let Request::Apply(writes, durability) = &call.request
                    && call.reply.is_none()
                    && !power
                    && self.store_rng.bool()
                    && self.commit(real, &[(call.store, writes.clone())], *durability).is_ok()
                {
                    self.coverage.met(Scene::WroteAfterDeath);
                }
                continue;
            }
            if call.reply.is_none() && writes && !power && self.store_rng.bool() {
                let before = Before::of(&self.stores[call.store], &call.request);
                let (_, effect, _) = self.stores[call.store].execute(&call.request, &mut self.store_rng);
                if matches!(effect, Effect::Wrote(_)) {
                    self.coverage.met(Scene::WroteAfterDeath);
                }
                self.observe(call.store, &before, &effect);
            }
        }
    }

    /// The machine of a store has lost power.
    pub(super) fn lose_power(&mut self, store: usize) {
        if self.stores[store].lose_power(&mut self.store_rng) {
            self.coverage.met(Scene::PowerTookWrites);
        }
        self.look_again(store, false);
        self.oracle.check_store(&self.stores[store]);
    }

    pub(super) fn observe(&mut self, store: usize, before: &Before, effect: &Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Rewound => {
                self.oracle.check_store(&self.stores[store]);
                self.look_again(store, true);
            }
            Effect::Wrote(writes) => {
                if self.stores[store].identity().is_some_and(|identity| identity.role == Role::Centre) {
                    // Whoever undoes a link looks at the others.
                    self.look_again(store, false);
                }
                let kept = self.quarantined.get(&store);
                self.oracle.wrote((store, &self.stores[store]), before, writes, kept, &mut self.coverage);
                let print = self.stores[store].visible.print;
                self.hash = print::number(self.hash, print::mix(store as u64, format!("{print:?}").as_bytes()));
            }
        }
    }

    /// Something is there from the start, and durable.
    pub(super) fn put_meta(&mut self, store: usize, key: &[u8], value: &[u8]) {
        let (real, key) = match &self.stores[store].view {
            Some(view) => (view.centre, view.meta().key(key)),
            None => (store, Bytes::copy_from_slice(key)),
        };
        let op = Op::Put { key: &key, value };
        self.stores[real].visible.change(Keyspace::Meta, op);
        self.stores[real].durable.change(Keyspace::Meta, op);
        self.look_again(real, false);
    }

    /// Something is gone, for good.
    pub(super) fn delete_meta(&mut self, store: usize, key: &[u8]) {
        self.stores[store].visible.change(Keyspace::Meta, Op::Delete { key });
        self.stores[store].durable.change(Keyspace::Meta, Op::Delete { key });
    }

    pub(super) fn connect(&mut self, ends: Ends) -> usize {
        self.links.push(Link::new(ends));
        self.links.len() - 1
    }

    pub(super) fn schedule_delivery(&mut self, link: usize, to: Side) {
        let pipe = self.links[link].pipe(to);
        if pipe.scheduled || pipe.blocked {
            return;
        }
        pipe.scheduled = true;
        let delay = self.net_rng.u64(1..=self.sizes.net_delay);
        self.after(delay, Happening::Deliver(link, to));
    }
}
