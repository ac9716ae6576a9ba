//! The simulated driver of one connection at a master: what `replikv-node` does around the session, step by step.

mod observing;

use bytes::Bytes;
use replikv_core::{KeyRange, Keyspace, Page, Position, ScanOptions, StoreError};
use replikv_proto::layout::{Head, Stored as _, Superseded};
use replikv_proto::{
    Content, DecoderLimits, GoodbyeReason, Hello, Located, LogAnswer, LogParts, MasterAction, MasterSession,
    MasterSessionConfig, Message, Now, Progress, ProtocolError, Relay, Response, SlotName, SubscriberId, View,
};

use super::context::{Context, Node, Owner};
use super::link::{Broken, Conn, Side};
use super::locate::{locate, stored};
use super::log::{self, LookUp};
use super::oracle::Told;
use super::serving::{Served, Sessions};
use super::store::{Reply, Request};
use super::verdict::judge_joined;
use super::{DriverBug, Scene, Topology};

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    conn: Conn,
    session: MasterSession,
    /// What was asked of the store. Nothing else is done until it answers.
    asked: Option<Asked>,
    /// It has answered: before it is asked again the connection has its turn.
    has_read: bool,
    seen: u64,
    view: View,
    name: Option<String>,
    /// Of a slave of a master.
    slot: Option<SlotName>,
    /// Its slave subscribes to a part of the keys.
    listening: Option<SubscriberId>,
    nonce: u64,
    /// A newer connection has taken its place, and this is what it is told.
    replaced: Option<(GoodbyeReason, &'static str)>,
    /// What the oracle knows of it.
    hello: Option<Hello>,
    judged: Vec<(View, LogParts)>,
    /// The last look at how much data there is has found none.
    found_empty: bool,
    sent: Option<Position>,
    /// Keys of a stretch that were sent, and the stretch is not.
    told: Told,
    /// What was published when keys were last looked up.
    looked_up_from: Position,
    copying: bool,
    page_waits: bool,
    waited: bool,
}

#[derive(Debug)]
enum Asked {
    Locate(Vec<Position>, Vec<Option<Located>>),
    Measure(u64),
    /// That a newer epoch was met is kept before the slave is told.
    Superseded,
    Records(Position),
    /// Runs with their touches, in so many bytes at most.
    Stretch(Position, usize),
    /// What touched keys hold.
    Values(LookUp),
    /// After that: is the store still this master's?
    ValuesHead(LookUp),
    Page {
        range: KeyRange,
        max_bytes: usize,
        handed: Position,
        setbacks: u64,
    },
    /// After a page: is the store still this master's?
    Head {
        range: KeyRange,
        max_bytes: usize,
        handed: Position,
        setbacks: u64,
        page: Page,
    },
    /// Before a page that is to be of one point of the history.
    Exactly {
        range: KeyRange,
        max_bytes: usize,
    },
    ExactPage {
        range: KeyRange,
        max_bytes: usize,
        before: Position,
        setbacks: u64,
    },
    ExactHead {
        range: KeyRange,
        max_bytes: usize,
        before: Position,
        setbacks: u64,
        page: Page,
    },
}

/// The connection is over.
struct Over;

impl Session {
    pub(super) fn new(ctx: &Context, link: usize, open: &Served, wall_offset_ms: i64) -> Self {
        let config = MasterSessionConfig {
            source: open.source,
            limits: open.limits,
            heartbeat: ctx.sizes.heartbeat,
            handshake_timeout: ctx.sizes.heartbeat * 5,
            chunk: ctx.sizes.chunk,
            compare_bytes_per_second: None,
            checkpoints: open.newest_checkpoints(),
            relay: open.path.clone().map(|path| Relay { path, wait: ctx.sizes.heartbeat * 10 }),
        };
        let now = ctx.clock(wall_offset_ms);
        Self {
            conn: Conn::new(ctx, link, Side::Master),
            session: MasterSession::new(config, open.view, open.epochs.clone(), now),
            asked: None,
            has_read: false,
            seen: open.version,
            view: open.view,
            name: None,
            slot: None,
            listening: None,
            nonce: 0,
            replaced: None,
            hello: None,
            judged: Vec::new(),
            found_empty: false,
            sent: None,
            told: Told::default(),
            looked_up_from: open.view.published,
            copying: false,
            page_waits: false,
            waited: false,
        }
    }

