//! Every table and key of `rustbalance.toml`: name, allowed values, default and meaning.
//!
//! To add a key, add a field with its default to the struct that uses it, and one statement here,
//! which also decides when a change takes effect. The initial file, the reader with its errors,
//! `docs/CONFIGURATION.md` and the comparison at a reload follow from it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::NodeName;

use super::keys::Effect::{Restart, Running};
use super::keys::{KeyVisitor, duration};
use super::{
    ARTI_FILE_NAME, ClusterConfig, Config, GossipConfig, LogConfig, MetricsConfig, NodeConfig, WIREGUARD_PORT,
    WireguardConfig, WireguardDevice, port,
};
use crate::alerts::{AlertEvent, AlertSettings, Argv, Webhook};
use crate::canary::plan::CanarySettings;
use crate::control::ProblemKind;
use crate::frame;
use crate::health::HealthSettings;
use crate::join::DoorLimits;
use crate::link::LinkLimits;
use crate::log::LogLevel;
use crate::proxy::ProxyLimits;
use crate::tor::ServiceLimits;
use crate::wireguard::{MOST_ENDPOINTS, is_possible};

/// Passes all tables and keys to the visitor, in the order in which the initial file has them:
/// first the keys of the top level.
pub(super) fn walk<K: KeyVisitor>(keys: &mut K, config: &mut Config) {
    threads(keys, &mut config.threads);
    arti(keys, config);
    node(keys, &mut config.node);
    port::ports(keys, &mut config.ports, &mut config.further_ports);
    cluster(keys, &mut config.cluster);
    limits(keys, &mut config.service, &mut config.proxy);
    health(keys, &mut config.health);
    canary(keys, &mut config.canary);
    links(keys, &mut config.links);
    joins(keys, &mut config.joins);
    gossip(keys, &mut config.gossip);
    wireguard(keys, &mut config.wireguard);
    metrics(keys, &mut config.metrics);
    alerts(keys, &mut config.alerts);
    log(keys, &mut config.log);
}

/// Keys that had another name: table, former name, name. The reader takes the former one too, with
/// a hint.
const RENAMED: [(&str, &str, &str); 8] = [
    ("[links]", "carried_joins_of_one", "carried_joins_per_member"),
    ("[links]", "ping", "ping_interval"),
    ("[links]", "silence", "silence_timeout"),
    ("[joins]", "at_once", "concurrent"),
    ("[joins]", "every", "interval"),
    ("[joins]", "patience", "message_timeout"),
    ("[gossip]", "strangers", "unknown_nodes"),
    ("[gossip]", "waiting", "pending_records"),
];

/// The former name of a key, if it had one.
pub(super) fn former_name(table: &str, name: &str) -> Option<&'static str> {
    RENAMED.iter().find(|(in_table, _, now)| (*in_table, *now) == (table, name)).map(|(_, former, _)| *former)
}

pub(super) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const DAY: Duration = seconds(24 * 3600);

fn threads(keys: &mut impl KeyVisitor, threads: &mut Option<usize>) {
    let meaning = "Threads of the daemon. Unless set, one for two processors. More of them serve more clients at once, at \
                   more processor time for each byte.";
    keys.optional("threads", Restart, 1..=64, threads, 1, meaning);
}

fn arti(keys: &mut impl KeyVisitor, config: &mut Config) {
    let (file, example) = (&mut config.arti_file, PathBuf::from(ARTI_FILE_NAME));
    let meaning = "A file in the state directory with Tor's settings, to use instead of the table [arti].";
    keys.optional("arti_config", Restart, .., file, example, meaning);
    let is_file = file.is_some();
    let meaning = "Tor's settings (bridges, vanguards, a private network), as keys of Arti, the Tor implementation in this \
                   daemon. Arti's data is always in the state directory; its place cannot be set.";
    let is_table = keys.foreign("arti", Restart, meaning, &mut config.arti);
    keys.require("arti_config", !(is_file && is_table), || "there is a table [arti] too: keep one of the two".into());
}

