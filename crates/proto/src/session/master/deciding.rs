//! How a slave is served: by its position, by what its checkpoints show, or by what it costs.

use std::collections::VecDeque;

use replikv_core::{Coverage, Cursor, Fill, KeyRange, KeyRanges, Position, Seq};

use super::{Applicant, LONG, MasterAction, MasterSession, Pending, Relay, State, Stream};
use crate::filter::Filter;
use crate::layout::Checkpoint;
use crate::planted::{self, Bug};
use crate::session::{Located, MAX_CHECKPOINTS, MAX_NAME_LEN, MAX_PATH, Refusal};
use crate::{EpochStart, Hello, Message, Mode, RejectCode, Subscription, Welcome};

impl MasterSession {
    pub(super) fn decide(&mut self, hello: Hello) {
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
        let ranges = match subscribed(&hello) {
            Ok(ranges) => ranges,
            Err(words) => return self.refuse(Refusal::new(RejectCode::Malformed, words)),
        };
        if let Some(refusal) = self.config.relay.as_ref().and_then(|relay| follows_itself(relay, &hello)) {
            return self.refuse(refusal);
        }
        let Some(cursor) = &hello.cursor else { return self.decide_without_cursor(hello, ranges) };
        if cursor.position.source != self.config.source {
            let words = format!(
                "the slave follows source {}, this master is source {}: point it at its own master, or empty its store",
                cursor.position.source, self.config.source
            );
            let refusal = Refusal::new(RejectCode::ForeignSource, words);
            return self.part(Box::new(Applicant { hello, ranges, waits: None }), refusal);
        }
        let epoch = cursor.position.epoch;
        let own = self.epochs.last().map_or(epoch, |start| start.epoch);
        if epoch.number > own.number && self.config.relay.is_none() {
            let words = format!(
                "the slave has been in epoch {} of this history, and this master is of epoch {}: another one was \
                 promoted; follow that one",
                epoch.number, own.number
            );
            self.queue.push_back(MasterAction::Superseded(epoch));
            return self.refuse(Refusal::new(RejectCode::Superseded, words));
        }
        self.locate(Box::new(Applicant { hello, ranges, waits: None }));
    }

    // Everything that the cursor stands on must be in the history: its position, and where its content was read.
    pub(super) fn locate(&mut self, applicant: Box<Applicant>) {
        if let Some(cursor) = &applicant.hello.cursor {
            let positions = [Some(cursor.position), cursor.coverage.read_at()];
            self.queue.push_back(MasterAction::Locate(positions.into_iter().flatten().collect()));
        }
        self.state = State::Locating(applicant);
    }

    pub(super) fn decide_without_cursor(&mut self, hello: Hello, ranges: KeyRanges) {
        // Below this much log, looking at the data costs more than it can save.
        const CHEAP: u64 = 1 << 20;
        if hello.holds_data {
            let words =
                "the slave's store holds data that came from no master: it is not overwritten; use an empty one";
            self.refuse(Refusal::new(RejectCode::DataWithoutCursor, words));
            return;
        }
        let applicant = Box::new(Applicant { hello, ranges, waits: None });
        if self.view.floor.seq.as_u64() > 0 {
            self.start_copy(&applicant);
        } else if self.view.retained_bytes <= CHEAP {
            self.start_at_floor(&applicant);
        } else {
            self.queue.push_back(MasterAction::MeasureData { at_most: self.view.retained_bytes });
            self.state = State::Measuring(applicant, self.view.retained_bytes);
        }
    }

