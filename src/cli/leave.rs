//! `rustbalance leave`: says goodbye to the others, so that they need not wait for its death; the daemon then stops.

use clap::Args;

use super::{Context, ask};
use crate::control::Request;

/// Says goodbye to the other nodes, takes this node's introduction points out of the address, and
/// stops the daemon. The node stays a member and comes back when it is run again (drained, if it
/// was); to put it out for good, run `rustbalance evict` with its address on a publisher.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {}

pub(super) async fn execute(context: &Context, _options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    ask::order(context, Request::Leave {}).await
}
