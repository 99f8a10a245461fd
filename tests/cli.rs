//! The `rustbalance` command as an operator uses it: its output, its refusals and its exit codes.
//! No network is used.

// Clippy's exception for tests does not cover the helper functions.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use assert_cmd::Command;

#[path = "cli/backup.rs"]
mod backup;

const DUCK: &str = "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion";

/// The result of a command.
struct Done {
    code: i32,
    out: String,
    err: String,
}

/// Runs `rustbalance --dir DIR ...` with `input` on standard input.
fn run_with(dir: &Path, arguments: &[&str], input: &str) -> Done {
    let output = Command::new(env!("CARGO_BIN_EXE_rustbalance"))
        .env_remove("RUSTBALANCE_LOG")
        .env_remove("RUSTBALANCE_DIR")
        .arg("--dir")
        .arg(dir)
        .args(arguments)
        .write_stdin(input)
        .output()
        .unwrap();
    Done {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(dir: &Path, arguments: &[&str]) -> Done {
    run_with(dir, arguments, "")
}

/// Every file in a directory with its bytes, except the lock file, which names the last process
/// that took it.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            _ if entry.file_name() == "lock" => {}
            true => all.extend(contents(&entry.path())),
            false => all.push((entry.path().display().to_string(), std::fs::read(entry.path()).unwrap())),
        }
    }
    all.sort();
    all
}

#[test]
fn help_names_every_command() {
    let home = tempfile::tempdir().unwrap();
    let done = run(home.path(), &["--help"]);
    assert_eq!(done.code, 0);
    for command in [
        "init",
        "run",
        "invite",
        "join",
        "status",
        "check",
        "canary",
        "bugreport",
        "reload",
        "leave",
        "drain",
        "resume",
        "evict",
        "acknowledge",
        "alert",
        "vanity",
        "wireguard",
        "circuit",
        "backup",
        "restore",
    ] {
        assert!(done.out.contains(&format!("\n  {command} ")), "{command} is not in\n{}", done.out);
        assert_eq!(run(home.path(), &[command, "--help"]).code, 0);
    }
}

#[test]
fn wrong_usage_has_exit_code_2() {
    let home = tempfile::tempdir().unwrap();
    for wrong in [
        &["fly"][..],
        &[],
        &["init", "--target", "example.com:80"],
        &["init", "--port", "7441"],
        &["init", "--colour"],
        &["invite", "--uses", "0"],
        &["invite", "--expires", "1y"],
        &["invite", "--role", "king"],
        &["invite", "--list", "--uses", "2"],
        &["invite", "--json"],
        &["invite", "--revoke", "x"],
        &["invite", "--revoke", "abcd", "--role", "worker"],
        &["join", "abc.onion"],
        &["evict", "x/y"],
        &["init", "--wireguard=0.0.0.0:7440"],
        &["init", "--wireguard=10.0.0.1,10.0.0.2"],
        &["wireguard"],
        &["restore"],
        &["backup", "--inspect"],
        &["backup", "--work-factor", "30"],
    ] {
        let done = run(home.path(), wrong);
        assert_eq!(done.code, 2, "{wrong:?}: {}", done.err);
        assert!(done.out.is_empty());
    }
    let done = run(home.path(), &["init", "--target", "example.com:80"]);
    assert!(done.err.contains("is not on this host"), "{}", done.err);
    assert!(contents(home.path()).is_empty());
}

