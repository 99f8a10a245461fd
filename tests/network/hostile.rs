//! A hostile member and hostile clients over real Tor, while stock clients visit. The in-memory
//! network (tests/hostile) cannot show this, because it depends on Tor's flow control, circuits and
//! rendezvous. The return of an evicted member is tested in `eviction` and `returning`.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustbalance::config::FILE_NAME;
use rustbalance::frame;
use rustbalance::link::Frame;
use rustbalance::link::handshake::Purpose;
use rustbalance::store::Store;
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::id::NodeId;
use rustbalance_testnet::cluster::{Cluster, Node};
use rustbalance_testnet::{Client, Warmth};
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::engine::socks_connect;
use crate::hand::{link, nonsense, payload, question};
use crate::support::{Arti, Nodes, Progress, network, over_tor, scenario};

/// Limits of every node, lower than the defaults, so that an attack from this machine reaches them
/// within seconds. Every node has them, because a client that never reads may reach any node.
const OF_ALL: [(&str, &str); 1] = [("[limits]\n", "stall_timeout = \"5s\"\n")];
/// Further limits of the nodes that join. The first node keeps the defaults, so that the crowd of
/// clients leaves it capacity for others.
const STRICT: [(&str, &str); 2] = [
    ("[limits]\n", "pending_rendezvous = 3\nintroduction_queue = 2\n"),
    ("[links]\n", "write_timeout = \"5s\"\nbytes_per_second = 65536\nbytes_burst = 524288\n"),
];
/// Time limit for every expected event.
const PATIENCE: Duration = Duration::from_secs(60);
/// Number of streams that one client opens and never reads.
const DEAF: usize = 8;
/// Number of rendezvous that one client requests at the same time.
const CROWD: usize = 25;
/// How long a node's process is stopped while the crowd arrives: short enough that the other nodes
/// do not take it for dead.
const HELD: Duration = Duration::from_secs(4);
/// How long a client of the crowd waits for an answer.
const CROWDED: Duration = Duration::from_secs(20);

#[test]
fn hostile_members_and_clients_lock_no_client_out() {
    scenario("hostile", &["alpha"], |progress, cluster, nodes| {
        let alpha = nodes.named("alpha")?.clone();
        alpha.kill9()?;
        bound(&alpha, &OF_ALL)?;
        alpha.run()?;
        cluster.await_served(&nodes.0)?;
        let beta = strict(cluster, &alpha, "beta", "publisher")?;
        let gamma = strict(cluster, &alpha, "gamma", "worker")?;
        let joined = cluster.join("mallory", &alpha.invite("worker", 1, "1h")?)?;
        let nodes = &Nodes(vec![alpha, beta, gamma]);
        cluster.await_served(&nodes.0)?;
        let mallory = HostileMember::of(&joined, nodes)?;
        progress.report(format_args!("three nodes are published, a fourth member is hostile"));
        mallory.floods(progress, cluster, nodes)?;
        mallory.sends_nonsense(progress, cluster, nodes)?;
        mallory.never_reads(progress, cluster, nodes)?;
        clients_never_read(progress, cluster, nodes)?;
        clients_come_in_great_numbers(progress, cluster, nodes)?;
        cluster.await_served(&nodes.0)
    });
}

/// Adds a node to the cluster and runs it with the strict limits.
fn strict(cluster: &Cluster<'_>, host: &Node, name: &str, role: &str) -> Result<Arc<Node>> {
    let node = cluster.join(name, &host.invite(role, 1, "1h")?)?;
    bound(&node, &OF_ALL)?;
    bound(&node, &STRICT)?;
    node.run()?;
    Ok(node)
}

/// Adds limits to a node's initial configuration, which it reads when it starts.
pub(crate) fn bound(node: &Node, bounds: &[(&str, &str)]) -> Result<()> {
    let path = node.state().join(FILE_NAME);
    let mut text = std::fs::read_to_string(&path)?;
    for (table, keys) in bounds {
        ensure!(text.contains(table), "the initial configuration has no {table}");
        text = text.replace(table, &format!("{table}{keys}"));
    }
    Ok(std::fs::write(&path, text)?)
}

