//! Incomplete state directories.

use std::fs;

use super::*;

/// Whatever a crash of `complete` leaves: `open` explains it, and the same command finishes it.
#[test]
fn an_interrupted_setup_can_be_finished() {
    let order = [
        Kind::Version,
        Kind::Pending,
        Kind::NodeKey,
        Kind::IdentityKey,
        Kind::Revisions,
        Kind::MasterPub,
        Kind::AuthorityKey,
        Kind::DiscoveryKey,
        Kind::PointSeed,
        Kind::Boot,
        Kind::Term,
        Kind::Invitations,
        Kind::Revocations,
        Kind::Members,
    ];
    for written in 2..=order.len() {
        let (folder, cluster) = publisher();
        // A complete directory without the files that were not written before the crash.
        fs::remove_file(state(&folder).join("membership")).unwrap();
        write(&OwnedFolder::of_cluster(&state(&folder), cluster.id()), Kind::Pending, b"founding\n").unwrap();
        for kind in &order[written..] {
            fs::remove_file(path_of(*kind, &folder, &cluster)).unwrap();
        }
        let key = fs::read(state(&folder).join("node.key")).ok();
        let error = Store::open(&state(&folder)).unwrap_err();
        assert!(matches!(error, StoreError::Unfinished { .. }), "{error}");
        assert!(error.to_string().contains("`rustbalance init`"), "{error}");
        let draft = Store::create(&state(&folder)).unwrap();
        assert_eq!(draft.unfinished_command(), Some((SetupCommand::Init, cluster.id())));
        assert_eq!(draft.identity_secret().unwrap().is_some(), written >= 4);
        cluster.complete(draft, Role::Publisher).unwrap();
        let store = Store::open(&state(&folder)).unwrap();
        assert!(key.is_none_or(|key| key == fs::read(state(&folder).join("node.key")).unwrap()));
        assert_eq!(store.identity_secret(cluster.service()).unwrap().unwrap().expanded(), cluster.master.expanded());
        assert!(!state(&folder).join("pending").exists());
    }
}

#[test]
fn another_setup_starts_over_only_without_a_master_key() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (Cluster::new(), Cluster::new());
    let mut draft = Store::create(&state(&folder)).unwrap();
    draft.begin(SetupCommand::Join, one.id()).unwrap();
    let first = draft.node_secret(|| NodeSecret::generate(&mut rng())).unwrap().node_id();
    assert_eq!(draft.node_secret(|| NodeSecret::generate(&mut rng())).unwrap().node_id(), first);
    drop(draft);
    assert!(
        Store::open(&state(&folder)).unwrap_err().to_string().contains(&format!("`rustbalance join {}`", one.id()))
    );

    let mut draft = Store::create(&state(&folder)).unwrap();
    draft.begin(SetupCommand::Join, two.id()).unwrap();
    assert_ne!(draft.node_secret(|| NodeSecret::generate(&mut rng())).unwrap().node_id(), first);

    service::make(&state(&folder), two.service()).unwrap();
    write(&OwnedFolder::of_service(&state(&folder), two.service()), Kind::IdentityKey, two.master.expanded()).unwrap();
    let before = snapshot(&folder);
    let error = draft.begin(SetupCommand::Init, one.id()).unwrap_err();
    assert!(matches!(error, StoreError::KeyInTheWay { .. }), "{error}");
    assert!(matches!(draft.discard(), Err(StoreError::KeyInTheWay { .. })));
    assert_eq!(snapshot(&folder), before);
}

#[test]
fn a_refused_join_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = Store::create(&state(&folder)).unwrap();
    draft.begin(SetupCommand::Join, Cluster::new().id()).unwrap();
    draft.node_secret(|| NodeSecret::generate(&mut rng())).unwrap();
    fs::write(draft.arti_state_dir().join("guards"), b"x").unwrap();
    draft.discard().unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // Files that were there before stay.
    fs::create_dir(state(&folder)).unwrap();
    fs::set_permissions(state(&folder), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(state(&folder).join("rustbalance.toml"), b"").unwrap();
    Store::create(&state(&folder)).unwrap().discard().unwrap();
    assert_eq!(fs::read_dir(state(&folder)).unwrap().count(), 1);
}

#[test]
fn a_refused_join_removes_nothing_that_it_did_not_make() {
    let folder = tempfile::tempdir().unwrap();
    let made_before = state(&folder).join("arti/state");
    fs::create_dir_all(&made_before).unwrap();
    for dir in [state(&folder), state(&folder).join("arti"), made_before.clone()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::write(made_before.join("guards"), b"the operator's own").unwrap();
    let mut draft = Store::create(&state(&folder)).unwrap();
    draft.begin(SetupCommand::Join, Cluster::new().id()).unwrap();
    draft.discard().unwrap();
    assert_eq!(fs::read(made_before.join("guards")).unwrap(), b"the operator's own");
    assert!(!state(&folder).join("arti/cache").exists() && !state(&folder).join("pending").exists());
}
