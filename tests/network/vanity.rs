//! `init --vanity` searches an address, and stock clients reach the service there.

use anyhow::{Result, ensure};
use rustbalance_testnet::cluster::Cluster;

use crate::support::{BINARY, ClusterPermit, Progress, network};

/// One key in a million: less than a second even where the processor has no vectors.
const PREFIX: &str = "rust";

#[test]
fn a_searched_address_is_served() {
    let _turn = ClusterPermit::take();
    let mut progress = Progress::new("vanity");
    let cluster = Cluster::new(network(), BINARY).unwrap();
    let done = served(&mut progress, &cluster);
    // Before the cluster is dropped, so that its logs are kept.
    progress.ends(done);
}

fn served(progress: &mut Progress, cluster: &Cluster<'_>) -> Result<()> {
    let node = cluster.search("alpha", PREFIX)?;
    let address = cluster.onion()?;
    ensure!(address.starts_with(PREFIX), "{address} does not begin with {PREFIX}");
    progress.report(format_args!("{address} was found"));
    node.run()?;
    cluster.await_served(&[node])?;
    let (name, elapsed) = cluster.fetch()?;
    ensure!(name == "alpha", "{name} has answered");
    progress.report(format_args!("a stock client was served in {elapsed:.1?}"));
    Ok(())
}
