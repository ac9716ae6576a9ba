//! A centre: links of several masters in one store, each under a prefix and with a cursor of its own.
//!
//! As in `replikv-node`, a link's slave sees a store of its own, and what several links hand over at a time is committed in
//! one write set. A view is made anew from what the store holds whenever that has changed: it is never more than that.

use std::collections::VecDeque;

use bytes::Bytes;
use replikv_core::{Durability, KeyRange, Keyspace, LinkId, Op, Outcome, StoreError, Subspace, WriteSet};
use replikv_proto::layout::{Identity, Stored};
use replikv_proto::{Claim, ClaimState, rival};

use super::context::{Context, Happening, MILLI, Moment, Node, Owner};
use super::oracle::Before;
use super::store::{Armed, Effect, Maps, Reply, Request};
use super::world::World;
use super::{Config, DriverBug, Fault, Scene};

/// What a link sees of the store of its centre.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) centre: usize,
    pub(super) link: LinkId,
    pub(super) target: Subspace,
}

impl View {
    pub(super) fn meta(&self) -> Subspace {
        Claim::knowledge(&self.link).child("meta")
    }

    fn place(&self, writes: &WriteSet, misplaced: bool) -> WriteSet {
        let mut placed = WriteSet::builder();
        for condition in writes.preconditions() {
            placed.require(self.meta().key(&condition.key), condition.value.clone());
        }
        for chunk in writes.chunks() {
            let (keyspace, space) = match chunk.keyspace {
                Keyspace::Data => (Keyspace::Data, self.target.clone()),
                Keyspace::Log => (Keyspace::Meta, Claim::knowledge(&self.link).child("log")),
                Keyspace::Meta => (Keyspace::Meta, self.meta()),
            };
            let deletes = (&chunk.ops).into_iter().any(|op| matches!(op, Op::DeleteRange { .. }));
            if misplaced && keyspace == Keyspace::Data && deletes {
                placed.delete_range(Keyspace::Data, &KeyRange::from_bounds(self.target.prefix().clone()..));
            }
            placed.append(keyspace, space.place(chunk.ops.clone()));
        }
        placed.build()
    }

    fn of(&self, maps: &Maps) -> Maps {
        let mut view = Maps::default();
        for (keyspace, space) in [(Keyspace::Data, self.target.clone()), (Keyspace::Meta, self.meta())] {
            for (key, value) in maps.within(keyspace, &space.range()) {
                if let Some(key) = space.strip(key) {
                    view.change(keyspace, Op::Put { key, value });
                }
            }
        }
        view
    }
}

/// What waits to be committed in one store, and what is being committed.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    waiting: VecDeque<u64>,
    busy: Vec<u64>,
    answered_at: Moment,
}

impl Context {
    /// The store that really is there.
    pub(super) fn real(&self, store: usize) -> usize {
        self.stores[store].view.as_ref().map_or(store, |view| view.centre)
    }

    /// Every store that goes down with this one.
    pub(super) fn users(&self, store: usize) -> Vec<usize> {
        let real = self.real(store);
        (0..self.stores.len()).filter(|other| self.real(*other) == real).collect()
    }

    /// What links see is what the store holds.
    pub(super) fn look_again(&mut self, centre: usize, went_back: bool) {
        for store in 0..self.stores.len() {
            let Some(view) = self.stores[store].view.clone().filter(|view| view.centre == centre) else { continue };
            let (visible, durable) = (view.of(&self.stores[centre].visible), view.of(&self.stores[centre].durable));
            let seen = &mut self.stores[store];
            (seen.visible, seen.durable) = (visible, durable);
            seen.went_back |= went_back;
        }
    }

    /// Another link's failure may have taken what this one had not synced: it must look again first.
    pub(super) fn knows(&mut self, view: usize) -> Result<(), StoreError> {
        let real = self.real(view);
        if self.stores[view].setbacks == self.stores[real].setbacks || self.planted(DriverBug::SetbackOfLinkUnnoticed) {
            return Ok(());
        }
        self.coverage.met(Scene::LinkSetBack);
        Err(StoreError::Fatal { reason: "the store was opened anew after another link's failure".into() })
    }

    /// A link hands something over.
    pub(super) fn hand_over(&mut self, centre: usize, call: u64) {
        self.gatherers.entry(centre).or_default().waiting.push_back(call);
        self.gather(centre);
    }

