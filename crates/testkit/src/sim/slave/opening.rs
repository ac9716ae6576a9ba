//! What a slave writes before it follows, and when it is promoted: one step at a time, as `replikv-node` does.

use replikv_core::{Cursor, Durability, KeyRange, Keyspace, LinkId, WriteSet, meta};
use replikv_proto::layout::{Epochs, Floor, Head, Identity, Role, Stored};
use replikv_proto::{Candidate, Fence, Resync, Subscription, Unfit, step_down};

use super::{Process, Slave, State};
use crate::sim::context::{Context, Node, Owner};
use crate::sim::relay::RelayNode;
use crate::sim::serving::Sessions;
use crate::sim::store::{Reply, Request};
use crate::sim::{DriverBug, Scene};

/// What is done when a slave is opened, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    Reopen,
    /// The log of the master that it was goes.
    DropLog,
    /// It stands where that master stood.
    StepDown,
    Sync,
    /// The store is told of other ranges.
    Subscribe,
    /// What is not wanted any more goes.
    Drop,
    /// That it has gone is kept.
    Settle,
    /// The kept log ends where the slave stands, or there is none.
    BeginLog,
}

/// What is done when a slave is promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promoting {
    Reopen,
    Apply,
}

impl Process {
    /// Opens the store anew.
    pub(super) fn reopen(&mut self, ctx: &mut Context) {
        if let Some(relay) = &mut self.relay {
            relay.unsettle();
        }
        ctx.call(self.store, Owner::Follow { node: self.node, life: self.life }, Request::Reopen);
    }
}

impl Slave {
    // Somebody has decided that it is to be a slave; or it died while it was promoted.
    pub(super) fn was_master(&mut self, ctx: &mut Context) {
        if !self.rejoins {
            ctx.coverage.met(Scene::PromotionInterrupted);
            (self.promoted, self.process) = (true, None);
            return;
        }
        let Some(process) = &mut self.process else { return };
        let mut writes = WriteSet::builder();
        writes.delete_range(Keyspace::Log, &KeyRange::all());
        let owner = Owner::Follow { node: self.node, life: process.life };
        ctx.call(self.store, owner, Request::Apply(writes.build(), Durability::Buffered));
        process.state = State::Opening(Opening::DropLog);
    }

    pub(super) fn step_down(&mut self, ctx: &mut Context) {
        let Some(process) = &mut self.process else { return };
        let owner = Owner::Follow { node: self.node, life: process.life };
        let head: Option<Head> = ctx.stores[self.store].head();
        let Some(Ok(writes)) = head.map(|head| step_down(&head, &LinkId::default())) else { return };
        ctx.call(self.store, owner, Request::Apply(writes, Durability::Synced));
        process.state = State::Opening(Opening::StepDown);
    }

    // As `replikv-node` does it, once nobody follows any more.
    pub(super) fn promoting(&mut self, ctx: &mut Context, step: Promoting, reply: Reply) {
        let Some(process) = &mut self.process else { return };
        let owner = Owner::Follow { node: self.node, life: process.life };
        match (step, reply.done()) {
            (Promoting::Apply, Ok(())) => (self.promoted, self.process) = (true, None),
            // What it is now is seen when it is opened.
            (Promoting::Apply, Err(_)) => self.start(ctx),
            (Promoting::Reopen, _) => {
                let unix_ms = ctx.clock(self.wall_offset_ms).unix_ms;
                match candidate(ctx, self.store).promote(ctx.top_rng.u64(..), unix_ms) {
                    Ok(promotion) => {
                        ctx.call(self.store, owner, Request::Apply(promotion.writes, Durability::Synced));
                        process.state = State::Promoting(Promoting::Apply);
                    }
                    Err(unfit) => {
                        match unfit {
                            Unfit::CatchingUp => ctx.coverage.met(Scene::PromotionCatchingUp),
                            Unfit::Filtered(_) => ctx.coverage.met(Scene::PromotionFiltered),
                            Unfit::Fenced(_) => ctx.coverage.met(Scene::PromotionFenced),
                            Unfit::NoSlave | Unfit::Empty | Unfit::Store(_) => {}
                        }
                        self.start(ctx);
                    }
                }
            }
        }
    }

    // The next step that there is something to do for; or else the slave is open.
    pub(super) fn opened_further(&mut self, ctx: &mut Context, done: Opening) {
        let next = [Opening::Subscribe, Opening::Drop, Opening::Settle, Opening::BeginLog].into_iter().filter(|step| {
            let order = |step: &Opening| *step as u8;
            order(step) > order(&done)
        });
        let hello = self.hello(ctx);
        let found = next.filter_map(|step| Some((step, self.writes_for(ctx, step)?))).next();
        let Some(process) = &mut self.process else { return };
        if let Some((step, (writes, durability))) = found {
            let owner = Owner::Follow { node: self.node, life: process.life };
            ctx.call(self.store, owner, Request::Apply(writes, durability));
            process.state = State::Opening(step);
            return;
        }
        process.tracker.rewound(hello.cursor.as_ref());
        if self.keeps_log {
            let sessions = Sessions::new(Node::Slave(self.node), process.life, self.store, self.sync_every.is_none());
            process.relay = Some(RelayNode::open(ctx, sessions, &self.name, process.nonce));
        }
        ctx.wake(Node::Slave(self.node));
    }