    pub(super) fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// True if it takes bytes.
    pub(super) fn listens(&self) -> bool {
        self.asked.is_none()
    }

    /// What was served has ended: it is told so, and gone.
    pub(super) fn close(&mut self, ctx: &mut Context) {
        if self.asked.is_none() {
            self.session.shut(GoodbyeReason::Closing, "this relay has moved: connect again");
            while let Some(action) = self.session.poll_action() {
                if let MasterAction::Send(message @ Message::Goodbye(_)) = action {
                    drop(self.conn.send(ctx, &message));
                }
            }
        }
        self.conn.finish(ctx);
    }

    /// That a newer epoch was met is kept, as far as it can be.
    pub(super) fn reign_ended(&mut self) {
        self.asked.take_if(|asked| matches!(asked, Asked::Superseded));
    }

    /// Whose connection it is.
    pub(super) fn slave(&self, ctx: &Context) -> usize {
        ctx.links[self.conn.link].ends.slave
    }

    /// Its slave subscribes to a part of the keys.
    pub(super) fn is_filtered(&self) -> bool {
        self.listening.is_some()
    }

    pub(super) fn copies(&self) -> bool {
        self.copying
    }

    pub(super) fn die(&mut self, ctx: &mut Context, power: bool) {
        if power && ctx.net_rng.bool() { self.conn.vanish(ctx) } else { self.conn.abandon(ctx) }
    }
}

impl Sessions {
    /// Lets a session do whatever it can do before something has to be waited for.
    pub(super) fn run_session(&mut self, ctx: &mut Context, open: &mut Served, id: u64) {
        if let Err(Over) = self.drive(ctx, open, id) {
            self.end_session(ctx, open, id);
        }
    }

    fn end_session(&mut self, ctx: &mut Context, open: &mut Served, id: u64) {
        let Some(mut session) = self.map.remove(&id) else { return };
        session.conn.finish(ctx);
        if let Some(listening) = session.listening {
            open.subscribers.leave(listening);
        }
        if let Some(name) = &session.slot {
            open.book.disconnected(ctx, self.wall_offset_ms, name);
        }
        if let Some(name) = &session.name
            && self.names.get(name).is_some_and(|(newest, _)| *newest == id)
        {
            self.names.remove(name);
        }
    }

    fn drive(&mut self, ctx: &mut Context, open: &mut Served, id: u64) -> Result<(), Over> {
        let wall = self.wall_offset_ms;
        self.listen(ctx, open, id)?;
        loop {
            loop {
                let Some(session) = self.map.get_mut(&id) else { return Ok(()) };
                if session.asked.is_some() {
                    return Ok(());
                }
                if !session.conn.has_room(ctx) {
                    break;
                }
                let Some(action) = session.session.poll_action() else { break };
                self.execute(ctx, open, id, action)?;
            }
            let Some(session) = self.map.get_mut(&id) else { return Ok(()) };
            session.hear(ctx, open, wall)?;
            let quiet = session.listening.is_some() && session.session.is_quiet();
            let looks = !quiet || open.concerned.remove(&id);
            if session.seen != open.version && looks {
                (session.seen, session.view) = (open.version, open.view);
                session.session.handle_view(open.view);
                continue;
            }
            if session.conn.has_room(ctx) && session.session.has_action() {
                continue;
            }
            if let Some((reason, words)) = session.replaced.take() {
                session.session.shut(reason, words);
                continue;
            }
            if session.conn.flush(ctx) {
                continue;
            }
            let Some(at) = session.session.poll_timeout() else { return Ok(()) };
            let now = ctx.clock(wall);
            if at > now.monotonic {
                let at = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
                ctx.wake_at(self.node, at);
                return Ok(());
            }
            if session.seen != open.version {
                (session.seen, session.view) = (open.version, open.view);
                session.session.handle_view(open.view);
                continue;
            }
            session.time_out(ctx, now)?;
        }
    }

