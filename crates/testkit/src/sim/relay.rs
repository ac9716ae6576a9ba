//! What a simulated slave has beside, if it keeps the log: what `replikv-node` does to serve it, step by step.

use replikv_core::{Durability, KeyRange, Keyspace, Position, SourceId, StoreLimits, WriteSet};
use replikv_proto::layout::{Epochs, Floor, Head, Kept, Stored};
use replikv_proto::{EpochStart, GroupLog, LogParts, PathNode, Retention, Welcome};

use super::context::{Context, MILLI, Moment, Node, Owner};
use super::serving::{Served, Sessions};
use super::store::{Reply, Request};
use super::{DriverBug, Scene};

/// The serving half of a slave that keeps the log.
#[derive(Debug)]
pub(super) struct RelayNode {
    pub(super) sessions: Sessions,
    /// What is served, if anything is.
    pub(super) served: Option<Served>,
    facts: Facts,
    /// Another history begins with the next group: what is in the store counts no more.
    parting: bool,
    node: PathNode,
    floor: Option<Floor>,
    /// Counts what was served, one after the other.
    generation: u64,
    tidying: Option<Tidying>,
    /// The store is being opened anew, which may take away what was seen.
    quiet: bool,
    tidy_at: Moment,
    started: Moment,
    uptime_before: u64,
}

/// What the master has told, and the store does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    source: Option<SourceId>,
    epochs: Vec<EpochStart>,
    limits: Option<StoreLimits>,
    /// The relays above.
    path: Vec<PathNode>,
}

/// A step of trimming that is under way.
#[derive(Debug)]
struct Tidying {
    generation: u64,
    before: Floor,
    after: Floor,
}

const TIDY_EVERY: Moment = 50 * MILLI;

impl Facts {
    pub(super) fn of(welcome: &Welcome) -> Self {
        Self {
            source: Some(welcome.source),
            epochs: welcome.epochs.clone(),
            limits: Some(welcome.limits),
            path: welcome.path.clone(),
        }
    }
}

impl RelayNode {
    /// Serves what was kept.
    pub(super) fn open(ctx: &mut Context, sessions: Sessions, name: &str, nonce: u64) -> Self {
        let maps = &ctx.stores[sessions.store].visible;
        let kept: Option<Kept> = maps.stored(Kept::KEY);
        let epochs: Epochs = maps.stored(Epochs::KEY).unwrap_or_default();
        let head: Option<Head> = maps.stored(Head::KEY);
        let facts = Facts { epochs: epochs.0, limits: kept.map(|kept| kept.limits), ..Facts::default() };
        let mut relay = Self {
            sessions,
            served: None,
            facts,
            parting: false,
            node: PathNode { name: name.into(), nonce },
            floor: None,
            generation: 0,
            tidying: None,
            quiet: false,
            tidy_at: ctx.now,
            started: ctx.now,
            uptime_before: head.map_or(0, |head| head.uptime_ms),
        };
        relay.settle(ctx);
        relay
    }

    pub(super) fn uptime_ms(&self, now: Moment) -> u64 {
        self.uptime_before + (now - self.started) / MILLI
    }

    /// A group goes to the store, and ends at `position`.
    pub(super) fn hand(&mut self, ctx: &mut Context, position: Position, log: Option<&GroupLog>) {
        self.parting = false;
        match (&mut self.served, log) {
            (Some(served), Some(GroupLog { begun: None, .. })) => {
                if !ctx.planted(DriverBug::RelayHandsLate) {
                    served.change(|view| view.handed = position);
                }
            }
            // Before it is committed: what is there afterwards is not of what was served.
            (Some(_), _) if ctx.planted(DriverBug::RelayServesOn) => {}
            (Some(_), _) => self.close(ctx),
            (None, _) => {}
        }
        if ctx.planted(DriverBug::RelayedBeforeCommitted)
            && let Some((served, log)) = self.served.as_mut().zip(log)
        {
            served.change(|view| view.published = log.head.position);
        }
    }

    /// That group is committed.
    pub(super) fn committed(&mut self, ctx: &mut Context, log: Option<GroupLog>) {
        let Some(log) = log else { return };
        if log.begun.is_some() {
            ctx.coverage.met(Scene::LogBegunAnew);
        }
        let Some(served) = &mut self.served else { return self.settle(ctx) };
        let GroupLog { head, entries, checkpoints, .. } = log;
        checkpoints.into_iter().for_each(|checkpoint| checkpoint.keep_in(&mut served.checkpoints));
        let missing = self.floor.map_or(0, |floor| floor.log_bytes);
        served.publish(entries, |view| {
            (view.published, view.handed) = (head.position, head.position);
            view.log_bytes = head.log_bytes;
            view.retained_bytes = head.log_bytes.saturating_sub(missing);
        });
        ctx.oracle.ring(&ctx.sizes, served.ring.bytes);
    }

    /// The store is about to be opened anew: nothing is written for what is served before that [is known](Self::settle).
    pub(super) fn unsettle(&mut self) {
        self.quiet = true;
    }

