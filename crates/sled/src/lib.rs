//! sled 0.34 as a replikv store.

mod blocking;
mod names;
mod store;

pub use store::{SledOptions, SledStore};
