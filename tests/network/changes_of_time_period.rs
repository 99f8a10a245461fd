//! Two changes of the time period, which lasts 8 minutes, with clients all the time. This takes
//! long, so it runs in parallel with the other scenarios, and its name makes it the first to start.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustbalance_testnet::Warmth;

use crate::support::{network, scenario};

/// Number of changes of the time period during the scenario.
const CHANGES: usize = 2;
/// Minimum interval between two pairs of fetches.
const PAUSE: Duration = Duration::from_secs(2);
/// How long the scenario continues after the last change: clients and directories notice it with
/// the next consensus.
const AFTER: Duration = Duration::from_secs(60);
/// Failed fetches per hundred that are allowed for other reasons than a missing descriptor:
/// circuits fail on a busy machine.
const OTHER_FAILURES: usize = 3;

#[test]
fn clients_find_a_descriptor_over_two_changes_of_time_period() {
    scenario("time periods", &["alpha", "beta", "gamma"], |progress, cluster, nodes| {
        let url = format!("http://{}/", cluster.onion()?);
        let regular = network().client("regular", Warmth::Warm)?;
        let length = network().time_period_length();
        let until = Instant::now() + network().next_time_period() + length * (CHANGES as u32 - 1) + AFTER;
        let mut periods = BTreeSet::new();
        let (mut fetches, mut failures) = (0, Vec::new());
        while Instant::now() < until {
            let next = Instant::now() + PAUSE;
            // A fresh client, and one that keeps its descriptors, on new circuits.
            let limit = Duration::from_secs(60);
            let fresh = network().client("newcomer", Warmth::Warm)?.get(&url, limit);
            let known = regular.get_isolated(&format!("visit{fetches}"), &url, limit);
            for answer in [fresh, known] {
                fetches += 1;
                if let Err(error) = answer {
                    let error = format!("{error:#}");
                    progress.report(format_args!("fetch {fetches} failed: {error}"));
                    ensure!(
                        !wants_descriptor(&error),
                        "fetch {fetches} failed because a descriptor was missing: {error}"
                    );
                    failures.push(error);
                }
            }
            let status = nodes.0[0].status()?;
            let now: BTreeSet<u64> = status
                .publication
                .iter()
                .flat_map(|publication| &publication.periods)
                .map(|period| period.number)
                .collect();
            if !now.is_subset(&periods) {
                periods.extend(&now);
                progress.report(format_args!(
                    "periods {now:?} are published; {fetches} fetches, {} failed",
                    failures.len()
                ));
            }
            if fetches % 100 == 0 {
                progress.report(format_args!("{fetches} fetches, {} failed", failures.len()));
            }
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        progress.report(format_args!("{fetches} fetches, {} failed", failures.len()));
        // The periods that were current at first, and one more with each change.
        ensure!(periods.len() > CHANGES, "only these periods were published: {periods:?}");
        let bound = 1 + fetches * OTHER_FAILURES / 100;
        ensure!(failures.len() <= bound, "{} of {fetches} fetches failed: {failures:#?}", failures.len());
        Ok(())
    });
}

/// Whether a fetch failed because no directory had a readable descriptor: the extended SOCKS errors
/// 0xF0 and 0xF1 of C tor.
fn wants_descriptor(error: &str) -> bool {
    error.contains("0xf0") || error.contains("0xf1")
}
