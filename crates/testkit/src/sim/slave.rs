//! The simulated driver of a slave: what `replikv-node` does around session and applier, step by step.

use replikv_core::{
    Cursor, Durability, KeyRange, KeyRanges, Keyspace, LinkId, Position, ScanOptions, StoreError, StoreLimits,
    WriteSet, meta,
};
use replikv_proto::layout::{Identity, Stored};
use replikv_proto::{
    Ack, DecoderLimits, GoodbyeReason, Heartbeat, Hello, Message, Mode, OnDivergence, ProtocolError, Refusal,
    RejectCode, SlaveAction, SlaveSession, SlaveSessionConfig, Subscription,
};

use super::apply::{Apply, Driver, Item, Tracker};
use super::context::{Context, MILLI, Moment, Node, Owner};
use super::link::{Broken, Conn};
use super::store::{Reply, Request};
use super::verify::Verifying;
use super::{DriverBug, Scene};

/// A slave, whether its process runs or not.
#[derive(Debug)]
pub(super) struct Slave {
    pub(super) node: usize,
    pub(super) name: String,
    pub(super) store: usize,
    pub(super) target: usize,
    pub(super) wall_offset_ms: i64,
    /// Synced, or synced every so often.
    pub(super) sync_every: Option<Moment>,
    pub(super) process: Option<Process>,
    pub(super) lives: u64,
    pub(super) limits: StoreLimits,
    /// What it is started with: the keys that it subscribes to.
    pub(super) ranges: KeyRanges,
    /// It is there for a while only, beside another.
    pub(super) extra: bool,
    /// How its last process ended by itself.
    pub(super) ending: Option<Ending>,
    last_master: Option<usize>,
}

/// Why a slave does not try again by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    Refused(RejectCode),
    Fenced,
    Failed(String),
}

/// A running slave.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) life: u64,
    node: usize,
    store: usize,
    nonce: u64,
    state: State,
    pause: Moment,
    tracker: Tracker,
}

#[derive(Debug)]
enum State {
    Opening(Opening),
    /// Until it connects again.
    Pausing(Moment),
    /// There is a connection, and the store is asked where it stands.
    Beginning(Conn),
    Following(Box<Follow>),
}

/// What is done when a slave is opened, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    Reopen,
    Sync,
    /// The store is told of other ranges.
    Subscribe,
    /// What is not wanted any more goes.
    Drop,
    /// That it has gone is kept.
    Settle,
}

/// One connection.
#[derive(Debug)]
struct Follow {
    /// Gone once the connection is over; what has arrived is still applied.
    conn: Option<Conn>,
    session: SlaveSession,
    apply: Apply,
    over: Option<Result<(), Ending>>,
    welcomed: bool,
    /// It has read of its own data.
    compares: bool,
    verifying: Option<Verifying>,
}

impl Slave {
    pub(super) fn new(node: usize, name: String, store: usize, target: usize, sync_every: Option<Moment>) -> Self {
        Self {
            node,
            name,
            store,
            target,
            wall_offset_ms: 0,
            sync_every,
            process: None,
            lives: 0,
            limits: super::store::LIMITS,
            ranges: KeyRanges::all(),
            extra: false,
            ending: None,
            last_master: None,
        }
    }

    /// Starts a process.
    pub(super) fn start(&mut self, ctx: &mut Context) {
        self.lives += 1;
        self.ending = None;
        let (node, life, store) = (self.node, self.lives, self.store);
        ctx.call(store, Owner::Follow { node, life }, Request::Reopen);
        let nonce = ctx.net_rng.u64(..);
        let (state, tracker) = (State::Opening(Opening::Reopen), Tracker::default());
        self.process = Some(Process { life, node, store, nonce, state, pause: FIRST_PAUSE, tracker });
    }

    /// The process is gone, from one moment to the next; with `power` the whole machine is.
    pub(super) fn kill(&mut self, ctx: &mut Context, power: bool) {
        let Some(mut process) = self.process.take() else { return };
        ctx.forget_calls(Node::Slave(self.node), process.life, power);
        if let Some(conn) = process.conn() {
            if power && ctx.net_rng.bool() { conn.vanish(ctx) } else { conn.abandon(ctx) }
        }
        let cursor = ctx.stores[self.store].visible.cursor();
        if cursor.is_some_and(|cursor| cursor.coverage.rest().is_some()) {
            ctx.coverage.met(Scene::CrashInCopy);
        }
    }