    // Once the store has answered, bytes and clock have their turn before it is asked again.
    fn listen(&mut self, ctx: &mut Context, open: &mut Served, id: u64) -> Result<(), Over> {
        let Some(session) = self.map.get_mut(&id) else { return Ok(()) };
        if !std::mem::take(&mut session.has_read) {
            return Ok(());
        }
        session.conn.take_arrived(ctx);
        session.hear(ctx, open, self.wall_offset_ms)?;
        let now = ctx.clock(self.wall_offset_ms);
        let due = session.session.poll_timeout().is_some_and(|at| at <= now.monotonic);
        if due { session.time_out(ctx, now) } else { Ok(()) }
    }

    fn execute(&mut self, ctx: &mut Context, open: &mut Served, id: u64, action: MasterAction) -> Result<(), Over> {
        let owner = Owner::Session { node: self.node, life: self.life, session: id };
        let store = self.store;
        let Some(session) = self.map.get_mut(&id) else { return Err(Over) };
        match action {
            MasterAction::Send(message) => {
                // What a relay passes on is durable on the master already, and need not be here.
                let durable = self.synced && !(open.path.is_some() && ctx.stores[store].unsettled);
                let witness = match ctx.topology {
                    _ if durable || open.path.is_none() => Some(store),
                    Topology::Dynasty => None,
                    _ => Some(ctx.master_store(store)),
                };
                session.observe(ctx, (store, witness), open, &message);
                session.conn.send(ctx, &message).map_err(|_| Over)?;
            }
            MasterAction::Locate(positions) => {
                let (mut known, mut wanted) = locate(ctx, open, &positions);
                if ctx.planted(DriverBug::CoverageNotLocated) && positions.len() > 1 {
                    known[1..].fill(Some(Located::Held { log_bytes: 0 }));
                    wanted.truncate(2 * known.iter().filter(|known| known.is_none()).count());
                }
                session.judged.push((open.view, open.parts));
                if wanted.is_empty() {
                    let located: Vec<Located> = known.into_iter().flatten().collect();
                    session.session.handle_located(&located);
                } else {
                    ctx.call(store, owner, Request::Get(wanted));
                    session.asked = Some(Asked::Locate(positions, known));
                }
            }
            MasterAction::MeasureData { at_most } => {
                let all = ScanOptions::default().max_entries(usize::MAX).max_bytes(usize::MAX);
                ctx.call(store, owner, Request::Scan(Keyspace::Data, KeyRange::all(), all));
                session.asked = Some(Asked::Measure(at_most));
            }
            MasterAction::ReadRecords { after, max_bytes, may_pass } => {
                let held = open.ring.entry(after.seq).filter(|entry| entry.position == after);
                let log_bytes = held.map(|entry| entry.log_bytes);
                let listening = session.listening.filter(|_| may_pass);
                if let Some(runs) = listening.and_then(|id| open.subscribers.passed(id, after, log_bytes)) {
                    ctx.coverage.met(Scene::PassedBy);
                    session.session.handle_records(LogAnswer::Passed(runs));
                    return Ok(());
                }
                if let Some((parts, last)) = open.ring.read(after.seq, max_bytes) {
                    session.session.handle_records(LogAnswer::Records { parts, last });
                    return Ok(());
                }
                ctx.coverage.met(Scene::ServedFromLog);
                log::ask_records(ctx, (store, owner), open, after.seq, max_bytes);
                session.asked = Some(Asked::Records(after));
            }
            MasterAction::ReadPage { range, max_bytes } => {
                session.asked = Some(ask_page(ctx, store, owner, open, (range, max_bytes)));
                if session.page_waits {
                    ctx.coverage.met(Scene::PageReadAgain);
                }
            }
            MasterAction::ReadExactly { range, max_bytes } => {
                ctx.call(store, owner, head_of());
                session.asked = Some(Asked::Exactly { range, max_bytes });
            }
            MasterAction::LookUp { keys, max_bytes } => {
                session.asked = Some(look_up(ctx, store, owner, LookUp::new(ctx, open, keys, max_bytes)));
            }
            MasterAction::Verified(position) => {
                if let (Some(name), Node::Master(node)) = (&session.slot, self.node) {
                    open.book.verified(ctx, node, name, position);
                }
            }
            // Whoever restores a master with a new epoch makes sure by himself that there is no other one.
            MasterAction::Superseded(_) if ctx.topology == Topology::Star || self.reign_over => {}
            MasterAction::Superseded(epoch) => {
                session.asked = Some(Asked::Superseded);
                self.met = Some(Superseded { by: Some(epoch) });
            }
            MasterAction::Joined { slave, nonce, start, ranges, .. } => {
                let joined = self.openings.join(&slave, nonce, |name| self.names.contains_key(name));
                let joined = joined.or_else(|refusal| match ctx.planted(DriverBug::TakeoverForgotten) {
                    true => Ok(()),
                    false => Err(refusal),
                });
                judge_joined(ctx, self.came.entry(slave.clone()).or_default(), nonce, joined.is_ok());
                if let Err(refusal) = joined {
                    ctx.coverage.met(Scene::RefusedDuplicate);
                    session.session.refuse(refusal);
                    return Ok(());
                }
                session.nonce = nonce;
                if !ranges.is_all() {
                    let (published, log_bytes) = (open.view.published, open.view.log_bytes);
                    session.listening = Some(open.subscribers.enter(&ranges, published, log_bytes, id));
                }
                session.conn.set_limits(DecoderLimits { control: 1 << 20, data: 1 << 20 });
                session.name = Some(slave.clone());
                let slot = SlotName::slave(&*slave);
                open.book.connected(ctx, self.wall_offset_ms, &slot);
                session.slot = Some(slot);
                let at_start = Progress { applied: start, ..Progress::default() };
                let older = self.names.insert(slave, (id, at_start));
                if let Some(older) = older.and_then(|(older, _)| self.map.get_mut(&older)) {
                    older.replaced = Some(if older.nonce == nonce {
                        (GoodbyeReason::Closing, "this slave has connected anew")
                    } else {
                        (GoodbyeReason::Replaced, "another slave of this name has connected")
                    });
                    ctx.coverage.met(Scene::Replaced);
                    ctx.wake(self.node);
                }
            }
            MasterAction::Progress(progress) => {
                if progress.applied > progress.durable {
                    ctx.coverage.met(Scene::AckBeforeDurable);
                }
                if let Some(name) = &session.name
                    && let Some(entered) = self.names.get_mut(name).filter(|(newest, _)| *newest == id)
                {
                    entered.1 = progress;
                    open.book.note(SlotName::slave(&**name), progress.durable);
                }
                self.counted(ctx, open);
            }
            MasterAction::Answer(request) => {
                session.session.respond(Response { id: request.id, body: Ok(Bytes::from_static(b"{}")) });
            }
            MasterAction::Close(_) => return Err(Over),
        }
        Ok(())
    }

