//! Several hosts on one machine: each is a network namespace, and a router in between passes their
//! packets on, late, through a NAT, or not at all.
//!
//! The router is a process that holds the other end of each host's TUN device. So it needs neither
//! the kernel's NAT nor its `netem`, which not every machine has.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::helper::{self, Helper};

/// Run by python3: creates the namespaces, forwards ports, and is the router.
const SCRIPT: &str = include_str!("helper/hosts.py");
/// What gives a process a TUN device.
const TUN: &str = "/dev/net/tun";

/// Hosts without addresses, and their router. Dropping them ends the forwarding and the router;
/// daemons in the namespaces go on running.
#[derive(Debug)]
pub struct Hosts {
    helper: Helper,
    /// In the order of the namespaces.
    names: Vec<String>,
}

/// The packets that the router has got from the hosts. ICMPv6 and multicast are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RouterCounts {
    /// Passed on, over IPv4.
    pub passed_v4: u64,
    /// Passed on, over IPv6.
    pub passed_v6: u64,
    /// Lost because all are: [`Hosts::set_blocked`].
    pub blocked: u64,
    /// Lost because of their length: [`Hosts::set_longest`].
    pub too_long: u64,
    /// Lost because no host has the address.
    pub unroutable: u64,
    /// Lost because a NAT let them neither in nor out.
    pub refused_by_nat: u64,
    /// The longest packet that was passed on, with its IP header, in bytes.
    pub longest: u64,
}

/// The bytes that a host's interfaces have sent and received, with the headers of IP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTraffic {
    /// Between its own processes and the forwarded ports, both ways: the Tor client's connections.
    pub loopback: u64,
    /// To and from the router: WireGuard.
    pub wire: u64,
}

impl Hosts {
    /// Why hosts cannot be created here; `None` if they can.
    pub fn impossible() -> Option<String> {
        let has_tun = Path::new(TUN).exists();
        helper::impossible().or_else(|| (!has_tun).then(|| format!("there is no {TUN}")))
    }

    /// Creates hosts of these names.
    pub fn open(names: &[&str]) -> Result<Self> {
        let helper = Helper::start(SCRIPT, names)?;
        Ok(Self { helper, names: names.iter().map(|name| (*name).to_owned()).collect() })
    }

    /// The names of the hosts.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Replaces a host's addresses: one of IPv4, one of IPv6, or one of each. Its default routes
    /// begin there.
    pub fn set_addresses(&self, host: &str, addresses: &[&str]) -> Result<()> {
        self.ask_of("addresses", host, &addresses.join(" "))
    }

    /// Puts a host behind a NAT with this address, whose IPv6 does not pass, or behind none.
    pub fn set_nat(&self, host: &str, address: Option<&str>) -> Result<()> {
        self.ask_of("nat", host, address.unwrap_or_default())
    }

    /// Has the NAT of a host forget its connections, as at a restart of the router.
    pub fn forget_connections(&self, host: &str) -> Result<()> {
        self.ask_of("forget", host, "")
    }

    /// Delays all packets between hosts, and the far forwards that are connected from now on.
    pub fn set_delay(&self, one_way: Duration) -> Result<()> {
        self.set_path(&serde_json::json!({ "delay": one_way.as_secs_f64() }))
    }

    /// Loses all packets between hosts, without a sign.
    pub fn set_blocked(&self, blocked: bool) -> Result<()> {
        self.set_path(&serde_json::json!({ "blocked": blocked }))
    }

    /// Loses packets between hosts that are longer than this, in bytes, without a sign.
    pub fn set_longest(&self, bytes: usize) -> Result<()> {
        self.set_path(&serde_json::json!({ "longest": bytes }))
    }

    /// Sends datagrams of random bytes from a host to this IPv4 address, a thousand a second, and
    /// waits until they are sent.
    pub fn flood(&self, host: &str, address: &str, port: u16, number: u32) -> Result<()> {
        self.ask_of("flood", host, &format!("{address} {port} {number}"))
    }

    /// What the router has done so far.
    pub fn counts(&self) -> Result<RouterCounts> {
        let answer = self.helper.ask("counts")?;
        serde_json::from_str(&answer).with_context(|| format!("not the router's counts: {answer}"))
    }

    /// What a host's interfaces have carried so far.
    pub fn traffic(&self, host: &str) -> Result<HostTraffic> {
        let path = self.helper.proc(self.at(host)?).join("net/dev");
        let table = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // Received bytes are the first of eight fields, sent bytes the first of the next eight.
        let bytes = |device: &str| -> Option<(u64, u64)> {
            let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'))?;
            let mut fields = line.split_whitespace();
            Some((fields.next()?.parse().ok()?, fields.nth(7)?.parse().ok()?))
        };
        let missing = || format!("no interfaces in {table}");
        let ((_, loopback), (received, sent)) = bytes("lo").zip(bytes("wire")).with_context(missing)?;
        Ok(HostTraffic { loopback, wire: received + sent })
    }

    /// Runs `work` on a thread of a host, and waits for its end. Sockets that it opens stay there.
    pub fn within<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.helper.within(self.at(host)?, work)
    }

    /// The path of a host's namespace, for `nsenter`; `None` if there is no such host.
    pub(crate) fn path(&self, host: &str) -> Option<PathBuf> {
        Some(self.helper.path(self.at(host).ok()?))
    }

    /// Forwards a port of a host's 127.0.0.1 to the same port of this machine's. If it is far, as
    /// late as packets between hosts are.
    pub(crate) fn forward(&self, host: &str, port: u16, is_far: bool) -> Result<()> {
        self.ask_of(if is_far { "forward_far" } else { "forward" }, host, &port.to_string())
    }

    fn set_path(&self, properties: &serde_json::Value) -> Result<()> {
        self.helper.ask(&format!("path {properties}")).map(drop)
    }

    fn ask_of(&self, command: &str, host: &str, rest: &str) -> Result<()> {
        self.at(host)?;
        self.helper.ask(&format!("{command} {host} {rest}")).map(drop)
    }

    fn at(&self, host: &str) -> Result<usize> {
        self.names.iter().position(|name| name == host).with_context(|| format!("there is no host {host}"))
    }
}
