//! Serving at the introduction points of nodes that do not answer, for clients that still go by an old descriptor. Which
//! points fall to this node is `rustbalance_gossip::stand_in`'s to say; here they are opened, watched and given back.

pub mod plan;
pub mod task;
