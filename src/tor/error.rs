//! Failures of the Tor engine, with texts that an operator can act on.

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A failure of the Tor engine. The engine's state stays as it was before the call.
#[derive(Debug, thiserror::Error)]
pub enum TorError {
    /// The Tor client could not be made from its configuration.
    #[error("cannot start Tor: {0}")]
    Config(String, #[source] Option<Cause>),
    /// The Tor client's files could not be opened. A later attempt may succeed: another process may
    /// hold them now, or the disk may be full.
    #[error("cannot start Tor with its state in {}: {why}", dir.display())]
    State {
        /// Folder of the Tor client's state.
        dir: std::path::PathBuf,
        /// The cause, as text for the operator.
        why: String,
    },
    /// A file of the Tor client is damaged, or has the wrong permissions, and only the operator can
    /// mend it. The text names the file and the remedy.
    #[error("cannot start Tor: {0}")]
    Files(String),
    /// No circuit can be built yet: the network's directory is missing or out of date.
    #[error("Tor is not ready yet: {0}")]
    NotReady(String),
    /// The other side could not be reached. A later attempt may succeed.
    #[error("cannot reach {to} over Tor: {why}")]
    Unreachable {
        /// The onion address or relay.
        to: String,
        /// The cause, as text for the operator.
        why: String,
        /// The error of the Tor client, if it gave one.
        #[source]
        source: Option<Cause>,
    },
    /// The service has a descriptor, and none of this node's discovery keys decrypts it.
    #[error("{to} accepts none of this node's discovery keys")]
    ShutOut {
        /// The onion address.
        to: String,
    },
    /// The operation did not end within its limit. A later attempt may succeed.
    #[error("{what} took longer than {limit:?}")]
    Timeout {
        /// The operation.
        what: String,
        /// Its time limit.
        limit: std::time::Duration,
    },
    /// A directory refused our descriptor.
    #[error("directory {directory} refused the descriptor: {status}")]
    Refused {
        /// The directory relay's identities.
        directory: String,
        /// Its HTTP status line.
        status: String,
    },
    /// A relay or a service answered a visit with a refusal.
    #[error("{by} refuses: {why}")]
    Declined {
        /// The relay or port that refuses.
        by: String,
        /// Its reason.
        why: String,
    },
    /// No relay is left to choose.
    #[error("no relay is left to be an introduction point: {0}")]
    NoRelay(String),
    /// A key, certificate, descriptor or request that is not valid. Trying again does not help.
    #[error("{0}")]
    Invalid(String, #[source] Option<Cause>),
    /// The engine has stopped, and a new one has to be started (the network's directory expired, or
    /// it was shut down).
    #[error("the Tor client has stopped: {0}")]
    Stopped(String),
}

impl TorError {
    /// True if the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Config(..) | Self::Files(_) | Self::Invalid(..) | Self::Stopped(_))
    }
}
