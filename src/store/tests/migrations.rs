//! Directories of earlier and later releases. The release before version 2 has written
//! `tests/fixtures/state-v1`.

use std::fs::Permissions;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::*;

#[path = "../../../tests/fixtures/state.rs"]
mod fixtures;

/// A state directory with the files of a fixture.
fn directory(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fixtures::copy(&fixtures::of_version_1(name), &state(&folder));
    folder
}

/// Copies a file of a fixture into a state directory.
fn put_back(name: &str, to: &Path) {
    fs::copy(fixtures::of_version_1(name), to).unwrap();
    fs::set_permissions(to, Permissions::from_mode(0o600)).unwrap();
}

/// The values that the fixture's own release has read from it.
fn expected(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures::of_version_1(name)).unwrap()).unwrap()
}

/// All values in a store.
fn values(store: &Store) -> Value {
    let hex = |bytes: &[u8]| HEXLOWER.encode(bytes);
    let statements = |list: Vec<Vec<u8>>| list.iter().map(|bytes| hex(bytes)).collect::<Vec<_>>();
    let ids = |nodes: &BTreeSet<NodeId>| nodes.iter().map(NodeId::to_string).collect::<Vec<_>>();
    let service = store.cluster().first_service();
    let points = store.intro_points(service).unwrap();
    let seen =
        |point: &StoredIntroPoint| fs::metadata(store.replay_log_path(service, point.nonce)).map_or(0, |log| log.len());
    json!({
        "cluster": store.cluster().to_string(),
        "node": store.node_id().to_string(),
        "role": format!("{:?}", store.membership().role()),
        "membership": hex(&codec::encode(&store.membership().chain()).unwrap()),
        "node key": hex(store.node_secret().unwrap().seed()),
        "identity key": store.identity_secret(service).unwrap().map(|secret| hex(secret.expanded())),
        "authority key": store.authority_secret().unwrap().map(|secret| hex(secret.seed())),
        "discovery keys": hex(&store.discovery().unwrap().to_bytes().unwrap()),
        "point seed": hex(store.point_seed().unwrap().as_bytes()),
        "term": store.term().unwrap(),
        "draining": store.is_draining().unwrap(),
        "revisions": store.revisions(service).unwrap().iter()
            .map(|(period, revision)| json!([period.number, period.length_minutes, period.offset_seconds, revision]))
            .collect::<Vec<_>>(),
        "invitations": statements(store.invitations().unwrap().iter()
            .map(|invitation| codec::encode(&invitation.unverified()).unwrap()).collect()),
        "revocations": statements(store.revocations().unwrap().iter()
            .map(|revocation| codec::encode(&revocation.unverified()).unwrap()).collect()),
        "members": statements(store.members().unwrap().iter().map(|chain| codec::encode(chain).unwrap()).collect()),
        "alarms": store.alarms().unwrap().iter()
            .map(|alarm| json!([alarm.invitation.to_string(), alarm.uses, ids(&alarm.nodes), ids(&alarm.acknowledged)]))
            .collect::<Vec<_>>(),
        "intro points": points.iter().map(|point| json!([
            hex(&point.nonce.0.0), hex(&point.relay.rsa.0), hex(&point.relay.ed25519.0), point.created,
            point.introductions, point.max_seconds, point.max_introductions, point.retired,
        ])).collect::<Vec<_>>(),
        "seen introductions": points.iter().map(seen).collect::<Vec<_>>(),
    })
}

/// The migration steps that remain in a directory.
fn steps(folder: &TempDir) -> Vec<super::super::migrations::Step> {
    let version = version::of(&state(folder)).unwrap();
    (version..VERSION).flat_map(|version| super::super::migrations::steps(&state(folder), version).unwrap()).collect()
}

