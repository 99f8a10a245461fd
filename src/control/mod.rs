//! How commands talk to the running daemon: over a Unix socket in the state directory, with one
//! JSON line as the request and one as the answer; then the connection ends.
//!
//! The daemon enters with [`bind`] and [`serve`], the commands with [`call`]. The modes of the
//! directory (0700) and of the socket (0600) keep other users out. Lines are bounded, every wait
//! has a timeout, and the number of callers at once is bounded.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustbalance_gossip::id::{AddressError, NodeId};
use rustbalance_gossip::record::{NodeName, Role};
use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

use crate::tor::ExportedCircuitId;
use crate::typed;

pub use canary::{
    CanaryDirectoryState, CanaryDirectoryStatus, CanaryPointState, CanaryPointStatus, CanaryRepairStatus,
    CanaryRunStatus, CanaryStatus,
};
pub use circuits::{CircuitList, CircuitStatus};
pub use client::call;
pub use invitation::{InvitationPrefix, InvitationPrefixError};
pub use problem::{LEAST_SPACE, Problem, ProblemKind};
pub use server::{Handler, bind, bind_socket, serve};
pub use status::{
    AlarmStatus, Bootstrap, ClockStatus, DirectoryStatus, IntroPointStatus, InvitationState, InvitationStatus,
    LinkStatus, MemberStatus, OtherPublisherStatus, PortStatus, PublicationStatus, PublishedPeriodStatus,
    PublishedPointStatus, PublisherStatus, StandInStatus, Status, TorRenewals, TrafficStatus, UsageStatus,
    WireguardPeerStatus, WireguardStatus, WireguardSwitch,
};

mod canary;
mod circuits;
mod client;
mod invitation;
mod problem;
mod server;
mod status;

/// The socket's name in the state directory.
pub const SOCKET_NAME: &str = "control.sock";
/// Largest request line, in bytes.
const MAX_REQUEST: u64 = 4096;
/// Initial capacity for a line, in bytes. Any line with a token fits: a buffer that grows leaves a
/// copy of its content behind.
const LINE_ROOM: usize = 4096;
/// Largest answer line, in bytes: the status of a thousand members fits.
const MAX_RESPONSE: u64 = 8 << 20;
/// How long a caller may take to send its line, and to take the answer.
const LINE_LIMIT: Duration = Duration::from_secs(10);

/// Why a command cannot talk to the daemon, or the daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No daemon listens.
    #[error("no daemon runs in {}: start it with `rustbalance run`", .0.display())]
    NotRunning(PathBuf),
    /// Another daemon listens already.
    #[error("another daemon answers on {}: stop it first", .0.display())]
    AlreadyRunning(PathBuf),
    /// The path does not fit into a socket's address.
    #[error(
        "the path {} has {} bytes, a Unix socket's has at most {}: choose a shorter state directory with --dir",
        .0.display(), .0.as_os_str().len(), crate::proxy::MAX_UNIX_PATH
    )]
    PathTooLong(PathBuf),
    /// The socket belongs to another user.
    #[error("may not talk to the daemon on {}: run this as the user the daemon runs as, or as root", .0.display())]
    NotAllowed(PathBuf),
    /// Any other failure of the socket.
    #[error("cannot {action} the socket {}", path.display())]
    Io {
        /// The operation, as in "cannot connect to the socket".
        action: &'static str,
        /// The path of the socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The daemon took too long.
    #[error("the daemon did not answer within {0:?}: it may be overloaded or frozen")]
    Timeout(Duration),
    /// The daemon's line cannot be read.
    #[error("the daemon's answer cannot be read: are the command and the daemon of one version?")]
    Garbled(#[source] serde_json::Error),
    /// The daemon closed the connection without an answer, or its answer is too large.
    #[error("the daemon broke off its answer")]
    BrokenOff,
}

/// A request to the daemon. The braces of variants without fields matter: serde ignores unknown
/// fields of a variant without them, and a newer command's `leave` that says "only if ..." would be
/// a plain `leave` here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Report the state of the node. Answered by [`Response::Status`].
    Status {},
    /// Make an invitation. Answered by [`Response::Invited`].
    Invite {
        /// The role of the joiner.
        role: Role,
        /// Its validity, in seconds from now.
        expires_seconds: u64,
        /// How many nodes may join with it.
        uses: u16,
    },
    /// Revoke an invitation. Answered by [`Response::Done`].
    RevokeInvitation {
        /// The invitation, by the beginning of its id.
        invitation: InvitationPrefix,
    },
    /// Acknowledge an alarm: the operator knows which nodes got the key of the address with this
    /// invitation. Answered by [`Response::Done`].
    Acknowledge {
        /// The invitation, by the beginning of its id.
        invitation: InvitationPrefix,
    },
    /// Tell the others that this node leaves, and stop. Answered by [`Response::Done`] once they
    /// know.
    Leave {},
    /// Take no new clients; go on serving those that are there.
    Drain {},
    /// Take clients again.
    Resume {},
    /// Report the last lines of the log. Answered by [`Response::RecentLog`].
    RecentLog {},
    /// Use all services as a client would, through all their introduction points. Answered by
    /// [`Response::Canary`] once that has ended.
    Canary {},
    /// Send an alert that tries out the configuration, and wait until it is delivered or not.
    /// Answered by [`Response::Done`] if all ways have taken it.
    TestAlert {},
    /// Read the configuration again and apply it. Answered by [`Response::Reloaded`].
    Reload {},
    /// Switch WireGuard on until the next start, as the configuration says. Answered by
    /// [`Response::Done`] once it runs.
    WireguardOn {},
    /// Switch WireGuard off until the next start.
    WireguardOff {},
    /// Report the open circuits of clients on this node. Answered by [`Response::Circuits`].
    Circuits {},
    /// Close a circuit of a client on this node, with all its streams.
    KillCircuit {
        /// The circuit.
        circuit: ExportedCircuitId,
    },
    /// Revoke another member.
    Evict {
        /// The node, by its name or the beginning of its address.
        node: NodePrefix,
    },
}

