//! Backups as a whole: what comes back, what is refused, and what a backup does not contain.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::record::{PeriodId, PointNonce, RelayId};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::join::found;
use crate::store::StoredIntroPoint;

/// The fastest work factor.
const WORK_OF_TESTS: u8 = 12;
const NOW: u64 = 1_795_362_000;
const CONFIG: &[u8] = b"[[port]]\nvirtual = 80\ntarget = \"127.0.0.1:8080\"\n";

fn passphrase() -> Passphrase {
    Passphrase::new("correct horse battery staple")
}

/// The state directory of a publisher that has run for a while.
fn publisher() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("state");
    let store = found(Store::create(&dir).unwrap(), None, NOW, &mut rand::rng()).unwrap();
    let service = store.cluster().first_service();
    store.next_boot(NOW).unwrap();
    store.raise_term(7).unwrap();
    store.raise_revision(service, PeriodId { number: 9, length_minutes: 1440, offset_seconds: 0 }, 5).unwrap();
    store.set_draining(true).unwrap();
    store.put_wireguard_keys(b"not for a backup").unwrap();
    let point = StoredIntroPoint {
        relay: RelayId { rsa: FixedBytes([1; 20]), ed25519: FixedBytes([1; 32]) },
        nonce: PointNonce(FixedBytes([1; 16])),
        created: NOW,
        introductions: 0,
        max_seconds: 70_000,
        max_introductions: 20_000,
        retired: None,
    };
    store.add_intro_point(service, &point).unwrap();
    fs::write(dir.join(FILE_NAME), CONFIG).unwrap();
    drop(store);
    (folder, dir)
}

fn sealed(dir: &Path) -> Vec<u8> {
    Backup::of(dir, NOW).unwrap().seal(&passphrase(), WORK_OF_TESTS).unwrap()
}

/// Every file below `dir` with its mode, by its path.
fn modes(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let metadata = entry.metadata().unwrap();
        all.push((entry.path(), metadata.permissions().mode() & 0o7777));
        if metadata.is_dir() {
            all.extend(modes(&entry.path()));
        }
    }
    all
}

#[test]
fn a_restored_node_has_the_state_of_its_backup() {
    let (folder, dir) = publisher();
    let backup = Backup::open(&sealed(&dir), &passphrase()).unwrap();
    let to = folder.path().join("new");
    drop(backup.restore(&to, false).unwrap());
    let (old, new) = (Store::open(&dir).unwrap(), Store::open(&to).unwrap());
    let service = old.cluster().first_service();
    assert_eq!((new.node_id(), new.cluster(), new.term().unwrap()), (old.node_id(), old.cluster(), 7));
    assert_eq!(new.revisions(service).unwrap(), old.revisions(service).unwrap());
    assert!(new.is_draining().unwrap() && new.identity_secret(service).unwrap().is_some());
    assert_eq!(fs::read(to.join(FILE_NAME)).unwrap(), CONFIG);
    assert_eq!(new.restored().unwrap(), Some(RestoredMark { made: NOW, forced: false }));
    for (path, mode) in modes(&to) {
        let want = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, want, "{}", path.display());
    }
}

#[test]
fn a_restored_node_makes_keys_again_whose_use_others_remember() {
    let (folder, dir) = publisher();
    let to = folder.path().join("new");
    let new = Backup::of(&dir, NOW).unwrap().restore(&to, false).unwrap();
    assert!(new.intro_points(new.cluster().first_service()).unwrap().is_empty());
    assert!(new.wireguard_keys().unwrap().is_none());
    let old = Store::open(&dir).unwrap();
    assert_eq!(old.intro_points(old.cluster().first_service()).unwrap().len(), 1);
}

#[test]
fn a_restored_node_counts_its_starts_far_above_those_of_its_older_self() {
    let (folder, dir) = publisher();
    let backup = Backup::of(&dir, NOW).unwrap();
    let older = Store::open(&dir).unwrap();
    let of_older = (0..1000).map(|_| older.next_boot(NOW).unwrap()).max().unwrap();
    for forced in [false, true] {
        let new = backup.restore(&folder.path().join(format!("new-{forced}")), forced).unwrap();
        let first = new.next_boot(NOW).unwrap();
        assert!(first > of_older, "{first} is not above {of_older}");
        new.forget_restored().unwrap();
        assert_eq!(new.next_boot(NOW).unwrap(), first + 1);
    }
}

#[test]
fn a_directory_that_is_not_empty_is_refused_and_stays_as_it_is() {
    let (folder, dir) = publisher();
    let backup = Backup::of(&dir, NOW).unwrap();
    let occupied = folder.path().join("occupied");
    fs::create_dir(&occupied).unwrap();
    fs::set_permissions(&occupied, Permissions::from_mode(0o700)).unwrap();
    fs::write(occupied.join("something"), "else").unwrap();
    for to in [&occupied, &dir] {
        let before = modes(to);
        let error = backup.restore(to, false).unwrap_err();
        assert!(matches!(error, BackupError::Store(StoreError::NotEmpty { .. })), "{error}");
        assert_eq!(modes(to), before);
    }
    fs::remove_file(occupied.join("something")).unwrap();
    backup.restore(&occupied, false).unwrap();
}