#[test]
fn init_with_wireguard_says_what_it_costs_and_writes_it() {
    let home = tempfile::tempdir().unwrap();
    let (with, without) = (home.path().join("with"), home.path().join("without"));
    let done = run(&with, &["init", "--wireguard=203.0.113.7"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("the other members learn this node's IP addresses"), "{}", done.err);
    assert!(done.err.contains("203.0.113.7:7440"), "{}", done.err);
    let config = std::fs::read_to_string(with.join("rustbalance.toml")).unwrap();
    assert!(
        config.contains("\nenabled = true\n") && config.contains("\nlisten = [\"203.0.113.7:7440\"]\n"),
        "{config}"
    );
    let done = run(&without, &["init"]);
    assert_eq!((done.code, done.err.contains("WireGuard")), (0, false), "{}", done.err);
    let config = std::fs::read_to_string(without.join("rustbalance.toml")).unwrap();
    assert!(config.contains("\n# enabled = true\n"), "{config}");
}

#[test]
fn commands_for_a_daemon_that_does_not_run_have_exit_code_3() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("state");
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["invite"],
        &["invite", "--list"],
        &["invite", "--revoke", "abcd1234"],
        &["leave"],
        &["drain"],
        &["resume"],
        &["reload"],
        &["canary"],
        &["evict", "abcdefgh"],
        &["acknowledge", "abcd1234"],
        &["wireguard", "status"],
        &["wireguard", "off"],
        &["circuit", "list"],
        &["circuit", "kill", "fc00:dead:beef:4dad::12ab:34cd"],
    ] {
        let done = run(&dir, command);
        assert_eq!(done.code, 3, "{command:?}: {}", done.err);
        assert_eq!(done.err, format!("error: no daemon runs in {}: start it with `rustbalance run`\n", dir.display()),);
    }
    let done = run(&dir, &["circuit", "kill", "203.0.113.7"]);
    assert!(done.code == 2 && done.err.contains("\"203.0.113.7\" does not name a circuit"), "{}", done.err);
    assert!(!dir.exists());
}

#[test]
fn init_makes_a_node_once() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("a node");
    let first = run(&dir, &["init", "--quiet", "--target", "unix:/run/app.sock", "--port", "8080"]);
    assert_eq!((first.code, first.err.as_str()), (0, ""));
    let address = first.out.trim();
    assert!(address.len() == 62 && address.ends_with(".onion"), "{address}");
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let config = std::fs::read_to_string(dir.join("rustbalance.toml")).unwrap();
    assert!(config.contains("virtual = 8080\ntarget = \"unix:/run/app.sock\"\n"), "{config}");
    for (path, _) in contents(&dir) {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{path} is open to others");
    }

    let before = contents(&dir);
    let second = run(&dir, &["init"]);
    assert_eq!(second.code, 1);
    assert!(second.err.starts_with("error: ") && second.err.contains(address), "{}", second.err);
    let changed: Vec<_> =
        contents(&dir).into_iter().filter(|file| !before.contains(file)).map(|(path, _)| path).collect();
    assert_eq!((changed, contents(&dir).len()), (Vec::new(), before.len()), "nothing may change");
}

#[test]
fn init_says_what_to_do_next() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("a node");
    let done = run(&dir, &["init"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.out.contains("Port 80 goes to 127.0.0.1:8080."), "{}", done.out);
    assert!(done.out.contains(&format!("rustbalance --dir '{}' run", dir.display())), "{}", done.out);
    let invite = done.out.lines().find(|line| line.contains(" invite ")).unwrap();
    assert!(invite.contains("as a worker") && invite.contains("--role publisher"), "{invite}");
}

#[test]
fn init_takes_over_the_key_of_c_tor_and_artis_file() {
    let home = tempfile::tempdir().unwrap();
    let key = home.path().join("hs_ed25519_secret_key");
    let mut bytes = b"== ed25519v1-secret: type0 ==\0\0\0".to_vec();
    bytes.extend([64; 64]);
    std::fs::write(&key, bytes).unwrap();
    let arti = home.path().join("my.toml");
    std::fs::write(&arti, "# mine\n[vanguards]\nmode = \"full\"\n").unwrap();
    let (first, second) = (home.path().join("1"), home.path().join("2"));
    let options = ["init", "--quiet", "--import-key", key.to_str().unwrap(), "--arti-config", arti.to_str().unwrap()];
    let done = run(&first, &options);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(run(&second, &options).out, done.out, "the same key gives the same address");
    let label = done.out.trim().trim_end_matches(".onion").to_owned();
    // Import from the key file, and from the whole state directory.
    for copy in [first.join("services").join(label).join("identity.key"), first.clone()] {
        let again = home.path().join(format!("again-{}", copy.is_dir()));
        let again = run(&again, &["init", "--quiet", "--import-key", copy.to_str().unwrap()]);
        assert_eq!(again.out, done.out, "a copy of the identity key gives the same address: {}", again.err);
    }
    assert_eq!(std::fs::read(first.join("arti.toml")).unwrap(), std::fs::read(&arti).unwrap());

    std::fs::write(&arti, "mode = ").unwrap();
    let done = run(&home.path().join("3"), &options);
    assert_eq!(done.code, 1);
    assert!(done.err.contains("my.toml: is not valid TOML: line 1, column 8 (\"mode\")"), "{}", done.err);
    assert!(!home.path().join("3").exists());
}

