//! What a slave promises before an epoch begins: to another one that is to be promoted, or before it is promoted itself.
//! One step at a time, as `replikv-node` does.

use std::collections::BTreeSet;

use replikv_core::{Cursor, Durability, Keyspace, LinkId, Position, Seq, WriteSet, meta};
use replikv_proto::layout::{Checkpoint, Stored};
use replikv_proto::{Fence, FenceRefusal, FenceRequest, FenceTally, Fenced, Pledger, Record, Resync, Subscription};

use super::opening::{Promoting, candidate};
use super::{Slave, State};
use crate::sim::context::{Context, Happening, Node, Owner};
use crate::sim::fencing::Question;
use crate::sim::store::{Maps, Reply, Request};
use crate::sim::{DriverBug, Scene};

/// A promise to somebody else, on its way to the store.
#[derive(Debug)]
pub(super) struct Pledge {
    pub(super) question: u64,
    pub(super) request: FenceRequest,
    written: Option<(Fence, Position)>,
}

/// A promotion that fences others first.
#[derive(Debug)]
pub(super) struct Fencing {
    plan: Plan,
    above: Option<u64>,
    rounds: u8,
    step: Step,
    request: Option<FenceRequest>,
    tally: Option<(Fence, Position, FenceTally)>,
    /// Who has not answered.
    waiting: BTreeSet<usize>,
    /// The highest epoch that one of the others is promised to.
    promised: u64,
    parted: bool,
}

/// Whom to fence.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Plan {
    pub(in crate::sim) slaves: usize,
    pub(in crate::sim) replicated: usize,
    pub(in crate::sim) anew: bool,
    pub(in crate::sim) others: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Reopen,
    Promise,
    Asking,
}

/// What a store says of the slave that it is.
struct Standing {
    cursor: Option<Cursor>,
    fence: Option<Fence>,
    filtered: bool,
    resyncs: bool,
}

impl Standing {
    fn of(maps: &Maps) -> Self {
        Self {
            cursor: maps.cursor(),
            fence: maps.stored(Fence::KEY),
            filtered: maps.stored::<Subscription>(Subscription::KEY).is_some(),
            resyncs: maps.stored::<Resync>(Resync::KEY).is_some(),
        }
    }

    fn pledger(&self) -> Pledger<'_> {
        let Self { cursor, fence, filtered, resyncs } = self;
        Pledger { cursor: cursor.as_ref(), filtered: *filtered, resyncs: *resyncs, held: fence.as_ref() }
    }
}

// What is to be written, if anything is; and what is promised then, and where the slave stands.
fn promise(
    ctx: &mut Context,
    store: usize,
    request: &FenceRequest,
    own: bool,
) -> Result<(Option<WriteSet>, Fence, Position), FenceRefusal> {
    let standing = Standing::of(&ctx.stores[store].visible);
    let promised = standing.pledger().promise(request, ctx.plan_rng.u64(..))?;
    let position = standing.pledger().position()?;
    let Some(fence) = promised else {
        let held = standing.fence.ok_or(FenceRefusal::Empty)?;
        return Ok((None, held, position));
    };
    let fence = Fence { own, ..fence };
    let mut writes = WriteSet::builder();
    writes.require(Fence::KEY, standing.fence.as_ref().map(Stored::to_bytes));
    writes.require(meta::cursor_key(&LinkId::default()), standing.cursor.as_ref().map(Cursor::to_bytes));
    let put = writes.put(Keyspace::Meta, Fence::KEY, fence.to_bytes()).map(drop);
    put.map_err(|error| FenceRefusal::Failed { reason: error.to_string() })?;
    Ok((Some(writes.build()), fence, position))
}

impl Slave {
    /// Another slave is to be promoted, and this one is asked to follow nobody else. Whoever does not run answers nothing.
    pub(in crate::sim) fn asked_to_pledge(&mut self, ctx: &mut Context, question: u64, request: FenceRequest) {
        let Some(process) = &mut self.process else { return };
        let runs =
            matches!(process.state, State::Pausing(_) | State::Beginning(_) | State::Syncing(..) | State::Following(_));
        if !runs || process.pledge.is_some() {
            return;
        }
        // Whoever is refused ends nobody's connection.
        if let Err(refusal) = Standing::of(&ctx.stores[self.store].visible).pledger().promise(&request, 0) {
            return answer(ctx, question, Err(refusal));
        }
        process.pledge = Some(Pledge { question, request, written: None });
        self.drop_follow(ctx);
        self.pledge(ctx);
    }

