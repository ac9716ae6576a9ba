//! The wire. One program, so that what it is made of is built once; a file for each subject.

mod support;

mod codec;
#[cfg(all(feature = "lz4", feature = "zstd"))]
mod compression;
mod golden;
