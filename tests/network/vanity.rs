//! `init --vanity` searches an address, and stock clients reach the service there. Beside the
//! running node, `check --network` reaches Tor, and `verify` finds the descriptor.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustbalance_gossip::id::ServiceId;
use rustbalance_testnet::cluster::Cluster;

use crate::support::{Progress, network, with_cluster};

/// One key in a million: less than a second even where the processor has no vectors.
const PREFIX: &str = "rust";
/// Longer than the command tries to reach Tor.
const CHECK_LIMIT: Duration = Duration::from_secs(240);

#[test]
fn a_searched_address_is_served() {
    with_cluster("vanity", served);
}

fn served(progress: &mut Progress, cluster: &Cluster<'_>) -> Result<()> {
    let node = cluster.search("alpha", PREFIX)?;
    let address = cluster.onion()?;
    ensure!(address.starts_with(PREFIX), "{address} does not begin with {PREFIX}");
    progress.report(format_args!("{address} was found"));
    node.run()?;
    cluster.await_served(&[Arc::clone(&node)])?;
    let (name, elapsed) = cluster.fetch()?;
    ensure!(name == "alpha", "{name} has answered");
    progress.report(format_args!("a stock client was served in {elapsed:.1?}"));
    let findings = node.command(&["check", "--network"], "", CHECK_LIMIT)?.ok("check --network")?;
    for found in [" runs, healthy", "Tor was reached within ", "0 problems, "] {
        ensure!(findings.contains(found), "{found:?} is not in {findings}");
    }
    progress.report(format_args!("its operator finds no problem, and that Tor is reached"));
    let arti = network().base().join("arti.toml").display().to_string();
    let verify = ["verify", &address, "--arti-config", &arti];
    let held = node.command(&verify, "", CHECK_LIMIT)?.ok("verify")?;
    ensure!(held.contains("Published: every directory") && !held.contains("no descriptor"), "{held}");
    let unknown = ServiceId::from_public_key([9; 32]).address().to_string();
    let verify = ["verify", &unknown, "--arti-config", &arti];
    let held = node.command(&verify, "", CHECK_LIMIT)?;
    ensure!(held.code == Some(1) && held.output.contains("NOT PUBLISHED"), "{}", held.output);
    progress.report(format_args!("any machine finds it in every directory, and an unknown address in none"));
    Ok(())
}
