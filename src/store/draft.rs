//! A state directory that `init`, `join` or `restore` is creating.
//!
//! `pending` is written first and records which command was begun. `membership` is written last and
//! marks the directory as complete; then `pending` is removed. After a crash in between,
//! [`super::Store::open`] refuses the directory with an error that names the command to run again,
//! and that command reuses the files that are there. A different command may start over only while
//! the directory holds no key of a service.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustbalance_gossip::codec::{self, DecodeError};
use rustbalance_gossip::id::{AuthorityId, ClusterId};
use rustbalance_gossip::record::Chain;
use rustbalance_gossip::view::MAX_NODES;
use zeroize::Zeroizing;

use super::client_files::{ClientFiles, arti_dirs};
use super::error::StoreError;
use super::file::{self, Payload};
use super::kind::{Kind, Place, VERSION};
use super::{OwnedFolder, Store, at_most, holds_state, inspect, lock, migrations, service, version};
use super::{invalid, read_discovery, read_key, write};
use crate::discovery::KeyRing;
use crate::keys::{AuthoritySecret, IdentitySecret, MAX_SERVICES, NodeSecret, PointSeed, ServiceSecrets};

/// The command that creates a state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetupCommand {
    /// `init`: the first node of a new cluster.
    Init,
    /// `join`: a further node of an existing cluster.
    Join,
    /// `restore`: a node from its backup.
    Restore,
}

/// The command that was begun, and its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    beginning: SetupCommand,
    cluster: ClusterId,
}

impl Pending {
    fn doing(self) -> &'static str {
        match self.beginning {
            SetupCommand::Init => "an init",
            SetupCommand::Join => "a join",
            SetupCommand::Restore => "a restore",
        }
    }

    fn command(self) -> String {
        match self.beginning {
            SetupCommand::Init => "init".into(),
            SetupCommand::Join => format!("join {}", self.cluster),
            SetupCommand::Restore => "restore FILE".into(),
        }
    }

    pub(super) fn is_restore(self) -> bool {
        self.beginning == SetupCommand::Restore
    }

    pub(super) fn unfinished(self, dir: &Path) -> StoreError {
        StoreError::Unfinished { dir: dir.to_owned(), doing: self.doing(), command: self.command() }
    }
}

/// The initial content of a complete state directory.
#[derive(Debug)]
pub struct InitialContents<'a> {
    /// The node's certificates.
    pub chain: &'a Chain,
    /// Every service of the cluster: with its secrets on publishers, without any on workers.
    pub services: &'a [ServiceSecrets],
    /// The certificate-signing key; `None` on workers.
    pub authority: Option<&'a AuthoritySecret>,
    /// The keys of the restricted discovery.
    pub discovery: &'a KeyRing,
    /// The seed from which the keys of the node's introduction points are derived.
    pub points: &'a PointSeed,
    /// The certificates of other members.
    pub members: &'a [Chain],
}

impl InitialContents<'_> {
    /// The initial payload of a file of this kind in the state directory; `None` if a new node has
    /// no such file.
    fn payload(&self, kind: Kind, cluster: ClusterId) -> Result<Option<Payload>, DecodeError> {
        let brought = match kind {
            Kind::MasterPub => Some(Zeroizing::new(format!("{cluster}\n").into_bytes())),
            Kind::AuthorityKey => self.authority.map(|authority| Zeroizing::new(authority.seed().to_vec())),
            Kind::DiscoveryKey => Some(self.discovery.to_bytes()?),
            Kind::PointSeed => Some(Zeroizing::new(self.points.as_bytes().to_vec())),
            Kind::Members => Some(Zeroizing::new(codec::encode(&self.members)?)),
            Kind::Membership => Some(Zeroizing::new(codec::encode(self.chain)?)),
            _ => None,
        };
        kind.or_first(brought)
    }
}

/// A locked state directory that holds no node, or an incomplete one.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    lock: File,
    /// The directories that this draft has created, outermost first.
    made: Vec<PathBuf>,
    pending: Option<Pending>,
}

