//! Whole systems: every backend, over TCP, cut and damaged; and what documents and crates promise of themselves.
//! One program, so that what they are made of is built once; a file for each subject.

mod support;

mod architecture;
mod bit_flips;
#[cfg(all(feature = "lmdb", feature = "sled"))]
mod compaction;
#[cfg(all(feature = "fjall", feature = "lmdb", feature = "redb", feature = "sled", feature = "tcp"))]
mod cross_backend;
mod custom_store;
mod cuts;
mod docs;
#[cfg(all(feature = "lmdb", feature = "tcp"))]
mod existing_lmdb;
#[cfg(all(feature = "lmdb", feature = "sled", feature = "tcp"))]
mod existing_sled;
#[cfg(all(feature = "lmdb", feature = "sled"))]
mod filters;
#[cfg(all(feature = "lmdb", feature = "sled", feature = "tcp"))]
mod large;
mod logs;
#[cfg(all(feature = "lz4", feature = "metrics", feature = "zstd"))]
mod metrics;
#[cfg(all(feature = "fjall", feature = "lmdb", feature = "redb", feature = "sled"))]
mod migrate;
mod networked_store;
#[cfg(all(feature = "lmdb", feature = "sled"))]
mod recorder;
#[cfg(all(feature = "lmdb", feature = "tcp"))]
mod seed_faults;
#[cfg(all(feature = "lmdb", feature = "sled"))]
mod verify;
