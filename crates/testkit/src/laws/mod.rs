//! The laws, one function each, named as sentences.
//!
//! A law panics if it does not hold.

pub mod concurrency;
pub mod cursors;
pub mod entries;
pub mod fences;
pub mod kills;
pub mod life;
pub mod limits;
pub mod order;
pub mod pages;
pub mod persistence;
pub mod ranges;