    pub(super) fn decide_by_history(&mut self, applicant: Box<Applicant>, located: &[Located]) {
        let Some(Cursor { position, coverage }) = &applicant.hello.cursor else { return };
        let own = self.epochs.last().map_or(position.epoch.number, |start| start.epoch.number);
        let stands_on = [Some(*position), coverage.read_at()];
        let mut places = stands_on.iter().flatten().zip(located);
        let parted = places.any(|(position, place)| match place {
            Located::Mismatch => true,
            Located::Ahead => self.has_left(position) && !planted::is(Bug::DeadBranchWaits),
            _ => false,
        });
        if parted && position.epoch.number > own {
            // As on a master of that epoch: what is newer is not overwritten, whatever the slave has asked for.
            let words = format!(
                "the slave has been in epoch {} of this history, and this relay follows epoch {own}, which went on beside \
                 it: another master was promoted; follow that one",
                position.epoch.number
            );
            self.refuse(Refusal::new(RejectCode::Superseded, words));
        } else if parted {
            let refusal = diverged(*position);
            self.part(applicant, refusal);
        } else if located.contains(&Located::Ahead) && self.config.relay.is_some() && !planted::is(Bug::NobodyWaits) {
            self.wait(applicant);
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
        } else if located.first() == Some(&Located::Shared) || (!coverage.is_complete() && applicant.ranges.is_all()) {
            // What was never finished is no state that anybody relies on: whatever differs may go.
            self.start_compare(&applicant);
        } else {
            // Of a slave of a part of the keys, what is not finished may be what it has just added to a state of its own.
            self.queue.push_back(MasterAction::Locate(applicant.hello.checkpoints.clone()));
            self.state = State::Recognising(applicant);
        }
    }

