//! `rustbalance acknowledge`: the operator knows to whom the key of the address was given, and has
//! acted on it.

use clap::Args;

use super::{Context, ask};
use crate::control::{InvitationPrefix, Request};

/// Ends the alarm of `rustbalance status` that more nodes have joined as publishers with one
/// invitation than it was made for, on this node and for the nodes that are named there now. Each
/// of them holds the address's key, expelled or not: if one is not yours, move to a new address
/// first.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {
    /// The invitation's id, or the beginning of it as `rustbalance status` shows it
    invitation: InvitationPrefix,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    ask::order(context, Request::Acknowledge { invitation: options.invitation }).await
}
