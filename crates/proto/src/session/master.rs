//! The master's end: decides how a slave is served, then streams content and records to it.

mod deciding;
mod fitting;
mod probing;
mod streaming;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use replikv_core::{Coverage, Epoch, Fill, KeyRange, KeyRanges, Position, Seq, SourceId, StoreLimits};

use super::{Located, ProtocolError, Refusal};
use crate::filter::{self, Filter};
use crate::planted::{self, Bug};
use crate::reconcile::{Answer, Asked, Examination, MAX_BOUND_BYTES, MAX_PIECES, Probe, Probed};
use crate::{
    Above, Ack, Content, EpochStart, Goodbye, GoodbyeReason, Heartbeat, Hello, Message, Mode, Now, PathNode, Progress,
    Records, RejectCode, Request, Response, Skipped, Stretch, Touched,
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
    /// Of a relay, whose records come from elsewhere. A slave that is ahead of a relay waits until the relay has caught
    /// up; a slave that is ahead of a master is refused.
    pub relay: Option<Relay>,
}

/// What makes a session one of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// The relays from the one right below the master down to this one, which is the last.
    pub path: Vec<PathNode>,
    /// How long a slave that is ahead may wait. Then it is sent away, and may come again, here or elsewhere.
    pub wait: Duration,
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
        /// The slave subscribes to a part of the keys: records that do not concern it may be
        /// [`Passed`](LogAnswer::Passed).
        may_pass: bool,
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
    /// The slave is accepted, if only to wait. It may replace an older connection of the same name; or
    /// [`refuse`](MasterSession::refuse) it, where another slave has [taken](crate::Openings) its name.
    Joined {
        /// Its name.
        slave: String,
        /// Drawn by the slave when it was opened.
        nonce: u64,
        /// The stream of records begins after this one.
        start: Seq,
        /// True if nothing is to be kept for it once it is gone.
        temporary: bool,
        /// The keys that it subscribes to.
        ranges: KeyRanges,
    },
    /// The slave holds this position, and it was found in the history.
    Verified(Position),
    /// The history has gone on in this epoch, with another master: nothing more may be written here, ever.
    Superseded(Epoch),
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
    /// Nothing of the next records lies in the ranges that the slave subscribes to: runs of them, one after the other,
    /// each of which ends with a checkpoint or is the last.
    Passed(Vec<Skipped>),
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
    above: Option<Above>,
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
    /// The keys that it subscribes to.
    ranges: KeyRanges,
    /// Until when it may wait, once it was told to: it has its place among the slaves, and is heard of like all others.
    waits: Option<Duration>,
}

