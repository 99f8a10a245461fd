//! `rustbalance acknowledge`: the operator confirms an alarm that more nodes than planned hold the
//! key of the address.

use clap::Args;

use super::{Context, ask};
use crate::control::{InvitationPrefix, Request};

/// Ends an alarm in `rustbalance status`: more nodes have joined as publishers with one invitation
/// than it was made for. This ends it on this node only, and for the nodes that it names now. Each
/// of these nodes holds the address's key, even after an eviction: if one of them is not yours,
/// move to a new address first.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {
    /// The invitation's id, or the beginning of it as `rustbalance status` shows it
    invitation: InvitationPrefix,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    ask::request_action(context, Request::Acknowledge { invitation: options.invitation }).await
}