impl Draft {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|error| StoreError::io("make", parent, error))?;
        }
        inspect(dir)?;
        let mut made = Vec::new();
        if file::make_dir(dir)? {
            made.push(dir.to_owned());
        }
        let lock = lock::take(dir)?;
        file::sweep(dir)?;
        let membership = dir.join(Kind::Membership.name());
        if let Some((cluster, _)) = file::read(&membership, Kind::Membership)? {
            return Err(StoreError::Exists { dir: dir.to_owned(), cluster: cluster.into() });
        }
        let begun = dir.join(Kind::Pending.name()).symlink_metadata().is_ok();
        if !begun && holds_state(dir) {
            // Not an interrupted command: a complete node that has lost a file.
            return Err(StoreError::Missing { path: membership, kind: Kind::Membership });
        }
        if begun {
            migrations::run(dir)?;
        }
        let pending = read_pending(dir)?;
        for inner in ClientFiles::new(dir).all() {
            if file::make_dir(&inner)? {
                made.push(inner);
            }
        }
        Ok(Self { dir: dir.to_owned(), lock, made, pending })
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The command that was begun here earlier and not finished, and its cluster.
    pub fn unfinished_command(&self) -> Option<(SetupCommand, ClusterId)> {
        self.pending.map(|pending| (pending.beginning, pending.cluster))
    }

    /// The directory for Arti's state. Exists, mode 0700.
    pub fn arti_state_dir(&self) -> PathBuf {
        arti_dirs(&self.dir).0
    }

    /// The directory for Arti's cache of the network directory. Exists, mode 0700.
    pub fn arti_cache_dir(&self) -> PathBuf {
        arti_dirs(&self.dir).1
    }

    /// Begins a command, or continues it if the same one was begun earlier. Removes the files of a
    /// different command, and fails if they include a key of a service.
    pub fn begin(&mut self, beginning: SetupCommand, cluster: ClusterId) -> Result<(), StoreError> {
        let wanted = Pending { beginning, cluster };
        if self.pending == Some(wanted) && beginning != SetupCommand::Restore {
            return Ok(());
        }
        if let Some(pending) = self.pending {
            match (pending.beginning, beginning) {
                (SetupCommand::Restore, SetupCommand::Restore) => self.clear_restored()?,
                (SetupCommand::Restore, _) => return Err(pending.unfinished(&self.dir)),
                _ => self.clear()?,
            }
        }
        let text = match beginning {
            SetupCommand::Init => "founding\n",
            SetupCommand::Join => "joining\n",
            SetupCommand::Restore => "restoring\n",
        };
        file::replace(&self.path(Kind::Version), &version::encode(VERSION, cluster))?;
        write(&OwnedFolder::of_cluster(&self.dir, cluster), Kind::Pending, text.as_bytes())?;
        self.pending = Some(wanted);
        Ok(())
    }

    /// The node's key: the stored one, or else the one that `make` returns, which is on disk when
    /// this returns.
    pub fn node_secret(&self, make: impl FnOnce() -> NodeSecret) -> Result<NodeSecret, StoreError> {
        let home = self.home()?;
        if let Some(seed) = read_key(&home, Kind::NodeKey)? {
            return Ok(NodeSecret::from_seed(&seed));
        }
        let secret = make();
        write(&home, Kind::NodeKey, secret.seed())?;
        Ok(secret)
    }

    /// The identity key of the cluster's first service, if an interrupted command has left it.
    pub fn identity_secret(&self) -> Result<Option<IdentitySecret>, StoreError> {
        let Some(pending) = self.pending else { return Ok(None) };
        let first = pending.cluster.first_service();
        service::read_identity(&OwnedFolder::of_service(&self.dir, first), first)
    }

    /// The authority key, if an interrupted command has left it.
    pub fn authority_secret(&self) -> Result<Option<AuthoritySecret>, StoreError> {
        let seed = read_key(&self.home()?, Kind::AuthorityKey)?;
        Ok(seed.map(|seed| AuthoritySecret::from_seed(&seed)))
    }

    /// The discovery keys, if an interrupted command has left them. Fails unless this authority has
    /// signed them.
    pub fn discovery(&self, authority: AuthorityId) -> Result<Option<KeyRing>, StoreError> {
        read_discovery(&self.home()?, authority)
    }

    /// Writes all files, `membership` last, and opens the store. If it is interrupted, it can be
    /// called again on a new draft.
    pub fn complete(self, contents: &InitialContents<'_>) -> Result<Store, StoreError> {
        let home = self.home()?;
        at_most("members", contents.members.len(), MAX_NODES)?;
        at_most("services", contents.services.len(), MAX_SERVICES)?;
        for service in contents.services {
            service::make(&self.dir, service.service)?;
            service::fill(&OwnedFolder::of_service(&self.dir, service.service), service)?;
        }
        for kind in Kind::at(Place::Directory) {
            let payload = contents.payload(kind, home.owner.into()).map_err(|error| invalid(kind.name(), error))?;
            if let Some(payload) = payload {
                write(&home, kind, &payload)?;
            }
        }
        Store::load(&self.dir, self.lock)
    }

    /// Removes everything that was begun. Of the directories it removes only those that this draft
    /// has created, and the outermost only if it is empty: the operator may have named a directory
    /// with other files by mistake. Fails and removes nothing if there is a key of a service.
    pub fn discard(self) -> Result<(), StoreError> {
        self.clear()?;
        file::remove(&self.path(Kind::Pending))?;
        for inner in self.made.iter().filter(|made| **made != self.dir) {
            match fs::remove_dir_all(inner) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", inner, error));
                }
                _ => {}
            }
        }
        file::remove(&self.dir.join(lock::NAME))?;
        if self.made.contains(&self.dir) { file::remove_if_empty(&self.dir) } else { Ok(()) }
    }

    /// Removes every file of a node except `pending`. The caller removes that one last, so that the
    /// directory is still recognized as incomplete after a crash in between.
    fn clear(&self) -> Result<(), StoreError> {
        if let Some(pending) = self.pending
            && !service::keys(&self.dir)?.is_empty()
        {
            return Err(StoreError::KeyInTheWay {
                dir: self.dir.clone(),
                cluster: pending.cluster,
                doing: pending.doing(),
                command: pending.command(),
            });
        }
        for kind in Kind::at(Place::Directory).filter(|kind| !matches!(kind, Kind::Pending | Kind::Membership)) {
            file::remove(&self.path(kind))?;
        }
        service::clear(&self.dir)
    }

    /// Removes what an unfinished restore has written, its keys too: they are in the backup. Must
    /// not be called for another command.
    pub(super) fn clear_restored(&self) -> Result<(), StoreError> {
        file::remove(&self.path(Kind::Membership))?;
        for key in service::keys(&self.dir)? {
            file::remove(&key)?;
        }
        self.clear()
    }

    /// Migrates and checks the files of a restored node, whose `membership` is written.
    pub(super) fn check_restored(&self) -> Result<(), StoreError> {
        migrations::run(&self.dir)?;
        Store::read(&self.dir, None)?.check()
    }

    /// Opens the store of a restored node.
    pub(super) fn open_restored(self) -> Result<Store, StoreError> {
        Store::load(&self.dir, self.lock)
    }

    fn path(&self, kind: Kind) -> PathBuf {
        self.dir.join(kind.name())
    }

    fn home(&self) -> Result<OwnedFolder, StoreError> {
        self.pending
            .map(|pending| OwnedFolder::of_cluster(&self.dir, pending.cluster))
            .ok_or_else(|| StoreError::Missing { path: self.path(Kind::Pending), kind: Kind::Pending })
    }
}

/// The command that was begun in this directory and not finished.
pub(super) fn read_pending(dir: &Path) -> Result<Option<Pending>, StoreError> {
    let path = dir.join(Kind::Pending.name());
    let Some((cluster, payload)) = file::read(&path, Kind::Pending)? else {
        return Ok(None);
    };
    let beginning = match payload.as_slice() {
        b"founding\n" => SetupCommand::Init,
        b"joining\n" => SetupCommand::Join,
        b"restoring\n" => SetupCommand::Restore,
        _ => return Err(StoreError::content(&path, Kind::Pending, "it names neither an init, a join nor a restore")),
    };
    Ok(Some(Pending { beginning, cluster: cluster.into() }))
}
