//! The simulated task of a master that compacts: what `replikv-node` does, step by step. It reads and prepares; the commit
//! task applies.

use bytes::Bytes;
use fastrand::Rng;
use replikv_core::{KeyRange, Keyspace, Page, ScanOptions, Seq, StoreError};
use replikv_proto::layout::Head;
use replikv_proto::{Compaction, CompactionStep, Expiry, Folding, LogParts, Record, Run};

use super::context::{Context, MILLI, Moment, Node, Owner};
use super::master::Process;
use super::store::{Reply, Request};
use super::trim::retention;
use super::{Scene, Topology};

/// How masters of a run compact: in small steps, so that whatever happens happens between two of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    compaction: Compaction,
    every: Moment,
    step_records: usize,
    step_ops: usize,
    /// No write set is longer.
    step_bytes: usize,
    expire_entries: usize,
    /// So many bytes of touches are read at once, and one run at least.
    pub(super) stretch: usize,
}

impl Plan {
    /// In every second star.
    pub(super) fn of(seed: u64, topology: Topology) -> Option<Self> {
        // A stream of its own: what else is drawn stays what it is.
        let mut rng = Rng::with_seed(!seed);
        let plan = Self {
            compaction: Compaction { window_bytes: rng.u64(50..3_000), window_records: rng.u64(1..40) },
            every: rng.u64(5..80) * MILLI,
            step_records: rng.usize(1..200),
            step_ops: rng.usize(1..100),
            step_bytes: rng.usize(6_000..30_000),
            expire_entries: rng.usize(1..20),
            stretch: rng.usize(20..1_500),
        };
        (topology == Topology::Star && (seed / 4).is_multiple_of(2)).then_some(plan)
    }
}

/// The task, and the step that it has prepared.
#[derive(Debug, Default)]
pub(super) struct Compactor {
    waits: Waits,
    look_at: Moment,
    prepared: Option<CompactionStep>,
}

/// What the task waits for.
#[derive(Debug, Default)]
enum Waits {
    /// Until it is to look again.
    #[default]
    Time,
    /// The oldest run.
    Oldest(Seen),
    /// What goes next.
    Expiring(Expiry),
    Records(Seen),
    /// Where keys were touched before.
    Index(Work),
    /// The runs that lose touches.
    Runs(Work, Vec<Seq>),
    /// The commit task.
    Step,
}

/// The log, when the task looked at it.
#[derive(Debug, Clone, Copy)]
struct Seen {
    parts: LogParts,
    head: Head,
}

#[derive(Debug)]
struct Work {
    seen: Seen,
    records: Vec<Record>,
    folding: Folding,
    most_ops: usize,
}

impl Compactor {
    /// True if there is a step to be applied.
    pub(super) fn has_step(&self) -> bool {
        self.prepared.is_some()
    }

    pub(super) fn take(&mut self) -> Option<CompactionStep> {
        self.prepared.take()
    }

    /// The step was applied, or refused. There may be more to do; where nothing was done, not at once.
    pub(super) fn done(&mut self, ctx: &Context, changed: bool) {
        let pause = ctx.compacts.filter(|_| !changed).map_or(0, |plan| plan.every);
        (self.waits, self.look_at) = (Waits::Time, ctx.now + pause);
    }

    fn put(&mut self, step: CompactionStep) {
        (self.waits, self.prepared) = (Waits::Step, Some(step));
    }
}

impl Process {
    /// Looks whether there is something to do.
    pub(super) fn compact(&mut self, ctx: &mut Context) {
        let Some((plan, open)) = ctx.compacts.zip(self.open.as_ref()) else { return };
        if !matches!(self.compactor.waits, Waits::Time) {
            return;
        }
        if ctx.now < self.compactor.look_at {
            return ctx.wake_at(Node::Master(self.node), self.compactor.look_at);
        }
        self.compactor.look_at = ctx.now + plan.every;
        let (parts, view) = (open.parts, open.view);
        let head = Head { position: view.published, log_bytes: view.log_bytes, uptime_ms: self.uptime(ctx) };
        let seen = Seen { parts, head };
        if let Some(unfinished) = Expiry::unfinished(&parts) {
            self.expire(ctx, plan, unfinished);
        } else if parts.compacted().is_some() {
            let after = KeyRange::all().after(&parts.floor.position.seq.to_key());
            self.scan(ctx, after, ScanOptions::default().max_entries(1));
            self.compactor.waits = Waits::Oldest(seen);
        } else {
            self.fold_next(ctx, plan, seen);
        }
    }

    /// What the task has asked for has come.
    pub(super) fn compacting(&mut self, ctx: &mut Context, reply: Reply) {
        let Some(plan) = ctx.compacts else { return };
        let waits = std::mem::take(&mut self.compactor.waits);
        // Where a read fails, or somebody else has changed the log, what is there later is looked at.
        let result = match waits {
            Waits::Time | Waits::Step => {
                self.compactor.waits = waits;
                Ok(())
            }
            Waits::Oldest(seen) => reply.page().map(|page| self.oldest(ctx, plan, seen, &page)),
            Waits::Expiring(expiry) => reply.page().and_then(|page| {
                let entries: Vec<(Bytes, Bytes)> = page.entries().collect();
                expiry.step(&entries, page.rest().is_none()).map(|step| self.compactor.put(step))
            }),
            Waits::Records(seen) => reply.page().and_then(|page| self.fold(ctx, plan, seen, &page)),
            Waits::Index(work) => reply.got().and_then(|found| self.found(ctx, work, &found)),
            Waits::Runs(work, runs) => reply.got().and_then(|found| self.finish(ctx, plan, work, runs, found)),
        };
        if result.is_err() {
            ctx.coverage.met(Scene::CompactionRefused);
        }
    }

