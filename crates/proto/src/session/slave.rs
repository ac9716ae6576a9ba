//! The slave's end: says where to go on from, then checks everything that arrives.

use std::collections::VecDeque;
use std::time::Duration;

use replikv_core::{Coverage, Cursor, EncodedOps, Fill, KeyRange, KeyRanges, Op, OpsPart, Position, StoreLimits};

use super::{MAX_PATH, ProtocolError, Refusal};
use crate::filter::{self, Portion};
use crate::layout::Epochs;
use crate::planted::{self, Bug};
use crate::reconcile::{Comparison, Held, Probe, Probed};
use crate::{
    Above, Ack, Compare, Compared, Content, Fence, Goodbye, GoodbyeReason, Heartbeat, Hello, Message, Mode, Now,
    OnDivergence, Progress, Record, Records, RejectCode, Resync, Touched, Welcome,
};

/// What a session needs to know of its slave, once.
#[derive(Debug, Clone)]
pub struct SlaveSessionConfig {
    /// The slave's name.
    pub slave: String,
    /// Drawn when the slave was opened.
    pub nonce: u64,
    /// Where the store stands, as committed.
    pub cursor: Option<Cursor>,
    /// Whether the store holds any data.
    pub holds_data: bool,
    /// Points that the slave's history passed through.
    pub checkpoints: Vec<Position>,
    /// What the store can hold.
    pub limits: StoreLimits,
    /// The keys that it subscribes to.
    pub ranges: KeyRanges,
    /// Whether it comes once, and nothing is to be kept for it.
    pub temporary: bool,
    /// How long the master may take until its welcome.
    pub handshake_timeout: Duration,
    /// What to do if the slave's history has parted from the master's. Whoever says that it is not to be refused has a
    /// quarantine.
    pub on_divergence: OnDivergence,
    /// A resync that was begun, as committed.
    pub resync: Option<Resync>,
    /// What the slave has promised, as committed.
    pub fence: Option<Fence>,
}

/// What the driver is asked to do.
#[derive(Debug)]
pub enum SlaveAction {
    /// Send a message.
    Send(Message),
    /// What follows continues this cursor.
    Begin(Cursor),
    /// As [`Begin`](Self::Begin), in a history from which the slave's has parted, and whose epochs are these. From here on,
    /// what content takes the place of is quarantined first; where the slave stood before counts for nothing any more.
    Resync(Cursor, Resync, Epochs),
    /// Apply a record. Its place in the chain was verified.
    Apply(Record),
    /// Apply what of one or more records lies in the slave's ranges. Where that ends was verified, or will be by what
    /// comes next.
    ApplyPortion(Portion),
    /// Replace a range. It continues the copy, or was found to differ.
    Copy(Content),
    /// Apply what touched keys hold: newer than the records around it.
    Touch(Touched),
    /// A range was found to hold what the master held at that moment: from now on records apply to it.
    Covered {
        /// The keys.
        range: KeyRange,
        /// The last record that the master had handed to its store when it had read it.
        read_at: Position,
    },
    /// The answer to a probe. It speaks of the moment when everything before this action is applied, and nothing after
    /// it: compare it with what the store holds then.
    Probed(Box<Probed>),
    /// Keep these points of the history: what the slave holds from now on stands on them.
    Checkpoints(Vec<Position>),
    /// Read a page of the slave's own data; answer with [`SlaveSession::handle_page`]. What is read changes for nobody
    /// but this session: it is not covered.
    ReadPage {
        /// What to read, from its start on.
        range: KeyRange,
        /// How many bytes, roughly.
        max_bytes: usize,
    },
    /// The master, a relay, is behind this slave: nothing arrives until it has caught up. It says so again, with
    /// [`Welcomed`](Self::Welcomed) or a refusal, once it knows more.
    Waiting(Box<Welcome>),
    /// The master has accepted this slave.
    Welcomed(Box<Welcome>),
    /// The master has told where it stands.
    Contact(SourceFacts),
    /// The end: the master said goodbye, or refused.
    Close(Result<Goodbye, Refusal>),
}

/// What is known of the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceFacts {
    /// Its last published record.
    pub head: Position,
    /// How many bytes of records it ever published.
    pub log_bytes: u64,
    /// Its wall clock, when it last told; milliseconds since the Unix epoch.
    pub time: Option<u64>,
    /// What it knows of the master, if it is a relay and has said so.
    pub above: Option<Above>,
}

/// How much of its own data a slave reads at once to compare it, in bytes.
const PAGE: usize = 256 << 10;

