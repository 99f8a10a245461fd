//! Files: the configuration, the state directory, and C tor's keys.
//!
//! Each thread has its own folders. An input replaces files in them, which are restored afterwards.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, HEXLOWER};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustbalance::config::{self, Config, Initial};
use rustbalance::join::found;
use rustbalance::keys::AuthoritySecret;
use rustbalance::proxy::{PortTarget, Target};
use rustbalance::store::{SetupCommand, Store, StoredIntroPoint, import_identity_key};
use rustbalance::tor::ReplayLog;
use rustbalance::typed;
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::id::{AuthorityId, ClusterId};
use rustbalance_gossip::record::{AnyFact, PointNonce, RecordKind, RelayId};
use rustbalance_gossip::signed::{Sign, Strict, Verified};
use serde::Serialize;
use sha3::{Digest, Sha3_256};
use tempfile::TempDir;

use super::Seed;
use super::script::{Script, ScriptBuilder};
use super::world::{NOW, PERIOD, scratch, signed, world};

thread_local! {
    static CONFIGURED: OnceCell<TempDir> = const { OnceCell::new() };
    static GROUND: OnceCell<StateDirectory> = const { OnceCell::new() };
    static HIDDEN_SERVICE: OnceCell<TempDir> = const { OnceCell::new() };
}

