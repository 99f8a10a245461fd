//! `rustbalance leave`: says goodbye to the other nodes, so that they need not wait until this one
//! counts as silent, and stops the daemon.

use clap::Args;

use super::{Context, ask};
use crate::control::Request;

/// Says goodbye to the other nodes, withdraws this node's introduction points from the address, and
/// stops the daemon. The node stays a member, and comes back when it is started again (draining, if
/// it was draining). To end its membership, run `rustbalance evict` with its address on a
/// publisher.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {}

pub(super) async fn execute(context: &Context, _options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    ask::request_action(context, Request::Leave {}).await
}
