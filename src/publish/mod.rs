//! Keeps the merged descriptor on every responsible directory. `plan` decides, `task` carries out.

pub mod plan;
pub mod task;
