//! Both ends of a session, each against a peer that sends whatever it likes, whenever it likes.
//!
//! Nothing panics; misbehaviour is a typed error; what waits to be done stays bounded however long nobody does it; a
//! slave applies only what continues its history and its copy; a master frames no record while a page is under way.
#![no_main]

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use replikv_core::{Batch, Coverage, Cursor, EncodedOps, Fill, Fingerprint, KeyRange, KeyRanges, Position, Seq, StoreLimits};
use replikv_fuzz::{LIMITS, Page, Place, RECORDS, Stand, at_most, position, record, source};
use replikv_proto::{
    Ack, Compare, Compared, Content, Filtered, Goodbye, GoodbyeReason, Heartbeat, Held, Hello, Located, LogAnswer,
    MasterAction, MasterSession, MasterSessionConfig, Message, Mode, Now, OnDivergence, Passage, PathNode, Probe, Probed,
    Progress, ProtocolError, RangeSummary, Records, Refusal, Reject, RejectCode, Relay, Request, RequestBody, Response,
    Share, Skipped, SlaveAction, SlaveSession, SlaveSessionConfig, Stretch, Summary, Touched, Verdict, View, Welcome,
};

#[derive(Debug)]
struct Input {
    relay: bool,
    relay_nonce: u8,
    stand: Option<Stand>,
    holds_data: bool,
    on_divergence: u8,
    ranges: Option<(u8, u8)>,
    view: (u8, u8, u8),
    events: Vec<Event>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            relay: u.arbitrary()?,
            relay_nonce: u.arbitrary()?,
            stand: u.arbitrary()?,
            holds_data: u.ratio(1, 8)?,
            on_divergence: u.arbitrary()?,
            ranges: u.arbitrary()?,
            view: u.arbitrary()?,
            events: at_most(u, 300)?,
        })
    }
}

#[derive(Debug, Arbitrary)]
enum Event {
    ToMaster(Word),
    ToSlave(Word),
    /// As the slave would answer truthfully.
    SlaveActs,
    MasterActs,
    View(u8, u8, u8),
    /// The page that was asked for.
    PageRead(Page),
    Time(u8),
    Progress(u8, u8, bool),
    ShutMaster,
    ShutSlave,
    /// Somebody verifies.
    Probe(u8, Option<u8>, bool),
}

#[derive(Debug, Arbitrary)]
enum Word {
    Hello { stand: Option<Stand>, holds_data: bool, name: u8, limits: u8, ranges: u8 },
    Welcome { mode: u8, head: Place, floor: Place, from: Place, heartbeat: u32, limits: u8 },
    Reject(bool),
    Records { from: u8, count: u8, damage: Option<(u16, u8)> },
    Ack(u8, u8, bool),
    Follower(u8, u8, bool),
    Source(Place),
    Ranges(Page),
    NextPage(Page),
    Request(u32),
    Response(u32),
    Goodbye,
    Opaque(u8),
    Compare(Vec<(u8, Option<u8>, u32)>),
    /// From this key on, or from where something is missing.
    Compared(Place, Vec<(bool, u32)>, Option<u8>),
    Probe(u8, Option<u8>, u32, bool),
    Probed(Page, Place, bool),
    Touched { read_at: Place, end: Option<Place>, key: u8 },
    /// Of so many records what lies in these keys, and up to where nothing does.
    Filtered { from: u8, count: u8, keys: (u8, u8), run: Option<Place> },
}

