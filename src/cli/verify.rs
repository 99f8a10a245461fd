//! `rustbalance verify`: what the directories hold of an address, as any client can find out.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustbalance_gossip::id::{OnionAddress, ServiceId};

use super::output::{Paint, print_line};
use super::progress::Progress;
use super::status_view::{section, table};
use super::temporary_tor::with_tor;
use super::{Context, FAILED};
use crate::config;
use crate::tor::arti::ArtiEngine;
use crate::verify::{Answer, DirectoryFinding, Findings, PeriodFindings, verify};

/// How long one directory may take, its circuit included.
const DIRECTORY_LIMIT: Duration = Duration::from_secs(60);

/// Asks every directory that clients of an onion address ask, and says what each holds: proof that
/// the address is published, from any machine, for any version 3 onion service. It needs no node
/// and no key, and connects to Tor in a temporary directory.
///
/// Exit codes: 0 every directory that answers holds the newest descriptor of its time period,
/// 1 one does not.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Options {
    /// The onion address
    #[arg(value_name = "ADDRESS")]
    address: OnionAddress,
    /// Configure Tor with this configuration file for Arti (TOML), for example with bridges
    #[arg(long, value_name = "FILE")]
    arti_config: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(context: &Context, options: Options) -> anyhow::Result<ExitCode> {
    context.log_quietly()?;
    let arti = options.arti_config.as_deref().map(config::read_arti).transpose()?;
    let findings = Box::pin(ask(options.address.into(), arti.unwrap_or_default())).await?;
    if options.json {
        print_line(serde_json::to_string_pretty(&findings)?)?;
    } else {
        print_line(view(&findings, Paint::for_stdout()).trim_end())?;
    }
    Ok(if findings.is_published() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn ask(service: ServiceId, arti: String) -> anyhow::Result<Findings> {
    let asking = async |engine: &ArtiEngine, progress: &mut Progress| {
        progress.step("asking the directories", None);
        Ok(verify(engine, service, DIRECTORY_LIMIT).await?)
    };
    with_tor(arti, &mut Progress::new(), asking).await
}

/// The verdict, and a table for each period; ends with a newline.
fn view(findings: &Findings, paint: Paint) -> String {
    let verdict = match findings.is_published() {
        true => paint.good("Published: every directory that answers holds the newest descriptor."),
        false => paint.bad("NOT PUBLISHED EVERYWHERE: see the directories that are marked with !"),
    };
    let mut text = format!("{}\n\n{verdict}\n", paint.bold(&findings.address));
    for (place, period) in findings.periods.iter().enumerate() {
        let asked = if place == 0 { "clients ask for it now" } else { "clients ask for it before or after" };
        let revision = period.revision.map_or("no descriptor".into(), |revision| format!("revision {revision}"));
        let mut table = table(&["", "DIRECTORY", "REVISION", "POINTS", "BYTES", "ANSWER"], &[2, 3, 4]);
        for directory in &period.directories {
            table.add_row(row(period, directory));
        }
        section(&mut text, &format!("Period {} ({asked}): {revision}", period.number), &table, paint);
    }
    text
}

fn row(period: &PeriodFindings, directory: &DirectoryFinding) -> [String; 6] {
    let dash = || "-".to_owned();
    let mark = if period.misleads(directory) { "!" } else { "" };
    let (revision, points, bytes, answer) = match &directory.answer {
        Answer::Descriptor { revision, bytes, points } => {
            let age = if Some(*revision) == period.revision { "newest" } else { "older" };
            let points = points.map_or("hidden".into(), |points| points.to_string());
            (revision.to_string(), points, bytes.to_string(), age.into())
        }
        Answer::Missing => (dash(), dash(), dash(), "no descriptor".into()),
        Answer::Invalid { reason } => (dash(), dash(), dash(), format!("not valid: {reason}")),
        Answer::Silent { reason } => (dash(), dash(), dash(), format!("no answer: {reason}")),
    };
    [mark.into(), directory.relay.clone(), revision, points, bytes, answer]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_directory_has_a_line_and_what_misleads_clients_is_marked() {
        let holding = |revision, points| Answer::Descriptor { revision, bytes: 14_000, points };
        let finding = |relay: &str, answer| DirectoryFinding { relay: format!("${}", relay.repeat(20)), answer };
        let current = vec![
            finding("AA", holding(7, Some(3))),
            finding("BB", holding(6, Some(3))),
            finding("CC", Answer::Missing),
            finding("DD", Answer::Silent { reason: "timeout".into() }),
            finding("EE", Answer::Invalid { reason: "bad signature".into() }),
        ];
        let period =
            |number, revision, directories| PeriodFindings { number, length_minutes: 1440, revision, directories };
        let findings = Findings {
            address: "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion".into(),
            periods: vec![
                period(20_779, Some(7), current),
                period(20_780, Some(3), vec![finding("FF", holding(3, None))]),
            ],
        };
        assert!(!findings.is_published());
        insta::assert_snapshot!(view(&findings, Paint(false)));
        let json = serde_json::to_value(&findings).unwrap();
        assert_eq!(json["periods"][0]["directories"][1]["answer"], "descriptor");
        assert_eq!(json["periods"][0]["directories"][3]["reason"], "timeout");
    }
}
