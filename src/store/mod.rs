//! The state directory: the data about the cluster and each service that a node keeps over
//! restarts.
//!
//! [`Store::create`] returns a [`Draft`], which `init` and `join` fill; [`Store::open`] opens a
//! complete directory for the daemon. Both hold the directory's lock until dropped. [`kind`] is the
//! table of files; [`service`] has the files of one service.
//!
//! A directory of an earlier release is migrated when it is opened (see [`migrations`]); one of a
//! later release is refused before it is locked. Opening checks every file. If one is missing,
//! damaged, of another cluster or readable by other users, the error names the file and the way
//! out, and nothing is overwritten.
//!
//! Each write is on disk when it returns (see [`mod@file`]), and numbers that may only rise cannot
//! be lowered. All methods block for the time of a disk access.

use std::fs::File;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::codec;
use rustbalance_gossip::id::{AuthorityId, ClusterId, NodeId, OnionAddress};
use rustbalance_gossip::record::{Chain, Member};
use rustbalance_gossip::view::{MAX_BOOT_JUMP, MAX_NODES};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::discovery::{Discovery, KeyRing};
use crate::keys::{AuthoritySecret, NodeSecret, PointSeed};

pub use access::Exposed;
pub use alarms::{KeyAlarm, MAX_ALARMS};
use client_files::ClientFiles;
pub use client_files::arti_dirs;
pub use draft::{Draft, InitialContents, SetupCommand};
pub use error::{Damage, StoreError};
pub use export::{export_distance, export_key, make_export_dir};
pub use import::{ImportError, KeyFormatError, import_identity_key};
pub use intro::{MAX_STORED_POINTS, StoredIntroPoint};
use kind::Place;
pub use kind::{Kind, VERSION};
pub use restore::{RestoredContents, RestoredMark, force_restored, restore};
pub use snapshot::{MAX_STATE_FILE, Snapshot, StateFile, is_state_path, snapshot};

mod access;
mod alarms;
mod client_files;
mod draft;
mod error;
mod export;
mod facts;
mod file;
mod import;
mod intro;
mod kind;
mod lock;
mod migrations;
mod restore;
mod service;
mod snapshot;
#[cfg(test)]
mod tests;
mod version;
mod wireguard;

/// Starts by which a node may have exceeded the hours since the epoch after its backup: a daemon
/// that systemd restarted every five seconds for an hour has started 720 times.
const RESTORED_STARTS: u64 = 1024;

/// A folder of state files, and their owner.
#[derive(Debug, Clone)]
struct OwnedFolder {
    dir: PathBuf,
    /// The address of the cluster or service. The header of every file in the folder names it.
    owner: OnionAddress,
}

impl OwnedFolder {
    /// The state directory itself.
    fn of_cluster(dir: &Path, cluster: ClusterId) -> Self {
        Self { dir: dir.to_owned(), owner: cluster.first_service().address() }
    }

    fn path(&self, kind: Kind) -> PathBuf {
        self.dir.join(kind.name())
    }
}

/// Checks a state directory, if it exists, before anything is written, locked or read: that its
/// files are private, and that no later release has migrated it.
///
/// # Errors
/// [`StoreError::Exposed`], [`StoreError::Newer`], or a file cannot be read.
pub fn inspect(dir: &Path) -> Result<(), StoreError> {
    access::check_all(dir)?;
    version::of(dir).map(|_| ())
}

/// Reads every file of the node in `dir`, as [`Store::open`] does, but locks, writes and migrates
/// nothing, so that it may be called beside a running daemon. Files of an earlier release are not
/// read: the next start reads them before it migrates them.
///
/// # Errors
/// Those of [`inspect`] and [`Store::open`].
pub fn examine(dir: &Path) -> Result<(), StoreError> {
    if !holds_state(dir) {
        return Err(StoreError::NotFound(dir.to_owned()));
    }
    inspect(dir)?;
    Store::refuse_unfinished(dir)?;
    if version::of(dir)? < VERSION {
        return Ok(());
    }
    let store = Store::read(dir, None)?;
    store.read_all()?;
    store.services()?.into_iter().try_for_each(|service| store.read_service(service))
}

/// An open state directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    membership: Member,
    client_files: ClientFiles,
    /// Held while a file is read, changed and written.
    changing: Mutex<()>,
    /// The open lock file. The lock is released when it is closed. `None`: the directory is only
    /// read.
    _lock: Option<File>,
}

impl Store {
    /// Starts a new node in `dir`, which is created if missing. Fails if it holds a node already.
    pub fn create(dir: &Path) -> Result<Draft, StoreError> {
        Draft::open(dir)
    }

