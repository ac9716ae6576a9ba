//! The simulated apply task of a slave: what `replikv-node` does around the applier, step by step.

use std::collections::VecDeque;

use replikv_core::{Cursor, Durability, KeyRange, Keyspace, LinkId, Outcome, Position, ScanOptions, Seq, StoreError};
use replikv_proto::layout::{Epochs, Head};
use replikv_proto::{Applier, Content, Displacing, Group, Portion, Probed, Progress, Record, Resync, Touched};

use super::context::{Context, MILLI, Moment, Node, Owner};
use super::relay::{Facts, RelayNode};
use super::store::{Reply, Request};
use super::{DriverBug, Scene, verify};

/// How far a slave is, as it tells.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    pub(super) position: Option<Position>,
    pub(super) durable: Seq,
    pub(super) consistent: bool,
    /// What is durable is a state of the master, whatever of what came after it is there too.
    settled: bool,
}

impl Tracker {
    pub(super) fn progress(&self) -> Progress {
        let applied = self.position.map_or(Seq::ZERO, |position| position.seq);
        Progress { applied, durable: self.durable.min(applied), consistent: self.consistent && self.settled }
    }

    /// Whether there is anything that is readable, and not known to be durable.
    pub(super) fn is_unsynced(&self) -> bool {
        let Progress { applied, durable, consistent } = self.progress();
        durable < applied || consistent != self.consistent
    }

    /// All that was applied, up to this record, is durable.
    pub(super) fn synced(&mut self, seq: Seq) {
        self.durable = self.durable.max(seq);
        self.settled = self.consistent;
    }

    /// The history that the slave was in is left.
    pub(super) fn resyncs(&mut self, cursor: &Cursor) {
        (self.position, self.durable) = (Some(cursor.position), Seq::ZERO);
        (self.consistent, self.settled) = (false, false);
    }

    /// A group goes to the store. What it leaves there may be no state of the master, and be there before it is answered.
    fn hands(&mut self, cursor: &Cursor) {
        self.consistent &= cursor.is_consistent();
        self.settled &= cursor.is_consistent();
    }

    pub(super) fn rewound(&mut self, cursor: Option<&Cursor>) {
        self.position = cursor.map(|cursor| cursor.position);
        self.consistent = cursor.is_some_and(Cursor::is_consistent);
        self.settled &= self.consistent;
        self.durable = self.durable.min(self.position.map_or(Seq::ZERO, |position| position.seq));
    }
}

/// The task that commits.
#[derive(Debug)]
pub(super) struct Apply {
    items: VecDeque<Item>,
    applier: Applier,
    backlog: usize,
    cap: usize,
    folded: Option<Group>,
    waits: Waits,
    sync_at: Option<Moment>,
    /// Nothing more will come.
    pub(super) closed: bool,
    /// Only what is in flight is decided.
    pub(super) abandoned: bool,
    pub(super) ended: Option<Result<(), StoreError>>,
    pub(super) keeps_log: bool,
    /// What the master has told, and is not known to those who follow this slave.
    facts: Option<Facts>,
}

/// What a connection hands over.
#[derive(Debug)]
pub(super) enum Item {
    Begin(Cursor),
    Resync(Cursor, Resync, Epochs),
    Record(Record),
    Portion(Portion),
    Content(Content),
    Touched(Touched),
    Covered(KeyRange, Position),
    Checkpoints(Vec<Position>),
    Probed(Box<Probed>),
    Facts(Facts),
}

impl Item {
    fn byte_len(&self) -> usize {
        match self {
            Self::Begin(_) | Self::Resync(..) | Self::Checkpoints(_) | Self::Facts(_) => 0,
            Self::Record(record) => record.bytes().len(),
            Self::Portion(portion) => portion.byte_len(),
            Self::Content(content) => content.entries.byte_len(),
            Self::Touched(touched) => touched.ops.byte_len(),
            Self::Covered(range, _) => Applier::covered_len(range),
            Self::Probed(probed) => probed.byte_len(),
        }
    }
}

/// What the apply task waits for.
#[derive(Debug)]
enum Waits {
    Nothing,
    Apply { group: Box<Group>, attempt: u32, retry_at: Option<Moment> },
    Sync(Seq),
    Reopen(StoreError),
}

const ATTEMPTS: u32 = 6;

/// What the apply task needs of its slave.
pub(super) struct Driver {
    pub(super) owner: Owner,
    pub(super) store: usize,
    pub(super) sync_every: Option<Moment>,
}

