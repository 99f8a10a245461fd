//! What can go wrong between us and the Tor network, in words an operator can act on.

/// Boxed cause.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A failure of the Tor engine. None of them changes what the engine holds.
#[derive(Debug, thiserror::Error)]
pub enum TorError {
    /// The Tor client could not be made from its configuration.
    #[error("cannot start Tor: {0}")]
    Config(String, #[source] Option<Cause>),
    /// The Tor client's files could not be opened. Worth another try: somebody else may have them, or the disk be full.
    #[error("cannot start Tor with its state in {}: {why}", dir.display())]
    State {
        /// Where they are.
        dir: std::path::PathBuf,
        /// In words.
        why: String,
    },
    /// What the Tor client keeps on disk is wrong in a way that only the operator can mend. Says
    /// which file, and how.
    #[error("cannot start Tor: {0}")]
    Files(String),
    /// Nothing can be built yet: the directory is not there.
    #[error("Tor is not ready yet: {0}")]
    NotReady(String),
    /// The other side could not be reached. Worth another try.
    #[error("cannot reach {to} over Tor: {why}")]
    Unreachable {
        /// The onion address or relay.
        to: String,
        /// In words.
        why: String,
        /// What Tor says.
        #[source]
        source: Option<Cause>,
    },
    /// The service is there, and does not let this node find it.
    #[error("{to} accepts none of this node's discovery keys")]
    ShutOut {
        /// The onion address.
        to: String,
    },
    /// It took longer than allowed. Worth another try.
    #[error("{what} took longer than {limit:?}")]
    Timeout {
        /// What was tried.
        what: String,
        /// The bound.
        limit: std::time::Duration,
    },
    /// A directory refused our descriptor.
    #[error("directory {directory} refused the descriptor: {status}")]
    Refused {
        /// Which.
        directory: String,
        /// Its HTTP status line.
        status: String,
    },
    /// No relay is left to choose.
    #[error("no relay is left to be an introduction point: {0}")]
    NoRelay(String),
    /// Keys, certificates or descriptor that cannot be built or read.
    #[error("{0}")]
    Invalid(String, #[source] Option<Cause>),
    /// The engine has to be made anew (the network's directory expired, or it was shut down).
    #[error("the Tor client has stopped: {0}")]
    Stopped(String),
}

impl TorError {
    /// True where the same call may go through later.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Config(..) | Self::Files(_) | Self::Invalid(..) | Self::Stopped(_))
    }
}