    /// Nothing is in flight: what the store says is served.
    pub(super) fn settle(&mut self, ctx: &mut Context) {
        self.quiet = false;
        if self.parting {
            return;
        }
        let maps = &ctx.stores[self.sessions.store].visible;
        let (head, floor): (Option<Head>, Option<Floor>) = (maps.stored(Head::KEY), maps.stored(Floor::KEY));
        let checkpoints = maps.checkpoints();
        if let Some(served) = &mut self.served {
            if head.is_some_and(|head| head.position == served.view.published) {
                // What was handed over, and came to nothing, is no longer there.
                return served.change(|view| view.handed = view.published);
            }
            self.close(ctx);
        }
        let Some(((head, floor), limits)) = head.zip(floor).zip(self.facts.limits) else { return };
        // What was told of another branch does not fit to what is still held.
        let told = &self.facts.epochs;
        let known = told.is_empty() || told.iter().any(|start| start.epoch == head.position.epoch);
        if self.facts.source.is_some_and(|source| source != head.position.source) || !known {
            return;
        }
        self.generation += 1;
        self.floor = Some(floor);
        let path = self.facts.path.iter().cloned().chain([self.node.clone()]).collect();
        let told = (self.facts.epochs.clone(), limits);
        self.served = Some(Served::begin(ctx, (&head, LogParts::new(floor)), told, checkpoints, Some(path)));
    }

    /// A connection begins: what an earlier one had begun and not committed is gone.
    pub(super) fn take_turn(&mut self, ctx: &mut Context) {
        self.parting = false;
        self.settle(ctx);
    }

    /// What the master has told: if it is news, what is served is made anew.
    pub(super) fn learn(&mut self, ctx: &mut Context, facts: &Facts) {
        let known = std::mem::replace(&mut self.facts, facts.clone());
        if (Facts { source: facts.source, ..known }) != *facts {
            self.close(ctx);
        }
        self.settle(ctx);
    }

    /// Another history begins: nobody is served this one any more.
    pub(super) fn resyncs(&mut self, ctx: &mut Context) {
        self.parting = true;
        self.close(ctx);
    }

    fn close(&mut self, ctx: &mut Context) {
        if self.served.take().is_some() {
            ctx.coverage.met(Scene::RelayClosed);
            self.sessions.close_all(ctx);
        }
    }

    /// Lets those who follow go on, and keeps the log in order.
    pub(super) fn run(&mut self, ctx: &mut Context) {
        self.tidy(ctx);
        while let Some(served) = &mut self.served {
            let version = served.version;
            self.sessions.run(ctx, served);
            if served.version == version {
                return;
            }
        }
    }

    // One step of trimming, now and then.
    fn tidy(&mut self, ctx: &mut Context) {
        let Sessions { node: Node::Slave(node), life, store, .. } = self.sessions else { return };
        let wake_at = self.tidy_at;
        let (Some(served), Some(before), None, false) = (&mut self.served, self.floor, &self.tidying, self.quiet)
        else {
            return;
        };
        if ctx.now < wake_at && served.damaged.is_none() {
            return ctx.wake_at(Node::Slave(node), wake_at);
        }
        self.tidy_at = ctx.now + TIDY_EVERY;
        let view = served.view;
        let (after, writes) = if let Some(damaged) = served.damaged.take() {
            if damaged <= before.position.seq {
                return;
            }
            ctx.coverage.met(Scene::DamageFound);
            let published = |checkpoint: &&replikv_proto::layout::Checkpoint| {
                checkpoint.position.seq <= view.published.seq && checkpoint.position.seq >= damaged
            };
            let next = served.checkpoints.iter().find(published);
            let floor = next.map_or(Floor { position: view.published, log_bytes: view.log_bytes }, |next| Floor {
                position: next.position,
                log_bytes: next.log_bytes,
            });
            let mut writes = WriteSet::builder();
            writes.require(Floor::KEY, Some(before.to_bytes()));
            writes.delete_range(Keyspace::Log, &KeyRange::from_bounds(..=floor.position.seq.to_key()));
            if writes.put(Keyspace::Meta, Floor::KEY, floor.to_bytes()).is_err() {
                return;
            }
            (floor, writes.build())
        } else {
            let head = Head { position: view.published, log_bytes: view.log_bytes, uptime_ms: self.uptime_before };
            let head = Head { uptime_ms: head.uptime_ms + (ctx.now - self.started) / MILLI, ..head };
            let above: Vec<_> =
                served.checkpoints.iter().filter(|at| at.position.seq > before.position.seq).take(1).copied().collect();
            let retention = Retention {
                max_bytes: ctx.sizes.retention,
                max_age_ms: ctx.sizes.max_age_ms,
                hold_back_bytes: ctx.sizes.hold_back,
            };
            match retention.step(&before, &head, &above, self.sessions.held()) {
                Ok(Some(trim)) => (trim.floor, trim.writes),
                _ => return ctx.wake_at(Node::Slave(node), self.tidy_at),
            }
        };
        // Told before it is done: nobody is sent to records that are about to go.
        served.change(|view| view.floor = after.position);
        self.tidying = Some(Tidying { generation: self.generation, before, after });
        ctx.call(store, Owner::Tidy { node, life }, Request::Apply(writes, Durability::Buffered));
    }

    /// That step is decided.
    pub(super) fn tidied(&mut self, ctx: &mut Context, reply: Reply) {
        let Some(Tidying { generation, before, after }) = self.tidying.take() else { return };
        let done = reply.done().is_ok();
        let Some(served) = self.served.as_mut().filter(|_| generation == self.generation) else { return };
        let floor = if done { after } else { before };
        if done {
            ctx.coverage.met(Scene::KeptLogTrimmed);
            self.tidy_at = ctx.now;
        }
        self.floor = Some(floor);
        served.change(|view| {
            view.floor = floor.position;
            view.retained_bytes = view.log_bytes.saturating_sub(floor.log_bytes);
        });
    }
}
