//! Reads over the network, and reads balanced over many readers.

mod error;
mod remote;
pub(crate) mod serve;

pub use self::error::ReadError;
pub use self::remote::{RemoteReader, RemoteReaderConfig};
