//! `rustbalance evict`: ends the membership of a node that is lost or no longer trusted.

use clap::Args;

use super::{Context, ask};
use crate::control::{NodePrefix, Request};

#[derive(Args)]
pub(super) struct Options {
    /// The node's name or its address, or the beginning of it, as `rustbalance status` shows it
    node: NodePrefix,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    ask::request_action(context, Request::Evict { node: options.node }).await
}
