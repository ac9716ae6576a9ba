//! The master's end: decides how a slave is served, then streams content and records to it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use replikv_core::{Coverage, Cursor, EncodedOps, Fill, KeyRange, Op, Position, Seq, SourceId, StoreLimits};

use super::{Located, MAX_CHECKPOINTS, MAX_NAME_LEN, ProtocolError, Refusal};
use crate::layout::Checkpoint;
use crate::planted::{self, Bug};
use crate::reconcile::{
    Answer, Asked, Examination, MAX_BOUND_BYTES, MAX_ENTRIES, MAX_PIECES, Probe, Probed, bound_len,
};
use crate::{
    Ack, Compare, Content, EpochStart, Goodbye, GoodbyeReason, Heartbeat, Hello, Message, Mode, Now, Progress, Records,
    RejectCode, Request, Response, Stretch, Touched, Welcome,
};

/// What a session needs to know of its master, once.
#[derive(Debug, Clone)]
pub struct MasterSessionConfig {
    /// The history that is served.
    pub source: SourceId,
    /// What every slave must be able to hold.
    pub limits: StoreLimits,
    /// How often each side is heard of, at least. A peer that is silent for four of these is given up.
    pub heartbeat: Duration,
    /// How long a connection may take until its hello.
    pub handshake_timeout: Duration,
    /// The most that one page of content, or one message of records, aims for, in bytes. What is read for one answer
    /// to a comparison as well.
    pub chunk: usize,
    /// How many bytes a second are read to answer this slave's comparisons, at most. `None`: as many as there are.
    pub compare_bytes_per_second: Option<u64>,
    /// Points of the history, oldest first; at most 64.
    pub checkpoints: Vec<Position>,
    /// Whether the records come from elsewhere. A slave that is ahead of a relay waits until the relay has caught up;
    /// a slave that is ahead of a master is refused.
    pub relay: bool,
}

/// Where the master stands. Handed to each session whenever it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The last published record: what may be sent.
    pub published: Position,
    /// The last record that was handed to the store, published or not: what a page that is read now may show.
    pub handed: Position,
    /// Records after this one are in the log.
    pub floor: Position,
    /// How many bytes of records were ever published.
    pub log_bytes: u64,
    /// How many bytes of records the log holds.
    pub retained_bytes: u64,
}

/// What the driver is asked to do.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time, and most are messages")]
pub enum MasterAction {
    /// Send a message; poll again once it is written.
    Send(Message),
    /// Find these positions in the history; answer with [`MasterSession::handle_located`].
    Locate(Vec<Position>),
    /// Count the bytes of the data, no further than this; answer with [`MasterSession::handle_data_size`]. The slave
    /// waits meanwhile, and has heard nothing: a driver that cannot tell within a few seconds answers `at_most`.
    MeasureData {
        /// Where counting may stop.
        at_most: u64,
    },
    /// Read published records; answer with [`MasterSession::handle_records`].
    ReadRecords {
        /// The first record is the one after this.
        after: Position,
        /// How many bytes, roughly; one record at least.
        max_bytes: usize,
    },
    /// Read a page of the data, then take `handed`; answer with [`MasterSession::handle_page`].
    ReadPage {
        /// What is missing.
        range: KeyRange,
        /// How many bytes, roughly.
        max_bytes: usize,
    },
    /// Read a page of the data as it is right after one record, and name that record: with no other one in between, and
    /// with none that was handed to the store and is not decided. Answer with [`MasterSession::handle_page`], whose
    /// `read_at` is that record.
    ReadExactly {
        /// What to read, from its start on.
        range: KeyRange,
        /// How many bytes, roughly.
        max_bytes: usize,
    },
    /// Look up what these keys hold, some of them at least, in order, then take `handed`; answer with
    /// [`MasterSession::handle_values`]. A lookup that fails is no answer: the session must end.
    LookUp {
        /// The keys.
        keys: Vec<Bytes>,
        /// How many bytes of values, roughly.
        max_bytes: usize,
    },
    /// The slave is accepted, if only to wait. It may replace an older connection of the same name.
    Joined {
        /// Its name.
        slave: String,
        /// Drawn by the slave when it was opened.
        nonce: u64,
        /// The stream of records begins after this one.
        start: Seq,
        /// True if nothing is to be kept for it once it is gone.
        temporary: bool,
    },
    /// The slave holds this position, and it was found in the history.
    Verified(Position),
    /// The slave tells how far it is.
    Progress(Progress),
    /// Answer a question; with [`MasterSession::respond`].
    Answer(Request),
    /// The end: the peer said goodbye, or was refused.
    Close(Option<Refusal>),
}

/// What the log answered.
#[derive(Debug)]
pub enum LogAnswer {
    /// Whole records, in order.
    Records {
        /// Back to back, in one or more buffers.
        parts: Vec<Bytes>,
        /// The position of the last one.
        last: Position,
    },
    /// The next record is no longer there in full: what it and those after it came to.
    Compacted(Stretch),
    /// The next record is no longer there.
    Trimmed,
}

