//! A node with two services: stock clients reach both addresses, a client that requests CGO gets
//! it, and both are served again after the node's Tor client has ended.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use rustbalance::clock::unix_now;
use rustbalance::config::{Config, LiveConfig};
use rustbalance::join::found_with;
use rustbalance::keys::IdentitySecret;
use rustbalance::node::run_with;
use rustbalance::store::Store;
use rustbalance::tor::arti::{ArtiConfig, ArtiEngine};
use rustbalance::tor::descriptor::DescriptorContent;
use rustbalance::tor::{Engine, subprotocols};
use rustbalance_gossip::id::ServiceId;
use rustbalance_testnet::{Client, Site, Warmth};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Builder;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tor_protover::named::RELAY_CRYPT_CGO;

use crate::introducer::Introducer;
use crate::support::{ClusterPermit, Progress, look, network};

/// From the first start of a node until clients reach it.
const LIMIT: Duration = Duration::from_secs(90);
/// Time limit of one request.
const VISIT: Duration = Duration::from_secs(20);
/// Pause between two tries to reach a service.
const PAUSE: Duration = Duration::from_millis(500);

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
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (live, stop) = (Arc::new(LiveConfig::new(Config::load(&dir)?)), CancellationToken::new());
    let (engines, stopped) = (Arc::new(Mutex::new(Vec::new())), stop.clone());
    let made = Arc::clone(&engines);
    let make = move |store: &Store| {
        let (state_dir, cache_dir) = (store.arti_state_dir(), store.arti_cache_dir());
        let engine = ArtiEngine::start(ArtiConfig { toml: network().arti_toml(), state_dir, cache_dir })?;
        made.lock().push(Arc::clone(&engine));
        Ok(engine as Arc<dyn Engine>)
    };
    let running = runtime.spawn(async move { Box::pin(run_with(make, store, live, stopped)).await });

    let client = network().client("of-two-addresses", Warmth::Warm)?;
    for (service, site) in services.iter().zip(&sites) {
        reach(&client, *service, site)?;
        progress.report(format_args!("{} is served", site.name()));
    }
    let published = services.map(newest).into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(published[0].revision != published[1].revision, "both have revision {}", published[0].revision);
    runtime.block_on(request_cgo(services[1], &published[1], &sites[1]))?;
    progress.report(format_args!("a client that requests CGO gets it"));

    let first = engines.lock().pop().context("the node has no Tor client")?;
    let guards = guards(&dir.join("arti/state"))?;
    runtime.block_on(first.shutdown());
    // A client that comes before the next descriptor fetches the same one again, and then waits.
    for (service, before) in services.iter().zip(&published) {
        let start = Instant::now();
        while newest(*service).is_ok_and(|now| now.revision == before.revision) && start.elapsed() < LIMIT {
            std::thread::sleep(PAUSE);
        }
    }
    let client = network().client("after-a-renewal", Warmth::Warm)?;
    for (service, site) in services.iter().zip(&sites) {
        reach(&client, *service, site)?;
    }
    ensure!(engines.lock().len() == 1 && !running.is_finished(), "the node has no second Tor client");
    let kept = self::guards(&dir.join("arti/1/state"))?;
    ensure!(guards.is_subset(&kept), "the first client had the guards {guards:?}, the second has {kept:?}");
    progress.report(format_args!("both are served by a second Tor client in the same process, with the same guards"));

    stop.cancel();
    runtime.block_on(running)??;
    Ok(())
}

/// The newest descriptor of a service that a directory holds.
fn newest(service: ServiceId) -> Result<DescriptorContent> {
    let held = look(&service.to_string())?.into_iter().filter_map(|held| held.content);
    held.max_by_key(|content| content.revision).with_context(|| format!("no descriptor of {service} is published"))
}

/// The relays that the client with this state directory has chosen as guards.
fn guards(state_dir: &Path) -> Result<BTreeSet<String>> {
    let file = state_dir.join("state/guards.json");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let all: serde_json::Value = serde_json::from_str(&text)?;
    let guards = all["default"]["guards"].as_array().with_context(|| format!("no guards in {text}"))?;
    let ids = guards.iter().filter_map(|guard| Some(guard["id"]["ed25519"].as_str()?.to_owned()));
    Ok(ids.collect())
}

/// Visits the site over a circuit whose last hop uses CGO, as the descriptor offers.
async fn request_cgo(service: ServiceId, published: &DescriptorContent, site: &Site) -> Result<()> {
    ensure!(published.subprotocols == subprotocols::granted(), "offered: {:?}", published.subprotocols);
    let client = Introducer::start().await?;
    let mut stream = client.meet(service, &published.points[0], 80, &[RELAY_CRYPT_CGO]).await?;
    let mut answer = Vec::new();
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await?;
    stream.flush().await?;
    // The stream may end with an error in place of its end (KNOWN-ISSUES): the text has arrived.
    let ended = timeout(VISIT, stream.read_to_end(&mut answer)).await?;
    let text = String::from_utf8_lossy(&answer);
    ensure!(text.contains(site.name()), "{ended:?} after {text:?}");
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
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
