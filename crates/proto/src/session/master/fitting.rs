//! What slaves of a master can take: nothing longer than its limits say.

use super::MasterSession;
use crate::{DecoderLimits, MasterAction, Refusal, RejectCode};

impl MasterSession {
    /// `action`, or a refusal in its place. A store may hold what its master would not accept any more: it was opened with
    /// larger limits once. A slave that was sent that would end the connection, and come back for it for ever.
    pub(super) fn fit(&mut self, action: MasterAction) -> Option<MasterAction> {
        let MasterAction::Send(message) = &action else { return Some(action) };
        let (len, limits) = (message.data_len(), self.config.limits);
        if len <= DecoderLimits::for_batches(limits.max_batch).data {
            return Some(action);
        }
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