impl Apply {
    pub(super) fn new(
        cursor: Option<Cursor>,
        resync: Option<Resync>,
        kept: Option<Option<Head>>,
        target: usize,
    ) -> Self {
        let applier = Applier::new(LinkId::default(), cursor, target).resyncing(resync);
        Self {
            items: VecDeque::new(),
            applier: match kept {
                Some(head) => applier.keeping_log(head),
                None => applier,
            },
            backlog: 0,
            cap: target * 2,
            folded: None,
            waits: Waits::Nothing,
            sync_at: None,
            closed: false,
            abandoned: false,
            ended: None,
            keeps_log: kept.is_some(),
            facts: None,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !matches!(self.waits, Waits::Nothing)
    }

    pub(super) fn has_items(&self) -> bool {
        !self.items.is_empty()
    }

    /// The last record that waits.
    pub(super) fn arrived(&self) -> Option<Seq> {
        let records = self.items.iter().filter_map(|item| match item {
            Item::Record(record) => Some(record.position().seq),
            Item::Portion(portion) => Some(portion.position.seq),
            Item::Touched(touched) => touched.end.map(|end| end.seq),
            _ => None,
        });
        records.max()
    }

    pub(super) fn has_room(&self) -> bool {
        self.backlog < self.cap
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.waits, Waits::Nothing) && (self.abandoned || self.ended.is_some())
    }

    pub(super) fn push(&mut self, ctx: &mut Context, item: Item) {
        self.backlog += item.byte_len();
        ctx.oracle.backlog(&ctx.sizes, self.backlog);
        self.items.push_back(item);
    }

    pub(super) fn run(
        &mut self,
        ctx: &mut Context,
        driver: &Driver,
        node: usize,
        (tracker, relay): (&mut Tracker, &mut Option<RelayNode>),
    ) {
        if let Waits::Apply { group, retry_at: retry_at @ Some(_), .. } = &mut self.waits {
            match *retry_at {
                Some(at) if at <= ctx.now => {
                    *retry_at = None;
                    let request = Request::Apply(group.writes.clone(), driver.durability());
                    ctx.call(driver.store, driver.owner, request);
                }
                Some(at) => ctx.wake_at(Node::Slave(node), at),
                None => {}
            }
        }
        if matches!(self.waits, Waits::Apply { .. }) {
            return self.fold_ahead(ctx, relay);
        }
        while matches!(self.waits, Waits::Nothing) && self.ended.is_none() && !self.abandoned {
            if self.sync_at.is_some_and(|at| at <= ctx.now) {
                self.sync(ctx, driver, tracker);
                return;
            }
            while let Some(item) = self.items.pop_front() {
                self.take(ctx, relay, item);
            }
            if (self.folded.is_none() || ctx.planted(DriverBug::ProbeBeforeFolded))
                && let Some(probed) = self.applier.take_probed()
            {
                self.compare(ctx, driver.store, &probed);
                continue;
            }
            if let Some((relay, facts)) = relay.as_mut().zip(self.facts.take()) {
                relay.learn(ctx, &facts);
            }
            if let Some(relay) = relay {
                self.applier.tell_uptime(relay.uptime_ms(ctx.now));
            }
            let group = match self.folded.take() {
                Some(group) => Ok(Some(group)),
                None => self.applier.next_group(),
            };
            match group {
                Ok(Some(group)) => {
                    if group.records > 1 {
                        ctx.coverage.met(Scene::Folded);
                    }
                    if let Some(relay) = relay {
                        relay.hand(ctx, group.cursor.position, group.log.as_ref());
                    }
                    if let Some(displacing) = &group.displacing
                        && !ctx.planted(DriverBug::QuarantinedTooLate)
                    {
                        quarantine(ctx, driver.store, displacing);
                    }
                    if !ctx.planted(DriverBug::ConsistentUntilAnswered) {
                        tracker.hands(&group.cursor);
                    }
                    let request = Request::Apply(group.writes.clone(), driver.durability());
                    ctx.call(driver.store, driver.owner, request);
                    self.waits = Waits::Apply { group: Box::new(group), attempt: 0, retry_at: None };
                }
                Ok(None) if self.closed && self.sync_at.is_some() => self.sync(ctx, driver, tracker),
                Ok(None) if self.closed => self.end(Ok(())),
                Ok(None) => {
                    if let Some(at) = self.sync_at {
                        ctx.wake_at(Node::Slave(node), at);
                    }
                    return;
                }
                Err(error) => self.end(Err(error)),
            }
        }
    }

    // Everything before it is committed, and nothing after it.
    fn compare(&mut self, ctx: &mut Context, store: usize, probed: &Probed) {
        self.backlog -= probed.byte_len();
        let there = |cursor: &&Cursor| cursor.is_consistent() && cursor.position == probed.at;
        let Some(cursor) = self.applier.cursor().filter(there) else { return };
        // Another process may write to the store: whoever would mend something finds out by the cursor.
        let stored = ctx.stores[store].visible.cursor();
        if stored.as_ref() != Some(cursor) && !ctx.planted(DriverBug::ProbeBeforeFolded) {
            return;
        }
        let arrived = self.applier.pending_bytes() > 0;
        ctx.coverage.met(if arrived { Scene::VerifiedUnderWrites } else { Scene::Verified });
        verify::check(ctx, store, probed);
    }

    // While one group commits, the next one is folded.
    fn fold_ahead(&mut self, ctx: &mut Context, relay: &mut Option<RelayNode>) {
        while self.folded.is_none()
            && let Some(item) = self.items.pop_front()
        {
            self.take(ctx, relay, item);
            if self.applier.pending_bytes() >= self.applier.target() {
                match self.applier.next_group() {
                    Ok(folded) => self.folded = folded,
                    // It comes again once this group is decided.
                    Err(_) => return,
                }
            }
        }
    }

