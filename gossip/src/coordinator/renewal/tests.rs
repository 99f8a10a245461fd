//! Months of a cluster, a minute of each day.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::coordinator::{Event, Settings};
use crate::id::NodeId;
use crate::record::{RecordKind, Role};
use crate::signed::Check;
use crate::sim::{FOUNDED, Founder, Identity, Rng};

const DAY: u64 = 86_400;
/// Seconds between two events of a node, and number of them each day.
const STEP: u64 = 5;
const STEPS: u64 = 12;

/// Accepts every signature but an empty one: these tests forge none.
struct Trusting;

impl Check for Trusting {
    fn check(&self, _key: &[u8; 32], _message: &[u8], signature: &[u8; 64]) -> bool {
        signature.iter().any(|byte| *byte != 0)
    }
}

struct Host {
    identity: Identity,
    node: Coordinator,
    boot: u64,
    /// Seconds by which its clock is ahead, or behind if negative.
    skew: i64,
    up: bool,
    excluded: Option<String>,
}

struct Cluster {
    founder: Founder,
    hosts: Vec<Host>,
    /// What each node has in its gossip.
    announced: BTreeMap<(NodeId, RecordKind), Vec<u8>>,
    /// Seconds since the founding.
    passed: u64,
    /// The nodes whose certificates were renewed, and by which.
    renewed: Vec<(NodeId, NodeId)>,
}

fn start(identity: &Identity, boot: u64) -> Coordinator {
    let settings = Settings::new(boot, boot, 0);
    Coordinator::new(settings, Box::new(identity.key.clone()), identity.member.clone()).with_check(Box::new(Trusting))
}

impl Cluster {
    /// Nodes with these roles, whose certificates were made at the founding.
    fn new(roles: &[Role]) -> Self {
        let founder = Founder::new(1);
        let identities: Vec<_> = (0..)
            .zip(roles)
            .map(|(number, role)| founder.certify_until(&founder.node(number, *role), FOUNDED + MEMBERSHIP_SECONDS))
            .collect();
        let hosts = identities.iter().map(|identity| Host {
            identity: identity.clone(),
            node: start(identity, 1),
            boot: 1,
            skew: 0,
            up: true,
            excluded: None,
        });
        let mut cluster =
            Self { hosts: hosts.collect(), founder, announced: BTreeMap::new(), passed: 0, renewed: Vec::new() };
        let chains: Vec<_> = identities.iter().map(|identity| identity.member.chain()).collect();
        for host in 0..cluster.hosts.len() {
            cluster.event(host, Event::KnownMembers(chains.clone()));
        }
        cluster
    }

    fn id(&self, host: usize) -> NodeId {
        self.hosts[host].identity.node()
    }

    /// Starts a process with what the last one left on disk.
    fn restart(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        it.boot += 1;
        it.identity.member = it.node.view().node(&it.identity.node()).unwrap().member.clone();
        let (chains, facts) = (it.node.chains(), it.node.view().facts().complete_statements());
        (it.node, it.up) = (start(&it.identity, it.boot), true);
        self.event(host, Event::KnownMembers(chains));
        facts.into_iter().for_each(|fact| self.event(host, Event::Fact(fact)));
    }

    fn event(&mut self, host: usize, event: Event) {
        let it = &mut self.hosts[host];
        let unix = (FOUNDED + self.passed).saturating_add_signed(it.skew);
        let now = Now { mono: Duration::from_secs(100 + self.passed), unix };
        let me = it.identity.node();
        for action in it.node.handle(event, now) {
            match action {
                Action::StoreTerm(term) => self.event(host, Event::TermStored(term)),
                Action::Gossip { kind, bytes } => {
                    self.announced.insert((me, kind), bytes.clone());
                    for other in (0..self.hosts.len()).filter(|other| *other != host) {
                        self.deliver(other, me, kind, &bytes);
                    }
                }
                Action::Retract(kind) => drop(self.announced.remove(&(me, kind))),
                Action::Renew(certificate) => {
                    self.renewed.push((certificate.node, me));
                    let renewal = self.founder.sign_renewal(certificate);
                    self.event(host, Event::Fact(renewal.into()));
                }
                Action::Excluded(reason) => self.hosts[host].excluded = Some(reason),
                _ => {}
            }
        }
    }