    /// Opens the state of a node that `init` or `join` has created, and checks all of it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        if !holds_state(dir) {
            return Err(StoreError::NotFound(dir.to_owned()));
        }
        inspect(dir)?;
        file::make_dir(dir)?;
        let lock = lock::take(dir)?;
        file::sweep(dir)?;
        Self::refuse_unfinished(dir)?;
        migrations::run(dir)?;
        Self::load(dir, lock)
    }

    /// Refuses a directory in which an `init` or `join` was interrupted.
    fn refuse_unfinished(dir: &Path) -> Result<(), StoreError> {
        if dir.join(Kind::Membership.name()).exists() {
            return Ok(());
        }
        draft::read_pending(dir)?.map_or(Ok(()), |pending| Err(pending.unfinished(dir)))
    }

    /// Checks every file. The caller holds the lock.
    fn load(dir: &Path, lock: File) -> Result<Self, StoreError> {
        let store = Self::read(dir, Some(lock))?;
        store.check()?;
        file::remove(&store.path(Kind::Pending))?;
        Ok(store)
    }

    /// Reads which node the directory belongs to.
    fn read(dir: &Path, lock: Option<File>) -> Result<Self, StoreError> {
        let cluster = read_cluster(dir)?;
        let home = OwnedFolder::of_cluster(dir, cluster);
        let path = home.path(Kind::Membership);
        let chain: Chain = read_value(&home, Kind::Membership)?;
        // Expiry is not checked here: it is up to the callers that have a clock.
        let membership =
            chain.verify(cluster, 0).map_err(|error| StoreError::content(&path, Kind::Membership, error))?;
        let client_files = ClientFiles::new(dir);
        Ok(Self { dir: dir.to_owned(), membership, client_files, changing: Mutex::new(()), _lock: lock })
    }

    /// Reads every file, so that damage is found before the node starts, and makes the directories
    /// that are missing.
    fn check(&self) -> Result<(), StoreError> {
        self.read_all()?;
        self.client_files.adopt()?;
        file::sweep(&self.dir.join(service::FOLDER))?;
        self.services()?.into_iter().try_for_each(|service| self.check_service(service))
    }

    /// Reads every file but those of services.
    fn read_all(&self) -> Result<(), StoreError> {
        self.node_secret()?;
        self.authority_secret()?;
        self.discovery()?;
        self.point_seed()?;
        self.value::<u64>(Kind::Boot)?;
        self.term()?;
        self.invitations()?;
        self.revocations()?;
        self.other_facts()?;
        self.members()?;
        self.is_draining()?;
        self.alarms()?;
        self.restored()?;
        self.wireguard_keys().map(|_| ())
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster that this node belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.membership.certificate.cluster
    }

    /// The ID of this node.
    pub fn node_id(&self) -> NodeId {
        self.membership.node()
    }

    /// The certificates with which this node became a member. Signatures have been checked, expiry
    /// has not: see [`Store::newest_membership`].
    pub fn membership(&self) -> &Member {
        &self.membership
    }

    /// The node's key.
    pub fn node_secret(&self) -> Result<NodeSecret, StoreError> {
        let secret = NodeSecret::from_seed(&self.key(Kind::NodeKey)?);
        if secret.node_id() != self.node_id() {
            return Err(self.content(Kind::NodeKey, "it is not the key of the node that `membership` names"));
        }
        Ok(secret)
    }

    /// The certificate-signing key; `None` on workers.
    pub fn authority_secret(&self) -> Result<Option<AuthoritySecret>, StoreError> {
        if !self.publisher_file(&self.path(Kind::AuthorityKey))? {
            return Ok(None);
        }
        let secret = AuthoritySecret::from_seed(&self.key(Kind::AuthorityKey)?);
        if secret.authority_id() != self.membership.authority_id() {
            return Err(self.content(Kind::AuthorityKey, "it is not the key that signed `membership`"));
        }
        Ok(Some(secret))
    }

    /// The keys of the restricted discovery.
    pub fn discovery(&self) -> Result<KeyRing, StoreError> {
        read_discovery(&self.home(), self.membership.authority_id())?
            .ok_or_else(|| StoreError::Missing { path: self.path(Kind::DiscoveryKey), kind: Kind::DiscoveryKey })
    }

    /// The seed from which the keys of this node's introduction points are derived.
    pub fn point_seed(&self) -> Result<PointSeed, StoreError> {
        let seed = PointSeed::from_bytes(&self.key(Kind::PointSeed)?);
        let derived = self.authority_secret()?.map(|authority| PointSeed::derive(&authority, self.node_id()));
        match derived {
            Some(derived) if derived.as_bytes() != seed.as_bytes() => {
                Err(self.content(Kind::PointSeed, "it is not derived from `authority.key`"))
            }
            _ => Ok(seed),
        }
    }

    /// Adds a key to the ring if it is newer than all keys there; `unix` is the time now, in
    /// seconds since the epoch. Returns the ring, and whether it has changed.
    pub fn adopt_discovery(&self, next: Discovery, unix: u64) -> Result<(KeyRing, bool), StoreError> {
        let _changing = self.change();
        let mut ring = self.discovery()?;
        let newer = ring.adopt(next, unix);
        if newer {
            write_discovery(&self.home(), &ring)?;
        }
        Ok((ring, newer))
    }

    /// Counts a start of the daemon at `unix` seconds since the epoch. Returns a number below 2^32
    /// that is higher than that of every earlier start.
    ///
    /// The number is at least the hours since the epoch. A directory restored from an old backup
    /// has forgotten the later starts and must not reuse their numbers: other nodes would take
    /// their old records of those starts for newer than everything that this node announces. While
    /// the node is marked as restored, the number is at least [`RESTORED_STARTS`] more.
    pub fn next_boot(&self, unix: u64) -> Result<u64, StoreError> {
        let _changing = self.change();
        let counted = self.value::<u64>(Kind::Boot)?;
        // Other nodes accept no greater step, so a clock that is far ahead must not cause one.
        let margin = if self.restored()?.is_some() { RESTORED_STARTS } else { 0 };
        let hours = (unix / 3600 + margin).min(counted.saturating_add(MAX_BOOT_JUMP));
        let boot = counted.saturating_add(1).max(hours);
        if boot > u64::from(u32::MAX) {
            return Err(self.content(Kind::Boot, "its count has reached its maximum"));
        }
        self.put_value(Kind::Boot, &boot)?;
        Ok(boot)
    }

    /// The highest term stored; 0 before any.
    pub fn term(&self) -> Result<u64, StoreError> {
        self.value(Kind::Term)
    }

    /// Stores a term. Fails if it is lower than the stored one.
    pub fn raise_term(&self, term: u64) -> Result<(), StoreError> {
        let _changing = self.change();
        let stored = self.term()?;
        match term {
            term if term < stored => Err(StoreError::Falls { what: "the term", stored, given: term }),
            term if term == stored => Ok(()),
            term => self.put_value(Kind::Term, &term),
        }
    }

    /// True if the node takes no new clients, as [`Store::set_draining`] has last stored.
    pub fn is_draining(&self) -> Result<bool, StoreError> {
        match read_payload(&self.home(), Kind::Draining)? {
            Some(payload) if !payload.is_empty() => Err(self.content(Kind::Draining, "it holds more than its header")),
            found => Ok(found.is_some()),
        }
    }

    /// Stores for the next start whether the node takes no new clients.
    pub fn set_draining(&self, draining: bool) -> Result<(), StoreError> {
        if draining { write(&self.home(), Kind::Draining, &[]) } else { file::remove(&self.path(Kind::Draining)) }
    }

    /// The stored certificates of other members. The caller has to verify them.
    pub fn members(&self) -> Result<Vec<Chain>, StoreError> {
        self.list(Kind::Members, MAX_NODES)
    }

    /// Replaces the stored certificates of other members.
    pub fn put_members(&self, members: &[Chain]) -> Result<(), StoreError> {
        at_most("members", members.len(), MAX_NODES)?;
        let _changing = self.change();
        if self.members().is_ok_and(|kept| kept == members) {
            return Ok(());
        }
        self.put_value(Kind::Members, &members)
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    fn home(&self) -> OwnedFolder {
        OwnedFolder::of_cluster(&self.dir, self.cluster())
    }

    fn path(&self, kind: Kind) -> PathBuf {
        self.dir.join(kind.name())
    }

    fn content(&self, kind: Kind, why: impl ToString) -> StoreError {
        StoreError::content(&self.path(kind), kind, why)
    }

    fn key<const N: usize>(&self, kind: Kind) -> Result<Zeroizing<[u8; N]>, StoreError> {
        read_key(&self.home(), kind)?.ok_or_else(|| StoreError::Missing { path: self.path(kind), kind })
    }

    fn value<T: DeserializeOwned>(&self, kind: Kind) -> Result<T, StoreError> {
        read_value(&self.home(), kind)
    }

    fn list<T: DeserializeOwned>(&self, kind: Kind, max: usize) -> Result<Vec<T>, StoreError> {
        bounded(&self.home(), kind, self.value(kind)?, max)
    }

    fn put_value<T: Serialize>(&self, kind: Kind, value: &T) -> Result<(), StoreError> {
        write_value(&self.home(), kind, value)
    }
}