#[test]
fn a_restore_that_fails_leaves_nothing_and_an_interrupted_one_can_be_repeated() {
    let (folder, dir) = publisher();
    let whole = Backup::of(&dir, NOW).unwrap();
    let to = folder.path().join("new");
    let without = |name: &str| {
        let mut backup = Backup::of(&dir, NOW).unwrap();
        backup.state.retain(|file| !file.path.ends_with(name));
        backup
    };
    for name in ["node.key", "authority.key", "identity.key", "term", "membership"] {
        let error = without(name).restore(&to, false).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert!(!to.exists(), "{name}: {:?}", modes(&to));
    }
    // A crash before the membership is written, which marks the directory as complete.
    drop(whole.restore(&to, false).unwrap());
    fs::remove_file(to.join("membership")).unwrap();
    let service = Store::open(&dir).unwrap().cluster().first_service().address();
    let pending = format!("rustbalance pending v1 {service} 10 ");
    let sum = rustbalance_gossip::hash::labelled(
        rustbalance_gossip::hash::Label::StateFile,
        &[pending.as_bytes(), b"\0", b"restoring\n"],
    );
    let line = format!("{pending}{}\nrestoring\n", data_encoding::HEXLOWER.encode(&sum));
    fs::write(to.join("pending"), line).unwrap();
    fs::set_permissions(to.join("pending"), Permissions::from_mode(0o600)).unwrap();
    let error = Store::open(&to).unwrap_err();
    assert!(error.to_string().contains("`rustbalance restore FILE`"), "{error}");
    whole.restore(&to, false).unwrap();
}

#[test]
fn root_backs_up_and_releases_the_node_of_another_user_and_no_mixture() {
    use std::os::unix::fs::{MetadataExt, chown};
    if pwd_grp::geteuid() != 0 {
        return;
    }
    let (folder, dir) = publisher();
    let to = folder.path().join("new");
    drop(Backup::of(&dir, NOW).unwrap().restore(&to, false).unwrap());
    for (path, _) in modes(&to).into_iter().chain([(to.clone(), 0)]) {
        chown(&path, Some(12345), None).unwrap();
    }
    assert_eq!(Backup::of(&to, NOW).unwrap().summary, Backup::of(&dir, NOW).unwrap().summary);
    assert!(store::force_restored(&to).unwrap());
    assert_eq!(fs::metadata(to.join("restored")).unwrap().uid(), 12345);
    chown(to.join("node.key"), Some(0), None).unwrap();
    let error = Backup::of(&to, NOW).unwrap_err();
    assert!(matches!(error, BackupError::Store(StoreError::Exposed(_))), "{error}");
}

#[test]
fn the_operator_can_say_later_that_the_older_machine_is_off() {
    let (folder, dir) = publisher();
    let to = folder.path().join("new");
    drop(Backup::of(&dir, NOW).unwrap().restore(&to, false).unwrap());
    assert!(store::force_restored(&to).unwrap());
    assert_eq!(Store::open(&to).unwrap().restored().unwrap(), Some(RestoredMark { made: NOW, forced: true }));
    assert!(!store::force_restored(&dir).unwrap(), "a node that was not restored");
}

#[test]
fn the_file_shows_nothing_without_the_passphrase() {
    let (_folder, dir) = publisher();
    let sealed = sealed(&dir);
    assert!(sealed.starts_with(b"age-encryption.org/v1\n-> scrypt "));
    let store = Store::open(&dir).unwrap();
    let identity = store.identity_secret(store.cluster().first_service()).unwrap().unwrap();
    let is_there = |needle: &[u8]| sealed.windows(needle.len()).any(|window| window == needle);
    for secret in [&store.node_secret().unwrap().seed()[..], &identity.expanded()[..], b"rustbalance", b"node.key"] {
        assert!(!is_there(secret));
    }
    let address = store.node_id().to_string();
    assert!(!is_there(address.trim_end_matches(".onion").as_bytes()));
    let wrong = Backup::open(&sealed, &Passphrase::new("correct horse battery stapler")).unwrap_err();
    assert!(matches!(wrong, BackupError::WrongPassphrase), "{wrong}");
}