    fn deliver(&mut self, host: usize, origin: NodeId, kind: RecordKind, bytes: &[u8]) {
        if self.hosts[host].up {
            self.event(host, Event::Record { origin, kind, bytes: bytes.to_vec() });
        }
    }

    /// A minute in which the nodes that are up gossip.
    fn minute(&mut self) {
        let up: Vec<_> = self.hosts.iter().filter(|host| host.up).map(|host| host.identity.node()).collect();
        let state: Vec<_> = self.announced.iter().map(|(key, bytes)| (*key, bytes.clone())).collect();
        for ((origin, kind), bytes) in state.into_iter().filter(|((origin, _), _)| up.contains(origin)) {
            (0..self.hosts.len()).for_each(|host| self.deliver(host, origin, kind, &bytes));
        }
        for _ in 0..STEPS {
            self.passed += STEP;
            for host in 0..self.hosts.len() {
                if self.hosts[host].up {
                    self.event(host, Event::Tick);
                }
            }
        }
    }

    /// A day, of which only one minute has events.
    fn day(&mut self) {
        self.minute();
        self.passed = self.passed.next_multiple_of(DAY);
    }

    /// Whether every node that is up, except those in `without`, takes this one for a member.
    fn all_list(&self, host: usize, without: &[usize]) -> bool {
        let mut lists = (0..self.hosts.len())
            .filter(|other| self.hosts[*other].up && !without.contains(other))
            .map(|other| self.hosts[other].node.view().is_member(&self.id(host)));
        lists.all(|lists| lists)
    }
}

const PUBLISHER: Role = Role::Publisher;
const WORKER: Role = Role::Worker;

#[test]
fn a_node_that_runs_on_most_days_stays_a_member_and_an_evicted_one_does_not() {
    const EVICTED: usize = 3;
    for seed in 0..4 {
        let mut rng = Rng::new(seed);
        let mut cluster = Cluster::new(&[PUBLISHER, PUBLISHER, WORKER, WORKER, WORKER]);
        for host in &mut cluster.hosts {
            host.skew = rng.below(1200) as i64 - 600;
        }
        for day in 0..75 {
            for host in (0..cluster.hosts.len()).filter(|host| *host != EVICTED) {
                let up = rng.below(10) < 7;
                match (cluster.hosts[host].up, up) {
                    (false, true) if rng.below(2) == 0 => cluster.restart(host),
                    _ => cluster.hosts[host].up = up,
                }
            }
            if day == 10 {
                (0..cluster.hosts.len()).for_each(|host| cluster.hosts[host].up = true);
                let revocation = cluster.founder.revoke(cluster.id(EVICTED));
                cluster.event(0, Event::Fact(revocation.into()));
            }
            cluster.day();
        }
        (0..cluster.hosts.len()).filter(|host| *host != EVICTED).for_each(|host| cluster.hosts[host].up = true);
        cluster.day();
        for host in (0..cluster.hosts.len()).filter(|host| *host != EVICTED) {
            assert_eq!(cluster.hosts[host].excluded, None, "seed {seed}, host {host}");
            assert!(cluster.all_list(host, &[EVICTED]), "seed {seed}, host {host}");
        }
        let evicted = cluster.id(EVICTED);
        assert!(cluster.hosts[EVICTED].excluded.as_ref().is_some_and(|why| why.contains("evicted")));
        assert!(cluster.renewed.iter().all(|(node, _)| *node != evicted), "seed {seed}: it was renewed");
        // Each node about every 15 days, not by each publisher at each heartbeat.
        let renewals = cluster.renewed.len();
        assert!((16..=40).contains(&renewals), "seed {seed}: {renewals} renewals");
    }
}