#[test]
fn run_refuses_a_directory_of_a_later_release_and_changes_nothing_in_it() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("node");
    assert_eq!(run(&dir, &["init"]).code, 0);
    std::fs::remove_file(dir.join("lock")).unwrap();
    std::fs::write(dir.join("term"), "rustbalance term v9 in a form that is not known yet\n").unwrap();
    let before = contents(&dir);
    let done = run(&dir, &["run"]);
    assert_eq!(done.code, 4, "{}", done.err);
    assert!(done.err.contains("is of version 9") && done.err.contains("nothing was changed"), "{}", done.err);
    assert!(contents(&dir) == before && !dir.join("lock").exists());
}

#[test]
fn run_refuses_an_unknown_key_and_names_the_nearest() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("node");
    assert_eq!(run(&dir, &["init"]).code, 0);
    let path = dir.join("rustbalance.toml");
    let config = std::fs::read_to_string(&path).unwrap().replace("# heartbeat = ", "hartbeat = ");
    std::fs::write(&path, &config).unwrap();
    let done = run(&dir, &["run"]);
    assert_eq!(done.code, 4);
    let line = 1 + config.lines().position(|line| line.starts_with("hartbeat")).unwrap();
    let expected = format!(
        "error: {}: line {line}, column 1: unknown key \"hartbeat\" in [cluster]: did you mean \"heartbeat\"?\n",
        path.display()
    );
    assert_eq!(done.err, expected);
    let wrong = "\n[arti.address_filter]\nallow_onion_addrs = \"banana\"\n";
    let config = std::fs::read_to_string(&path).unwrap().replace("hartbeat = ", "# heartbeat = ");
    std::fs::write(&path, config + wrong).unwrap();
    let done = run(&dir, &["run"]);
    assert_eq!(done.code, 4, "a supervisor would restart it without end: {}", done.err);
    assert!(done.err.contains("allow_onion_addrs"), "{}", done.err);
    let done = run(&home.path().join("none"), &["run"]);
    assert!(done.err.contains("`rustbalance init`"), "{}", done.err);
}

