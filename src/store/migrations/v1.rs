//! Version 1 to 2. Version 1 had no file `version`, every file in format 1, and no folders of
//! services: the one service that names the cluster had its key in `master.key`, and its revisions
//! and introduction points in the state directory.

use std::path::{Path, PathBuf};

use rustbalance_gossip::id::{ClusterId, OnionAddress};
use zeroize::Zeroizing;

use super::super::error::{Damage, StoreError};
use super::super::file::{self, Payload, Whole};
use super::super::kind::Kind;
use super::Step;
use crate::keys::IdentitySecret;

/// The files of version 1, except those in `intro`. The kind selects the advice to the operator if
/// the file is damaged.
const FILES: [(&str, Kind); 16] = [
    ("pending", Kind::Pending),
    ("node.key", Kind::NodeKey),
    ("master.pub", Kind::MasterPub),
    ("master.key", Kind::IdentityKey),
    ("authority.key", Kind::AuthorityKey),
    ("discovery.key", Kind::DiscoveryKey),
    ("points.key", Kind::PointSeed),
    ("membership", Kind::Membership),
    ("boot", Kind::Boot),
    ("term", Kind::Term),
    ("revisions", Kind::Revisions),
    ("invitations", Kind::Invitations),
    ("revocations", Kind::Revocations),
    ("members", Kind::Members),
    ("draining", Kind::Draining),
    ("alarms", Kind::Alarms),
];

/// The steps that remain in a directory of this cluster.
pub(super) fn steps(dir: &Path, cluster: ClusterId) -> Result<Vec<Step>, StoreError> {
    let owner = cluster.first_service().address();
    let services = dir.join("services");
    let service = services.join(owner.to_string().trim_end_matches(".onion"));
    let mut steps = Vec::new();
    for (name, kind) in FILES {
        let path = dir.join(name);
        let Some(bytes) = file::read_bytes(&path, kind)? else { continue };
        let damaged = |damage| StoreError::Damaged { path: path.clone(), kind, damage };
        let whole = Whole::read(&bytes).map_err(damaged)?;
        if whole.name != name {
            return Err(damaged(Damage::Kind(whole.name.to_owned())));
        }
        if whole.owner != owner {
            return Err(damaged(Damage::Owner(whole.owner)));
        }
        match (name, whole.format) {
            // The first step: a release that knows only version 1 reads this file early, and
            // refuses the new format with the advice to use a newer release.
            ("master.pub", 1) => {
                steps.insert(0, Step::Replace { path, bytes: file::encode_as(name, 2, owner, whole.payload) })
            }
            ("master.key", _) => {
                let bytes = identity_key(owner, whole.payload).map_err(damaged)?;
                steps.push(Step::Create { path: service.join("identity.key"), bytes });
                // After the new file is on disk, so that a complete key exists at every moment.
                steps.push(Step::Remove(path));
            }
            ("revisions", _) => steps.extend(moved(path, service.join("revisions"))),
            _ => {}
        }
    }
    let intro = dir.join("intro");
    if intro.is_dir() {
        steps.extend(moved(intro, service.join("intro")));
    }
    let folders = [services, service].into_iter().filter(|folder| !folder.is_dir()).map(Step::Folder);
    Ok(folders.chain(steps).collect())
}

/// The file `identity.key` with the key in the payload of `master.key`.
fn identity_key(owner: OnionAddress, payload: &[u8]) -> Result<Payload, Damage> {
    let mut key = Zeroizing::new([0; 64]);
    if payload.len() != key.len() {
        return Err(Damage::Content(format!("a key of {} bytes", payload.len())));
    }
    key.copy_from_slice(payload);
    let secret = IdentitySecret::from_expanded(&key).map_err(|error| Damage::Content(error.to_string()))?;
    if secret.service_id().address() != owner {
        return Err(Damage::Content(format!("it is the key of {}", secret.service_id())));
    }
    Ok(file::encode_as("identity.key", 2, owner, &*key))
}

/// The step that moves a file or folder, unless something (newer) exists at the new path.
fn moved(from: PathBuf, to: PathBuf) -> Option<Step> {
    to.symlink_metadata().is_err().then_some(Step::Move { from, to })
}