    /// Nothing is in flight any more: what is asked can be promised.
    pub(super) fn pledge(&mut self, ctx: &mut Context) {
        let Some(process) = &mut self.process else { return };
        if !matches!(process.state, State::Pausing(_)) {
            return;
        }
        let Some(pledge) = process.pledge.take() else { return };
        process.reopen(ctx);
        process.state = State::Pledging(Box::new(pledge));
    }

    pub(super) fn pledging(&mut self, ctx: &mut Context, mut pledge: Pledge, reply: Reply) {
        let Some(process) = &mut self.process else { return };
        let owner = Owner::Follow { node: self.node, life: process.life };
        if let (None, Some(relay)) = (&pledge.written, &mut process.relay) {
            relay.settle(ctx);
        }
        let answered = match (pledge.written.take(), reply.done()) {
            (_, Err(error)) => Err(FenceRefusal::Failed { reason: error.to_string() }),
            (Some((fence, position)), Ok(())) => {
                ctx.coverage.met(Scene::Pledged);
                Ok(Fenced::new(self.name.clone(), fence.store, position))
            }
            (None, Ok(())) => match promise(ctx, self.store, &pledge.request, false) {
                Err(refusal) => Err(refusal),
                Ok((writes, fence, position)) => {
                    pledge.written = Some((fence, position));
                    // What was promised before may be told again once all that was applied since is durable.
                    let request = writes.map_or(Request::Sync, |writes| Request::Apply(writes, Durability::Synced));
                    ctx.call(self.store, owner, request);
                    process.state = State::Pledging(Box::new(pledge));
                    return;
                }
            },
        };
        answer(ctx, pledge.question, answered);
        ctx.wake(Node::Slave(self.node));
    }

    /// The slave stops following, and is promoted if enough of the others promise to follow it.
    pub(in crate::sim) fn fence_first(&mut self, ctx: &mut Context, plan: Plan) {
        self.promote(ctx);
        let above = plan.anew.then_some(0);
        if let Some(process) = &mut self.process {
            process.state = State::Fencing(Box::new(Fencing {
                plan,
                above,
                rounds: 8,
                step: Step::Reopen,
                request: None,
                tally: None,
                waiting: BTreeSet::new(),
                promised: 0,
                parted: false,
            }));
        }
    }

    pub(super) fn fencing(&mut self, ctx: &mut Context, mut fencing: Box<Fencing>, reply: Reply) {
        let Some(process) = &mut self.process else { return };
        let owner = Owner::Follow { node: self.node, life: process.life };
        match (fencing.step, reply.done()) {
            (Step::Reopen, _) => match self.begins(ctx, fencing.above) {
                Ok((request, writes, fence, position)) => {
                    let Plan { slaves, replicated, .. } = fencing.plan;
                    let tally = FenceTally::new(position, fence.store, slaves, replicated);
                    (fencing.request, fencing.tally) = (Some(request), Some((fence, position, tally)));
                    fencing.step = Step::Promise;
                    let request = writes.map_or(Request::Sync, |writes| Request::Apply(writes, Durability::Synced));
                    ctx.call(self.store, owner, request);
                }
                Err(_) => return self.not_promoted(ctx, Scene::FencingUnfit),
            },
            (Step::Promise, Ok(())) => {
                fencing.step = Step::Asking;
                fencing.waiting = fencing.plan.others.iter().copied().collect();
                ctx.wake(Node::Slave(self.node));
            }
            (Step::Promise, Err(_)) => return self.start(ctx),
            (Step::Asking, _) => {}
        }
        if let Some(process) = &mut self.process {
            process.state = State::Fencing(fencing);
        }
    }

    // The slave that is promoted promises first: it moves no more.
    #[allow(clippy::type_complexity, reason = "what `promise` returns, with the request")]
    fn begins(
        &self,
        ctx: &mut Context,
        above: Option<u64>,
    ) -> Result<(FenceRequest, Option<WriteSet>, Fence, Position), FenceRefusal> {
        let standing = Standing::of(&ctx.stores[self.store].visible);
        let epoch = standing.pledger().begins(above, ctx.plan_rng.u64(..))?;
        let source = standing.pledger().position()?.source;
        let request = FenceRequest { source, epoch, by: self.name.clone() };
        let (writes, fence, position) = promise(ctx, self.store, &request, true)?;
        Ok((request, writes, fence, position))
    }