    /// What waits is taken, one of each link at most.
    pub(super) fn gather(&mut self, centre: usize) {
        let Some(gatherer) = self.gatherers.get_mut(&centre) else { return };
        if !gatherer.busy.is_empty() && gatherer.answered_at > self.now {
            return;
        }
        gatherer.busy.clear();
        let (mut links, mut bytes) = (Vec::new(), 0);
        while let Some(id) = gatherer.waiting.front().copied() {
            let Some(call) = self.calls.get(&id) else {
                gatherer.waiting.pop_front();
                continue;
            };
            let Request::Apply(writes, _) = &call.request else { break };
            if links.contains(&call.store) || (!links.is_empty() && bytes + writes.byte_len() > self.sizes.group_bytes)
            {
                break;
            }
            links.push(call.store);
            bytes += writes.byte_len();
            gatherer.waiting.pop_front();
            gatherer.busy.push(id);
        }
        if gatherer.busy.is_empty() {
            return;
        }
        if gatherer.busy.len() > 1 {
            self.coverage.met(Scene::LinksTogether);
        }
        let slow = if self.stores[centre].slow { 100 } else { 1 };
        let most = self.sizes.store_delay * slow;
        let effect_at = self.stores[centre].writer_free_at.max(self.now) + self.store_rng.u64(1..=most);
        gatherer.answered_at = effect_at + self.store_rng.u64(1..=most);
        self.stores[centre].writer_free_at = gatherer.answered_at;
        let again = gatherer.answered_at + 1 - self.now;
        self.after(effect_at - self.now, Happening::Gathered(centre));
        self.after(again, Happening::Gather(centre));
    }

    /// What was taken takes effect: all of it, or each for itself if something in it is refused.
    pub(super) fn gathered(&mut self, centre: usize) {
        let Some(gatherer) = self.gatherers.get(&centre) else { return };
        let (ids, answered_at) = (gatherer.busy.clone(), gatherer.answered_at);
        let part = |id: &u64| {
            let call = self.calls.get(id)?;
            match &call.request {
                Request::Apply(writes, durability) => Some((*id, call.store, writes.clone(), *durability)),
                _ => None,
            }
        };
        let mut parts: Vec<_> = ids.iter().filter_map(part).collect();
        parts.retain(|(id, store, ..)| match self.knows(*store) {
            Ok(()) => true,
            Err(error) => {
                self.decided(*id, Reply::Done(Err(error)), 0);
                self.after(answered_at.max(self.now) - self.now, Happening::Done(*id));
                false
            }
        });
        if parts.is_empty() {
            return;
        }
        let synced = parts.iter().any(|(.., durability)| *durability == Durability::Synced);
        let together = if synced { Durability::Synced } else { Durability::Buffered };
        let all: Vec<(usize, WriteSet)> = parts.iter().map(|(_, store, writes, _)| (*store, writes.clone())).collect();
        let mut results = Vec::new();
        match self.commit(centre, &all, together) {
            Err(error) if error.outcome() == Outcome::Unchanged && parts.len() > 1 => {
                // One of them is at fault: the others are not to suffer for it.
                self.coverage.met(Scene::LinksApart);
                for (_, store, writes, durability) in &parts {
                    results.push(self.commit(centre, &[(*store, writes.clone())], *durability));
                }
                if self.planted(DriverBug::GroupedFailureUnseen) {
                    results.iter_mut().for_each(|result| *result = Ok(()));
                }
            }
            result => results.resize(parts.len(), result),
        }
        let number = self.stores[centre].last();
        for ((id, ..), result) in parts.iter().zip(results) {
            self.decided(*id, Reply::Done(result), number);
            self.after(answered_at.max(self.now) - self.now, Happening::Done(*id));
        }
    }

