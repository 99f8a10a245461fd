//! `backup` and `restore`, without a daemon.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{contents, run, run_with};

const PASSPHRASE: &str = "correct horse battery staple\n";

/// A node's directory and the file of its backup, which is made of it.
fn backed_up(home: &Path) -> (PathBuf, PathBuf, String) {
    let (dir, file) = (home.join("node"), home.join("node.age"));
    let address = run(&dir, &["init", "--quiet"]).out.trim().to_owned();
    let shown = file.display().to_string();
    let made = run_with(&dir, &["backup", &shown, "--work-factor", "12", "--passphrase-file", "-"], PASSPHRASE);
    assert_eq!((made.code, made.err.as_str()), (0, ""));
    assert!(made.out.contains(&format!("{shown} holds node ")) && made.out.contains(&address), "{}", made.out);
    (dir, file, address)
}

#[test]
fn a_backup_is_shown_without_secrets_and_restored_on_another_machine() {
    let home = tempfile::tempdir().unwrap();
    let (dir, file, address) = backed_up(home.path());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let (file, to) = (file.display().to_string(), home.path().join("new"));
    let shown = run_with(&to, &["backup", "--inspect", &file, "--passphrase-file", "-"], PASSPHRASE);
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
    for part in [&address, "publisher", "node.key", "rustbalance.toml", env!("CARGO_PKG_VERSION")] {
        assert!(shown.out.contains(part), "{part} is not in {}", shown.out);
    }
    assert!(!to.exists());

    let restored = run_with(&to, &["restore", &file, "--passphrase-file", "-"], PASSPHRASE);
    assert_eq!((restored.code, restored.err.as_str()), (0, ""));
    assert!(restored.out.contains("looks for the machine that the backup was made on"), "{}", restored.out);
    let below = |dir: &Path| {
        let all = contents(dir).into_iter();
        all.map(|(path, bytes)| (path.replace(&dir.display().to_string(), ""), bytes)).collect::<Vec<_>>()
    };
    let (mut old, mut new) = (below(&dir), below(&to));
    let mark = new.iter().position(|(path, _)| path == "/restored").unwrap();
    new.remove(mark);
    old.sort();
    assert_eq!(new, old);
    let again = run_with(&to, &["restore", &file, "--passphrase-file", "-"], PASSPHRASE);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("to an empty directory only"), "{}", again.err);
    assert_eq!(below(&to).len(), new.len() + 1);

    let forced = run(&to, &["restore", "--force"]);
    assert_eq!(forced.code, 0, "{}", forced.err);
    let pointless = run(&dir, &["restore", "--force"]);
    assert_eq!(pointless.code, 1);
    assert!(pointless.err.contains("was not restored lately"), "{}", pointless.err);
}

#[test]
fn weak_wrong_and_missing_passphrases_are_refused_and_no_file_is_made() {
    let home = tempfile::tempdir().unwrap();
    let (dir, file, _) = backed_up(home.path());
    let (new, old) = (home.path().join("new.age").display().to_string(), file.display().to_string());
    for weak in ["", "\n", "short\n", "aaaaaaaaaaaaaaaaaaaaaaaa\n"] {
        let done = run_with(&dir, &["backup", &new, "--passphrase-file", "-"], weak);
        assert_eq!(done.code, 1, "{weak:?}");
        assert!(done.err.contains("too weak"), "{}", done.err);
    }
    let none = run(&dir, &["backup", &new]);
    assert_eq!(none.code, 2, "{}", none.err);
    let over = run_with(&dir, &["backup", &old, "--work-factor", "12", "--passphrase-file", "-"], PASSPHRASE);
    assert_eq!(over.code, 1);
    assert!(over.err.contains("never replaces a file"), "{}", over.err);
    assert!(!Path::new(&new).exists());

    let to = home.path().join("to");
    let wrong = run_with(&to, &["restore", &old, "--passphrase-file", "-"], "correct horse battery stapler\n");
    assert_eq!(wrong.code, 1);
    assert!(wrong.err.contains("wrong passphrase"), "{}", wrong.err);
    let secret = std::fs::read(dir.join("node.key")).unwrap();
    std::fs::write(&new, &secret).unwrap();
    let other = run_with(&to, &["restore", &new, "--passphrase-file", "-"], PASSPHRASE);
    assert_eq!(other.code, 1);
    assert!(other.err.contains("is not a backup") && other.err.contains("chmod 600"), "{}", other.err);
    assert!(!to.exists());
}

#[test]
fn a_backup_goes_to_standard_output_on_request() {
    let home = tempfile::tempdir().unwrap();
    let (dir, _, _) = backed_up(home.path());
    let secret = home.path().join("passphrase");
    std::fs::write(&secret, PASSPHRASE).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_rustbalance"))
        .arg("--dir")
        .arg(&dir)
        .args(["backup", "-", "--work-factor", "12", "--passphrase-file"])
        .arg(&secret)
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.starts_with(b"age-encryption.org/v1\n"));
    let nothing = run_with(home.path(), &["backup", "x.age", "--passphrase-file", "-"], PASSPHRASE);
    assert_eq!(nothing.code, 1);
    assert!(nothing.err.contains("holds no node yet"), "{}", nothing.err);
}