/// Path and content of every file in all folders, except Arti's files and the lock.
fn everything(folder: &TempDir) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut dirs, mut files) = (vec![state(folder)], Vec::new());
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true if path.ends_with("arti") => {}
                true => dirs.push(path),
                false if path.ends_with("lock") => {}
                false => files.push((path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    files.sort();
    files
}

#[test]
fn the_table_of_files_is_consistent() {
    let mut names = BTreeSet::new();
    for kind in Kind::ALL {
        let kind::KindProperties { name, since, format, max_payload, .. } = kind.row();
        assert!((1..=format).contains(&since) && format <= VERSION && max_payload > 0, "{name}");
        assert!(names.insert(name), "{name} twice");
    }
    assert!(Kind::ALL.iter().any(|kind| kind.row().format == VERSION), "a version must change something");
    assert_eq!(Kind::ALL.iter().position(|kind| *kind == Kind::Membership), Some(Kind::ALL.len() - 1), "written last");
}

#[test]
fn a_directory_of_version_1_is_migrated_with_every_value() {
    for name in ["publisher", "worker"] {
        let folder = directory(name);
        assert_eq!(version::of(&state(&folder)).unwrap(), 1);
        let expected = expected(&format!("{name}.json"));
        for opening in ["the first time", "again"] {
            let store = Store::open(&state(&folder)).unwrap();
            assert_eq!(values(&store), expected, "{name}, {opening}");
            assert_eq!(version::of(store.dir()).unwrap(), VERSION);
        }
        let before = everything(&folder);
        drop(Store::open(&state(&folder)).unwrap());
        assert!(everything(&folder) == before, "{name}: a migrated directory must not change again");
        let boot = fs::read(fixtures::of_version_1(name).join("boot")).unwrap();
        let boot: u64 = codec::decode(file::Whole::read(&boot).unwrap().payload, 16).unwrap();
        assert_eq!(Store::open(&state(&folder)).unwrap().next_boot(0).unwrap(), boot + 1, "{name}");
    }
}

#[test]
fn a_node_that_drained_still_drains() {
    let folder = directory("worker");
    put_back("draining", &state(&folder).join("draining"));
    assert!(Store::open(&state(&folder)).unwrap().is_draining().unwrap());
}

/// A crash leaves the earlier steps done, and perhaps a half-written file beside its place.
#[test]
fn a_migration_that_a_crash_ends_at_any_step_goes_on_at_the_next_start() {
    for name in ["publisher", "worker"] {
        let all = steps(&directory(name)).len();
        assert!(all >= 2, "{name}: {all} steps");
        for done in 0..=all {
            let folder = directory(name);
            for step in &steps(&folder)[..done] {
                step.take().unwrap();
            }
            fs::write(state(&folder).join(".new-x"), "half").unwrap();
            fs::set_permissions(state(&folder).join(".new-x"), Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(Store::create(&state(&folder)), Err(StoreError::Exists { .. })), "{name}, {done} steps");
            let store = Store::open(&state(&folder)).unwrap();
            assert_eq!(values(&store), expected(&format!("{name}.json")), "{name}, {done} steps");
            drop(store);
            assert!(steps(&folder).is_empty() && !state(&folder).join(".new-x").exists());
        }
    }
}

#[test]
fn a_file_of_the_old_version_put_back_from_a_backup_is_migrated_again() {
    let folder = directory("publisher");
    drop(Store::open(&state(&folder)).unwrap());
    put_back("publisher/master.pub", &state(&folder).join("master.pub"));
    assert_eq!(version::of(&state(&folder)).unwrap(), 1);
    assert_eq!(values(&Store::open(&state(&folder)).unwrap()), expected("publisher.json"));
}

/// The path of the identity key of a fixture's service after the migration.
fn identity_path(folder: &TempDir) -> PathBuf {
    let service: ServiceId = expected("publisher.json")["cluster"].as_str().unwrap().parse().unwrap();
    OwnedFolder::of_service(&state(folder), service).path(Kind::IdentityKey)
}

#[test]
fn the_key_of_the_address_is_whole_in_one_of_its_two_places_at_every_step() {
    let folder = directory("publisher");
    let old = state(&folder).join("master.key");
    let key = |path: &Path| fs::read(path).ok().map(|bytes| file::Whole::read(&bytes).unwrap().payload.to_vec());
    let whole = key(&old).unwrap();
    for (done, step) in steps(&folder).iter().enumerate() {
        step.take().unwrap();
        let found = [key(&old), key(&identity_path(&folder))];
        assert!(found.iter().flatten().all(|key| *key == whole) && found.iter().any(Option::is_some), "step {done}");
    }
    assert_eq!((key(&old), key(&identity_path(&folder))), (None, Some(whole)));
}

#[test]
fn a_key_of_the_old_version_put_back_from_a_backup_is_taken_and_never_written_over_another() {
    let folder = directory("publisher");
    drop(Store::open(&state(&folder)).unwrap());
    let (old, new) = (state(&folder).join("master.key"), identity_path(&folder));
    put_back("publisher/master.key", &old);
    assert_eq!(values(&Store::open(&state(&folder)).unwrap()), expected("publisher.json"));
    assert!(!old.exists(), "the same key is there already");
    fs::remove_file(&new).unwrap();
    assert!(matches!(Store::open(&state(&folder)), Err(StoreError::Missing { path, .. }) if path == new));
    put_back("publisher/master.key", &old);
    assert_eq!(values(&Store::open(&state(&folder)).unwrap()), expected("publisher.json"));
    put_back("publisher/master.key", &old);
    fs::write(&new, b"what an operator has put there").unwrap();
    let before = everything(&folder);
    assert!(matches!(Store::open(&state(&folder)), Err(StoreError::KeyExists(path)) if path == new));
    assert!(everything(&folder) == before);
}

#[test]
fn a_damaged_directory_is_not_migrated_but_left_as_it_is() {
    for entry in fs::read_dir(fixtures::of_version_1("publisher")).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() || entry.file_name() == "rustbalance.toml" {
            continue;
        }
        let folder = directory("publisher");
        let path = state(&folder).join(entry.file_name());
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let before = everything(&folder);
        let error = Store::open(&state(&folder)).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { path: at, .. } if *at == path), "{error}");
        assert!(everything(&folder) == before, "{}", path.display());
    }
}

