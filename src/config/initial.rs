//! The file that `init` and `join` write: what was asked for, and every other key as a comment with its default.

use std::fmt::Write;
use std::path::Path;

use super::read::{show, show_or_never};
use super::{
    ARTI_FILE_NAME, ClusterConfig, Config, ConfigError, DEFAULT_BURST, FILE_NAME, Limits, NodeConfig, peers, write_new,
};
use crate::health::HealthSettings;
use crate::proxy::PortTarget;

/// What the operator said at `init` or `join`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Initial {
    /// The virtual ports and their targets.
    pub ports: Vec<PortTarget>,
    /// Virtual ports of the address for which no target was given: written as comments.
    pub unserved: Vec<u16>,
    /// The text of the file given with `--arti-config` (see [`super::read_arti`]); it is copied as it is.
    pub arti: Option<String>,
}

impl Config {
    /// Writes the first configuration into the state directory `dir`; an existing one that says
    /// something else is an error, and stays.
    pub fn write_initial(dir: &Path, initial: &Initial) -> Result<(), ConfigError> {
        if let Some(arti) = &initial.arti {
            write_new(&dir.join(ARTI_FILE_NAME), arti)?;
        }
        write_new(&dir.join(FILE_NAME), &text(initial))
    }
}

/// The text of the file.
pub(super) fn text(initial: &Initial) -> String {
    let mut text = String::from(
        "# RustBalance on this node. Read when the daemon starts.\n\
         # A line that begins with \"#\" shows a default. Times have a unit: \"500ms\", \"2s\", \"30m\", \"1h\".\n\n\
         # How Tor is used (bridges, vanguards, a private network) is said in Arti's own words, in the table [arti] of this\n\
         # file or in the file named here. Where Arti stores its data is not: that is in this directory.\n",
    );
    text += &match initial.arti {
        Some(_) => format!("arti_config = {ARTI_FILE_NAME:?}\n"),
        None => format!("# arti_config = {ARTI_FILE_NAME:?}\n"),
    };
    for (title, keys) in tables().into_iter().chain(peers::tables()) {
        if title == "[cluster]" {
            text += &ports(&initial.ports);
            text += &unserved(&initial.unserved);
        }
        text += &format!("\n{title}\n");
        for (key, value, meaning) in keys {
            let _ = write!(text, "# {meaning}\n# {key} = {value}\n");
        }
    }
    text
}

fn ports(ports: &[PortTarget]) -> String {
    let mut text = String::from(
        "\n# A port of the onion address, and where its streams go on this host: \"127.0.0.1:8080\", \"[::1]:8080\" or\n\
         # \"unix:/run/app.sock\". More ports: repeat the table.\n",
    );
    for PortTarget { port, target } in ports {
        // As a TOML value: a path may hold quotes and backslashes.
        let target = toml::Value::String(target.to_string());
        let _ = write!(text, "[[port]]\nvirtual = {port}\ntarget = {target}\n");
    }
    text
}

fn unserved(ports: &[u16]) -> String {
    let mut text = String::new();
    for port in ports {
        let _ = write!(
            text,
            "\n# The address has port {port}, too. This node refuses it until it has a target: clients that reach another\n\
             # node are served, those that reach this one are not.\n\
             #[[port]]\n#virtual = {port}\n#target = \"127.0.0.1:{port}\"\n"
        );
    }
    text
}

/// A key, its default, its meaning.
pub(super) type Key = (&'static str, String, &'static str);

/// The tables but the ports' and those about other nodes, with each key, its default and its meaning.
fn tables() -> [(&'static str, Vec<Key>); 4] {
    let node = NodeConfig::default();
    let cluster = ClusterConfig::default();
    let limits = Limits::default();
    let health = HealthSettings::default();
    let time = |time| format!("\"{}\"", show(time));
    [
        (
            "[node]",
            vec![
                ("priority", node.priority.to_string(), "Who is asked first to publish: the lowest, 0 to 255."),
                ("weight", node.weight.to_string(), "This node's share of the load against the others', 1 to 100."),
            ],
        ),
        (
            "[cluster]",
            vec![
                ("heartbeat", time(cluster.heartbeat), "Between two signs of life. The same on every node."),
                ("lease_ttl", time(cluster.lease_ttl), "How long the right to publish lasts. The same on every node."),
                ("intro_points", cluster.intro_points.to_string(), "Introduction points this node keeps, 1 to 10."),
                (
                    "hide_outages",
                    cluster.hide_outages.to_string(),
                    "Points of a silent node stay published for 10 to 60 min, served by a publisher. On all publishers.",
                ),
            ],
        ),
        ("[limits]", limits_keys(&limits, time)),
        (
            "[health]",
            vec![
                ("interval", time(health.interval), "Between two connections to each target, which its log may show."),
                ("timeout", time(health.timeout), "How long one may take."),
                (
                    "failures",
                    health.failures.to_string(),
                    "So many failures in a row take this node out of the address.",
                ),
            ],
        ),
    ]
}

fn limits_keys(limits: &Limits, time: impl Fn(std::time::Duration) -> String) -> Vec<Key> {
    let proxy = &limits.proxy;
    let or_never = |time| format!("\"{}\"", show_or_never(time));
    vec![
        (
            "streams",
            proxy.streams.to_string(),
            "Clients' streams open at once, each a connection to a target: no more than the targets take.",
        ),
        ("streams_per_circuit", limits.streams_per_circuit.to_string(), "Of these, on one client's circuit."),
        ("open_rendezvous", limits.open_rendezvous.to_string(), "Clients' circuits open at once."),
        ("pending_rendezvous", limits.pending_rendezvous.to_string(), "Clients' circuits in the making at once."),
        ("introduction_queue", limits.introduction_queue.to_string(), "Clients waiting, per introduction point."),
        ("introductions_per_second", "25".into(), "Let the relays pass on so many clients a second; off when not set."),
        ("introductions_burst", DEFAULT_BURST.to_string(), "And so many at once. Only with introductions_per_second."),
        ("connect_timeout", time(proxy.connect), "How long connecting to a target may take."),
        (
            "idle_timeout",
            or_never(proxy.idle),
            "A stream on which nothing moves for this long is closed, or \"never\".",
        ),
        ("stall_timeout", or_never(proxy.stall), "A stream of which one side does not read for this long, likewise."),
        ("half_closed_timeout", time(proxy.half_closed), "The same once one side has ended and nothing moves."),
    ]
}
