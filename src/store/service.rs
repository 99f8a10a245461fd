//! The files of one service: the folder `services/<address>`, with the secrets (on publishers), the
//! revisions and the introduction points of that service.
//!
//! The headers of these files name the service instead of the cluster, so that a file in the wrong
//! folder is detected.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustbalance_gossip::codec::DecodeError;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{PeriodId, Role};
use rustbalance_gossip::view::MAX_REVISIONS;
use zeroize::Zeroizing;

use super::error::StoreError;
use super::file::Payload;
use super::kind::{Kind, Place};
use super::{OwnedFolder, Store, at_most, bounded, file, intro, invalid, read_key, read_value, write, write_value};
use crate::keys::{IdentitySecret, MAX_SERVICES, ServiceSecret, ServiceSecrets};

/// The folder of all services, in the state directory.
pub(super) const FOLDER: &str = "services";

impl OwnedFolder {
    /// The folder of a service in a state directory.
    pub(super) fn of_service(dir: &Path, service: ServiceId) -> Self {
        let address = service.to_string();
        let label = address.strip_suffix(".onion").unwrap_or(&address);
        Self { dir: dir.join(FOLDER).join(label), owner: service.address() }
    }
}

/// Creates the folder of a service, 0700, unless it exists.
pub(super) fn make(dir: &Path, service: ServiceId) -> Result<(), StoreError> {
    let home = OwnedFolder::of_service(dir, service);
    for dir in [dir.join(FOLDER), home.dir.clone(), home.dir.join(intro::FOLDER)] {
        file::make_dir(&dir)?;
    }
    Ok(())
}

/// The services that have a folder in a state directory.
pub(super) fn listed(dir: &Path) -> Result<Vec<ServiceId>, StoreError> {
    let folder = dir.join(FOLDER);
    let failed = |error| StoreError::io("read", &folder, error);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let service = name.to_str().and_then(|name| format!("{name}.onion").parse::<ServiceId>().ok());
        found.extend(service);
    }
    found.sort();
    at_most("services", found.len(), MAX_SERVICES)?;
    Ok(found)
}

/// The paths of all secret keys of services in a state directory, complete or not. Includes the key
/// of a version 1 directory.
pub(super) fn keys(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths: Vec<_> =
        listed(dir)?.into_iter().map(|service| OwnedFolder::of_service(dir, service).path(Kind::IdentityKey)).collect();
    paths.push(dir.join("master.key"));
    paths.retain(|path| path.symlink_metadata().is_ok());
    Ok(paths)
}

/// Removes the files that `init` or `join` has created for services, except keys, and the folders
/// that are empty then.
pub(super) fn clear(dir: &Path) -> Result<(), StoreError> {
    for service in listed(dir)? {
        let home = OwnedFolder::of_service(dir, service);
        for kind in Kind::at(Place::Service).filter(|kind| !kind.row().once) {
            file::remove(&home.path(kind))?;
        }
        file::remove_if_empty(&home.dir.join(intro::FOLDER))?;
        file::remove_if_empty(&home.dir)?;
    }
    file::remove_if_empty(&dir.join(FOLDER))
}

impl Store {
    /// The services of which this node stores anything, the one that names the cluster first.
    ///
    /// # Errors
    /// The folder cannot be read, or holds more than [`MAX_SERVICES`].
    pub fn services(&self) -> Result<Vec<ServiceId>, StoreError> {
        let first = self.cluster().first_service();
        let further = listed(&self.dir)?.into_iter().filter(|service| *service != first);
        Ok(std::iter::once(first).chain(further).collect())
    }

    /// Adds a further service; on publishers, with its secrets. Its folder appears complete or not
    /// at all.
    ///
    /// # Errors
    /// [`StoreError::KeyExists`] if the service is stored with another key,
    /// [`StoreError::NotForWorkers`] if a worker is given secrets, [`StoreError::TooMany`] beyond
    /// [`MAX_SERVICES`]; or the disk cannot be written.
    pub fn add_service(&self, added: &ServiceSecrets) -> Result<(), StoreError> {
        let _changing = self.change();
        let home = self.of(added.service);
        if self.membership.role() == Role::Worker && !added.secrets.is_empty() {
            return Err(StoreError::NotForWorkers(home.path(Kind::IdentityKey)));
        }
        let services = self.services()?;
        if services.contains(&added.service) {
            return fill(&home, added);
        }
        at_most("services", services.len() + 1, MAX_SERVICES)?;
        let folder = self.dir.join(FOLDER);
        let new = OwnedFolder { dir: file::unfinished_dir(&folder)?, owner: home.owner };
        file::make_dir(&new.dir.join(intro::FOLDER))?;
        fill(&new, added)?;
        file::rename(&new.dir, &home.dir)
    }

    /// The secrets of every service; empty on workers.
    ///
    /// # Errors
    /// A file is missing or damaged, belongs to another service, or exists although this node is a
    /// worker.
    pub fn service_secrets(&self) -> Result<Vec<ServiceSecrets>, StoreError> {
        let of = |service| Ok(self.identity_secret(service)?.map(ServiceSecrets::of));
        self.services()?.into_iter().filter_map(|service| of(service).transpose()).collect()
    }

