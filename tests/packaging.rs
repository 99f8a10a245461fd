//! The files in `scripts/` for operators: the systemd unit, its drop-ins, and the installation of
//! packages.

// Clippy's exception for tests does not cover the helper functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use monitor::promtool;
use rustbalance::proxy::Target;
use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::id::NodeId;
use tempfile::TempDir;

// Only a part of it is needed here.
#[allow(dead_code)]
#[path = "fixtures/monitor.rs"]
mod monitor;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn packaging(name: &str) -> String {
    fs::read_to_string(repository().join("scripts/packaging").join(name)).unwrap()
}

/// Copies the unit and these drop-ins to a folder where `systemd-analyze` finds both, with a
/// program that exists.
fn installed(drop_ins: &[&str]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("rustbalance.service");
    let text = packaging("rustbalance.service");
    let program = "=/usr/local/bin/rustbalance ";
    assert_eq!(text.matches(program).count(), 2);
    fs::write(&unit, text.replace(program, "=/bin/true ")).unwrap();
    let beside = folder.path().join("rustbalance.service.d");
    fs::create_dir(&beside).unwrap();
    for name in drop_ins {
        fs::write(beside.join(name), packaging(name)).unwrap();
    }
    (folder, unit)
}

fn analyze(arguments: &[&str], unit: &Path) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .env("LC_ALL", "C")
        .output()
        .expect("systemd-analyze is missing: ./scripts/install.sh installs it")
}

/// The exposure level of the service as systemd computes it, from 0 (best) to 10 (worst).
fn exposure(unit: &Path) -> f32 {
    let output = analyze(&["security", "--offline=true", "--no-pager"], unit);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, level) = text.split_once("Overall exposure level for rustbalance.service: ").expect(&text);
    level.split_whitespace().next().unwrap().parse().unwrap()
}

/// `systemctl reload` must fail if the configuration is refused, so it runs a command that waits
/// for the outcome. The program must know that command, and find the directory of the node in it.
#[test]
fn the_unit_reloads_the_configuration_of_the_node_that_it_runs() {
    let unit = packaging("rustbalance.service");
    let command = |name: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let (start, reload) = (command("ExecStart="), command("ExecReload="));
    assert_eq!(reload[..3], start[..3]);
    let folder = tempfile::tempdir().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_rustbalance"));
    let output = program.args(["--dir", folder.path().to_str().unwrap()]).args(&reload[3..]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "no daemon runs there, but {output:?}");
    assert!(unit.lines().any(|line| line == "Type=notify"), "the daemon reports the begin and the end of a reload");
}

#[test]
fn the_unit_and_its_drop_ins_are_what_systemd_understands() {
    for (drop_ins, most_exposed) in [
        (&[][..], 1.0),
        (&["private-network.conf"], 1.0),
        (&["webrtc.conf"], 1.1),
        (&["wireguard-kernel.conf"], 1.5),
        (&["lxc.conf"], 3.2),
        (&["lxc.conf", "webrtc.conf"], 3.3),
    ] {
        let (_folder, unit) = installed(drop_ins);
        let verified = analyze(&["verify", "--man=no"], &unit);
        let errors = String::from_utf8_lossy(&verified.stderr).into_owned();
        // systemd only warns of an unknown key or value and ignores it. The exit status is not
        // checked, because other units of this machine may have faults.
        assert!(!errors.contains("rustbalance"), "{drop_ins:?}: {errors}");
        let exposure = exposure(&unit);
        assert!(exposure <= most_exposed, "{drop_ins:?}: {exposure}");
    }
    // Proves that the check above would find a mistake.
    let (_folder, unit) = installed(&[]);
    fs::write(unit.with_extension("service.d").join("wrong.conf"), "[Service]\nProtectTheHome=yes\n").unwrap();
    assert!(String::from_utf8_lossy(&analyze(&["verify", "--man=no"], &unit).stderr).contains("ProtectTheHome"));
}