/// How many questions of one slave may wait for an answer.
const MAX_UNANSWERED: usize = 64;
/// How many ranges of comparisons may wait for an answer.
const MAX_ASKED: usize = 2 * MAX_PIECES;
/// How many bytes the bounds of these have at most. A slave keeps to far less, but for what one page of its data adds,
/// cut at every key.
const MAX_ASKED_BYTES: usize = 32 * MAX_BOUND_BYTES;
/// How many ranges are answered at once.
const MAX_EXAMINED: usize = 1024;
/// How many keys are looked up at once.
const MAX_LOOKED_UP: usize = 1024;
/// From how many bytes of log on it is worth looking whether there is less data than that.
const LONG: u64 = 8 << 20;

/// The master's end of one connection.
#[derive(Debug)]
pub struct MasterSession {
    config: MasterSessionConfig,
    view: View,
    epochs: Vec<EpochStart>,
    state: State,
    queue: VecDeque<MasterAction>,
    heard: Duration,
    next_heartbeat: Duration,
    /// The last time that was told.
    now: Duration,
    /// No comparison is answered before.
    compare_from: Duration,
}

#[derive(Debug)]
enum State {
    AwaitHello {
        deadline: Duration,
    },
    Locating(Box<Applicant>),
    /// Its own position is too old to tell: do its checkpoints lie in the history?
    Recognising(Box<Applicant>),
    /// Is there less data than so much log?
    Measuring(Box<Applicant>, u64),
    /// It could go through so much log: is there much less data than that?
    Weighing(Box<Applicant>, u64),
    /// Its history has parted from this one, and it resyncs: where did they part?
    Parting(Box<Applicant>, Refusal),
    /// Is there anything to replace what it holds with?
    Replacing(Box<Applicant>, Refusal, Option<Position>),
    /// The slave is ahead of this relay, which had published this much when the slave was last located.
    Waiting(Box<Applicant>, Position),
    Streaming(Box<Stream>),
    Closed,
}

/// A slave about which nothing is decided yet.
#[derive(Debug)]
struct Applicant {
    hello: Hello,
    /// It was told to wait: it has its place among the slaves, and is heard of like all others.
    waits: bool,
}

#[derive(Debug)]
struct Stream {
    sent: Position,
    /// What of the content was framed so far, in a copy.
    copy: Coverage,
    /// Whether the slave compares, and may ask.
    compares: bool,
    /// What it asked about, and was not answered.
    asked: VecDeque<Asked>,
    /// What it wants to know of one point of the history.
    probe: Option<Probe>,
    /// What of a compacted stretch of the log was not sent yet.
    stretch: Option<Stretch>,
    pending: Pending,
    /// Content and records take turns while a copy runs.
    records_next: bool,
}

/// What is under way. While something is read, no record is framed: an old page must never overwrite a newer
/// record.
#[derive(Debug)]
enum Pending {
    Nothing,
    Records,
    /// Values of touched keys.
    Values,
    /// A page of a copy.
    Page,
    /// The pages of an answer to a comparison.
    Examining(Box<Examination>),
    /// What a range holds at one point of the history.
    Probing,
    /// What may show records which are not published yet.
    Unpublished(Reading),
    /// What was read at moments that are looked up in the history.
    Verifying(Reading),
}

/// What was read, and is sent once it is known to be of the history.
#[derive(Debug)]
enum Reading {
    Page(Content),
    Answer(Box<Answer>),
    /// And what was read for it, in bytes.
    Probed(Box<Probed>, usize),
    /// So many keys of the stretch.
    Touched(Touched, usize),
}

impl MasterSession {
    /// A session that waits for a slave's hello.
    pub fn new(config: MasterSessionConfig, view: View, epochs: Vec<EpochStart>, now: Now) -> Self {
        let deadline = now.monotonic.saturating_add(config.handshake_timeout);
        let next_heartbeat = now.monotonic.saturating_add(config.heartbeat);
        let state = State::AwaitHello { deadline };
        let (now, compare_from) = (now.monotonic, Duration::ZERO);
        Self { config, view, epochs, state, queue: VecDeque::new(), heard: now, next_heartbeat, now, compare_from }
    }