    /// Whoever follows loses interest in the middle of it.
    pub(super) fn drop_follow(&mut self, ctx: &mut Context) -> bool {
        let Some(process) = &mut self.process else { return false };
        let State::Following(follow) = &mut process.state else { return false };
        let Some(mut conn) = follow.conn.take() else { return false };
        conn.abandon(ctx);
        follow.apply.abandoned = true;
        follow.over = Some(Ok(()));
        self.run(ctx);
        true
    }

    pub(super) fn conn(&mut self) -> Option<&mut Conn> {
        self.process.as_mut().and_then(Process::conn)
    }

    /// True if it takes bytes.
    pub(super) fn listens(&self) -> bool {
        let Some(process) = &self.process else { return false };
        match &process.state {
            State::Following(follow) => follow.conn.is_some() && follow.apply.has_room(),
            _ => false,
        }
    }

    /// True if it has to connect now.
    pub(super) fn wants_connection(&self, now: Moment) -> bool {
        let Some(process) = &self.process else { return false };
        matches!(process.state, State::Pausing(until) if until <= now)
    }

    /// Nobody answers.
    pub(super) fn not_connected(&mut self, ctx: &mut Context) {
        if let Some(process) = &mut self.process {
            process.pause(ctx);
        }
    }

    /// A connection was made: where the store stands is asked once it is well.
    pub(super) fn connected(&mut self, ctx: &mut Context, conn: Conn) {
        let Some(process) = &mut self.process else { return };
        ctx.call(self.store, Owner::Follow { node: self.node, life: process.life }, Request::Reopen);
        process.state = State::Beginning(conn);
    }

    /// What a hello from here would say, if the process began now.
    pub(super) fn hello(&self, ctx: &Context) -> Hello {
        let maps = &ctx.stores[self.store].visible;
        let cursor = maps.cursor();
        let holds_data = cursor.is_none() && !maps.of(Keyspace::Data).is_empty();
        let mut checkpoints: Vec<Position> = maps.checkpoints().iter().map(|checkpoint| checkpoint.position).collect();
        checkpoints.drain(..checkpoints.len().saturating_sub(64));
        Hello {
            slave: self.name.clone(),
            nonce: 0,
            cursor,
            holds_data,
            checkpoints,
            limits: self.limits,
            ranges: if self.ranges.is_all() { Vec::new() } else { self.ranges.clone().into() },
            path: Vec::new(),
            temporary: false,
            on_divergence: OnDivergence::Refuse,
        }
    }

    pub(super) fn answered(&mut self, ctx: &mut Context, owner: Owner, reply: Reply) {
        let Some(process) = &mut self.process else { return };
        match owner {
            Owner::Follow { life, .. } if life == process.life => self.opened_or_begun(ctx, reply),
            Owner::Apply { life, .. } if life == process.life => {
                if let State::Following(follow) = &mut process.state {
                    let owner = Owner::Apply { node: process.node, life };
                    let driver = Driver { owner, store: process.store, sync_every: self.sync_every };
                    follow.apply.answered(ctx, &driver, &mut process.tracker, reply);
                }
            }
            _ => {}
        }
    }

    fn opened_or_begun(&mut self, ctx: &mut Context, reply: Reply) {
        let hello = self.hello(ctx);
        let Some(process) = &mut self.process else { return };
        let owner = Owner::Follow { node: self.node, life: process.life };
        match std::mem::replace(&mut process.state, State::Pausing(ctx.now)) {
            State::Opening(Opening::Reopen) => {
                if ctx.stores[self.store].identity().is_none() {
                    give_identity(ctx, self.store);
                }
                // What a killed process left is acknowledged as durable from here on; what another one that uses the store
                // writes from here on is not.
                process.tracker.rewound(hello.cursor.as_ref());
                process.tracker.durable = process.tracker.progress().applied;
                let request =
                    if ctx.planted(DriverBug::SlaveOpenedWithoutSync) { Request::Reopen } else { Request::Sync };
                ctx.call(self.store, owner, request);
                process.state = State::Opening(Opening::Sync);
            }
            State::Opening(step) => match reply.done() {
                Ok(()) => self.opened_further(ctx, step),
                Err(_) => {
                    ctx.call(self.store, owner, Request::Reopen);
                    process.state = State::Opening(Opening::Reopen);
                }
            },
            State::Beginning(conn) => self.begin(ctx, conn, hello),
            state => process.state = state,
        }
    }

