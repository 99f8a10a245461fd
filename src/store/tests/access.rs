//! Owners and permissions of files and directories.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

#[test]
fn everything_is_for_the_owner_alone() {
    let (folder, _) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    store.add_intro_point(store.services().unwrap()[0], &point(1)).unwrap();
    let mut dirs = vec![state(&folder)];
    while let Some(dir) = dirs.pop() {
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700, "{}", dir.display());
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600, "{}", path.display());
            }
        }
    }
}

#[test]
fn all_files_open_to_others_are_named_at_once_with_one_command() {
    let (folder, _) = publisher();
    let store = Store::open(&state(&folder)).unwrap();
    store.add_intro_point(store.services().unwrap()[0], &point(1)).unwrap();
    fs::write(store.arti_state_dir().join("guards.json"), "{}").unwrap();
    drop(store);
    let dir = state(&folder);
    let changed = change_modes(&dir, 0o066);
    let error = Store::open(&dir).unwrap_err();
    assert!(error.is_permanent());
    let text = error.to_string();
    assert!(text.contains(&format!("{} (mode 0766), ", dir.display())), "{text}");
    assert!(text.contains(&format!("and {} more", changed - 3)), "of {changed} files: {text}");
    assert!(text.ends_with(&format!("fix all with `chmod -R go= {}`", dir.display())), "{text}");
    assert_eq!(Store::create(&dir).unwrap_err().to_string(), text);
}

#[test]
fn all_files_of_other_users_are_named_at_once_with_one_command() {
    if pwd_grp::geteuid() != 0 {
        return;
    }
    let (folder, _) = publisher();
    let dir = state(&folder);
    change_modes(&dir, 0o040);
    for name in ["node.key", "boot", "arti/state", "term", "lock"] {
        std::os::unix::fs::chown(dir.join(name), Some(12345), None).unwrap();
    }
    let text = Store::open(&dir).unwrap_err().to_string();
    assert!(text.contains("node.key of user 12345") && text.contains(" and 2 more: run it as"), "{text}");
    assert!(text.contains(&format!("`chown -R 0 {}`", dir.display())), "{text}");
    assert!(text.contains(&format!("`chmod -R go= {}`", dir.display())), "{text}");
}

/// At each mount, Kubernetes gives the files of a volume to a group.
#[test]
fn a_group_that_files_inherit_from_a_directory_is_reported_as_fs_group() {
    let (folder, _) = publisher();
    let dir = state(&folder);
    change_modes(&dir, 0o060);
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2770)).unwrap();
    let text = Store::open(&dir).unwrap_err().to_string();
    assert!(text.contains("fsGroup") && text.contains("mode 2770"), "{text}");
}

#[test]
fn the_operators_own_files_may_have_any_mode() {
    let (folder, _) = publisher();
    for name in ["rustbalance.toml", "arti.toml", "notes"] {
        fs::write(state(&folder).join(name), "x").unwrap();
        fs::set_permissions(state(&folder).join(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    // As SQLite makes it.
    fs::write(state(&folder).join("arti/cache/dir.sqlite3"), "x").unwrap();
    fs::set_permissions(state(&folder).join("arti/cache/dir.sqlite3"), fs::Permissions::from_mode(0o644)).unwrap();
    Store::open(&state(&folder)).unwrap();
}

/// Versions that inherited the umask 002 let Arti create its lock files with these permissions.
#[test]
fn arti_s_empty_lock_files_may_be_open_to_a_group_and_its_other_files_may_not() {
    let (folder, _) = publisher();
    let dir = state(&folder);
    let make = |name: &str, content: &str| {
        fs::write(dir.join(name), content).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o664)).unwrap();
    };
    make("arti/state/state.lock", "");
    make("arti/cache/dir.lock", "");
    Store::open(&dir).unwrap();
    make("arti/cache/dir.lock", "x");
    assert!(Store::open(&dir).unwrap_err().to_string().contains("dir.lock (mode 0664)"));
}

/// Adds permission bits to `path` and everything below it; returns the number of files and
/// directories. A `chmod` process would inherit the locks of other tests.
fn change_modes(path: &std::path::Path, more: u32) -> usize {
    let mode = fs::metadata(path).unwrap().mode() & 0o7777;
    fs::set_permissions(path, fs::Permissions::from_mode(mode | more)).unwrap();
    let below = if path.is_dir() {
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect()
    } else {
        Vec::new()
    };
    1 + below.iter().map(|path| change_modes(path, more)).sum::<usize>()
}