    /// A message has arrived.
    ///
    /// # Errors
    /// [`ProtocolError`] if it has no place here; the connection must be closed.
    pub fn handle_message(&mut self, now: Now, message: Message) -> Result<(), ProtocolError> {
        (self.heard, self.now) = (now.monotonic, now.monotonic);
        match (message, &mut self.state) {
            (_, State::Closed) => {}
            (Message::Goodbye(_), _) => self.close(None),
            (Message::Request(request), _) => {
                // Whoever asks without listening to the answers is not worth a queue.
                if self.queue.iter().filter(|action| is_answer(action)).count() >= MAX_UNANSWERED {
                    return Err(ProtocolError::misbehaved("it asks without taking the answers"));
                }
                self.queue.push_back(MasterAction::Answer(request));
            }
            (Message::Hello(hello), State::AwaitHello { .. }) => self.decide(hello),
            (Message::Compare(compare), State::Streaming(stream)) if stream.compares => stream.ask(compare)?,
            (Message::Probe(probe), State::Streaming(stream)) => {
                if stream.probe.is_some() || probe.range.is_empty() {
                    return Err(ProtocolError::misbehaved(
                        "it probes an empty range, or without waiting for the answer",
                    ));
                }
                stream.probe = Some(probe);
            }
            (Message::Ack(Ack { applied, durable, consistent }), State::Streaming(stream))
            | (Message::Heartbeat(Heartbeat::Follower { applied, durable, consistent }), State::Streaming(stream)) => {
                if applied > stream.sent.seq || durable > applied {
                    return Err(ProtocolError::misbehaved("it acknowledged what was never sent"));
                }
                // The latest counts. While nothing can be sent nothing is polled, and acks must not pile up.
                self.queue.retain(|action| !matches!(action, MasterAction::Progress(_)));
                self.queue.push_back(MasterAction::Progress(Progress { applied, durable, consistent }));
            }
            // A sign of life. What it has lies beyond what this relay can judge.
            (Message::Heartbeat(Heartbeat::Follower { .. }), state) if state.waits() => {}
            (message, _) => {
                return Err(ProtocolError::misbehaved(format!("{} has no place here", message.name())));
            }
        }
        Ok(())
    }

    /// The master's positions have changed.
    pub fn handle_view(&mut self, view: View) {
        self.view = view;
    }

