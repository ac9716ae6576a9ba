//! The simulated driver of a master: what `replikv-node` does around the committer, step by step.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use replikv_core::{Durability, Epoch, Keyspace, Outcome, Position, Seq, StoreError, StoreLimits, WriteSet};
use replikv_proto::layout::{Epochs, Head, Role, Stored, Superseded};
use replikv_proto::{
    Answer, CommitGroup, Committer, CommitterConfig, Intent, LogEntry, LogParts, RecordKind, SlotName, Step, Work,
};

use super::begin::begin;
use super::compact::Compactor;
use super::context::{Context, MILLI, Moment, Node, Owner};
use super::handover::Handovers;
use super::serving::{Served, Sessions};
use super::session::Session;
use super::slots::SlotBook;
use super::store::{Reply, Request};
use super::trim::Why;
use super::work::{Intended, Promise};
use super::{DriverBug, Scene, Topology};

/// A master, whether its process runs or not.
#[derive(Debug)]
pub(super) struct Master {
    pub(super) node: usize,
    pub(super) store: usize,
    pub(super) wall_offset_ms: i64,
    /// Synced, or synced every so often.
    pub(super) sync_every: Option<Moment>,
    pub(super) process: Option<Process>,
    pub(super) lives: u64,
    /// The next process begins an epoch.
    pub(super) new_epoch: Option<u64>,
    /// It is there for a while only, beside another.
    pub(super) extra: bool,
    /// Its store is a slave's at present.
    pub(super) idle: bool,
    /// It was opened, and its store says that another one has taken over.
    pub(super) superseded: bool,
}

/// A running master.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) life: u64,
    pub(super) node: usize,
    pub(super) store: usize,
    sync_every: Option<Moment>,
    pub(super) wall_offset_ms: i64,
    pub(super) task: Task,
    pub(super) compactor: Compactor,
    pub(super) open: Option<Opened>,
    pub(super) sessions: Sessions,
    started: Moment,
    /// The committer goes on before anything else does.
    writers_first: bool,
    /// It must not be open at all.
    refused: bool,
}

/// What a master knows once its store is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) served: Served,
    pub(super) committer: Committer<u64>,
    intents: VecDeque<Intent<u64>>,
    /// So many writers wait for an answer.
    waiting: usize,
    uptime_before: u64,
    synced: Position,
    unsynced: Vec<LogEntry>,
    sync_at: Option<Moment>,
    pub(super) trim_at: Moment,
    /// Until its record is there, nothing else is written in a new epoch.
    epoch: Epoch,
    beginning: Option<Epoch>,
    marking: bool,
    pub(super) handovers: Handovers,
}

/// What the commit task waits for.
#[derive(Debug)]
pub(super) enum Task {
    Opening,
    /// What was the head then is durable afterwards; what somebody else writes meanwhile is not.
    SyncingAtOpen(Option<Head>),
    Ready,
    Fetching(Vec<Bytes>),
    Committing {
        group: Box<CommitGroup<u64>>,
        attempt: u32,
        retry_at: Option<Moment>,
    },
    Syncing,
    /// What was acknowledged is looked up: with what is known already.
    FindingAcks(Vec<(SlotName, Option<Position>)>, Vec<(SlotName, Seq)>),
    WritingSlots(WriteSet),
    /// The parts of the log are changed.
    Trimming {
        after: Box<LogParts>,
        why: Why,
        writes: WriteSet,
        attempt: u32,
        retry_at: Option<Moment>,
    },
    EndingReign {
        mark: Superseded,
        writes: WriteSet,
        attempt: u32,
        retry_at: Option<Moment>,
    },
    /// The group is the one whose outcome is unknown.
    Reopening(Option<Box<CommitGroup<u64>>>),
}

/// The ticket of the record that begins an epoch: nobody waits for its answer.
const MARK: u64 = 0;
/// Writers wait for their answers: of a store that is slower than they are, no more than this is ever asked.
const MOST_WAITING: usize = 1_000;
const ATTEMPTS: u32 = 6;
const REOPEN_EVERY: Moment = 50 * MILLI;

