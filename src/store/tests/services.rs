//! Several services in one state directory.

use super::*;

/// The state directory of a publisher with two services, whose store is closed, its cluster and the
/// key of the second service.
fn two_services() -> (TempDir, Cluster, IdentitySecret) {
    let (folder, cluster, second) =
        (tempfile::tempdir().unwrap(), Cluster::new(), IdentitySecret::generate(&mut rng()));
    let mut draft = Store::create(&state(&folder)).unwrap();
    draft.begin(SetupCommand::Join, cluster.id()).unwrap();
    let node = draft.node_secret(|| NodeSecret::generate(&mut rng())).unwrap();
    let services = [cluster.master.duplicate(), second.duplicate()].map(ServiceSecrets::of);
    let contents = InitialContents {
        chain: &cluster.chain(node.node_id(), Role::Publisher),
        services: &services,
        authority: Some(&cluster.authority),
        discovery: &cluster.discovery,
        points: &PointSeed::derive(&cluster.authority, node.node_id()),
        members: &[],
    };
    drop(draft.complete(&contents).unwrap());
    (folder, cluster, second)
}

#[test]
fn each_service_has_keys_revisions_and_introduction_points_of_its_own() {
    let (folder, cluster, second) = two_services();
    let store = Store::open(&state(&folder)).unwrap();
    let (one, two) = (cluster.service(), second.service_id());
    assert_eq!(store.services().unwrap(), [one, two]);
    store.raise_revision(one, period(1), 50).unwrap();
    store.raise_revision(two, period(1), 3).unwrap();
    store.add_intro_point(one, &point(1)).unwrap();
    store.add_intro_point(two, &point(1)).unwrap();
    store.update_intro_point(two, point(1).nonce, 7, None).unwrap();
    drop(store);
    let store = Store::open(&state(&folder)).unwrap();
    let keys: Vec<_> = store.service_secrets().unwrap();
    let keys: Vec<_> = keys.iter().map(|of| (of.service, *of.identity().unwrap().expanded())).collect();
    assert_eq!(keys, [(one, *cluster.master.expanded()), (two, *second.expanded())]);
    assert_eq!(store.revisions(one).unwrap(), [(period(1), 50)]);
    assert_eq!(store.revisions(two).unwrap(), [(period(1), 3)]);
    let seen = |service| store.intro_points(service).unwrap()[0].introductions;
    assert_eq!((seen(one), seen(two)), (0, 7));
    store.remove_intro_point(two, point(1).nonce).unwrap();
    assert_eq!((store.intro_points(one).unwrap().len(), store.intro_points(two).unwrap().len()), (1, 0));
}

#[test]
fn a_file_in_the_folder_of_another_service_is_noticed() {
    let (folder, cluster, second) = two_services();
    let homes =
        [cluster.service(), second.service_id()].map(|service| OwnedFolder::of_service(&state(&folder), service));
    for kind in [Kind::Revisions, Kind::IdentityKey] {
        let [from, to] = homes.each_ref().map(|home| home.path(kind));
        let whole = fs::read(&to).unwrap();
        fs::copy(from, &to).unwrap();
        let error = Store::open(&state(&folder)).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { path, damage: Damage::Owner(_), .. } if *path == to), "{error}");
        fs::write(&to, whole).unwrap();
    }
    // A folder that is not a service's is the operator's own.
    fs::create_dir(state(&folder).join("services/notes")).unwrap();
    fs::set_permissions(state(&folder).join("services/notes"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(Store::open(&state(&folder)).unwrap().services().unwrap().len(), 2);
}

#[test]
fn a_service_is_added_whole_or_not_at_all_and_never_over_another_key() {
    let (folder, cluster) = publisher();
    let second = IdentitySecret::generate(&mut rng());
    let (service, added) = (second.service_id(), ServiceSecrets::of(second.duplicate()));
    let store = Store::open(&state(&folder)).unwrap();
    // The folder that a crash in the middle leaves is removed.
    let unfinished = file::unfinished_dir(&state(&folder).join("services")).unwrap();
    write(&OwnedFolder { dir: unfinished.clone(), owner: service.address() }, Kind::IdentityKey, second.expanded())
        .unwrap();
    assert_eq!(store.services().unwrap(), [cluster.service()]);
    drop(store);
    let store = Store::open(&state(&folder)).unwrap();
    assert!(!unfinished.exists());
    store.add_service(&added).unwrap();
    store.raise_revision(service, period(1), 7).unwrap();
    store.add_service(&added).unwrap();
    let other = ServiceSecrets { service, ..ServiceSecrets::of(IdentitySecret::generate(&mut rng())) };
    assert!(matches!(store.add_service(&other), Err(StoreError::KeyExists(_))));
    drop(store);
    let store = Store::open(&state(&folder)).unwrap();
    assert_eq!(store.services().unwrap(), [cluster.service(), service]);
    assert_eq!(store.revisions(service).unwrap(), [(period(1), 7)]);
    assert_eq!(store.identity_secret(service).unwrap().unwrap().expanded(), second.expanded());
}

#[test]
fn a_worker_keeps_a_service_without_secrets() {
    let (folder, cluster) = (tempfile::tempdir().unwrap(), Cluster::new());
    let store = cluster.complete(Store::create(&state(&folder)).unwrap(), Role::Worker).unwrap();
    let added = ServiceSecrets::of(IdentitySecret::generate(&mut rng()));
    assert!(matches!(store.add_service(&added), Err(StoreError::NotForWorkers(_))));
    store.add_service(&ServiceSecrets::none(added.service)).unwrap();
    drop(store);
    let store = Store::open(&state(&folder)).unwrap();
    assert_eq!(store.services().unwrap(), [cluster.service(), added.service]);
    assert!(store.service_secrets().unwrap().is_empty());
}