impl Word {
    fn message(self, coverage: &Coverage) -> Message {
        let seq = |n: u8| Seq::new(u64::from(n) % (RECORDS as u64 + 2));
        match self {
            Self::Hello { stand, holds_data, name, limits, ranges } => Message::Hello(Hello {
                slave: if name == 0 { String::new() } else { "edge".into() },
                nonce: 1,
                cursor: stand.map(|stand| stand.cursor()),
                holds_data,
                checkpoints: vec![position(1); usize::from(name) / 3],
                limits: limits_of(limits),
                ranges: match ranges {
                    255 => vec![KeyRange::all()],
                    128.. => vec![KeyRange::from_bounds([ranges - 64]..[ranges])],
                    _ => Vec::new(),
                },
                path: Vec::new(),
                temporary: false,
                on_divergence: policy(ranges),
            }),
            Self::Welcome { mode, head, floor, from, heartbeat, limits } => Message::Welcome(Welcome {
                source: source(),
                epochs: Vec::new(),
                head: head.position(),
                floor: floor.position(),
                limits: limits_of(limits),
                mode: [
                    Mode::Resume,
                    Mode::Copy { from: from.position() },
                    Mode::Wait,
                    Mode::Compare { from: from.position() },
                    Mode::Resync { from: from.position(), reason: RejectCode::Diverged, ancestor: None },
                ][usize::from(mode) % 5],
                heartbeat_ms: heartbeat,
                log_bytes: u64::from(heartbeat),
                behind_bytes: 0,
                verifies: heartbeat % 2 == 0,
                path: if heartbeat % 6 == 0 {
                    vec![PathNode { name: "r".into(), nonce: u64::from(heartbeat % 5) }]
                } else {
                    Vec::new()
                },
                checkpoints: Vec::new(),
            }),
            Self::Reject(retry) => Message::Reject(Reject { code: RejectCode::Busy, words: String::new(), retry }),
            Self::Records { from, count, damage } => {
                let from = usize::from(from) % RECORDS + 1;
                let to = (from + usize::from(count) % 4).min(RECORDS + 1);
                let mut parts: Vec<Bytes> = (from..to).map(|seq| record(seq).bytes().clone()).collect();
                if let Some((place, mask)) = damage
                    && let Some(first) = parts.first_mut()
                {
                    let mut bytes = first.to_vec();
                    let place = usize::from(place) % bytes.len();
                    bytes[place] ^= mask;
                    *first = bytes.into();
                }
                Message::Records(Records { parts })
            }
            Self::Ack(a, d, consistent) => Message::Ack(Ack { applied: seq(a), durable: seq(d), consistent }),
            Self::Follower(a, d, consistent) => {
                Message::Heartbeat(Heartbeat::Follower { applied: seq(a), durable: seq(d), consistent })
            }
            Self::Source(head) => {
                Message::Heartbeat(Heartbeat::Source { head: head.position(), log_bytes: 1, time: u64::MAX })
            }
            Self::Ranges(page) => Message::Ranges(page.content()),
            Self::NextPage(page) => Message::Ranges(page.next(coverage).unwrap_or_else(|| page.content())),
            Self::Request(id) => Message::Request(Request { id, body: RequestBody::Status }),
            Self::Response(id) => Message::Response(Response { id, body: Err(String::new()) }),
            Self::Goodbye => Message::Goodbye(Goodbye { reason: GoodbyeReason::Closing, words: String::new() }),
            Self::Opaque(n) => {
                let make = [Message::Challenge, Message::Auth][usize::from(n) % 2];
                make(Bytes::new())
            }
            Self::Compare(questions) => Message::Compare(Compare {
                ranges: questions
                    .into_iter()
                    .map(|(from, to, count)| RangeSummary {
                        range: KeyRange::new(vec![from], to.map(|to| Bytes::from(vec![to]))),
                        count: count.into(),
                        fingerprint: Fingerprint::from_bytes([from; 16]),
                    })
                    .collect(),
            }),
            Self::Probe(from, to, max_bytes, entries) => {
                Message::Probe(Probe { max_bytes, ..probe(from, to, entries) })
            }
            Self::Probed(page, at, entries) => {
                let Content { range, entries: held, .. } = page.content();
                let summary = Summary { count: 1, bytes: 2, fingerprint: Fingerprint::from_bytes([3; 16]) };
                let held = if entries { Held::Entries(held) } else { Held::Summary(summary) };
                Message::Probed(Probed { range, at: at.position(), held })
            }
            Self::Touched { read_at, end, key } => Message::Touched(Touched {
                read_at: read_at.position(),
                end: end.map(|end| end.position()),
                ops: Batch::new()
                    .put([key], [1])
                    .delete([key ^ 1])
                    .into_parts()
                    .map_or_else(|_| EncodedOps::default(), |parts| parts.0),
            }),
            Self::Filtered { from, count, keys, run } => {
                let from = usize::from(from) % RECORDS + 1;
                let to = (from + usize::from(count) % 4).min(RECORDS + 1);
                let share = |seq: usize| Passage::Share(Share::of(&record(seq), &ranges_of(Some(keys))));
                let run = run.map(|through| Passage::Skipped(Skipped { through: through.position(), log_bytes: 1, time: 1 }));
                Message::Filtered(Filtered { passages: run.into_iter().chain((from..to).map(share)).collect() })
            }
            Self::Compared(read_at, verdicts, start) => Message::Compared(Compared {
                read_at: read_at.position(),
                verdicts: verdicts
                    .into_iter()
                    .map(|(equal, n)| if equal { Verdict::Equal(n) } else { Verdict::Split(n) })
                    .collect(),
                start: match start {
                    Some(start) => vec![start].into(),
                    None => coverage.rest().map(|rest| rest.start().clone()).unwrap_or_default(),
                },
            }),
        }
    }
}

