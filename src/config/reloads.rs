//! Tests of what a reload applies, what it leaves to a restart, and what it says.

use std::convert::Infallible;

use rustbalance_gossip::id::ServiceId;

use super::keys::{Effect, KeyVisitor, Value};
use super::*;

const PORT: &str = "[[port]]\nvirtual = 80\ntarget = \"127.0.0.1:8080\"\n";

fn parse(text: &str) -> Config {
    Config::parse(text).unwrap().0
}

fn apply(live: &LiveConfig, new: &Config) -> Reloaded {
    let Ok(reloaded) = live.reload(|| Ok::<_, Infallible>(new.clone()));
    reloaded
}

fn shown(changes: &[Change]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

/// Gives the `at`th key another value.
struct Changer {
    at: usize,
    seen: usize,
    /// The key, its table, and when the change takes effect.
    changed: Option<(String, &'static str, Effect)>,
    table: &'static str,
}

impl Changer {
    /// A configuration that differs in one key; `None` if there are no more keys.
    fn change(config: &Config, at: usize) -> Option<(Config, String, Effect)> {
        let (mut changer, mut config) = (Self { at, seen: 0, changed: None, table: "" }, config.clone());
        tables::walk(&mut changer, &mut config);
        changer.changed.map(|(key, table, effect)| (config, format!("{table} {key}"), effect))
    }

    fn is_this(&mut self, name: &str, effect: Effect) -> bool {
        self.seen += 1;
        if self.seen - 1 != self.at {
            return false;
        }
        self.changed = Some((name.to_owned(), self.table, effect));
        true
    }
}

impl KeyVisitor for Changer {
    fn table(&mut self, name: &'static str, _meaning: &'static str) {
        self.table = name;
    }

    fn key<V: Value>(
        &mut self,
        name: &'static str,
        effect: Effect,
        allowed: V::Allowed,
        value: &mut V,
        _: &'static str,
    ) {
        if self.is_this(name, effect) {
            *value = value.another(&allowed);
        }
    }

    fn optional<V: Value>(
        &mut self,
        name: &'static str,
        effect: Effect,
        allowed: V::Allowed,
        value: &mut Option<V>,
        example: V,
        _: &'static str,
    ) {
        if self.is_this(name, effect) {
            let another = value.as_ref().map_or(example, |value| value.another(&allowed));
            *value = Some(another);
        }
    }

    fn each<T: Default>(
        &mut self,
        name: &'static str,
        _: &'static [&'static str],
        _: &'static str,
        items: &mut Vec<T>,
        keys: fn(&mut Self, &mut T, &[T]),
    ) {
        self.table = name;
        for item in items {
            keys(self, item, &[]);
        }
    }

    fn inside<T>(&mut self, _: &'static str, _: &'static str, item: &mut T, keys: fn(&mut Self, &mut T)) {
        keys(self, item);
    }

    fn foreign(&mut self, name: &'static str, effect: Effect, _: &'static str, text: &mut String) -> bool {
        if self.is_this(name, effect) {
            text.push_str("x = 1\n");
        }
        false
    }

    fn require(&mut self, _: &'static str, _: bool, _: impl FnOnce() -> String) {}
}

/// A function that says whether a part of the node is given something else than before.
fn watched<T: 'static>(mut watch: tokio::sync::watch::Receiver<T>) -> Box<dyn Fn() -> bool> {
    watch.mark_unchanged();
    Box::new(move || watch.has_changed().unwrap())
}

/// The table says of each key when it takes effect, and the parts of the node get it by watches:
/// the two must agree.
#[test]
fn every_key_that_a_reload_applies_reaches_a_part_of_the_node_and_no_other_key_does() {
    let further = ServiceId::from_public_key([7; 32]);
    let start = parse(&format!(
        "{PORT}[[port]]\nvirtual = 81\ntarget = \"[::1]:81\"\nservice = \"{further}\"\n[limits]\n\
         introductions_per_second = 25\ncircuit_streams_per_second = 10\n[wireguard]\nenabled = true\nlisten = \"203.0.113.1\"\nendpoints = []\n"
    ));
    let (mut at, mut effects) = (0, [0, 0]);
    while let Some((new, key, effect)) = Changer::change(&start, at) {
        at += 1;
        let live = LiveConfig::new(start.clone());
        let parts = [
            watched(live.announced()),
            watched(live.targets()),
            watched(live.points()),
            watched(live.service()),
            watched(live.proxy()),
            watched(live.health()),
            watched(live.canary()),
            watched(live.links()),
            watched(live.joins()),
            watched(live.gossip()),
            watched(live.wireguard()),
            watched(live.alerts()),
            watched(live.log()),
        ];
        let Reloaded { applied, after_restart } = apply(&live, &new);
        let is_running = effect == Effect::Running;
        effects[usize::from(is_running)] += 1;
        assert_eq!(!applied.is_empty(), is_running, "{key}: {applied:?}");
        assert_eq!(!after_restart.is_empty(), !is_running, "{key}: {after_restart:?}");
        assert_eq!(parts.iter().any(|has_changed| has_changed()), is_running, "{key}");
        assert_eq!(apply(&live, &new).applied, [], "{key} is applied twice");
    }
    assert!(effects[0] >= 5 && effects[1] >= 45, "the walk has missed keys: {effects:?}");
}

#[test]
fn a_reload_says_what_it_has_applied_and_what_needs_a_restart() {
    let live = LiveConfig::new(parse(PORT));
    let (mut proxy, mut joins, mut health) = (live.proxy(), live.joins(), live.health());
    assert_eq!(apply(&live, &parse(PORT)), Reloaded::default());
    assert!(!proxy.has_changed().unwrap());
    let new = parse(&format!(
        "threads = 2\n[limits]\nstreams = 9\nintroductions_per_second = 25\nidle_timeout = \"1h\"\n[joins]\n\
         concurrent = 3\n[health]\nfailures = 5\n[node]\nweight = 7\n[cluster]\nheartbeat = \"1s\"\n\
         hide_outages = true\n{PORT}"
    ));
    let reloaded = apply(&live, &new);
    insta::assert_snapshot!(shown(&reloaded.applied).join("\n"), @r#"
    [node] weight changed from 1 to 7
    [cluster] hide_outages changed from false to true
    [limits] streams changed from 4096 to 9
    [limits] introductions_per_second changed from unset to 25
    [limits] introductions_burst changed from unset to 200
    [limits] idle_timeout changed from "never" to "1h"
    [health] failures changed from 3 to 5
    [joins] concurrent changed from 16 to 3
    "#);
    let restart = ["threads changed from unset to 2", "[cluster] heartbeat changed from \"2s\" to \"1s\""];
    assert_eq!(shown(&reloaded.after_restart), restart);
    assert_eq!(proxy.borrow_and_update().streams, 9);
    assert_eq!(joins.borrow_and_update().at_once, 3);
    assert_eq!(health.borrow_and_update().failures, 5);
    assert_eq!(live.at_start().cluster.heartbeat, Duration::from_secs(2));
    let again = apply(&live, &new);
    assert_eq!(again.applied, []);
    assert_eq!(shown(&again.after_restart), restart, "it still waits for the restart");
    let back = apply(&live, &parse(PORT));
    assert_eq!((back.applied.len(), back.after_restart), (8, Vec::new()), "the file is as it was at the start");
}

#[test]
fn ports_come_go_and_move_by_a_reload_and_no_onion_address_is_shown() {
    let further = ServiceId::from_public_key([7; 32]);
    let port = |port: u16, target: &str, of: &str| format!("[[port]]\nvirtual = {port}\ntarget = \"{target}\"\n{of}");
    let of_further = format!("service = \"{further}\"\n");
    let before = format!("{PORT}{}", port(22, "[::1]:22", ""));
    let live = LiveConfig::new(parse(&before));
    let mut targets = live.targets();
    // The order of the tables has no meaning.
    let turned = format!("{}{PORT}", port(22, "[::1]:22", ""));
    assert_eq!(apply(&live, &parse(&turned)), Reloaded::default());
    let after = format!(
        "{}{}{}",
        port(80, "unix:/run/app.sock", ""),
        port(443, "127.0.0.1:8443", ""),
        port(80, "127.0.0.1:9", &of_further)
    );
    insta::assert_snapshot!(shown(&apply(&live, &parse(&after)).applied).join("\n"), @r#"
    [[port]] 22 removed
    [[port]] 80 changed from target = "127.0.0.1:8080" to target = "unix:/run/app.sock"
    [[port]] 443 added with target = "127.0.0.1:8443"
    [[port]] 80 of another address added with target = "127.0.0.1:9"
    "#);
    let first = ServiceId::from_public_key([1; 32]);
    let ports = targets.borrow_and_update().ports(first);
    assert_eq!(ports, [(first, vec![80, 443]), (further, vec![80])].into());
}

#[test]
fn a_changed_bridge_is_not_shown_and_needs_a_restart() {
    let live = LiveConfig::new(parse(PORT));
    let bridge = "obfs4 192.0.2.7:443 0123456789012345678901234567890123456789 cert=secret iat-mode=0";
    let reloaded = apply(&live, &parse(&format!("{PORT}[arti.bridges]\nbridges = [\"{bridge}\"]\n")));
    assert_eq!((reloaded.applied.len(), shown(&reloaded.after_restart)), (0, vec!["[arti] changed".to_owned()]));
}

#[test]
fn a_configuration_that_cannot_be_read_changes_nothing() {
    let live = LiveConfig::new(parse(PORT));
    assert_eq!(live.reload(|| Err::<Config, _>("broken")), Err("broken"));
    let same: Result<_, Infallible> = live.reload(|| Ok(parse(PORT)));
    assert_eq!(same, Ok(Reloaded::default()));
}
