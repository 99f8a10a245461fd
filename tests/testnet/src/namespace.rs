//! A network namespace for daemons. It forwards chosen ports to this host and captures everything
//! that is sent in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::helper::{self, Helper};

/// Run by python3: creates the namespace, forwards ports and captures packets.
const SCRIPT: &str = include_str!("helper/namespace.py");
/// The state of a listening TCP socket in `/proc/net/tcp` (`TCP_LISTEN`).
const LISTEN: &str = "0A";
/// The flag of a listening Unix socket in `/proc/net/unix` (`__SO_ACCEPTCON`).
const ACCEPTS: u32 = 0x10000;

/// A network namespace. Dropping it ends the forwarding and the capture; daemons in it go on
/// running.
#[derive(Debug)]
pub struct Namespace(Helper);

/// Everything that was sent in the namespace since its creation. Of TCP from 127.0.0.1 to itself
/// only the packets that open a connection (SYN) are counted, of all else every packet.
#[derive(Debug, Deserialize)]
pub struct Capture {
    /// One entry per device, protocol and pair of addresses and ports.
    pub flows: Vec<Flow>,
    /// Packets that were sent but not captured because the machine was busy, since the previous
    /// call of [`Namespace::capture`] (the kernel resets this counter when it is read).
    pub dropped: u64,
}

/// The packets of one sender to one receiver.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Flow {
    /// `lo`, or `wire`: the default route, which takes every packet to an address outside of the
    /// namespace.
    pub device: String,
    /// `tcp`, `udp`, `icmpv6`, `ip N` for another protocol, or `ethernet` and four hexadecimal
    /// digits for a frame that is not IP.
    pub protocol: String,
    /// The sender's address; empty for a frame that is not IP.
    pub source: String,
    /// The sender's port; 0 if the protocol has no ports.
    pub source_port: u16,
    /// The receiver's address; empty for a frame that is not IP.
    pub target: String,
    /// The receiver's port; 0 if the protocol has no ports.
    pub target_port: u16,
    /// The number of packets.
    pub packets: u64,
}

impl Namespace {
    /// Why a namespace cannot be created here; `None` if it can.
    pub fn impossible() -> Option<String> {
        helper::impossible()
    }

    /// Creates a namespace.
    pub fn open() -> Result<Self> {
        Helper::start(SCRIPT, &[]).map(Self)
    }

    /// Its path, for `nsenter`.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path(0)
    }

    /// Forwards a port of the namespace's 127.0.0.1 to the same port of the host's 127.0.0.1.
    pub fn forward(&self, port: u16) -> Result<()> {
        self.0.ask(&format!("forward {port}")).map(|_| ())
    }

    /// Sends a UDP datagram from within the namespace, to prove that the capture sees one.
    pub fn probe(&self, address: &str, port: u16) -> Result<()> {
        self.0.ask(&format!("probe {address} {port}")).map(|_| ())
    }

    /// Everything that was sent so far.
    pub fn capture(&self) -> Result<Capture> {
        let answer = self.0.ask("flows")?;
        serde_json::from_str(&answer).with_context(|| format!("not a capture: {answer}"))
    }

    /// The listening sockets in the namespace, such as `tcp 0100007F:0050` (address and port in the
    /// kernel's hexadecimal digits) or `unix /run/x.sock`. Every UDP and raw socket counts as a
    /// listener.
    pub fn listeners(&self) -> Result<BTreeSet<String>> {
        let table = |name: &str| {
            let path = self.0.proc(0).join("net").join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let mut found = BTreeSet::new();
        for name in ["tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6"] {
            // A kernel without a protocol has no table for it.
            let Ok(table) = table(name) else { continue };
            for line in table.lines().skip(1) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let &[_, local, _, state, ..] = fields.as_slice() else { bail!("{name} has the line {line:?}") };
                if state == LISTEN || !name.starts_with("tcp") {
                    found.insert(format!("{name} {local}"));
                }
            }
        }
        for line in table("unix")?.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let &[_, _, _, flags, ..] = fields.as_slice() else { bail!("unix has the line {line:?}") };
            if u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & ACCEPTS != 0) {
                found.insert(format!("unix {}", fields.get(7).unwrap_or(&"")));
            }
        }
        Ok(found)
    }
}