/// `init` and `join` refuse what `run` would refuse, before they create a file or read a token.
#[test]
fn init_and_join_check_what_run_needs_before_they_create_a_file() {
    let home = tempfile::tempdir().unwrap();
    let open = home.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o775)).unwrap();
    let long = home.path().join("x".repeat(100));
    let arti = home.path().join("program.toml");
    std::fs::write(&arti, "[application]\nx = 1\n[proxy]\ny = 2\n[logging]\nz = 3\n").unwrap();
    let options = ["--arti-config", arti.to_str().unwrap()];
    let cases: [(&Path, &[&str], &[&str]); 3] = [
        (&long, &[], &["a Unix socket's has at most 107", "--dir"]),
        (&open.join("node"), &[], &["mode 0775", "`chmod go-w "]),
        (&home.path().join("node"), &options, &["\"application", "\"proxy", "\"logging"]),
    ];
    for (dir, options, expected) in cases {
        for command in [&["init"][..], &["join", DUCK]] {
            let done = run_with(dir, &[command, options].concat(), "no token");
            assert_eq!(done.code, 1, "{command:?}: {}", done.err);
            assert!(expected.iter().all(|part| done.err.contains(part)), "{command:?}: {}", done.err);
            assert!(!dir.exists(), "{command:?} has created something");
        }
    }
    // `run` gives the same message and exit code 4, after which a supervisor does not restart it.
    let node = home.path().join("parent/node");
    std::fs::create_dir(home.path().join("parent")).unwrap();
    assert_eq!(run(&node, &["init"]).code, 0);
    std::fs::set_permissions(home.path().join("parent"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let done = run(&node, &["run"]);
    assert!(done.code == 4 && done.err.contains("mode 0777") && done.err.contains("`chmod go-w "), "{}", done.err);
}

/// A restored backup that kept neither modes nor owners: one start names all faults, and one
/// command mends the modes, another the owners.
#[test]
fn one_message_and_one_command_mend_a_backup_without_modes_and_owners() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("node");
    assert_eq!(run(&dir, &["init", "--quiet"]).code, 0);
    let sh =
        |line: &str| assert!(std::process::Command::new("sh").args(["-c", line]).status().unwrap().success(), "{line}");
    let root = std::fs::metadata(&dir).map(|dir| std::os::unix::fs::MetadataExt::uid(&dir)).unwrap() == 0;
    sh(&format!("chmod -R a+rX {}", dir.display()));
    if root {
        sh(&format!("chown -R 12345 {}", dir.display()));
    }
    let done = run(&dir, &["run"]);
    assert_eq!(done.code, 4, "{}", done.err);
    let commands: Vec<_> = done.err.split('`').filter(|part| part.starts_with("ch")).collect();
    assert_eq!(commands.len(), if root { 2 } else { 1 }, "{}", done.err);
    commands.into_iter().for_each(sh);
    // The next start finds only the fault that a later check sees.
    std::fs::write(dir.join("members"), "").unwrap();
    let done = run(&dir, &["run"]);
    assert!(done.code == 4 && done.err.contains("members: is empty"), "{}", done.err);
}

#[test]
fn join_without_a_valid_token_creates_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("node");
    let none = run(&dir, &["join", DUCK]);
    assert_eq!(none.code, 2);
    assert!(none.err.contains("there is no token"), "{}", none.err);
    for token in ["hello", "rb1-abc"] {
        let done = run_with(&dir, &["join", DUCK, "--token-file", "-"], token);
        assert_eq!(done.code, 1);
        assert!(done.err.starts_with("error: no"), "{}", done.err);
    }
    let missing = run(&dir, &["join", DUCK, "--token-file", "/nonexistent/token"]);
    assert!(missing.err.contains("cannot open the token file /nonexistent/token"), "{}", missing.err);
    assert!(!dir.exists());
}

#[test]
fn an_address_may_be_typed_as_a_browser_shows_it() {
    let home = tempfile::tempdir().unwrap();
    let label = DUCK.trim_end_matches(".onion");
    for typed in [DUCK.to_uppercase(), format!("http://www.{DUCK}:80/"), format!("{DUCK}."), label.to_owned()] {
        let none = run(&home.path().join("node"), &["join", &typed]);
        assert!(none.code == 2 && none.err.contains("there is no token"), "{typed}: {}", none.err);
        assert_eq!(run(home.path(), &["evict", &typed]).code, 3, "{typed}");
    }
    let mistyped = format!("{}a.onion", &label[..55]);
    for command in ["join", "evict"] {
        let done = run(home.path(), &[command, &mistyped]);
        assert!(done.code == 2 && done.err.contains("a character of it is mistyped"), "{command}: {}", done.err);
    }
}

#[test]
fn a_token_of_another_cluster_is_reported_before_anything_is_created() {
    use rustbalance::join::Token;
    use rustbalance::keys::TokenSecret;
    use rustbalance_gossip::id::ClusterId;

    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("node");
    let other = ClusterId::from_public_key([7; 32]);
    let token = Token::new(TokenSecret::generate(&mut rand::rng()), other).text();
    let done = run_with(&dir, &["join", DUCK], &token);
    assert_eq!(done.code, 1);
    assert!(done.err.contains("another cluster"), "{}", done.err);
    assert!(!done.err.contains(&token[4..12]));
    assert!(!dir.exists());
}