fn node(keys: &mut impl KeyVisitor, node: &mut NodeConfig) {
    keys.table("node", "Values that this node announces to the others.");
    let meaning = "A name for this node, which `status` of every member shows beside its address, and which `evict` takes. Only \
                   members learn it.";
    keys.optional("name", Running, .., &mut node.name, NodeName::example(), meaning);
    let meaning = "Order in which publishers are chosen to publish the address: the lowest number first.";
    keys.key("priority", Running, 0..=255, &mut node.priority, meaning);
    keys.key(
        "weight",
        Running,
        1..=100,
        &mut node.weight,
        "Share of the clients that this node takes, relative to the weights of the other nodes.",
    );
}

fn cluster(keys: &mut impl KeyVisitor, it: &mut ClusterConfig) {
    keys.table("cluster", "Heartbeats, the right to publish, and introduction points.");
    let range = millis(200)..=seconds(30);
    keys.key(
        "heartbeat",
        Restart,
        range,
        &mut it.heartbeat,
        "Time between two heartbeats. Set the same on every node.",
    );
    let range = seconds(3)..=seconds(600);
    let meaning =
        "How long the right to publish lasts without renewal: at least 3 heartbeats. Set the same on every node.";
    keys.key("lease_ttl", Restart, range, &mut it.lease_ttl, meaning);
    keys.require("lease_ttl", it.lease_ttl >= it.heartbeat * 3, || {
        let (ttl, heartbeat) = (duration(it.lease_ttl), duration(it.heartbeat));
        format!("{ttl} is shorter than 3 heartbeats of {heartbeat}: a lease must outlive the loss of one")
    });
    keys.key("intro_points", Running, 1..=10, &mut it.intro_points, "Introduction points that this node keeps open.");
    let meaning = "Keep the introduction points of a silent node in the descriptor for 10 to 60 min, while publishers \
                   stand in at them. Set the same on all publishers.";
    keys.key("hide_outages", Running, .., &mut it.hide_outages, meaning);
}

fn limits(keys: &mut impl KeyVisitor, service: &mut ServiceLimits, proxy: &mut ProxyLimits) {
    keys.table("limits", "Limits on the load that clients can put on this node.");
    let count = || 1..=1_000_000;
    let meaning =
        "Streams of clients open at once. Each is a connection to a target: set no more than the targets accept.";
    keys.key("streams", Running, count(), &mut proxy.streams, meaning);
    keys.key(
        "streams_per_circuit",
        Running,
        count(),
        &mut service.streams_per_circuit,
        "Streams open at once on one circuit of a client.",
    );
    keys.key(
        "open_rendezvous",
        Running,
        count(),
        &mut service.open_rendezvous,
        "Circuits of clients (rendezvous circuits) open at once; fewer on a host with less than 1.6 GB of memory.",
    );
    keys.key(
        "pending_rendezvous",
        Running,
        count(),
        &mut service.pending_rendezvous,
        "Rendezvous circuits being built at once.",
    );
    circuits(keys, &mut service.refusals_per_circuit, proxy);
    let meaning = "Introductions that may wait at one introduction point. Further ones are dropped.";
    keys.key("introduction_queue", Running, count(), &mut service.introduction_queue, meaning);
    introduction_rate(keys, &mut service.introductions_per_second);
    keys.key(
        "connect_timeout",
        Running,
        seconds(1)..=seconds(60),
        &mut proxy.connect,
        "How long connecting to a target may take.",
    );
    let time = || seconds(1)..=DAY;
    keys.key(
        "idle_timeout",
        Running,
        time(),
        &mut proxy.idle,
        "A stream that carries nothing for this long is closed.",
    );
    keys.key(
        "stall_timeout",
        Running,
        time(),
        &mut proxy.stall,
        "A stream whose client or target reads nothing for this long is closed.",
    );
    let meaning = "A stream that has ended in one direction and carries nothing for this long is closed.";
    keys.key("half_closed_timeout", Running, time(), &mut proxy.half_closed, meaning);
    let meaning = "How long a node that stops serves the streams that are open. Under systemd, TimeoutStopSec= of the \
                   unit must be 30 s longer.";
    keys.key("shutdown_timeout", Running, seconds(1)..=seconds(3600), &mut proxy.shutdown, meaning);
}