fn probe(from: u8, to: Option<u8>, entries: bool) -> Probe {
    Probe { range: KeyRange::new(vec![from], to.map(|to| Bytes::from(vec![to]))), max_bytes: 64, entries }
}

fn ranges_of(keys: Option<(u8, u8)>) -> KeyRanges {
    let ranges = keys.map(|(one, other)| KeyRange::from_bounds([one.min(other)]..=[one.max(other)]));
    ranges.map_or_else(KeyRanges::all, KeyRanges::from)
}

fn limits_of(n: u8) -> StoreLimits {
    if n == 255 { StoreLimits { max_key: 1, ..LIMITS } } else { LIMITS }
}

fn view((published, handed, floor): (u8, u8, u8)) -> View {
    let published = usize::from(published) % (RECORDS + 1);
    let handed = published + usize::from(handed) % (RECORDS + 1 - published);
    let floor = usize::from(floor) % (published + 1);
    // Large enough now and then for the data to be measured first.
    let log_bytes = (published as u64) << if handed % 2 == 0 { 4 } else { 22 };
    View {
        published: position(published),
        handed: position(handed),
        floor: position(floor),
        log_bytes,
        retained_bytes: log_bytes / 2,
    }
}

struct Master {
    session: MasterSession,
    view: View,
    page_asked: bool,
    /// From the request of a page until it is framed.
    page_under_way: bool,
}

