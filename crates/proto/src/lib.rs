//! What decides in replikv, apart from what executes.
//!
//! Records and their chain of digests, frames and messages, the two ends of a session, the committer, the applier and
//! retention: all of it without I/O, clock, randomness, runtime or store. Whoever drives it, the tokio shell of
//! `replikv-node` or a simulator, hands in what happened and gets told what to do.

#[cfg(all(feature = "planted-bugs", not(debug_assertions)))]
compile_error!("`planted-bugs` loses data on purpose: it is for tests that are built with debug assertions");

mod applier;
mod claims;
mod committer;
mod compaction;
mod derive;
mod divergence;
mod fence;
mod filter;
mod key_head;
pub mod layout;
mod openings;
#[cfg(feature = "planted-bugs")]
#[doc(hidden)]
pub mod planted;
#[cfg(not(feature = "planted-bugs"))]
#[expect(dead_code, unreachable_pub, reason = "what is left of it without the feature is one constant")]
mod planted;
mod reconcile;
mod record;
mod retention;
mod session;
mod slots;
mod subscribers;
mod subscription;
mod succession;
mod time;
mod wire;

pub use applier::{Applier, Group, GroupLog, Progress};
pub use claims::{Claim, ClaimState, rival};
pub use committer::{
    Abort, Answer, CommitGroup, Committer, CommitterConfig, Gathered, Intent, LogEntry, LoneRecord, Step, TransactFn,
    TransactView, Work,
};
pub use compaction::{
    Compacted, Compaction, CompactionStep, Expiry, Folding, Indexed, LogParts, RUN_FORMAT, Run, RunError, RunPart,
    Stretch, TombstoneFloor, WholeRun, read_stretch,
};
pub use derive::{
    Change, Derive, DeriveAbort, DeriveMark, DeriveRun, DeriveState, DeriveView, Derived, Derives, Stopped, Wants,
    space_in,
};
pub use divergence::{Displaced, Displacing, OnDivergence, Resync};
pub use fence::{Against, Fence, FenceRefusal, FenceRequest, FenceTally, Fenced, Pledger};
pub use filter::Portion;
pub use openings::Openings;
pub use reconcile::{
    Checked, Compare, Compared, DifferenceKind, Differing, Held, Probe, ProbeCheck, Probed, RangeSummary, Summary,
    Verdict,
};
pub use record::{PreparedRecord, RECORD_FORMAT, Record, RecordDraft, RecordError, RecordHeader, RecordKind, origin};
pub use retention::{Retention, Trim};
pub use session::{
    Located, LogAnswer, MAX_PATH, MasterAction, MasterSession, MasterSessionConfig, ProtocolError, Refusal, Relay,
    SlaveAction, SlaveSession, SlaveSessionConfig, SourceFacts, View,
};
pub use slots::{Slot, SlotKind, SlotLimits, SlotName, SlotState, SlotTime, SlotView, Slots};
pub use subscribers::{SubscriberId, Subscribers};
pub use subscription::{InvalidSubscription, Resubscribing, Subscription};
pub use succession::{Candidate, Promotion, Unfit, epoch_after, next_epoch, step_down};
pub use time::Now;
pub use wire::{
    Above, Ack, Answered, AnsweredBody, Compression, Compressor, Content, DecodeError, Decoder, DecoderLimits,
    EncodeError, Encoder, EpochStart, Event, FRAME_HEADER_LEN, Filtered, Fragment, Goodbye, GoodbyeReason, Heartbeat,
    Hello, Lag, MAX_FRAME_LEN, Message, Mode, Outgoing, PREAMBLE_LEN, Packed, Passage, PathNode, Preamble, ReadAt,
    ReadFailure, Records, Reject, RejectCode, Request, RequestBody, Response, Share, Skipped, Touched,
    UnknownCompression, VERSION, WaitFor, Welcome,
};
