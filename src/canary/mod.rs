//! The canary: this node now and then uses its cluster's services as a client would, and has
//! repaired what it finds broken.
//!
//! A *run* asks directories for the descriptor of one service as clients ask, compares it with what
//! the publisher has announced, and connects through introduction points of that descriptor to a
//! port of the service. `plan` decides when to run, at which points, and what follows; `run` does
//! it through the [`Engine`](crate::tor::Engine); `task` connects the two. What the canary finds at
//! other nodes' points is only shown: those nodes have canaries of their own.

pub mod findings;
pub mod plan;
mod run;
pub mod task;