/// The sum of one refusal counter over all nodes.
fn refused(nodes: &Nodes, name: &str) -> Result<u64> {
    let mut sum = 0;
    for node in &nodes.0 {
        sum += node.status()?.refused.get(name).copied().unwrap_or(0);
    }
    Ok(sum)
}

/// Checks during an attack that stock clients are served, that every node runs and takes all others
/// for alive, and that at least one node counts refusals. Returns the count.
fn undisturbed(cluster: &Cluster<'_>, nodes: &Nodes, counted: &str) -> Result<u64> {
    let mut served = BTreeMap::new();
    for _ in 0..3 {
        // A client that reaches a busy node tries again, as a person would.
        let name = cluster.wait_until("a stock client is served", PATIENCE * 3, || Ok(cluster.fetch()?.0))?;
        *served.entry(name).or_insert(0) += 1;
    }
    let count = cluster.wait_until("a node counts the refusals", PATIENCE, || {
        let count = refused(nodes, counted)?;
        ensure!(count > 0, "no node has counted a {counted}");
        Ok(count)
    })?;
    for node in &nodes.0 {
        ensure!(node.is_running(), "{} has ended", node.name());
        cluster.wait_until("every node takes all others for alive", PATIENCE, || {
            let alive = node.status()?.alive().len();
            ensure!(alive == nodes.0.len(), "{} takes {alive} nodes for alive", node.name());
            Ok(())
        })?;
    }
    Ok(count)
}

/// A hostile member: the state of a node that has joined, and a Tor client.
struct HostileMember {
    arti: Arti,
    store: Arc<Store>,
    /// The honest nodes, by name.
    others: BTreeMap<String, NodeId>,
}

impl HostileMember {
    fn of(joined: &Node, nodes: &Nodes) -> Result<Self> {
        let store = Store::open(&joined.state())?;
        let arti = Arti::start("mallory")?;
        let mut others = BTreeMap::new();
        for node in &nodes.0 {
            let id: NodeId = node.status()?.node.parse()?;
            rustbalance::tor::Engine::trust_discovery(&*arti.engine, id, &store.discovery()?.secrets())?;
            others.insert(node.name().to_owned(), id);
        }
        Ok(Self { arti, store: Arc::new(store), others })
    }

    /// Opens a link to a node and runs an attack on it in a task.
    fn attack<F: Future<Output = Result<()>> + Send + 'static>(
        &self,
        name: &str,
        with: impl FnOnce(rustbalance::stream::BoxStream, Vec<u8>) -> F + Send + 'static,
    ) -> Result<JoinHandle<Result<()>>> {
        let to = *self.others.get(name).context("no such node")?;
        let (engine, store) = (Arc::clone(&self.arti.engine), Arc::clone(&self.store));
        Ok(self.arti.runtime.spawn(async move {
            let question = question(&store, to).await;
            let stream = over_tor(|| link(&*engine, &store, to, Purpose::Mesh)).await?;
            with(stream, question).await
        }))
    }

    fn floods(&self, progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
        let floods = ["alpha", "gamma"].map(|name| {
            self.attack(name, |stream, question| async move {
                let heavy = payload(&Frame::Gossip(VarBytes(vec![0x5a; 60_000])));
                let (mut reader, mut writer) = tokio::io::split(stream);
                let reading = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
                while frame::write(&mut writer, &heavy).await.is_ok()
                    && frame::write(&mut writer, &question).await.is_ok()
                {}
                reading.abort();
                Ok(())
            })
        });
        let count = undisturbed(cluster, nodes, "link_flood")?;
        for flood in floods {
            flood?.abort();
        }
        progress.report(format_args!("flooded two links: {count} messages refused, no client or node disturbed"));
        Ok(())
    }

    fn sends_nonsense(&self, progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
        // The inputs after the first five never end. Their links are closed for silence, which
        // tests/hostile checks faster.
        for bytes in nonsense().into_iter().take(5) {
            let sent = self.attack("beta", |mut stream, _| async move {
                tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await?;
                tokio::io::AsyncWriteExt::flush(&mut stream).await?;
                let mut rest = Vec::new();
                // The node must close the stream, perhaps with an error.
                let _ =
                    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.context("the node keeps the stream open")?;
                Ok(())
            })?;
            self.arti.runtime.block_on(sent)??;
        }
        let count = undisturbed(cluster, nodes, "link_bad_frame")?;
        progress.report(format_args!(
            "sent oversized and unreadable frames: {count} links closed, no client or node disturbed"
        ));
        Ok(())
    }

    fn never_reads(&self, progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
        let before = refused(nodes, "link_stuck")?;
        let attack = || {
            self.attack("gamma", |mut stream, question| async move {
                let ping = payload(&Frame::Ping(1));
                while frame::write(&mut stream, &ping).await.is_ok()
                    && frame::write(&mut stream, &question).await.is_ok()
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Ok(())
            })
        };
        let mut deaf = attack()?;
        // A member that never reads cannot notice that its link was closed, so gamma is asked.
        let me = self.store.node_id().to_string();
        let gamma = nodes.named("gamma")?;
        cluster.wait_until("the link of a member that never reads is closed", PATIENCE, || {
            let ended = refused(nodes, "link_stuck")? - before;
            let linked = gamma.status()?.links.iter().any(|link| link.peer == me);
            // Its circuit may break for a reason of its own.
            if ended == 0 && deaf.is_finished() {
                deaf = attack()?;
            }
            ensure!(
                ended > 0 && !linked,
                "{ended} links were closed; the link of the member that never reads is open: {linked}"
            );
            Ok(())
        })?;
        let count = undisturbed(cluster, nodes, "link_stuck")? - before;
        deaf.abort();
        progress.report(format_args!("a member that never reads: {count} links closed, no client or node disturbed"));
        Ok(())
    }
}

