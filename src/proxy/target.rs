//! Targets: where a node sends its clients' streams, and their text form in the configuration.
//!
//! A target is on this host, unless the operator consents to a private network
//! ([`Target::leaves_host`]) or names another onion service, which is reached over Tor.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::io::AsyncWriteExt;

use super::header::ProxyProtocol;
use crate::stream::BoxStream;
use crate::tor::ExportedCircuitId;
use rustbalance_gossip::id::OnionAddress;

use super::check::PortCheck;
use super::private::{HostName, is_private};

/// Longest path of a Unix socket in bytes: `sun_path` holds 108 with the closing zero.
pub const MAX_UNIX_PATH: usize = 107;

/// The forms of a target, for error messages and help texts.
const FORMS: &str =
    "write \"127.0.0.1:8080\", \"[::1]:8080\", \"localhost:8080\", \"unix:/run/app.sock\" or \"<address>.onion:80\"";

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// None of the known forms.
    #[error("{0:?} is not a target: {FORMS}")]
    Form(String),
    /// Port 0.
    #[error("the target {0:?} has port 0, which nothing listens on: {FORMS}")]
    PortZero(String),
    /// An address that is neither on this host nor private: a stream would leave Tor.
    #[error(
        "the target {0:?} is neither on this host nor an address of a private network (10.0.0.0/8, 172.16.0.0/12, \
         192.168.0.0/16, 100.64.0.0/10, fc00::/7): a client's stream never crosses the internet in the clear; {FORMS}"
    )]
    Public(String),
    /// Ends in `.onion`, and is not an onion address.
    #[error("the target {0:?} is not an onion address with a port: {1}")]
    Onion(String, String),
    /// A Unix path that depends on the working directory.
    #[error("the target {0:?} has a relative path: write it from the root, as in \"unix:/run/app.sock\"")]
    RelativePath(String),
    /// A path that is longer than a Unix socket's may be.
    #[error("the target {0:?} is too long for a Unix socket: its path has {1} bytes, at most {MAX_UNIX_PATH} fit")]
    LongPath(String, usize),
}

/// The target of a stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A loopback address.
    Tcp(SocketAddr),
    /// This port of 127.0.0.1, or else of ::1: `localhost`, for which no resolver is asked.
    Localhost(u16),
    /// A Unix stream socket, by absolute path.
    Unix(PathBuf),
    /// An address of a private network.
    Private(SocketAddr),
    /// A port of a host in a private network, by name: each address of the name must be private.
    Name(HostName, u16),
    /// A port of another onion service, over Tor.
    Onion(OnionAddress, u16),
}

impl Target {
    /// Whether streams to it leave this host unencrypted, which needs the operator's consent
    /// (`allow_private`).
    pub fn leaves_host(&self) -> bool {
        matches!(self, Self::Private(_) | Self::Name(..))
    }

    /// Why a target that leaves this host is refused without consent, and the ways out.
    pub fn consent_refusal(&self) -> String {
        format!(
            "the target \"{self}\" is not on this host, and a client's stream would leave it in the clear. For an \
             application in another container share a Unix socket between the two (a common volume and unix:/...), or the \
             network (network_mode: \"service:NAME\" or \"container:NAME\", and 127.0.0.1:PORT). If the network between the \
             two is yours alone, consent with allow_private = true in [[port]]"
        )
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) | Self::Private(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Onion(address, port) => write!(f, "{address}:{port}"),
            Self::Localhost(port) => write!(f, "localhost:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let text = text.trim();
        let shown = || text.chars().take(120).collect::<String>();
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_target(path, shown);
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| TargetError::Form(shown()))?;
        let port: u16 = port.parse().map_err(|_| TargetError::Form(shown()))?;
        if port == 0 {
            return Err(TargetError::PortZero(shown()));
        }
        let lower = host.to_ascii_lowercase();
        let of_ip = |ip: IpAddr| match SocketAddr::new(ip, port) {
            address if ip.is_loopback() => Ok(Self::Tcp(address)),
            address if is_private(ip) => Ok(Self::Private(address)),
            _ => Err(TargetError::Public(shown())),
        };
        if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return of_ip(IpAddr::V6(v6.parse().map_err(|_| TargetError::Form(shown()))?));
        }
        if let Ok(v4) = host.parse::<Ipv4Addr>() {
            return of_ip(IpAddr::V4(v4));
        }
        if lower == "localhost" {
            return Ok(Self::Localhost(port));
        }
        if lower.ends_with(".onion") {
            let address = lower.parse().map_err(|error| TargetError::Onion(shown(), format!("{error}")))?;
            return Ok(Self::Onion(address, port));
        }
        HostName::parse(&lower).map(|name| Self::Name(name, port)).ok_or_else(|| TargetError::Form(shown()))
    }
}