    /// Applies what links want, and looks at what became of it.
    pub(super) fn commit(
        &mut self,
        centre: usize,
        parts: &[(usize, WriteSet)],
        durability: Durability,
    ) -> Result<(), StoreError> {
        let misplaced = self.planted(DriverBug::RangeOutOfLink);
        let mut all = WriteSet::builder();
        let mut before = Vec::new();
        for (store, writes) in parts {
            before.push(Before::of(&self.stores[*store], &Request::Apply(writes.clone(), durability)));
            let Some(view) = &self.stores[*store].view else { continue };
            let placed = view.place(writes, misplaced);
            for condition in placed.preconditions() {
                all.require(condition.key.clone(), condition.value.clone());
            }
            for chunk in placed.chunks() {
                all.append(chunk.keyspace, chunk.ops.clone());
            }
        }
        let request = Request::Apply(all.build(), durability);
        let (reply, effect, _) = self.stores[centre].execute(&request, &mut self.store_rng);
        if matches!(effect, Effect::Wrote(_)) {
            self.look_again(centre, false);
            for ((store, writes), before) in parts.iter().zip(&before) {
                self.observe(*store, before, &Effect::Wrote(writes.clone()));
            }
            self.check_links(centre);
        }
        reply.done()
    }

    /// Every entry of a centre belongs to one link, and to no other; and what each link holds is right.
    pub(super) fn check_links(&mut self, centre: usize) {
        let views: Vec<usize> = self.users(centre).into_iter().filter(|store| *store != centre).collect();
        for view in &views {
            self.oracle.check_store(&self.stores[*view]);
        }
        let Self { stores, oracle, .. } = self;
        oracle.linked(&stores[centre], &views.iter().map(|view| &stores[*view]).collect::<Vec<_>>());
    }
}

/// What becomes of a link that is undone, step by step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unlinking {
    /// That it is being undone is kept.
    GiveUp(ClaimState),
    /// What it knew goes, and its cursor with that.
    Forget,
    /// None of that can come back.
    SyncForgotten,
    /// Its entries go.
    Empty,
    /// Nor can they.
    SyncEmptied,
    /// And its claim.
    Release,
}

impl World {
    pub(super) fn populate_centre(&mut self, config: &Config) {
        let masters = self.ctx.top_rng.usize(2..=3);
        for _ in 0..masters {
            let store = self.ctx.add_store(Maps::default());
            let sync_every = self.sync_every();
            self.add_master(store, sync_every, false);
        }
        let centre = self.ctx.add_store(Maps::default());
        let identity = Identity::centre().to_bytes();
        self.ctx.put_meta(centre, Identity::KEY, &identity);
        let links = masters.max(self.ctx.top_rng.usize(2..=config.max_slaves.clamp(2, 4)));
        for number in 0..links {
            let Ok(link) = LinkId::new(format!("link-{number}")) else { continue };
            // Prefixes of which one is right behind another.
            let target = Subspace::raw(format!("{}/", char::from(b'p' + u8::try_from(number).unwrap_or_default())));
            let store = self.ctx.add_store(Maps::default());
            self.ctx.put_meta(centre, &Claim::key(&link), &Claim::new(&target).to_bytes());
            self.ctx.stores[store].view = Some(View { centre, link, target });
            let slave = self.add_slave(format!("edge-{number}"), store, number % masters, false);
            if self.ctx.top_rng.bool() {
                self.slaves[slave].ranges = replikv_core::KeyRanges::all();
            }
        }
        self.ctx.after(200 * MILLI, Happening::Reorder);
    }

    /// Links come and go.
    pub(super) fn relink(&mut self) {
        if self.ctx.healing {
            return;
        }
        let delay = self.ctx.config.pace.map_or(500 * MILLI, |millis| millis * MILLI);
        let next = self.ctx.top_rng.u64(1..=delay);
        self.ctx.after(next, Happening::Reorder);
        self.try_to_claim();
        let node = self.ctx.top_rng.usize(0..self.slaves.len());
        let undoing = self.slaves[node].unlinking.is_some();
        if undoing || !self.known.contains(&Fault::Unlinked) || !self.ctx.inject(Fault::Unlinked) {
            return;
        }
        let store = self.slaves[node].store;
        let flows = self.ctx.stores[store].visible.cursor().is_some_and(|cursor| cursor.coverage.rest().is_some());
        self.ctx.coverage.met(if flows { Scene::UnlinkedInCopy } else { Scene::UnlinkedWhole });
        self.slaves[node].kill(&mut self.ctx, false);
        // Its data goes, or stays and is nobody's.
        let state = if self.ctx.top_rng.u8(0..4) > 0 { ClaimState::Removing } else { ClaimState::Leaving };
        self.slaves[node].unlinking = Some(Unlinking::GiveUp(state));
        self.unlink(node);
    }