/// The burst of streams if only the rate is set: several pages of a site at once, in browsers that
/// open six streams for each.
const DEFAULT_STREAMS_BURST: u32 = 32;

fn circuits(keys: &mut impl KeyVisitor, refusals: &mut Option<u32>, proxy: &mut ProxyLimits) {
    let (mut rate, mut burst) = proxy.circuit_streams_per_second.unzip();
    let count = || 1..=1_000_000;
    let meaning =
        "Streams per second that one circuit of a client may open. Further ones are refused. No limit unless set.";
    keys.optional("circuit_streams_per_second", Running, count(), &mut rate, 10, meaning);
    let meaning = "Streams that a circuit may open at once after a pause. Needs circuit_streams_per_second.";
    keys.optional("circuit_streams_burst", Running, count(), &mut burst, DEFAULT_STREAMS_BURST, meaning);
    keys.require("circuit_streams_burst", burst.is_none() || rate.is_some(), || {
        "needs circuit_streams_per_second".into()
    });
    proxy.circuit_streams_per_second = rate.map(|rate| (rate, burst.unwrap_or(DEFAULT_STREAMS_BURST.max(rate))));
    let meaning = "Bytes per second that the streams of one circuit may carry, both ways together, and at once after a \
                   pause. Beyond, they are slowed down. No limit unless set.";
    let range = 16_384..=1 << 40;
    keys.optional("circuit_bytes_per_second", Running, range, &mut proxy.circuit_bytes_per_second, 1 << 20, meaning);
    let meaning = "A circuit is closed when this many of its streams were refused within a minute because of \
                   streams_per_circuit or circuit_streams_per_second. Never unless set. Counts for new circuits.";
    keys.optional("circuit_refusals", Running, count(), refusals, 100, meaning);
}

/// The burst if only the rate is set: C tor's default.
const DEFAULT_BURST: u32 = 200;

fn introduction_rate(keys: &mut impl KeyVisitor, limit: &mut Option<(u32, u32)>) {
    let (mut rate, mut burst) = limit.unzip();
    let count = || 1..=1_000_000;
    let meaning = "Introductions per second that the relay of an introduction point passes on. No limit unless set.";
    keys.optional("introductions_per_second", Running, count(), &mut rate, 25, meaning);
    let meaning = "Introductions that the relay passes on at once after a pause. Needs introductions_per_second.";
    keys.optional("introductions_burst", Running, count(), &mut burst, DEFAULT_BURST, meaning);
    keys.require("introductions_burst", burst.is_none() || rate.is_some(), || "needs introductions_per_second".into());
    let of = rate.unwrap_or_default();
    keys.require("introductions_burst", burst.is_none_or(|burst| burst >= of), || {
        format!("{} is less than introductions_per_second, which is {of}", burst.unwrap_or_default())
    });
    *limit = rate.map(|rate| (rate, burst.unwrap_or(DEFAULT_BURST.max(rate))));
}

fn health(keys: &mut impl KeyVisitor, it: &mut HealthSettings) {
    keys.table(
        "health",
        "Checks of the targets. While one is down, this node's introduction points are not published. [port.health] sets \
         them for one port. A target over Tor is asked half a minute apart or more, and has half a minute to answer.",
    );
    let meaning = "Time between two checks of a target that does not answer. A quarter of it while a verdict is being \
                   settled.";
    keys.key("interval", Running, millis(100)..=seconds(600), &mut it.interval, meaning);
    let meaning = "Time between two checks of a target that answers. Each is a connection, which the target may log. Unless \
                   set, twice the interval.";
    let example = HealthSettings::default().interval * 2;
    keys.optional("healthy_interval", Running, millis(100)..=seconds(600), &mut it.healthy_interval, example, meaning);
    keys.key("timeout", Running, millis(100)..=seconds(60), &mut it.timeout, "How long a check may take.");
    let meaning = "Successful checks in a row after which a target that was down counts as healthy.";
    keys.key("successes", Running, 1..=100, &mut it.successes, meaning);
    keys.key(
        "failures",
        Running,
        1..=100,
        &mut it.failures,
        "Failed checks in a row after which a target counts as down.",
    );
}

