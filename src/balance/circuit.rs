//! The state of an introduction point's circuit, and how it is opened.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::tor::{Engine, Incoming, IntroRequest, OpenIntroPoint, TorError};

/// Time limit for opening one point.
const OPEN_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) enum Circuit {
    /// There is no circuit; it may be opened from this time on.
    Down {
        not_before: Duration,
    },
    Opening,
    Up,
}

impl Circuit {
    /// True if it should be opened now.
    pub(super) fn is_due(&self, mono: Duration) -> bool {
        matches!(self, Self::Down { not_before } if *not_before <= mono)
    }
}

/// Opens a point within [`OPEN_LIMIT`]. The error is a text for the log.
pub(super) async fn open(
    engine: &dyn Engine,
    request: IntroRequest,
    streams: mpsc::Sender<Incoming>,
) -> Result<Arc<dyn OpenIntroPoint>, String> {
    let opening = engine.open_intro_point(request, streams);
    let timeout = || TorError::Timeout { what: "opening an introduction point".into(), limit: OPEN_LIMIT };
    let opened = tokio::time::timeout(OPEN_LIMIT, opening).await.unwrap_or_else(|_| Err(timeout()));
    opened.map(Arc::from).map_err(|error| error.to_string())
}
