//! The folders of Tor clients that follow each other.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

fn make_private(dir: &Path) {
    fs::create_dir(dir).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
}

/// Has the store make folders for a further client, and carry one file over.
fn renew(store: &Store) {
    store.renew_arti(|from, to| fs::copy(from.join("guards"), to.join("guards")).map(drop)).unwrap();
}

#[test]
fn a_further_client_has_folders_of_its_own_with_what_was_carried_over() {
    let (folder, _) = publisher();
    let dir = state(&folder).join("arti");
    let store = Store::open(&state(&folder)).unwrap();
    fs::write(store.arti_state_dir().join("guards"), "a").unwrap();
    renew(&store);
    assert_eq!(store.arti_state_dir(), dir.join("1/state"));
    assert_eq!(store.arti_cache_dir(), dir.join("1/cache"));
    // Both clients write until the older one has ended.
    fs::write(dir.join("state/guards"), "old").unwrap();
    fs::write(dir.join("1/state/guards"), "b").unwrap();
    renew(&store);
    renew(&store);
    assert_eq!(store.arti_state_dir(), dir.join("3/state"));
    make_private(&dir.join("3/damaged"));
    assert_eq!(fs::read(dir.join("3/state/guards")).unwrap(), b"b");
    assert!(dir.join("2").exists() && !dir.join("1").exists(), "two clients may have their files open");
    drop(store);

    let store = Store::open(&state(&folder)).unwrap();
    assert_eq!(store.arti_state_dir(), dir.join("state"));
    assert_eq!(fs::read(dir.join("state/guards")).unwrap(), b"b");
    let left: BTreeSet<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["cache".into(), "damaged".into(), "state".into()].into());
}

#[test]
fn a_crash_while_the_newest_folders_are_taken_over_loses_nothing() {
    // After the old folder was removed, and after the new one was moved as well.
    for is_moved in [false, true] {
        let (folder, _) = publisher();
        let dir = state(&folder).join("arti");
        let store = Store::open(&state(&folder)).unwrap();
        fs::write(store.arti_state_dir().join("guards"), "a").unwrap();
        renew(&store);
        drop(store);
        fs::remove_dir_all(dir.join("state")).unwrap();
        if is_moved {
            fs::rename(dir.join("1/state"), dir.join("state")).unwrap();
        }
        let store = Store::open(&state(&folder)).unwrap();
        assert_eq!(fs::read(store.arti_state_dir().join("guards")).unwrap(), b"a");
        assert!(store.arti_cache_dir().is_dir() && !dir.join("1").exists());
    }
}

#[test]
fn where_nothing_can_be_carried_over_the_present_folders_stay() {
    let (folder, _) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    let before = store.arti_state_dir();
    let error = store.renew_arti(|_, _| Err(io::Error::other("the disk is full"))).unwrap_err();
    assert!(error.to_string().contains("arti"), "{error}");
    assert_eq!(store.arti_state_dir(), before);
    drop(store);
    // What was begun is swept up.
    let store = Store::open(&state(&folder)).unwrap();
    assert_eq!(fs::read_dir(store.arti_state_dir().parent().unwrap()).unwrap().count(), 2);
}