    // As `replikv-node` writes it. What is dropped there in several steps goes in one here, which may be the last one
    // before the process dies.
    fn writes_for(&self, ctx: &mut Context, step: Opening) -> Option<(WriteSet, Durability)> {
        let maps = &ctx.stores[self.store].visible;
        let kept: Option<Subscription> = maps.stored(Subscription::KEY);
        let mut writes = WriteSet::builder();
        writes.require(Subscription::KEY, kept.as_ref().map(Stored::to_bytes));
        let durability = match step {
            Opening::Subscribe => {
                if kept.as_ref().is_some_and(|kept| !kept.dropping.is_empty()) {
                    ctx.coverage.met(Scene::DroppingResumed);
                }
                let cursor = maps.cursor();
                let change = Subscription::change(kept.as_ref(), cursor.as_ref(), &self.ranges)?;
                writes.require(meta::cursor_key(&LinkId::default()), cursor.as_ref().map(Cursor::to_bytes));
                match &change.subscription {
                    Some(subscription) => {
                        writes.put(Keyspace::Meta, Subscription::KEY, subscription.to_bytes()).ok()?
                    }
                    None => writes.delete(Keyspace::Meta, Subscription::KEY).ok()?,
                };
                if let Some(cursor) = &change.cursor {
                    writes.set_cursor(&LinkId::default(), cursor);
                    if cursor.coverage.rest().is_some() {
                        ctx.coverage.met(Scene::RangesAdded);
                        if ctx.real(self.store) != self.store {
                            ctx.coverage.met(Scene::LinkRangesAdded);
                        }
                    }
                }
                Durability::Synced
            }
            Opening::Drop => {
                let dropping = kept.map(|kept| kept.dropping).filter(|dropping| !dropping.is_empty())?;
                ctx.coverage.met(Scene::RangesDropped);
                if ctx.real(self.store) != self.store {
                    ctx.coverage.met(Scene::LinkRangesDropped);
                }
                if !ctx.planted(DriverBug::DroppedRangesStay) {
                    for range in &dropping {
                        writes.delete_range(Keyspace::Data, range);
                    }
                }
                Durability::Buffered
            }
            Opening::Settle => {
                let kept = kept.filter(|kept| !kept.dropping.is_empty())?;
                writes.put(Keyspace::Meta, Subscription::KEY, kept.settled().to_bytes()).ok()?;
                Durability::Synced
            }
            Opening::BeginLog => {
                if !self.keeps_log {
                    return None;
                }
                let head: Option<Head> = maps.stored(Head::KEY);
                let cursor = maps.cursor();
                let stands = cursor.as_ref().filter(|cursor| cursor.is_consistent()).map(|cursor| cursor.position);
                if head.map(|head| head.position) == stands {
                    return None;
                }
                writes.require(meta::cursor_key(&LinkId::default()), cursor.as_ref().map(Cursor::to_bytes));
                writes.delete_range(Keyspace::Log, &KeyRange::all());
                match stands {
                    Some(position) => {
                        let (log_bytes, uptime_ms) = head.map_or((0, 0), |head| (head.log_bytes, head.uptime_ms));
                        writes.put(Keyspace::Meta, Floor::KEY, Floor { position, log_bytes }.to_bytes()).ok()?;
                        writes
                            .put(Keyspace::Meta, Head::KEY, Head { position, log_bytes, uptime_ms }.to_bytes())
                            .ok()?;
                    }
                    None => {
                        writes.delete(Keyspace::Meta, Floor::KEY).ok()?;
                        writes.delete(Keyspace::Meta, Head::KEY).ok()?;
                    }
                }
                Durability::Synced
            }
            Opening::Reopen | Opening::DropLog | Opening::StepDown | Opening::Sync => return None,
        };
        Some((writes.build(), durability))
    }
}

/// What a store says of itself that matters to a promotion.
pub(super) fn candidate(ctx: &Context, store: usize) -> Candidate {
    let maps = &ctx.stores[store].visible;
    Candidate {
        identity: maps.stored(Identity::KEY),
        subscription: maps.stored(Subscription::KEY),
        cursor: maps.cursor().map(|cursor| (LinkId::default(), cursor)),
        resync: maps.stored(Resync::KEY),
        head: maps.stored(Head::KEY),
        epochs: maps.stored(Epochs::KEY),
        fence: maps.stored(Fence::KEY),
        backup: None,
    }
}

pub(super) fn is_master(ctx: &Context, store: usize) -> bool {
    ctx.stores[store].identity().is_some_and(|identity| identity.role == Role::Master)
}
