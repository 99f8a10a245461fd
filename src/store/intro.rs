//! Introduction points over restarts: a file each, `intro/<session key>.point`, and its replay log beside it.
//!
//! Clients with an old descriptor go on using a point's keys, so a restart must find them; and what was seen with the
//! keys must live exactly as long as they do: the log is removed after them, never before.

use std::fs;
use std::path::PathBuf;

use data_encoding::HEXLOWER;
use rustbalance_gossip::codec;
use rustbalance_gossip::record::RelayId;
use zeroize::Zeroizing;

use super::error::{Damage, StoreError};
use super::file::{self, Kind};
use super::{Store, at_most};
use crate::keys::IntroPointSecrets;

/// Most introduction points kept: those in use and those that old descriptors still name.
pub const MAX_STORED_POINTS: usize = 64;
/// Bytes of secrets at the start of the payload: session seed, encryption key.
const SECRETS: usize = 64;
/// How the name of a replay log ends.
const REPLAYS: &str = "replays";

/// An introduction point as it is kept.
#[derive(Debug)]
pub struct StoredIntroPoint {
    /// Where.
    pub relay: RelayId,
    /// Its secrets.
    pub secrets: IntroPointSecrets,
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

impl StoredIntroPoint {
    /// `KP_hs_ipt_sid`, by which it is found.
    pub fn session_key(&self) -> [u8; 32] {
        self.secrets.session_key()
    }
}

impl Store {
    pub(super) fn intro_dir(&self) -> PathBuf {
        self.dir.join("intro")
    }

    /// All of them, the oldest first.
    pub fn intro_points(&self) -> Result<Vec<StoredIntroPoint>, StoreError> {
        let mut points = Vec::new();
        for (key, ending) in self.intro_files()? {
            if ending == Kind::IntroPoint.name() {
                points.push(self.read_intro_point(&key)?);
                at_most("introduction points", points.len(), MAX_STORED_POINTS)?;
            }
        }
        points.sort_by_key(|point| (point.created, point.relay));
        Ok(points)
    }

    /// Keeps a new one. Its secrets are never overwritten.
    pub fn add_intro_point(&self, point: &StoredIntroPoint) -> Result<(), StoreError> {
        let _changing = self.change();
        at_most("introduction points", self.intro_points()?.len() + 1, MAX_STORED_POINTS)?;
        let bytes = self.encode_intro_point(point)?;
        file::create(&self.intro_path(&hex(&point.session_key()), Kind::IntroPoint.name()), &bytes)
    }

    /// Notes how many introductions one has seen, and whether it has retired.
    pub fn update_intro_point(
        &self,
        session_key: &[u8; 32],
        introductions: u64,
        retired: Option<u64>,
    ) -> Result<(), StoreError> {
        let _changing = self.change();
        let key = hex(session_key);
        let mut point = self.read_intro_point(&key)?;
        (point.introductions, point.retired) = (introductions, retired);
        let bytes = self.encode_intro_point(&point)?;
        file::replace(&self.intro_path(&key, Kind::IntroPoint.name()), &bytes)
    }

    /// Forgets one and what was seen at it.
    pub fn remove_intro_point(&self, session_key: &[u8; 32]) -> Result<(), StoreError> {
        let _changing = self.change();
        let key = hex(session_key);
        file::remove(&self.intro_path(&key, Kind::IntroPoint.name()))?;
        file::remove(&self.intro_path(&key, REPLAYS))
    }

    /// Where the replay log of one belongs (see [`crate::tor::ReplayLog::open`]).
    pub fn replay_log_path(&self, session_key: &[u8; 32]) -> PathBuf {
        self.intro_path(&hex(session_key), REPLAYS)
    }

    /// Removes what a crash left: half-written files, and replay logs whose keys are gone.
    pub(super) fn sweep_intro_points(&self) -> Result<(), StoreError> {
        file::sweep(&self.intro_dir())?;
        for (key, ending) in self.intro_files()? {
            if ending == REPLAYS && !self.intro_path(&key, Kind::IntroPoint.name()).exists() {
                file::remove(&self.intro_path(&key, REPLAYS))?;
            }
        }
        Ok(())
    }

    fn intro_path(&self, key: &str, ending: &str) -> PathBuf {
        self.intro_dir().join(format!("{key}.{ending}"))
    }

    /// Session key in hexadecimal and ending of each file.
    pub(super) fn intro_files(&self) -> Result<Vec<(String, String)>, StoreError> {
        let dir = self.intro_dir();
        let failed = |error| StoreError::io("read", &dir, error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some((key, ending)) = name.to_str().and_then(|name| name.split_once('.')) {
                found.push((key.to_owned(), ending.to_owned()));
            }
        }
        Ok(found)
    }

    fn encode_intro_point(&self, point: &StoredIntroPoint) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let life = (point.max_seconds, point.max_introductions, point.retired);
        let facts = codec::encode(&(point.relay, point.created, point.introductions, life))
            .map_err(|error| StoreError::Invalid { what: "an introduction point", why: error.to_string() })?;
        let mut payload = Zeroizing::new(Vec::with_capacity(SECRETS + facts.len()));
        payload.extend_from_slice(&point.secrets.session);
        payload.extend_from_slice(&point.secrets.encryption);
        payload.extend_from_slice(&facts);
        Ok(file::encode(Kind::IntroPoint, self.cluster(), &payload))
    }

    fn read_intro_point(&self, key: &str) -> Result<StoredIntroPoint, StoreError> {
        let kind = Kind::IntroPoint;
        let path = self.intro_path(key, kind.name());
        let (cluster, payload) = file::read(&path, kind)?.ok_or_else(|| StoreError::NoIntroPoint(key.to_owned()))?;
        if cluster != self.cluster() {
            return Err(StoreError::Damaged { path, kind, damage: Damage::Cluster(cluster) });
        }
        let mut secrets = IntroPointSecrets { session: [0; 32], encryption: [0; 32] };
        let Some((head, facts)) = payload.split_at_checked(SECRETS) else {
            return Err(StoreError::content(&path, kind, "its secrets are cut short"));
        };
        secrets.session.copy_from_slice(&head[..32]);
        secrets.encryption.copy_from_slice(&head[32..]);
        let (relay, created, introductions, (max_seconds, max_introductions, retired)) =
            codec::decode(facts, kind.max_payload()).map_err(|error| StoreError::content(&path, kind, error))?;
        let point =
            StoredIntroPoint { relay, secrets, created, introductions, max_seconds, max_introductions, retired };
        if hex(&point.session_key()) != key {
            return Err(StoreError::content(&path, kind, "its name is not that of its session key"));
        }
        Ok(point)
    }
}

fn hex(session_key: &[u8; 32]) -> String {
    HEXLOWER.encode(session_key)
}
