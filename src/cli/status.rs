//! `rustbalance status`: shows how the running node sees itself and the cluster, once or
//! repeatedly.

use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use clap::Args;

use super::Context;
use super::ask::{SHORT, ask, unexpected};
use super::output::{Paint, print_line};
use super::status_view::view;
use crate::causes::with_causes;
use crate::control::{Request, Response, Status};

/// Time between two outputs of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Clears the terminal and moves the cursor to its top left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Args)]
pub(super) struct Options {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// Repeat every two seconds; with --json, print one line each time
    #[arg(short, long)]
    watch: bool,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    let mut status = fetch(context).await?;
    if !options.watch {
        return match options.json {
            true => Ok(print_line(serde_json::to_string_pretty(&status)?)?),
            false => Ok(write!(stdout(), "{}", view(&status, Paint::for_stdout()))?),
        };
    }
    loop {
        match options.json {
            true => print_line(serde_json::to_string(&status)?)?,
            false => show(&view(&status, Paint::for_stdout()))?,
        }
        status = loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            match fetch(context).await {
                Ok(status) => break status,
                // The daemon may come back soon; a reader of JSON gets an exit code instead.
                Err(error) if options.json => return Err(error),
                Err(error) => show(&format!("{}\n", with_causes(error.as_ref())))?,
            }
        };
    }
}

pub(super) async fn fetch(context: &Context) -> anyhow::Result<Status> {
    match ask(context, Request::Status {}, SHORT).await? {
        Response::Status(status) => Ok(*status),
        _ => Err(unexpected()),
    }
}

/// Replaces the previous output on a terminal; appends elsewhere.
fn show(picture: &str) -> std::io::Result<()> {
    let before = if stdout().is_terminal() { CLEAR } else { "" };
    let mut out = stdout().lock();
    write!(out, "{before}{picture}")?;
    if before.is_empty() {
        writeln!(out)?;
    }
    out.flush()
}