/// A node as a person names it: its name, its address or the beginning of its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodePrefix(String);

/// Why a text does not name a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodePrefixError {
    /// Neither an address nor the beginning of one.
    #[error(
        "{0:?} does not name a node: give its name or its address as `rustbalance status` shows it, or at least the first \
         {MIN_PREFIX} characters of the address"
    )]
    Form(String),
    /// As long as an address, but not valid.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Fewest characters of an address that name a node.
const MIN_PREFIX: usize = 4;
/// Most nodes that an error names, and characters of each address.
const MOST_CHOICES: usize = 6;
const CHOICE: usize = 16;

impl std::str::FromStr for NodePrefix {
    type Err = NodePrefixError;

    fn from_str(text: &str) -> Result<Self, NodePrefixError> {
        let (text, label) = (text.trim(), typed::label(text));
        match label.len() {
            56.. => Ok(Self(typed::address::<NodeId>(&label).map(|_| label)?)),
            // Both a name and the beginning of an address may look like this.
            _ if text.parse::<NodeName>().is_ok() => Ok(Self(text.into())),
            _ if is_prefix(&label) => Ok(Self(label)),
            _ => Err(NodePrefixError::Form(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for NodePrefix {
    type Error = NodePrefixError;

    fn try_from(text: String) -> Result<Self, NodePrefixError> {
        text.parse()
    }
}

impl From<NodePrefix> for String {
    fn from(prefix: NodePrefix) -> Self {
        prefix.0
    }
}

impl std::fmt::Display for NodePrefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl NodePrefix {
    /// The node that it names among `nodes`, each given with its name. A whole address also names a
    /// node that is not among them, such as a member that was never heard. Names are compared
    /// without regard to case. Each member chooses its own, so a name never decides between two
    /// nodes.
    ///
    /// # Errors
    /// A sentence for the operator, with the way out, if it names no node or several.
    pub fn choose(&self, nodes: impl IntoIterator<Item = (NodeId, Option<String>)>) -> Result<NodeId, String> {
        let label = typed::label(&self.0);
        let fits = |(node, name): &(NodeId, Option<String>)| {
            let named = name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(&self.0));
            named || (is_prefix(&label) && node.to_string().starts_with(&label))
        };
        let found: Vec<_> = nodes.into_iter().filter(fits).collect();
        match &found[..] {
            [(node, _)] => Ok(*node),
            [] => typed::address(&label).map_err(|_| {
                format!(
                    "no member has the name {0:?} or an address that begins with it: give the whole address of one that is \
                     not known here",
                    self.0
                )
            }),
            several => Err(format!(
                "several members fit {:?}: {}. Give the address of the one you mean, or more of its beginning",
                self.0,
                listed(several)
            )),
        }
    }
}

/// True if this is the beginning of an address, long enough to name a node.
fn is_prefix(label: &str) -> bool {
    label.len() >= MIN_PREFIX && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'))
}

/// Nodes to choose from: the beginnings of their addresses, long enough to differ, and their names.
fn listed(nodes: &[(NodeId, Option<String>)]) -> String {
    let shown = nodes.iter().take(MOST_CHOICES).map(|(node, name)| {
        let node = node.to_string();
        let start = node.get(..CHOICE).unwrap_or(&node);
        name.as_ref().map_or(start.to_owned(), |name| format!("{start} ({name})"))
    });
    let more = if nodes.len() > MOST_CHOICES { ", ..." } else { "" };
    format!("{}{more}", Vec::from_iter(shown).join(", "))
}

/// The text of a token on its way from the daemon to the person who asked for it: redacted in
/// `Debug`, zeroized on drop.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct TokenText(pub String);

impl std::fmt::Debug for TokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenText(redacted)")
    }
}

/// An answer of the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// The answer to [`Request::Status`].
    Status(Box<Status>),
    /// The answer to [`Request::Invite`].
    Invited {
        /// The address to join.
        master: String,
        /// The secret to join with.
        token: TokenText,
        /// The invitation's id, the public half of the token, in hexadecimal.
        id: String,
        /// When it ends, in seconds since the Unix epoch.
        expires: u64,
        /// A sentence for the operator about what keeps nodes from joining with it at the moment;
        /// `None` if nothing does.
        note: Option<String>,
    },
    /// The answer to [`Request::RecentLog`].
    RecentLog {
        /// The lines, the oldest first.
        lines: Vec<String>,
    },
    /// The answer to [`Request::Canary`].
    Canary {
        /// What was found at each service.
        services: Vec<CanaryRunStatus>,
    },
    /// The answer to [`Request::Reload`]. Each change in a sentence, without secrets.
    Reloaded {
        /// The changes that are in use now.
        applied: Vec<String>,
        /// The changes that take effect after a restart.
        after_restart: Vec<String>,
    },
    /// The answer to [`Request::Circuits`].
    Circuits(CircuitList),
    /// The request was carried out.
    Done {
        /// The outcome, in a sentence for the operator.
        message: String,
    },
    /// The request was refused.
    Refused {
        /// Why, and what to do, in a sentence for the operator.
        message: String,
    },
}

impl Response {
    /// Shorthand for a refusal.
    pub fn refused(message: impl std::fmt::Display) -> Self {
        Self::Refused { message: message.to_string() }
    }