#[test]
fn after_weeks_away_a_publisher_renews_itself_and_a_worker_must_join_again() {
    const AWAY: [usize; 2] = [1, 2];
    let mut cluster = Cluster::new(&[PUBLISHER, PUBLISHER, WORKER, WORKER]);
    cluster.day();
    AWAY.iter().for_each(|host| cluster.hosts[*host].up = false);
    for _ in 0..40 {
        cluster.day();
    }
    assert!(AWAY.iter().all(|host| !cluster.hosts[0].node.view().is_member(&cluster.id(*host))), "gone for good");
    AWAY.iter().for_each(|host| cluster.restart(*host));
    cluster.day();
    let [publisher, worker] = AWAY;
    assert!(cluster.hosts[worker].excluded.as_ref().is_some_and(|why| why.contains("join again")));
    assert_eq!(cluster.hosts[publisher].excluded, None);
    assert!(cluster.all_list(publisher, &[worker]) && cluster.all_list(3, &[worker]) && cluster.all_list(0, &[worker]));
    assert!(!cluster.hosts[0].node.view().is_member(&cluster.id(worker)));
}

#[test]
fn the_leaseholder_renews_at_half_and_another_publisher_if_it_does_not() {
    let mut cluster = Cluster::new(&[PUBLISHER, PUBLISHER, WORKER]);
    for _ in 0..14 {
        cluster.day();
    }
    assert_eq!(cluster.renewed, [], "more than half is left");
    cluster.day();
    cluster.day();
    let worker = cluster.id(2);
    let by = |cluster: &Cluster| Vec::from_iter(cluster.renewed.iter().filter(|it| it.0 == worker).map(|it| it.1));
    let holder = cluster.hosts[2].node.view().best_claim().unwrap().holder;
    assert_eq!((by(&cluster), cluster.renewed.len()), (vec![holder], 3));

    // The clock of the leaseholder is slow by weeks: it sees no certificate near its end.
    let mut cluster = Cluster::new(&[PUBLISHER, PUBLISHER, WORKER]);
    cluster.minute();
    let holder = cluster.hosts[2].node.view().best_claim().unwrap().holder;
    let slow = (0..2).find(|host| cluster.id(*host) == holder).unwrap();
    cluster.hosts[slow].skew = -(20 * DAY as i64);
    let shown = |cluster: &Cluster| cluster.hosts[2].node.view().node(&worker).unwrap().member.certificate.expires;
    for _ in 0..20 {
        // Its heartbeats are too old to be heard after the nights of this test, so the others
        // publish meanwhile.
        cluster.day();
    }
    assert!(by(&cluster).iter().all(|node| *node == cluster.id(1 - slow)) && !by(&cluster).is_empty());
    assert!(shown(&cluster) > FOUNDED + 40 * DAY);
}

#[test]
fn a_membership_of_ten_years_is_left_as_it_is_until_its_last_days() {
    let mut cluster = Cluster::new(&[PUBLISHER, WORKER]);
    let ten_years = FOUNDED + 3650 * DAY;
    for host in 0..2 {
        let member = cluster.founder.certify_until(&cluster.hosts[host].identity, ten_years).member;
        let chain = member.chain();
        cluster.hosts[host].identity.member = member;
        cluster.hosts[host].node = start(&cluster.hosts[host].identity, 2);
        cluster.event(1 - host, Event::KnownMembers(vec![chain]));
    }
    for _ in 0..40 {
        cluster.day();
    }
    assert_eq!(cluster.renewed, []);
    assert!((0..2).all(|host| cluster.all_list(host, &[])));
    cluster.passed = 3636 * DAY;
    cluster.day();
    cluster.day();
    assert_eq!(cluster.renewed.len(), 2);
}

#[test]
fn workers_renew_no_node_and_an_isolated_publisher_only_itself() {
    let mut cluster = Cluster::new(&[PUBLISHER, WORKER, PUBLISHER]);
    cluster.day();
    cluster.event(0, Event::ShutOut(true));
    cluster.hosts[2].up = false;
    for _ in 0..20 {
        cluster.day();
    }
    let own = cluster.id(0);
    assert_eq!(cluster.renewed, [(own, own)], "its own certificate is renewed in any case");
}