/// Clients request large answers and never read them.
fn clients_never_read(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let onion = cluster.onion()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let clients = (0..3).map(|_| network().client("deaf", Warmth::Warm)).collect::<Result<Vec<Client>>>()?;
    let mut deaf: Vec<TcpStream> = Vec::new();
    for client in &clients {
        for _ in 0..DEAF {
            let connect = socks_connect(client.socks(), onion.parse()?, 80);
            let Ok(Ok(stream)) = runtime.block_on(async { timeout(PATIENCE, connect).await }) else { continue };
            let mut stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            stream.write_all(b"GET /bytes/20000000 HTTP/1.1\r\nHost: x\r\n\r\n")?;
            deaf.push(stream);
        }
    }
    ensure!(deaf.len() > DEAF, "only {} streams were opened", deaf.len());
    let count = undisturbed(cluster, nodes, "streams_stalled")?;
    progress.report(format_args!(
        "{} streams that are never read: {count} closed so far, no other client disturbed",
        deaf.len()
    ));
    Ok(())
}

/// Clients request as much rendezvous as stock clients can. Their rate depends on the machine, so a
/// node's process is stopped for moments: afterwards it meets all requests of that time at once.
fn clients_come_in_great_numbers(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    let url = format!("http://{}/", cluster.onion()?);
    let clients = (0..2).map(|_| network().client("crowd", Warmth::Warm)).collect::<Result<Vec<Client>>>()?;
    let held = nodes.named("gamma")?;
    let over = AtomicBool::new(false);
    let count = std::thread::scope(|scope| {
        let visitors: Vec<_> = clients
            .iter()
            .flat_map(|client| (0..CROWD).map(move |user| (client, user)))
            .map(|(client, user)| {
                let (url, over) = (&url, &over);
                scope.spawn(move || {
                    let visits = (0..).take_while(|_| !over.load(Ordering::Relaxed));
                    visits.filter(|visit| client.get_isolated(&format!("{user}-{visit}"), url, CROWDED).is_ok()).count()
                })
            })
            .collect();
        let count = cluster
            .wait_until("a node refuses introductions", PATIENCE, || {
                held.stop()?;
                std::thread::sleep(HELD);
                held.cont()?;
                let count = refused(nodes, "introductions_over_limit")?;
                ensure!(count > 0, "no node has refused one");
                Ok(())
            })
            .and_then(|()| undisturbed(cluster, nodes, "introductions_over_limit"));
        over.store(true, Ordering::Relaxed);
        let served: usize = visitors.into_iter().filter_map(|visitor| visitor.join().ok()).sum();
        progress.report(format_args!("{served} requests from a crowd of {} were served", 2 * CROWD));
        count
    })?;
    progress.report(format_args!("{count} introductions were refused, no other client disturbed"));
    Ok(())
}
