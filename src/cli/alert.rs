//! `rustbalance alert`: tries out the way of alerts.

use clap::{Args, Subcommand};

use super::{Context, ask};
use crate::control::Request;

/// Tries out `[alerts]` of the configuration.
#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Have the running daemon send an alert of the event "test", and say what happened
    ///
    /// It is delivered on every way that is configured, at once and without a second attempt.
    /// Exit code 0 if all have taken it.
    Test,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    match options.action {
        Action::Test => ask::request_action(context, Request::TestAlert {}).await,
    }
}
