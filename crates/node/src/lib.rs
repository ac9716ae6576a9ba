//! What executes in replikv, on tokio: [`Master`], [`Slave`], their drivers and transports.
//!
//! Everything that is decided, is decided in `replikv-proto`; what stands here moves bytes, reads clocks, calls stores
//! and waits.

pub mod aggregate;
mod backup;
mod blocking;
mod centre;
mod changes;
mod clock;
mod derive;
mod error;
mod health;
mod master;
pub mod metrics;
mod reader;
mod reads;
mod slave;
mod stored;
mod transport;

pub(crate) use error::error_chain;

pub use aggregate::{Aggregate, AggregateError, Aggregated};
pub use backup::{BackedUp, BackupError, backup, mark_backup};
pub use blocking::{Blocking, BlockingChanges, BlockingEntries, BlockingError, BlockingMaster, BlockingSlave};
#[cfg(feature = "tcp")]
pub use blocking::{Following, Serving};
pub use centre::{Centre, LinkConfig, LinkError, LinkSeen, LinkStore, Unlinked, links};
pub use changes::{Change, ChangeOp, Changes, ChangesError, ChangesFrom, Consumer, ConsumerError};
pub use derive::{DerivedReader, DerivedStore, DerivedStoreBuilder, InData, InStore};
pub use error::OpenError;
pub use health::{Health, HealthState};
pub use master::{
    Commit, HandedOver, HandoverError, LogError, LogPart, Master, MasterConfig, MasterProgress, MasterStatus,
    Recording, Replicated, Sealed, ServeError, SlaveSeen, SlotSeen, Write, WriteError, read_log, read_log_parts,
    remote_status,
};
pub use reader::{Reader, ReaderStatus, Reading};
pub use reads::{BalanceConfig, BalancedReader, ReadError, ReadSession, ReaderShare, RemoteReader, RemoteReaderConfig};
pub use replikv_proto::{
    Change as DerivedChange, Compression, Derive, DeriveAbort, DeriveView, Derived, DifferenceKind, Displaced, Fence,
    FenceRefusal, FenceRequest, Fenced, Lag, OnDivergence, ReadAt, Resync, UnknownCompression, WaitFor,
};
#[cfg(feature = "tcp")]
pub use slave::promote_fenced_tcp;
pub use slave::{
    Difference, Ending, FenceConfig, FenceSeen, FencedPromoteError, FencedPromotion, FencedSlave, FollowError, KeepLog,
    PromoteError, Promoted, Quarantine, QuarantineFile, RelayStatus, Slave, SlaveConfig, SlaveProgress, SlaveState,
    SlaveStatus, TakeOverError, TookOver, UnfencedSlave, Verification, VerifyError, VerifyOptions, VerifyOutcome,
    VerifyReport, WaitError, fence, lift_fence, promote, promote_fenced, remote_fence, subscription,
};
pub use stored::role;
pub use transport::{Codec, ConnectionError};
