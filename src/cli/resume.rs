//! `rustbalance resume`: undoes `drain`.

use clap::Args;

use super::{Context, ask};
use crate::control::Request;

/// Undoes `rustbalance drain`: this node offers its introduction points again.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {}

pub(super) async fn execute(context: &Context, _options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    ask::request_action(context, Request::Resume {}).await
}