fn canary(keys: &mut impl KeyVisitor, it: &mut CanarySettings) {
    let meaning = "Now and then this node uses the cluster's addresses as a client would: it fetches the descriptor from a \
                   directory and connects through introduction points, then closes the connection. What it finds broken of \
                   its own it repairs. `rustbalance canary` does the same at once.";
    keys.table("canary", meaning);
    keys.key("enabled", Running, .., &mut it.enabled, "Whether this node does so by itself.");
    let meaning = "Time between two runs on the node that publishes. On the others it is eight times as long, until a run \
                   finds a fault. If all is well, a run makes at most 13 circuits.";
    keys.key("interval", Running, seconds(60)..=DAY, &mut it.interval, meaning);
}

fn links(keys: &mut impl KeyVisitor, it: &mut LinkLimits) {
    keys.table("links", "Links to other members, and limits on the load that they can put on this node.");
    keys.key("neighbours", Running, 1..=64, &mut it.neighbours, "Members to which this node opens a link.");
    keys.key(
        "open",
        Running,
        2..=1024,
        &mut it.links,
        "Links open at once over each route, incoming and outgoing together.",
    );
    keys.require("open", it.links >= 2 * it.neighbours, || {
        let (links, neighbours) = (it.links, it.neighbours);
        format!("{links} is less than twice the {neighbours} neighbours: the same number may dial this node")
    });
    keys.key(
        "handshakes",
        Running,
        1..=1024,
        &mut it.handshakes,
        "Incoming links at once that have not finished the handshake.",
    );
    keys.key("accepts_per_second", Running, 1..=10_000, &mut it.accepts_per_second.0, "New incoming links per second.");
    keys.key(
        "accepts_burst",
        Running,
        1..=10_000,
        &mut it.accepts_per_second.1,
        "New incoming links at once after a pause.",
    );
    keys.key(
        "carried_joins",
        Running,
        1..=1024,
        &mut it.carried.0,
        "Joining nodes at once that reach this node through other members.",
    );
    keys.key("carried_joins_per_member", Running, 1..=1024, &mut it.carried.1, "The same, through one member.");
    let time = |most| millis(100)..=seconds(most);
    keys.key("dial_timeout", Running, time(300), &mut it.dial, "How long connecting to a member may take.");
    keys.key("handshake_timeout", Running, time(120), &mut it.handshake, "How long the handshake of a link may take.");
    keys.key("ping_interval", Running, time(60), &mut it.ping, "Time without frames after which a link is pinged.");
    keys.key(
        "silence_timeout",
        Running,
        time(300),
        &mut it.silence,
        "A link on which nothing arrives for this long is closed. At least 2 pings.",
    );
    keys.require("silence_timeout", it.silence >= it.ping * 2, || {
        format!("{} is shorter than 2 pings of {}", duration(it.silence), duration(it.ping))
    });
    keys.key(
        "write_timeout",
        Running,
        time(300),
        &mut it.write,
        "A link whose other side reads nothing for this long is closed.",
    );
    keys.key("queue", Running, 1..=10_000, &mut it.queue, "Messages that may wait to be sent on one link.");
    keys.key(
        "bytes_per_second",
        Running,
        16_384..=1 << 30,
        &mut it.bytes_per_second,
        "Bytes of gossip accepted from one member per second.",
    );
    let range = 2 * frame::MAX as u64..=1 << 30;
    keys.key(
        "bytes_burst",
        Running,
        range,
        &mut it.bytes_burst,
        "Bytes of gossip accepted from one member at once after a pause.",
    );
}

fn joins(keys: &mut impl KeyVisitor, it: &mut DoorLimits) {
    keys.table("joins", "Limits on the load that joining nodes can put on this node.");
    keys.key("concurrent", Running, 1..=1024, &mut it.at_once, "Joining nodes served at once.");
    keys.key("burst", Running, 1..=10_000, &mut it.burst, "Joining nodes admitted in a row after a pause.");
    keys.key(
        "interval",
        Running,
        millis(100)..=seconds(600),
        &mut it.every,
        "After such a burst, one joining node is admitted in each interval of this length.",
    );
    keys.key(
        "message_timeout",
        Running,
        millis(100)..=seconds(300),
        &mut it.patience,
        "How long to wait for the next message of a joining node.",
    );
    keys.key(
        "record_timeout",
        Running,
        millis(100)..=seconds(120),
        &mut it.record,
        "How long storing a new member may take.",
    );
}

