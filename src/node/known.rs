//! The state that a node has before it hears of others: its settings and what its last run left on
//! disk.

use std::collections::BTreeMap;

use rustbalance_gossip::coordinator::{Event, Preferences, Settings};
use rustbalance_gossip::lease::Timing;
use rustbalance_gossip::liveness::Patience;
use rustbalance_gossip::outage::OutageSecret;
use rustbalance_gossip::record::{PublishedPeriod, Role};
use tracing::info;

use super::NodeError;
use crate::clock::unix_now;
use crate::config::{AnnouncedSettings, ClusterConfig, LiveConfig, NodeConfig};
use crate::keys::{AuthoritySecret, outage_secret};
use crate::link::MemberSet;
use crate::store::Store;
use crate::tor::subprotocols;

/// Identifies one start of the daemon: the number of this start, and a random number that tells two
/// processes with the same key apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boot {
    pub(super) number: u64,
    pub(super) instance: u64,
}

impl Boot {
    /// The gossip generation of this process. It is higher than those of earlier starts, and
    /// differs from that of a process on a copy of the same directory, so that the two hear each
    /// other.
    pub(super) fn generation(self) -> u64 {
        self.number << 16 | self.instance & 0xffff
    }
}

/// The settings of the coordinator.
pub(super) fn settings(
    store: &Store,
    live: &LiveConfig,
    boot: Boot,
    authority: Option<&AuthoritySecret>,
) -> Result<Settings, NodeError> {
    let ClusterConfig { heartbeat, lease_ttl, .. } = live.at_start().cluster;
    let mut settings = Settings::new(boot.number, boot.instance, store.term()?);
    settings.preferences = preferences(&live.announced().borrow(), authority.map(outage_secret));
    settings.restored = store.restored()?.is_some();
    settings.subprotocols = subprotocols::granted();
    settings.patience = Patience { interval: heartbeat, least: heartbeat * 5, most: heartbeat * 20 };
    settings.timing = Timing { ttl: lease_ttl, ..Timing::default() };
    Ok(settings)
}

/// The settings of the coordinator that a reload changes. `secret`: that of publishers, for
/// `hide_outages`.
pub(super) fn preferences(announced: &AnnouncedSettings, secret: Option<OutageSecret>) -> Preferences {
    let AnnouncedSettings { node: NodeConfig { name, priority, weight }, ports, hide_outages, waiting } = announced;
    Preferences {
        name: name.clone(),
        priority: *priority,
        weight: *weight,
        ports: ports.iter().copied().collect(),
        hide_outages: secret.filter(|_| *hide_outages),
        waiting: *waiting,
    }
}

/// The members as of the last run, for the links to start with.
pub(super) fn members(store: &Store) -> Result<MemberSet, NodeError> {
    let unix = unix_now();
    let chains = store.members()?;
    let members = chains.into_iter().filter_map(|chain| chain.verify(store.cluster(), unix).ok());
    let members = members.filter(|member| member.authority_id() == store.membership().authority_id());
    let roles: BTreeMap<_, _> = members.map(|member| (member.node(), member.role())).collect();
    let revoked = store.revocations()?.into_iter().map(|revocation| (revocation.node, revocation)).collect();
    let publishers = roles.iter().filter(|(_, role)| **role == Role::Publisher).map(|(node, _)| *node).collect();
    Ok(MemberSet { members: roles.into_keys().collect(), publishers, revoked, ..MemberSet::default() })
}

/// The first events of the coordinator.
pub(super) fn events(store: &Store) -> Result<Vec<Event>, NodeError> {
    let mut events = vec![Event::KnownMembers(store.members()?)];
    events.extend(store.facts()?.into_iter().map(Event::Fact));
    let published = |(period, revision)| PublishedPeriod { period, revision, confirmed: 0, directories: 0 };
    for service in store.services()? {
        let periods = store.revisions(service)?.into_iter().map(published).collect();
        events.push(Event::Published { service, periods });
    }
    if store.is_draining()? {
        info!(
            name: "draining_since_before",
            "this node drains, as before its restart: it takes no new clients until `rustbalance resume`"
        );
        events.push(Event::Drain);
    }
    Ok(events)
}
