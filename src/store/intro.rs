//! Introduction points over restarts: a file each, `intro/<nonce>.point` in the folder of the service, and its replay log
//! beside it.
//!
//! Clients with an old descriptor go on using a point's keys, so a restart must find the nonce that they are derived
//! with; and what was seen with the keys must live exactly as long as that: the log is removed after it, never before.

use std::fs;
use std::path::PathBuf;

use data_encoding::HEXLOWER;
use rustbalance_gossip::codec;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{PointNonce, RelayId};
use serde::{Deserialize, Serialize};

use super::error::{Damage, StoreError};
use super::file::{self, Payload};
use super::kind::Kind;
use super::{Store, at_most, invalid};

/// The folder of introduction points, in the folder of a service.
pub(super) const FOLDER: &str = "intro";
/// Most introduction points kept of a service: those in use and those that old descriptors still name.
pub const MAX_STORED_POINTS: usize = 64;
/// How the name of a replay log ends.
const REPLAYS: &str = "replays";

/// An introduction point as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredIntroPoint {
    /// What its keys are derived with, and by which it is found.
    pub nonce: PointNonce,
    /// Where.
    pub relay: RelayId,
    /// When it was made, in seconds since the Unix epoch.
    pub created: u64,
    /// Introductions seen so far, as of the last time this was stored.
    pub introductions: u64,
    /// For how many seconds it is to serve.
    pub max_seconds: u64,
    /// For how many introductions.
    pub max_introductions: u64,
    /// When it retired, in seconds since the Unix epoch, if it has.
    pub retired: Option<u64>,
}

impl Store {
    /// Those of a service, the oldest first.
    pub fn intro_points(&self, service: ServiceId) -> Result<Vec<StoredIntroPoint>, StoreError> {
        let mut points = Vec::new();
        for (key, ending) in self.intro_files(service)? {
            if ending == Kind::IntroPoint.name() {
                points.push(self.read_intro_point(service, &key)?);
                at_most("introduction points", points.len(), MAX_STORED_POINTS)?;
            }
        }
        points.sort_by_key(|point| (point.created, point.relay));
        Ok(points)
    }

    /// Keeps a new one.
    pub fn add_intro_point(&self, service: ServiceId, point: &StoredIntroPoint) -> Result<(), StoreError> {
        let _changing = self.change();
        at_most("introduction points", self.intro_points(service)?.len() + 1, MAX_STORED_POINTS)?;
        file::create(&self.point_path(service, point.nonce), &encode_intro_point(service, point)?)
    }

    /// Notes how many introductions one has seen, and whether it has retired.
    pub fn update_intro_point(
        &self,
        service: ServiceId,
        nonce: PointNonce,
        introductions: u64,
        retired: Option<u64>,
    ) -> Result<(), StoreError> {
        let _changing = self.change();
        let mut point = self.read_intro_point(service, &hex(nonce))?;
        (point.introductions, point.retired) = (introductions, retired);
        file::replace(&self.point_path(service, nonce), &encode_intro_point(service, &point)?)
    }

    /// Forgets one and what was seen at it.
    pub fn remove_intro_point(&self, service: ServiceId, nonce: PointNonce) -> Result<(), StoreError> {
        let _changing = self.change();
        file::remove(&self.point_path(service, nonce))?;
        file::remove(&self.replay_log_path(service, nonce))
    }

    /// Where the replay log of one belongs (see [`crate::tor::ReplayLog::open`]).
    pub fn replay_log_path(&self, service: ServiceId, nonce: PointNonce) -> PathBuf {
        self.intro_path(service, &hex(nonce), REPLAYS)
    }

    /// Removes what a crash left: half-written files, and replay logs whose keys are gone.
    pub(super) fn sweep_intro_points(&self, service: ServiceId) -> Result<(), StoreError> {
        file::sweep(&self.intro_dir(service))?;
        for (key, ending) in self.intro_files(service)? {
            if ending == REPLAYS && !self.intro_path(service, &key, Kind::IntroPoint.name()).exists() {
                file::remove(&self.intro_path(service, &key, REPLAYS))?;
            }
        }
        Ok(())
    }

    fn intro_dir(&self, service: ServiceId) -> PathBuf {
        self.of(service).dir.join(FOLDER)
    }

    fn point_path(&self, service: ServiceId, nonce: PointNonce) -> PathBuf {
        self.intro_path(service, &hex(nonce), Kind::IntroPoint.name())
    }

    fn intro_path(&self, service: ServiceId, name: &str, ending: &str) -> PathBuf {
        self.intro_dir(service).join(format!("{name}.{ending}"))
    }

    /// Nonce in hexadecimal and ending of each file.
    pub(super) fn intro_files(&self, service: ServiceId) -> Result<Vec<(String, String)>, StoreError> {
        let dir = self.intro_dir(service);
        let failed = |error| StoreError::io("read", &dir, error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some((name, ending)) = name.to_str().and_then(|name| name.split_once('.')) {
                found.push((name.to_owned(), ending.to_owned()));
            }
        }
        Ok(found)
    }

    fn read_intro_point(&self, service: ServiceId, name: &str) -> Result<StoredIntroPoint, StoreError> {
        let kind = Kind::IntroPoint;
        let path = self.intro_path(service, name, kind.name());
        let (owner, payload) = file::read(&path, kind)?.ok_or_else(|| StoreError::NoIntroPoint(name.to_owned()))?;
        if owner != service.address() {
            return Err(StoreError::Damaged { path, kind, damage: Damage::Owner(owner) });
        }
        let point: StoredIntroPoint =
            codec::decode(&payload, kind.max_payload()).map_err(|error| StoreError::content(&path, kind, error))?;
        if hex(point.nonce) != name {
            return Err(StoreError::content(&path, kind, "its name is not that of its nonce"));
        }
        Ok(point)
    }
}

fn encode_intro_point(service: ServiceId, point: &StoredIntroPoint) -> Result<Payload, StoreError> {
    let payload = codec::encode(point).map_err(|error| invalid("an introduction point", error))?;
    Ok(file::encode(Kind::IntroPoint, service.address(), &payload))
}

fn hex(nonce: PointNonce) -> String {
    HEXLOWER.encode(&nonce.0.0)
}