    /// Where the positions asked for lie, in the order of the question.
    pub fn handle_located(&mut self, located: &[Located]) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Locating(applicant) => self.decide_by_history(applicant, located),
            State::Recognising(applicant) => self.decide_by_checkpoints(applicant, located),
            State::Parting(applicant, refusal) => {
                let shared = |(_, place): &(_, &Located)| matches!(place, Located::Shared | Located::Held { .. });
                let ancestor = applicant.hello.checkpoints.iter().zip(located).rfind(shared).map(|(at, _)| *at);
                self.replace(applicant, refusal, ancestor);
            }
            State::Streaming(mut stream) => {
                if let Pending::Verifying(reading) = std::mem::replace(&mut stream.pending, Pending::Nothing) {
                    let held = |place: &Located| matches!(place, Located::Held { .. } | Located::Shared);
                    if located.iter().all(held) || planted::is(Bug::UnverifiedPage) {
                        self.send(&mut stream, reading);
                    } else {
                        // A record that it may show was never published. What is there now is read instead.
                        self.read_again(&mut stream, &reading);
                    }
                }
                self.state = State::Streaming(stream);
            }
            other => self.state = other,
        }
    }

    /// How many bytes the data has; the limit of the question if it has more.
    pub fn handle_data_size(&mut self, bytes: u64) {
        match std::mem::replace(&mut self.state, State::Closed) {
            // What was written meanwhile makes no difference: more log, and about as much more data.
            State::Measuring(applicant, log) if bytes < log => self.start_copy(&applicant),
            State::Measuring(applicant, _) if self.view.floor.seq.as_u64() == 0 => self.start_at_floor(&applicant),
            State::Measuring(applicant, _) => self.start_copy(&applicant),
            State::Weighing(applicant, behind) if bytes < behind / 2 => self.start_compare(&applicant),
            State::Weighing(applicant, behind) => self.resume(&applicant, behind),
            State::Replacing(_, refusal, _) if bytes == 0 => {
                let words = format!(
                    "{}; and this master holds nothing at all: a slave is not emptied by a resync. If that is what is \
                     wanted, make the slave anew from an empty store",
                    refusal.words
                );
                self.refuse(Refusal { words, ..refusal });
            }
            State::Replacing(applicant, refusal, ancestor) => {
                let (from, reason) = (self.view.published, refusal.code);
                let coverage = Coverage::new(KeyRange::all(), Fill::Compare);
                self.start(&applicant, Mode::Resync { from, reason, ancestor }, 0, from, coverage);
            }
            other => self.state = other,
        }
    }

    /// What the log answered.
    pub fn handle_records(&mut self, answer: LogAnswer) {
        let State::Streaming(stream) = &mut self.state else { return };
        match stream.pending {
            Pending::Records => stream.pending = Pending::Nothing,
            Pending::Unpublished(_) if planted::is(Bug::RecordsWhilePageWaits) => {}
            _ => return,
        }
        match answer {
            LogAnswer::Records { parts, last } => {
                stream.sent = last;
                self.queue.push_back(MasterAction::Send(Message::Records(Records { parts })));
            }
            LogAnswer::Compacted(stretch) => stream.stretch = Some(stretch),
            // The slave comes back, and is told then what is to be done.
            LogAnswer::Trimmed => self.shut(GoodbyeReason::Trimmed, "the log was trimmed past this slave"),
        }
    }

    /// Keys were looked up: the values of the first of them, `None` for those that are not there, and what had been
    /// handed to the store when the last lookup ended.
    pub fn handle_values(&mut self, values: &[Option<Bytes>], read_at: Position) {
        let State::Streaming(stream) = &mut self.state else { return };
        if !matches!(stream.pending, Pending::Values) {
            return;
        }
        stream.pending = Pending::Nothing;
        if let Some(stretch) = &stream.stretch {
            let (touched, taken) = touched(stretch, values, read_at);
            stream.pending = Pending::Unpublished(Reading::Touched(touched, taken));
        }
    }

    /// A page was read: what it covers, its entries, and what had been handed to the store when the read ended.
    pub fn handle_page(&mut self, content: Content) {
        let State::Streaming(stream) = &mut self.state else { return };
        match std::mem::replace(&mut stream.pending, Pending::Nothing) {
            Pending::Page => stream.pending = Pending::Unpublished(Reading::Page(content)),
            Pending::Examining(mut examination) => {
                examination.push_page(&content);
                stream.pending = match examination.next_read() {
                    Some((range, max_bytes)) => {
                        self.queue.push_back(MasterAction::ReadPage { range, max_bytes });
                        Pending::Examining(examination)
                    }
                    None => Pending::Unpublished(Reading::Answer(Box::new(examination.into_answer()))),
                };
            }
            Pending::Probing => {
                if let Some(probe) = &stream.probe {
                    let Content { range, read_at, entries } = content;
                    let bytes = entries.byte_len();
                    let probed = Box::new(Probed::new(probe, range, read_at, entries));
                    stream.pending = Pending::Unpublished(Reading::Probed(probed, bytes));
                }
            }
            other => stream.pending = other,
        }
    }

    /// Time has passed.
    ///
    /// # Errors
    /// [`ProtocolError::Silent`] if the peer was not heard of for too long.
    pub fn handle_timeout(&mut self, now: Now) -> Result<(), ProtocolError> {
        self.now = now.monotonic;
        match &self.state {
            State::AwaitHello { deadline } if now.monotonic >= *deadline => {
                let seconds = self.config.handshake_timeout.as_secs();
                self.state = State::Closed;
                return Err(ProtocolError::Silent { seconds });
            }
            state if state.is_welcomed() && now.monotonic >= self.heard.saturating_add(self.silence()) => {
                self.state = State::Closed;
                return Err(ProtocolError::Silent { seconds: self.silence().as_secs() });
            }
            state if state.is_welcomed() && now.monotonic >= self.next_heartbeat => {
                self.next_heartbeat = now.monotonic.saturating_add(self.config.heartbeat);
                let (head, log_bytes) = (self.view.published, self.view.log_bytes);
                let beat = Message::Heartbeat(Heartbeat::Source { head, log_bytes, time: now.unix_ms });
                // A connection that does not drain gets one heartbeat, not a queue of them.
                let waiting = |action: &MasterAction| matches!(action, MasterAction::Send(Message::Heartbeat(_)));
                if !self.queue.iter().any(waiting) {
                    self.queue.push_back(MasterAction::Send(beat));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        match &self.state {
            State::AwaitHello { deadline } => Some(*deadline),
            state if state.is_welcomed() => {
                let contact = self.next_heartbeat.min(self.heard.saturating_add(self.silence()));
                let waits = matches!(state, State::Streaming(stream) if stream.wants_answers());
                let budget = Some(self.compare_from).filter(|from| waits && *from > self.now);
                Some(budget.map_or(contact, |budget| contact.min(budget)))
            }
            _ => None,
        }
    }

    /// What to do next, if anything. An action that asks a question must be answered before the next one is polled.
    pub fn poll_action(&mut self) -> Option<MasterAction> {
        if self.queue.is_empty() {
            // Taken out, so that it and the queue can be changed together; nothing on the way can end the session.
            match std::mem::replace(&mut self.state, State::Closed) {
                State::Streaming(mut stream) => {
                    self.advance(&mut stream);
                    self.state = State::Streaming(stream);
                }
                State::Waiting(applicant, judged_at) if judged_at != self.view.published => self.locate(applicant),
                other => self.state = other,
            }
        }
        self.queue.pop_front()
    }

    /// True if [`poll_action`](Self::poll_action) has something queued already, or a question to deal with.
    pub fn has_action(&self) -> bool {
        let asked = |stream: &Stream| matches!(stream.pending, Pending::Nothing) && self.answers(stream);
        !self.queue.is_empty() || matches!(&self.state, State::Streaming(stream) if asked(stream))
    }

    // There is a question, and budget for it.
    fn answers(&self, stream: &Stream) -> bool {
        stream.wants_answers() && self.compare_from <= self.now
    }

    /// Answers a question.
    pub fn respond(&mut self, response: Response) {
        self.queue.push_back(MasterAction::Send(Message::Response(response)));
    }

    /// Ends the session in order: the peer is told why.
    pub fn shut(&mut self, reason: GoodbyeReason, words: &str) {
        if !matches!(self.state, State::Closed) {
            let goodbye = Goodbye { reason, words: words.into() };
            self.queue.push_back(MasterAction::Send(Message::Goodbye(goodbye)));
            self.close(None);
        }
    }

    /// Refuses the slave: it is told why, and nothing else follows.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.queue.push_back(MasterAction::Send(Message::Reject(refusal.clone().into())));
        self.close(Some(refusal));
    }

    fn close(&mut self, refusal: Option<Refusal>) {
        self.state = State::Closed;
        self.queue.push_back(MasterAction::Close(refusal));
    }

    fn silence(&self) -> Duration {
        self.config.heartbeat.saturating_mul(4)
    }

    fn decide(&mut self, hello: Hello) {
        let name = &hello.slave;
        if name.is_empty() || name.len() > MAX_NAME_LEN || name.chars().any(char::is_control) {
            let words = format!("the slave's name must have 1 to {MAX_NAME_LEN} bytes and no control characters");
            return self.refuse(Refusal::new(RejectCode::Malformed, words));
        }
        if hello.checkpoints.len() > MAX_CHECKPOINTS {
            let words = format!("the slave names {} checkpoints: at most {MAX_CHECKPOINTS}", hello.checkpoints.len());
            return self.refuse(Refusal::new(RejectCode::Malformed, words));
        }
        if !hello.limits.holds(&self.config.limits) {
            let (theirs, ours) = (hello.limits, self.config.limits);
            let words = format!(
                "the slave's store holds keys of {} bytes, values of {} and batches of {}; this master accepts {}, {} \
                 and {}: lower the master's limits, or choose another store for the slave",
                theirs.max_key, theirs.max_value, theirs.max_batch, ours.max_key, ours.max_value, ours.max_batch
            );
            return self.refuse(Refusal::new(RejectCode::LimitsTooSmall, words));
        }
        if !hello.ranges.is_empty() {
            let words = "this master serves whole stores, not key ranges";
            return self.refuse(Refusal::new(RejectCode::Unsupported, words));
        }
        let Some(cursor) = &hello.cursor else { return self.decide_without_cursor(hello) };
        if cursor.position.source != self.config.source {
            let words = format!(
                "the slave follows source {}, this master is source {}: point it at its own master, or empty its store",
                cursor.position.source, self.config.source
            );
            let refusal = Refusal::new(RejectCode::ForeignSource, words);
            return self.part(Box::new(Applicant { hello, waits: false }), refusal);
        }
        self.locate(Box::new(Applicant { hello, waits: false }));
    }

    // Everything that the cursor stands on must be in the history: its position, and where its content was read.
    fn locate(&mut self, applicant: Box<Applicant>) {
        if let Some(cursor) = &applicant.hello.cursor {
            let positions = [Some(cursor.position), cursor.coverage.read_at()];
            self.queue.push_back(MasterAction::Locate(positions.into_iter().flatten().collect()));
        }
        self.state = State::Locating(applicant);
    }

    fn decide_without_cursor(&mut self, hello: Hello) {
        // Below this much log, looking at the data costs more than it can save.
        const CHEAP: u64 = 1 << 20;
        if hello.holds_data {
            let words =
                "the slave's store holds data that came from no master: it is not overwritten; use an empty one";
            self.refuse(Refusal::new(RejectCode::DataWithoutCursor, words));
            return;
        }
        let applicant = Box::new(Applicant { hello, waits: false });
        if self.view.floor.seq.as_u64() > 0 {
            self.start_copy(&applicant);
        } else if self.view.retained_bytes <= CHEAP {
            self.start_at_floor(&applicant);
        } else {
            self.queue.push_back(MasterAction::MeasureData { at_most: self.view.retained_bytes });
            self.state = State::Measuring(applicant, self.view.retained_bytes);
        }
    }

    fn decide_by_history(&mut self, applicant: Box<Applicant>, located: &[Located]) {
        let Some(Cursor { position, coverage }) = &applicant.hello.cursor else { return };
        if located.contains(&Located::Mismatch) {
            let refusal = diverged(*position);
            self.part(applicant, refusal);
        } else if located.contains(&Located::Ahead) && self.config.relay {
            self.wait(*applicant);
        } else if located.contains(&Located::Ahead) {
            let words = format!(
                "the slave stands at {position}, this master's history ends at seq {}: the master lost batches, or is \
                 not the one the slave followed; let the slave resync, or copy it anew from an empty store",
                self.view.published.seq
            );
            self.part(applicant, Refusal::new(RejectCode::SlaveAhead, words));
        } else if let Some(log_bytes) = held(located) {
            let behind = self.view.log_bytes.saturating_sub(log_bytes);
            if behind >= LONG && coverage.is_complete() {
                // A slave that compares leaves its batch boundary for a while: it must be worth that.
                self.queue.push_back(MasterAction::MeasureData { at_most: behind / 2 });
                self.state = State::Weighing(applicant, behind);
            } else {
                self.resume(&applicant, behind);
            }
        } else if !coverage.is_complete() || located.first() == Some(&Located::Shared) {
            // What was never finished is no state that anybody relies on: whatever differs may go.
            self.start_compare(&applicant);
        } else {
            self.queue.push_back(MasterAction::Locate(applicant.hello.checkpoints.clone()));
            self.state = State::Recognising(applicant);
        }
    }

    // The position itself is too old to tell. A point that both passed through shows that it is the same history.
    fn decide_by_checkpoints(&mut self, applicant: Box<Applicant>, located: &[Located]) {
        let Some(Cursor { position, .. }) = applicant.hello.cursor else { return };
        let shared = |place: &Located| matches!(place, Located::Shared | Located::Held { .. });
        // A nonce is drawn with each epoch: whoever was in it has its first record.
        let began_there =
            |start: &EpochStart| start.epoch == position.epoch && position.seq.since(start.first) < Checkpoint::EVERY;
        if located.iter().any(|place| matches!(place, Located::Mismatch | Located::Ahead)) {
            self.part(applicant, diverged(position));
        } else if located.iter().any(shared) || self.epochs.iter().any(began_there) {
            self.start_compare(&applicant);
        } else {
            let words = format!(
                "the slave stands at seq {}, the log begins after seq {}, and nothing shows any more that they have a \
                 history in common; copy the slave anew from an empty store",
                position.seq, self.view.floor.seq
            );
            self.part(applicant, Refusal::new(RejectCode::NeedsCompare, words));
        }
    }

    // It is not of this history. Its owner has said what becomes of it.
    fn part(&mut self, applicant: Box<Applicant>, refusal: Refusal) {
        if !applicant.hello.on_divergence.resyncs(refusal.code) {
            self.refuse(refusal);
        } else if refusal.code == RejectCode::ForeignSource || applicant.hello.checkpoints.is_empty() {
            self.replace(applicant, refusal, None);
        } else {
            self.queue.push_back(MasterAction::Locate(applicant.hello.checkpoints.clone()));
            self.state = State::Parting(applicant, refusal);
        }
    }

    // An empty master is more likely a mistake than what a full slave should become.
    fn replace(&mut self, applicant: Box<Applicant>, refusal: Refusal, ancestor: Option<Position>) {
        self.queue.push_back(MasterAction::MeasureData { at_most: 1 });
        self.state = State::Replacing(applicant, refusal, ancestor);
    }

    fn resume(&mut self, applicant: &Applicant, behind: u64) {
        if let Some(Cursor { position, coverage }) = applicant.hello.cursor.clone() {
            self.start(applicant, Mode::Resume, behind, position, coverage);
        }
    }

    fn start_compare(&mut self, applicant: &Applicant) {
        let from = self.view.published;
        self.start(applicant, Mode::Compare { from }, 0, from, Coverage::new(KeyRange::all(), Fill::Compare));
    }

    fn start_copy(&mut self, applicant: &Applicant) {
        let from = self.view.published;
        // What was published before is in the pages, and is no record that the slave still has to go through.
        self.start(applicant, Mode::Copy { from }, 0, from, Coverage::begin(KeyRange::all()));
    }

    fn start_at_floor(&mut self, applicant: &Applicant) {
        self.start(applicant, Mode::Resume, self.view.retained_bytes, self.view.floor, Coverage::default());
    }

    fn start(&mut self, applicant: &Applicant, mode: Mode, behind_bytes: u64, from: Position, coverage: Coverage) {
        self.welcome(applicant, mode, behind_bytes, from);
        let compares = coverage.fill() == Some(Fill::Compare);
        self.state = State::Streaming(Box::new(Stream {
            sent: from,
            copy: if compares { Coverage::default() } else { coverage },
            compares,
            asked: VecDeque::new(),
            probe: None,
            stretch: None,
            pending: Pending::Nothing,
            records_next: false,
        }));
    }

    // The slave may be right, and this relay behind: that is known once the relay has come as far as the slave.
    fn wait(&mut self, applicant: Applicant) {
        if !applicant.waits {
            self.welcome(&applicant, Mode::Wait, 0, self.view.published);
        }
        let applicant = Box::new(Applicant { waits: true, ..applicant });
        self.state = State::Waiting(applicant, self.view.published);
    }

    fn welcome(&mut self, Applicant { hello, waits }: &Applicant, mode: Mode, behind_bytes: u64, from: Position) {
        let checkpoints = match mode {
            Mode::Copy { from } | Mode::Compare { from } | Mode::Resync { from, .. } => {
                let until = |checkpoint: &&Position| checkpoint.seq <= from.seq;
                self.config.checkpoints.iter().filter(until).copied().collect()
            }
            Mode::Resume | Mode::Wait => Vec::new(),
        };
        let welcome = Welcome {
            source: self.config.source,
            epochs: self.epochs.clone(),
            head: self.view.published,
            floor: self.view.floor,
            limits: self.config.limits,
            mode,
            heartbeat_ms: u32::try_from(self.config.heartbeat.as_millis()).unwrap_or(u32::MAX),
            log_bytes: self.view.log_bytes,
            behind_bytes,
            checkpoints,
            verifies: true,
        };
        if !waits {
            let Hello { slave, nonce, temporary, .. } = hello;
            let (slave, nonce, temporary) = (slave.clone(), *nonce, *temporary);
            self.queue.push_back(MasterAction::Joined { slave, nonce, start: from.seq, temporary });
        }
        if mode != Mode::Wait && hello.cursor.as_ref().is_some_and(|cursor| cursor.position == from) {
            self.queue.push_back(MasterAction::Verified(from));
        }
        self.queue.push_back(MasterAction::Send(Message::Welcome(welcome)));
    }

    fn advance(&mut self, stream: &mut Stream) {
        match std::mem::replace(&mut stream.pending, Pending::Nothing) {
            Pending::Nothing => {
                let behind = stream.sent.seq < self.view.published.seq;
                let content = stream.copy.rest().is_some() || self.answers(stream);
                if content && !(behind && stream.records_next) {
                    self.read(stream);
                } else if behind && stream.stretch.is_some() {
                    stream.records_next = false;
                    self.look_up(stream);
                } else if behind {
                    stream.records_next = false;
                    stream.pending = Pending::Records;
                    let (after, max_bytes) = (stream.sent, self.config.chunk);
                    self.queue.push_back(MasterAction::ReadRecords { after, max_bytes });
                }
            }
            Pending::Unpublished(reading) => match reading.read_at() {
                // A commit that it may show has failed.
                Some(read_at) if self.view.handed.seq < read_at.seq => self.read_again(stream, &reading),
                Some(_) if planted::is(Bug::PageBeforePublished) => self.send(stream, reading),
                Some(read_at) if self.view.published.seq < read_at.seq => {
                    if planted::is(Bug::RecordsWhilePageWaits) && stream.sent.seq < self.view.published.seq {
                        let (after, max_bytes) = (stream.sent, self.config.chunk);
                        self.queue.push_back(MasterAction::ReadRecords { after, max_bytes });
                    }
                    stream.pending = Pending::Unpublished(reading);
                }
                Some(_) if reading.reads() == [self.view.published] => self.send(stream, reading),
                Some(_) => {
                    self.queue.push_back(MasterAction::Locate(reading.reads().to_vec()));
                    stream.pending = Pending::Verifying(reading);
                }
                None => {}
            },
            waiting => stream.pending = waiting,
        }
    }

    // A page of the copy, or pages for an answer. Which of both there is does not change within a connection.
    fn read(&mut self, stream: &mut Stream) {
        stream.records_next = true;
        if let Some(range) = stream.copy.rest() {
            stream.pending = Pending::Page;
            self.queue.push_back(MasterAction::ReadPage { range, max_bytes: self.config.chunk });
        } else if let Some(probe) = stream.probe.as_ref().filter(|_| stream.asked.is_empty()) {
            let max_bytes = self.config.chunk.min(probe.max_bytes as usize);
            self.queue.push_back(MasterAction::ReadExactly { range: probe.range.clone(), max_bytes });
            stream.pending = Pending::Probing;
        } else {
            let asked = stream.asked.iter().take(MAX_EXAMINED).cloned().collect();
            let examination = Examination::new(asked, self.config.chunk);
            if let Some((range, max_bytes)) = examination.next_read() {
                self.queue.push_back(MasterAction::ReadPage { range, max_bytes });
                stream.pending = Pending::Examining(Box::new(examination));
            }
        }
    }

    fn look_up(&mut self, stream: &mut Stream) {
        let Some(stretch) = &stream.stretch else { return };
        stream.pending = Pending::Values;
        let keys = stretch.touched.iter().take(MAX_LOOKED_UP).cloned().collect();
        self.queue.push_back(MasterAction::LookUp { keys, max_bytes: self.config.chunk });
    }

    fn read_again(&mut self, stream: &mut Stream, reading: &Reading) {
        self.spend(reading);
        match reading {
            Reading::Touched(..) => self.look_up(stream),
            Reading::Page(_) | Reading::Answer(_) | Reading::Probed(..) => self.read(stream),
        }
    }

    fn send(&mut self, stream: &mut Stream, reading: Reading) {
        self.spend(&reading);
        match reading {
            Reading::Page(content) => {
                stream.copy.advance(&content.range, content.read_at);
                self.queue.push_back(MasterAction::Send(Message::Ranges(content)));
            }
            Reading::Answer(answer) => {
                stream.asked.drain(..answer.answered);
                if let Some((asked, begun)) = stream.asked.front_mut().zip(answer.begun.as_ref()) {
                    let range = &mut asked.summary.range;
                    *range = KeyRange::new(begun.clone(), range.end().cloned());
                    asked.begun = true;
                }
                self.queue.extend(answer.into_messages().into_iter().map(MasterAction::Send));
            }
            // Read after everything that was sent had been published: only a master that lost batches is back before it.
            Reading::Probed(probed, _) if probed.at.seq < stream.sent.seq => {
                stream.probe = None;
                self.queue.push_back(MasterAction::Send(Message::Goodbye(Goodbye {
                    reason: GoodbyeReason::Closing,
                    words: "the master has lost batches that this slave holds".into(),
                })));
                self.queue.push_back(MasterAction::Close(None));
            }
            Reading::Probed(probed, _) => {
                stream.probe = None;
                self.queue.push_back(MasterAction::Send(Message::Probed(*probed)));
            }
            Reading::Touched(touched, taken) => {
                if let Some(stretch) = &mut stream.stretch {
                    stretch.deleted.clear();
                    stretch.touched.drain(..taken.min(stretch.touched.len()));
                }
                if let Some(end) = touched.end {
                    stream.sent = end;
                    stream.stretch = None;
                }
                self.queue.push_back(MasterAction::Send(Message::Touched(touched)));
            }
        }
    }

    // What was read for an answer is paid for, whether it could be sent or not.
    fn spend(&mut self, reading: &Reading) {
        let bytes = match reading {
            Reading::Page(_) | Reading::Touched(..) => return,
            Reading::Answer(answer) => answer.bytes,
            Reading::Probed(_, bytes) => *bytes,
        };
        let Some(rate) = self.config.compare_bytes_per_second else { return };
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(rate.max(1));
        let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.compare_from = self.compare_from.max(self.now).saturating_add(pause);
    }
}

impl Stream {
    // What is read for these is paid for from one budget.
    fn wants_answers(&self) -> bool {
        !self.asked.is_empty() || self.probe.is_some()
    }

    fn ask(&mut self, compare: Compare) -> Result<(), ProtocolError> {
        let entries = compare.ranges.iter().fold(0, |sum: u64, asked| sum.saturating_add(asked.count));
        // A question may have one range too many for its bound.
        if self.asked.len() + compare.ranges.len() > MAX_ASKED || entries > 2 * MAX_ENTRIES {
            return Err(ProtocolError::misbehaved("it asks about more than one question may, or without listening"));
        }
        let held = self.asked.iter().map(|asked| &asked.summary).chain(&compare.ranges);
        if held.map(|summary| bound_len(&summary.range)).sum::<usize>() > MAX_ASKED_BYTES {
            return Err(ProtocolError::misbehaved(
                "the bounds of what it asks about are longer than those of any slave",
            ));
        }
        if compare.ranges.iter().any(|asked| asked.range.is_empty()) {
            return Err(ProtocolError::misbehaved("it asks about an empty range"));
        }
        self.asked.extend(compare.ranges.into_iter().map(|summary| Asked { summary, begun: false }));
        Ok(())
    }
}

impl Reading {
    /// The moments at which it was read.
    fn reads(&self) -> &[Position] {
        match self {
            Self::Page(content) => std::slice::from_ref(&content.read_at),
            Self::Answer(answer) => &answer.reads,
            Self::Probed(probed, _) => std::slice::from_ref(&probed.at),
            Self::Touched(touched, _) => std::slice::from_ref(&touched.read_at),
        }
    }

    fn read_at(&self) -> Option<Position> {
        match self {
            Self::Page(content) => Some(content.read_at),
            Self::Answer(answer) => answer.read_at(),
            Self::Probed(probed, _) => Some(probed.at),
            Self::Touched(touched, _) => Some(touched.read_at),
        }
    }
}

impl State {
    fn waits(&self) -> bool {
        matches!(self, Self::Waiting(..)) || matches!(self, Self::Locating(applicant) if applicant.waits)
    }

    // From its welcome on a slave is heard of, and hears of the master.
    fn is_welcomed(&self) -> bool {
        self.waits() || matches!(self, Self::Streaming(_))
    }
}

fn diverged(position: Position) -> Refusal {
    let words = format!(
        "the slave's history parted from this master's at or before {position}: they hold different batches there; let \
         it resync, or copy it anew from an empty store"
    );
    Refusal::new(RejectCode::Diverged, words)
}

// What the first keys of a stretch hold, and how many of them that is. Range deletes go first, and once.
fn touched(stretch: &Stretch, values: &[Option<Bytes>], read_at: Position) -> (Touched, usize) {
    let mut ops = BytesMut::new();
    for range in &stretch.deleted {
        Op::delete_range(range).encode_into(&mut ops);
    }
    for (key, value) in stretch.touched.iter().zip(values) {
        match value {
            Some(value) => Op::Put { key, value }.encode_into(&mut ops),
            None => Op::Delete { key }.encode_into(&mut ops),
        }
    }
    let taken = values.len().min(stretch.touched.len());
    let end = (taken == stretch.touched.len()).then_some(stretch.end);
    // Whole operations, with keys that were taken from such.
    let ops = EncodedOps::from_bytes(ops.freeze()).unwrap_or_default();
    (Touched { read_at, end, ops }, taken)
}

fn is_answer(action: &MasterAction) -> bool {
    matches!(action, MasterAction::Answer(_) | MasterAction::Send(Message::Response(_)))
}

// If all are held: how many bytes of records were published until the first one, the slave's own position.
fn held(located: &[Located]) -> Option<u64> {
    let bytes = |place: &Located| match place {
        Located::Held { log_bytes } => Some(*log_bytes),
        _ => None,
    };
    located.iter().map(bytes).collect::<Option<Vec<_>>>()?.first().copied()
}