    fn ask(&self, ctx: &mut Context, request: Request) {
        ctx.call(self.store, Owner::Compact { node: self.node, life: self.life }, request);
    }

    fn scan(&self, ctx: &mut Context, range: KeyRange, options: ScanOptions) {
        self.ask(ctx, Request::Scan(Keyspace::Log, range, options));
    }

    fn expire(&mut self, ctx: &mut Context, plan: Plan, expiry: Expiry) {
        let options = ScanOptions::default().max_entries(plan.expire_entries);
        self.scan(ctx, expiry.range(), options);
        self.compactor.waits = Waits::Expiring(expiry);
    }

    fn oldest(&mut self, ctx: &mut Context, plan: Plan, seen: Seen, page: &Page) {
        let Some((key, value)) = page.entries().next() else { return self.fold_next(ctx, plan, seen) };
        let oldest = match Run::from_bytes(Seq::from_key(&key).unwrap_or_default(), &value) {
            Ok(oldest) => oldest,
            Err(error) => return self.is_damaged(ctx, Scene::RunDamaged, error.seq),
        };
        match Expiry::due(&retention(ctx), &seen.parts, &seen.head, &oldest, self.held(ctx)) {
            Some(expiry) => self.expire(ctx, plan, expiry),
            None => self.fold_next(ctx, plan, seen),
        }
    }

    fn fold_next(&mut self, ctx: &mut Context, plan: Plan, seen: Seen) {
        if !plan.compaction.is_due(&seen.parts, &seen.head) {
            return;
        }
        let full = seen.parts.full_after().position.seq;
        let range = KeyRange::from_bounds(full.next().unwrap_or(full).to_key()..);
        self.scan(ctx, range, ScanOptions::default().max_entries(plan.step_records));
        self.compactor.waits = Waits::Records(seen);
    }

    fn fold(&mut self, ctx: &mut Context, plan: Plan, seen: Seen, page: &Page) -> Result<(), StoreError> {
        let full = seen.parts.full_after().position;
        let (mut records, mut last) = (Vec::new(), full);
        for (key, value) in page.entries() {
            let seq = Seq::from_key(&key).unwrap_or_default();
            // What does not continue the history is never folded into a run, which would vouch for it.
            let record = Record::decode(value).and_then(|record| record.header().verify_after(&last).map(|()| record));
            let Ok(record) = record else {
                // What was trimmed or cut meanwhile is not damaged.
                if self.open.as_ref().is_some_and(|open| open.view.floor.seq > full.seq) {
                    return Err(StoreError::HeadMoved);
                }
                self.is_damaged(ctx, Scene::DamageFound, seq);
                return Ok(());
            };
            last = record.position();
            records.push(record);
        }
        self.fold_some(ctx, plan, seen, records, plan.step_ops)
    }

    fn fold_some(
        &mut self,
        ctx: &mut Context,
        plan: Plan,
        seen: Seen,
        records: Vec<Record>,
        most_ops: usize,
    ) -> Result<(), StoreError> {
        let Some(open) = &self.open else { return Ok(()) };
        let Seen { parts, head } = &seen;
        let folding = plan.compaction.fold(parts, head, &records, most_ops, None, &open.checkpoints)?;
        if let Some(folding) = folding {
            let keys = folding.index_keys().into_iter().map(|key| (Keyspace::Meta, key)).collect();
            self.ask(ctx, Request::Get(keys));
            self.compactor.waits = Waits::Index(Work { seen, records, folding, most_ops });
        }
        Ok(())
    }

    fn found(&mut self, ctx: &mut Context, mut work: Work, indexed: &[Option<Bytes>]) -> Result<(), StoreError> {
        let runs = work.folding.found(indexed)?;
        let keys = runs.iter().map(|seq| (Keyspace::Log, Bytes::copy_from_slice(&seq.to_key()))).collect();
        self.ask(ctx, Request::Get(keys));
        self.compactor.waits = Waits::Runs(work, runs);
        Ok(())
    }

    fn finish(
        &mut self,
        ctx: &mut Context,
        plan: Plan,
        work: Work,
        runs: Vec<Seq>,
        found: Vec<Option<Bytes>>,
    ) -> Result<(), StoreError> {
        let Work { seen, records, folding, most_ops } = work;
        let (end, alone) = (folding.end(), folding.records() == 1);
        let runs: Vec<_> = runs.into_iter().zip(found).collect();
        let step = match folding.finish(&runs) {
            Ok(step) => step?,
            Err(error) => {
                self.is_damaged(ctx, Scene::RunDamaged, error.seq);
                return Ok(());
            }
        };
        if step.writes.byte_len() <= plan.step_bytes {
            self.compactor.put(step);
        } else if alone {
            // Too many changes for one write set.
            self.open.iter_mut().for_each(|open| open.cut_after(end));
        } else {
            return self.fold_some(ctx, plan, seen, records, most_ops / 2);
        }
        Ok(())
    }

    fn is_damaged(&mut self, ctx: &mut Context, scene: Scene, seq: Seq) {
        ctx.coverage.met(scene);
        if let Some(open) = &mut self.open {
            ctx.damaged(self.store, open, seq);
        }
    }
}
