//! Chaos for a cluster: which faults happen when, clients that visit meanwhile, and a report of the
//! result.
//!
//! [`Driver`] decides from a seed which node, relay or authority fails next, and how. It takes the
//! time and observations as its input, and carries nothing out itself. [`Visitors`] are stock
//! clients that keep requesting the service; [`Ledger`] records what each of them got and finds
//! outages in it. [`Report`] presents the result to people and machines, and says which goals were
//! missed. The scenario that puts them together is `tests/network/chaos.rs`.

pub use driver::{Action, Driver, Event, Fault, Rules};
pub use ledger::{Cause, Ledger, Outage, Visit};
pub use report::{Bounds, ProcessRun, Report, Sample, Withdrawal};
pub use visitors::Visitors;

mod directories;
mod driver;
mod ledger;
mod report;
mod visitors;
