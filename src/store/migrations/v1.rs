//! Version 1 to 2. Version 1 had no file `version`, and every file in format 1.

use std::path::Path;

use rustbalance_gossip::id::ClusterId;

use super::super::error::{Damage, StoreError};
use super::super::file::{self, Whole};
use super::super::kind::Kind;
use super::Step;

/// The files of version 1, but for those in `intro`, which do not change.
const FILES: [&str; 16] = [
    "pending",
    "node.key",
    "master.pub",
    "master.key",
    "authority.key",
    "discovery.key",
    "points.key",
    "membership",
    "boot",
    "term",
    "revisions",
    "invitations",
    "revocations",
    "members",
    "draining",
    "alarms",
];

pub(super) fn steps(dir: &Path, cluster: ClusterId) -> Result<Vec<Step>, StoreError> {
    let mut steps = Vec::new();
    for name in FILES {
        let path = dir.join(name);
        // How a damaged file is mended has not changed since.
        let kind = Kind::from_name(name).unwrap_or(Kind::Membership);
        let Some(bytes) = file::read_bytes(&path, kind)? else { continue };
        let damaged = |damage| StoreError::Damaged { path: path.clone(), kind, damage };
        let whole = Whole::read(&bytes).map_err(damaged)?;
        if whole.name != name {
            return Err(damaged(Damage::Kind(whole.name.to_owned())));
        }
        if whole.cluster != cluster {
            return Err(damaged(Damage::Cluster(whole.cluster)));
        }
        // First of all: a release that knows version 1 alone reads this file early, and refuses the
        // new format with the advice to use a newer release.
        if name == "master.pub" && whole.format == 1 {
            let bytes = file::encode_as(name, 2, cluster, whole.payload);
            steps.push(Step::Replace { path: path.clone(), bytes });
        }
    }
    Ok(steps)
}
