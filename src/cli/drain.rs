//! `rustbalance drain`: this node's introduction points leave the address, while clients that are there are served on.

use clap::Args;

use super::{Context, ask};
use crate::control::Request;

/// Takes this node's introduction points out of the address and hands on the right to publish.
/// Clients that are connected are served on. The node stays a member and drains until `rustbalance
/// resume`, also when it is restarted meanwhile.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {}

pub(super) async fn execute(context: &Context, _options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    ask::order(context, Request::Drain {}).await
}