    /// What is to be asked of whom, once.
    pub(in crate::sim) fn asks(&mut self) -> Option<(FenceRequest, Vec<usize>)> {
        let State::Fencing(fencing) = &mut self.process.as_mut()?.state else { return None };
        if fencing.step != Step::Asking {
            return None;
        }
        Some((fencing.request.take()?, fencing.plan.others.clone()))
    }

    /// One of the others has answered.
    pub(in crate::sim) fn told(&mut self, ctx: &mut Context, other: usize, answer: Result<Fenced, FenceRefusal>) {
        let Some(State::Fencing(fencing)) = self.process.as_mut().map(|process| &mut process.state) else { return };
        let Some((_, own, tally)) = &mut fencing.tally else { return };
        if fencing.step != Step::Asking || !fencing.waiting.remove(&other) {
            return;
        }
        match answer {
            Ok(fenced) => {
                tally.fenced(&fenced);
                fencing.parted |= contradicts(&ctx.stores[self.store].visible, own, &fenced.position);
            }
            Err(refusal) => {
                tally.refused(&refusal);
                if let FenceRefusal::Promised { epoch, .. } = refusal {
                    fencing.promised = fencing.promised.max(epoch.number);
                }
            }
        }
        let against = (tally.against().is_some() && !ctx.planted(DriverBug::AgainstIgnored)) || fencing.parted;
        if against {
            self.not_promoted(ctx, Scene::FencingAgainst);
        } else if fencing.waiting.is_empty() {
            self.counted(ctx);
        }
    }

    /// Nobody else is waited for.
    pub(in crate::sim) fn counted(&mut self, ctx: &mut Context) {
        let Some(process) = &mut self.process else { return };
        let State::Fencing(fencing) = &mut process.state else { return };
        let Some((fence, _, tally)) = fencing.tally.as_ref().filter(|_| fencing.step == Step::Asking) else { return };
        let owner = Owner::Follow { node: self.node, life: process.life };
        if fencing.plan.anew && fencing.promised >= fence.epoch.number && fencing.rounds > 1 {
            fencing.rounds -= 1;
            fencing.above = Some(fencing.promised);
            fencing.step = Step::Reopen;
            ctx.coverage.met(Scene::FencedAnew);
            ctx.call(self.store, owner, Request::Reopen);
            return;
        }
        if !tally.is_enough() {
            return self.not_promoted(ctx, Scene::FencingTooFew);
        }
        let candidate = candidate(ctx, self.store);
        let same = candidate.fence.as_ref() == Some(fence);
        let unix_ms = ctx.clock(self.wall_offset_ms).unix_ms;
        match candidate.promote(ctx.plan_rng.u64(..), unix_ms) {
            Ok(promotion) if same => {
                ctx.coverage.met(Scene::PromotedFenced);
                let Context { oracle, stores, .. } = ctx;
                oracle.promised(stores, self.store, (promotion.last, promotion.first.epoch));
                ctx.call(self.store, owner, Request::Apply(promotion.writes, Durability::Synced));
                process.state = State::Promoting(Promoting::Apply);
            }
            _ => self.start(ctx),
        }
    }

    fn not_promoted(&mut self, ctx: &mut Context, scene: Scene) {
        ctx.coverage.met(scene);
        self.start(ctx);
    }
}

/// A promise that is over goes.
pub(super) fn dropped(fence: &Fence) -> WriteSet {
    let mut writes = WriteSet::builder();
    writes.require(Fence::KEY, Some(fence.to_bytes()));
    // A key that every store takes.
    drop(writes.delete(Keyspace::Meta, Fence::KEY));
    writes.build()
}

fn answer(ctx: &mut Context, question: u64, answer: Result<Fenced, FenceRefusal>) {
    let delay = ctx.plan_rng.u64(1..=ctx.sizes.net_delay);
    ctx.pledges.insert(question, answer);
    ctx.after(delay, Happening::Fencing(Question::Answered(question)));
}

// Where this store still tells which record it had there, that is the one.
fn contradicts(maps: &Maps, own: &Position, position: &Position) -> bool {
    if position.seq == Seq::ZERO || position.seq == own.seq {
        return false;
    }
    let kept = maps.of(Keyspace::Log).get(&position.seq.to_key()[..]);
    if let Some(record) = kept.and_then(|bytes| Record::decode(bytes.clone()).ok()) {
        return record.position() != *position;
    }
    let checkpoint: Option<Checkpoint> = maps.stored(&Checkpoint::at(*position).key());
    checkpoint.is_some_and(|checkpoint| checkpoint.position != *position)
}
