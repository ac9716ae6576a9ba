//! The simulated driver of a slave: what `replikv-node` does around session and applier, step by step.

mod opening;
mod pledging;

use replikv_core::{
    Cursor, Durability, KeyRange, KeyRanges, Keyspace, Position, ScanOptions, Seq, StoreError, StoreLimits, WriteSet,
};
use replikv_proto::layout::{Epochs, Head, Identity, Kept, Stored};
use replikv_proto::{
    Ack, DecoderLimits, Fence, GoodbyeReason, Heartbeat, Hello, Message, Mode, OnDivergence, ProtocolError, Refusal,
    RejectCode, Resync, SlaveAction, SlaveSession, SlaveSessionConfig, Welcome,
};

pub(super) use self::pledging::Plan;

use self::opening::{Opening, Promoting, is_master};
use self::pledging::{Fencing, Pledge};
use super::apply::{Apply, Driver, Item, Tracker};
use super::centre::Unlinking;
use super::context::{Context, MILLI, Moment, Node, Owner};
use super::link::{Broken, Conn};
use super::relay::{Facts, RelayNode};
use super::store::{Reply, Request};
use super::verify::Verifying;
use super::{DriverBug, Scene, Topology};

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
    /// Its store is a master's at present.
    pub(super) idle: bool,
    pub(super) on_divergence: OnDivergence,
    /// It keeps the log, and serves slaves of its own.
    pub(super) keeps_log: bool,
    /// The relay that it follows, if it does not follow the master itself.
    pub(super) parent: Option<usize>,
    /// It may make a slave's of a store that is a master's.
    pub(super) rejoins: bool,
    /// Its store has become a master's.
    pub(super) promoted: bool,
    /// It is a link that is being undone.
    pub(super) unlinking: Option<Unlinking>,
    /// How many setbacks its store had seen when its entries began to go.
    pub(super) setbacks: u64,
    /// How its last process ended by itself.
    pub(super) ending: Option<Ending>,
    last_master: Option<Node>,
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
    relay: Option<RelayNode>,
    /// What is asked of it, once nobody follows any more.
    pledge: Option<Pledge>,
}

#[derive(Debug)]
enum State {
    Opening(Opening),
    Promoting(Promoting),
    Pledging(Box<Pledge>),
    Fencing(Box<Fencing>),
    /// Until it connects again.
    Pausing(Moment),
    /// There is a connection, and the store is asked where it stands.
    Beginning(Box<Conn>),
    /// What an earlier connection has left there, up to that record, is made durable first.
    Syncing(Box<Conn>, Seq),
    Following(Box<Follow>),
}

