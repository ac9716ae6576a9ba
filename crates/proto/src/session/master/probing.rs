//! Probes: what a range holds at one point of the history.

use super::{MasterAction, MasterSession, Reading, Stream};
use crate::reconcile::{Probe, Probed};
use crate::session::ProtocolError;
use crate::{Content, Goodbye, GoodbyeReason, Message};

impl MasterSession {
    pub(super) fn send_probed(&mut self, stream: &mut Stream, probed: Probed) {
        stream.probe = None;
        // Read after everything that was sent had been published: only a master that lost batches is back before it.
        if probed.at.seq < stream.sent.seq {
            self.queue.push_back(MasterAction::Send(Message::Goodbye(Goodbye {
                reason: GoodbyeReason::Closing,
                words: "the master has lost batches that this slave holds".into(),
            })));
            self.queue.push_back(MasterAction::Close(None));
        } else {
            if let Some(filter) = &mut stream.filter {
                filter.stop_at(probed.at.seq);
            }
            self.queue.push_back(MasterAction::Send(Message::Probed(probed)));
        }
    }
}

impl Stream {
    pub(super) fn probe(&mut self, probe: Probe) -> Result<(), ProtocolError> {
        if self.probe.is_some() || probe.range.is_empty() {
            return Err(ProtocolError::misbehaved("it probes an empty range, or without waiting for the answer"));
        }
        if !self.may_read(&probe.range) {
            return Err(ProtocolError::misbehaved("it probes what it does not subscribe to"));
        }
        self.probe = Some(probe);
        Ok(())
    }

    // What is read for these is paid for from one budget.
    pub(super) fn wants_answers(&self) -> bool {
        !self.asked.is_empty() || self.probe.is_some()
    }
}

/// The answer to `probe`, and what was read for it.
pub(super) fn reading(probe: &Probe, content: Content) -> Reading {
    let Content { range, read_at, entries } = content;
    let bytes = entries.byte_len();
    Reading::Probed(Box::new(Probed::new(probe, range, read_at, entries)), bytes)
}
