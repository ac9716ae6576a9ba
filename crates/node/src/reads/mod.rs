//! Reads over the network, and reads balanced over many readers.

mod ask;
mod balanced;
mod error;
mod remote;
pub(crate) mod serve;
mod session;

pub(crate) use self::ask::{ask, ask_for_json};
pub use self::balanced::{BalanceConfig, BalancedReader, ReaderShare};
pub use self::error::ReadError;
pub use self::remote::{RemoteReader, RemoteReaderConfig};
pub use self::session::ReadSession;
