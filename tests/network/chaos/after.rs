//! After the chaos: reads the daemons' logs for the report, and searches them for secrets.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustbalance_testnet::chaos::Report;
use rustbalance_testnet::cluster::Node;

use crate::needles::Needles;
use crate::secrets::opened_copy;

/// Reads everything that the nodes left behind. An error is added to the report, so that the rest
/// of it is not lost.
pub(super) fn look(nodes: &[Arc<Node>], report: &mut Report) {
    for (what, read) in [("the logs", read_logs(nodes, report)), ("the secrets", search_secrets(nodes, report))] {
        if let Err(error) = read {
            report.lost.push(format!("{what} cannot be read: {error:#}"));
        }
    }
}

/// Counts uploads, panics, warnings and errors.
fn read_logs(nodes: &[Arc<Node>], report: &mut Report) -> Result<()> {
    let mut complaints = BTreeMap::new();
    for node in nodes {
        let [log, _] = node.output_files();
        let file = std::fs::File::open(&log).with_context(|| format!("cannot read {}", log.display()))?;
        for line in BufReader::new(file).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            report.uploads += usize::from(line.contains("upload accepted"));
            report.uploads_failed.0 += usize::from(line.contains("upload failed, will try again"));
            report.uploads_failed.1 += usize::from(line.contains("upload refused"));
            if line.contains("panicked at") {
                report.panics.push(format!("{}: {line}", node.name()));
            }
            if let Some(complaint) = complaint(&line) {
                *complaints.entry(complaint).or_default() += 1;
            }
        }
    }
    report.complaints = complaints;
    Ok(())
}

/// The level, the module and the message of a warning or an error, without time and fields; `None`
/// for other lines.
fn complaint(line: &str) -> Option<String> {
    let mut parts = line.split_whitespace().skip(1);
    let level = parts.next().filter(|level| ["WARN", "ERROR"].contains(level))?;
    let message: Vec<&str> = parts.take_while(|part| !part.contains('=')).collect();
    Some(format!("{level} {}", message.join(" ")))
}

/// Searches the output of all daemons and commands for every secret of every node.
fn search_secrets(nodes: &[Arc<Node>], report: &mut Report) -> Result<()> {
    let mut needles = Needles::new();
    for node in nodes {
        opened_copy(node)?.add_to(&mut needles, node.name())?;
    }
    for node in nodes {
        for file in node.output_files().iter().filter(|file| file.exists()) {
            let found = needles.find_in(file)?;
            report.secrets.extend(found.into_iter().map(|secret| format!("{secret}, in {}", file.display())));
        }
    }
    Ok(())
}

#[test]
fn complaints_are_distinguished_by_their_message() {
    let line = "2026-11-22T19:00:00.000000Z  WARN rustbalance::publish::task: cannot build the descriptor period=7";
    assert_eq!(complaint(line).as_deref(), Some("WARN rustbalance::publish::task: cannot build the descriptor"));
    assert_eq!(complaint("2026-11-22T19:00:00.000000Z  INFO rustbalance: all is well"), None);
    assert_eq!(complaint(""), None);
}
