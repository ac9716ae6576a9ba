//! The simulated commit task of a master, as far as it changes where the parts of the log begin and end: what
//! `replikv-node` does between two groups.

use replikv_core::{Durability, KeyRange, Keyspace, Outcome, Seq, StoreError, WriteSet};
use replikv_proto::layout::{Checkpoint, Floor, Head, Stored};
use replikv_proto::{Compacted, CompactionStep, Expiry, LogParts, Retention, Run};

use super::Scene;
use super::context::{Context, MILLI, Moment};
use super::master::{Process, Task};
use super::store::Request;

/// Why the parts of the log are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Trim,
    /// A step of the task that compacts, which waits for it.
    Compact,
}

const TRIM_EVERY: Moment = 50 * MILLI;

/// How much of a log is kept.
pub(super) fn retention(ctx: &Context) -> Retention {
    Retention { max_bytes: ctx.sizes.retention, max_age_ms: ctx.sizes.max_age_ms, hold_back_bytes: ctx.sizes.hold_back }
}

impl Process {
    /// Slots first, then one bounded step; then writers get their turn.
    pub(super) fn trim(&mut self, ctx: &mut Context) {
        let Some(open) = &mut self.open else { return };
        open.trim_at = ctx.now + TRIM_EVERY;
        if open.committer.is_fenced() {
            // Log and slots are the other master's now.
            open.damaged = None;
            return;
        }
        self.save_slots(ctx);
    }

    pub(super) fn trim_log(&mut self, ctx: &mut Context) {
        let uptime_ms = self.uptime(ctx);
        let held = self.held(ctx);
        let connected = self.sessions.held();
        let Some(open) = &mut self.open else { return };
        if let Some(damaged) = open.damaged.take() {
            return self.cut(ctx, damaged);
        }
        if open.parts.compacted().is_some() {
            // Its runs go first, in steps of the task that compacts.
            return;
        }
        let head = Head { uptime_ms, position: open.view.published, ..open.committer.head() };
        let floor = open.parts.floor;
        let above: Vec<Checkpoint> = open
            .checkpoints
            .iter()
            .filter(|checkpoint| checkpoint.position.seq > floor.position.seq)
            .take(1)
            .copied()
            .collect();
        let retention = retention(ctx);
        let free = retention.step(&floor, &head, &above, None);
        match retention.step(&floor, &head, &above, held) {
            Ok(Some(trim)) => {
                let after = LogParts { floor: trim.floor, ..open.parts };
                self.change_log(ctx, after, Why::Trim, trim.writes);
            }
            _ => {
                if matches!(free, Ok(Some(_))) {
                    ctx.coverage.met(Scene::HeldBack);
                    let away = matches!(retention.step(&floor, &head, &above, connected), Ok(Some(_)));
                    if away {
                        ctx.coverage.met(Scene::HeldForAway);
                    }
                }
            }
        }
    }

    /// Where the slowest of those is for whom the log is kept.
    pub(super) fn held(&self, ctx: &mut Context) -> Option<Seq> {
        let open = self.open.as_ref()?;
        let floor = open.view.floor.seq;
        let held = [open.book.slowest(floor), self.sessions.held()].into_iter().flatten().min();
        ctx.oracle.holds(self.node, floor, held);
        held
    }

