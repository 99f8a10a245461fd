//! Values that are read, values that are refused, and the texts of the errors.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::alerts::Rules;
use crate::proxy::{ProxyProtocol, Target};
use proptest::prelude::*;

const PORT: &str = "[[port]]\nvirtual = 80\ntarget = \"127.0.0.1:8080\"\n";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text).map(|(config, _)| config).map_err(|problem| problem.to_string())
}

fn refused(text: &str) -> String {
    parse(&format!("{text}\n{PORT}")).unwrap_err()
}

fn initial() -> Initial {
    let ports = vec![
        PortTarget::new(80, "127.0.0.1:8080".parse().unwrap()),
        PortTarget::new(443, Target::Unix("/run/a \"b\\c\".sock".into())),
    ];
    Initial { ports, ..Initial::default() }
}

#[test]
fn the_first_file_holds_the_given_values_and_defaults() {
    let dir = tempfile::tempdir().unwrap();
    Config::write_initial(dir.path(), &initial()).unwrap();
    let config = Config::load(dir.path()).unwrap();
    assert_eq!(config.ports, initial().ports);
    assert_eq!((config.service, config.proxy), Default::default());
    assert_eq!(config.arti, "");
    let mode = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_port_without_a_target_is_written_as_a_comment() {
    let dir = tempfile::tempdir().unwrap();
    Config::write_initial(dir.path(), &Initial { unserved: vec![22], ..initial() }).unwrap();
    let text = std::fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
    assert!(text.contains("#[[port]]\n#virtual = 22\n"), "{text}");
    assert_eq!(Config::load(dir.path()).unwrap().ports, initial().ports);
    let served = parse(
        &text.replace("\n#[[port]]", "\n[[port]]").replace("\n#virtual", "\nvirtual").replace("\n#target", "\ntarget"),
    );
    assert_eq!(served.unwrap().ports.len(), 3);
}

#[test]
fn the_comments_of_the_first_file_are_the_defaults() {
    let text = initial::text(&initial());
    let key = |line: &str| line.split(' ').nth(1) == Some("=");
    let uncommented: Vec<_> =
        text.lines().map(|line| line.strip_prefix("# ").filter(|rest| key(rest)).unwrap_or(line)).collect();
    let mut config = parse(&uncommented.join("\n")).unwrap();
    assert_eq!(config.arti_file.take().as_deref(), Some(Path::new(ARTI_FILE_NAME)));
    assert_eq!(config.threads.take(), Some(1));
    assert_eq!(config.health.healthy_interval.take(), Some(Duration::from_secs(10)));
    let rate = config.service.introductions_per_second.take();
    assert_eq!(rate, Some((25, 200)), "off by default, as the limits of one circuit");
    assert_eq!(config.proxy.circuit_streams_per_second.take(), Some((10, 32)));
    assert_eq!(config.proxy.circuit_bytes_per_second.take(), Some(1 << 20));
    assert_eq!(config.service.refusals_per_circuit.take(), Some(100));
    assert_eq!(config.node.name.take(), "web-1".parse().ok());
    let address: SocketAddr = "203.0.113.7:7440".parse().unwrap();
    let example = WireguardConfig {
        enabled: Some(true),
        listen: Some(vec![address]),
        endpoints: Some(vec![address]),
        ..WireguardConfig::default()
    };
    assert_eq!(std::mem::take(&mut config.wireguard), example);
    assert_eq!(config.metrics.listen.take(), Some(([127, 0, 0, 1], 9441).into()));
    assert_eq!(config.log.level.take(), Some(LogLevel::Info));
    let alerts = std::mem::take(&mut config.alerts);
    assert!(alerts.are_on() && alerts.webhook_headers.is_some() && alerts.rules.events.is_some(), "{alerts:?}");
    let (command, webhook, webhook_headers) = (None, None, None);
    let rules = Rules { events: None, ..alerts.rules };
    assert_eq!(AlertSettings { command, webhook, webhook_headers, rules, ..alerts }, AlertSettings::default());
    assert_eq!(Ok(config), parse(&text));
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn a_port_may_belong_to_a_further_address() {
    let further = ServiceId::from_public_key([7; 32]);
    let port = |virtual_port: u16| {
        format!("[[port]]\nvirtual = {virtual_port}\ntarget = \"[::1]:{virtual_port}\"\nservice = \"{further}\"\n")
    };
    let config = parse(&format!("{PORT}{}{}", port(80), port(81))).unwrap();
    assert_eq!(config.ports.iter().map(|target| target.port).collect::<Vec<_>>(), [80]);
    let of_further: Vec<_> = config.further_ports[&further].iter().map(|target| target.port).collect();
    assert_eq!((config.further_ports.len(), of_further), (1, vec![80, 81]));
    let twice = refused(&format!("{}{}", port(80), port(80)));
    assert!(twice.contains("80 is configured twice"), "{twice}");
    let alone = parse(&port(80)).unwrap_err().to_string();
    assert!(alone.contains("the first address of the cluster needs a [[port]]"), "{alone}");
    let mistyped = refused(&port(80).replace(".onion", ".onoin"));
    assert!(mistyped.contains("\"service\" in [[port]]") && mistyped.contains("onion address"), "{mistyped}");
}

#[test]
fn artis_file_is_copied_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let arti = "# ours\n[vanguards]\nmode = \"full\"\n".to_string();
    Config::write_initial(dir.path(), &Initial { arti: Some(arti.clone()), ..initial() }).unwrap();
    assert_eq!(Config::load(dir.path()).unwrap().arti, arti);
    std::fs::write(dir.path().join(ARTI_FILE_NAME), "mode = ").unwrap();
    let error = Config::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("arti.toml: is not valid TOML: line 1, column 8 (\"mode\")"), "{error}");
    std::fs::remove_file(dir.path().join(ARTI_FILE_NAME)).unwrap();
    let error = Config::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("arti.toml: cannot be read"), "{error}");
}

