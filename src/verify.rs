//! Proof of publication: what each responsible directory holds of an address.
//!
//! Enter with [`verify`]. It needs a Tor client and the address alone, so any machine can do it: it
//! asks the directories that clients ask, over circuits as clients build them, and checks each
//! answer up to the address. Descriptors that only authorized clients can decrypt are checked in
//! their outer layer.

use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::iter;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::PeriodId;
use serde::Serialize;

use crate::tor::descriptor::{self, PublicReading};
use crate::tor::{Directory, Engine, Period, TorError};

/// Most directories that are asked at once.
const AT_ONCE: usize = 8;

/// What the directories hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The address.
    pub address: String,
    /// The time periods in which it is published, the one that clients ask for now first.
    pub periods: Vec<PeriodFindings>,
}

/// What the directories of one time period hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeriodFindings {
    /// The number of the period.
    pub number: u64,
    /// Its length, in minutes.
    pub length_minutes: u32,
    /// The highest revision that a directory holds; `None` if none holds a valid descriptor.
    pub revision: Option<u64>,
    /// The responsible directories, in the order of the hash ring.
    pub directories: Vec<DirectoryFinding>,
}

/// What one directory holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DirectoryFinding {
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// Its answer.
    #[serde(flatten)]
    pub answer: Answer,
}

/// The answer of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// A valid descriptor.
    Descriptor {
        /// Its revision.
        revision: u64,
        /// Its size, in bytes.
        bytes: usize,
        /// Its introduction points; `None` if only authorized clients can read them.
        points: Option<usize>,
    },
    /// It has no descriptor.
    Missing,
    /// Its descriptor is not valid: the reason.
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// It does not answer: the reason.
    Silent {
        /// Why, for a person.
        reason: String,
    },
}

impl Findings {
    /// Whether clients find the newest descriptor wherever they ask: each period has one, and no
    /// directory that answers holds another one or none.
    pub fn is_published(&self) -> bool {
        !self.periods.is_empty() && self.periods.iter().all(PeriodFindings::is_published)
    }
}

impl PeriodFindings {
    fn is_published(&self) -> bool {
        self.revision.is_some() && self.directories.iter().all(|directory| !self.misleads(directory))
    }

    /// Whether this directory answers clients with something else than the newest descriptor.
    pub fn misleads(&self, directory: &DirectoryFinding) -> bool {
        match &directory.answer {
            Answer::Descriptor { revision, .. } => Some(*revision) != self.revision,
            Answer::Missing | Answer::Invalid { .. } => true,
            Answer::Silent { .. } => false,
        }
    }
}

/// Asks every directory that is responsible for `service` now, each within `limit`.
///
/// # Errors
/// If the network's directory is missing, or the address is not one.
pub async fn verify(engine: &dyn Engine, service: ServiceId, limit: Duration) -> Result<Findings, TorError> {
    let mut periods = Vec::new();
    for period in engine.publication(service).await? {
        periods.push(verify_period(engine, service, &period, limit).await);
    }
    Ok(Findings { address: service.to_string(), periods })
}

async fn verify_period(engine: &dyn Engine, service: ServiceId, period: &Period, limit: Duration) -> PeriodFindings {
    let id = period.id;
    let asked = period.directories.iter().map(|directory| ask(engine, directory, service, id, limit));
    let directories: Vec<DirectoryFinding> = iter(asked).buffered(AT_ONCE).collect().await;
    let revisions = directories.iter().filter_map(|directory| match directory.answer {
        Answer::Descriptor { revision, .. } => Some(revision),
        _ => None,
    });
    let revision = revisions.max();
    PeriodFindings { number: id.number, length_minutes: id.length_minutes, revision, directories }
}

async fn ask(
    engine: &dyn Engine,
    directory: &Directory,
    service: ServiceId,
    period: PeriodId,
    limit: Duration,
) -> DirectoryFinding {
    let answer = match engine.fetch(directory, service, period, limit).await {
        Ok(Some(text)) => read(&text, service, period),
        Ok(None) => Answer::Missing,
        Err(error) => Answer::Silent { reason: error.to_string() },
    };
    DirectoryFinding { relay: directory.relay.to_string(), answer }
}

fn read(text: &str, service: ServiceId, period: PeriodId) -> Answer {
    match descriptor::read_public(text, service, period, SystemTime::now()) {
        Ok(PublicReading { revision, points }) => {
            Answer::Descriptor { revision, bytes: text.len(), points: points.map(|points| points.len()) }
        }
        Err(error) => Answer::Invalid { reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests;