#[test]
fn a_join_that_fails_leaves_no_trace() {
    use rustbalance::join::Token;
    use rustbalance::keys::TokenSecret;

    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("node");
    let arti = home.path().join("arti-in.toml");
    std::fs::write(&arti, "[address_filter]\nallow_onion_addrs = \"banana\"\n").unwrap();
    let token = Token::new(TokenSecret::generate(&mut rand::rng()), DUCK.parse().unwrap()).text();
    let done = run_with(&dir, &["join", DUCK, "--arti-config", arti.to_str().unwrap()], &token);
    assert_eq!(done.code, 1);
    assert!(done.err.starts_with("error: ") && done.err.contains("allow_onion_addrs"), "{}", done.err);
    assert!(!dir.exists());
}

/// The findings of `check --json` by what was inspected: severity, value and advice.
fn checked(dir: &Path) -> (i32, BTreeMap<String, (String, String, String)>) {
    let done = run(dir, &["check", "--json"]);
    assert!(done.err.is_empty(), "{}", done.err);
    let report: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let findings = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (text(&it["check"]), (text(&it["severity"]), text(&it["value"]), text(&it["advice"]))));
    let findings: BTreeMap<_, _> = findings.collect();
    let count = |wanted: &str| findings.values().filter(|(severity, ..)| severity == wanted).count();
    assert_eq!(
        (report["problems"].as_u64(), report["warnings"].as_u64()),
        (Some(count("problem") as u64), Some(count("warning") as u64))
    );
    (done.code, findings)
}

#[test]
fn check_finds_what_is_wrong_with_a_node_and_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("node");
    let (code, findings) = checked(&dir);
    assert_eq!((code, findings["state directory"].0.as_str()), (1, "problem"), "{findings:?}");
    assert!(!dir.exists(), "the check has made the directory");

    let socket = home.path().join("app.sock");
    assert_eq!(run(&dir, &["init", "--target", &format!("unix:{}", socket.display())]).code, 0);
    let before = contents(home.path());
    let (code, findings) = checked(&dir);
    assert_eq!(code, 0, "{findings:?}");
    for fine in ["clock", "state directory", "configuration", "Tor's settings", "control socket", "daemon"] {
        assert_eq!(findings[fine].0, "fine", "{fine}: {findings:?}");
    }
    let (severity, value, advice) = &findings["target of port 80"];
    assert_eq!((severity.as_str(), value.as_str()), ("warning", format!("unix:{}", socket.display()).as_str()));
    assert!(advice.contains("start the application"), "{advice}");
    assert_eq!(contents(home.path()), before);

    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (code, findings) = checked(&dir);
    assert_eq!((code, findings["target of port 80"].0.as_str()), (0, "fine"), "{findings:?}");

    // All at once: each has its own line.
    let (key, config) = (dir.join("node.key"), dir.join("rustbalance.toml"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}\n[arti.logging]\nx = 1\n")).unwrap();
    let before = contents(&dir);
    let (code, findings) = checked(&dir);
    assert_eq!(code, 1);
    let problem = |check: &str| {
        assert_eq!(findings[check].0, "problem", "{check}: {findings:?}");
        findings[check].2.clone()
    };
    assert!(problem("state directory").contains("chmod -R go= "), "{findings:?}");
    assert!(problem("Tor's settings").contains("logging"), "{findings:?}");
    assert_eq!(contents(&dir), before);
    let done = run(&dir, &["check"]);
    assert_eq!(done.code, 1);
    assert!(done.out.contains("PROBLEM  state directory ") && done.out.contains("2 problems, "), "{}", done.out);

    // A file that is damaged, of the right mode.
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&key, "damaged").unwrap();
    let (_, findings) = checked(&dir);
    assert!(findings["state directory"].2.contains("node.key"), "{findings:?}");
}

