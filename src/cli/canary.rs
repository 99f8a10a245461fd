//! `rustbalance canary`: has the daemon use its addresses as a client would.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::ask::{LONG, ask, unexpected};
use super::canary_view::canary_view;
use super::output::{Paint, print_line};
use super::{Context, FAILED};
use crate::control::{CanaryRunStatus, Request, Response};

/// Has the running node use the cluster's addresses as a client would: it fetches the descriptor
/// from every directory that clients ask, and connects through each introduction point, those of
/// the other nodes too. What it finds broken of its own it repairs, as with its runs by itself. It
/// takes up to two minutes.
///
/// Exit codes: 0 everything was reached, 1 something was not, 3 no daemon runs.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// The output of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    well: bool,
    services: &'a [CanaryRunStatus],
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<ExitCode> {
    context.log_quietly()?;
    let Response::Canary { services } = ask(context, Request::Canary {}, LONG).await? else {
        return Err(unexpected());
    };
    // Without a service with introduction points no client is served.
    let well = !services.is_empty() && services.iter().all(|service| service.well);
    if options.json {
        print_line(serde_json::to_string_pretty(&Report { well, services: &services })?)?;
    } else {
        print_line(canary_view(&services, Paint::for_stdout()).trim_end())?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}