/// The unit hands the token to `join` as a credential, and nowhere else.
#[test]
fn the_unit_that_joins_reads_its_token_from_its_credentials() {
    let (folder, text) = (tempfile::tempdir().unwrap(), packaging("rustbalance-join.service"));
    let unit = folder.path().join("rustbalance-join.service");
    fs::write(&unit, text.replace("=/usr/local/bin/rustbalance ", "=/bin/true ")).unwrap();
    let errors = String::from_utf8_lossy(&analyze(&["verify", "--man=no"], &unit).stderr).into_owned();
    assert!(!errors.contains("rustbalance-join"), "{errors}");
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let (name, _) = value("LoadCredential=").split_once(':').unwrap();
    let master = "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion";
    let credentials = folder.path().to_str().unwrap();
    let command = value("ExecStart=").replace("MASTER.onion", master).replace("${CREDENTIALS_DIRECTORY}", credentials);
    let words: Vec<&str> = command.split(' ').collect();
    let dir = folder.path().join("state");
    let join = || {
        let mut program = Command::new(env!("CARGO_BIN_EXE_rustbalance"));
        program.args(["--dir", dir.to_str().unwrap()]).args(&words[3..]).output().unwrap()
    };
    let said = |output: Output| String::from_utf8(output.stderr).unwrap();
    let missing = said(join());
    assert!(missing.contains("cannot open the token file"), "{missing}");
    fs::write(folder.path().join(name), "not a token\n").unwrap();
    let read = said(join());
    assert!(read != missing && read.contains("token") && !dir.exists(), "{read}");
}

#[test]
fn every_alert_is_raised_by_its_cause_and_none_in_a_cluster_that_is_well() {
    let folder = repository().join("scripts/monitoring");
    let (rules, cases) = (folder.join("rules.yml"), folder.join("rules.test.yml"));
    for arguments in [["check", "rules", rules.to_str().unwrap()], ["test", "rules", cases.to_str().unwrap()]] {
        let output = promtool(&arguments, "");
        let said = [&*output.stdout, &*output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
    let (rules, cases) = (fs::read_to_string(rules).unwrap(), fs::read_to_string(cases).unwrap());
    for rule in rules.split("- alert: ").skip(1) {
        let (name, body) = rule.split_once('\n').unwrap();
        assert!(cases.contains(&format!("alertname=\"{name}\"")), "{name} has no test");
        assert!(body.contains(" summary: ") && body.contains(" action: "), "{name} does not say what to do");
    }
}

#[test]
fn the_lxc_drop_in_turns_off_all_that_needs_a_namespace_and_nothing_else() {
    let (unit, drop_in) = (packaging("rustbalance.service"), packaging("lxc.conf"));
    let keys = |text: &str| {
        let of = |line: &str| line.split_once('=').map(|(key, _)| key.to_owned());
        text.lines().filter(|line| !line.starts_with(['#', '['])).filter_map(of).collect::<Vec<_>>()
    };
    let in_unit = keys(&unit);
    for key in keys(&drop_in) {
        assert!(in_unit.contains(&key), "the drop-in turns off {key}, which the unit does not set");
    }
    // By systemd.exec(5), these settings need a mount namespace, for the host's name a UTS
    // namespace, or for users a user namespace.
    let namespaced = |key: &&String| key.starts_with("Protect") || key.starts_with("Private");
    let turned_off = keys(&drop_in);
    for key in in_unit.iter().filter(namespaced) {
        assert!(turned_off.contains(key), "{key} fails in a container without namespaces");
    }
}

#[test]
fn the_drop_in_for_the_kernels_wireguard_gives_one_capability_and_one_address_family() {
    let text = packaging("wireguard-kernel.conf");
    let settings: Vec<_> = text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()).collect();
    assert_eq!(
        settings,
        [
            "PrivateUsers=no",
            "CapabilityBoundingSet=CAP_NET_ADMIN",
            "AmbientCapabilities=CAP_NET_ADMIN",
            "RestrictAddressFamilies=AF_NETLINK",
            "IPAddressAllow=fd00::/8"
        ]
    );
    // To systemd, this is all that the service may do more.
    let allowed = |drop_ins: &[&str]| {
        let (_folder, unit) = installed(drop_ins);
        let output = analyze(&["security", "--offline=true", "--no-pager"], &unit).stdout;
        let setting = |line: &str| line.strip_prefix("- ")?.split_whitespace().next().map(str::to_owned);
        String::from_utf8_lossy(&output).lines().filter_map(setting).collect::<Vec<_>>()
    };
    let without = allowed(&[]);
    let more: Vec<_> =
        allowed(&["wireguard-kernel.conf"]).into_iter().filter(|setting| !without.contains(setting)).collect();
    assert_eq!(
        more,
        [
            "AmbientCapabilities=",
            "RestrictAddressFamilies=~AF_NETLINK",
            "CapabilityBoundingSet=~CAP_NET_ADMIN",
            "PrivateUsers="
        ]
    );
}

/// The networks that these lines of a unit allow.
fn allowed_networks(text: &str) -> Vec<&str> {
    let lists = text.lines().filter_map(|line| line.strip_prefix("IPAddressAllow="));
    lists.flat_map(str::split_whitespace).collect()
}

/// The first and the last address of a network of IPv4. Fails if its address is not the first one,
/// or has more than 32 bits of prefix.
fn range(network: &str) -> (u32, u32) {
    let (first, bits) = network.split_once('/').unwrap();
    let first = u32::from(first.parse::<Ipv4Addr>().unwrap());
    let hosts = u32::try_from((1_u64 << (32 - bits.parse::<u32>().unwrap())) - 1).unwrap();
    assert_eq!(first & hosts, 0, "{network}");
    (first, first | hosts)
}

/// What is not globally reachable by IANA's IPv4 Special-Purpose Address Registry (RFC 6890), and
/// multicast (RFC 5771). 192.0.0.0/24 is taken whole, although two addresses in it are anycast.
const NOT_PUBLIC: [&str; 13] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
];