    /// The identity key of a service; `None` on workers.
    ///
    /// # Errors
    /// The file is missing or damaged, belongs to another service, or exists although this node is
    /// a worker.
    pub fn identity_secret(&self, service: ServiceId) -> Result<Option<IdentitySecret>, StoreError> {
        let (home, kind) = (self.of(service), Kind::IdentityKey);
        if !self.publisher_file(&home.path(kind))? {
            return Ok(None);
        }
        read_identity(&home, service)?.map(Some).ok_or_else(|| StoreError::Missing { path: home.path(kind), kind })
    }

    /// The path of the identity key of a service on publishers.
    pub fn identity_path(&self, service: ServiceId) -> PathBuf {
        self.of(service).path(Kind::IdentityKey)
    }

    /// The highest revision used in each period for a service, newest period last; at most
    /// [`MAX_REVISIONS`].
    ///
    /// # Errors
    /// The file is missing or damaged.
    pub fn revisions(&self, service: ServiceId) -> Result<Vec<(PeriodId, u64)>, StoreError> {
        let (home, kind) = (self.of(service), Kind::Revisions);
        bounded(&home, kind, read_value(&home, kind)?, MAX_REVISIONS)
    }

    /// Stores the revision about to be used in a period. Beyond [`MAX_REVISIONS`], the oldest
    /// periods are removed.
    ///
    /// # Errors
    /// [`StoreError::Falls`] if the revision is lower than the one stored. The file cannot be read
    /// or written.
    pub fn raise_revision(&self, service: ServiceId, period: PeriodId, revision: u64) -> Result<(), StoreError> {
        let _changing = self.change();
        let mut revisions = self.revisions(service)?;
        match revisions.iter_mut().find(|(known, _)| *known == period) {
            Some((_, stored)) if revision < *stored => {
                return Err(StoreError::Falls { what: "the revision", stored: *stored, given: revision });
            }
            Some((_, stored)) if revision == *stored => return Ok(()),
            Some((_, stored)) => *stored = revision,
            None => revisions.push((period, revision)),
        }
        revisions.sort_by_key(|(known, _)| (known.number.saturating_mul(known.length_minutes.into()), *known));
        while revisions.len() > MAX_REVISIONS {
            // The period just given is in use, so it stays however old it is.
            let oldest = revisions.iter().position(|(known, _)| *known != period).unwrap_or(0);
            revisions.remove(oldest);
        }
        write_value(&self.of(service), Kind::Revisions, &revisions)
    }

    /// Reads and checks all files of a service.
    pub(super) fn check_service(&self, service: ServiceId) -> Result<(), StoreError> {
        self.read_service(service)?;
        make(&self.dir, service)?;
        file::sweep(&self.of(service).dir)?;
        self.sweep_intro_points(service)?;
        self.intro_points(service).map(|_| ())
    }

    /// Reads the files of a service that every node must have whole.
    pub(super) fn read_service(&self, service: ServiceId) -> Result<(), StoreError> {
        self.identity_secret(service)?;
        self.revisions(service).map(|_| ())
    }

    pub(super) fn of(&self, service: ServiceId) -> OwnedFolder {
        OwnedFolder::of_service(&self.dir, service)
    }

    /// True on publishers, which read the file; false on workers. Fails if a worker has the file.
    pub(super) fn publisher_file(&self, path: &Path) -> Result<bool, StoreError> {
        let publisher = self.membership.role() == Role::Publisher;
        match publisher || path.symlink_metadata().is_err() {
            true => Ok(publisher),
            false => Err(StoreError::NotForWorkers(path.to_owned())),
        }
    }
}

/// The identity key in the folder of a service; `None` if there is none.
pub(super) fn read_identity(home: &OwnedFolder, service: ServiceId) -> Result<Option<IdentitySecret>, StoreError> {
    let (path, kind) = (home.path(Kind::IdentityKey), Kind::IdentityKey);
    let Some(key) = read_key(home, kind)? else { return Ok(None) };
    let secret = IdentitySecret::from_expanded(&key).map_err(|error| StoreError::content(&path, kind, error))?;
    if secret.service_id() != service {
        return Err(StoreError::content(&path, kind, format!("it is the key of {}", secret.service_id())));
    }
    Ok(Some(secret))
}

/// Writes the initial files of a service into its folder. Existing files stay; an existing key must
/// be the same.
pub(super) fn fill(home: &OwnedFolder, service: &ServiceSecrets) -> Result<(), StoreError> {
    for kind in Kind::at(Place::Service) {
        if !kind.row().once && home.path(kind).symlink_metadata().is_ok() {
            continue;
        }
        if let Some(payload) = first_payload(service, kind).map_err(|error| invalid(kind.name(), error))? {
            write(home, kind, &payload)?;
        }
    }
    Ok(())
}

/// The initial payload of a file of this kind in the folder of a service; `None` if a new node has
/// no such file.
fn first_payload(service: &ServiceSecrets, kind: Kind) -> Result<Option<Payload>, DecodeError> {
    let mut secrets = service.secrets.iter().map(encode_secret);
    let brought = secrets.find(|(of, _)| *of == kind).map(|(_, bytes)| Zeroizing::new(bytes.to_vec()));
    kind.or_first(brought)
}

/// The kind of file that holds a secret, and the file's payload.
fn encode_secret(secret: &ServiceSecret) -> (Kind, &[u8]) {
    match secret {
        ServiceSecret::Identity(key) => (Kind::IdentityKey, &key.expanded()[..]),
    }
}