#[test]
fn all_mistakes_are_named_in_the_order_of_the_file() {
    insta::assert_snapshot!(
        refused("[links]\nopen = 1\nneighbors = 3\n[cluster]\nheartbeat = \"2h\" # too long\nhide_outages = 1\n"),
        @r#"
    4 mistakes:
      line 2, column 8: "open" in [links] cannot be 1: write a whole number from 2 to 1024
      line 3, column 1: unknown key "neighbors" in [links]: did you mean "neighbours"?
      line 5, column 13: "heartbeat" in [cluster] cannot be "2h": write a time from 200ms to 30s with its unit, in quotes
      line 6, column 16: "hide_outages" in [cluster] cannot be 1: write true or false, without quotes
    "#
    );
    let many: String = (0..20).map(|at| format!("x{at} = 1\n")).collect();
    let shown = refused(&many);
    assert!(shown.starts_with("20 mistakes:\n  line 1, column 1: ") && shown.ends_with("\n  and 8 more"), "{shown}");
}

/// A key that seems to be missing may be the one that is misspelt.
#[test]
fn a_missing_key_is_named_only_if_no_key_is_misspelt() {
    let error = parse("[cluster]\nlease_ttl = \"3s\"\n[[port]]\nvirtual = 80\n").unwrap_err();
    insta::assert_snapshot!(error, @r#"
    2 mistakes:
      line 2, column 1: "lease_ttl" in [cluster]: 3s is shorter than 3 heartbeats of 2s: a lease must outlive the loss of one
      line 3, column 1: "target" in [[port]]: is missing: where do the streams of this port go, as in "127.0.0.1:8080"?
    "#);
    let error = parse("[cluster]\nlease_tll = \"3s\"\n[[port]]\nvirtual = 80\n").unwrap_err();
    insta::assert_snapshot!(error, @r#"line 2, column 1: unknown key "lease_tll" in [cluster]: did you mean "lease_ttl"?"#);
}

/// Errors end up in the journal, which must not contain a bridge's address or fingerprint.
#[test]
fn no_error_shows_a_bridge_line() {
    let bridge = "obfs4 192.0.2.7:4430 0123456789ABCDEF0123456789ABCDEF01234567 cert=sEcReT";
    let dir = tempfile::tempdir().unwrap();
    let broken = format!("[bridges]\nbridges = [\n  \"{bridge}\n]\n");
    std::fs::write(dir.path().join("mine.toml"), &broken).unwrap();
    let ours = format!("{PORT}[arti.bridges]\nbridges = \"{bridge}\nenabled = true\n");
    for error in [parse(&ours).unwrap_err(), read_arti(&dir.path().join("mine.toml")).unwrap_err().to_string()] {
        assert!(error.contains("is not valid TOML: line ") && error.contains(", column "), "{error}");
        for part in ["192.0.2", "01234567", "sEcReT", "obfs4"] {
            assert!(!error.contains(part), "{error}");
        }
    }
}

#[test]
fn a_syntax_error_names_its_place_and_quotes_no_bridge_line() {
    let bridge = "obfs4 192.0.2.7:443 0123456789012345678901234567890123456789 cert=secret iat-mode=0";
    let text = format!("# \u{e4}\n[arti.bridges]\nbridges = [\"{bridge}\n");
    let error = parse(&text).unwrap_err().to_string();
    assert!(error.starts_with("is not valid TOML: line 3, column "), "{error}");
    assert!(!bridge.split(' ').any(|word| error.contains(word)), "{error}");
}

#[test]
fn artis_table_is_handed_on_as_it_is() {
    let config = parse(&format!("{PORT}[arti.vanguards]\nmode = \"full\"\n[arti]\nx = 1\n")).unwrap();
    let table: toml::Table = config.arti.parse().unwrap();
    assert_eq!(table["vanguards"]["mode"].as_str(), Some("full"));
    assert_eq!(table["x"].as_integer(), Some(1));
}

#[test]
fn a_file_is_never_overwritten_and_one_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Config::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("rustbalance.toml: there is no such file: `rustbalance init`"), "{error}");
    std::fs::write(dir.path().join(FILE_NAME), "mine").unwrap();
    let error = Config::write_initial(dir.path(), &initial()).unwrap_err();
    assert!(matches!(error.problem, Problem::Exists));
    assert_eq!(std::fs::read(dir.path().join(FILE_NAME)).unwrap(), b"mine");
    std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    Config::write_initial(dir.path(), &initial()).unwrap();
    Config::write_initial(dir.path(), &initial()).expect("an interrupted command is run again");
}