impl Master {
    /// Does what a driver does, until nothing is left or a page must be read. Returns how much that was.
    fn act(&mut self) -> usize {
        let mut actions = 0;
        while !self.page_asked {
            let Some(action) = self.session.poll_action() else { return actions };
            actions += 1;
            match action {
                MasterAction::Locate(positions) => {
                    let located: Vec<_> = positions.iter().map(|position| self.locate(position)).collect();
                    self.session.handle_located(&located);
                }
                MasterAction::MeasureData { at_most } => self.session.handle_data_size(at_most / 2),
                MasterAction::ReadRecords { after, .. } => {
                    assert!(after.seq < self.view.published.seq);
                    assert!(!self.page_under_way, "no record is framed while a page is under way");
                    self.session.handle_records(self.read(after));
                }
                MasterAction::ReadPage { .. } | MasterAction::ReadExactly { .. } => {
                    (self.page_asked, self.page_under_way) = (true, true)
                }
                MasterAction::LookUp { keys, .. } => {
                    assert!(!self.page_under_way, "no keys are looked up while a page is under way");
                    let values = vec![None; keys.len().min(2)];
                    self.session.handle_view(self.view);
                    self.session.handle_values(&values, self.view.handed);
                }
                MasterAction::Send(Message::Touched(touched)) => {
                    assert!(!self.page_under_way && self.view.published.seq >= touched.read_at.seq);
                }
                MasterAction::Send(Message::Ranges(content)) => {
                    assert!(self.page_under_way && self.view.published.seq >= content.read_at.seq);
                    self.page_under_way = false;
                }
                MasterAction::Send(Message::Probed(Probed { at, .. })) => {
                    assert!(self.page_under_way && self.view.published.seq >= at.seq);
                    self.page_under_way = false;
                }
                MasterAction::Send(Message::Records(_)) => assert!(!self.page_under_way),
                // What touches the slave's ranges is framed like any other record; of what does not, nothing comes.
                MasterAction::Send(Message::Filtered(filtered)) => {
                    let nothing = |passage: &Passage| match passage {
                        Passage::Share(share) => share.ops().is_empty(),
                        Passage::Skipped(_) => true,
                    };
                    assert!(!self.page_under_way || filtered.passages.iter().all(nothing));
                }
                MasterAction::Answer(Request { id, .. }) => {
                    self.session.respond(Response { id, body: Ok(Bytes::new()) });
                }
                MasterAction::Send(_)
                | MasterAction::Joined { .. }
                | MasterAction::Verified(_)
                | MasterAction::Superseded(_)
                | MasterAction::Progress(_)
                | MasterAction::Close(_) => {}
            }
        }
        actions
    }

    fn locate(&self, at: &Position) -> Located {
        let seq = at.seq.as_u64();
        if seq > self.view.published.seq.as_u64() {
            Located::Ahead
        } else if position(seq as usize) != *at {
            Located::Mismatch
        } else if at.seq < self.view.floor.seq {
            Located::Below
        } else {
            Located::Held { log_bytes: seq }
        }
    }

    fn read(&self, after: Position) -> LogAnswer {
        let from = after.seq.as_u64() as usize + 1;
        if after.seq < self.view.floor.seq {
            return LogAnswer::Trimmed;
        }
        let to = (from + 1).min(self.view.published.seq.as_u64() as usize);
        // Every third stretch is compacted.
        if from % 3 == 0 {
            let touched = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b"), Bytes::from_static(b"c")];
            return LogAnswer::Compacted(Stretch { end: position(to), deleted: vec![KeyRange::all()], touched });
        }
        LogAnswer::Records { parts: (from..=to).map(|seq| record(seq).bytes().clone()).collect(), last: position(to) }
    }
}

struct Slave {
    session: SlaveSession,
    cursor: Option<Cursor>,
    begun_with_data: bool,
    resyncs: bool,
    ranges: KeyRanges,
    received: Option<Cursor>,
}