impl Master {
    pub(super) fn new(node: usize, store: usize, sync_every: Option<Moment>) -> Self {
        let (process, new_epoch) = (None, None);
        Self {
            node,
            store,
            wall_offset_ms: 0,
            sync_every,
            process,
            lives: 0,
            new_epoch,
            extra: false,
            idle: false,
            superseded: false,
        }
    }

    /// True if it is one of those that the run is about, at present.
    pub(super) fn counts(&self) -> bool {
        !self.extra && !self.idle
    }

    /// True if it should run, and does not.
    pub(super) fn is_down(&self) -> bool {
        self.counts() && self.process.is_none()
    }

    /// Starts a process.
    pub(super) fn start(&mut self, ctx: &mut Context) {
        self.lives += 1;
        self.superseded = false;
        let (node, life, store) = (self.node, self.lives, self.store);
        ctx.call(store, Owner::Commit { node, life }, Request::Reopen);
        self.process = Some(Process {
            life,
            node,
            store,
            sync_every: self.sync_every,
            wall_offset_ms: self.wall_offset_ms,
            task: Task::Opening,
            compactor: Compactor::default(),
            open: None,
            sessions: Sessions::new(Node::Master(node), life, store, true),
            started: ctx.now,
            writers_first: false,
            refused: false,
        });
    }

    /// The process is gone, from one moment to the next; with `power` the whole machine is.
    pub(super) fn kill(&mut self, ctx: &mut Context, power: bool) {
        let Some(mut process) = self.process.take() else { return };
        ctx.forget_calls(Node::Master(self.node), process.life, power);
        process.sessions.die(ctx, power);
    }

    pub(super) fn answered(&mut self, ctx: &mut Context, owner: Owner, reply: Reply) {
        let epoch = self.new_epoch;
        let Some(process) = &mut self.process else { return };
        match owner {
            Owner::Commit { life, .. } if life == process.life => {
                let began = process.task_answered(ctx, reply, epoch);
                self.new_epoch = epoch.filter(|_| !began);
                if process.refused {
                    self.superseded = true;
                    self.kill(ctx, false);
                }
            }
            Owner::Compact { life, .. } if life == process.life => process.compacting(ctx, reply),
            Owner::Session { life, session, .. } if life == process.life => {
                process.sessions.answered(ctx, process.open.as_mut().map(|open| &mut open.served), session, reply);
            }
            _ => {}
        }
    }

    pub(super) fn run(&mut self, ctx: &mut Context) {
        if let Some(process) = &mut self.process {
            process.wall_offset_ms = self.wall_offset_ms;
            process.sessions.wall_offset_ms = self.wall_offset_ms;
            process.run(ctx);
        }
    }

    /// The running master, if it is open.
    pub(super) fn opened(&self) -> Option<&Opened> {
        self.process.as_ref().and_then(|process| process.open.as_ref())
    }

    /// Somebody writes.
    pub(super) fn submit(&mut self, ctx: &mut Context, ticket: u64, work: Work, promise: Promise) {
        let Some(head) = ctx.stores[self.store].head() else { return };
        let Some(open) = self.process.as_mut().and_then(|process| process.open.as_mut()) else { return };
        if open.waiting >= MOST_WAITING {
            return;
        }
        // As the master's `write` does, before anything else happens.
        if let Work::Batch(batch) = &work
            && batch.check(&open.limits).is_err()
        {
            return;
        }
        ctx.oracle.intends(ticket, Intended { promise, seen: head.position });
        open.intents.push_back(Intent { ticket, work });
        open.waiting += 1;
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.opened().is_some_and(|open| open.committer.is_fenced())
    }

    /// True if another master has written to the store, which this one learns of with its next write only.
    pub(super) fn is_overtaken(&self, ctx: &Context) -> bool {
        let store = &ctx.stores[self.store];
        let own = self.opened().map(|open| open.committer.head().position);
        store.was_shared && own.is_some() && own != store.head().map(|head| head.position)
    }
}

