//! A cluster with two services: stock clients reach both addresses.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustbalance::clock::unix_now;
use rustbalance::config::{Config, LiveConfig};
use rustbalance::join::found_with;
use rustbalance::keys::IdentitySecret;
use rustbalance::node::run_on;
use rustbalance::store::Store;
use rustbalance::tor::Engine;
use rustbalance_gossip::id::ServiceId;
use rustbalance_testnet::{Client, Site, Warmth};
use tokio_util::sync::CancellationToken;

use crate::support::{Arti, ClusterPermit, Progress, look, network};

/// From the first start of a node until clients reach it.
const LIMIT: Duration = Duration::from_secs(90);
/// Time limit of one request.
const VISIT: Duration = Duration::from_secs(20);

#[test]
fn stock_clients_reach_both_addresses_of_a_cluster() {
    let _turn = ClusterPermit::take();
    let mut progress = Progress::new("services");
    let done = two_addresses(&mut progress);
    progress.ends(done);
}

fn two_addresses(progress: &mut Progress) -> Result<()> {
    let (folder, second) = (tempfile::tempdir()?, IdentitySecret::generate(&mut rand::rng()));
    let dir = folder.path().join("node");
    let further = std::slice::from_ref(&second);
    let store = Arc::new(found_with(Store::create(&dir)?, None, further, unix_now(), &mut rand::rng())?);
    let services = [store.cluster().first_service(), second.service_id()];
    let sites = [Site::start("the-first")?, Site::start("the-second")?];
    let ports = format!(
        "[[port]]\nvirtual = 80\ntarget = \"{}\"\n[[port]]\nvirtual = 80\ntarget = \"{}\"\nservice = \"{}\"\n",
        sites[0].addr(),
        sites[1].addr(),
        services[1]
    );
    fs::write(dir.join("rustbalance.toml"), ports)?;
    let arti = Arti::start("two-addresses")?;
    let (live, stop) = (LiveConfig::new(Config::load(&dir)?), CancellationToken::new());
    let (engine, stopped) = (Arc::clone(&arti.engine) as Arc<dyn Engine>, stop.clone());
    let running = arti.runtime.spawn(async move { Box::pin(run_on(engine, store, &live, stopped)).await });

    let client = network().client("of-two-addresses", Warmth::Warm)?;
    for (service, site) in services.iter().zip(&sites) {
        reach(&client, *service, site)?;
        progress.report(format_args!("{} is served", site.name()));
    }
    let mut revisions = Vec::new();
    for service in services {
        let held = look(&service.to_string())?.into_iter().filter_map(|held| Some(held.content?.revision)).max();
        revisions.push(held.with_context(|| format!("no descriptor of {service} is published"))?);
    }
    ensure!(revisions[0] != revisions[1], "both services have revision {}", revisions[0]);

    stop.cancel();
    arti.runtime.block_on(running)??;
    arti.runtime.block_on(arti.engine.shutdown());
    Ok(())
}

/// Waits until the site of the service answers a client; fails at once if another site does.
fn reach(client: &Client, service: ServiceId, site: &Site) -> Result<()> {
    let start = Instant::now();
    loop {
        match client.get(&format!("http://{service}/"), VISIT) {
            Ok(answer) if answer.text().contains(site.name()) => return Ok(()),
            Ok(answer) => bail!("{service} is answered by {:?}", answer.text()),
            Err(error) if start.elapsed() > LIMIT => {
                return Err(error.context(format!("{service} cannot be reached")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}
