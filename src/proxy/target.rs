//! Targets: where a node sends its clients' streams, always on its own host; and their text form in
//! the configuration.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

use super::header::ProxyProtocol;
use crate::stream::BoxStream;
use crate::tor::ExportedCircuitId;

/// Longest path of a Unix socket in bytes: `sun_path` holds 108 with the closing zero.
pub const MAX_UNIX_PATH: usize = 107;

/// The forms of a target, for error messages and help texts.
const FORMS: &str = "write \"127.0.0.1:8080\", \"[::1]:8080\", \"localhost:8080\" or \"unix:/run/app.sock\"";

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// None of the known forms.
    #[error("{0:?} is not a target: {FORMS}")]
    Form(String),
    /// Port 0.
    #[error("the target {0:?} has port 0, which nothing listens on: {FORMS}")]
    PortZero(String),
    /// Another host: a stream that leaves this host would leave Tor.
    #[error(
        "the target {0:?} is not on this host: a client's stream never leaves it in the clear. For an application in \
         another container share a Unix socket between the two (a common volume and unix:/...), or the network \
         (network_mode: \"service:NAME\" or \"container:NAME\", and 127.0.0.1:PORT); {FORMS}"
    )]
    OtherHost(String),
    /// A Unix path that depends on the working directory.
    #[error("the target {0:?} has a relative path: write it from the root, as in \"unix:/run/app.sock\"")]
    RelativePath(String),
    /// A path that is longer than a Unix socket's may be.
    #[error("the target {0:?} is too long for a Unix socket: its path has {1} bytes, at most {MAX_UNIX_PATH} fit")]
    LongPath(String, usize),
}

/// The target of a stream: always on this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A loopback address.
    Tcp(SocketAddr),
    /// This port of 127.0.0.1, or else of ::1: `localhost`, for which no resolver is asked.
    Localhost(u16),
    /// A Unix stream socket, by absolute path.
    Unix(PathBuf),
}

impl Target {
    /// Connects. The caller bounds the time.
    pub async fn connect(&self) -> io::Result<BoxStream> {
        Ok(match self {
            Self::Tcp(address) => Box::new(connect_tcp(*address).await?),
            Self::Localhost(port) => Box::new(connect_localhost(*port).await?),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

async fn connect_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    #[expect(clippy::disallowed_methods, reason = "a loopback address, never a name")]
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Applications that are given `localhost` listen on 127.0.0.1, on ::1 or on both.
async fn connect_localhost(port: u16) -> io::Result<TcpStream> {
    let [v4, v6] =
        [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| SocketAddr::new(ip, port));
    match connect_tcp(v4).await {
        // Without free file descriptors of our own (EMFILE, ENFILE) the other attempt would fail,
        // too.
        Err(of_v4) if of_v4.raw_os_error().is_none_or(|code| !matches!(code, 23 | 24)) => {
            connect_tcp(v6).await.map_err(|of_v6| io::Error::new(of_v4.kind(), format!("{v4}: {of_v4}; {v6}: {of_v6}")))
        }
        outcome => outcome,
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
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
        let ip = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => IpAddr::V6(v6.parse().map_err(|_| TargetError::Form(shown()))?),
            None if host.eq_ignore_ascii_case("localhost") && port != 0 => return Ok(Self::Localhost(port)),
            None if host.eq_ignore_ascii_case("localhost") => return Err(TargetError::PortZero(shown())),
            None if host.is_empty() || host.contains([':', '/', ' ']) => return Err(TargetError::Form(shown())),
            None => IpAddr::V4(host.parse().map_err(|_| TargetError::OtherHost(shown()))?),
        };
        match ip {
            _ if !ip.is_loopback() => Err(TargetError::OtherHost(shown())),
            _ if port == 0 => Err(TargetError::PortZero(shown())),
            _ => Ok(Self::Tcp(SocketAddr::new(ip, port))),
        }
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
    /// The header with which each connection to the target begins, if the target expects one.
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl PortTarget {
    /// A port whose target expects no header.
    pub fn new(port: u16, target: Target) -> Self {
        Self { port, target, proxy_protocol: None }
    }

    /// Connects to the target for a stream on the circuit with this id, or for this node itself,
    /// and sends the header that the target expects. The caller bounds the time.
    pub async fn connect(&self, circuit: Option<ExportedCircuitId>) -> io::Result<BoxStream> {
        let mut stream = self.target.connect().await?;
        self.send_header(&mut stream, circuit).await?;
        Ok(stream)
    }

    /// Sends the header that the target expects at the beginning of a connection, if it does.
    async fn send_header(&self, stream: &mut BoxStream, circuit: Option<ExportedCircuitId>) -> io::Result<()> {
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

    #[tokio::test]
    async fn localhost_is_either_loopback() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = tokio::net::TcpListener::bind(host).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let target: Target = format!("localhost:{port}").parse().unwrap();
            target.connect().await.unwrap_or_else(|error| panic!("{host}: {error}"));
            drop(listener);
            let Err(error) = target.connect().await else { panic!("nothing listens") };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            for tried in [format!("127.0.0.1:{port}: "), format!("[::1]:{port}: ")] {
                assert!(error.to_string().contains(&tried), "{error}");
            }
        }
    }

    #[test]
    fn a_target_on_another_host_is_refused() {
        for text in ["10.0.0.1:80", "0.0.0.0:80", "[fe80::1]:80", "[::]:80", "example.com:80", "[::ffff:9.9.9.9]:80"] {
            assert!(matches!(text.parse::<Target>(), Err(TargetError::OtherHost(_))), "{text}");
        }
        // Operators write these for an application in another container. The error names the two
        // ways that work.
        for text in ["web:80", "172.17.0.1:8080", "host.docker.internal:80"] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("Unix socket") && error.contains("network_mode: \"service:NAME\""), "{error}");
        }
    }

    #[test]
    fn an_invalid_target_is_refused_with_the_reason() {
        for text in
            ["", "80", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", "::1:80", "unix:", "http://127.0.0.1:80"]
        {
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
            if let Ok(Target::Tcp(address)) = text.parse::<Target>() {
                prop_assert!(address.ip().is_loopback());
            }
        }
    }
}
