//! A seeded simulation of whole clusters, for tests only (feature `sim`).
//!
//! A run is a discrete-event simulation of one cluster: machines, each with its disk, its clocks
//! and a real [`crate::coordinator::Coordinator`] in a thin shell; anti-entropy gossip between
//! random pairs over a network that delays, loses, duplicates, reorders and partitions; directories
//! that accept only rising revisions. In the chaos phase faults strike and only safety is checked
//! ([`Invariant`]). Then all faults end, and all nodes must agree within a stated time.
//!
//! A run is deterministic: one [`Scenario`] always gives the same run. [`sweep`] runs many and
//! prints how to replay a failure.
//!
//! This is a test harness: it panics where it cannot go on.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

pub use checks::longest_silence;
pub use fast::{Trouble, death_noticed, false_deaths};
pub use faults::{Bug, Scenario, Weights};
pub use founder::{FOUNDED, Founder, Identity, point, relay, served, sign};
pub use memo::Memo;
pub use monitor::{Invariant, Violation};
pub use replay::{Replay, replay};
pub use report::{Outcome, run, sweep};
pub use rng::Rng;
pub use script::Fault;
pub use services::{Services, services};
pub use takeover::{Death, Takeover, takeover};
pub use upgrade::{Records, Upgrade, upgrade};
pub use world::World;

mod chaos;
mod checks;
mod fast;
mod faults;
mod founder;
mod gossip;
mod host;
mod memo;
mod monitor;
mod net;
mod replay;
mod report;
mod rng;
mod script;
mod services;
mod shell;
mod shrink;
mod stopwatch;
mod takeover;
mod upgrade;
mod world;