    // Somebody wants a link where another one may be.
    fn try_to_claim(&mut self) {
        let Some(centre) = self.centre() else { return };
        let claims = self.claims(centre);
        let Ok(link) = LinkId::new("new") else { return };
        let rng = &mut self.ctx.top_rng;
        let held = (!claims.is_empty()).then(|| claims[rng.usize(0..claims.len())].1.target());
        let prefix: Vec<u8> = match (rng.u8(0..4), held) {
            (0, Some(held)) => held.prefix()[..rng.usize(0..=held.prefix().len())].to_vec(),
            (1, Some(held)) => [&held.prefix()[..], b"deep/"].concat(),
            (2, Some(held)) => held.prefix().to_vec(),
            _ => vec![rng.u8(b'm'..b'z'), b'/'],
        };
        let target = Subspace::raw(prefix.clone());
        let found = rival(claims.iter().map(|(link, claim)| (link, claim)), &link, &target).is_some();
        let shares = |claim: &Claim| {
            let other = claim.target();
            let (longer, shorter) = if prefix.len() > other.prefix().len() {
                (&prefix[..], &other.prefix()[..])
            } else {
                (&other.prefix()[..], &prefix[..])
            };
            longer[..shorter.len()] == *shorter
        };
        let overlaps = claims.iter().any(|(_, claim)| shares(claim));
        self.ctx.coverage.met(if overlaps { Scene::ClaimRefused } else { Scene::ClaimFree });
        self.ctx.oracle.claimed(found == overlaps, &prefix);
    }

    fn claims(&self, centre: usize) -> Vec<(LinkId, Claim)> {
        let range = KeyRange::prefix(Claim::PREFIX);
        let found = self.ctx.stores[centre].visible.within(Keyspace::Meta, &range);
        let claim = |(key, value): (&Bytes, &Bytes)| {
            let name = std::str::from_utf8(key.strip_prefix(Claim::PREFIX)?).ok()?;
            Some((LinkId::new(name).ok()?, Claim::from_bytes(value).ok()?))
        };
        found.into_iter().filter_map(claim).collect()
    }

    fn centre(&self) -> Option<usize> {
        self.slaves.first().map(|slave| self.ctx.real(slave.store))
    }

    /// The next step of undoing a link goes to the store; or it is undone, and another link takes its place.
    pub(super) fn unlink(&mut self, node: usize) {
        let store = self.slaves[node].store;
        let (Some(step), Some(view)) = (self.slaves[node].unlinking, self.ctx.stores[store].view.clone()) else {
            return;
        };
        let held: Option<Claim> = self.ctx.stores[view.centre].visible.stored(&Claim::key(&view.link));
        let owner = Owner::Unlink { node, life: self.slaves[node].lives };
        if step == Unlinking::Forget {
            self.slaves[node].setbacks = self.ctx.stores[view.centre].setbacks;
        }
        if matches!(step, Unlinking::SyncForgotten | Unlinking::SyncEmptied) {
            self.ctx.call(view.centre, owner, Request::Sync);
            return;
        }
        let key = Claim::key(&view.link);
        let mut writes = WriteSet::builder();
        let durability = match step {
            Unlinking::GiveUp(state) => {
                let Some(held) = held else { return };
                writes.require(key.clone(), Some(held.to_bytes()));
                drop(writes.put(Keyspace::Meta, key, held.given_up(state).to_bytes()));
                Durability::Synced
            }
            Unlinking::Forget => {
                writes.delete_range(Keyspace::Meta, &Claim::knowledge(&view.link).range());
                Durability::Buffered
            }
            Unlinking::Empty => {
                let removes = held.is_some_and(|held| held.state == ClaimState::Removing);
                if removes && !self.ctx.planted(DriverBug::UnlinkedDataStays) {
                    writes.delete_range(Keyspace::Data, &view.target.range());
                }
                Durability::Buffered
            }
            Unlinking::Release => {
                if held.is_some_and(|held| held.state == ClaimState::Removing) {
                    let Context { oracle, stores, .. } = &mut self.ctx;
                    oracle.emptied(&stores[store]);
                }
                drop(writes.delete(Keyspace::Meta, key));
                Durability::Synced
            }
            Unlinking::SyncForgotten | Unlinking::SyncEmptied => return,
        };
        self.ctx.call(view.centre, owner, Request::Apply(writes.build(), durability));
    }

