//! Measures what WireGuard makes faster: the same cluster twice, over Tor alone and with WireGuard
//! as well, on hosts whose packets to each other and to the relays are late.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustbalance_testnet::cluster::{Cluster, Node};
use rustbalance_testnet::hosts::{HostTraffic, Hosts};
use rustbalance_testnet::{Network, Options};

use crate::bench::{print_table, quantile};
use crate::demo::RELAYS;

/// The nodes, each with a host and its address. The last one is a worker, and dies.
const NODES: [(&str, &str); 3] = [("one", "192.0.2.1"), ("two", "192.0.2.2"), ("three", "192.0.2.3")];
const NAMES: [&str; 3] = ["one", "two", "three"];
/// After this time the work that follows a start is over.
const SETTLING: Duration = Duration::from_secs(20);
/// How long the idle cluster is watched.
const WATCH: Duration = Duration::from_secs(60);
/// Pause between two looks at the round trips, which links measure every half minute or oftener.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// Pause between two looks for an event whose time is measured.
const POLL_PAUSE: Duration = Duration::from_millis(5);
/// Time limit for an event.
const LIMIT: Duration = Duration::from_secs(120);
/// The daemons' log as an operator has it. Tests log more, which would be charged to the nodes.
const LOG: &str = "warn,rustbalance=info,rustbalance_gossip=info";

/// What is measured.
#[derive(Clone, Copy)]
pub(crate) struct WireguardSizes {
    /// How long a packet takes one way, between nodes and between a node and the relays.
    pub(crate) delay: Duration,
    /// Deaths of a node.
    pub(crate) deaths: usize,
    /// Invitations, whose way to another node is measured.
    pub(crate) invitations: usize,
}

/// The measurements of one of the two clusters.
#[derive(Default)]
struct Subject {
    joins: Vec<Duration>,
    published: Vec<Duration>,
    round_trips: Vec<u64>,
    news: Vec<Duration>,
    detected: Vec<Duration>,
    replaced: Vec<Duration>,
    /// Of each node, a minute: processor time in ms, frames, and kB over Tor and by WireGuard.
    idle: [Vec<f64>; 4],
}

/// Runs the measurements, and prints a table in Markdown.
pub(crate) fn wireguard(binary: &Path, sizes: WireguardSizes) -> Result<()> {
    if let Some(reason) = Hosts::impossible() {
        bail!("hosts are not possible here: {reason}");
    }
    let options = Options { relays: RELAYS, ..Options::default() };
    let network = Network::boot_with_progress(options, |line| eprintln!("{line}"))?;
    let subjects = [false, true].map(|with| Subject::measure(&network, binary, sizes, with));
    let [over_tor, with_wireguard] = subjects;
    report(&[over_tor?, with_wireguard?], sizes);
    Ok(())
}

impl Subject {
    fn measure(network: &Network, binary: &Path, sizes: WireguardSizes, with_wireguard: bool) -> Result<Self> {
        let hosts = Arc::new(Hosts::open(&NAMES)?);
        for (name, address) in NODES {
            hosts.set_addresses(name, &[address])?;
        }
        hosts.set_delay(sizes.delay)?;
        let mut cluster = Cluster::logging(network, binary, LOG)?;
        if with_wireguard {
            cluster = cluster.with_wireguard(&NODES);
        }
        let cluster = cluster.across(&hosts)?;
        let route = if with_wireguard { "wireguard" } else { "tor" };
        eprintln!("a cluster forms; its gossip goes over {route}");
        let mut subject = Self::default();
        let nodes = subject.grow(&cluster)?;
        subject.rest(&cluster, &nodes, &hosts, route)?;
        for number in 1..=sizes.invitations {
            eprintln!("invitation {number} of {}", sizes.invitations);
            subject.news.push(invitation(&nodes)?);
        }
        for number in 1..=sizes.deaths {
            network.await_steady_period(LIMIT);
            eprintln!("death {number} of {}", sizes.deaths);
            subject.death(&cluster, &nodes, route)?;
        }
        Ok(subject)
    }

    /// Forms the cluster, and measures the joins.
    fn grow(&mut self, cluster: &Cluster<'_>) -> Result<Vec<Arc<Node>>> {
        let mut nodes = vec![cluster.init(NAMES[0])?];
        nodes[0].run()?;
        cluster.await_served(&nodes)?;
        for (name, role) in NAMES[1..].iter().zip(["publisher", "worker"]) {
            let token = nodes[0].invite(role, 1, "1h")?;
            let began = Instant::now();
            let node = cluster.join(name, &token)?;
            self.joins.push(began.elapsed());
            node.run()?;
            nodes.push(node);
            cluster.await_served(&nodes)?;
            self.published.push(began.elapsed());
        }
        Ok(nodes)
    }

    /// Watches the idle cluster.
    fn rest(&mut self, cluster: &Cluster<'_>, nodes: &[Arc<Node>], hosts: &Hosts, route: &str) -> Result<()> {
        all_linked_over(cluster, nodes, route)?;
        std::thread::sleep(SETTLING);
        eprintln!("watching it for {} s", WATCH.as_secs());
        let before = nodes.iter().map(|node| Look::at(node, hosts)).collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        while began.elapsed() < WATCH {
            std::thread::sleep(LOOK_PAUSE);
            for node in nodes {
                let links = node.status()?.links;
                self.round_trips.extend(links.iter().filter(|link| link.carries).filter_map(|link| link.round_trip_ms));
            }
        }
        let after = nodes.iter().map(|node| Look::at(node, hosts)).collect::<Result<Vec<_>>>()?;
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        for (was, is) in before.iter().zip(&after) {
            let amounts = [
                (is.cpu_ms - was.cpu_ms) as f64,
                // The counters of a link that was opened again start at 0.
                is.frames.saturating_sub(was.frames) as f64,
                (is.traffic.loopback - was.traffic.loopback) as f64 / 1000.0,
                (is.traffic.wire - was.traffic.wire) as f64 / 1000.0,
            ];
            self.idle.iter_mut().zip(amounts).for_each(|(column, amount)| column.push(amount / minutes));
        }
        Ok(())
    }

