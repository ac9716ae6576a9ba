#![cfg_attr(all(feature = "lmdb", feature = "tcp"), doc = include_str!("../README.md"))]
//!
//! # In short
//!
//! Replication for embedded key-value stores.
//!
//! [`Master`] takes writes to a store and keeps a log of them in the same transactions; [`Slave`] follows a master, on
//! any byte stream, into a store of its own, of any kind. A store is whatever implements [`ReplicaStore`]: LMDB
//! (feature `lmdb`, default), sled (feature `sled`), memory, or your own.

#[cfg(feature = "lmdb")]
pub mod lmdb;
mod open;

pub use open::{OpenUrlError, open};
pub use replikv_blocking as blocking;
pub use replikv_core::meta;
pub use replikv_core::{
    Batch, Chunk, Condition, Coverage, Cursor, DataReader, Digest, Durability, EncodedOps, Epoch, Fill, Fingerprint,
    InvalidLinkId, KeyRange, KeyRanges, Keyspace, LinkId, Op, Outcome, Page, PageBuilder, Position, Precondition,
    ReplicaStore, ReplicaStoreExt, ScanOptions, Seq, SourceId, StoreError, StoreLimits, StoreStats, Subspace, Table,
    Token, WriteSet, table,
};
pub use replikv_memory::MemoryStore;
pub use replikv_node::*;
pub use replikv_proto as proto;
pub use replikv_proto::layout::Role;
pub use replikv_proto::{
    Abort, Compaction, InvalidSubscription, Record, RejectCode, Retention, Run, RunPart, TransactView,
};

#[cfg(feature = "fjall")]
pub use replikv_fjall::{FjallOptions, FjallStore};
#[cfg(feature = "lmdb")]
pub use replikv_lmdb::{LmdbOptions, LmdbOrder, LmdbStore, LmdbSync, heed};
#[cfg(feature = "redb")]
pub use replikv_redb::{RedbOptions, RedbStore};
#[cfg(feature = "sled")]
pub use replikv_sled::{SledOptions, SledStore, sled};
