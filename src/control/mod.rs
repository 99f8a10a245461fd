//! How the commands talk to the running daemon: a Unix socket in the state directory, one JSON line asked, one JSON
//! line answered, then the connection ends.
//!
//! The daemon enters with [`bind`] and [`serve`], the commands with [`call`]. The directory (0700) and the socket (0600)
//! are what keeps others out; lines are bounded, every wait has a timeout, and only so many callers are heard at once.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustbalance_gossip::id::{AddressError, NodeId};
use rustbalance_gossip::record::Role;
use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

use crate::typed;

pub use client::call;
pub use invitation::{InvitationPrefix, InvitationPrefixError};
pub use server::{Handler, bind, serve};
pub use status::{
    AlarmStatus, Bootstrap, IntroPointStatus, InvitationState, InvitationStatus, LinkStatus, MemberStatus, PortStatus,
    PublicationStatus, PublishedPeriodStatus, PublishedPointStatus, PublisherStatus, StandInStatus, Status,
    StrangerStatus, TrafficStatus,
};

mod client;
mod invitation;
mod server;
mod status;

/// The socket's name in the state directory.
pub const SOCKET_NAME: &str = "control.sock";
/// Largest request line, in bytes.
const MAX_REQUEST: u64 = 4096;
/// Room for any line with a token, in bytes: a buffer that outgrows its place leaves a copy behind.
const LINE_ROOM: usize = 4096;
/// Largest answer line, in bytes: the status of a thousand members fits.
const MAX_RESPONSE: u64 = 8 << 20;
/// How long a caller may take to send its line, and to take the answer.
const LINE_LIMIT: Duration = Duration::from_secs(10);

/// Why the daemon could not be talked to, or cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
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
    /// The socket belongs to somebody else.
    #[error("may not talk to the daemon on {}: run this as the user the daemon runs as, or as root", .0.display())]
    NotAllowed(PathBuf),
    /// Any other failure of the socket.
    #[error("cannot {action} the control socket {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why not.
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

/// What the daemon can be asked. The braces of those without fields matter: for a variant without them serde lets unknown
/// fields pass, and a newer command's `leave` that says "only if ..." would be a plain one here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How is it? Answered by [`Response::Status`].
    Status {},
    /// Make an invitation. Answered by [`Response::Invited`].
    Invite {
        /// What the joiner becomes.
        role: Role,
        /// For how long it is good.
        expires_seconds: u64,
        /// How many nodes may join with it.
        uses: u16,
    },
    /// Take an invitation back. Answered by [`Response::Done`].
    RevokeInvitation {
        /// Which: the daemon finds it by the beginning of its id.
        invitation: InvitationPrefix,
    },
    /// The operator knows to whom the key of the address was given with this invitation. Answered
    /// by [`Response::Done`].
    Acknowledge {
        /// Which: the daemon finds it by the beginning of its id.
        invitation: InvitationPrefix,
    },
    /// Say goodbye and stop. Answered by [`Response::Done`] once the others know.
    Leave {},
    /// Take no new clients, serve those that are there.
    Drain {},
    /// Take clients again.
    Resume {},
    /// Revoke another member.
    Evict {
        /// Whom: the daemon finds it by the beginning of its address.
        node: NodePrefix,
    },
}

/// A node as a person names it: its address or the beginning of it, in lower case, without `.onion`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodePrefix(String);

/// Why a text names no node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodePrefixError {
    /// Neither an address nor the beginning of one.
    #[error(
        "{0:?} names no node: give its address as `rustbalance status` shows it, or at least its first {MIN_PREFIX} \
         characters"
    )]
    Form(String),
    /// As long as an address, and not one.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Fewest characters of an address that name a node.
const MIN_PREFIX: usize = 4;

impl std::str::FromStr for NodePrefix {
    type Err = NodePrefixError;

    fn from_str(text: &str) -> Result<Self, NodePrefixError> {
        let label = typed::label(text);
        let base32 = label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
        match label.len() {
            56.. => Ok(Self(typed::address::<NodeId>(&label).map(|_| label)?)),
            MIN_PREFIX.. if base32 => Ok(Self(label)),
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
    /// The one of `nodes` that it names; a whole address also names one that is not known yet, such as a member that has
    /// never spoken. Else in words what to do.
    pub fn choose(&self, nodes: impl IntoIterator<Item = NodeId>) -> Result<NodeId, String> {
        let mut found = nodes.into_iter().filter(|node| node.to_string().starts_with(&self.0));
        match (found.next(), found.next()) {
            (Some(node), None) => Ok(node),
            (None, _) => typed::address(&self.0).map_err(|_| {
                format!(
                    "no member's address begins with {:?}: give the whole address of one that is not known here",
                    self.0
                )
            }),
            (Some(_), Some(_)) => Err(format!("several members' addresses begin with {:?}: give more of it", self.0)),
        }
    }
}

/// A token's text on its way from the daemon to the person who asked for it: redacted in `Debug`, zeroized on drop.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct TokenText(pub String);

impl std::fmt::Debug for TokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenText(redacted)")
    }
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Invite`].
    Invited {
        /// The address to join.
        master: String,
        /// The secret to join with.
        token: TokenText,
        /// The invitation's id, the public half of the token, in hexadecimal.
        id: String,
        /// When it ends, in seconds since the Unix epoch.
        expires: u64,
        /// A sentence for a person: what keeps nodes from joining with it at the moment.
        note: Option<String>,
    },
    /// It was done; in words what happened.
    Done {
        /// A sentence for a person.
        message: String,
    },
    /// It was not done; in words why, and what to do.
    Refused {
        /// A sentence for a person.
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

/// The socket's path in the state directory.
///
/// # Errors
/// [`ControlError::PathTooLong`] if a socket's address has no room for it.
pub fn socket_path(dir: &Path) -> Result<PathBuf, ControlError> {
    let path = dir.join(SOCKET_NAME);
    match path.as_os_str().len() <= crate::proxy::MAX_UNIX_PATH {
        true => Ok(path),
        false => Err(ControlError::PathTooLong(path)),
    }
}

/// Reads one line of at most `most` bytes, its end included; `None` if it is longer or not ended.
async fn read_line(from: &mut (impl tokio::io::AsyncRead + Unpin), most: u64) -> io::Result<Option<Vec<u8>>> {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
    let mut line = Vec::with_capacity(LINE_ROOM);
    BufReader::new(from.take(most)).read_until(b'\n', &mut line).await?;
    Ok(line.pop_if(|last| *last == b'\n').map(|_| line))
}

#[cfg(test)]
mod tests;