#[test]
fn an_init_that_the_old_release_began_is_finished_with_its_keys() {
    let (folder, expected) = (directory("interrupted"), expected("interrupted.json"));
    let error = Store::open(&state(&folder)).unwrap_err();
    assert!(matches!(error, StoreError::Unfinished { .. }), "{error}");
    let draft = Store::create(&state(&folder)).unwrap();
    let (master, authority) = (draft.identity_secret().unwrap().unwrap(), draft.authority_secret().unwrap().unwrap());
    let first = Discovery::generate(draft.unfinished_command().unwrap().1, 0, &authority, &mut rng()).unwrap();
    let cluster = Cluster { master, authority, discovery: KeyRing::new(first) };
    let store = cluster.complete(draft, Role::Publisher).unwrap();
    assert_eq!(expected["cluster"], store.cluster().to_string());
    assert_eq!(
        expected["identity key"],
        HEXLOWER.encode(store.identity_secret(cluster.service()).unwrap().unwrap().expanded())
    );
    assert_eq!(expected["node key"], HEXLOWER.encode(store.node_secret().unwrap().seed()));
    drop(store);
    Store::open(&state(&folder)).unwrap();
}

/// Opens a directory to which a file was added. It must be refused as one of a later release, and
/// stay unchanged. Returns the error's text.
fn refused(name: &str, bytes: &[u8]) -> String {
    let (folder, _) = publisher();
    fs::write(state(&folder).join(name), bytes).unwrap();
    fs::set_permissions(state(&folder).join(name), Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(state(&folder).join("lock")).unwrap();
    let before = everything(&folder);
    let error = Store::open(&state(&folder)).unwrap_err();
    assert!(matches!(&error, StoreError::Newer { found, .. } if *found == VERSION + 1), "{error}");
    assert!(error.is_permanent());
    assert_eq!(Store::create(&state(&folder)).unwrap_err().to_string(), error.to_string());
    assert!(everything(&folder) == before && !state(&folder).join("lock").exists(), "{name}");
    error.to_string()
}

#[test]
fn a_directory_of_a_later_release_is_refused_untouched_with_the_release_to_install() {
    let cluster = Cluster::new().service().address();
    let next = VERSION + 1;
    let of = |name, format, payload: &str| file::encode_as(name, format, cluster, payload.as_bytes());
    let text = refused("version", &of("version", 2, &format!("{next} 7.8.9-rc.1 and what is not known yet\n")));
    assert!(text.contains("Install rustbalance 7.8.9-rc.1 or newer"), "{text}");
    assert!(text.contains("nothing was changed"), "{text}");
    // A release name with unexpected characters is not shown.
    let text = refused("version", &of("version", 2, &format!("{next} \u{1b}[31m\n")));
    assert!(text.contains("Install the release of rustbalance that wrote it"), "{text}");
    // Without the file `version`, other files show the version, even those of unknown kinds.
    refused("term", format!("rustbalance term v{next} something else entirely\n").as_bytes());
    refused("backends", &of("backends", next, "x"));
}

#[test]
fn a_file_that_is_not_ours_or_not_in_its_place_says_nothing_of_the_version() {
    let (folder, cluster) = publisher();
    for (name, bytes) in [
        ("notes", b"rustbalance notes 9 are mine\n".to_vec()),
        ("old", file::encode_as("term", VERSION + 1, cluster.service().address(), b"x").to_vec()),
    ] {
        fs::write(state(&folder).join(name), bytes).unwrap();
    }
    Store::open(&state(&folder)).unwrap();
}

#[test]
fn a_missing_file_with_a_default_reads_as_the_default() {
    let folder = directory("publisher");
    let store = Store::open(&state(&folder)).unwrap();
    assert_eq!(store.alarms().unwrap().len(), 1);
    drop(store);
    for name in ["alarms", "version"] {
        fs::remove_file(state(&folder).join(name)).unwrap();
    }
    let store = Store::open(&state(&folder)).unwrap();
    assert!(store.alarms().unwrap().is_empty() && !store.is_draining().unwrap());
    assert!(!state(&folder).join("alarms").exists(), "a default is not written");
}