    /// What a session asked of the store has come.
    pub(super) fn session_answered(&mut self, ctx: &mut Context, open: &mut Served, id: u64, reply: Reply) {
        // A read that failed ends the session: it is never told to a slave as if it were an answer.
        if self.hand_over(ctx, open, id, reply).is_err() {
            return self.end_session(ctx, open, id);
        }
        if let Some(session) = self.map.get_mut(&id) {
            session.has_read = session.asked.is_none();
        }
    }

    fn hand_over(&mut self, ctx: &mut Context, open: &mut Served, id: u64, reply: Reply) -> Result<(), StoreError> {
        let (store, owner) = (self.store, Owner::Session { node: self.node, life: self.life, session: id });
        let Some(session) = self.map.get_mut(&id) else { return Ok(()) };
        match session.asked.take() {
            None | Some(Asked::Superseded) => {}
            Some(Asked::Locate(positions, known)) => {
                let mut values = reply.got()?.into_iter();
                let mut located = Vec::with_capacity(known.len());
                for (position, known) in positions.iter().zip(known) {
                    located.push(known.unwrap_or_else(|| {
                        let [own, before] = [values.next().flatten(), values.next().flatten()];
                        stored(ctx, open, position, own, before)
                    }));
                }
                session.session.handle_located(&located);
            }
            Some(Asked::Measure(at_most)) => {
                let bytes = reply.page()?.ops().byte_len() as u64;
                session.found_empty = bytes == 0;
                session.session.handle_data_size(bytes.min(at_most));
            }
            Some(Asked::Records(after)) => {
                let page = reply.page()?;
                if log::is_compacted(&page) {
                    let bytes = ctx.compacts.map_or(usize::MAX, |plan| 2 * plan.stretch);
                    log::ask_stretch(ctx, (store, owner), after.seq, bytes);
                    session.asked = Some(Asked::Stretch(after, bytes));
                    return Ok(());
                }
                let answer = log::records(ctx, store, open, after, &page);
                session.read(ctx, answer);
            }
            Some(Asked::Stretch(after, bytes)) => {
                let page = reply.page()?;
                match log::stretch(ctx, store, open, after.seq, &page) {
                    Some(answer) => session.read(ctx, answer),
                    None => {
                        let more = bytes.saturating_mul(4);
                        log::ask_stretch(ctx, (store, owner), after.seq, more);
                        session.asked = Some(Asked::Stretch(after, more));
                    }
                }
            }
            Some(Asked::Values(mut keys)) => {
                let found = reply.got().map(|mut found| found.pop().flatten());
                keys.found(match found {
                    Err(_) if ctx.planted(DriverBug::LookupFailureIsDelete) => None,
                    Err(error) => {
                        ctx.coverage.met(Scene::TouchLookupFailed);
                        return Err(error);
                    }
                    Ok(found) => found,
                });
                session.asked = Some(look_up(ctx, store, owner, keys));
            }
            Some(Asked::ValuesHead(keys)) => {
                let head = head(reply)?;
                if keys.is_void(open) {
                    session.asked = Some(look_up(ctx, store, owner, keys.again(ctx, open)));
                    return Ok(());
                }
                let now = open.view.handed;
                if head.position.seq > now.seq {
                    return Err(StoreError::HeadMoved);
                }
                let read_at = if ctx.planted(DriverBug::LookedUpAtBefore) { keys.handed } else { now };
                (session.seen, session.looked_up_from) = (open.version, keys.published);
                session.session.handle_view(open.view);
                session.session.handle_values(&keys.values, read_at);
            }
            Some(Asked::Page { range, max_bytes, handed, setbacks }) => {
                let page = match reply.page() {
                    Err(_) if ctx.planted(DriverBug::ReadErrorIsEmptyPage) => {
                        replikv_core::PageBuilder::new(range.clone(), ScanOptions::default()).finish()
                    }
                    page => page?,
                };
                // Another master on this store would make the page newer than this one knows.
                ctx.call(store, owner, head_of());
                session.asked = Some(Asked::Head { range, max_bytes, handed, setbacks, page });
            }
            Some(Asked::Head { range, max_bytes, handed, setbacks, page }) => {
                let head = head(reply)?;
                // What came to nothing while the page was read may be in it, and `handed` may already name what came
                // after.
                if open.setbacks != setbacks && !ctx.planted(DriverBug::SetbackUnnoticed) {
                    ctx.coverage.met(Scene::SetbackDuringPage);
                    session.asked = Some(ask_page(ctx, store, owner, open, (range, max_bytes)));
                    return Ok(());
                }
                // After the read has ended, not before: what it may show is known only now.
                let now = open.view.handed;
                let unnoticed = [DriverBug::TakeoverUnnoticed, DriverBug::HandedToldLate, DriverBug::RelayHandsLate];
                let unnoticed = unnoticed.into_iter().any(|bug| ctx.planted(bug));
                if head.position.seq > now.seq && !unnoticed {
                    return Err(StoreError::HeadMoved);
                }
                let read_at = if ctx.planted(DriverBug::ReadAtBeforeRead) { handed } else { now };
                if handed != now {
                    ctx.coverage.met(Scene::WriteDuringPage);
                }
                if now != open.view.published {
                    ctx.coverage.met(Scene::PageWaited);
                }
                let end = page.rest().map_or_else(|| range.end().cloned(), |rest| Some(rest.start().clone()));
                let covered = KeyRange::new(range.start().clone(), end);
                session.seen = open.version;
                session.session.handle_view(open.view);
                session.page_waits = true;
                let entries = page.ops().clone();
                session.session.handle_page(Content { range: covered, read_at, entries });
            }
            Some(Asked::Exactly { range, max_bytes }) => {
                let before = head(reply)?.position;
                let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(max_bytes);
                ctx.call(store, owner, Request::Scan(Keyspace::Data, range.clone(), options));
                session.asked = Some(Asked::ExactPage { range, max_bytes, before, setbacks: open.setbacks });
            }
            Some(Asked::ExactPage { range, max_bytes, before, setbacks }) => {
                let page = reply.page()?;
                ctx.call(store, owner, head_of());
                session.asked = Some(Asked::ExactHead { range, max_bytes, before, setbacks, page });
            }
            Some(Asked::ExactHead { range, max_bytes, before, setbacks, page }) => {
                let after = head(reply)?.position;
                let moved = before != after || open.setbacks != setbacks;
                if moved && !ctx.planted(DriverBug::ProbeHeadNotCompared) {
                    ctx.coverage.met(Scene::ProbeReadAgain);
                    ctx.call(store, owner, head_of());
                    session.asked = Some(Asked::Exactly { range, max_bytes });
                    return Ok(());
                }
                if after.seq > open.view.handed.seq {
                    return Err(StoreError::HeadMoved);
                }
                let end = page.rest().map_or_else(|| range.end().cloned(), |rest| Some(rest.start().clone()));
                let covered = KeyRange::new(range.start().clone(), end);
                session.seen = open.version;
                session.session.handle_view(open.view);
                let entries = page.ops().clone();
                session.session.handle_page(Content { range: covered, read_at: after, entries });
            }
        }
        Ok(())
    }
}

