//! The introduction points of a service at which this node serves: its own here, those of silent
//! nodes in [`stand_in`]. A `plan` decides, a `task` carries out.

pub mod check;
mod circuit;
pub mod keeping;
pub mod plan;
pub mod stand_in;
pub mod task;