    // The position itself is too old to tell. A point that both passed through shows that it is the same history.
    pub(super) fn decide_by_checkpoints(&mut self, applicant: Box<Applicant>, located: &[Located]) {
        let Some(Cursor { position, coverage }) = &applicant.hello.cursor else { return };
        let (position, unfinished) = (*position, !coverage.is_complete());
        let shared = |place: &Located| matches!(place, Located::Shared | Located::Held { .. });
        // A nonce is drawn with each epoch: whoever was in it has its first record.
        let began_there =
            |start: &EpochStart| start.epoch == position.epoch && position.seq.since(start.first) < Checkpoint::EVERY;
        if located.iter().any(|place| matches!(place, Located::Mismatch | Located::Ahead)) {
            self.part(applicant, diverged(position));
        } else if located.iter().any(shared) || self.epochs.iter().any(began_there) || unfinished {
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
    pub(super) fn part(&mut self, applicant: Box<Applicant>, refusal: Refusal) {
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
    pub(super) fn replace(&mut self, applicant: Box<Applicant>, refusal: Refusal, ancestor: Option<Position>) {
        self.queue.push_back(MasterAction::MeasureData { at_most: 1 });
        self.state = State::Replacing(applicant, refusal, ancestor);
    }

    pub(super) fn resume(&mut self, applicant: &Applicant, behind: u64) {
        if let Some(Cursor { position, coverage }) = applicant.hello.cursor.clone() {
            self.start(applicant, Mode::Resume, behind, position, coverage);
        }
    }

    pub(super) fn start_compare(&mut self, applicant: &Applicant) {
        let from = self.view.published;
        self.start(applicant, Mode::Compare { from }, 0, from, Coverage::within(&applicant.ranges, Fill::Compare));
    }

    pub(super) fn start_copy(&mut self, applicant: &Applicant) {
        let from = self.view.published;
        // What was published before is in the pages, and is no record that the slave still has to go through.
        let coverage = match planted::is(Bug::FilterForgottenOnPages) {
            true => Coverage::begin(KeyRange::all()),
            false => Coverage::within(&applicant.ranges, Fill::Copy),
        };
        self.start(applicant, Mode::Copy { from }, 0, from, coverage);
    }

    pub(super) fn start_at_floor(&mut self, applicant: &Applicant) {
        self.start(applicant, Mode::Resume, self.view.retained_bytes, self.view.floor, Coverage::default());
    }

    pub(super) fn start(
        &mut self,
        applicant: &Applicant,
        mode: Mode,
        behind_bytes: u64,
        from: Position,
        coverage: Coverage,
    ) {
        self.welcome(applicant, mode, behind_bytes, from);
        let compares = coverage.fill() == Some(Fill::Compare);
        self.state = State::Streaming(Box::new(Stream {
            sent: from,
            filter: Filter::new(&applicant.ranges),
            settled: false,
            copy: if compares { Coverage::default() } else { coverage },
            compares,
            asked: VecDeque::new(),
            probe: None,
            stretch: None,
            pending: Pending::Nothing,
            records_next: false,
        }));
    }

    // Of a relay, of whoever is ahead of it: it has come to another epoch, and comes to no such position any more. A master
    // says that the slave is ahead.
    fn has_left(&self, position: &Position) -> bool {
        let (own, epoch) = (self.view.published, position.epoch);
        let elsewhere = own.seq > Seq::ZERO && own.epoch != epoch && own.epoch.number >= epoch.number;
        elsewhere && self.config.relay.is_some()
    }

    // The slave may be right, and this relay behind: that is known once the relay has come as far as the slave.
    pub(super) fn wait(&mut self, mut applicant: Box<Applicant>) {
        if applicant.waits.is_none() {
            self.welcome(&applicant, Mode::Wait, 0, self.view.published);
        }
        let patience = self.config.relay.as_ref().map(|relay| relay.wait).unwrap_or_default();
        applicant.waits = applicant.waits.or(Some(self.now.saturating_add(patience)));
        self.state = State::Waiting(applicant, self.view.published);
    }

    pub(super) fn welcome(
        &mut self,
        Applicant { hello, ranges, waits }: &Applicant,
        mode: Mode,
        behind_bytes: u64,
        from: Position,
    ) {
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
            path: self.config.relay.as_ref().map(|relay| relay.path.clone()).unwrap_or_default(),
        };
        if waits.is_none() {
            let Hello { slave, nonce, temporary, .. } = hello;
            let (slave, nonce, temporary, ranges) = (slave.clone(), *nonce, *temporary, ranges.clone());
            self.queue.push_back(MasterAction::Joined { slave, nonce, start: from.seq, temporary, ranges });
        }
        if mode != Mode::Wait && hello.cursor.as_ref().is_some_and(|cursor| cursor.position == from) {
            self.queue.push_back(MasterAction::Verified(from));
        }
        self.queue.push_back(MasterAction::Send(Message::Welcome(welcome)));
    }
}

// A circle: nobody in it would ever hear of a master again. Names may be used twice in a tree, nonces are not.
fn follows_itself(relay: &Relay, hello: &Hello) -> Option<Refusal> {
    let words = if relay.path.iter().any(|above| above.nonce == hello.nonce) && !planted::is(Bug::CircleUnnoticed) {
        let path: Vec<_> = relay.path.iter().map(|above| above.name.as_str()).collect();
        format!("the slave is above this relay, whose path is {}: they would go in a circle", path.join(", "))
    } else if relay.path.len() >= MAX_PATH {
        format!("there are {MAX_PATH} relays above the slave already, as many as there may be")
    } else {
        return None;
    };
    Some(Refusal::new(RejectCode::Loop, words))
}

// The keys that a slave wants. One in mid copy names what is missing: that must not be anything else.
fn subscribed(hello: &Hello) -> Result<KeyRanges, String> {
    if hello.ranges.is_empty() {
        return Ok(KeyRanges::all());
    }
    let ranges = KeyRanges::try_from(hello.ranges.clone()).map_err(str::to_owned)?;
    Subscription::check(&ranges).map_err(|error| error.to_string())?;
    let coverage = hello.cursor.as_ref().map(|cursor| &cursor.coverage);
    let mut missing = coverage.filter(|coverage| coverage.fill() == Some(Fill::Copy)).into_iter();
    if missing.any(|coverage| coverage.holes().any(|hole| !ranges.covers(&hole))) {
        return Err("the slave misses keys that it does not subscribe to".into());
    }
    Ok(ranges)
}

fn diverged(position: Position) -> Refusal {
    let words = format!(
        "the slave's history parted from this master's at or before {position}: they hold different batches there; let \
         it resync, or copy it anew from an empty store"
    );
    Refusal::new(RejectCode::Diverged, words)
}

// If all are held: how many bytes of records were published until the first one, the slave's own position.
fn held(located: &[Located]) -> Option<u64> {
    let bytes = |place: &Located| match place {
        Located::Held { log_bytes } => Some(*log_bytes),
        _ => None,
    };
    located.iter().map(bytes).collect::<Option<Vec<_>>>()?.first().copied()
}
