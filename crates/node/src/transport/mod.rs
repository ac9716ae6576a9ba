//! From byte streams to messages and back.
//!
//! Any `AsyncRead + AsyncWrite` is a transport. [`Codec`] is the codec for those who bring a framed stream of their
//! own; [`Connection`] is what the drivers of master and slave use: one buffer in each direction, both bounded.

mod codec;
mod connection;
#[cfg(feature = "tcp")]
mod listen;
mod packing;

pub use codec::Codec;
pub use connection::ConnectionError;
pub(crate) use connection::{Connection, Driven};
#[cfg(feature = "tcp")]
pub(crate) use listen::accept_all;
pub(crate) use packing::{Packing, Piece, Volume};