#[test]
fn a_damaged_file_is_refused_wherever_the_damage_is() {
    let (_folder, dir) = publisher();
    let sealed = sealed(&dir);
    let header = sealed.windows(4).position(|window| window == b"\n---").unwrap();
    for end in [0, 1, 20, header / 2, header + 2, header + 50, header + 70, sealed.len() / 2, sealed.len() - 1] {
        let error = Backup::open(&sealed[..end], &passphrase()).unwrap_err();
        assert!(matches!(error, BackupError::NotAge | BackupError::Damaged), "{end}: {error}");
    }
    for at in [0, header / 2, header + 10, header + 60, sealed.len() / 2, sealed.len() - 1] {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        Backup::open(&changed, &passphrase()).unwrap_err();
    }
    let mut longer = sealed.clone();
    longer.push(0);
    assert!(matches!(Backup::open(&longer, &passphrase()), Err(BackupError::Damaged)));
}

#[test]
fn a_file_that_costs_too_much_to_decrypt_is_refused_before_it_is_decrypted() {
    let (_folder, dir) = publisher();
    let sealed = sealed(&dir);
    let at = sealed.windows(4).position(|window| window == b" 12\n").unwrap();
    let mut costly = sealed[..at].to_vec();
    costly.extend_from_slice(b" 30\n");
    costly.extend_from_slice(&sealed[at + 4..]);
    let error = Backup::open(&costly, &passphrase()).unwrap_err();
    assert!(matches!(error, BackupError::TooMuchWork { required: 30 }), "{error}");
}

/// A tar archive of these entries after a valid summary.
fn archive_of(dir: &Path, entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let summary = serde_json::to_vec(&Backup::of(dir, NOW).unwrap().summary).unwrap();
    let mut builder = Builder::new(Vec::new());
    let first: (&str, EntryType, &[u8]) = ("backup.json", EntryType::Regular, &summary);
    for (path, kind, bytes) in std::iter::once(&first).chain(entries) {
        let mut header = Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_size(bytes.len() as u64);
        if *kind == EntryType::Symlink {
            header.set_link_name("/etc/passwd").unwrap();
        }
        // Not `set_path`, which refuses what an attacker would write.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn an_archive_with_paths_links_or_files_that_no_backup_has_is_refused() {
    use EntryType::{Directory, Link, Regular, Symlink, XHeader};
    let (_folder, dir) = publisher();
    let own = format!("services/{}", Store::open(&dir).unwrap().cluster().to_string().replace(".onion", ""));
    let upper = format!("{}/revisions", own.to_uppercase().replace("SERVICES", "services"));
    let too_large = vec![0; MAX_CONFIG + 1];
    assert!(archive::read(&archive_of(&dir, &[("term", Regular, b"x")])).is_ok());
    let evil: &[&[(&str, EntryType, &[u8])]] = &[
        &[("../term", Regular, b"x")],
        &[("/etc/passwd", Regular, b"x")],
        &[("services/../term", Regular, b"x")],
        &[("./term", Regular, b"x")],
        &[("pending", Regular, b"x")],
        &[("restored", Regular, b"x")],
        &[("wireguard.key", Regular, b"x")],
        &[("arti/state/x", Regular, b"x")],
        &[("services/abc/revisions", Regular, b"x")],
        &[(&upper, Regular, b"x")],
        &[("term", Symlink, b"")],
        &[("term", Link, b"")],
        &[("services", Directory, b"")],
        &[("term", XHeader, b"18 path=/etc/passwd\n")],
        &[("term", Regular, b"x"), ("term", Regular, b"y")],
        &[("backup.json", Regular, b"{}")],
        &[(FILE_NAME, Regular, &too_large)],
    ];
    for entries in evil {
        let error = archive::read(&archive_of(&dir, entries)).unwrap_err();
        assert!(matches!(error, BackupError::Content(_)), "{:?}: {error}", entries[0].0);
    }
    let whole = archive_of(&dir, &[("term", Regular, &[b'x'; 2000])]);
    assert!(archive::read(&whole[..2000]).is_err(), "an archive that is cut short");
    assert!(matches!(archive::read(b""), Err(BackupError::Content(_))));
}

#[test]
fn a_backup_of_a_later_release_names_that_release() {
    let (_folder, dir) = publisher();
    let mut backup = Backup::of(&dir, NOW).unwrap();
    backup.summary.layout = LAYOUT + 1;
    backup.summary.version = "9.9.9".into();
    let sealed = backup.seal(&passphrase(), WORK_OF_TESTS).unwrap();
    let error = Backup::open(&sealed, &passphrase()).unwrap_err();
    assert!(matches!(&error, BackupError::Newer { release } if release == "9.9.9"), "{error}");
}

#[test]
fn a_backup_is_private_and_never_replaces_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup.age");
    write_new(&path, b"one").unwrap();
    let error = write_new(&path, b"two").unwrap_err();
    assert!(error.to_string().contains("never replaces"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"one");
    assert_eq!(modes(folder.path()), [(path, 0o600)]);
}

proptest::proptest! {
    #[test]
    fn any_archive_is_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3000)) {
        let _ = archive::read(&bytes);
        proptest::prop_assert!(Backup::open(&bytes, &passphrase()).is_err());
    }
}