impl Process {
    pub(super) fn owner(&self) -> Owner {
        Owner::Commit { node: self.node, life: self.life }
    }

    pub(super) fn uptime(&self, ctx: &Context) -> u64 {
        self.open.as_ref().map_or(0, |open| open.uptime_before) + (ctx.now - self.started) / MILLI
    }

    /// Does whatever can be done before something has to be waited for.
    pub(super) fn run(&mut self, ctx: &mut Context) {
        loop {
            self.run_task(ctx);
            let Some(open) = &self.open else { return };
            let version = open.version;
            if let Some(open) = &mut self.open {
                self.sessions.run(ctx, &mut open.served);
                let Opened { served, handovers, .. } = open;
                handovers.drive(ctx, &mut self.sessions, served, matches!(self.task, Task::Ready));
            }
            self.compact(ctx);
            let Some(open) = &self.open else { return };
            let wanted = open.damaged.is_some() || self.sessions.met.is_some() || self.compactor.has_step();
            let wanted = wanted && matches!(self.task, Task::Ready);
            if open.version == version && !wanted {
                return;
            }
        }
    }

    fn run_task(&mut self, ctx: &mut Context) {
        self.retry(ctx);
        while matches!(self.task, Task::Ready) {
            if let Some(mark) = self.sessions.met.take() {
                self.end_reign(ctx, mark);
                continue;
            }
            let writers_first = std::mem::take(&mut self.writers_first);
            if !writers_first && self.keep_house(ctx) {
                self.writers_first = true;
                continue;
            }
            let now = ctx.clock(self.wall_offset_ms);
            let uptime = self.uptime(ctx);
            let Some(open) = &mut self.open else { return };
            open.take_intents();
            match open.committer.step(now, uptime) {
                Step::Fetch(keys) => {
                    let wanted = keys.iter().map(|key| (Keyspace::Data, key.clone())).collect();
                    ctx.call(self.store, self.owner(), Request::Get(wanted));
                    self.task = Task::Fetching(keys);
                }
                Step::FetchRanges(_) => unreachable!("nothing is derived here"),
                Step::Commit(group) => self.commit(ctx, group),
                Step::Answer(answers) => self.tell(ctx, answers),
                Step::Idle if writers_first => {}
                Step::Idle => {
                    let wake_at = open.sync_at.map_or(open.trim_at, |at| at.min(open.trim_at));
                    return ctx.wake_at(Node::Master(self.node), wake_at);
                }
            }
        }
    }

    // Writers that never pause do not keep it from what is due.
    fn keep_house(&mut self, ctx: &mut Context) -> bool {
        let Some(open) = &self.open else { return false };
        if open.sync_at.is_some_and(|at| ctx.now >= at) {
            self.sync(ctx);
        } else if open.damaged.is_some() || ctx.now >= open.trim_at {
            self.trim(ctx);
        } else if let Some(step) = self.compactor.take() {
            self.take_step(ctx, step);
        } else {
            return false;
        }
        true
    }

    fn retry(&mut self, ctx: &mut Context) {
        let owner = self.owner();
        let durability = self.durability();
        let (request, retry_at) = match &mut self.task {
            Task::Committing { group, retry_at, .. } => (Request::Apply(group.writes.clone(), durability), retry_at),
            Task::Trimming { writes, retry_at, .. } => (Request::Apply(writes.clone(), Durability::Buffered), retry_at),
            Task::EndingReign { writes, retry_at, .. } => {
                (Request::Apply(writes.clone(), Durability::Synced), retry_at)
            }
            _ => return,
        };
        match *retry_at {
            Some(at) if at <= ctx.now => {
                *retry_at = None;
                ctx.call(self.store, owner, request);
            }
            Some(at) => ctx.wake_at(Node::Master(self.node), at),
            None => {}
        }
    }