    /// Kills the last node, and starts it again.
    fn death(&mut self, cluster: &Cluster<'_>, nodes: &[Arc<Node>], route: &str) -> Result<()> {
        let [rest @ .., victim] = nodes else { bail!("no nodes") };
        let dead = victim.status()?.node;
        victim.kill9()?;
        let began = Instant::now();
        self.detected.push(time_until(began, || {
            for node in rest {
                ensure!(!node.status()?.alive().contains(&dead.as_str()), "{} believes it alive", node.name());
            }
            Ok(())
        })?);
        self.replaced.push(time_until(began, || {
            let status = rest[0].status()?;
            ensure!(status.published_of(&dead) == 0 && status.is_confirmed(), "it is on a directory");
            Ok(())
        })?);
        victim.run()?;
        cluster.await_served(nodes)?;
        all_linked_over(cluster, nodes, route)?;
        std::thread::sleep(SETTLING);
        Ok(())
    }
}

/// A node's counters at one moment.
struct Look {
    cpu_ms: u64,
    frames: u64,
    traffic: HostTraffic,
}

impl Look {
    fn at(node: &Node, hosts: &Hosts) -> Result<Self> {
        Ok(Self {
            frames: node.status()?.links.iter().map(|link| link.frames_out).sum(),
            cpu_ms: node.vitals().with_context(|| format!("{} does not run", node.name()))?.cpu_ms,
            traffic: hosts.traffic(node.name())?,
        })
    }
}

/// Waits until every node reaches every other over this route.
fn all_linked_over(cluster: &Cluster<'_>, nodes: &[Arc<Node>], route: &str) -> Result<()> {
    cluster.wait_until(&format!("all nodes reach each other over {route}"), LIMIT, || {
        for node in nodes {
            let status = node.status()?;
            let there = status.links.iter().filter(|link| link.carries && link.route == route).count();
            ensure!(there == nodes.len() - 1, "{}: {:?}", node.name(), status.links);
        }
        Ok(())
    })
}

/// Makes an invitation at one publisher, and returns the time until the last node knows it: with
/// the time of the command that makes it, and of the one that shows it.
fn invitation(nodes: &[Arc<Node>]) -> Result<Duration> {
    let [first, .., last] = nodes else { bail!("not two nodes") };
    let known = last.status()?.invitations.len();
    let began = Instant::now();
    first.invite("worker", 1, "1h")?;
    time_until(began, || {
        ensure!(last.status()?.invitations.len() > known, "it does not know the invitation");
        Ok(())
    })
}

/// Polls until `check` succeeds, and returns the time since `began`.
fn time_until(began: Instant, mut check: impl FnMut() -> Result<()>) -> Result<Duration> {
    loop {
        match check() {
            Ok(()) => return Ok(began.elapsed()),
            Err(error) if began.elapsed() > LIMIT => return Err(error.context(format!("not within {LIMIT:?}"))),
            Err(_) => std::thread::sleep(POLL_PAUSE),
        }
    }
}

/// Prints the table, with ratios to the cluster over Tor alone.
fn report(subjects: &[Subject], sizes: WireguardSizes) {
    let seconds = |times: &[Duration]| quantile(times, 0.5).map(|time| time.as_secs_f64());
    type Measure<'m> = (&'static str, Box<dyn Fn(&Subject) -> Option<f64> + 'm>);
    let idle = |at: usize| Box::new(move |subject: &Subject| quantile(&subject.idle[at], 0.5));
    let measures: [Measure<'_>; 10] = [
        (
            "round trip between two nodes (ms)",
            Box::new(|subject| quantile(&subject.round_trips, 0.5).map(|time| time as f64)),
        ),
        (
            "an invitation is known to another node (ms)",
            Box::new(|subject| seconds(&subject.news).map(|time| time * 1000.0)),
        ),
        ("a killed node is dead for both others (s)", Box::new(|subject| seconds(&subject.detected))),
        ("its points are off every directory (s)", Box::new(|subject| seconds(&subject.replaced))),
        ("`join` (s)", Box::new(|subject| seconds(&subject.joins))),
        ("from `join` to every directory (s)", Box::new(|subject| seconds(&subject.published))),
        ("processor of an idle node (ms a minute)", idle(0)),
        ("frames that it sends (a minute)", idle(1)),
        ("its traffic over Tor, both ways (kB a minute)", idle(2)),
        ("its traffic by WireGuard, both ways (kB a minute)", idle(3)),
    ];
    let rows = measures.iter().map(|(name, measure)| (*name, subjects.iter().map(measure).collect()));
    print_table(&["Tor alone", "with WireGuard"], rows);
    println!(
        "\nMedians of {} invitations, {} deaths, {} joins, and {} nodes; packets take {} ms one way.",
        sizes.invitations,
        sizes.deaths,
        NODES.len() - 1,
        NODES.len(),
        sizes.delay.as_millis()
    );
}
