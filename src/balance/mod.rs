//! The introduction points for the master address at which this node serves: its own here, those of silent nodes in
//! [`stand_in`]. A `plan` decides, a `task` does.

pub mod check;
mod circuit;
pub mod plan;
pub mod stand_in;
pub mod task;