#[derive(Debug)]
struct Stream {
    /// What was read from the log. A slave with a filter may not have been told of the last of it.
    sent: Position,
    /// What the slave is sent, if it subscribes to a part of the keys.
    filter: Option<Filter>,
    /// The slave holds a state of the master: nothing is waiting for it to stand anywhere.
    settled: bool,
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
        let (queue, above) = (VecDeque::new(), None);
        let (now, compare_from) = (now.monotonic, Duration::ZERO);
        Self { config, view, epochs, state, queue, heard: now, next_heartbeat, above, now, compare_from }
    }

    /// What a relay knows of its master: heartbeats say so. The first one does at once.
    pub fn handle_above(&mut self, above: Above) {
        if self.above.replace(above).is_none() {
            self.next_heartbeat = self.next_heartbeat.min(self.now);
        }
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
            (Message::Probe(probe), State::Streaming(stream)) => stream.probe(probe)?,
            (Message::Ack(Ack { applied, durable, consistent }), State::Streaming(stream))
            | (Message::Heartbeat(Heartbeat::Follower { applied, durable, consistent }), State::Streaming(stream)) => {
                if applied > stream.sent.seq || durable > applied {
                    return Err(ProtocolError::misbehaved("it acknowledged what was never sent"));
                }
                stream.settled = consistent;
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
                let coverage = Coverage::within(&applicant.ranges, Fill::Compare);
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
            Pending::Unpublished(_) if planted::is(Bug::RecordsWhileLookedUp) => {}
            _ => return,
        }
        match &answer {
            LogAnswer::Records { last, .. } => stream.sent = *last,
            LogAnswer::Passed(runs) => stream.sent = runs.last().map_or(stream.sent, |last| last.through),
            LogAnswer::Compacted(_) | LogAnswer::Trimmed => {}
        }
        let Ok(answer) = filter::filtered(stream.filter.as_mut(), answer) else {
            // Never sent as it is.
            return self.shut(GoodbyeReason::Closing, "a record of the log cannot be filtered: it is damaged");
        };
        let Some(answer) = answer else {
            if !stream.waits_quietly() {
                stream.tell(&mut self.queue);
            }
            return;
        };
        match answer {
            LogAnswer::Records { parts, .. } => {
                self.queue.push_back(MasterAction::Send(Message::Records(Records { parts })));
            }
            LogAnswer::Compacted(stretch) => stream.stretch = Some(stretch),
            // All of it is in the filter.
            LogAnswer::Passed(_) => {}
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
        let Some(stretch) = &stream.stretch else { return };
        match streaming::touched(stretch, values, read_at) {
            Some((touched, taken)) => stream.pending = Pending::Unpublished(Reading::Touched(touched, taken)),
            // Never taken for keys that nobody touched.
            None => self.shut(GoodbyeReason::Closing, "what was touched cannot be told"),
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
                    stream.pending = Pending::Unpublished(probing::reading(probe, content));
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
            State::Waiting(applicant, _) if applicant.waits.is_some_and(|until| now.monotonic >= until) => {
                let words = format!(
                    "the slave is ahead of this relay, which stands at seq {} and has not come as far for as long as a \
                     slave may wait: let the relay catch up, or follow another node",
                    self.view.published.seq
                );
                self.refuse(Refusal { retry: true, ..Refusal::new(RejectCode::Busy, words) });
            }
            state if state.is_welcomed() && now.monotonic >= self.next_heartbeat => {
                self.next_heartbeat = now.monotonic.saturating_add(self.config.heartbeat);
                // Where nothing touches its ranges a slave is told how far it is, and no more often than this.
                if let State::Streaming(stream) = &mut self.state {
                    stream.tell(&mut self.queue);
                }
                let (head, log_bytes) = (self.view.published, self.view.log_bytes);
                let time = now.unix_ms;
                let beat = match self.above {
                    Some(above) => Heartbeat::Relay { head, log_bytes, time, above },
                    None => Heartbeat::Source { head, log_bytes, time },
                };
                // A connection that does not drain gets one heartbeat, not a queue of them.
                let waiting = |action: &MasterAction| matches!(action, MasterAction::Send(Message::Heartbeat(_)));
                if !self.queue.iter().any(waiting) {
                    self.queue.push_back(MasterAction::Send(Message::Heartbeat(beat)));
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
                let given_up = match state {
                    State::Waiting(applicant, _) => applicant.waits,
                    _ => None,
                };
                [Some(contact), budget, given_up].into_iter().flatten().min()
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
        self.fit();
        self.queue.pop_front()
    }

    /// True if [`poll_action`](Self::poll_action) has something queued already, or a question to deal with.
    pub fn has_action(&self) -> bool {
        let asked = |stream: &Stream| matches!(stream.pending, Pending::Nothing) && self.answers(stream);
        !self.queue.is_empty() || matches!(&self.state, State::Streaming(stream) if asked(stream))
    }

    /// True if the slave subscribes to a part of the keys, holds all that was published of it when the session last
    /// heard of that, and wants nothing. Such a session need not be told of a [`View`] before a record concerns its ranges
    /// or [`handle_timeout`](Self::handle_timeout) is due; then it is told first, and reads.
    pub fn is_quiet(&self) -> bool {
        let quiet = |stream: &Stream| {
            stream.filter.is_some()
                && stream.waits_quietly()
                && matches!(stream.pending, Pending::Nothing)
                && !stream.wants_answers()
                && stream.copy.rest().is_none()
                && stream.stretch.is_none()
                && stream.sent.seq >= self.view.published.seq
        };
        self.queue.is_empty() && matches!(&self.state, State::Streaming(stream) if quiet(stream))
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

    /// Refuses the slave: it is told why, and nothing else follows; not the welcome, if that was not polled yet.
    pub fn refuse(&mut self, refusal: Refusal) {
        let welcomes = |action: &MasterAction| {
            matches!(action, MasterAction::Send(Message::Welcome(_)) | MasterAction::Verified(_))
        };
        self.queue.retain(|action| !welcomes(action));
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
}

impl State {
    fn waits(&self) -> bool {
        matches!(self, Self::Waiting(..)) || matches!(self, Self::Locating(applicant) if applicant.waits.is_some())
    }

    // From its welcome on a slave is heard of, and hears of the master.
    fn is_welcomed(&self) -> bool {
        self.waits() || matches!(self, Self::Streaming(_))
    }
}

fn is_answer(action: &MasterAction) -> bool {
    matches!(action, MasterAction::Answer(_) | MasterAction::Send(Message::Response(_)))
}