/// Writes a file, replacing its content; a new one is readable by its owner only.
fn put(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

const ARTI: &str = "[storage]\n";

/// The input as `rustbalance.toml`, and also as a configuration file for Arti.
pub(crate) fn config(bytes: &[u8]) -> bool {
    let dir = CONFIGURED.with(|cell| cell.get_or_init(scratch).path().to_owned());
    let file = dir.join(config::FILE_NAME);
    put(&file, bytes);
    put(&dir.join(config::ARTI_FILE_NAME), ARTI.as_bytes());
    let is_toml = config::read_arti(&file).is_ok();
    let config = match Config::load(&dir) {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    assert!(is_toml);
    within_bounds(&config);
    // `init` with the same ports and Arti configuration writes a file that reads back the same.
    let wireguard = config.wireguard.clone();
    let (ports, arti) = (config.ports.clone(), Some(config.arti.clone()));
    let initial = Initial { ports, unserved: vec![22], arti, wireguard };
    fs::remove_file(&file).unwrap();
    fs::remove_file(dir.join(config::ARTI_FILE_NAME)).unwrap();
    Config::write_initial(&dir, &initial).unwrap();
    let again = Config::load(&dir).unwrap();
    assert_eq!((again.ports, again.arti, again.wireguard), (config.ports, config.arti, config.wireguard));
    true
}

fn within_bounds(config: &Config) {
    assert!((1..=64).contains(&config.ports.len()));
    for (at, PortTarget { port, target, allow_private, .. }) in config.ports.iter().enumerate() {
        assert!(config::check_virtual_port(*port).is_ok());
        assert!(config.ports[..at].iter().all(|other| other.port != *port));
        if let Target::Tcp(address) = target {
            assert!(address.ip().is_loopback());
        }
        assert!(!target.leaves_host() || *allow_private);
    }
    assert!((1..=100).contains(&config.node.weight));
    assert!((1..=10).contains(&config.cluster.intro_points));
    assert!(config.cluster.lease_ttl >= config.cluster.heartbeat * 3);
    assert!(config.links.links >= 2 * config.links.neighbours);
    assert!(config.links.silence >= config.links.ping * 2);
    if let Some((rate, burst)) = config.service.introductions_per_second {
        assert!(rate > 0 && burst >= rate);
    }
    if let Some((rate, burst)) = config.proxy.circuit_streams_per_second {
        assert!(rate > 0 && burst > 0);
    }
    assert!(config.proxy.circuit_bytes_per_second.is_none_or(|bytes| bytes >= 16_384));
    config.arti.parse::<toml::Table>().unwrap();
}

pub(crate) fn config_seeds() -> Vec<Seed> {
    let dir = scratch();
    let ports = ["127.0.0.1:8080", "[::1]:8443", "unix:/run/a \"b\".sock"];
    let ports = ports.iter().zip([80, 443, 22]).map(|(target, port)| PortTarget::new(port, target.parse().unwrap()));
    let (ports, arti) = (ports.collect(), Some(ARTI.into()));
    let initial = Initial { ports, unserved: vec![22], arti, ..Initial::default() };
    Config::write_initial(dir.path(), &initial).unwrap();
    let initial = fs::read_to_string(dir.path().join(config::FILE_NAME)).unwrap();
    // Uncomments every default, that is every commented line that is `key = value` and not a
    // sentence.
    let is_key = |line: &str| {
        line.strip_prefix("# ").is_some_and(|rest| rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')))
    };
    let all = initial.lines().map(|line| if is_key(line) { &line[2..] } else { line }).collect::<Vec<_>>().join("\n");
    let port = "[[port]]\nvirtual = 80\ntarget = \"127.0.0.1:80\"\n";
    let with = |text: &str| format!("{text}\n{port}");
    vec![
        Seed::good("initial", initial.as_str()),
        Seed::good("all", all.as_str()),
        Seed::good("port", port),
        Seed::good("arti", format!("{port}[arti]\nx = [1, 2.5, \"y\"]\n[arti.bridges]\nenabled = true\n")),
        Seed::bad("no-port", "[node]\nweight = 7\n"),
        Seed::bad("unknown-key", with("[node]\nwieght = 7")),
        Seed::bad("twice", port.repeat(2)),
        Seed::bad("heartbeat", with("[cluster]\nheartbeat = \"20s\"\nlease_ttl = \"30s\"")),
        Seed::bad("no-unit", with("[cluster]\nheartbeat = 2")),
        Seed::bad("two-artis", format!("arti_config = \"arti.toml\"\n{port}[arti]\n")),
        Seed::good(
            "wireguard",
            with("[wireguard]\nenabled = true\nlisten = \"10.0.0.7\"\nendpoints = [\"203.0.113.7:9\"]"),
        ),
        Seed::bad("wireguard-listen", with("[wireguard]\nlisten = [\"10.0.0.7:1\", \"10.0.0.8:1\"]")),
        Seed::good(
            "circuits",
            format!(
                "{port}proxy_protocol = \"v1\"\n[limits]\ncircuit_streams_per_second = 5\ncircuit_streams_burst = 9\n\
                 circuit_bytes_per_second = 20000\ncircuit_refusals = 7\n"
            ),
        ),
        Seed::bad("circuits-burst", with("[limits]\ncircuit_streams_burst = 9")),
        Seed::good(
            "health",
            format!(
                "{port}allow_private = true\n[port.health]\ncheck = \"https\"\npath = \"/x?y\"\nexpect_status = 204\npin = \
                 \"spki-sha256:{}\"\nheaders = [\"A: b\"]\n",
                "0f".repeat(32)
            ),
        ),
        Seed::bad("no-consent", port.replace("127.0.0.1", "10.0.0.1")),
        Seed::bad("not-utf8", &b"[node]\n# \xff\n"[..]),
    ]
}

/// The complete state directory of a publisher.
struct StateDirectory {
    folder: TempDir,
    authority: AuthorityId,
    /// The original content of every file, by its path in the directory.
    files: BTreeMap<PathBuf, Vec<u8>>,
}

/// The kinds of state file that an input can be; its first byte is an index into this list.
/// `identity.key` and `revisions` are in the folder of the service, `point` and `replays` in its
/// folder `intro`. New kinds are appended, so that the corpus keeps its meaning.
const FILES: [&str; 20] = [
    "pending",
    "node.key",
    "master.pub",
    "identity.key",
    "authority.key",
    "discovery.key",
    "membership",
    "boot",
    "term",
    "revisions",
    "invitations",
    "revocations",
    "members",
    "points.key",
    "point",
    "replays",
    "draining",
    "version",
    "facts",
    "wireguard.key",
];
/// Flag: the input is only the payload, and the target adds the header. Otherwise it is the whole
/// file.
const PAYLOAD: u8 = 1;
/// Flag: the file is in a directory whose creation was interrupted.
const UNFINISHED: u8 = 2;
/// Flag: the header names format 1, which all files had in version 1 of the directory.
const OLDER: u8 = 4;

impl StateDirectory {
    fn new() -> Self {
        let (folder, world) = (scratch(), world());
        let mut rng = StdRng::seed_from_u64(7);
        let dir = folder.path().join("state");
        let master = Some(world.master.duplicate());
        let store = found(Store::create(&dir).unwrap(), master, NOW, &mut rng).unwrap();
        let authority = store.authority_secret().unwrap().unwrap();
        store.put_members(&[world.chain(1), world.chain(2)]).unwrap();
        store.put_invitations(&[Verified::sign(world.invitation(3), &authority).unwrap()], NOW).unwrap();
        store.put_revocations(&[Verified::sign(world.revocation(3), &authority).unwrap()]).unwrap();
        store.put_facts(&[later(&authority)], NOW).unwrap();
        store.put_wireguard_keys(&[7; 40]).unwrap();
        store.raise_term(7).unwrap();
        store.set_draining(true).unwrap();
        let service = store.cluster().first_service();
        store.raise_revision(service, PERIOD, 9).unwrap();
        let relay = RelayId { rsa: FixedBytes([1; 20]), ed25519: FixedBytes([1; 32]) };
        let point = StoredIntroPoint {
            nonce: PointNonce(FixedBytes([3; 16])),
            relay,
            created: NOW,
            introductions: 5,
            max_seconds: 70_000,
            max_introductions: 20_000,
            retired: None,
        };
        store.add_intro_point(service, &point).unwrap();
        ReplayLog::open(&store.replay_log_path(service, point.nonce)).unwrap().is_new(b"seen").unwrap();
        drop(store);
        let folders = ["", "services/SERVICE", "services/SERVICE/intro"].map(|folder| placed(&dir, folder));
        let files = folders.into_iter().flat_map(|dir| fs::read_dir(dir).unwrap());
        let files = files.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        let files = files.map(|path| (path.strip_prefix(&dir).unwrap().to_owned(), fs::read(path).unwrap())).collect();
        Self { folder, authority: authority.authority_id(), files }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Restores all files and removes any others.
    fn restore(&self) {
        let dir = self.dir();
        for entry in fs::read_dir(placed(&dir, "services/SERVICE/intro")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for name in ["pending", "master.key"] {
            let _ = fs::remove_file(dir.join(name));
        }
        for (name, bytes) in &self.files {
            put(&dir.join(name), bytes);
        }
    }

    /// The payload of an original file.
    fn payload(&self, which: usize) -> Vec<u8> {
        let file = self.files.iter().find(|(path, _)| path.to_str().unwrap().ends_with(FILES[which]));
        let bytes = file.unwrap().1;
        let line = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        bytes[line + 1..].to_vec()
    }
}

/// A fact of a kind that this version does not know.
fn later(authority: &AuthoritySecret) -> AnyFact {
    #[derive(Serialize)]
    struct Later {
        cluster: ClusterId,
        seq: u64,
    }
    let key = authority.public_key();
    let statement = codec::encode(&Later { cluster: world().cluster, seq: 1 }).unwrap();
    let signature = authority.sign_bytes(&[b"rustbalance record later\0", &statement[..]].concat());
    let record = signed(&key, &statement, signature);
    AnyFact::read(RecordKind::from_key("later/1").unwrap(), &record, &key, &Strict).unwrap()
}

/// A path in a state directory, in which SERVICE stands for the address of the service.
fn placed(dir: &Path, path: &str) -> PathBuf {
    let service = world().cluster.to_string();
    dir.join(path.replace("SERVICE", service.trim_end_matches(".onion")))
}

/// The path of the file of this kind.
fn place_of(dir: &Path, kind: &str) -> PathBuf {
    match kind {
        "identity.key" | "revisions" => placed(dir, &format!("services/SERVICE/{kind}")),
        _ => dir.join(kind),
    }
}

/// A file in the format of `src/store/file.rs`.
fn wrapped(kind: &str, format: u32, payload: &[u8]) -> Vec<u8> {
    let header = format!("rustbalance {kind} v{format} {} {} ", world().cluster, payload.len());
    let sum = Sha3_256::new()
        .chain_update(b"rustbalance state file\0")
        .chain_update(&header)
        .chain_update(b"\0")
        .chain_update(payload)
        .finalize();
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    [header.as_bytes(), sum.as_bytes(), b"\n", payload].concat()
}

/// One file of a state directory. The first byte is an index into [`FILES`], the second holds the
/// flags.
pub(crate) fn state(bytes: &[u8]) -> bool {
    let [which, how, content @ ..] = bytes else { return false };
    let which = usize::from(*which) % FILES.len();
    GROUND.with(|cell| {
        let ground = cell.get_or_init(StateDirectory::new);
        let dir = ground.dir();
        let is_of_version_2 =
            matches!(FILES[which], "master.pub" | "version" | "identity.key" | "facts" | "wireguard.key");
        let format = if how & OLDER == 0 && is_of_version_2 { 2 } else { 1 };
        let whole = if how & PAYLOAD != 0 { wrapped(FILES[which], format, content) } else { content.to_vec() };
        let taken = match FILES[which] {
            "replays" => replays(&placed(&dir, "services/SERVICE/intro/x.replays"), content),
            "point" => {
                let name: String = named(content).iter().map(|byte| format!("{byte:02x}")).collect();
                put(&placed(&dir, &format!("services/SERVICE/intro/{name}.point")), &whole);
                opened(&dir)
            }
            name if how & UNFINISHED != 0 => {
                fs::remove_file(dir.join("membership")).unwrap();
                put(&dir.join("pending"), &wrapped("pending", 1, b"founding\n"));
                put(&place_of(&dir, name), &whole);
                resumed(&dir, ground.authority)
            }
            // The path of version 1 of the directory: the file is migrated, unless there is another
            // key already.
            "identity.key" if how & OLDER != 0 => {
                put(&dir.join("master.key"), &wrapped("master.key", 1, content));
                opened(&dir)
            }
            name => {
                put(&place_of(&dir, name), &whole);
                opened(&dir)
            }
        };
        ground.restore();
        taken
    })
}

/// The nonce of a stored introduction point; zeros if it cannot be read.
fn named(payload: &[u8]) -> [u8; 16] {
    codec::decode::<StoredIntroPoint>(payload, payload.len()).map_or([0; 16], |point| point.nonce.0.0)
}

/// Opens the directory. If that succeeds, every file can be written, and a second open reads what
/// was written.
fn opened(dir: &Path) -> bool {
    let store = match Store::open(dir) {
        Ok(store) => store,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let (term, members) = (store.term().unwrap(), store.members().unwrap());
    let (invitations, revocations) = (store.invitations().unwrap(), store.revocations().unwrap());
    let facts = store.facts().unwrap();
    let service = store.cluster().first_service();
    let points = store.intro_points(service).unwrap();
    let boot = store.next_boot(0);
    store.raise_term(term.saturating_add(1)).unwrap();
    store.put_members(&members).unwrap();
    store.put_invitations(&invitations, NOW).unwrap();
    store.put_revocations(&revocations).unwrap();
    store.put_facts(&facts, NOW).unwrap();
    let revisions = store.revisions(service).unwrap();
    let revision = revisions.iter().find(|(period, _)| *period == PERIOD).map_or(1, |known| known.1);
    store.raise_revision(service, PERIOD, revision).unwrap();
    for point in &points {
        store.update_intro_point(service, point.nonce, point.introductions, point.retired).unwrap();
    }
    drop(store);
    let again = Store::open(dir).unwrap();
    assert_eq!(again.term().unwrap(), term.saturating_add(1));
    assert_eq!(again.members().unwrap(), members);
    assert_eq!(again.invitations().unwrap(), invitations);
    assert_eq!(again.revocations().unwrap(), revocations);
    assert_eq!(again.facts().unwrap(), facts);
    assert!(again.revisions(service).unwrap().contains(&(PERIOD, revision)));
    assert_eq!(again.intro_points(service).unwrap().len(), points.len());
    if let Ok(boot) = boot {
        assert!(again.next_boot(0).is_ok_and(|next| next == boot + 1) || boot == u64::from(u32::MAX));
    }
    true
}

/// Resumes an interrupted creation; true if all files that are there can be read.
fn resumed(dir: &Path, signs: AuthorityId) -> bool {
    assert!(Store::open(dir).is_err());
    let Ok(mut draft) = Store::create(dir) else { return false };
    let Some((SetupCommand::Init, cluster)) = draft.unfinished_command() else { return false };
    if draft.begin(SetupCommand::Init, cluster).is_err() {
        return false;
    }
    let node = draft.node_secret(|| world().keys[0].duplicate());
    let (master, authority) = (draft.identity_secret(), draft.authority_secret());
    let ring = draft.discovery(signs);
    node.is_ok()
        && authority.is_ok()
        && ring.is_ok()
        && master.is_ok_and(|key| key.is_none_or(|key| key.service_id() == cluster.first_service()))
}

/// A replay log. A cut-off entry at its end is dropped, and new entries are appended after the last
/// whole one.
fn replays(path: &Path, bytes: &[u8]) -> bool {
    put(path, bytes);
    let log = ReplayLog::open(path).unwrap();
    assert!(log.len() <= bytes.len() / 16);
    let new = log.is_new(b"an introduction").unwrap();
    assert!(!log.is_new(b"an introduction").unwrap());
    let known = log.len();
    drop(log);
    let again = ReplayLog::open(path).unwrap();
    assert_eq!(again.len(), known);
    assert!(!again.is_new(b"an introduction").unwrap());
    new
}

pub(crate) fn state_seeds() -> Vec<Seed> {
    let ground = StateDirectory::new();
    let seed = |which: usize, how: u8, content: &[u8]| [&[which as u8, how][..], content].concat();
    let mut seeds = Vec::new();
    for (which, name) in FILES.iter().enumerate().skip(1) {
        if *name == "replays" {
            seeds.push(Seed::good(*name, seed(which, 0, &[7; 50])));
        } else {
            seeds.push(Seed::good(*name, seed(which, PAYLOAD, &ground.payload(which))));
        }
    }
    let whole = &ground.files[Path::new("term")];
    seeds.push(Seed::good("whole", seed(8, 0, whole)));
    seeds.push(Seed::bad("cut", seed(8, 0, &whole[..whole.len() - 1])));
    seeds.push(Seed::bad("newer", seed(8, 0, b"rustbalance term v2 something else entirely\n")));
    seeds.push(Seed::good("older-master.pub", seed(2, PAYLOAD | OLDER, &ground.payload(2))));
    seeds.push(Seed::good("older-master.key", seed(3, PAYLOAD | OLDER, &ground.payload(3))));
    seeds.push(Seed::bad("newer-version", seed(17, PAYLOAD, b"3 9.9.9\n")));
    seeds.push(Seed::good("pending", seed(0, PAYLOAD, b"joining\n")));
    seeds.push(Seed::good("founding", seed(0, PAYLOAD | UNFINISHED, b"founding\n")));
    seeds.push(Seed::good("unfinished-node-key", seed(1, PAYLOAD | UNFINISHED, &[9; 32])));
    seeds
}

/// A secret key in any accepted form, in the place of C tor's, and the files beside it. The first
/// byte says which of these exist; the secret and the public key each follow their length, and the
/// rest is `hostname`.
pub(crate) fn import(bytes: &[u8]) -> bool {
    let dir = HIDDEN_SERVICE.with(|cell| cell.get_or_init(scratch).path().to_owned());
    let mut script = Script::new(bytes);
    let beside = script.byte();
    let (secret, public, hostname) = (script.bytes(), script.bytes(), script.rest());
    put(&dir.join("hs_ed25519_secret_key"), secret);
    for (bit, name, content) in [(1, "hs_ed25519_public_key", public), (2, "hostname", hostname)] {
        if beside & bit != 0 {
            put(&dir.join(name), content);
        } else {
            let _ = fs::remove_file(dir.join(name));
        }
    }
    let read = import_identity_key(&dir);
    let Ok(key) = read else {
        assert!(!read.unwrap_err().to_string().is_empty());
        return false;
    };
    let whole = [&HEADER[..], key.expanded()].concat();
    if secret.starts_with(HEADER) {
        assert!(secret.starts_with(&whole) && secret[96..].trim_ascii().is_empty());
        assert!(beside & 1 == 0 || public.ends_with(key.service_id().public_key()));
        if beside & 2 != 0 {
            assert_eq!(typed::address(std::str::from_utf8(hostname).unwrap()), Ok(key.service_id()));
        }
    } else if !secret.starts_with(b"rustbalance ") {
        // The same key in C tor's form imports as the same key.
        let _ = fs::remove_file(dir.join("hs_ed25519_public_key"));
        let _ = fs::remove_file(dir.join("hostname"));
        put(&dir.join("hs_ed25519_secret_key"), &whole);
        assert_eq!(import_identity_key(&dir).unwrap().expanded(), key.expanded());
    }
    true
}

/// The first bytes of C tor's secret key file.
const HEADER: &[u8; 32] = b"== ed25519v1-secret: type0 ==\0\0\0";
/// The example of RFC 8410, section 10.3.
const PEM: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
";
/// From the tests of Arti (tor-keymgr, testdata/ed25519_expanded_openssh.private).
const ARTI_KEY: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAATAAAACRlZDI1NT
E5LWV4cGFuZGVkQHNwZWMudG9ycHJvamVjdC5vcmcAAAAgkCkbTXjU4ZspXjGHZhbnK24D
3GTQzukvNTGQ9a+6utQAAACoVEAltVRAJbUAAAAkZWQyNTUxOS1leHBhbmRlZEBzcGVjLn
RvcnByb2plY3Qub3JnAAAAIJApG0141OGbKV4xh2YW5ytuA9xk0M7pLzUxkPWvurrUAAAA
QJzT8VKJeAAAxAD5v9NLQ6jkOzI6vnG6ZFpbW9KTHbkInk+jiKO9G6T9yzqkOVBztGV7T/
woD00J+vvZI4tKLp4AAAAIdGVzdC1rZXkBAgME
-----END OPENSSH PRIVATE KEY-----
";

pub(crate) fn import_seeds() -> Vec<Seed> {
    let world = world();
    let secret = [&HEADER[..], world.master.expanded()].concat();
    let public = [&b"== ed25519v1-public: type0 ==\0\0\0"[..], world.cluster.public_key()].concat();
    let files = |beside: u8, secret: &[u8], hostname: String| {
        ScriptBuilder::default().byte(beside).bytes(secret).bytes(&public).rest(hostname.as_bytes()).0
    };
    let hostname = || format!("{}\n", world.cluster);
    let text = |name, text: String| Seed::good(name, files(0, text.as_bytes(), String::new()));
    vec![
        Seed::good("alone", files(0, &secret, String::new())),
        Seed::good("all", files(3, &secret, hostname())),
        Seed::bad("another-hostname", files(2, &secret, world.nodes[0].to_string())),
        Seed::bad("public", files(0, &public, String::new())),
        Seed::bad("not-clamped", files(0, &[&HEADER[..], &[0xff; 64]].concat(), String::new())),
        Seed::bad("long", files(0, &[&secret[..], b"x"].concat(), String::new())),
        Seed::good("line-end", files(0, &[&secret[..], b"\n"].concat(), String::new())),
        text("base64", BASE64.encode(world.master.expanded())),
        text("hex", HEXLOWER.encode(&secret)),
        text("add-onion", format!("ED25519-V3:{}\n", BASE64.encode(world.master.expanded()))),
        text("yaml", format!("hostname: {}\nhs_ed25519_secret_key: {}\n", world.cluster, BASE64.encode(&secret))),
        text("pem", PEM.into()),
        text("arti", ARTI_KEY.into()),
    ]
}
