//! A seeded, deterministic simulation of masters and slaves.
//!
//! What decides in replikv (sessions, committer, applier, retention, the codec) is run here as it ships. What executes is
//! replaced: drivers as in `replikv-node`, in the same order, but without tokio; a store that holds a visible and a
//! durable state; connections that are slow, cut, half open and damaged; one queue of events in virtual time. Nothing in
//! it depends on a thread, a clock, an address or an unseeded number: the same seed gives the same trace.
//!
//! A run has two phases. First everything goes wrong that the seed asks for, while an oracle checks after every event
//! what must hold. Then faults and writes end, and every slave must come to equal its master, or be refused for the
//! reason that its situation demands.
//!
//! ```
//! use replikv_testkit::sim::{Config, Simulation};
//! let report = Simulation::run(7, &Config::default().millis(300));
//! assert_eq!(report.violation, None);
//! ```

mod apply;
mod begin;
mod bug;
mod campaign;
mod centre;
mod compact;
mod config;
mod context;
mod coverage;
mod dynasty;
mod faults;
mod fencing;
mod handover;
mod link;
mod locate;
mod log;
mod master;
mod model;
mod oracle;
mod print;
mod promises;
mod relay;
mod report;
mod ring;
mod serving;
mod session;
mod shrink;
mod slave;
mod slots;
mod store;
mod succession;
mod topology;
mod tree;
mod trim;
mod verdict;
mod verify;
mod work;
mod world;

pub use bug::{Bug, DriverBug};
pub use campaign::{Campaign, Totals};
pub use config::Config;
pub use coverage::{Coverage, Fault, Scene};
pub use oracle::{Invariant, Violation};
pub use report::Report;
pub use shrink::shrink;
pub use topology::Topology;
pub use world::Simulation;
