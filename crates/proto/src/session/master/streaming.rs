//! What a slave is sent next: records, content and answers, never one past the other.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use replikv_core::{EncodedOps, KeyRange, Op, Position};

use super::{
    MAX_ASKED, MAX_ASKED_BYTES, MAX_EXAMINED, MAX_LOOKED_UP, MasterAction, MasterSession, Pending, Reading, Stream,
};
use crate::filter::Filter;
use crate::planted::{self, Bug};
use crate::reconcile::{Asked, Examination, MAX_ENTRIES, bound_len};
use crate::session::ProtocolError;
use crate::{Compare, Message, Stretch, Touched};

impl MasterSession {
    pub(super) fn advance(&mut self, stream: &mut Stream) {
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
                    let (after, max_bytes, may_pass) = (stream.sent, self.config.chunk, stream.may_pass_by());
                    self.queue.push_back(MasterAction::ReadRecords { after, max_bytes, may_pass });
                }
            }
            Pending::Unpublished(reading) => match reading.read_at() {
                // A commit that it may show has failed.
                Some(read_at) if self.view.handed.seq < read_at.seq => self.read_again(stream, &reading),
                Some(_) if planted::is(Bug::PageBeforePublished) => self.send(stream, reading),
                Some(read_at) if self.view.published.seq < read_at.seq => {
                    if planted::is(Bug::RecordsWhilePageWaits) && stream.sent.seq < self.view.published.seq {
                        let (after, max_bytes, may_pass) = (stream.sent, self.config.chunk, false);
                        self.queue.push_back(MasterAction::ReadRecords { after, max_bytes, may_pass });
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
    pub(super) fn read(&mut self, stream: &mut Stream) {
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

    pub(super) fn look_up(&mut self, stream: &mut Stream) {
        let Some(stretch) = &stream.stretch else { return };
        stream.pending = Pending::Values;
        let keys = stretch.touched.iter().take(MAX_LOOKED_UP).cloned().collect();
        self.queue.push_back(MasterAction::LookUp { keys, max_bytes: self.config.chunk });
        if planted::is(Bug::RecordsWhileLookedUp) && stretch.end.seq < self.view.published.seq {
            let (after, max_bytes, may_pass) = (stretch.end, self.config.chunk, false);
            self.queue.push_back(MasterAction::ReadRecords { after, max_bytes, may_pass });
        }
    }

    pub(super) fn read_again(&mut self, stream: &mut Stream, reading: &Reading) {
        self.spend(reading);
        match reading {
            Reading::Touched(..) => self.look_up(stream),
            Reading::Page(_) | Reading::Answer(_) | Reading::Probed(..) => self.read(stream),
        }
    }

    pub(super) fn send(&mut self, stream: &mut Stream, reading: Reading) {
        self.spend(&reading);
        // In the order in which it was read.
        stream.tell(&mut self.queue);
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
            Reading::Probed(probed, _) => self.send_probed(stream, *probed),
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
    pub(super) fn spend(&mut self, reading: &Reading) {
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
    /// Tells what was held back.
    pub(super) fn tell(&mut self, queue: &mut VecDeque<MasterAction>) {
        let filtered = self.filter.iter_mut().flat_map(Filter::take);
        queue.extend(filtered.map(|filtered| MasterAction::Send(Message::Filtered(filtered))));
    }

    // A slave that does not hold a state of the master may get what it needs for that from any record.
    fn may_pass_by(&self) -> bool {
        self.settled && self.filter.as_ref().is_some_and(|filter| filter.may_pass_by(self.sent.seq))
    }

    // Only a slave that holds a state of the master can wait until it hears that it is further.
    pub(super) fn waits_quietly(&self) -> bool {
        self.settled && self.filter.as_ref().is_none_or(|filter| !filter.is_urgent())
    }

    /// Whether the slave may be told of `range`.
    pub(super) fn may_read(&self, range: &KeyRange) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.allows(range))
    }

    pub(super) fn ask(&mut self, compare: Compare) -> Result<(), ProtocolError> {
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
        if !compare.ranges.iter().all(|asked| self.may_read(&asked.range)) {
            return Err(ProtocolError::misbehaved("it asks about what it does not subscribe to"));
        }
        self.asked.extend(compare.ranges.into_iter().map(|summary| Asked { summary, begun: false }));
        Ok(())
    }
}

impl Reading {
    /// The moments at which it was read.
    pub(super) fn reads(&self) -> &[Position] {
        match self {
            Self::Page(content) => std::slice::from_ref(&content.read_at),
            Self::Answer(answer) => &answer.reads,
            Self::Probed(probed, _) => std::slice::from_ref(&probed.at),
            Self::Touched(touched, _) => std::slice::from_ref(&touched.read_at),
        }
    }

    pub(super) fn read_at(&self) -> Option<Position> {
        match self {
            Self::Page(content) => Some(content.read_at),
            Self::Answer(answer) => answer.read_at(),
            Self::Probed(probed, _) => Some(probed.at),
            Self::Touched(touched, _) => Some(touched.read_at),
        }
    }
}

// What the first keys of a stretch hold, and how many of them that is. Range deletes go first, and once.
pub(super) fn touched(stretch: &Stretch, values: &[Option<Bytes>], read_at: Position) -> Option<(Touched, usize)> {
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
    let ops = EncodedOps::from_bytes(ops.freeze()).ok()?;
    Some((Touched { read_at, end, ops }, taken))
}
