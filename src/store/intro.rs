//! Introduction points that survive a restart: a file `intro/<nonce>.point` for each in the folder
//! of the service, and its replay log beside it.
//!
//! Clients with an old descriptor go on using a point's keys, so a restart must find the nonce from
//! which the keys are derived. The replay log must exist for as long as the keys: it is removed
//! after the point's file, never before.

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
/// Most introduction points stored for one service: those in use, and those that old descriptors
/// still name.
pub const MAX_STORED_POINTS: usize = 64;
/// File name extension of a replay log.
const REPLAYS: &str = "replays";

/// A stored introduction point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredIntroPoint {
    /// The nonce from which its keys are derived; also the name of its file.
    pub nonce: PointNonce,
    /// The relay at which it is established.
    pub relay: RelayId,
    /// When it was made, in seconds since the Unix epoch.
    pub created: u64,
    /// Number of introductions seen when this was last stored.
    pub introductions: u64,
    /// It retires after this number of seconds.
    pub max_seconds: u64,
    /// It retires after this number of introductions.
    pub max_introductions: u64,
    /// When it retired, in seconds since the Unix epoch; `None` while it is in use.
    pub retired: Option<u64>,
}

impl Store {
    /// The stored introduction points of a service, the oldest first.
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

    /// Stores a new introduction point.
    pub fn add_intro_point(&self, service: ServiceId, point: &StoredIntroPoint) -> Result<(), StoreError> {
        let _changing = self.change();
        at_most("introduction points", self.intro_points(service)?.len() + 1, MAX_STORED_POINTS)?;
        file::create(&self.point_path(service, point.nonce), &encode_intro_point(service, point)?)
    }

    /// Stores how many introductions a point has seen, and when it retired (`None`: not yet).
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

    /// Removes an introduction point and its replay log.
    pub fn remove_intro_point(&self, service: ServiceId, nonce: PointNonce) -> Result<(), StoreError> {
        let _changing = self.change();
        file::remove(&self.point_path(service, nonce))?;
        file::remove(&self.replay_log_path(service, nonce))
    }

    /// The path of an introduction point's replay log (see [`crate::tor::ReplayLog::open`]).
    pub fn replay_log_path(&self, service: ServiceId, nonce: PointNonce) -> PathBuf {
        self.intro_path(service, &hex(nonce), REPLAYS)
    }

    /// Removes the leftovers of a crash: half-written files, and replay logs whose keys are gone.
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

    /// The nonce in hexadecimal and the file name extension of each file.
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
            return Err(StoreError::content(&path, kind, "its file name does not match its nonce"));
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