    // The log begins after a damaged record: at the next point whose digest is known.
    fn cut(&mut self, ctx: &mut Context, damaged: Seq) {
        let Some(open) = &mut self.open else { return };
        let parts = open.parts;
        if damaged <= parts.begins().position.seq {
            return;
        }
        ctx.coverage.met(Scene::DamageFound);
        // Not past what is published: what comes after it is still to be sent.
        let view = open.view;
        let published = open.checkpoints.iter().filter(|checkpoint| checkpoint.position.seq <= view.published.seq);
        let next = published.copied().find(|checkpoint| checkpoint.position.seq >= damaged);
        let floor = next.map_or(Floor { position: view.published, log_bytes: view.log_bytes }, |next| Floor {
            position: next.position,
            log_bytes: next.log_bytes,
        });
        if let Some(compacted) = parts.compacted() {
            let compacts = damaged <= compacted.position.seq;
            let until = if compacts { run_end(ctx, self.store, damaged, &compacted) } else { floor };
            if let Ok(step) = Expiry::all_until(&parts, until).step(&[], false) {
                self.change_log(ctx, step.after, Why::Trim, step.writes);
            }
            return;
        }
        let mut writes = WriteSet::builder();
        writes.require(Floor::KEY, Some(parts.floor.to_bytes()));
        writes.delete_range(Keyspace::Log, &KeyRange::from_bounds(..=floor.position.seq.to_key()));
        if writes.put(Keyspace::Meta, Floor::KEY, floor.to_bytes()).is_ok() {
            let writes = writes.build();
            self.change_log(ctx, LogParts { floor, ..parts }, Why::Trim, writes);
        }
    }

    /// A step of the task that compacts.
    pub(super) fn take_step(&mut self, ctx: &mut Context, step: CompactionStep) {
        // Log and slots may be another master's now; the fence would say so.
        if self.open.as_ref().is_none_or(|open| open.committer.is_fenced()) {
            return self.compactor.done(ctx, false);
        }
        self.change_log(ctx, step.after, Why::Compact, step.writes);
    }

    // A write set that changes where the parts of the log begin and end.
    fn change_log(&mut self, ctx: &mut Context, after: LogParts, why: Why, writes: WriteSet) {
        let Some(open) = &mut self.open else { return };
        // Told before it is done: nobody is sent to records that are about to go.
        open.change(|view| view.floor = after.begins().position);
        ctx.call(self.store, self.owner(), Request::Apply(writes.clone(), Durability::Buffered));
        self.task = Task::Trimming { after: Box::new(after), why, writes, attempt: 0, retry_at: None };
    }

    pub(super) fn trimmed(&mut self, ctx: &mut Context, after: LogParts, why: Why, result: Result<(), StoreError>) {
        let Some(open) = &mut self.open else { return };
        let before = open.parts;
        match result {
            Ok(()) => {
                open.change_parts(after);
                ctx.coverage.met(scene(&before, &after));
                // There may be more to do.
                open.trim_at = if why == Why::Trim { ctx.now } else { open.trim_at };
            }
            Err(error) if error.outcome() == Outcome::Unknown => self.reopen(ctx, None),
            // Somebody else has moved it.
            Err(StoreError::HeadMoved) => {
                if let Some(parts) = ctx.stores[self.store].parts() {
                    open.change_parts(parts);
                }
            }
            Err(_) => {}
        }
        if why == Why::Compact {
            let changed = self.open.as_ref().is_some_and(|open| open.parts != before);
            if !changed {
                ctx.coverage.met(Scene::CompactionRefused);
            }
            self.compactor.done(ctx, changed);
        }
    }
}

fn scene(before: &LogParts, after: &LogParts) -> Scene {
    let entries = |parts: &LogParts| parts.compacted.map_or(0, |compacted| compacted.entries);
    if before.full_after().position.seq < after.full_after().position.seq && before.begins() == after.begins() {
        Scene::Compacted
    } else if entries(after) < entries(before) {
        Scene::TombstoneExpired
    } else {
        Scene::Trimmed
    }
}

// Where a damaged run ends, if that much can be read of it.
fn run_end(ctx: &Context, store: usize, seq: Seq, compacted: &Compacted) -> Floor {
    let stored = ctx.stores[store].visible.of(Keyspace::Log).get(&seq.to_key()[..]);
    match stored.map(|bytes| Run::from_bytes(seq, bytes)) {
        Some(Ok(run)) => Floor { position: run.end, log_bytes: run.log_bytes },
        _ => Floor { position: compacted.position, log_bytes: compacted.log_bytes },
    }
}
