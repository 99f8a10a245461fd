//! Measures what a GB costs a node over Counter Galois Onion (CGO) and over the older encryption of
//! the client's hop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::IntroPoint;
use rustbalance_testnet::cluster::{Cluster, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tor_protover::NamedSubver;
use tor_protover::named::RELAY_CRYPT_CGO;

use crate::introducer::Introducer;
use crate::support::{BINARY, look, median, network};

/// Bytes of one download.
const BODY: usize = 20_000_000;
/// Time limit of one download.
const LIMIT: Duration = Duration::from_secs(120);
/// The daemon's log as an operator has it.
const LOG: &str = "warn,rustbalance=info";

#[test]
#[ignore = "measures, and takes minutes: ./scripts/bench.sh cgo"]
fn cgo_beside_the_older_encryption() {
    let variable = |name| std::env::var_os(name);
    let rounds = variable("RUSTBALANCE_CGO_ROUNDS").map_or(10, |text| text.to_str().unwrap().parse().unwrap());
    let binary = variable("RUSTBALANCE_BENCH_BINARY").map_or_else(|| PathBuf::from(BINARY), PathBuf::from);
    let cluster = Cluster::logging(network(), binary, LOG).unwrap();
    let node = cluster.init("one").unwrap();
    node.run().unwrap();
    cluster.await_served(&[Arc::clone(&node)]).unwrap();
    let runtime = Runtime::new().unwrap();
    let onion = cluster.onion().unwrap();
    let held = look(&onion).unwrap().into_iter().filter_map(|held| held.content);
    let published = held.max_by_key(|content| content.revision).unwrap();
    let measured = measure(onion.parse().unwrap(), &published.points[0], &node, rounds);
    let [older, cgo] = runtime.block_on(measured).unwrap();
    println!("| | older encryption | CGO |\n|---|---:|---:|");
    let name = "processor for a GB downloaded (s): median, lowest to highest";
    println!(
        "| {name} | {} | {} ({:.2}×) |",
        show(&older),
        show(&cgo),
        per_gb(median(cgo.clone())) / per_gb(median(older.clone()))
    );
    println!("\n{rounds} downloads of {BODY} bytes each, in turns, by one client.");
}

/// Processor time of the node for a body, in each round: with the older encryption, and with CGO.
async fn measure(service: ServiceId, point: &IntroPoint, node: &Node, rounds: usize) -> Result<[Vec<Duration>; 2]> {
    let client = Introducer::start().await?;
    let mut spent = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (spent, subprotocols) in spent.iter_mut().zip([&[][..], &[RELAY_CRYPT_CGO]]) {
            spent.push(download(&client, service, point, subprotocols, node).await?);
        }
    }
    Ok(spent)
}

/// Processor time of the node for one download over a circuit of its own, which is not counted.
async fn download(
    client: &Introducer,
    service: ServiceId,
    point: &IntroPoint,
    subprotocols: &[NamedSubver],
    node: &Node,
) -> Result<Duration> {
    let mut stream = client.meet(service, point, 80, subprotocols).await?;
    let before = node.vitals().context("the node has ended")?.cpu_ms;
    let request = format!("GET /bytes/{BODY} HTTP/1.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    // The stream may end with an error in place of its end (KNOWN-ISSUES): the bytes have arrived.
    let ended = timeout(LIMIT, stream.read_to_end(&mut answer)).await?;
    ensure!(answer.len() > BODY, "{ended:?} after {} bytes", answer.len());
    let after = node.vitals().context("the node has ended")?.cpu_ms;
    Ok(Duration::from_millis(after - before))
}

fn show(spent: &[Duration]) -> String {
    let [low, high] = [spent.iter().min(), spent.iter().max()].map(|it| it.copied().map_or(0.0, per_gb));
    format!("{:.1}, {low:.1} to {high:.1}", per_gb(median(spent.to_vec())))
}

/// Seconds for a GB, where a body took this time.
fn per_gb(spent: Duration) -> f64 {
    spent.as_secs_f64() / BODY as f64 * 1e9
}
