//! Measures what an idle cluster costs its nodes: processor time, memory, and traffic on the links
//! between them.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustbalance_testnet::cluster::{Cluster, Node, Vitals};
use rustbalance_testnet::{Network, Options};

use crate::bench::quantile;

/// After this time the work that follows a start is over.
const SETTLING: Duration = Duration::from_secs(30);
/// How long the idle cluster is watched.
const WATCH: Duration = Duration::from_secs(120);
/// Time limit for a reload.
const RELOAD_LIMIT: Duration = Duration::from_secs(20);
/// Relays in addition to three per node, at which the nodes have their introduction points.
const SPARE_RELAYS: usize = 4;

/// A node's counters at one moment.
struct Look {
    vitals: Vitals,
    frames: u64,
    bytes: u64,
}

impl Look {
    fn at(node: &Arc<Node>) -> Result<Self> {
        let links = node.status()?.links;
        Ok(Self {
            vitals: node.vitals().with_context(|| format!("{} does not run", node.name()))?,
            frames: links.iter().map(|link| link.frames_out).sum(),
            bytes: links.iter().map(|link| link.bytes_out).sum(),
        })
    }
}

/// What `--checks` compares: a name, and lines below `[health]` and `[canary]`. The first is what
/// nodes do without checks.
const CHECKS: [(&str, &str, &str); 4] = [
    ("without checks and canary", "interval = \"10m\"", "enabled = false"),
    ("checks of targets as by default", "", "enabled = false"),
    ("checks of targets every second", "healthy_interval = \"1s\"", "enabled = false"),
    ("checks as by default, and a canary every minute", "", "interval = \"1m\""),
];

/// Watches a cluster of `count` nodes and prints a Markdown table: a row per node, and the medians.
/// With `scrape`, watches it again while the metrics of each node are read at this interval; with
/// `checks`, with each of [`CHECKS`].
pub(crate) fn idle(binary: PathBuf, count: usize, scrape: Option<Duration>, checks: bool) -> Result<()> {
    let options = Options { relays: 3 * count + SPARE_RELAYS, ..Options::default() };
    let network = Network::boot_with_progress(options, |line| eprintln!("{line}"))?;
    let cluster = Cluster::new(&network, &binary)?;
    let names: Vec<String> = (1..=count).map(|number| format!("node{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    eprintln!("a cluster of {count} forms");
    let nodes = cluster.grow(&names, &["publisher", "publisher", "publisher", "worker"])?;
    std::thread::sleep(SETTLING);
    eprintln!("watching it for {} s", WATCH.as_secs());
    let rest = || {
        std::thread::sleep(WATCH);
        Ok(())
    };
    watch(&nodes, rest)?;
    for (name, health, canary) in CHECKS.into_iter().filter(|_| checks) {
        nodes.iter().try_for_each(|node| configure(node, health, canary))?;
        eprintln!("watching it for {} s {name}", WATCH.as_secs());
        println!("\n{name}:\n");
        watch(&nodes, rest)?;
    }
    let Some(interval) = scrape else { return Ok(()) };
    eprintln!("watching it for {} s with a scrape every {} s", WATCH.as_secs(), interval.as_secs());
    watch(&nodes, || scraped(&nodes, interval))
}

/// Has a running node use these lines below `[health]` and `[canary]`, and nothing else there.
fn configure(node: &Node, health: &str, canary: &str) -> Result<()> {
    let path = node.state().join("rustbalance.toml");
    let text = fs::read_to_string(&path).context("cannot read the configuration")?;
    let mut lines = Vec::new();
    let mut skipping = false;
    for line in text.lines() {
        if line.starts_with('[') {
            skipping = line == "[health]" || line == "[canary]";
            lines.push(line);
            lines.extend(
                [("[health]", health), ("[canary]", canary)].iter().filter(|(of, _)| *of == line).map(|it| it.1),
            );
        } else if !skipping {
            lines.push(line);
        }
    }
    fs::write(&path, lines.join("\n") + "\n").context("cannot write the configuration")?;
    node.command(&["reload"], "", RELOAD_LIMIT)?.ok("reload").map(drop)
}

/// Reads the metrics of all nodes at this interval for [`WATCH`].
fn scraped(nodes: &[Arc<Node>], interval: Duration) -> Result<()> {
    let begin = Instant::now();
    let (mut scrapes, mut bytes) = (0, 0);
    while begin.elapsed() < WATCH {
        for node in nodes {
            bytes += node.metrics()?.len();
            scrapes += 1;
        }
        std::thread::sleep(interval.min(WATCH.saturating_sub(begin.elapsed())));
    }
    eprintln!("{scrapes} scrapes of {} bytes", bytes / scrapes.max(1));
    Ok(())
}

/// Prints what the nodes used meanwhile.
fn watch(nodes: &[Arc<Node>], meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = nodes.iter().map(Look::at).collect::<Result<Vec<_>>>()?;
    meanwhile()?;
    let after = nodes.iter().map(Look::at).collect::<Result<Vec<_>>>()?;

    let minutes = WATCH.as_secs_f64() / 60.0;
    let mut columns: [Vec<f64>; 4] = Default::default();
    println!("| node | processor (% of a core) | memory (MiB) | frames sent a minute | kB sent a minute |");
    println!("|---|---:|---:|---:|---:|");
    for (node, (was, is)) in nodes.iter().zip(before.iter().zip(&after)) {
        let row = [
            (is.vitals.cpu_ms - was.vitals.cpu_ms) as f64 / WATCH.as_millis() as f64 * 100.0,
            is.vitals.rss_kib as f64 / 1024.0,
            // The counters of a link that was opened again start at 0.
            is.frames.saturating_sub(was.frames) as f64 / minutes,
            is.bytes.saturating_sub(was.bytes) as f64 / 1000.0 / minutes,
        ];
        print_row(node.name(), row);
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    print_row("median", columns.map(|column| quantile(&column, 0.5).unwrap_or_default()));
    Ok(())
}

fn print_row(name: &str, [processor, memory, frames, kilobytes]: [f64; 4]) {
    println!("| {name} | {processor:.1} | {memory:.0} | {frames:.0} | {kilobytes:.0} |");
}