/// The slave's end of one connection.
#[derive(Debug)]
pub struct SlaveSession {
    config: SlaveSessionConfig,
    state: State,
    queue: VecDeque<SlaveAction>,
    progress: Progress,
    heard: Duration,
    heartbeat: Duration,
    next_heartbeat: Duration,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of it, and it is the large one nearly all the time")]
enum State {
    AwaitWelcome {
        deadline: Duration,
    },
    /// For a relay that is behind.
    Waiting,
    Following {
        received: Position,
        coverage: Coverage,
        comparison: Option<Box<Comparison>>,
        /// Whether the master answers probes.
        verifies: bool,
        probing: Option<Probing>,
    },
    Closed,
}

/// A question about a range at one point of the history.
#[derive(Debug)]
enum Probing {
    Asked(Probe),
    /// Answered, of a point that the stream of records has not come to.
    Ahead(Probe, Box<Probed>),
}

impl SlaveSession {
    /// A session whose first action is to send the hello.
    pub fn new(config: SlaveSessionConfig, now: Now) -> Self {
        let hello = Hello {
            slave: config.slave.clone(),
            nonce: config.nonce,
            cursor: config.cursor.as_ref().map(Cursor::for_hello),
            holds_data: config.holds_data,
            checkpoints: config.checkpoints.clone(),
            limits: config.limits,
            ranges: if config.ranges.is_all() { Vec::new() } else { config.ranges.clone().into() },
            path: Vec::new(),
            temporary: config.temporary,
            on_divergence: config.on_divergence,
        };
        let deadline = now.monotonic.saturating_add(config.handshake_timeout);
        Self {
            heartbeat: config.handshake_timeout,
            config,
            state: State::AwaitWelcome { deadline },
            queue: VecDeque::from([SlaveAction::Send(Message::Hello(hello))]),
            progress: Progress::default(),
            heard: now.monotonic,
            next_heartbeat: deadline,
        }
    }

    /// Bytes have arrived, though no whole message yet.
    pub fn handle_bytes(&mut self, now: Now) {
        self.heard = now.monotonic;
    }

