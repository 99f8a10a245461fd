//! `rustbalance init`.
use clap::Args;

use super::Context;

#[derive(Args)]
pub(super) struct Options {}

pub(super) fn execute(_context: &Context, _options: Options) -> anyhow::Result<()> {
    anyhow::bail!("this build cannot make an address")
}