    // The next step that there is something to do for; or else the slave is open.
    fn opened_further(&mut self, ctx: &mut Context, done: Opening) {
        let next = [Opening::Subscribe, Opening::Drop, Opening::Settle].into_iter().filter(|step| {
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
                    }
                }
                Durability::Synced
            }
            Opening::Drop => {
                let dropping = kept.map(|kept| kept.dropping).filter(|dropping| !dropping.is_empty())?;
                ctx.coverage.met(Scene::RangesDropped);
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
            Opening::Reopen | Opening::Sync => return None,
        };
        Some((writes.build(), durability))
    }

    fn begin(&mut self, ctx: &mut Context, conn: Conn, mut hello: Hello) {
        let used = &mut ctx.stores[self.store];
        // Another one that uses it has still to learn of that.
        (used.went_back, used.was_shared) = (used.went_back && used.shared, used.shared);
        let Some(process) = &mut self.process else { return };
        let stands = hello.cursor.as_ref().map(|cursor| cursor.position.seq);
        if process.tracker.position.is_some_and(|position| Some(position.seq) > stands) {
            ctx.coverage.met(Scene::CursorWentBack);
        }
        hello.holds_data &= !ctx.planted(DriverBug::DataNotLookedFor);
        if ctx.planted(DriverBug::FollowedFromMemory)
            && let (Some(cursor), Some(position)) = (&mut hello.cursor, process.tracker.position)
        {
            cursor.position = position;
        }
        if hello.cursor.as_ref().is_some_and(|cursor| cursor.coverage.rest().is_some())
            && self.last_master.is_some_and(|last| last != self.target)
        {
            ctx.coverage.met(Scene::CopyElsewhere);
        }
        process.tracker.rewound(hello.cursor.as_ref());
        let config = SlaveSessionConfig {
            slave: hello.slave,
            nonce: process.nonce,
            cursor: hello.cursor.clone(),
            holds_data: hello.holds_data,
            checkpoints: hello.checkpoints,
            temporary: false,
            limits: hello.limits,
            ranges: self.ranges.clone(),
            handshake_timeout: ctx.sizes.heartbeat * 5,
            on_divergence: hello.on_divergence,
            resync: None,
            fence: None,
        };
        let target = ctx.sizes.apply_bytes;
        let apply = Apply::new(hello.cursor, target);
        let session = SlaveSession::new(config, ctx.clock(self.wall_offset_ms));
        let verifying = Verifying::new(ctx, &self.ranges);
        let follow =
            Follow { conn: Some(conn), session, apply, over: None, welcomed: false, compares: false, verifying };
        process.state = State::Following(Box::new(follow));
    }

    /// Does whatever can be done before something has to be waited for.
    pub(super) fn run(&mut self, ctx: &mut Context) {
        let wall = self.wall_offset_ms;
        let Some(process) = &mut self.process else { return };
        let owner = Owner::Apply { node: process.node, life: process.life };
        let driver = Driver { owner, store: process.store, sync_every: self.sync_every };
        let (node, store) = (process.node, process.store);
        match &mut process.state {
            State::Following(follow) => {
                loop {
                    follow.apply.run(ctx, &driver, node, &mut process.tracker);
                    if !follow.drive(ctx, wall, node, store, &mut process.tracker) {
                        break;
                    }
                }
                if follow.welcomed {
                    process.pause = FIRST_PAUSE;
                    self.last_master = Some(self.target);
                }
                if follow.conn.is_none() && follow.over.is_some() && follow.apply.is_done() {
                    self.end(ctx);
                }
            }
            State::Pausing(until) => ctx.wake_at(Node::Slave(node), *until),
            _ => {}
        }
    }

    // The connection is over, and what has arrived is applied.
    fn end(&mut self, ctx: &mut Context) {
        let Some(process) = &mut self.process else { return };
        let State::Following(follow) = &mut process.state else { return };
        let over = follow.over.take().unwrap_or(Ok(()));
        let result = match follow.apply.ended.take() {
            Some(Err(error)) => failed(ctx, &error),
            _ => over,
        };
        process.pause(ctx);
        if let Err(ending) = result {
            // Its program ends; somebody may start it again.
            self.ending = Some(ending);
            self.process = None;
        }
    }
}

fn failed(ctx: &mut Context, error: &StoreError) -> Result<(), Ending> {
    match error {
        StoreError::HeadMoved => {
            ctx.coverage.met(Scene::SlaveFenced);
            Err(Ending::Fenced)
        }
        StoreError::StoreFull { .. } | StoreError::Fatal { .. } | StoreError::Backend { .. } => Ok(()),
        error if error.is_retryable() => Ok(()),
        error => Err(Ending::Failed(error.to_string())),
    }
}