    /// A message has arrived.
    ///
    /// # Errors
    /// [`ProtocolError`] if it has no place here, or does not continue what came before. Nothing of it is applied; the
    /// connection must be closed.
    pub fn handle_message(&mut self, now: Now, message: Message) -> Result<(), ProtocolError> {
        self.heard = now.monotonic;
        match (message, &mut self.state) {
            (_, State::Closed) => {}
            (Message::Goodbye(goodbye), _) => self.close(Ok(goodbye)),
            (Message::Reject(reject), _) => self.close(Err(reject.into())),
            (Message::Welcome(welcome), State::AwaitWelcome { .. } | State::Waiting) => self.welcome(now, welcome)?,
            (Message::Challenge(_), State::AwaitWelcome { .. }) => {
                let words = "the master asks for credentials, and this slave has none";
                self.give_up(Refusal::new(RejectCode::Unsupported, words));
            }
            (Message::Filtered(filtered), State::Following { received, probing, .. })
                if !self.config.ranges.is_all() =>
            {
                for portion in filter::verify(&self.config.ranges, received, filtered)? {
                    let position = portion.position;
                    self.queue.push_back(SlaveAction::ApplyPortion(portion));
                    if let Some(Probing::Ahead(_, probed)) = probing
                        && probed.at.seq <= position.seq
                    {
                        if probed.at != position {
                            return Err(ProtocolError::misbehaved("it answers of another history than it sends"));
                        }
                        if let Some(Probing::Ahead(_, probed)) = probing.take() {
                            self.queue.push_back(SlaveAction::Probed(probed));
                        }
                    }
                }
            }
            (Message::Records(records), State::Following { received, probing, .. }) if self.config.ranges.is_all() => {
                for record in verify(received, records)? {
                    let position = record.position();
                    self.queue.push_back(SlaveAction::Apply(record));
                    // Between this record and the next one: that is what it speaks of.
                    if let Some(Probing::Ahead(_, probed)) = probing
                        && probed.at.seq == position.seq
                    {
                        if probed.at != position {
                            return Err(ProtocolError::misbehaved("it answers of another history than it sends"));
                        }
                        if let Some(Probing::Ahead(_, probed)) = probing.take() {
                            self.queue.push_back(SlaveAction::Probed(probed));
                        }
                    }
                }
            }
            (Message::Probed(probed), State::Following { received, probing, .. }) => {
                let asked = match probing.take() {
                    Some(Probing::Asked(probe)) if probed.answers(&probe) => Some(probe),
                    _ => None,
                };
                let later = probed.at.source == received.source && probed.at.seq > received.seq;
                let Some(probe) = asked.filter(|_| later || probed.at == *received) else {
                    return Err(ProtocolError::misbehaved("it answers a probe that was not asked, or of what is past"));
                };
                if let Held::Entries(entries) = &probed.held {
                    check_entries(&probed.range, entries)?;
                }
                if later {
                    *probing = Some(Probing::Ahead(probe, Box::new(probed)));
                } else {
                    self.queue.push_back(SlaveAction::Probed(Box::new(probed)));
                }
            }
            (Message::Ranges(content), State::Following { coverage, received, comparison, .. }) => {
                let covered = content.read_at.source == received.source
                    && match comparison {
                        None => coverage.advance(&content.range, content.read_at) || planted::is(Bug::PageNotChecked),
                        Some(comparison) => {
                            comparison.replaced(&content.range).is_ok()
                                && coverage.cover(&content.range, content.read_at)
                        }
                    };
                if !covered {
                    return Err(ProtocolError::misbehaved("a page of content does not continue what came before"));
                }
                check_entries(&content.range, &content.entries)?;
                self.queue.push_back(SlaveAction::Copy(content));
            }
            (Message::Touched(touched), State::Following { coverage, received, probing, .. }) => {
                check_touched(&touched, received)?;
                filter::check_within(&self.config.ranges, &touched.ops)?;
                *received = touched.end.unwrap_or(*received);
                coverage.newer_until(touched.read_at);
                self.queue.push_back(SlaveAction::Touch(touched));
                // The record that it speaks of is no longer sent as such.
                if let Some(Probing::Ahead(probe, probed)) = probing
                    && probed.at.seq <= received.seq
                {
                    let probe = probe.clone();
                    self.queue.push_back(SlaveAction::Send(Message::Probe(probe.clone())));
                    *probing = Some(Probing::Asked(probe));
                }
            }
            (
                Message::Compared(Compared { read_at, verdicts, start }),
                State::Following { coverage, received, comparison: Some(comparison), .. },
            ) => {
                let unasked = || ProtocolError::misbehaved("it answers what was not asked");
                let equal = comparison.answered(&start, &verdicts).map_err(|_| unasked())?;
                for range in equal {
                    if read_at.source != received.source || !coverage.cover(&range, read_at) {
                        return Err(unasked());
                    }
                    self.queue.push_back(SlaveAction::Covered { range, read_at });
                }
            }
            (Message::Heartbeat(Heartbeat::Source { head, log_bytes, time }), State::Following { .. }) => {
                self.told(SourceFacts { head, log_bytes, time: Some(time), above: None })?;
            }
            (Message::Heartbeat(Heartbeat::Relay { head, log_bytes, time, above }), State::Following { .. }) => {
                self.told(SourceFacts { head, log_bytes, time: Some(time), above: Some(above) })?;
            }
            // A sign of life, of one who knows less than this slave does.
            (Message::Heartbeat(Heartbeat::Source { .. } | Heartbeat::Relay { .. }), State::Waiting) => {}
            // Answers to questions that this session never asks.
            (Message::Response(_), _) => {}
            (message, _) => {
                return Err(ProtocolError::misbehaved(format!("{} has no place here", message.name())));
            }
        }
        Ok(())
    }

    /// A page of the slave's own data was read: what it covers, and its entries.
    pub fn handle_page(&mut self, covered: &KeyRange, entries: &EncodedOps) {
        if let State::Following { comparison: Some(comparison), .. } = &mut self.state {
            comparison.push_page(covered, entries);
        }
    }

    /// Whether the master that is followed answers [`probe`](Self::probe); `None` while none is followed.
    pub fn verifies(&self) -> Option<bool> {
        match &self.state {
            State::Following { verifies, .. } => Some(*verifies),
            State::AwaitWelcome { .. } | State::Waiting | State::Closed => None,
        }
    }

    /// True if [`probe`](Self::probe) has an effect: the master answers, and nothing is being asked.
    pub fn may_probe(&self) -> bool {
        matches!(self.state, State::Following { verifies: true, probing: None, .. })
    }

    /// Asks what a range holds. The answer comes as [`SlaveAction::Probed`], behind the last record that it speaks of.
    pub fn probe(&mut self, probe: Probe) {
        if let State::Following { verifies: true, probing: probing @ None, .. } = &mut self.state {
            *probing = Some(Probing::Asked(probe.clone()));
            self.queue.push_back(SlaveAction::Send(Message::Probe(probe)));
        }
    }