    // At once, or later: other links go on meanwhile, and something may go wrong for them.
    fn unlink_further(&mut self, node: usize) {
        if self.ctx.healing || self.ctx.top_rng.u8(0..3) > 0 {
            return self.unlink(node);
        }
        let pause = self.ctx.top_rng.u64(1..=100 * MILLI);
        let centre = self.ctx.real(self.slaves[node].store);
        if self.known.contains(&Fault::SyncFailure) && self.ctx.inject(Fault::SyncFailure) {
            self.ctx.stores[centre].armed.push_back(Armed::SyncFails);
        }
        self.ctx.after(pause, Happening::Unlink(node, self.slaves[node].lives));
    }

    /// The process of a centre is gone: whoever opens it next goes on with what the store says.
    pub(super) fn unlink_again(&mut self, store: usize, power: bool) {
        let centre = self.ctx.real(store);
        for node in 0..self.slaves.len() {
            let (Some(step), Some(view)) =
                (self.slaves[node].unlinking, &self.ctx.stores[self.slaves[node].store].view)
            else {
                continue;
            };
            if view.centre != centre {
                continue;
            }
            let held: Option<Claim> = self.ctx.stores[centre].visible.stored(&Claim::key(&view.link));
            self.slaves[node].unlinking = Some(match (step, held.map(|held| held.state)) {
                (step @ Unlinking::GiveUp(_), Some(ClaimState::Held)) => step,
                (_, Some(_)) => Unlinking::Forget,
                (_, None) => Unlinking::Release,
            });
            let life = self.slaves[node].lives;
            self.ctx.forget_calls(Node::Slave(node), life, power);
            self.slaves[node].lives += 1;
            self.ctx.coverage.met(Scene::UnlinkingResumed);
            self.ctx.after(300 * MILLI, Happening::Unlink(node, life + 1));
        }
    }

    /// That step is decided.
    pub(super) fn unlinked(&mut self, node: usize, life: u64, reply: Reply) {
        if life != self.slaves[node].lives {
            return;
        }
        let Some(step) = self.slaves[node].unlinking else { return };
        let store = self.slaves[node].store;
        let Some(view) = self.ctx.stores[store].view.clone() else { return };
        if reply.done().is_err() {
            // It is tried again, from the start: what was there before may be lost.
            let owner = Owner::Unlink { node, life: u64::MAX };
            self.ctx.call(view.centre, owner, Request::Reopen);
            return self.unlink_again(store, false);
        }
        self.ctx.look_again(view.centre, false);
        self.ctx.check_links(view.centre);
        let next = match step {
            Unlinking::GiveUp(_) => Some(Unlinking::Forget),
            Unlinking::Forget if self.ctx.planted(DriverBug::ForgottenUnsynced) => Some(Unlinking::Empty),
            Unlinking::Forget => Some(Unlinking::SyncForgotten),
            Unlinking::Empty => Some(Unlinking::SyncEmptied),
            // Somebody's failure may have brought some of it back.
            Unlinking::SyncForgotten | Unlinking::SyncEmptied
                if self.slaves[node].setbacks != self.ctx.stores[view.centre].setbacks =>
            {
                self.ctx.coverage.met(Scene::UnlinkedAgain);
                Some(Unlinking::Forget)
            }
            Unlinking::SyncForgotten => Some(Unlinking::Empty),
            Unlinking::SyncEmptied => Some(Unlinking::Release),
            Unlinking::Release => None,
        };
        self.slaves[node].unlinking = next;
        if next.is_some() {
            return self.unlink_further(node);
        }
        self.ctx.coverage.met(Scene::LinkUndone);
        // A new one, under the same name or another; what was left of the old one is nobody's, and lies in the way.
        let master = self.ctx.top_rng.usize(0..self.masters.len());
        let claim = Claim::new(&view.target).to_bytes();
        self.ctx.put_meta(view.centre, &Claim::key(&view.link), &claim);
        self.slaves[node].target = master;
        self.slaves[node].start(&mut self.ctx);
    }
}
