//! `rustbalance drain`: withdraws this node's introduction points from the address. Connected
//! clients are still served.

use clap::Args;

use super::{Context, ask};
use crate::control::Request;

/// Withdraws this node's introduction points from the address, and hands over the right to publish.
/// Connected clients are still served. The node stays a member, and takes no new clients until
/// `rustbalance resume`, even after a restart.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {}

pub(super) async fn execute(context: &Context, _options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    ask::request_action(context, Request::Drain {}).await
}