    /// A group was committed, or made durable: the master is told.
    pub fn handle_progress(&mut self, progress: Progress) {
        if progress == self.progress || !matches!(self.state, State::Following { .. }) {
            return;
        }
        // Until that is taken, the driver speaks of the history that was left.
        if matches!(self.queue.front(), Some(SlaveAction::Resync(..))) {
            return;
        }
        self.progress = progress;
        let Progress { applied, durable, consistent } = progress;
        self.queue.retain(|action| !matches!(action, SlaveAction::Send(Message::Ack(_))));
        self.queue.push_back(SlaveAction::Send(Message::Ack(Ack { applied, durable, consistent })));
    }

    /// Time has passed.
    ///
    /// # Errors
    /// [`ProtocolError::Silent`] if the master was not heard of for too long.
    pub fn handle_timeout(&mut self, now: Now) -> Result<(), ProtocolError> {
        match self.state {
            State::Closed => {}
            State::AwaitWelcome { deadline } if now.monotonic < deadline => {}
            State::AwaitWelcome { .. } => {
                self.state = State::Closed;
                return Err(ProtocolError::Silent { seconds: self.config.handshake_timeout.as_secs() });
            }
            _ if now.monotonic >= self.heard.saturating_add(self.silence()) => {
                self.state = State::Closed;
                return Err(ProtocolError::Silent { seconds: self.silence().as_secs() });
            }
            _ if now.monotonic >= self.next_heartbeat => {
                self.next_heartbeat = now.monotonic.saturating_add(self.heartbeat);
                let Progress { applied, durable, consistent } = self.progress;
                let beat = Message::Heartbeat(Heartbeat::Follower { applied, durable, consistent });
                let waiting = |action: &SlaveAction| matches!(action, SlaveAction::Send(Message::Heartbeat(_)));
                if !self.queue.iter().any(waiting) {
                    self.queue.push_back(SlaveAction::Send(beat));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        match self.state {
            State::AwaitWelcome { deadline } => Some(deadline),
            State::Waiting | State::Following { .. } => {
                Some(self.next_heartbeat.min(self.heard.saturating_add(self.silence())))
            }
            State::Closed => None,
        }
    }

    /// What to do next, if anything.
    ///
    /// An action that asks for a page may be answered later; nothing more is asked until then.
    pub fn poll_action(&mut self) -> Option<SlaveAction> {
        if self.queue.is_empty()
            && let State::Following { comparison: Some(comparison), .. } = &mut self.state
        {
            if let Some(range) = comparison.next_read() {
                return Some(SlaveAction::ReadPage { range, max_bytes: PAGE });
            }
            let question = comparison.next_question()?;
            return Some(SlaveAction::Send(Message::Compare(Compare { ranges: question })));
        }
        self.queue.pop_front()
    }

    /// Ends the session in order: the master is told.
    pub fn shut(&mut self, words: &str) {
        if !matches!(self.state, State::Closed) {
            let goodbye = Goodbye { reason: GoodbyeReason::Closing, words: words.into() };
            self.queue.push_back(SlaveAction::Send(Message::Goodbye(goodbye.clone())));
            self.close(Ok(goodbye));
        }
    }

    fn close(&mut self, ending: Result<Goodbye, Refusal>) {
        self.state = State::Closed;
        self.queue.push_back(SlaveAction::Close(ending));
    }

    fn told(&mut self, source: SourceFacts) -> Result<(), ProtocolError> {
        if matches!(&self.state, State::Following { received, .. } if source.head.source != received.source) {
            return Err(ProtocolError::misbehaved("a heartbeat speaks of another source"));
        }
        self.queue.push_back(SlaveAction::Contact(source));
        Ok(())
    }

    // The master would go on; the slave knows better, and says so before it leaves.
    fn give_up(&mut self, refusal: Refusal) {
        let goodbye = Goodbye { reason: GoodbyeReason::Refused, words: refusal.words.clone() };
        self.queue.push_back(SlaveAction::Send(Message::Goodbye(goodbye)));
        self.close(Err(refusal));
    }

    fn silence(&self) -> Duration {
        self.heartbeat.saturating_mul(4)
    }

    fn welcome(&mut self, now: Now, welcome: Welcome) -> Result<(), ProtocolError> {
        let from = welcome.mode.from().unwrap_or(welcome.head);
        let positions = [welcome.head, welcome.floor, from];
        if positions.iter().chain(&welcome.checkpoints).any(|position| position.source != welcome.source) {
            return Err(ProtocolError::misbehaved("a welcome speaks of two sources"));
        }
        if let Mode::Resync { ancestor: Some(ancestor), .. } = &welcome.mode
            && !self.config.checkpoints.contains(ancestor)
        {
            return Err(ProtocolError::misbehaved("it names an ancestor that was never this slave's"));
        }
        if welcome.path.len() > MAX_PATH {
            return Err(ProtocolError::misbehaved("its path is longer than any may be"));
        }
        let cursor = match self.accept(&welcome) {
            Ok(cursor) => cursor,
            Err(refusal) => {
                self.give_up(refusal);
                return Ok(());
            }
        };
        self.heartbeat = Duration::from_millis(welcome.heartbeat_ms.max(1).into());
        self.next_heartbeat = now.monotonic.saturating_add(self.heartbeat);
        if welcome.mode == Mode::Wait {
            self.state = State::Waiting;
            self.queue.push_back(SlaveAction::Waiting(Box::new(welcome)));
            return Ok(());
        }
        let source = SourceFacts { head: welcome.head, log_bytes: welcome.log_bytes, time: None, above: None };
        let coverage = cursor.coverage.clone();
        let compares = coverage.fill() == Some(Fill::Compare);
        let comparison = compares.then(|| Box::new(Comparison::new(coverage.holes())));
        let (received, verifies) = (cursor.position, welcome.verifies);
        self.state = State::Following { received, coverage, comparison, verifies, probing: None };
        if let (Mode::Resync { reason, ancestor, .. }, Some(before)) = (welcome.mode, &self.config.cursor) {
            let was = self.config.resync.map_or(before.position, |begun| begun.was);
            let epochs = Epochs(welcome.epochs.clone());
            self.queue.push_back(SlaveAction::Resync(cursor, Resync { reason, was, ancestor }, epochs));
            self.queue.push_back(SlaveAction::Checkpoints(welcome.checkpoints.clone()));
        } else if self.config.cursor.as_ref() != Some(&cursor) {
            self.queue.push_back(SlaveAction::Begin(cursor));
            if !welcome.checkpoints.is_empty() {
                self.queue.push_back(SlaveAction::Checkpoints(welcome.checkpoints.clone()));
            }
        }
        self.queue.push_back(SlaveAction::Welcomed(Box::new(welcome)));
        self.queue.push_back(SlaveAction::Contact(source));
        Ok(())
    }

    // A master decides, and the slave checks the decision against what it holds: it never lets itself be wiped.
    fn accept(&self, welcome: &Welcome) -> Result<Cursor, Refusal> {
        if welcome.path.iter().any(|above| above.nonce == self.config.nonce) {
            let words = "this slave is above the relay that it is to follow: they would go in a circle";
            return Err(Refusal::new(RejectCode::Loop, words));
        }
        if let Some(fence) = &self.config.fence
            && !fence.admits(welcome.source, &welcome.epochs)
        {
            return Err(fence.refusal());
        }
        if !self.config.limits.holds(&welcome.limits) {
            let words = beyond(&welcome.limits, &self.config.limits);
            return Err(Refusal::new(RejectCode::LimitsTooSmall, words));
        }
        if self.config.resync.is_some() && self.config.on_divergence == OnDivergence::Refuse {
            let words = "a resync of this slave has begun and is not finished: what it holds is no state of any master. \
                         Let it resync, with a quarantine, or make it anew";
            return Err(Refusal::new(RejectCode::Diverged, words));
        }
        let adopts =
            matches!(welcome.mode, Mode::Resync { .. }) && self.config.on_divergence == OnDivergence::AdoptSource;
        if let Some(cursor) = &self.config.cursor
            && cursor.position.source != welcome.source
            && !adopts
        {
            let words = format!(
                "this slave follows source {}, the master is source {}",
                cursor.position.source, welcome.source
            );
            return Err(Refusal::new(RejectCode::ForeignSource, words));
        }
        match (&welcome.mode, &self.config.cursor) {
            (Mode::Resume, Some(cursor)) if planted::is(Bug::CoverageForgotten) => Ok(Cursor::at(cursor.position)),
            (Mode::Resume | Mode::Wait, Some(cursor)) => Ok(cursor.clone()),
            (_, None) if self.config.holds_data => {
                let words = "the store holds data that came from no master: it is not overwritten";
                Err(Refusal::new(RejectCode::DataWithoutCursor, words))
            }
            (Mode::Resume, None) if welcome.floor.seq.as_u64() == 0 => Ok(Cursor::at(welcome.floor)),
            (Mode::Copy { .. }, Some(cursor)) if cursor.coverage.is_complete() => {
                let words = "the master wants to replace what this slave holds, and nobody asked for that";
                Err(Refusal::new(RejectCode::NeedsCompare, words))
            }
            // What is equal is kept, and what differs is the master's: the history is the same, and goes on.
            (Mode::Compare { from }, Some(cursor)) if from.seq >= cursor.position.seq => {
                Ok(Cursor { position: *from, coverage: Coverage::within(&self.config.ranges, Fill::Compare) })
            }
            (Mode::Resync { from, reason, .. }, Some(_)) if self.config.on_divergence.resyncs(*reason) => {
                Ok(Cursor { position: *from, coverage: Coverage::within(&self.config.ranges, Fill::Compare) })
            }
            (Mode::Copy { from }, _) => {
                Ok(Cursor { position: *from, coverage: Coverage::within(&self.config.ranges, Fill::Copy) })
            }
            _ => Err(Refusal::new(RejectCode::Unsupported, "the master offers a mode that this slave does not know")),
        }
    }
}

// What does not fit, in words that say what to change.
fn beyond(wanted: &StoreLimits, held: &StoreLimits) -> String {
    let all = [
        ("keys", wanted.max_key, held.max_key),
        ("values", wanted.max_value, held.max_value),
        ("batches", wanted.max_batch, held.max_batch),
    ];
    let beyond = all.iter().filter(|(_, wanted, held)| wanted > held);
    let words: Vec<_> = beyond.map(|(what, wanted, held)| format!("{what} of {wanted} bytes, not {held}")).collect();
    format!("the master accepts more than this slave's store can hold: {}; lower the master's limits", words.join(", "))
}

fn verify(received: &mut Position, records: Records) -> Result<Vec<Record>, ProtocolError> {
    let mut verified = Vec::new();
    let mut last = *received;
    let mut rest = VecDeque::from(records.parts);
    while let Some(record) = Record::take_across(&mut rest).map_err(bad_record)? {
        let follows = record.header().verify_after(&last);
        if !planted::is(Bug::ChainNotVerified) {
            follows.map_err(bad_record)?;
        }
        last = record.position();
        verified.push(record);
    }
    *received = last;
    Ok(verified)
}

// The source of the error is folded into its words: a connection ends here, and nobody recovers from the inner kind.
fn bad_record(error: impl std::error::Error) -> ProtocolError {
    ProtocolError::BadRecord { what: error.to_string() }
}

// Whole pages go to the store as they are: what is in them is checked here, once.
fn check_entries(range: &KeyRange, entries: &EncodedOps) -> Result<(), ProtocolError> {
    let mut last: &[u8] = &[];
    for part in entries.parts() {
        match part {
            OpsPart::Ops(ops) => {
                for op in ops {
                    match op {
                        Op::Put { key, .. } if range.contains(key) && key > last => last = key,
                        Op::Put { key, .. } | Op::Delete { key } | Op::DeleteRange { start: key, .. } => {
                            return Err(misplaced(key));
                        }
                    }
                }
            }
            OpsPart::Put(put) if range.contains(put.key()) && put.key() > last => last = put.key(),
            OpsPart::Put(put) => return Err(misplaced(put.key())),
        }
    }
    Ok(())
}

fn misplaced(key: &[u8]) -> ProtocolError {
    let key = key.escape_ascii();
    let what = format!("a page of content holds {key}, which lies outside, is out of order, or is no entry");
    ProtocolError::misbehaved(what)
}

// Its place in the chain cannot be verified, since the records in between are gone. The master has found where this slave
// stood in its history, and vouches for the end of the stretch with the hash of what it read it from.
fn check_touched(touched: &Touched, received: &Position) -> Result<(), ProtocolError> {
    let until = touched.end.unwrap_or(*received);
    let same_epoch = until.epoch == received.epoch;
    // Before the first record there is no epoch.
    let epoch_follows = same_epoch || until.epoch.number > received.epoch.number || received.seq.as_u64() == 0;
    let goes_on = touched.end.is_none_or(|end| end.seq > received.seq);
    let continues = until.source == received.source && goes_on && epoch_follows;
    if !continues || touched.read_at.source != received.source || touched.read_at.seq < until.seq {
        return Err(ProtocolError::misbehaved("what keys hold does not continue what came before"));
    }
    Ok(())
}
