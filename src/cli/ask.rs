//! Asking the daemon.

use std::time::Duration;

use anyhow::bail;

use super::Context;
use super::output::say;
use crate::control::{Request, Response, call};

/// For an answer the daemon has at hand.
pub(super) const SHORT: Duration = Duration::from_secs(15);
/// For what takes the daemon its time.
pub(super) const LONG: Duration = Duration::from_secs(130);

/// Asks; a refusal is an error in the daemon's words.
pub(super) async fn ask(context: &Context, request: Request, limit: Duration) -> anyhow::Result<Response> {
    match call(&context.dir, &request, limit).await? {
        Response::Refused { message } => bail!(message),
        response => Ok(response),
    }
}

/// Asks for something to be done, and prints what the daemon says of it.
pub(super) async fn order(context: &Context, request: Request) -> anyhow::Result<()> {
    match ask(context, request, LONG).await? {
        Response::Done { message } => Ok(say(message)?),
        _ => Err(unexpected()),
    }
}

/// The daemon answered something else than what it was asked.
pub(super) fn unexpected() -> anyhow::Error {
    anyhow::anyhow!("the daemon answered something else than it was asked: restart it, so that both are of one version")
}