    fn sync(&mut self, ctx: &mut Context, driver: &Driver, tracker: &Tracker) {
        self.sync_at = None;
        ctx.call(driver.store, driver.owner, Request::Sync);
        self.waits = Waits::Sync(tracker.progress().applied);
    }

    fn take(&mut self, ctx: &mut Context, relay: &mut Option<RelayNode>, item: Item) {
        match item {
            Item::Facts(facts) => self.facts = Some(facts),
            Item::Begin(cursor) => self.applier.begin(cursor),
            Item::Resync(cursor, resync, epochs) => {
                if let Some(relay) = relay {
                    relay.resyncs(ctx);
                }
                self.applier.begin_resync(cursor, resync, epochs);
            }
            Item::Record(record) => self.applier.push_record(record),
            Item::Portion(portion) => self.applier.push_portion(portion),
            Item::Content(content) => self.applier.push_content(content),
            Item::Touched(touched) => self.applier.push_touched(touched),
            Item::Covered(range, read_at) => self.applier.push_covered(range, read_at),
            Item::Checkpoints(checkpoints) => self.applier.push_checkpoints(checkpoints),
            Item::Probed(probed) => self.applier.push_probed(probed),
        }
    }

    fn end(&mut self, result: Result<(), StoreError>) {
        self.waits = Waits::Nothing;
        self.ended = Some(result);
    }

    pub(super) fn answered(
        &mut self,
        ctx: &mut Context,
        driver: &Driver,
        (tracker, relay): (&mut Tracker, &mut Option<RelayNode>),
        reply: Reply,
    ) {
        match std::mem::replace(&mut self.waits, Waits::Nothing) {
            Waits::Nothing => {}
            Waits::Apply { group, attempt, .. } => match reply.done() {
                Ok(()) => {
                    let mut group = group;
                    if let Some(relay) = relay {
                        relay.committed(ctx, group.log.take());
                    }
                    self.applied(ctx, driver, tracker, &group);
                }
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                    let retry_at = Some(ctx.now + (MILLI << attempt));
                    self.waits = Waits::Apply { group, attempt: attempt + 1, retry_at };
                }
                Err(error) if ctx.planted(DriverBug::WentOnAfterFailure) && error.outcome() == Outcome::Unchanged => {
                    self.backlog -= group.bytes;
                }
                Err(error) => self.give_up(ctx, driver, relay, error),
            },
            Waits::Sync(seq) => match reply.done() {
                Ok(()) => tracker.synced(seq),
                Err(error) => self.give_up(ctx, driver, relay, error),
            },
            Waits::Reopen(error) => {
                if let Some(relay) = relay {
                    relay.settle(ctx);
                }
                self.end(Err(error));
            }
        }
    }

    fn applied(&mut self, ctx: &mut Context, driver: &Driver, tracker: &mut Tracker, group: &Group) {
        if let Some(displacing) = &group.displacing
            && ctx.planted(DriverBug::QuarantinedTooLate)
        {
            quarantine(ctx, driver.store, displacing);
        }
        tracker.position = Some(group.cursor.position);
        tracker.consistent = group.cursor.is_consistent();
        if driver.sync_every.is_none() || ctx.planted(DriverBug::AckBeforeDurable) {
            tracker.durable = group.cursor.position.seq;
            tracker.settled = tracker.consistent;
        }
        self.backlog -= group.bytes;
        if let Some(every) = driver.sync_every {
            self.sync_at.get_or_insert(ctx.now + every);
        }
    }

    // After an unknown outcome the store is opened anew; what it then holds is where the next connection goes on.
    fn give_up(&mut self, ctx: &mut Context, driver: &Driver, relay: &mut Option<RelayNode>, error: StoreError) {
        if error.outcome() == Outcome::Unknown {
            if let Some(relay) = relay {
                relay.unsettle();
            }
            ctx.call(driver.store, driver.owner, Request::Reopen);
            self.waits = Waits::Reopen(error);
        } else {
            if let Some(relay) = relay {
                relay.settle(ctx);
            }
            self.end(Err(error));
        }
    }
}

// Before anything of the group is applied: what it takes the place of is nowhere else. Nobody but this slave writes there.
fn quarantine(ctx: &mut Context, store: usize, displacing: &Displacing) {
    for content in &displacing.contents {
        let all = ScanOptions::default().max_entries(usize::MAX).max_bytes(usize::MAX);
        let page = ctx.stores[store].visible.page(Keyspace::Data, &content.range, all);
        for displaced in Displacing::displaced(content, page.ops()) {
            ctx.coverage.met(Scene::Quarantined);
            ctx.quarantined.entry(store).or_default().insert((displaced.key, displaced.value));
        }
    }
}

impl Driver {
    fn durability(&self) -> Durability {
        if self.sync_every.is_some() { Durability::Buffered } else { Durability::Synced }
    }
}
