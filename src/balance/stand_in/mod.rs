//! Serves at the introduction points of nodes that do not answer, for clients that still use an old
//! descriptor. `rustbalance_gossip::stand_in` decides which of these points are assigned to this
//! node; here they are opened, watched and given back.

pub mod plan;
pub mod task;
