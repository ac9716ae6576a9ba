//! What executes in replikv, on tokio: [`Master`], [`Slave`], their drivers and transports.
//!
//! Everything that is decided, is decided in `replikv-proto`; what stands here moves bytes, reads clocks, calls stores
//! and waits.

mod changes;
mod clock;
mod error;
mod health;
mod master;
mod reader;
mod slave;
mod stored;
mod transport;

pub(crate) use error::error_chain;

pub use changes::{Change, ChangeOp, Changes, ChangesError, ChangesFrom};
pub use error::OpenError;
pub use health::{Health, HealthState};
pub use master::{
    BlockingError, BlockingMaster, Commit, LogError, Master, MasterConfig, MasterProgress, MasterStatus, Recording,
    Replicated, Sealed, ServeError, SlaveSeen, Write, WriteError, read_log, remote_status,
};
pub use reader::{Reader, ReaderStatus};
pub use slave::{
    Ending, FollowError, Lag, Slave, SlaveConfig, SlaveProgress, SlaveState, SlaveStatus, WaitError, WaitFor,
};
pub use stored::role;
pub use transport::{Codec, ConnectionError};
