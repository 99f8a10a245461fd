//! Keeping the merged descriptor on every responsible directory. `plan` decides, `task` does.

pub mod plan;
pub mod task;
