//! What slaves of a master can take: nothing longer than its limits say.

use bytes::Bytes;

use super::{MasterSession, State};
use crate::{DecoderLimits, MasterAction, Message, Refusal, RejectCode};

/// More than the header of any message: two keys, and what is said of them.
const HEADER: usize = 256 << 10;

impl MasterSession {
    /// `action`, or a refusal in its place. A store may hold what its master would not accept any more: it was opened with
    /// larger limits once. A slave that was sent that would end the connection, and come back for it for ever.
    pub(super) fn fit(&mut self, action: MasterAction) -> Option<MasterAction> {
        let MasterAction::Send(message) = &action else { return Some(action) };
        let limits = self.config.limits;
        // As slaves set their decoders: one that subscribes to a part of the keys reckons with longer range deletes.
        let room = match &self.state {
            State::Streaming(stream) if stream.filter.is_some() => 2,
            _ => 1,
        };
        let max = DecoderLimits::for_batches(limits.max_batch.saturating_mul(room)).data;
        if message.data_len() + HEADER <= max || fits(message, max) {
            return Some(action);
        }
        let len = message.data_len();
        self.queue.clear();
        let words = format!(
            "the master's store holds an entry or a batch of about {len} bytes, and this master accepts batches of {} and values \
             of {} at most: open it with limits that are as large as they were",
            limits.max_batch, limits.max_value
        );
        self.refuse(Refusal::new(RejectCode::LimitsTooSmall, words));
        self.queue.pop_front()
    }
}

/// Whether a decoder takes it, to the byte.
fn fits(message: &Message, max: usize) -> bool {
    message.payload().is_ok_and(|parts| parts.iter().map(Bytes::len).sum::<usize>() <= max)
}
