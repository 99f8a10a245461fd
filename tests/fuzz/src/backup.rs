//! The archive inside a backup.

use rustbalance::backup::{Backup, MAX_BACKUP, Summary};
use rustbalance::config::FILE_NAME;
use rustbalance::store::{MAX_STATE_FILE, StateFile, is_state_path};
use rustbalance_gossip::id::{ClusterId, NodeId};
use rustbalance_gossip::record::Role;

use super::Seed;

/// The input as the archive of a backup.
pub(crate) fn archive(bytes: &[u8]) -> bool {
    let backup = match Backup::from_archive(bytes) {
        Ok(backup) => backup,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    for (path, size) in backup.files() {
        assert!(is_state_path(path) || !path.contains('/'), "{path}");
        assert!(size <= MAX_STATE_FILE && size <= bytes.len());
    }
    let again = backup.to_archive().unwrap();
    assert!(again.len() <= MAX_BACKUP);
    assert_eq!(Backup::from_archive(&again).unwrap(), backup);
    true
}

fn backup() -> Backup {
    let (cluster, node) = (ClusterId::from_public_key([1; 32]), NodeId::from_public_key([2; 32]));
    let service = cluster.to_string().replace(".onion", "");
    let file = |path: &str| StateFile { path: path.into(), bytes: b"content".to_vec().into() };
    Backup {
        summary: Summary { layout: 1, version: "0.1.0".into(), made: 1, cluster, node, role: Role::Publisher },
        state: vec![file("node.key"), file(&format!("services/{service}/revisions"))],
        config: vec![file(FILE_NAME)],
    }
}

pub(crate) fn archive_seeds() -> Vec<Seed> {
    let archive = |change: fn(&mut Backup)| {
        let mut backup = backup();
        change(&mut backup);
        backup.to_archive().unwrap().to_vec()
    };
    let rename = |to: &str| {
        let mut backup = backup();
        backup.state[0].path = to.into();
        backup.to_archive().unwrap().to_vec()
    };
    let whole = archive(|_| {});
    vec![
        Seed::good("whole", whole.as_slice()),
        Seed::good("no-files", archive(|backup| backup.state.clear()).as_slice()),
        Seed::bad("later-layout", archive(|backup| backup.summary.layout = 2).as_slice()),
        Seed::bad("unknown-file", rename("notes").as_slice()),
        Seed::bad("other-folder", rename("arti/node.key").as_slice()),
        Seed::bad("twice", rename(FILE_NAME).as_slice()),
        Seed::bad("cut-short", &whole[..2000]),
    ]
}