impl Session {
    // What has arrived.
    fn hear(&mut self, ctx: &mut Context, open: &mut Served, wall: i64) -> Result<(), Over> {
        while let Some(message) = self.conn.next_message().map_err(|broken| notice(ctx, &broken))? {
            ctx.trace(message.name().len() as u64);
            if let Message::Hello(hello) = &message {
                self.hello = Some(hello.clone());
                self.judged = vec![(self.view, open.parts)];
                self.found_empty = false;
                if let Some(cursor) = hello.cursor.as_ref().filter(|_| ctx.planted(DriverBug::SlotFromHello)) {
                    open.book.claimed(&SlotName::slave(&*hello.slave), cursor.position);
                }
            }
            self.session.handle_message(ctx.clock(wall), message).map_err(|_| Over)?;
        }
        Ok(())
    }

    fn time_out(&mut self, ctx: &mut Context, now: Now) -> Result<(), Over> {
        self.session.handle_timeout(now).map_err(|error| {
            if matches!(error, ProtocolError::Silent { .. }) {
                let hello = self.hello.is_some();
                ctx.coverage.met(if hello { Scene::MasterHeardNothing } else { Scene::NoHello });
            }
            Over
        })
    }

    fn read(&mut self, ctx: &mut Context, answer: LogAnswer) {
        if matches!(answer, LogAnswer::Trimmed) {
            ctx.coverage.met(Scene::TrimmedUnderSlave);
        }
        self.session.handle_records(answer);
    }
}

