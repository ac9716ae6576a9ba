//! Deriving beside the data: a store that keeps what follows from its entries where neither master nor slave looks.

mod build;
mod changed;
mod read;
mod store;

pub use self::read::{DerivedReader, InData, InStore};
pub use self::store::{DerivedStore, DerivedStoreBuilder};
pub(crate) use self::store::{MARKS, RESERVED};