#[test]
fn a_bug_report_shows_no_address_and_overwrites_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("node");
    assert_eq!(run(&dir, &["init", "--target", "unix:/run/none/app.sock"]).code, 0);
    let address = std::fs::read_dir(dir.join("services")).unwrap().next().unwrap().unwrap().file_name();
    let config = dir.join("rustbalance.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let changed = text.replace("# weight = 1", "weight = 3").replace("# listen = [", "listen = [");
    let bridges = "[arti.bridges]\nbridges = [\"192.0.2.7:443 0123456789012345678901234567890123456789\"]\n";
    std::fs::write(&config, format!("{changed}\n{bridges}")).unwrap();
    let file = home.path().join("report");
    let done = run(&dir, &["bugreport", file.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}", done.err);
    let report = std::fs::read_to_string(&file).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    for part in [
        "# Versions\n\nrustbalance ",
        "no daemon runs in ",
        "[node] weight changed from 1 to 3\n",
        "[wireguard] listen changed from unset to [\"(address)\"]\n",
        "[arti] changed",
        "ok       clock ",
    ] {
        assert!(report.contains(part), "{part:?} is not in {report}");
    }
    for secret in [address.to_str().unwrap(), "192.0.2.7", "203.0.113.7", "0123456789"] {
        assert!(!report.contains(secret), "{secret:?} is in {report}");
    }
    let again = run(&dir, &["bugreport", file.to_str().unwrap()]);
    assert_eq!((again.code, std::fs::read_to_string(&file).unwrap()), (1, report), "{}", again.err);
    assert!(run(&dir, &["bugreport"]).out.starts_with("# Versions\n"));
}

#[test]
fn log_filters_that_cannot_be_read_are_an_error() {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_rustbalance"))
        .env("RUSTBALANCE_LOG", "rustbalance=loud")
        .args(["--dir", home.path().to_str().unwrap(), "status"])
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(err.starts_with("error: RUSTBALANCE_LOG=\"rustbalance=loud\" cannot be read"), "{err}");
}

/// A daemon started by a shell that limits its open files; killed when dropped. It finds no Tor
/// network, and answers `status` without one.
struct Limited(std::process::Child);

impl Limited {
    fn run(dir: &Path, ulimit: &str, log: &Path) -> Self {
        let script = format!("{ulimit} && exec \"$0\" \"$@\"");
        let child = std::process::Command::new("bash")
            .args(["-c", &script, env!("CARGO_BIN_EXE_rustbalance"), "--dir"])
            .arg(dir)
            .arg("run")
            .env_remove("RUSTBALANCE_LOG")
            .stderr(std::fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// The soft and the hard limit, from `/proc`; `None` if the process has ended.
    fn files(&self) -> Option<(String, String)> {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.0.id())).ok()?;
        let line = limits.lines().find(|line| line.starts_with("Max open files"))?.to_owned();
        let mut limits = line.split_whitespace().skip(3).map(str::to_owned);
        Some((limits.next()?, limits.next()?))
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn within_a_minute<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed().as_secs() < 60, "never happened: {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn run_raises_the_soft_limit_of_open_files_and_says_where_even_the_hard_one_is_too_low() {
    let home = tempfile::tempdir().unwrap();
    let (dir, log) = (home.path().join("node"), home.path().join("log"));
    assert_eq!(run(&dir, &["init"]).code, 0);
    let log_of = || std::fs::read_to_string(&log).unwrap();
    let status = || Some(run(&dir, &["status"])).filter(|done| done.code == 0);
    {
        let daemon = Limited::run(&dir, "ulimit -Sn 300 && ulimit -Hn 4352", &log);
        let as_hard = || daemon.files().filter(|(soft, hard)| soft == hard && hard == "4352");
        within_a_minute("the soft limit is the hard one", as_hard);
        let shown = within_a_minute("the daemon answers", status).out;
        assert!(!shown.contains("open files"), "{shown}");
        assert!(!log_of().contains("open files"), "{}", log_of());
    }
    let _daemon = Limited::run(&dir, "ulimit -Sn 300 && ulimit -Hn 1000", &log);
    let shown = within_a_minute("the daemon answers", status).out;
    assert!(shown.contains("only 1000 open files are allowed, and [limits] streams needs 4352"), "{shown}");
    let log = log_of();
    assert!(log.contains("limit=1000 needed=4352 streams=744"), "{log}");
}