#[test]
fn the_unit_allows_each_public_address_and_no_other_one() {
    let unit = packaging("rustbalance.service");
    assert!(unit.lines().any(|line| line == "IPAddressDeny=any"));
    let allowed = allowed_networks(&unit);
    let (v4, others): (Vec<&str>, Vec<&str>) = allowed.iter().partition(|network| network.contains('.'));
    assert_eq!(others, ["localhost", "2000::/3", "64:ff9b::/96"]);
    // Each address is in exactly one range, an allowed one or one that is not public: the ranges in
    // order leave no gap and do not overlap.
    let mut all: Vec<_> = v4.into_iter().chain(NOT_PUBLIC).map(range).collect();
    all.sort_unstable();
    assert_eq!((all.first().unwrap().0, all.last().unwrap().1), (0, u32::MAX));
    for pair in all.windows(2) {
        assert_eq!(pair[0].1.checked_add(1), Some(pair[1].0), "{} and {}", pair[0].1, pair[1].0);
    }
}

#[test]
fn the_drop_in_for_private_networks_allows_what_a_target_may_be_and_no_other_network() {
    let drop_in = packaging("private-network.conf");
    let networks = allowed_networks(&drop_in);
    let settings = drop_in.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    assert!(settings.eq(drop_in.lines().filter(|line| line.starts_with("IPAddressAllow="))));
    assert!(networks.iter().all(|network| *network == "fc00::/7" || NOT_PUBLIC.contains(network)), "{networks:?}");
    let edges = networks.iter().filter(|network| network.contains('.')).flat_map(|network| {
        let (first, last) = range(network);
        let inside = [first, last].map(|address| (Ipv4Addr::from(address), true));
        inside.into_iter().chain([first - 1, last + 1].map(|address| (Ipv4Addr::from(address), false)))
    });
    let v4 = edges.map(|(address, inside)| (address.to_string(), inside));
    let v6 = [("[fc00::]", true), ("[fdff::1]", true), ("[fe00::]", false), ("[fbff::1]", false)];
    for (address, private) in v4.chain(v6.map(|(address, private)| (address.to_owned(), private))) {
        let target = format!("{address}:80").parse::<Target>();
        assert_eq!(target.is_ok_and(|target| target.leaves_host()), private, "{address}");
    }
    assert_eq!(networks.len(), 5);
}

#[test]
fn the_drop_in_for_the_kernels_wireguard_allows_the_addresses_of_members() {
    assert_eq!(allowed_networks(&packaging("wireguard-kernel.conf")), ["fd00::/8"]);
    for key in 0..64 {
        let address = mesh_address(&NodeId::from_public_key([key; 32]));
        assert_eq!(address.octets()[0], 0xfd, "{address}");
    }
}

#[test]
fn the_unit_does_what_the_documents_say() {
    let unit = packaging("rustbalance.service");
    let has = |line: &str| unit.lines().any(|there| there == line);
    // The daemon ends with exit code 4 where a restart would not help; tests/cli.rs checks that.
    // The limit of 60 s for streams, and what follows it, must pass before systemd ends the daemon.
    for line in [
        "Restart=on-failure",
        "RestartPreventExitStatus=4",
        "LimitCORE=0",
        "MemorySwapMax=0",
        "Type=notify",
        "TimeoutStopSec=90",
    ] {
        assert!(has(line), "{line}");
    }
    assert!(!unit.contains("TimeoutStartSec=infinity"), "a start must not wait without limit for the network");
    assert!(!unit.contains("OOMScoreAdjust"), "the application must not be killed in this daemon's place");
    let runbook = fs::read_to_string(repository().join("docs/OPERATIONS.md")).unwrap();
    for name in ["lxc.conf", "webrtc.conf", "private-network.conf", "wireguard-kernel.conf"] {
        assert!(runbook.contains(name) && unit.contains(name), "{name} is not documented");
    }
}

