//! Chaos for a cluster: what goes wrong when, who visits meanwhile, and what is made of it.
//!
//! [`Driver`] decides, from a seed, which node, relay or authority fails next, and how; it is given the time and what is
//! observed, and carries nothing out. [`Visitors`] are stock clients that ask for the service all the while; [`Ledger`]
//! keeps what each got, and finds outages in it. [`Report`] says what came of it, for people and machines, and which
//! goals were missed. The scenario that puts them together is `tests/network/chaos`.

pub use driver::{Action, Driver, Event, Fault, Rules};
pub use ledger::{Cause, Ledger, Outage, Visit};
pub use report::{Bounds, Departure, Life, Report, Sample};
pub use visitors::Visitors;

mod directories;
mod driver;
mod ledger;
mod report;
mod visitors;
