//! Keeping this node's introduction points for the master address. `plan` decides, `task` does.

pub mod plan;
pub mod task;
