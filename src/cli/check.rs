//! `rustbalance check`: inspects what the node on this host needs.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, timeout};

use super::output::{Paint, print_line};
use super::progress::Progress;
use super::temporary_tor::with_tor;
use super::{Context, FAILED};
use crate::config::Config;
use crate::display::plural;
use crate::node::{Finding, Severity, check};

/// Time limit for reaching Tor. A first connection takes 10 to 60 s.
const NETWORK_LIMIT: Duration = Duration::from_secs(180);
/// Width of the column that says what was inspected.
const COLUMN: usize = 18;

/// Inspects the node of this state directory: its files and their modes, the configuration and
/// Tor's settings in it, the clock, the control socket, limits, memory, free space, and whether the
/// targets answer. Changes nothing, and works whether the daemon runs or not.
///
/// Exit codes: 0 no problem was found (there may be warnings), 1 at least one problem.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {
    /// Also connect to Tor, in a temporary directory and for three minutes at most. Nothing else is
    /// contacted
    #[arg(long)]
    network: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// The output of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    problems: usize,
    warnings: usize,
    findings: &'a [Finding],
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<ExitCode> {
    context.log_quietly()?;
    let (mut findings, config) = check(&context.dir).await;
    if options.network {
        findings.push(match &config {
            Some(config) => Box::pin(network(config)).await,
            None => Finding::problem("network", "not tried", "the configuration cannot be read: correct it first"),
        });
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (problems, warnings) = (count(Severity::Problem), count(Severity::Warning));
    if options.json {
        print_line(serde_json::to_string_pretty(&Report { problems, warnings, findings: &findings })?)?;
    } else {
        print_line(view(&findings, Paint::for_stdout()))?;
        print_line(format_args!("{}, {}", plural(problems, "problem"), plural(warnings, "warning")))?;
    }
    Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// One line for each finding, and one below it if there is something to do.
pub(super) fn view(findings: &[Finding], paint: Paint) -> String {
    let mut text = String::new();
    for Finding { check, severity, value, advice } in findings {
        let name = match severity {
            Severity::Fine => "ok     ".to_owned(),
            Severity::Warning => paint.bold("warning"),
            Severity::Problem => paint.bad("PROBLEM"),
        };
        let advice = advice.as_ref().map(|advice| format!(" - {advice}")).unwrap_or_default();
        let _ = writeln!(text, "{name}  {check:COLUMN$} {value}{advice}");
    }
    text
}

/// Whether Tor can be reached. A daemon that runs keeps its own connection: this one has a
/// directory of its own, which is removed afterwards.
async fn network(config: &Config) -> Finding {
    let begun = Instant::now();
    let mut progress = Progress::new();
    let connected = timeout(NETWORK_LIMIT, with_tor(config.arti.clone(), &mut progress, async |_, _| Ok(()))).await;
    drop(progress);
    let outcome = connected.unwrap_or_else(|_| {
        Err(anyhow::anyhow!(
            "Tor was not reached within {} s: check this machine's network, and whether it needs bridges \
            in [arti]",
            NETWORK_LIMIT.as_secs()
        ))
    });
    match outcome {
        Ok(()) => Finding::fine("network", format!("Tor was reached within {} s", begun.elapsed().as_secs() + 1)),
        Err(error) => Finding::problem("network", "Tor was not reached", format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_a_line() {
        let findings = [
            Finding::fine("clock", "2026-11-30T20:06:30Z"),
            Finding::warning("target of port 80", "127.0.0.1:8080", "Connection refused: start the application"),
            Finding::problem("configuration", "/x/rustbalance.toml", "line 3, column 1: unknown key \"a\""),
        ];
        insta::assert_snapshot!(view(&findings, Paint(false)), @r#"
        ok       clock              2026-11-30T20:06:30Z
        warning  target of port 80  127.0.0.1:8080 - Connection refused: start the application
        PROBLEM  configuration      /x/rustbalance.toml - line 3, column 1: unknown key "a"
        "#);
        let json = serde_json::to_string(&Report { problems: 1, warnings: 1, findings: &findings[2..] }).unwrap();
        insta::assert_snapshot!(json, @r#"{"problems":1,"warnings":1,"findings":[{"check":"configuration","severity":"problem","value":"/x/rustbalance.toml","advice":"line 3, column 1: unknown key \"a\""}]}"#);
    }
}