fn gossip(keys: &mut impl KeyVisitor, it: &mut GossipConfig) {
    keys.table("gossip", "Limits on the gossip of other members that this node keeps.");
    keys.key(
        "unknown_nodes",
        Running,
        1..=256,
        &mut it.mesh.unknown_nodes,
        "Unknown nodes whose gossip is kept. A node that has restarted counts again.",
    );
    keys.key(
        "node_bytes",
        Running,
        65_536..=1 << 26,
        &mut it.mesh.node_bytes,
        "Bytes of gossip kept for one incarnation (one start) of a node.",
    );
    keys.key(
        "pending_records",
        Running,
        1..=100_000,
        &mut it.waiting,
        "Records kept until the certificates of their signer arrive.",
    );
}

fn log(keys: &mut impl KeyVisitor, it: &mut LogConfig) {
    keys.table("log", "What the daemon logs. The environment variable RUSTBALANCE_LOG takes precedence.");
    let meaning = "\"warn\", \"info\", \"debug\" or \"trace\". Unless set, \"info\", and more with -v.";
    keys.optional("level", Running, .., &mut it.level, LogLevel::Info, meaning);
    let meaning = "Whether lines show only the beginning of onion addresses, and no IP addresses of other hosts.";
    keys.key("safe_logging", Running, .., &mut it.safe_logging, meaning);
}

fn wireguard(keys: &mut impl KeyVisitor, it: &mut WireguardConfig) {
    let meaning = "A faster route for the cluster's own messages, between nodes that have it. With it, the other members \
                   learn this node's addresses, and the networks in between see which hosts belong together and when \
                   they talk. The data of clients still goes over Tor alone.";
    keys.table("wireguard", meaning);
    keys.optional(
        "enabled",
        Running,
        ..,
        &mut it.enabled,
        true,
        "Whether this node takes part. It does not unless set.",
    );
    let example = vec![SocketAddr::from(([203, 0, 113, 7], WIREGUARD_PORT))];
    let meaning = "Where to listen (UDP): an address of this host with a port, or a list of an IPv4 and an IPv6 address. \
                   Unless set, the addresses of the default routes.";
    keys.optional("listen", Running, .., &mut it.listen, example.clone(), meaning);
    let listen = it.listen.as_deref().unwrap_or_default();
    let of = |is_ipv4: bool| listen.iter().filter(|address| address.is_ipv4() == is_ipv4).count();
    keys.require(
        "listen",
        it.listen.is_none() || (1..=2).contains(&listen.len()) && of(true) < 2 && of(false) < 2,
        || "needs one IPv4 address, one IPv6 address, or one of each".into(),
    );
    let unfit = listen.iter().find(|address| !is_possible(address));
    keys.require("listen", unfit.is_none(), || {
        format!(
            "{} is not an address of one network interface with a port",
            unfit.map(ToString::to_string).unwrap_or_default()
        )
    });
    let meaning = "Where other nodes send to this one, if not to the addresses in listen: behind a router, the router's \
                   address and forwarded port. An empty list: other nodes wait until this one has sent to them.";
    keys.optional("endpoints", Running, .., &mut it.endpoints, example, meaning);
    let endpoints = it.endpoints.as_deref().unwrap_or_default();
    keys.require("endpoints", endpoints.len() <= MOST_ENDPOINTS, || {
        format!("{} addresses, and at most {MOST_ENDPOINTS} are allowed", endpoints.len())
    });
    let unfit = endpoints.iter().find(|address| !is_possible(address));
    keys.require("endpoints", unfit.is_none(), || {
        format!("{} is not an address that other nodes can send to", unfit.map(ToString::to_string).unwrap_or_default())
    });
    let meaning = "What carries the packets: \"userspace\", the daemon itself, without privileges or a network interface; \
                   or \"kernel\", which needs CAP_NET_ADMIN and makes an interface, through which the other members reach \
                   every service of this host that listens on all addresses (OPERATIONS).";
    keys.key("device", Restart, .., &mut it.device, meaning);
    let ports: BTreeSet<_> = it.listen.iter().flatten().map(SocketAddr::port).collect();
    keys.require("listen", it.device == WireguardDevice::Userspace || ports.len() < 2, || {
        "needs the same port for both addresses, because the kernel has one".into()
    });
}