    fn durability(&self) -> Durability {
        if self.sync_every.is_some() { Durability::Buffered } else { Durability::Synced }
    }

    fn tell(&mut self, ctx: &mut Context, answers: Vec<(u64, Answer)>) {
        let durable = self.sync_every.is_none();
        for (ticket, answer) in answers {
            match (ticket, &mut self.open) {
                (MARK, Some(open)) => open.marking = false,
                (_, Some(open)) => open.waiting = open.waiting.saturating_sub(1),
                (_, None) => {}
            }
            ctx.trace(ticket);
            ctx.oracle.answered(&ctx.stores[self.store], ticket, &answer, durable, &mut ctx.coverage);
        }
    }

    fn commit(&mut self, ctx: &mut Context, mut group: Box<CommitGroup<u64>>) {
        if ctx.planted(DriverBug::ConflictToldEarly) {
            let conflicts = |(_, answer): &mut (u64, Answer)| matches!(answer, Answer::Conflict { .. });
            let early = group.answers.extract_if(.., conflicts).collect();
            self.tell(ctx, early);
        }
        if group.entries.len() > 1 {
            ctx.coverage.met(Scene::GroupCommit);
        }
        if ctx.topology.passes_on() && ctx.newer_epoch(group.head.position.epoch.number) {
            ctx.coverage.met(Scene::WroteBeside);
        }
        let Some(open) = &mut self.open else { return };
        // Before the store sees it: a page that is read from now on may show it.
        if !ctx.planted(DriverBug::HandedToldLate) {
            open.change(|view| view.handed = group.head.position);
        }
        let request = Request::Apply(group.writes.clone(), self.durability());
        ctx.call(self.store, self.owner(), request);
        self.task = Task::Committing { group, attempt: 0, retry_at: None };
    }