impl Slave {
    fn act(&mut self) -> usize {
        let mut actions = 0;
        while let Some(action) = self.session.poll_action() {
            actions += 1;
            match action {
                SlaveAction::Begin(cursor) => {
                    let whole = self.cursor.as_ref().filter(|cursor| cursor.coverage.is_complete());
                    let compares = cursor.coverage.fill() == Some(Fill::Compare);
                    assert!(
                        !self.begun_with_data && (whole.is_none() || compares),
                        "a whole slave is never begun anew"
                    );
                    assert!(whole.is_none_or(|whole| whole.position.seq <= cursor.position.seq), "nor taken back");
                    self.received = Some(cursor);
                }
                SlaveAction::Resync(cursor, ..) => {
                    assert!(self.resyncs && self.cursor.is_some(), "nobody asked for that");
                    self.received = Some(cursor);
                }
                SlaveAction::Apply(record) => {
                    let cursor = self.received.as_mut().expect("records continue something");
                    record.header().verify_after(&cursor.position).expect("and continue it without a gap");
                    cursor.position = record.position();
                }
                SlaveAction::ApplyPortion(portion) => {
                    let cursor = self.received.as_mut().expect("records continue something");
                    assert!(portion.position.seq > cursor.position.seq, "and go on");
                    let within = |op: replikv_core::Op<'_>| match op {
                        replikv_core::Op::Put { key, .. } | replikv_core::Op::Delete { key } => self.ranges.contains(key),
                        replikv_core::Op::DeleteRange { .. } => true,
                    };
                    assert!(portion.ops.iter().all(within), "within what it subscribes to");
                    cursor.position = portion.position;
                }
                SlaveAction::Copy(Content { range, read_at, entries }) => {
                    let cursor = self.received.as_mut().expect("content continues something");
                    assert!(match cursor.coverage.fill() {
                        Some(Fill::Compare) => cursor.coverage.cover(&range, read_at),
                        _ => cursor.coverage.advance(&range, read_at),
                    });
                    assert!(
                        entries.iter().all(|op| matches!(op, replikv_core::Op::Put { key, .. } if range.contains(key)))
                    );
                }
                SlaveAction::Touch(touched) => {
                    let cursor = self.received.as_mut().expect("touches continue something");
                    let until = touched.end.unwrap_or(cursor.position);
                    assert!(touched.end.is_none_or(|end| end.seq > cursor.position.seq));
                    assert!(until.source == source() && touched.read_at.seq >= until.seq);
                    cursor.position = until;
                    cursor.coverage.newer_until(touched.read_at);
                }
                SlaveAction::Covered { range, read_at } => {
                    let cursor = self.received.as_mut().expect("what is equal continues something");
                    assert!(cursor.coverage.cover(&range, read_at));
                }
                // Its store holds nothing.
                SlaveAction::ReadPage { range, .. } => self.session.handle_page(&range, &EncodedOps::default()),
                SlaveAction::Probed(probed) => {
                    let cursor = self.received.as_ref().expect("only who follows verifies");
                    assert_eq!(cursor.position, probed.at, "a probe is of the moment at which it comes");
                }
                SlaveAction::Checkpoints(_)
                | SlaveAction::Send(_)
                | SlaveAction::Waiting(_)
                | SlaveAction::Welcomed(_)
                | SlaveAction::Contact(_)
                | SlaveAction::Close(_) => {}
            }
        }
        actions
    }
}

fn policy(n: u8) -> OnDivergence {
    [OnDivergence::Refuse, OnDivergence::Resync, OnDivergence::AdoptSource][usize::from(n) % 3]
}

/// However long nobody takes what waits, no more than this waits: a few messages, the questions of a peer, and
/// the answer to so many ranges as one chunk holds.
const BOUND: usize = 1_300;