/// The target with the path after `unix:`.
fn unix_target(path: &str, shown: impl Fn() -> String) -> Result<Target, TargetError> {
    match path.len() {
        0 => Err(TargetError::Form(shown())),
        _ if path.contains('\0') => Err(TargetError::Form(shown())),
        _ if !Path::new(path).is_absolute() => Err(TargetError::RelativePath(shown())),
        length if length > MAX_UNIX_PATH => Err(TargetError::LongPath(shown(), length)),
        _ => Ok(Target::Unix(path.into())),
    }
}

/// A virtual port of a service, and its target on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortTarget {
    /// The port that clients see.
    pub port: u16,
    /// Where its streams go.
    pub target: Target,
    /// Whether the operator consents to a target that [leaves this host](Target::leaves_host).
    pub allow_private: bool,
    /// The header with which each connection to the target begins, if the target expects one.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How the target is checked.
    pub check: PortCheck,
}

impl PortTarget {
    /// A port whose target expects no header, and is checked by connecting to it.
    pub fn new(port: u16, target: Target) -> Self {
        Self { port, target, allow_private: false, proxy_protocol: None, check: PortCheck::default() }
    }

    /// Sends the header that the target expects at the beginning of a connection, if it does.
    /// `circuit`: the circuit of the client's stream; `None` for this node itself.
    pub(super) async fn send_header(
        &self,
        stream: &mut BoxStream,
        circuit: Option<ExportedCircuitId>,
    ) -> io::Result<()> {
        if let Some(protocol) = self.proxy_protocol {
            stream.write_all(&protocol.header(circuit, self.port)?).await?;
            stream.flush().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_target_reads_as_it_is_shown() {
        for text in ["127.0.0.1:8080", "127.8.8.8:1", "[::1]:65535", "unix:/run/app.sock"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in ["localhost:80", "LocalHost:80"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), "localhost:80");
        }
    }

    #[test]
    fn a_target_that_leaves_this_host_is_known_and_one_on_the_internet_is_refused() {
        for text in ["0.0.0.0:80", "9.9.9.9:80", "169.254.1.1:80", "[fe80::1]:80", "[::]:80", "[::ffff:9.9.9.9]:80"] {
            assert!(matches!(text.parse::<Target>(), Err(TargetError::Public(_))), "{text}");
        }
        for text in ["10.0.0.1:80", "172.17.0.1:8080", "[fd00::7]:80", "web:80", "host.docker.internal:80"] {
            let target = text.parse::<Target>().unwrap();
            assert!(target.leaves_host() && target.to_string() == text, "{text}");
            // Operators write these for an application in another container. The refusal names the
            // ways that work.
            let why = target.consent_refusal();
            assert!(
                why.contains("Unix socket") && why.contains("network_mode") && why.contains("allow_private"),
                "{why}"
            );
        }
    }

    #[test]
    fn another_onion_service_is_a_target_and_a_mistyped_one_is_refused() {
        let address = OnionAddress::from_public_key([7; 32]).to_string();
        let target = format!("{}:80", address.to_uppercase()).parse::<Target>().unwrap();
        assert_eq!(target.to_string(), format!("{address}:80"));
        assert!(!target.leaves_host(), "Tor encrypts it");
        for text in
            ["abc.onion:80".to_owned(), format!("www.{address}:80"), address.replacen(&address[..1], "7", 1) + ":80"]
        {
            assert!(matches!(text.parse::<Target>(), Err(TargetError::Onion(..))), "{text}");
        }
    }

    #[test]
    fn an_invalid_target_is_refused_with_the_reason() {
        for text in [
            "",
            "80",
            "127.0.0.1",
            "127.0.0.1:http",
            "127.0.0.1:99999",
            "::1:80",
            "unix:",
            "http://127.0.0.1:80",
            "1.2.3:80",
        ] {
            assert!(matches!(text.parse::<Target>(), Err(TargetError::Form(_))), "{text}");
        }
        for text in ["127.0.0.1:0", "localhost:0"] {
            assert!(matches!(text.parse::<Target>(), Err(TargetError::PortZero(_))), "{text}");
        }
        assert!(matches!("unix:app.sock".parse::<Target>(), Err(TargetError::RelativePath(_))));
        let long = format!("unix:/{}", "x".repeat(107));
        assert!(matches!(long.parse::<Target>(), Err(TargetError::LongPath(_, 108))));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            match text.parse::<Target>() {
                Ok(Target::Tcp(address)) => prop_assert!(address.ip().is_loopback()),
                Ok(Target::Private(address)) => prop_assert!(is_private(address.ip())),
                _ => {}
            }
        }
    }
}