fn give_identity(ctx: &mut Context, store: usize) {
    let maps = &ctx.stores[store].visible;
    if maps.cursor().is_none() && !maps.of(Keyspace::Data).is_empty() {
        return;
    }
    let (key, value) = (Identity::KEY, Identity::slave().to_bytes());
    let op = replikv_core::Op::Put { key, value: &value };
    let store = &mut ctx.stores[store];
    store.visible.change(Keyspace::Meta, op);
    store.durable.change(Keyspace::Meta, op);
}

const FIRST_PAUSE: Moment = 5 * MILLI;
const LONGEST_PAUSE: Moment = 400 * MILLI;

impl Process {
    fn conn(&mut self) -> Option<&mut Conn> {
        match &mut self.state {
            State::Beginning(conn) => Some(conn),
            State::Following(follow) => follow.conn.as_mut(),
            _ => None,
        }
    }

    fn pause(&mut self, ctx: &mut Context) {
        let half = self.pause / 2;
        let until = ctx.now + half + ctx.net_rng.u64(0..=half);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.state = State::Pausing(until);
        ctx.wake_at(Node::Slave(self.node), until);
    }
}

impl Follow {
    // Moves messages until something has to be waited for. True if the apply task should be looked at again.
    fn drive(&mut self, ctx: &mut Context, wall: i64, node: usize, store: usize, tracker: &mut Tracker) -> bool {
        if self.conn.is_none() {
            return false;
        }
        let was_idle = !self.apply.has_items();
        if let Err(over) = self.step(ctx, wall, node, store, tracker) {
            self.over = Some(over);
            self.apply.closed = true;
            self.last_words(ctx, store, tracker);
            if self.apply.is_busy() {
                ctx.coverage.met(Scene::EndedInApply);
            }
            return true;
        }
        was_idle && self.apply.has_items()
    }

    fn step(
        &mut self,
        ctx: &mut Context,
        wall: i64,
        node: usize,
        store: usize,
        tracker: &mut Tracker,
    ) -> Result<(), Result<(), Ending>> {
        loop {
            let mut progress = tracker.progress();
            if ctx.planted(DriverBug::AckOnArrival) {
                progress.applied = self.apply.arrived().unwrap_or_default().max(progress.applied);
            }
            self.session.handle_progress(progress);
            if let Some(verifying) = self.verifying.as_mut().filter(|_| progress.consistent) {
                verifying.ask(ctx, node, &mut self.session);
            }
            let mut more = false;
            while let Some(action) = self.session.poll_action() {
                // One page, then the connection has its turn: answers to earlier questions may be there.
                more = matches!(action, SlaveAction::ReadPage { .. });
                self.execute(ctx, store, tracker, action)?;
                if more {
                    break;
                }
            }
            let Some(conn) = &mut self.conn else { return Ok(()) };
            let room = self.apply.has_room();
            let now = ctx.clock(wall);
            if !room {
                ctx.coverage.met(Scene::BacklogFull);
                // It is this side that does not listen: silence is not the master's fault.
                self.session.handle_bytes(now);
            } else if let Some(message) = conn.next_message().map_err(|broken| notice(ctx, &broken))? {
                ctx.trace(message.name().len() as u64);
                self.session.handle_message(now, message).map_err(|error| {
                    if matches!(error, ProtocolError::BadRecord { .. }) {
                        ctx.coverage.met(Scene::ChainBroken);
                    }
                    Ok(())
                })?;
                continue;
            }
            if self.apply.ended.is_some() {
                return Err(Ok(()));
            }
            if conn.flush(ctx) || more {
                continue;
            }
            let Some(at) = self.session.poll_timeout() else { return Ok(()) };
            if at > now.monotonic {
                let at = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
                ctx.wake_at(Node::Slave(node), at);
                return Ok(());
            }
            if ctx.planted(DriverBug::SilenceUnnoticed) {
                self.session.handle_bytes(now);
            }
            self.session.handle_timeout(now).map_err(|_| {
                ctx.coverage.met(Scene::SlaveHeardNothing);
                Ok(())
            })?;
        }
    }