/// Runs `install.sh` on a system that lacks the commands `missing` and whose `apt-get` is this
/// script. The file `asked` in the folder has the arguments of each call of `apt-get`.
fn install(missing: &[&str], apt_get: &str) -> (Output, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let script = |name: &str, text: &str| {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    for name in ["sh", "test", "env", "grep", "cat", "date", "mktemp", "expr"] {
        let real = ["/usr/bin", "/bin"].map(|place| Path::new(place).join(name)).into_iter().find(|path| path.exists());
        symlink(real.unwrap(), bin.join(name)).unwrap();
    }
    for name in ["curl", "gcc", "make", "pkg-config", "tor", "tor-gencert", "systemd-analyze", "ip", "cargo"] {
        if !missing.contains(&name) {
            script(name, "exit 0");
        }
    }
    // These do nothing, so that nothing outside of the folder changes (policy-rc.d) and the test
    // does not wait.
    for name in ["tee", "chmod", "rm", "sleep", "systemctl"] {
        script(name, "exit 0");
    }
    script("id", "echo 0");
    script("apt-get", &format!("echo \"$*\" >>{0}/asked\n{apt_get}", folder.path().display()));
    let output = Command::new("/bin/sh")
        .arg(repository().join("scripts/install.sh"))
        .env("PATH", &bin)
        .env("TMPDIR", folder.path())
        .env("FOLDER", folder.path())
        .output()
        .unwrap();
    (output, folder)
}

#[test]
fn install_waits_for_another_installation_and_names_each_package_once() {
    // The first `update` and the first `install` fail as apt-get does when another process holds
    // the lock of the package lists, or of dpkg.
    let busy = r#"case $(grep -c . "$FOLDER/asked") in
1) echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)" >&2; exit 100 ;;
3) echo "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?" >&2; exit 100 ;;
esac"#;
    let (output, folder) = install(&["tor", "tor-gencert", "make"], busy);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors.matches("waiting for it").count(), 1, "{errors}");
    let asked = fs::read_to_string(folder.path().join("asked")).unwrap();
    let asked: Vec<&str> = asked.lines().collect();
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert!(asked[..2].iter().all(|call| call.ends_with(" update")), "{asked:?}");
    for call in &asked[2..] {
        assert!(call.contains("-o DPkg::Lock::Timeout="), "{call}");
        let packages: Vec<&str> = call.split_once("--no-install-recommends ").unwrap().1.split(' ').collect();
        assert!(packages.contains(&"make"), "{packages:?}");
        assert_eq!(packages.iter().filter(|package| **package == "tor").count(), 1, "{packages:?}");
    }
}

#[test]
fn install_gives_up_at_once_where_waiting_does_not_help() {
    let (output, folder) = install(&["tor"], "echo 'E: Unable to locate package tor' >&2; exit 100");
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("Unable to locate package tor") && errors.contains("could not install: tor"), "{errors}");
    assert_eq!(fs::read_to_string(folder.path().join("asked")).unwrap().lines().count(), 1);
}

#[test]
fn the_check_for_advisories_says_that_it_needs_the_internet() {
    let folder = tempfile::tempdir().unwrap();
    let git = folder.path().join("git");
    fs::write(&git, "#!/bin/sh\nexit 128\n").unwrap();
    fs::set_permissions(&git, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let output = Command::new(repository().join("scripts/advisories.sh"))
        .env("PATH", path)
        .env("CARGO_TARGET_DIR", folder.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("cannot be reached: run this on a machine with internet"), "{errors}");
    let release = fs::read_to_string(repository().join("docs/RELEASE.md")).unwrap();
    assert!(release.contains("./scripts/advisories.sh"));
}

/// jemalloc is built with the settings of its environment, which `.cargo/config.toml` sets. It
/// lists them at its start if `confirm_conf` asks for it.
#[test]
fn the_allocator_has_the_settings_of_this_repository() {
    let text = fs::read_to_string(repository().join(".cargo/config.toml")).unwrap();
    let settings = toml::from_str::<toml::Table>(&text).unwrap()["env"]["JEMALLOC_SYS_WITH_MALLOC_CONF"].clone();
    let settings = settings.as_str().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_rustbalance"));
    let output = program.arg("--version").env("_RJEM_MALLOC_CONF", "confirm_conf:true").output().unwrap();
    let listed = String::from_utf8(output.stderr).unwrap();
    assert!(listed.contains(settings), "the program was not built with {settings:?}: {listed}");
}