fn at_most(what: &'static str, given: usize, max: usize) -> Result<(), StoreError> {
    if given > max { Err(StoreError::TooMany { what, given, max }) } else { Ok(()) }
}

fn bounded<T>(home: &OwnedFolder, kind: Kind, list: Vec<T>, max: usize) -> Result<Vec<T>, StoreError> {
    match list.len() {
        given if given > max => {
            Err(StoreError::content(&home.path(kind), kind, format!("{given} entries, {max} allowed")))
        }
        _ => Ok(list),
    }
}

/// True if the directory holds any file of a node, complete or not.
fn holds_state(dir: &Path) -> bool {
    let mut kinds = Kind::at(Place::Directory).filter(|kind| kind.shows_a_node());
    kinds.any(|kind| dir.join(kind.name()).symlink_metadata().is_ok())
        || service::keys(dir).is_ok_and(|keys| !keys.is_empty())
}

/// The cluster that `master.pub` names.
fn read_cluster(dir: &Path) -> Result<ClusterId, StoreError> {
    let (path, kind) = (dir.join(Kind::MasterPub.name()), Kind::MasterPub);
    let (cluster, payload) =
        file::read(&path, kind)?.ok_or_else(|| StoreError::Missing { path: path.clone(), kind })?;
    if *payload != format!("{cluster}\n").into_bytes() {
        return Err(StoreError::content(&path, kind, "its header and its content name different addresses"));
    }
    Ok(cluster.into())
}