fn head_of() -> Request {
    Request::Get(vec![(Keyspace::Meta, Bytes::from_static(Head::KEY))])
}

fn head(reply: Reply) -> Result<Head, StoreError> {
    Head::from_bytes(&reply.got()?.pop().flatten().unwrap_or_default())
}

fn look_up(ctx: &mut Context, store: usize, owner: Owner, keys: LookUp) -> Asked {
    match keys.next(ctx.now) {
        Some(key) => {
            ctx.call(store, owner, Request::Get(vec![(Keyspace::Data, key)]));
            Asked::Values(keys)
        }
        None => {
            ctx.call(store, owner, head_of());
            Asked::ValuesHead(keys)
        }
    }
}

fn ask_page(
    ctx: &mut Context,
    store: usize,
    owner: Owner,
    open: &Served,
    (range, max_bytes): (KeyRange, usize),
) -> Asked {
    let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(max_bytes);
    ctx.call(store, owner, Request::Scan(Keyspace::Data, range.clone(), options));
    Asked::Page { range, max_bytes, handed: open.view.handed, setbacks: open.setbacks }
}

fn notice(ctx: &mut Context, broken: &Broken) -> Over {
    if matches!(broken, Broken::Decode(_)) {
        ctx.coverage.met(Scene::DamageInFlight);
    }
    Over
}
