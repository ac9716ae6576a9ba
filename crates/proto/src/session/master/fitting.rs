//! What slaves of a master can take: nothing longer than its limits say.

use bytes::Bytes;

use super::{MasterSession, State};
use crate::{DecoderLimits, MasterAction, Message, Refusal, RejectCode};

/// More than the header of any message: two keys, and what is said of them.
const HEADER: usize = 256 << 10;

impl MasterSession {
    /// Puts a refusal in the place of what is to be sent next, if that is too long. A store may hold what its master would not
    /// accept any more: it was opened with larger limits once. A slave that was sent that would end the connection, and come
    /// back for it for ever.
    pub(super) fn fit(&mut self) {
        let Some(MasterAction::Send(message)) = self.queue.front() else { return };
        let len = message.data_len();
        if len.saturating_add(HEADER) > DecoderLimits::for_batches(self.config.limits.max_batch).data
            && !self.is_taken(message)
        {
            self.refuse_longer(len);
        }
    }

    /// Whether the slave's decoder takes it, to the byte.
    #[cold]
    fn is_taken(&self, message: &Message) -> bool {
        // One that subscribes to a part of the keys reckons with longer range deletes.
        let room = match &self.state {
            State::Streaming(stream) if stream.filter.is_some() => 2,
            _ => 1,
        };
        let max = DecoderLimits::for_batches(self.config.limits.max_batch.saturating_mul(room)).data;
        message.payload().is_ok_and(|parts| parts.iter().map(Bytes::len).sum::<usize>() <= max)
    }

    #[cold]
    fn refuse_longer(&mut self, len: usize) {
        let limits = self.config.limits;
        self.queue.clear();
        let words = format!(
            "the master's store holds an entry or a batch of about {len} bytes, and this master accepts batches of {} and values \
             of {} at most: open it with limits that are as large as they were",
            limits.max_batch, limits.max_value
        );
        self.refuse(Refusal::new(RejectCode::LimitsTooSmall, words));
    }
}