#[test]
fn an_unknown_key_is_named_with_its_table_and_the_nearest_known_one() {
    insta::assert_snapshot!(refused("[cluster]\nhartbeat = \"2s\""), @r#"line 2, column 1: unknown key "hartbeat" in [cluster]: did you mean "heartbeat"?"#);
    insta::assert_snapshot!(refused("[limit]\nstreams = 1"), @r#"line 1, column 2: unknown key "limit" in the top level: did you mean "limits"?"#);
    insta::assert_snapshot!(refused("weight = 2"), @r#"line 1, column 1: unknown key "weight" in the top level: "weight" belongs in [node]"#);
    insta::assert_snapshot!(refused("[node]\ncolour = 2"), @r#"line 2, column 1: unknown key "colour" in [node]: known keys are name, priority, weight"#);
    insta::assert_snapshot!(
        parse("[[port]]\nvirtul = 80\ntarget = \"127.0.0.1:1\"").unwrap_err(),
        @r#"line 2, column 1: unknown key "virtul" in [[port]]: did you mean "virtual"?"#
    );
}

#[test]
fn a_wrong_value_is_named_with_the_allowed_ones() {
    insta::assert_snapshot!(refused("[cluster]\nheartbeat = 2"), @r#"line 2, column 13: "heartbeat" in [cluster] cannot be 2: write "2s" for seconds: a time has a unit"#);
    insta::assert_snapshot!(refused("[cluster]\nheartbeat = \"2h\""), @r#"line 2, column 13: "heartbeat" in [cluster] cannot be "2h": write a time from 200ms to 30s with its unit, in quotes"#);
    insta::assert_snapshot!(refused("[cluster]\nheartbeat = \"20s\""), @r#"line 1, column 2: "lease_ttl" in [cluster]: 30s is shorter than 3 heartbeats of 20s: a lease must outlive the loss of one"#);
    insta::assert_snapshot!(refused("[node]\nweight = 0"), @r#"line 2, column 10: "weight" in [node] cannot be 0: write a whole number from 1 to 100"#);
    insta::assert_snapshot!(refused("[node]\npriority = 256"), @r#"line 2, column 12: "priority" in [node] cannot be 256: write a whole number from 0 to 255"#);
    insta::assert_snapshot!(refused("[node]\npriority = \"first\""), @r#"line 2, column 12: "priority" in [node] cannot be "first": write a whole number from 0 to 255"#);
    insta::assert_snapshot!(refused("node = 1"), @r#"line 1, column 8: "node" in the top level cannot be 1: write a table, [node]"#);
    insta::assert_snapshot!(refused("[limits]\nintroductions_burst = 5"), @r#"line 2, column 1: "introductions_burst" in [limits]: needs introductions_per_second"#);
    insta::assert_snapshot!(refused("arti_config = \"a\"\n[arti]"), @r#"line 1, column 1: "arti_config" in the top level: there is a table [arti] too: keep one of the two"#);
    insta::assert_snapshot!(refused("[[port]]\nvirtual = 80\ntarget = \"[::1]:80\""), @r#"line 5, column 1: "virtual" in [[port]]: 80 is configured twice: a port has one target"#);
    insta::assert_snapshot!(refused("[[port]]\nvirtual = 7441\ntarget = \"[::1]:80\""), @r#"line 2, column 1: "virtual" in [[port]]: 7440 and 7441 are used by the nodes themselves: choose another"#);
    insta::assert_snapshot!(refused("[[port]]\nvirtual = 81"), @r#"line 1, column 1: "target" in [[port]]: is missing: where do the streams of this port go, as in "127.0.0.1:8080"?"#);
    insta::assert_snapshot!(parse("[node]\nweight = 2").unwrap_err(), @r#""port" in the top level: no port is configured: add [[port]] with "virtual" and "target""#);
}

#[test]
fn monitors_are_answered_on_loopback_alone() {
    for text in ["127.0.0.1:9441", "127.9.9.9:1", "[::1]:9441"] {
        let config = parse(&format!("{PORT}[metrics]\nlisten = \"{text}\"\n")).unwrap();
        assert_eq!(config.metrics.listen.map(|address| address.to_string()).as_deref(), Some(text));
    }
    for text in ["0.0.0.0:9441", "192.0.2.1:9441", "[::]:9441", "[::ffff:127.0.0.1]:9441", "127.0.0.1:0"] {
        let error = refused(&format!("[metrics]\nlisten = \"{text}\""));
        assert!(error.contains("\"listen\" in [metrics]") && error.contains("not a port of a loopback"), "{error}");
    }
    insta::assert_snapshot!(refused("[metrics]\nlisten = \"localhost:9441\""), @r#"line 2, column 10: "listen" in [metrics] cannot be "localhost:9441": write an address with a port in quotes, as in "127.0.0.1:9441""#);
}

#[test]
fn limits_reach_the_engine_and_the_proxy() {
    let config = parse(&format!(
        "{PORT}[limits]\nstreams = 7\nstreams_per_circuit = 3\nintroductions_per_second = 300\nidle_timeout = \"1h 5m\"\n"
    ))
    .unwrap();
    assert_eq!(config.proxy.streams, 7);
    assert_eq!(config.proxy.idle, Some(Duration::from_secs(3900)));
    assert_eq!(config.service.streams_per_circuit, 3);
    assert_eq!(config.service.introductions_per_second, Some((300, 300)));
}

#[test]
fn bounds_on_peers_are_read_and_checked() {
    let config = parse(&format!(
        "{PORT}[links]\nopen = 12\nneighbours = 3\naccepts_per_second = 4\nsilence_timeout = \"40s\"\n\
         [joins]\nconcurrent = 2\ninterval = \"2s\"\n[gossip]\nunknown_nodes = 9\npending_records = 10\n"
    ))
    .unwrap();
    assert_eq!((config.links.links, config.links.neighbours, config.links.accepts_per_second), (12, 3, (4, 30)));
    assert_eq!((config.links.silence, config.links.ping), (Duration::from_secs(40), Duration::from_secs(5)));
    assert_eq!((config.joins.at_once, config.joins.every), (2, Duration::from_secs(2)));
    assert_eq!((config.gossip.mesh.unknown_nodes, config.gossip.waiting), (9, 10));
    insta::assert_snapshot!(refused("[links]\nopen = 11"), @r#"line 2, column 1: "open" in [links]: 11 is less than twice the 6 neighbours: the same number may dial this node"#);
    insta::assert_snapshot!(refused("[links]\nping_interval = \"15s\""), @r#"line 1, column 2: "silence_timeout" in [links]: 20s is shorter than 2 pings of 15s"#);
    insta::assert_snapshot!(refused("[links]\nbytes_burst = 1"), @r#"line 2, column 15: "bytes_burst" in [links] cannot be 1: write a whole number from 262144 to 1073741824"#);
    insta::assert_snapshot!(refused("[links]\nhandshake = 1"), @r#"line 2, column 1: unknown key "handshake" in [links]: did you mean "handshakes"?"#);
    insta::assert_snapshot!(refused("[joins]\nconcurrent = 0"), @r#"line 2, column 14: "concurrent" in [joins] cannot be 0: write a whole number from 1 to 1024"#);
    insta::assert_snapshot!(refused("[gossip]\nunknown_node = 1"), @r#"line 2, column 1: unknown key "unknown_node" in [gossip]: did you mean "unknown_nodes"?"#);
}

#[test]
fn alerts_go_to_a_program_an_onion_service_or_this_host() {
    let text = "[alerts]\ncommand = [\"/bin/page\", \"-x\"]\nwebhook = \"http://127.0.0.1:9/a\"\nwebhook_headers = \"h\"\n\
                events = [\"node_lost\", \"publisher_changed\"]\nrepeat = \"never\"\nper_hour = 9\n";
    let AlertSettings { command, webhook, webhook_headers, rules, .. } =
        parse(&format!("{PORT}{text}")).unwrap().alerts;
    assert_eq!(command.unwrap().entries(), ["/bin/page", "-x"]);
    assert_eq!((webhook.unwrap().url().as_str(), webhook_headers), ("http://127.0.0.1:9/a", Some("h".into())));
    assert_eq!((rules.repeat, rules.per_hour, rules.events.unwrap().len()), (None, 9, 2));
    assert!(!parse(PORT).unwrap().alerts.are_on());
    insta::assert_snapshot!(refused("[alerts]\ncommand = \"/bin/page --key s3cret\""), @r#"line 2, column 11: "command" in [alerts]: it is a list of texts, the program and its arguments, as in ["/usr/local/bin/page", "--ops"]: there is no shell that takes one text apart"#);
    insta::assert_snapshot!(refused("[alerts]\ncommand = [\"page\", \"s3cret\"]"), @r#"line 2, column 11: "command" in [alerts]: the first entry is the program, with its path from the root, as in ["/usr/local/bin/page", "--ops"]"#);
    insta::assert_snapshot!(refused("[alerts]\nwebhook = \"https://hooks.example.com/s3cret\""), @r#"line 2, column 11: "webhook" in [alerts]: it begins with "https://": write http://, because a connection to an onion service is encrypted anyway, and one to this host needs no encryption"#);
    insta::assert_snapshot!(refused("[alerts]\nwebhook = \"http://hooks.example.com/s3cret\""), @r#"line 2, column 11: "webhook" in [alerts]: "hooks.example.com" is neither an onion address nor a loopback address: alerts never leave this host outside of Tor; write "http://<address>.onion/path" or "http://127.0.0.1:8080/path""#);
    insta::assert_snapshot!(refused("[alerts]\nwebhook_headers = \"h\""), @r#"line 2, column 1: "webhook_headers" in [alerts]: needs webhook"#);
    insta::assert_snapshot!(refused("[alerts]\nevents = [\"node_lots\"]"), @r#"line 2, column 10: "events" in [alerts]: "node_lots" is not an event: did you mean "node_lost"?"#);
    insta::assert_snapshot!(refused("[alerts]\nevents = []"), @r#"line 2, column 10: "events" in [alerts]: it is a list of at least one event, as in ["target_down", "node_lost"]"#);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(\\[{0,2}(node|port|arti|limits|cluster)?\\]{0,2}\n?|[a-z_]{1,9} ?= ?[0-9\"a-z:.]{0,9}\n|\\PC{0,9}){0,9}") {
        let _ = parse(&text);
    }
}

#[test]
fn a_circuit_is_bounded_only_if_the_operator_says_so() {
    let config = |keys: &str| parse(&format!("{PORT}[limits]\n{keys}")).unwrap();
    let set = |keys: &str| {
        let Config { proxy, service, .. } = config(keys);
        (proxy.circuit_streams_per_second, proxy.circuit_bytes_per_second, service.refusals_per_circuit)
    };
    assert_eq!(set(""), (None, None, None));
    assert_eq!(set("circuit_streams_per_second = 10"), (Some((10, 32)), None, None));
    assert_eq!(set("circuit_streams_per_second = 40"), (Some((40, 40)), None, None));
    let keys = "circuit_streams_per_second = 2\ncircuit_streams_burst = 1\ncircuit_refusals = 9\n\
                circuit_bytes_per_second = 20000";
    assert_eq!(set(keys), (Some((2, 1)), Some(20_000), Some(9)));
    let error = refused("[limits]\ncircuit_streams_burst = 5");
    assert!(error.ends_with("needs circuit_streams_per_second"), "{error}");
}

#[test]
fn the_header_of_a_port_is_of_a_known_version() {
    for (text, protocol) in [("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)] {
        let config = parse(&format!("{PORT}proxy_protocol = \"{text}\"\n")).unwrap();
        assert_eq!(config.ports[0].proxy_protocol, Some(protocol));
    }
    assert_eq!(parse(PORT).unwrap().ports[0].proxy_protocol, None);
    let error = parse(&format!("{PORT}proxy_protocol = 2\n")).unwrap_err().to_string();
    assert!(error.contains("\"proxy_protocol\"") && error.contains("\"v1\" or \"v2\""), "{error}");
}

#[test]
fn idle_and_stalled_streams_are_closed_only_if_the_operator_says_so() {
    let limits = |keys: &str| parse(&format!("{PORT}[limits]\n{keys}")).unwrap().proxy;
    assert_eq!((limits("").idle, limits("").stall), (None, None), "as with C tor");
    assert_eq!(limits("idle_timeout = \"never\"\nstall_timeout = \"off\"\n"), limits(""));
    let set = limits("idle_timeout = \"30m\"\nstall_timeout = \"2m\"\n");
    assert_eq!((set.idle, set.stall), (Some(Duration::from_secs(1800)), Some(Duration::from_secs(120))));
    insta::assert_snapshot!(refused("[limits]\nidle_timeout = \"ever\""), @r#"line 2, column 16: "idle_timeout" in [limits] cannot be "ever": write a time from 1s to 1day with its unit, in quotes; or "never""#);
}

#[test]
fn a_key_is_read_by_its_former_name_with_a_hint_where_it_stands() {
    let text = format!("{PORT}[joins]\nat_once = 3\n[links]\nsilence = \"50s\"\nping_interval = \"6s\"\n");
    let (config, hints) = Config::parse(&text).unwrap();
    assert_eq!((config.joins.at_once, config.links.silence), (3, Duration::from_secs(50)));
    let hints: Vec<String> = hints.iter().map(ToString::to_string).collect();
    let at = |key: &str| text.lines().position(|line| line.starts_with(key)).unwrap() + 1;
    assert_eq!(
        hints,
        [
            format!(
                "line {}, column 1: \"silence\" in [links] is called \"silence_timeout\" now: rename it",
                at("silence")
            ),
            format!("line {}, column 1: \"at_once\" in [joins] is called \"concurrent\" now: rename it", at("at_once")),
        ]
    );
    let both = refused("[joins]\nat_once = 3\nconcurrent = 4");
    assert!(both.contains("unknown key \"at_once\" in [joins]"), "{both}");
    let wrong = refused("[joins]\nat_once = 0");
    assert!(wrong.contains("\"concurrent\" in [joins] cannot be 0"), "{wrong}");
}

#[test]
fn a_target_that_leaves_this_host_needs_consent_and_one_on_the_internet_is_refused_even_so() {
    let port = |target: &str, more: &str| format!("[[port]]\nvirtual = 81\ntarget = \"{target}\"\n{more}");
    for target in ["example.com:80", "10.0.0.7:80", "[fd00::7]:80"] {
        for more in ["", "allow_private = false\n"] {
            let error = refused(&port(target, more));
            assert!(error.starts_with("line 3, column 1: \"target\" in [[port]]: the target"), "{error}");
            assert!(error.contains("is not on this host") && error.contains("allow_private = true"), "{error}");
        }
        let config = parse(&format!("{PORT}{}", port(target, "allow_private = true\n"))).unwrap();
        assert_eq!(config.ports[1].target.to_string(), target);
        assert!(config.ports[1].allow_private);
    }
    let error = refused(&port("203.0.113.7:80", "allow_private = true\n"));
    assert!(error.contains("line 3, column 10") && error.contains("nor an address of a private network"), "{error}");
}

#[test]
fn the_check_of_a_port_is_read_and_the_file_with_it_reads_back() {
    let pin = format!("spki-sha256:{}", "0f".repeat(32));
    let health = format!(
        "[port.health]\ncheck = \"https\"\npath = \"/health?key=secret\"\nhost = \"shop.example:8443\"\nheaders = [\"X-Key: \
         secret\"]\nexpect_status = 204\nexpect_headers = [\"Server\"]\nexpect_body = \"ok\"\npin = \"{pin}\"\ninterval = \
         \"1s\"\nhealthy_interval = \"1m\"\ntimeout = \"3s\"\nsuccesses = 2\nfailures = 4\n"
    );
    let config = parse(&format!("{PORT}{health}[[port]]\nvirtual = 81\ntarget = \"[::1]:81\"\n")).unwrap();
    let check = &config.ports[0].check;
    assert_eq!((check.to_string().as_str(), check.kind()), ("HTTPS GET /health", crate::proxy::CheckKind::Https));
    assert_eq!(check.pin.map(|pin| pin.to_string()), Some(pin));
    assert_eq!((check.interval, check.successes, check.failures), (Some(Duration::from_secs(1)), Some(2), Some(4)));
    assert_eq!(config.ports[1].check, crate::proxy::PortCheck::default(), "each port has its own table");
    let written = initial::text(&Initial { ports: config.ports.clone(), ..Initial::default() });
    assert_eq!(parse(&written).unwrap().ports, config.ports);
    // What a reload and a report for developers say.
    let said: Vec<String> = config.differences().iter().map(ToString::to_string).collect();
    let said = said.join("\n");
    assert!(said.contains("health.path = \"/health?...\"") && said.contains("x-key: ..."), "{said}");
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn a_check_that_cannot_work_is_refused_with_the_reason() {
    let health = |keys: &str| parse(&format!("{PORT}[port.health]\n{keys}\n")).unwrap_err();
    insta::assert_snapshot!(health("chekc = \"http\""), @r#"line 5, column 1: unknown key "chekc" in [port.health]: did you mean "check"?"#);
    insta::assert_snapshot!(health("check = \"ftp\""), @r#"line 5, column 9: "check" in [port.health] cannot be "ftp": write "connect", "http" or "https""#);
    insta::assert_snapshot!(health("path = \"/\""), @r#"line 5, column 1: "path" in [port.health]: needs check = "http" or "https""#);
    insta::assert_snapshot!(health("check = \"http\"\npath = \"health\""), @r#"line 6, column 1: "path" in [port.health]: it begins with "/" and has no spaces, as in "/health""#);
    insta::assert_snapshot!(health("check = \"https\""), @r#"line 5, column 1: "check" in [port.health]: "https" needs a ca_file or a pin: the certificates of the web's authorities are not trusted here"#);
    insta::assert_snapshot!(health("check = \"http\"\nca_file = \"/a\""), @r#"line 6, column 1: "ca_file" in [port.health]: needs check = "https""#);
    insta::assert_snapshot!(health("check = \"https\"\nca_file = \"a\""), @r#"line 6, column 1: "ca_file" in [port.health]: it is a path from the root, as in "/etc/rustbalance/ca.pem""#);
    insta::assert_snapshot!(health("check = \"http\"\nheaders = [\"Host: x\"]"), @r#"line 6, column 11: "headers" in [port.health]: the check sets host itself (for Host there is the key "host")"#);
    insta::assert_snapshot!(health("check = \"http\"\nexpect_status = 700"), @r#"line 6, column 17: "expect_status" in [port.health] cannot be 700: write a status such as "200", or a range such as "200-299""#);
    insta::assert_snapshot!(parse(&format!("{PORT}health = 3\n")).unwrap_err(), @r#"line 4, column 10: "health" in [[port]] cannot be 3: write a table, [port.health]"#);
}