    // What the commit task waited for has come. True if it began the new epoch that was asked for.
    fn task_answered(&mut self, ctx: &mut Context, reply: Reply, new_epoch: Option<u64>) -> bool {
        match std::mem::replace(&mut self.task, Task::Ready) {
            Task::Opening => self.open_store(ctx),
            Task::SyncingAtOpen(head) => match reply.done() {
                Ok(()) => return self.opened(ctx, head, new_epoch),
                Err(_) => {
                    ctx.call(self.store, self.owner(), Request::Reopen);
                    self.task = Task::Opening;
                }
            },
            Task::Fetching(keys) => self.fetched(ctx, keys, reply.got()),
            Task::Committing { group, attempt, .. } => match reply.done() {
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                    let retry_at = Some(ctx.now + (MILLI << attempt));
                    self.task = Task::Committing { group, attempt: attempt + 1, retry_at };
                }
                result => self.committed(ctx, group, result),
            },
            Task::Syncing => match reply.done() {
                Ok(()) => self.on_stable_storage(ctx),
                Err(_) => self.reopen(ctx, None),
            },
            Task::FindingAcks(known, wanted) => self.acks_found(ctx, known, wanted, reply),
            Task::WritingSlots(writes) => self.slots_written(ctx, &writes, reply.done()),
            Task::Trimming { after, why, writes, attempt, .. } => match reply.done() {
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                    let retry_at = Some(ctx.now + (MILLI << attempt));
                    self.task = Task::Trimming { after, why, writes, attempt: attempt + 1, retry_at };
                }
                result => self.trimmed(ctx, *after, why, result),
            },
            Task::EndingReign { mark, writes, attempt, .. } => match reply.done() {
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                    let retry_at = Some(ctx.now + (MILLI << attempt));
                    self.task = Task::EndingReign { mark, writes, attempt: attempt + 1, retry_at };
                }
                result => self.reign_ended(ctx, mark, result),
            },
            Task::Reopening(group) => self.reopened(ctx, group),
            Task::Ready => {}
        }
        false
    }

    // The store is open: what it says of itself is read, or written for the first time.
    fn open_store(&mut self, ctx: &mut Context) {
        let store = &mut ctx.stores[self.store];
        if store.identity().is_none() {
            begin(ctx, self.store, self.wall_offset_ms);
        }
        let head = ctx.stores[self.store].head();
        if ctx.planted(DriverBug::OpenedWithoutSync) {
            self.task = Task::SyncingAtOpen(head);
            self.task_answered(ctx, Reply::Done(Ok(())), None);
            return;
        }
        // A process that was killed may have left records that are readable and not durable: none is published before.
        ctx.call(self.store, self.owner(), Request::Sync);
        self.task = Task::SyncingAtOpen(head);
    }

    fn opened(&mut self, ctx: &mut Context, head: Option<Head>, new_epoch: Option<u64>) -> bool {
        let store = &ctx.stores[self.store];
        let (Some(head), Some(parts)) = (head, store.parts()) else { return false };
        let superseded = store.visible.stored::<Superseded>(Superseded::KEY).is_some();
        if superseded || store.identity().is_none_or(|identity| identity.role != Role::Master) {
            // Or its promotion was taken back by a failed sync.
            self.refused = true;
            if superseded {
                ctx.coverage.met(Scene::SupersededAtOpen);
            }
            return false;
        }
        let limits = StoreLimits { max_batch: ctx.sizes.max_batch, ..store.limits };
        // Where a restored master begins an epoch with a record of its committer, nobody has written it down.
        let epochs = match ctx.topology {
            Topology::Star => ctx.oracle.model.epochs(&head.position),
            _ => store.visible.stored::<Epochs>(Epochs::KEY).unwrap_or_default().0,
        };
        let checkpoints = store.visible.checkpoints();
        let begun = new_epoch.map(|nonce| Epoch { number: head.position.epoch.number + 1, nonce });
        let epoch = begun.unwrap_or(head.position.epoch);
        let config = CommitterConfig { epoch, group_bytes: ctx.sizes.group_bytes, limits };
        if begun.is_some() {
            ctx.coverage.met(Scene::NewEpoch);
        }
        if parts.is_expiring() {
            ctx.coverage.met(Scene::ExpiryResumed);
        }
        let mut served = Served::begin(ctx, (&head, parts), (epochs, limits), checkpoints, None);
        served.book = SlotBook::read(ctx, self.node, self.store, parts.begins().position.seq, head.uptime_ms);
        self.open = Some(Opened {
            served,
            committer: Committer::new(config, head),
            intents: VecDeque::new(),
            waiting: 0,
            uptime_before: head.uptime_ms,
            synced: head.position,
            unsynced: Vec::new(),
            sync_at: None,
            trim_at: ctx.now,
            epoch,
            beginning: begun,
            marking: false,
            handovers: Handovers::default(),
        });
        ctx.wake(Node::Master(self.node));
        true
    }

    fn fetched(&mut self, ctx: &mut Context, keys: Vec<Bytes>, values: Result<Vec<Option<Bytes>>, StoreError>) {
        let Some(open) = &mut self.open else { return };
        match values {
            Ok(values) => {
                open.committer.fetched(keys.into_iter().zip(values));
                // It belongs to the head that it was read at: nothing may move that before the commit.
                self.writers_first = true;
            }
            Err(error) => {
                let answers = open.committer.fetch_failed(&error);
                self.tell(ctx, answers);
                if error.outcome() == Outcome::Unknown {
                    self.reopen(ctx, None);
                }
            }
        }
    }

    fn committed(&mut self, ctx: &mut Context, mut group: Box<CommitGroup<u64>>, result: Result<(), StoreError>) {
        let Some(open) = &mut self.open else { return };
        let result = match result {
            Err(error) if error.outcome() == Outcome::Unknown => {
                if ctx.planted(DriverBug::UnknownTakenAsSuccess) {
                    Ok(())
                } else if ctx.planted(DriverBug::UnknownTakenAsFailure) {
                    Err(StoreError::backend("taken as a failure"))
                } else {
                    Err(error)
                }
            }
            result => result,
        };
        match result {
            Ok(()) => {
                open.committer.committed(&group);
                open.change(|view| view.handed = group.head.position);
                group.checkpoints.drain(..).for_each(|checkpoint| checkpoint.keep_in(&mut open.served.checkpoints));
                if open.epochs.last().is_none_or(|last| last.epoch != group.head.position.epoch) {
                    open.epochs = ctx.oracle.model.epochs(&group.head.position);
                }
                let answers = std::mem::take(&mut group.answers);
                open.unsynced.append(&mut group.entries);
                match self.sync_every {
                    Some(every) if !ctx.planted(DriverBug::PublishedBeforeDurable) => {
                        open.sync_at.get_or_insert(ctx.now + every);
                    }
                    _ => self.on_stable_storage(ctx),
                }
                self.tell(ctx, answers);
            }
            Err(error) if error.outcome() == Outcome::Unknown => {
                let answers = std::mem::take(&mut group.answers);
                let unknown = Answer::OutcomeUnknown(error);
                let answers = answers.into_iter().map(|(ticket, was)| (ticket, after(was, &unknown)));
                self.tell(ctx, answers.collect());
                self.reopen(ctx, Some(group));
            }
            Err(error) => {
                open.committer.failed(&error);
                let head = open.committer.handed();
                open.change(|view| view.handed = head);
                let fenced = matches!(error, StoreError::HeadMoved);
                if fenced {
                    ctx.coverage.met(Scene::MasterFenced);
                }
                let outcome = if fenced { Answer::Fenced } else { Answer::Failed(error) };
                let answers = group.answers.into_iter().map(|(ticket, was)| (ticket, after(was, &outcome)));
                self.tell(ctx, answers.collect());
            }
        }
    }

    // What was handed over before is decided; what comes later is refused, also by whoever opens the store.
    fn end_reign(&mut self, ctx: &mut Context, mark: Superseded) {
        let Some(open) = &mut self.open else { return };
        open.committer.fence();
        self.sessions.reign_over = true;
        ctx.coverage.met(Scene::Superseded);
        if ctx.planted(DriverBug::MarkNotKept) {
            return self.reign_ended(ctx, mark, Ok(()));
        }
        let mut writes = WriteSet::builder();
        if writes.put(Keyspace::Meta, Superseded::KEY, mark.to_bytes()).is_err() {
            return;
        }
        let writes = writes.build();
        ctx.call(self.store, self.owner(), Request::Apply(writes.clone(), Durability::Synced));
        self.task = Task::EndingReign { mark, writes, attempt: 0, retry_at: None };
    }

    fn reign_ended(&mut self, ctx: &mut Context, mark: Superseded, result: Result<(), StoreError>) {
        if let Some(open) = &mut self.open {
            open.handovers.stopped(mark, result.is_ok());
        }
        match result {
            Ok(()) => ctx.oracle.fenced(self.store),
            // Nobody could keep it: it holds for as long as this process lives.
            Err(error) if error.outcome() == Outcome::Unknown => self.reopen(ctx, None),
            Err(_) => {}
        }
        self.sessions.map.values_mut().for_each(Session::reign_ended);
    }

    fn sync(&mut self, ctx: &mut Context) {
        ctx.call(self.store, self.owner(), Request::Sync);
        self.task = Task::Syncing;
    }

    fn on_stable_storage(&mut self, ctx: &mut Context) {
        let Some(open) = &mut self.open else { return };
        let entries = std::mem::take(&mut open.unsynced);
        open.sync_at = None;
        let Some(last) = entries.last() else { return };
        let (position, log_bytes) = (last.position, last.log_bytes);
        open.synced = position;
        ctx.oracle.published(&ctx.stores[self.store], &open.view.published, &entries);
        let missing = open.parts.missing_bytes();
        open.publish(entries, |view| {
            view.published = position;
            view.log_bytes = log_bytes;
            view.retained_bytes = log_bytes.saturating_sub(missing);
        });
        ctx.oracle.ring(&ctx.sizes, open.ring.bytes);
    }

    pub(super) fn reopen(&mut self, ctx: &mut Context, group: Option<Box<CommitGroup<u64>>>) {
        ctx.call(self.store, self.owner(), Request::Reopen);
        self.task = Task::Reopening(group);
    }

    // The store was opened anew, and what it holds is the truth.
    fn reopened(&mut self, ctx: &mut Context, group: Option<Box<CommitGroup<u64>>>) {
        let store = &ctx.stores[self.store];
        let (Some(found), Some(parts)) = (store.head(), store.parts()) else { return };
        let Some(open) = &mut self.open else { return };
        if open.committer.head().position.seq > found.position.seq {
            ctx.coverage.met(Scene::HeadWentBack);
        }
        let mut there = false;
        if let Some(mut group) = group {
            there = found.position == group.head.position;
            ctx.coverage.met(if there { Scene::UnknownThere } else { Scene::UnknownGone });
            open.unsynced.append(&mut group.entries);
            group.checkpoints.drain(..).for_each(|checkpoint| checkpoint.keep_in(&mut open.served.checkpoints));
            if there {
                open.epochs = ctx.oracle.model.epochs(&found.position);
                open.committer.settled(&group, found);
            }
        }
        let own = |entry: &LogEntry| entry.position == found.position;
        let is_own = found.position == open.synced || open.unsynced.iter().any(own);
        if !there && !is_own {
            open.committer.failed(&StoreError::HeadMoved);
            open.unsynced.clear();
            return ctx.coverage.met(Scene::MasterFenced);
        }
        if !there {
            // What was not synced is lost, and only that.
            open.committer.rewound(found);
        }
        if !ctx.planted(DriverBug::LostRecordsPublished) {
            open.unsynced.retain(|entry| entry.position.seq <= found.position.seq);
        }
        open.checkpoints.retain(|checkpoint| checkpoint.position.seq <= found.position.seq);
        open.change_parts(parts);
        open.change(|view| view.handed = found.position);
        open.sync_at = Some(ctx.now + REOPEN_EVERY);
        self.begin_again(ctx, found);
    }

    // The mark of the epoch is lost as well, and comes before everything else: who waits for the committer must ask again.
    fn begin_again(&mut self, ctx: &mut Context, found: Head) {
        let Some(open) = &mut self.open else { return };
        if found.position.epoch == open.epoch {
            return;
        }
        open.beginning = Some(open.epoch);
        let lost = StoreError::Transient { reason: "the beginning of the epoch was lost".into() };
        if let Step::Answer(answers) = open.committer.answer_all(&Answer::Failed(lost)) {
            self.tell(ctx, answers);
        }
    }
}

impl Opened {
    /// As a master of `replikv-node`, which is not open to slaves before the record that begins its epoch is on stable
    /// storage: every session knows of that epoch.
    pub(super) fn serves(&self) -> bool {
        self.view.published.epoch == self.epoch
    }

    fn take_intents(&mut self) {
        if self.beginning == Some(self.committer.head().position.epoch) {
            self.beginning = None;
        }
        match self.beginning {
            Some(_) if self.marking || self.committer.is_fenced() => {}
            Some(_) => {
                self.marking = true;
                self.committer.push(Intent { ticket: MARK, work: Work::Mark(RecordKind::Epoch) });
            }
            None if self.handovers.pauses() => {}
            None => self.intents.drain(..).for_each(|intent| self.committer.push(intent)),
        }
    }
}

impl Deref for Opened {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

impl DerefMut for Opened {
    fn deref_mut(&mut self) -> &mut Served {
        &mut self.served
    }
}

// What was refused is refused; what would have been committed, or had seen what was not, shares the group's fate.
fn after(decided: Answer, outcome: &Answer) -> Answer {
    match decided {
        Answer::Failed(error) => Answer::Failed(error),
        _ => outcome.clone(),
    }
}