fn metrics(keys: &mut impl KeyVisitor, it: &mut MetricsConfig) {
    let meaning = "What Prometheus and other monitors read. The socket metrics.sock in the state directory always answers \
                   /metrics, /health and /ready over HTTP.";
    keys.table("metrics", meaning);
    let meaning =
        "A loopback address with a port that answers the same. Every user and program of this host can ask there.";
    keys.optional("listen", Restart, .., &mut it.listen, SocketAddr::from(([127, 0, 0, 1], 9441)), meaning);
    keys.require("listen", it.listen.is_none_or(|address| address.ip().is_loopback() && address.port() != 0), || {
        let address = it.listen.map(|address| address.to_string()).unwrap_or_default();
        format!(
            "{address} is not a port of a loopback address: metrics tell about clients and members, so other hosts must not \
             reach them; write \"127.0.0.1:9441\" or \"[::1]:9441\", and let a monitor elsewhere come through a tunnel such \
             as SSH"
        )
    });
}

fn alerts(keys: &mut impl KeyVisitor, it: &mut AlertSettings) {
    let meaning = "Where this node reports that something is wrong, and that it is over. `rustbalance alert test` tries it out. \
                   Every node sends its own alerts.";
    keys.table("alerts", meaning);
    let [page, ops] = ["/usr/local/bin/page", "--ops"].map(str::to_owned);
    if let Ok(example) = Argv::try_from(vec![page, ops]) {
        let meaning = "A program to run for each alert, with its arguments: without a shell, with the alert as JSON on standard \
                       input.";
        keys.optional("command", Running, .., &mut it.command, example, meaning);
    }
    let address = ServiceId::from_public_key([0x5a; 32]);
    if let Ok(example) = format!("http://{address}/hook").parse::<Webhook>() {
        let meaning = "A URL to which each alert is posted as JSON: of an onion service, which is reached through Tor, or of a \
                       loopback address.";
        keys.optional("webhook", Running, .., &mut it.webhook, example, meaning);
    }
    let meaning = "A file with headers for the webhook, such as \"Authorization: Bearer ...\", one on each line; relative to the \
                   state directory. Only the daemon's user may have access to it.";
    let example = PathBuf::from("webhook-headers");
    keys.optional("webhook_headers", Running, .., &mut it.webhook_headers, example, meaning);
    keys.require("webhook_headers", it.webhook_headers.is_none() || it.webhook.is_some(), || "needs webhook".into());
    let meaning = "How long the command or the webhook may take for one alert.";
    keys.key("timeout", Running, seconds(1)..=seconds(60), &mut it.timeout, meaning);
    let example = [ProblemKind::TargetDown, ProblemKind::NodeLost].map(AlertEvent::Problem).into();
    let meaning = "The events to send alerts about. Unless set, all: the kinds of problems in `status --json`, and \
                   \"publisher_changed\".";
    keys.optional("events", Running, .., &mut it.rules.events, example, meaning);
    let meaning = "How long most problems must last before an alert is sent, and be gone before it is resolved. After the start \
                   of the daemon, alerts are held back for twice as long.";
    keys.key("after", Running, millis(100)..=seconds(3600), &mut it.rules.after, meaning);
    let meaning = "Interval in which an alert is repeated while the problem lasts.";
    keys.key("repeat", Running, seconds(60)..=7 * DAY, &mut it.rules.repeat, meaning);
    let meaning = "Most alerts within an hour. Further ones wait, and one alert says how many.";
    keys.key("per_hour", Running, 2..=1000, &mut it.rules.per_hour, meaning);
}