/// One connection.
#[derive(Debug)]
struct Follow {
    /// Gone once the connection is over; what has arrived is still applied.
    conn: Option<Conn>,
    session: SlaveSession,
    apply: Apply,
    /// Who is at the other end.
    server: Node,
    over: Option<Result<(), Ending>>,
    welcomed: bool,
    /// It has read of its own data.
    compares: bool,
    verifying: Option<Verifying>,
    /// What the master has told is being kept; nothing else is done with the connection until then.
    keeping: bool,
    /// Where it stood when a resync began, if nothing of that is in the store yet.
    parting: Option<Option<Cursor>>,
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
            idle: false,
            on_divergence: OnDivergence::Refuse,
            keeps_log: false,
            parent: None,
            rejoins: false,
            promoted: false,
            unlinking: None,
            setbacks: 0,
            ending: None,
            last_master: None,
        }
    }

    /// True if it is one of those that the run is about, at present.
    pub(super) fn counts(&self) -> bool {
        !self.extra && !self.idle
    }

    /// True if it should run, and does not.
    pub(super) fn is_down(&self) -> bool {
        self.counts() && self.process.is_none() && self.unlinking.is_none()
    }

    /// Starts a process.
    pub(super) fn start(&mut self, ctx: &mut Context) {
        self.lives += 1;
        self.ending = None;
        let (node, life, store) = (self.node, self.lives, self.store);
        ctx.call(store, Owner::Follow { node, life }, Request::Reopen);
        let nonce = ctx.net_rng.u64(..);
        let (state, tracker) = (State::Opening(Opening::Reopen), Tracker::default());
        self.process =
            Some(Process { life, node, store, nonce, state, pause: FIRST_PAUSE, tracker, relay: None, pledge: None });
    }

    /// Stops following, and makes the store a master's.
    pub(super) fn promote(&mut self, ctx: &mut Context) {
        self.kill(ctx, false);
        ctx.stores[self.store].process_died();
        self.start(ctx);
        if let Some(process) = &mut self.process {
            process.state = State::Promoting(Promoting::Reopen);
        }
    }

    pub(super) fn is_promoting(&self) -> bool {
        matches!(self.process, Some(Process { state: State::Promoting(_) | State::Fencing(_), .. }))
    }

    /// The process is gone, from one moment to the next; with `power` the whole machine is.
    pub(super) fn kill(&mut self, ctx: &mut Context, power: bool) {
        let Some(mut process) = self.process.take() else { return };
        ctx.forget_calls(Node::Slave(self.node), process.life, power);
        if let Some(relay) = &mut process.relay {
            relay.sessions.die(ctx, power);
        }
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

    /// Whom it follows.
    pub(super) fn server(&self) -> Node {
        self.parent.map_or(Node::Master(self.target), Node::Slave)
    }

    /// Where it stands, as it tells.
    pub(super) fn stands(&self) -> Option<Position> {
        self.process.as_ref().and_then(|process| process.tracker.position)
    }

    /// Whether it calls durable what it holds.
    pub(super) fn tells_durable(&self) -> bool {
        self.process.as_ref().is_none_or(|process| !process.tracker.is_unsynced())
    }

    pub(super) fn relay(&mut self) -> Option<&mut RelayNode> {
        self.process.as_mut().and_then(|process| process.relay.as_mut())
    }

    pub(super) fn conn(&mut self) -> Option<&mut Conn> {
        self.process.as_mut().and_then(Process::conn)
    }

    /// True if it takes bytes.
    pub(super) fn listens(&self) -> bool {
        let Some(process) = &self.process else { return false };
        match &process.state {
            State::Following(follow) => follow.conn.is_some() && follow.apply.has_room() && !follow.keeping,
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
        process.reopen(ctx);
        process.state = State::Beginning(Box::new(conn));
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
            on_divergence: self.on_divergence,
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
                    follow.apply.answered(ctx, &driver, (&mut process.tracker, &mut process.relay), reply);
                }
            }
            Owner::Session { life, session, .. } if life == process.life => {
                if let Some(relay) = &mut process.relay {
                    relay.sessions.answered(ctx, relay.served.as_mut(), session, reply);
                }
            }
            Owner::Tidy { life, .. } if life == process.life => {
                if let Some(relay) = &mut process.relay {
                    relay.tidied(ctx, reply);
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
            State::Opening(Opening::Reopen) if is_master(ctx, self.store) => self.was_master(ctx),
            State::Promoting(step) => self.promoting(ctx, step, reply),
            State::Pledging(pledge) => self.pledging(ctx, *pledge, reply),
            State::Fencing(fencing) => self.fencing(ctx, fencing, reply),
            State::Following(mut follow) => {
                follow.kept(ctx, reply);
                process.state = State::Following(follow);
            }
            State::Opening(Opening::Reopen) => {
                if ctx.stores[self.store].identity().is_none() {
                    give_identity(ctx, self.store);
                }
                // What a killed process left is acknowledged as durable from here on; what another one that uses the store
                // writes from here on is not.
                process.tracker.rewound(hello.cursor.as_ref());
                process.tracker.synced(process.tracker.progress().applied);
                let request =
                    if ctx.planted(DriverBug::SlaveOpenedWithoutSync) { Request::Reopen } else { Request::Sync };
                ctx.call(self.store, owner, request);
                process.state = State::Opening(Opening::Sync);
            }
            State::Opening(step) => match reply.done() {
                Ok(()) if matches!(step, Opening::DropLog) => self.step_down(ctx),
                Ok(()) if matches!(step, Opening::StepDown) => {
                    self.rejoins = false;
                    ctx.coverage.met(Scene::SteppedDown);
                    ctx.oracle.stepped_down(&ctx.stores[self.store]);
                    process.tracker.rewound(hello.cursor.as_ref());
                    ctx.call(self.store, owner, Request::Sync);
                    process.state = State::Opening(Opening::Sync);
                }
                Ok(()) => self.opened_further(ctx, step),
                Err(_) => {
                    ctx.call(self.store, owner, Request::Reopen);
                    process.state = State::Opening(Opening::Reopen);
                }
            },
            State::Beginning(mut conn) | State::Syncing(mut conn, _) if matches!(reply, Reply::Done(Err(_))) => {
                conn.abandon(ctx);
                process.pause(ctx);
                self.pledge(ctx);
            }
            State::Beginning(mut conn) | State::Syncing(mut conn, _) if process.pledge.is_some() => {
                conn.abandon(ctx);
                self.pledge(ctx);
            }
            State::Beginning(conn) => self.begin(ctx, *conn, hello),
            State::Syncing(conn, seq) => {
                process.tracker.synced(seq);
                self.begin(ctx, *conn, hello);
            }
            state => process.state = state,
        }
    }

    fn begin(&mut self, ctx: &mut Context, conn: Conn, mut hello: Hello) {
        let server = self.server();
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
            && self.last_master.is_some_and(|last| last != server)
        {
            ctx.coverage.met(Scene::CopyElsewhere);
        }
        process.tracker.rewound(hello.cursor.as_ref());
        if process.tracker.is_unsynced() && !ctx.planted(DriverBug::LeftUnsynced) {
            ctx.call(self.store, Owner::Follow { node: self.node, life: process.life }, Request::Sync);
            process.state = State::Syncing(Box::new(conn), process.tracker.progress().applied);
            return;
        }
        let fence: Option<Fence> = ctx.stores[self.store].visible.stored(Fence::KEY);
        if let Some((fence, cursor)) = fence.as_ref().zip(hello.cursor.as_ref())
            && fence.is_over(cursor)
        {
            ctx.coverage.met(Scene::FenceOver);
            let owner = Owner::Follow { node: self.node, life: process.life };
            ctx.call(self.store, owner, Request::Apply(pledging::dropped(fence), Durability::Buffered));
            process.state = State::Beginning(Box::new(conn));
            return;
        }
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
            resync: ctx.stores[self.store].visible.stored(Resync::KEY),
            fence: fence.filter(|_| !ctx.planted(DriverBug::FenceForgotten)),
        };
        let target = ctx.sizes.apply_bytes;
        let kept = self.keeps_log.then(|| ctx.stores[self.store].visible.stored::<Head>(Head::KEY));
        let apply = Apply::new(hello.cursor, config.resync, kept, target);
        if let Some(relay) = &mut process.relay {
            relay.take_turn(ctx);
        }
        let session = SlaveSession::new(config, ctx.clock(self.wall_offset_ms));
        let verifying = Verifying::new(ctx, &self.ranges);
        let follow = Follow {
            server: ctx.links[conn.link].ends.server,
            conn: Some(conn),
            session,
            apply,
            over: None,
            welcomed: false,
            compares: false,
            verifying,
            keeping: false,
            parting: None,
        };
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
                let keep = Owner::Follow { node, life: process.life };
                loop {
                    follow.apply.run(ctx, &driver, node, (&mut process.tracker, &mut process.relay));
                    if !follow.drive(ctx, wall, keep, store, &mut process.tracker) {
                        break;
                    }
                }
                if follow.welcomed {
                    process.pause = FIRST_PAUSE;
                    let server = follow.server;
                    match self.last_master.replace(server) {
                        Some(Node::Slave(was)) if server == Node::Master(was) => ctx.coverage.met(Scene::WentOnBelow),
                        Some(Node::Master(was)) if server == Node::Slave(was) => ctx.coverage.met(Scene::BelowFormer),
                        _ => {}
                    }
                }
                if follow.conn.is_none() && follow.over.is_some() && follow.apply.is_done() && !follow.keeping {
                    self.end(ctx);
                }
            }
            State::Pausing(until) => ctx.wake_at(Node::Slave(node), *until),
            _ => {}
        }
        if let Some(relay) = self.relay() {
            relay.sessions.wall_offset_ms = wall;
            relay.run(ctx);
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
        if process.pledge.is_some() && result.is_ok() {
            return self.pledge(ctx);
        }
        if let Err(ending) = result {
            // Its program ends; somebody may start it again.
            self.ending = Some(ending);
            if let Some(mut process) = self.process.take() {
                ctx.forget_calls(Node::Slave(self.node), process.life, false);
                if let Some(relay) = &mut process.relay {
                    relay.sessions.die(ctx, false);
                }
            }
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
    ctx.put_meta(store, Identity::KEY, &Identity::slave().to_bytes());
}

const FIRST_PAUSE: Moment = 5 * MILLI;
const LONGEST_PAUSE: Moment = 400 * MILLI;

impl Process {
    fn conn(&mut self) -> Option<&mut Conn> {
        match &mut self.state {
            State::Beginning(conn) | State::Syncing(conn, _) => Some(conn.as_mut()),
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
    fn drive(&mut self, ctx: &mut Context, wall: i64, keep: Owner, store: usize, tracker: &mut Tracker) -> bool {
        if self.conn.is_none() || self.keeping {
            return false;
        }
        let was_idle = !self.apply.has_items();
        if let Err(over) = self.step(ctx, wall, keep, store, tracker) {
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
        keep: Owner,
        store: usize,
        tracker: &mut Tracker,
    ) -> Result<(), Result<(), Ending>> {
        let Owner::Follow { node, .. } = keep else { return Ok(()) };
        loop {
            let mut progress = tracker.progress();
            if ctx.planted(DriverBug::AckOnArrival) {
                progress.applied = self.apply.arrived().unwrap_or_default().max(progress.applied);
            }
            progress.consistent |= tracker.consistent && ctx.planted(DriverBug::ConsistentUnsynced);
            self.session.handle_progress(progress);
            if let Some(verifying) = self.verifying.as_mut().filter(|_| tracker.consistent) {
                verifying.ask(ctx, node, &mut self.session);
            }
            let mut more = false;
            while let Some(action) = self.session.poll_action() {
                // One page, then the connection has its turn: answers to earlier questions may be there.
                more = matches!(action, SlaveAction::ReadPage { .. });
                self.execute(ctx, (keep, store), tracker, action)?;
                if self.keeping {
                    return Ok(());
                }
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
        (keep, store): (Owner, usize),
        tracker: &mut Tracker,
        action: SlaveAction,
    ) -> Result<(), Result<(), Ending>> {
        match action {
            SlaveAction::Send(message) => self.send(ctx, store, &message),
            SlaveAction::Begin(cursor) => self.apply.push(ctx, Item::Begin(cursor)),
            SlaveAction::Resync(cursor, resync, epochs) => {
                // What is told from here on is about the history that it joins.
                tracker.resyncs(&cursor);
                self.parting = Some(ctx.stores[store].visible.cursor());
                self.apply.push(ctx, Item::Resync(cursor, resync, epochs));
            }
            SlaveAction::Apply(record) => self.apply.push(ctx, Item::Record(record)),
            SlaveAction::ApplyPortion(portion) => self.apply.push(ctx, Item::Portion(portion)),
            SlaveAction::Copy(content) => {
                if self.compares {
                    ctx.coverage.met(Scene::DifferenceReplaced);
                }
                self.apply.push(ctx, Item::Content(content));
            }
            SlaveAction::Touch(touched) => self.apply.push(ctx, Item::Touched(touched)),
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
                self.keep_what_was_told(ctx, (keep, store), &welcome);
                if self.apply.keeps_log {
                    self.apply.push(ctx, Item::Facts(Facts::of(&welcome)));
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
            SlaveAction::Close(Err(Refusal { retry: true, code, .. })) => {
                if code == RejectCode::Fenced {
                    ctx.coverage.met(Scene::FencedRefused);
                }
                return Err(Ok(()));
            }
            SlaveAction::Close(Err(Refusal { code, .. })) => return Err(Err(Ending::Refused(code))),
        }
        Ok(())
    }

    // For the day on which this slave is promoted.
    fn keep_what_was_told(&mut self, ctx: &mut Context, (owner, store): (Owner, usize), welcome: &Welcome) {
        if ctx.topology == Topology::Star {
            return;
        }
        let epochs = Epochs(welcome.epochs.clone());
        // Those of a history that it has yet to join come with the first group of that.
        let parts = matches!(welcome.mode, Mode::Resync { .. });
        let maps = &ctx.stores[store].visible;
        let same = parts || maps.stored::<Epochs>(Epochs::KEY).as_ref() == Some(&epochs);
        let kept = Kept { limits: welcome.limits };
        if same && (!self.apply.keeps_log || maps.stored::<Kept>(Kept::KEY) == Some(kept)) {
            return;
        }
        let mut writes = WriteSet::builder();
        writes.require(Identity::KEY, Some(Identity::slave().to_bytes()));
        let told = if parts { Ok(&mut writes) } else { writes.put(Keyspace::Meta, Epochs::KEY, epochs.to_bytes()) };
        let told = told.and_then(|writes| match self.apply.keeps_log {
            true => writes.put(Keyspace::Meta, Kept::KEY, kept.to_bytes()),
            false => Ok(writes),
        });
        if told.is_ok() {
            ctx.call(store, owner, Request::Apply(writes.build(), Durability::Buffered));
            self.keeping = true;
        }
    }

    // If it cannot be kept the connection is over: it is tried again with the next one.
    fn kept(&mut self, ctx: &mut Context, reply: Reply) {
        self.keeping = false;
        match reply.done() {
            Ok(()) => {}
            Err(error) => {
                self.over = Some(failed(ctx, &error));
                self.apply.closed = true;
                if let Some(mut conn) = self.conn.take() {
                    conn.finish(ctx);
                }
            }
        }
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
            let stands = ctx.stores[store].visible.cursor();
            self.parting.take_if(|before| *before != stands);
            ctx.oracle.acknowledged(&ctx.stores[store], &ack, self.parting.is_some());
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