    /// Shorthand for a success.
    pub fn done(message: impl std::fmt::Display) -> Self {
        Self::Done { message: message.to_string() }
    }
}

/// The path of the control socket in the state directory `dir`.
///
/// # Errors
/// [`ControlError::PathTooLong`] if it does not fit into a socket's address.
pub fn socket_path(dir: &Path) -> Result<PathBuf, ControlError> {
    path_of(dir, SOCKET_NAME)
}

/// The path of the Unix socket `name` in the state directory `dir`.
///
/// # Errors
/// [`ControlError::PathTooLong`] if it does not fit into a socket's address.
fn path_of(dir: &Path, name: &str) -> Result<PathBuf, ControlError> {
    let path = dir.join(name);
    match path.as_os_str().len() <= crate::proxy::MAX_UNIX_PATH {
        true => Ok(path),
        false => Err(ControlError::PathTooLong(path)),
    }
}

/// Reads one line of at most `most` bytes, including its end, and returns it without its end;
/// `None` if it is longer or not ended.
async fn read_line(from: &mut (impl tokio::io::AsyncRead + Unpin), most: u64) -> io::Result<Option<Vec<u8>>> {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
    let mut line = Vec::with_capacity(LINE_ROOM);
    BufReader::new(from.take(most)).read_until(b'\n', &mut line).await?;
    Ok(line.pop_if(|last| *last == b'\n').map(|_| line))
}

#[cfg(test)]
mod tests;
