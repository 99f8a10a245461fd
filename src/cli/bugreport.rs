//! `rustbalance bugreport`: one text about this node that an operator can send without fear.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use super::Context;
use super::ask::{SHORT, ask, unexpected};
use super::check;
use super::output::{Paint, print_line};
use crate::causes::with_causes;
use crate::control::{Request, Response, Status};
use crate::node;
use crate::redact::Redaction;

/// Writes a report about this node for its developers: versions, what `check` finds, the
/// configuration where it differs from the defaults, the status with its counters, and the last
/// lines of the log. Onion addresses are replaced by numbers; IP addresses, keys and fingerprints
/// are removed. Read it before you send it.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {
    /// A new file for the report, which only you may read [default: standard output]
    file: Option<PathBuf>,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<()> {
    context.log_quietly()?;
    let report = report(context).await;
    let Some(path) = options.file else { return Ok(print_line(report.trim_end())?) };
    let shown = path.display();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let mut file = file.with_context(|| format!("cannot make {shown}: an existing file is not overwritten"))?;
    file.write_all(report.as_bytes()).with_context(|| format!("cannot write {shown}"))?;
    Ok(print_line(format_args!("{shown} has the report: read it before you send it"))?)
}

/// The whole report, redacted.
async fn report(context: &Context) -> String {
    let mut redaction = Redaction::default();
    let mut text = String::new();
    let mut section = |title: &str, body: &str| {
        let _ = write!(text, "# {title}\n\n{}\n\n", redaction.apply(body).trim_end());
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    section("Versions", &format!("rustbalance {version}\nLinux {} {}", kernel.trim(), std::env::consts::ARCH));
    // The status comes before the log, which names nodes by the beginnings of their addresses.
    let (findings, config) = node::check(&context.dir).await;
    let status = |answer| match answer {
        Response::Status(status) => Ok(shown_status(&status)),
        _ => Err(unexpected()),
    };
    section("Status", &answer(context, Request::Status {}, status).await);
    section("Findings of `check`", &check::view(&findings, Paint(false)));
    let differences = config.map(|config| config.differences());
    section(
        "Configuration, where it differs from the defaults",
        &match differences {
            Some(differences) => differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            None => "it cannot be read".into(),
        },
    );
    let lines = |answer| match answer {
        Response::RecentLog { lines } => Ok(lines.join("\n")),
        _ => Err(unexpected()),
    };
    section("Last lines of the log", &answer(context, Request::RecentLog {}, lines).await);
    text
}

/// The daemon's answer as `show` has it, or why there is none.
async fn answer(context: &Context, request: Request, show: impl FnOnce(Response) -> anyhow::Result<String>) -> String {
    let shown = ask(context, request, SHORT).await.and_then(show);
    shown.unwrap_or_else(|error| with_causes(error.as_ref()))
}

/// The status without the relays and keys of introduction points, which a descriptor names, too.
fn shown_status(status: &Status) -> String {
    let mut value = match serde_json::to_value(status) {
        Ok(value) => value,
        Err(error) => return error.to_string(),
    };
    hide_points(&mut value);
    serde_json::to_string_pretty(&value).unwrap_or_else(|error| error.to_string())
}

fn hide_points(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "relay" | "session_key" => *value = Value::from("(hidden)"),
                    _ => hide_points(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(hide_points),
        _ => {}
    }
}
