//! What nodes do, over stores with faults and connections in memory. One program, so that what they are made of is built
//! once; a file for each subject.

mod support;

mod backup;
#[cfg(feature = "tcp")]
mod blocking;
mod centre;
mod changes;
mod compaction;
mod compare;
#[cfg(all(feature = "lz4", feature = "zstd"))]
mod compression;
mod damage;
mod durability;
mod endings;
mod fence;
mod fenced_failovers;
mod fenced_promotion;
mod filters;
mod follow;
mod handover;
mod lag;
mod large_values;
mod max_lag;
mod names;
mod opening;
mod outcomes;
mod outpaced;
mod probe;
mod promotion;
mod reads;
mod relay;
mod resync;
mod retention;
mod slave;
mod slots;
mod small_stores;
mod takeover;
mod tampering;
mod torn_pages;
mod transact;
mod tree;
mod verify;
mod verify_background;
mod verify_exact;
mod waiting;
mod writes;