    fn execute(
        &mut self,
        ctx: &mut Context,
        store: usize,
        tracker: &mut Tracker,
        action: SlaveAction,
    ) -> Result<(), Result<(), Ending>> {
        match action {
            SlaveAction::Send(message) => self.send(ctx, store, &message),
            SlaveAction::Begin(cursor) => self.apply.push(ctx, Item::Begin(cursor)),
            // Nobody here asks for it: it ends as the refusal that it is.
            SlaveAction::Resync(_, resync) => return Err(Err(Ending::Refused(resync.reason))),
            SlaveAction::Apply(record) => self.apply.push(ctx, Item::Record(record)),
            SlaveAction::ApplyPortion(portion) => self.apply.push(ctx, Item::Portion(portion)),
            SlaveAction::Copy(content) => {
                if self.compares {
                    ctx.coverage.met(Scene::DifferenceReplaced);
                }
                self.apply.push(ctx, Item::Content(content));
            }
            SlaveAction::Touch(_) => unreachable!("the simulated log is not compacted"),
            SlaveAction::Covered { range, read_at } => {
                ctx.coverage.met(Scene::EqualKept);
                self.apply.push(ctx, Item::Covered(range, read_at));
            }
            SlaveAction::Checkpoints(checkpoints) => self.apply.push(ctx, Item::Checkpoints(checkpoints)),
            SlaveAction::ReadPage { range, max_bytes } => self.read_own(ctx, store, &range, max_bytes),
            SlaveAction::Welcomed(welcome) => {
                self.welcomed = true;
                // What begins now is no state of the master, whatever was there before.
                tracker.consistent &= !matches!(welcome.mode, Mode::Compare { .. } | Mode::Copy { .. });
                if let Some(conn) = &mut self.conn {
                    conn.set_limits(DecoderLimits::for_batches(2 * welcome.limits.max_batch));
                }
            }
            SlaveAction::Probed(probed) => {
                if let Some(verifying) = &mut self.verifying {
                    verifying.answered(&probed);
                }
                self.apply.push(ctx, Item::Probed(probed));
            }
            SlaveAction::Contact(_) | SlaveAction::Waiting(_) => {}
            SlaveAction::Close(Ok(goodbye)) if goodbye.reason == GoodbyeReason::Replaced => {
                return Err(Err(Ending::Refused(RejectCode::DuplicateSlave)));
            }
            SlaveAction::Close(Ok(_)) => return Err(Ok(())),
            SlaveAction::Close(Err(Refusal { retry: true, .. })) => return Err(Ok(())),
            SlaveAction::Close(Err(Refusal { code, .. })) => return Err(Err(Ending::Refused(code))),
        }
        Ok(())
    }

    // At once: nothing but this slave's own groups changes what it reads, and these leave alone what is not covered.
    fn read_own(&mut self, ctx: &mut Context, store: usize, range: &KeyRange, max_bytes: usize) {
        self.compares = true;
        let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(max_bytes.min(ctx.sizes.chunk));
        let page = ctx.stores[store].visible.page(Keyspace::Data, range, options);
        let end = page.rest().map_or_else(|| range.end().cloned(), |rest| Some(rest.start().clone()));
        self.session.handle_page(&KeyRange::new(range.start().clone(), end), page.ops());
    }

    fn send(&mut self, ctx: &mut Context, store: usize, message: &Message) {
        let ack = match *message {
            Message::Ack(ack) => Some(ack),
            Message::Heartbeat(Heartbeat::Follower { applied, durable, consistent }) => {
                Some(Ack { applied, durable, consistent })
            }
            _ => None,
        };
        if let Some(ack) = ack {
            ctx.oracle.acknowledged(&ctx.stores[store], &ack);
        }
        if let Some(conn) = &mut self.conn {
            // A message that does not encode is a bug of its own, and is noticed by nobody hearing from this slave.
            drop(conn.send(ctx, message));
        }
    }

    fn last_words(&mut self, ctx: &mut Context, store: usize, tracker: &mut Tracker) {
        self.session.handle_progress(tracker.progress());
        while let Some(action) = self.session.poll_action() {
            if let SlaveAction::Send(message) = action {
                self.send(ctx, store, &message);
            }
        }
        if let Some(mut conn) = self.conn.take() {
            conn.finish(ctx);
        }
    }
}

fn notice(ctx: &mut Context, broken: &Broken) -> Result<(), Ending> {
    match broken {
        Broken::Closed | Broken::Encode => Ok(()),
        Broken::Decode(error) => {
            ctx.coverage.met(Scene::DamageInFlight);
            if error.is_retryable() { Ok(()) } else { Err(Ending::Failed(error.to_string())) }
        }
    }
}