/// The payload of a file of this owner; `None` if there is no such file.
fn read_payload(home: &OwnedFolder, kind: Kind) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    let path = home.path(kind);
    match file::read(&path, kind)? {
        Some((found, _)) if found != home.owner => {
            Err(StoreError::Damaged { path, kind, damage: Damage::Owner(found) })
        }
        found => Ok(found.map(|(_, payload)| payload)),
    }
}

/// The value in a file of this owner, or the default of its kind if there is no such file.
fn read_value<T: DeserializeOwned>(home: &OwnedFolder, kind: Kind) -> Result<T, StoreError> {
    let path = home.path(kind);
    let payload = match read_payload(home, kind)? {
        Some(payload) => payload,
        None => {
            let default = kind.default().ok_or_else(|| StoreError::Missing { path: path.clone(), kind })?;
            Zeroizing::new(default.map_err(|error| invalid(kind.name(), error))?)
        }
    };
    codec::decode(&payload, kind.max_payload()).map_err(|error| StoreError::content(&path, kind, error))
}

fn write_value<T: Serialize>(home: &OwnedFolder, kind: Kind, value: &T) -> Result<(), StoreError> {
    write(home, kind, &codec::encode(value).map_err(|error| invalid(kind.name(), error))?)
}

/// Writes a file. A key is only created, never replaced; other files are replaced.
fn write(home: &OwnedFolder, kind: Kind, payload: &[u8]) -> Result<(), StoreError> {
    // A larger payload could not be read again.
    let (what, given, max) = (kind.name(), payload.len(), kind.max_payload());
    if given > max {
        return Err(StoreError::TooLarge { what, given, max });
    }
    let (path, bytes) = (home.path(kind), file::encode(kind, home.owner, payload));
    if kind.row().once { file::create(&path, &bytes) } else { file::replace(&path, &bytes) }
}

/// The error for a value that cannot be encoded.
fn invalid(what: &'static str, why: impl ToString) -> StoreError {
    StoreError::Invalid { what, why: why.to_string() }
}

fn read_key<const N: usize>(home: &OwnedFolder, kind: Kind) -> Result<Option<Zeroizing<[u8; N]>>, StoreError> {
    let Some(payload) = read_payload(home, kind)? else { return Ok(None) };
    let mut key = Zeroizing::new([0; N]);
    if payload.len() != N {
        return Err(StoreError::content(&home.path(kind), kind, format!("a key of {} bytes", payload.len())));
    }
    key.copy_from_slice(&payload);
    Ok(Some(key))
}

fn read_discovery(home: &OwnedFolder, authority: AuthorityId) -> Result<Option<KeyRing>, StoreError> {
    let kind = Kind::DiscoveryKey;
    let Some(payload) = read_payload(home, kind)? else { return Ok(None) };
    let ring = KeyRing::from_bytes(&payload, home.owner.into(), authority);
    ring.map(Some).map_err(|error| StoreError::content(&home.path(kind), kind, error))
}

fn write_discovery(home: &OwnedFolder, ring: &KeyRing) -> Result<(), StoreError> {
    let payload = ring.to_bytes().map_err(|error| invalid(Kind::DiscoveryKey.name(), error))?;
    write(home, Kind::DiscoveryKey, &payload)
}
