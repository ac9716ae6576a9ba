//! What decides in replikv, apart from what executes.
//!
//! Records and their chain of digests, frames and messages, the two ends of a session, the committer, the applier and
//! retention: all of it without I/O, clock, randomness, runtime or store. Whoever drives it, the tokio shell of
//! `replikv-node` or a simulator, hands in what happened and gets told what to do.

mod applier;
mod committer;
mod compaction;
pub mod layout;
mod reconcile;
mod record;
mod retention;
mod session;
mod slots;
mod time;
mod wire;

pub use applier::{Applier, Group, Progress};
pub use committer::{
    Abort, Answer, CommitGroup, Committer, CommitterConfig, Intent, LogEntry, LoneRecord, Step, TransactFn,
    TransactView, Work,
};
pub use compaction::{
    Compacted, Compaction, CompactionStep, Expiry, Folding, Indexed, LogParts, RUN_FORMAT, Run, RunError, RunPart,
    Stretch, TombstoneFloor, read_stretch,
};
pub use reconcile::{Compare, Compared, RangeSummary, Verdict};
pub use record::{PreparedRecord, RECORD_FORMAT, Record, RecordDraft, RecordError, RecordHeader, RecordKind, origin};
pub use retention::{Retention, Trim};
pub use session::{
    Located, LogAnswer, MasterAction, MasterSession, MasterSessionConfig, ProtocolError, Refusal, SlaveAction,
    SlaveSession, SlaveSessionConfig, SourceFacts, View,
};
pub use slots::{Slot, SlotKind, SlotLimits, SlotName, SlotState, SlotTime, SlotView, Slots};
pub use time::Now;
pub use wire::{
    Ack, Content, DecodeError, Decoder, DecoderLimits, EncodeError, Encoder, EpochStart, Event, FRAME_HEADER_LEN,
    Goodbye, GoodbyeReason, Heartbeat, Hello, MAX_FRAME_LEN, Message, Mode, PREAMBLE_LEN, Preamble, Records, Reject,
    RejectCode, Request, RequestBody, Response, Touched, VERSION, Welcome,
};
