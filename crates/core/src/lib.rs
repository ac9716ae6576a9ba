//! The contract of replikv: what a store is, what is written to it, and where in a history it stands.
//!
//! A store is an ordered map of byte keys in three [`Keyspace`]s. [`ReplicaStore`] is the trait that a backend
//! implements; [`WriteSet`] is what it applies, atomically; [`Page`] is what a scan returns; [`StoreError`] says
//! what the caller can do. [`Position`] names a point of a master's history, [`Cursor`] the point a slave has
//! reached. [`Batch`] is what users write, [`Subspace`] and [`Table`] give structure to their keys.
//!
//! Nothing here does I/O, knows a runtime, or knows a protocol.

mod batch;
mod cursor;
mod error;
mod ext;
mod large;
mod limits;
pub mod meta;
mod op;
mod page;
mod placed;
mod position;
mod range;
mod ranges;
mod reader;
mod stats;
mod store;
mod subspace;
pub mod table;
mod write_set;

pub use batch::{Batch, Condition, MAX_NOTE_LEN};
pub use cursor::{Coverage, Cursor, Fill};
pub use error::{Outcome, StoreError};
pub use ext::ReplicaStoreExt;
pub use large::{LargePut, OpsPart, OwnedPart};
pub use limits::StoreLimits;
pub use op::{EncodedOps, MalformedOps, Op, Ops};
pub use page::{NoPage, Page, PageBuilder, Room, ScanOptions};
pub use placed::Placement;
pub use position::{Digest, Epoch, Fingerprint, InvalidLinkId, LinkId, Position, Seq, SourceId, Token};
pub use range::KeyRange;
pub use ranges::KeyRanges;
pub use reader::DataReader;
pub use stats::StoreStats;
pub use store::{Durability, Keyspace, ReplicaStore};
pub use subspace::Subspace;
pub use table::Table;
pub use write_set::{Chunk, Precondition, Resolved, WriteSet, WriteSetBuilder};
