//! The wire: a preamble, then frames, and the messages in them. docs/protocol.md draws every byte.

mod compare;
mod compression;
mod decoder;
mod encoder;
mod filtered;
mod frame;
mod message;
mod preamble;
mod reads;

pub use compression::{Compression, Compressor, UnknownCompression};
pub use decoder::{DecodeError, Decoder, DecoderLimits, Event};
pub use encoder::{EncodeError, Encoder, Fragment, Outgoing, Packed};
pub(crate) use filtered::LONG;
pub use filtered::{Filtered, Passage, Share, Skipped};
pub use frame::{FRAME_HEADER_LEN, MAX_FRAME_LEN};
pub use message::{
    Above, Ack, Content, EpochStart, Goodbye, GoodbyeReason, Heartbeat, Hello, Message, Mode, PathNode, Records,
    Reject, RejectCode, Request, Response, Touched, Welcome,
};
pub use preamble::{PREAMBLE_LEN, Preamble, VERSION};
pub use reads::{Answered, AnsweredBody, Lag, ReadAt, ReadFailure, RequestBody, WaitFor};
