//! Measures the memory of a cluster's nodes while nothing fails and clients come and go. It must
//! not grow with time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustbalance_testnet::cluster::Cluster;
use rustbalance_testnet::{Network, Options};

use crate::bench::quantile;
use crate::demo::RELAYS;

/// Time between two requests, each on circuits of its own. A minute at this pace is like an hour of
/// a small site.
const PACE: Duration = Duration::from_secs(1);
/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Length of the interval over which a median is taken.
const STRETCH: Duration = Duration::from_secs(300);

/// Watches three nodes for `minutes` and prints a row of a Markdown table every five minutes.
pub(crate) fn steady(binary: PathBuf, minutes: u64) -> Result<()> {
    let network =
        Network::boot_with_progress(Options { relays: RELAYS, ..Options::default() }, |line| eprintln!("{line}"))?;
    let cluster = Cluster::new(&network, &binary)?;
    let nodes = cluster.grow(&["one", "two", "three"], &["publisher", "publisher", "worker"])?;
    let url = format!("http://{}/", cluster.onion()?);

    println!("| after | memory of the nodes, medians (MiB) | requests | failed |");
    println!("|---:|---:|---:|---:|");
    let started = Instant::now();
    let (mut requests, mut failed) = (0_u64, 0_u64);
    while started.elapsed() < Duration::from_secs(minutes * 60) {
        let end = started.elapsed() + STRETCH;
        let mut samples = vec![Vec::new(); nodes.len()];
        while started.elapsed() < end {
            let asked = Instant::now();
            requests += 1;
            if let Err(error) = network.main_client().get_isolated(&format!("request{requests}"), &url, LIMIT) {
                failed += 1;
                eprintln!("request {requests} failed: {error:#}");
            }
            for (node, samples) in nodes.iter().zip(&mut samples) {
                samples.push(node.vitals().with_context(|| format!("{} does not run", node.name()))?.rss_kib);
            }
            std::thread::sleep(PACE.saturating_sub(asked.elapsed()));
        }
        let medians: Vec<String> = samples.iter().map(|samples| mebibytes(samples)).collect();
        println!("| {} min | {} | {requests} | {failed} |", started.elapsed().as_secs() / 60, medians.join(", "));
    }
    Ok(())
}

/// The median of sizes in KiB, as MiB.
fn mebibytes(sizes: &[u64]) -> String {
    format!("{:.1}", quantile(sizes, 0.5).unwrap_or_default() as f64 / 1024.0)
}