fuzz_target!(|input: Input| {
    let mut now = Now::default();
    let cursor = input.stand.map(|stand| stand.cursor());
    let holds_data = input.holds_data && cursor.is_none();
    let config = MasterSessionConfig {
        source: source(),
        limits: LIMITS,
        heartbeat: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(10),
        chunk: 64,
        relay: input.relay.then(|| Relay {
            // Some are below the slave's own nonce.
            path: vec![PathNode { name: "relay".into(), nonce: u64::from(input.relay_nonce) }],
            wait: Duration::from_secs(60),
        }),
        compare_bytes_per_second: None,
        checkpoints: Vec::new(),
    };
    let start = view(input.view);
    let session = MasterSession::new(config, start, Vec::new(), now);
    let mut master = Some(Master { session, view: start, page_asked: false, page_under_way: false });
    let config = SlaveSessionConfig {
        slave: "edge".into(),
        nonce: 1,
        cursor: cursor.clone(),
        holds_data,
        checkpoints: Vec::new(),
        limits: LIMITS,
        ranges: ranges_of(input.ranges),
        temporary: false,
        handshake_timeout: Duration::from_secs(10),
        on_divergence: policy(input.on_divergence),
        resync: None,
        fence: None,
    };
    let resyncs = config.on_divergence != OnDivergence::Refuse;
    let ranges = config.ranges.clone();
    let session = SlaveSession::new(config, now);
    let mut slave = Some(Slave { session, received: cursor.clone(), cursor, begun_with_data: holds_data, resyncs, ranges });

    for event in input.events {
        let mut failed_master = Ok(());
        let mut failed_slave = Ok(());
        match event {
            Event::ToMaster(word) => {
                if let Some(master) = &mut master {
                    failed_master = master.session.handle_message(now, word.message(&Coverage::default()));
                }
            }
            Event::ToSlave(word) => {
                if let Some(slave) = &mut slave {
                    let coverage = slave.received.as_ref().map(|cursor| cursor.coverage.clone()).unwrap_or_default();
                    failed_slave = slave.session.handle_message(now, word.message(&coverage));
                    // What a slave is sent, its driver takes before it reads on.
                    assert!(slave.act() <= BOUND);
                }
            }
            Event::SlaveActs => assert!(slave.as_mut().is_none_or(|slave| slave.act() <= BOUND)),
            Event::MasterActs => {
                let actions = master.as_mut().map_or(0, Master::act);
                assert!(actions <= BOUND, "{actions} actions were waiting");
            }
            Event::View(published, handed, floor) => {
                if let Some(master) = &mut master {
                    let next = view((published, handed, floor));
                    // What is published stays so, and floors only rise.
                    if next.published.seq >= master.view.published.seq && next.floor.seq >= master.view.floor.seq {
                        master.view = next;
                        master.session.handle_view(next);
                    }
                }
            }
            Event::PageRead(page) => {
                if let Some(master) = &mut master
                    && std::mem::take(&mut master.page_asked)
                {
                    master.session.handle_page(Content { read_at: master.view.handed, ..page.content() });
                }
            }
            Event::Time(seconds) => {
                now.monotonic += Duration::from_secs(u64::from(seconds));
                now.unix_ms = now.unix_ms.wrapping_mul(31).wrapping_add(u64::from(seconds));
                if let Some(master) = &mut master {
                    failed_master = master.session.handle_timeout(now);
                }
                if let Some(slave) = &mut slave {
                    failed_slave = slave.session.handle_timeout(now);
                }
            }
            Event::Progress(applied, durable, consistent) => {
                if let Some(slave) = &mut slave {
                    let (applied, durable) = (Seq::new(applied.into()), Seq::new(durable.into()));
                    slave.session.handle_progress(Progress { applied, durable, consistent });
                }
            }
            Event::ShutMaster => {
                if let Some(master) = &mut master {
                    master.session.shut(GoodbyeReason::Closing, "");
                }
            }
            Event::Probe(from, to, entries) => {
                if let Some(slave) = &mut slave {
                    slave.session.probe(probe(from, to, entries));
                }
            }
            Event::ShutSlave => {
                if let Some(slave) = &mut slave {
                    slave.session.shut("");
                }
            }
        }
        // A connection whose peer has misbehaved is closed; nothing of what it sent last is done.
        if is_over(&failed_master) {
            master = None;
        }
        if is_over(&failed_slave) {
            slave = None;
        }
    }
    if let Some(mut master) = master {
        master.session.refuse(Refusal::new(RejectCode::Busy, ""));
        let actions = master.act();
        assert!(actions <= BOUND, "{actions} actions were waiting");
    }
    if let Some(mut slave) = slave {
        assert!(slave.act() <= BOUND);
    }
});

fn is_over(result: &Result<(), ProtocolError>) -> bool {
    result.as_ref().is_err_and(|error| !error.to_string().is_empty())
}
