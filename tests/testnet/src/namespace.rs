//! A network namespace for daemons, with a way to chosen ports of this host, in which all that is
//! sent is seen.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use serde::Deserialize;

/// The program that makes it.
const SCRIPT: &str = include_str!("namespace.py");
/// The state of a listening TCP socket in `/proc/net/tcp` (`TCP_LISTEN`).
const LISTEN: &str = "0A";
/// The flag of a listening Unix socket in `/proc/net/unix` (`__SO_ACCEPTCON`).
const ACCEPTS: u32 = 0x10000;

/// The namespace; dropped, it goes with all that runs in it but the daemons themselves.
#[derive(Debug)]
pub struct Namespace {
    helper: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    /// A process in it.
    holder: i32,
}

/// All that was sent in it since it was made: every packet, but of TCP from 127.0.0.1 to itself
/// only those that open a connection.
#[derive(Debug, Deserialize)]
pub struct Capture {
    /// One entry for each pair of addresses and ports.
    pub flows: Vec<Flow>,
    /// Packets that were sent and not looked at, because the machine was busy.
    pub dropped: u64,
}

/// Packets of one sender to one receiver.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Flow {
    /// `lo`, or `wire`: all that is for no address of this host.
    pub device: String,
    /// `tcp`, `udp`, `icmpv6`, or the number of another.
    pub protocol: String,
    /// The sender's address, and its port if the protocol has ports.
    pub source: String,
    /// 0 if there is none.
    pub source_port: u16,
    /// The receiver's address.
    pub target: String,
    /// 0 if there is none.
    pub target_port: u16,
    /// How many packets.
    pub packets: u64,
}

impl Namespace {
    /// Why there cannot be one here; `None` if there can.
    pub fn impossible() -> Option<String> {
        match Command::new("unshare").args(["--net", "true"]).output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Some(format!("cannot run unshare: {error}")),
        }
    }

    /// Makes a namespace; it ends with the value.
    pub fn open() -> Result<Self> {
        let mut helper = Command::new("/usr/bin/python3")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run python3")?;
        let (Some(input), Some(output)) = (helper.stdin.take(), helper.stdout.take()) else {
            bail!("python3 has no pipes");
        };
        let mut namespace = Self { helper, pipes: Mutex::new((input, BufReader::new(output))), holder: 0 };
        let first = namespace.read().context("the namespace was not made; python3 says why above")?;
        namespace.holder = first.trim().parse().with_context(|| format!("not a process: {first}"))?;
        Ok(namespace)
    }

    /// Its name, for nsenter.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder).into()
    }

    /// Makes this port of the host's 127.0.0.1 the same port of its own.
    pub fn forward(&self, port: u16) -> Result<()> {
        self.ask(&format!("forward {port}")).map(|_| ())
    }

    /// Sends a UDP datagram from within, to see that the capture would see it.
    pub fn probe(&self, address: &str, port: u16) -> Result<()> {
        self.ask(&format!("probe {address} {port}")).map(|_| ())
    }

    /// What was sent so far.
    pub fn capture(&self) -> Result<Capture> {
        let answer = self.ask("flows")?;
        serde_json::from_str(&answer).with_context(|| format!("not a capture: {answer}"))
    }

    /// What is listened on within: `tcp 127.0.0.1:80` (in the kernel's hexadecimal digits),
    /// `unix /run/x.sock`. Sockets that take datagrams from anywhere count as listeners.
    pub fn listeners(&self) -> Result<BTreeSet<String>> {
        let table = |name: &str| {
            let path = format!("/proc/{}/net/{name}", self.holder);
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let mut found = BTreeSet::new();
        for name in ["tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6"] {
            // A kernel may lack a protocol, and its table then.
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

    fn ask(&self, command: &str) -> Result<String> {
        {
            let mut pipes = self.pipes.lock();
            writeln!(pipes.0, "{command}").context("the namespace's helper has ended")?;
        }
        self.read().with_context(|| format!("the namespace's helper did not do: {command}"))
    }

    fn read(&self) -> Result<String> {
        let mut line = String::new();
        let mut pipes = self.pipes.lock();
        match pipes.1.read_line(&mut line)? {
            0 => bail!("the namespace's helper has ended"),
            _ => Ok(line),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}
