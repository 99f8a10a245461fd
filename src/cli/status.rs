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
/// Moves the cursor to the top left corner of the terminal.
const HOME: &str = "\x1b[H";
/// Clears the rest of the line, and all below it.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

#[derive(Args)]
pub(super) struct Options {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// Show what each directory has confirmed, and when; on the publisher
    #[arg(long)]
    directories: bool,
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
            false => Ok(write!(stdout(), "{}", view(&status, options.directories, Paint::for_stdout()))?),
        };
    }
    loop {
        match options.json {
            true => print_line(serde_json::to_string(&status)?)?,
            false => show(&view(&status, options.directories, Paint::for_stdout()))?,
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
    let mut out = stdout().lock();
    match out.is_terminal() {
        true => write!(out, "{}", redrawn(picture))?,
        false => writeln!(out, "{picture}")?,
    }
    out.flush()
}

/// The picture over the previous one, line by line: a screen that is cleared first would flicker.
fn redrawn(picture: &str) -> String {
    let lines: String = picture.lines().map(|line| format!("{line}{CLEAR_LINE}\n")).collect();
    format!("{HOME}{lines}{CLEAR_BELOW}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_drawn_over_the_previous_one_without_clearing_the_screen() {
        assert_eq!(redrawn("a\n\nlong\n"), "\x1b[Ha\x1b[K\n\x1b[K\nlong\x1b[K\n\x1b[J");
    }
}
