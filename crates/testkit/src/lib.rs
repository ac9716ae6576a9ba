//! Certifies stores of replikv, and breaks them on purpose.
//!
//! [`conformance_suite!`] expands to one `#[test]` for each law of the store contract. A store conforms if it passes
//! all of them: there is no way to leave one out. A store says only whether it outlives its process, since a store in
//! memory cannot be asked what a killed process left behind.
//!
//! ```ignore
//! fn open(dir: &std::path::Path) -> Result<std::sync::Arc<dyn ReplicaStore>, StoreError> {
//!     Ok(std::sync::Arc::new(MyStore::open(dir)?))
//! }
//! replikv_testkit::conformance_suite!(open, persistent);
//! ```
//!
//! [`FaultStore`] stands around any store and fails, hangs and loses as it is told.

mod bench;
mod faults;
pub mod laws;
pub mod sim;
mod suite;

pub use bench::{Bench, Open, run};
pub use faults::{ApplyFault, Calls, FaultStore, Faults, Held, Lost};
pub use suite::{Law, Needs, laws};
