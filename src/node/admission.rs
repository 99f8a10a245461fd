//! The join port. It is open while there are invitations and for a day after the last one expires.
//! Publishers admit joiners; workers carry them to a publisher.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::coordinator::{AdmissionDelay, Coordinator, Event};
use rustbalance_gossip::id::{InvitationId, NodeId};
use rustbalance_gossip::record::{Chain, Invitation, Member, Role};
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::MemberView;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::cluster::Cluster;
use super::supervisor::{PartResult, Supervisor};
use crate::blocking::on_disk;
use crate::clock::unix_now;
use crate::config::Targets;
use crate::counters::{Counter, Counters};
use crate::discovery::{Discovery, Offer};
use crate::join::{self, Admissions, Admitter, Door, DoorLimits, JoinedService, MAX_PORTS};
use crate::join::{JoinRefusal, Outcome, Publisher, Redemption};
use crate::link::{CarriedJoin, Links};
use crate::places::Places;
use crate::store::Store;
use crate::stream::BoxStream;
use crate::tor::{Incoming, Rejection};

/// Time that the port stays open after the last invitation has expired, in seconds. A late joiner,
/// or one whose token is used up, gets the reason instead of a closed port.
const OPEN_AFTER_EXPIRY: u64 = 24 * 3600;
/// Time limit for accepting a joiner's stream.
const ACCEPT_LIMIT: Duration = Duration::from_secs(30);
/// Number of publishers that a worker tries for one joiner.
const TRIES: usize = 3;

/// Answers joiners at the join port of this node.
pub(super) struct JoinPort {
    cluster: Cluster,
    links: Arc<Links>,
    join_port: Door,
    /// `None` on workers.
    admitter: Option<PublisherAdmitter>,
    /// Joiners that dialled this node, at the same time; Tor rejects the streams beyond.
    places: Places,
    limits: watch::Receiver<DoorLimits>,
    counters: Counters,
}

/// The inputs of [`JoinPort::start`].
pub(super) struct AdmissionInputs {
    pub(super) cluster: Cluster,
    pub(super) links: Arc<Links>,
    pub(super) store: Arc<Store>,
    /// The targets of the services that this node serves.
    pub(super) targets: watch::Receiver<Targets>,
    /// The newest discovery key.
    pub(super) discovery: watch::Receiver<Option<Arc<Discovery>>>,
    /// The secrets to admit with; `None` on a worker, which carries joiners to a publisher.
    pub(super) publisher: Option<Publisher>,
    /// Joiners that workers carry here.
    pub(super) carried: mpsc::Receiver<CarriedJoin>,
    pub(super) limits: watch::Receiver<DoorLimits>,
    pub(super) counters: Counters,
}

impl JoinPort {
    /// Starts to answer the joiners that workers carry here; the result answers those that dial
    /// this node.
    pub(super) fn start(needs: AdmissionInputs, parts: &mut Supervisor) -> Arc<Self> {
        let AdmissionInputs { cluster, links, store, targets, discovery, publisher, carried, limits, counters } = needs;
        let admitter = publisher.map(|publisher| PublisherAdmitter {
            publisher,
            cluster: cluster.clone(),
            store,
            targets,
            discovery,
        });
        let (join_port, places) = (Door::new(limits.clone()), Places::default());
        let port = Arc::new(Self { cluster, links, join_port, admitter, places, limits, counters });
        parts.spawn("carried joins", answer_carried(carried, Arc::clone(&port)));
        port
    }

    /// Answers a stream to the join port of the cluster's first service.
    pub(super) async fn answer(&self, incoming: Incoming) {
        let open = self.cluster.look(|coordinator, now| {
            let recent = |invitation: &Invitation| now.unix <= invitation.expires.saturating_add(OPEN_AFTER_EXPIRY);
            coordinator.view().invitations().iter().any(recent)
        });
        let place = self.places.take(self.limits.borrow().at_once);
        if !open || place.is_none() || !self.may_carry() {
            self.counters.count(if open { Counter::JoinOverLimit } else { Counter::JoinClosed });
            incoming.request.reject(Rejection::Unavailable).await;
            return;
        }
        match tokio::time::timeout(ACCEPT_LIMIT, incoming.request.accept()).await {
            Ok(Ok(stream)) => match &self.admitter {
                Some(admitter) => self.admit(stream, admitter).await,
                None => self.carry(stream).await,
            },
            Ok(Err(error)) => debug!(%error, "the stream of a joiner cannot be accepted"),
            Err(_) => debug!("the stream of a joiner was not accepted in time"),
        }
    }

    /// False if this node is a worker and exceeds its share of the rate of carried joins: strangers
    /// must not fill the publishers' links. A publisher carries none; [`Door::admit`] limits its
    /// rate.
    fn may_carry(&self) -> bool {
        let worker = |member: &&MemberView| member.alive && member.member.role() == Role::Worker;
        self.admitter.is_some() || {
            let workers = self.cluster.look(|coordinator, _| coordinator.view().members().filter(worker).count());
            self.join_port.may_carry(Instant::now(), workers)
        }
    }

    /// Answers a joiner that a worker has carried here; refuses it if this node is a worker.
    pub(super) async fn answer_carried(&self, stream: BoxStream) {
        match &self.admitter {
            Some(admitter) => self.admit(stream, admitter).await,
            None => self.refuse(stream, JoinRefusal::NoPublisher).await,
        }
    }

    async fn refuse(&self, stream: BoxStream, refusal: JoinRefusal) {
        self.counters.count(refusal.counter());
        join::refuse(stream, refusal).await;
    }

    async fn admit(&self, stream: BoxStream, admitter: &PublisherAdmitter) {
        match self.join_port.admit(stream, admitter).await {
            Some(Outcome::Admitted { node, role, again }) => info!(
                name: "member_admitted",
                node = %node.short(), %role, again,
                "admitted a new member"
            ),
            Some(Outcome::Refused(refusal)) => {
                self.counters.count(refusal.counter());
                // Strangers choose how often this happens, so it is counted and logged at debug
                // level only.
                debug!(%refusal, "refused a joiner");
            }
            None => {
                self.counters.count(Counter::JoinUnfinished);
                debug!("a joiner left before an answer");
            }
        }
    }

    /// Carries the joiner's frames, unread, to a publisher that is alive.
    async fn carry(&self, joiner: BoxStream) {
        for publisher in self.cluster.look(|coordinator, _| alive_publishers(coordinator)).into_iter().take(TRIES) {
            match self.links.carry_join(publisher).await {
                Ok(link) => {
                    let (there, back) = join::carry(joiner, link).await;
                    debug!(publisher = %publisher.short(), there, back, "carried a join");
                    return;
                }
                Err(error) => debug!(publisher = %publisher.short(), %error, "cannot carry a join to this publisher"),
            }
        }
        debug!("no publisher can be reached, so no node can join through this one");
        self.refuse(joiner, JoinRefusal::NoPublisher).await;
    }
}

/// Answers the joiners that workers carry here, until the links end.
async fn answer_carried(mut carried: mpsc::Receiver<CarriedJoin>, port: Arc<JoinPort>) -> PartResult {
    while let Some(CarriedJoin { from, stream }) = carried.recv().await {
        debug!(from = %from.short(), "a joiner is carried here");
        // Bounded by the links' own limit on carried joins.
        let port = Arc::clone(&port);
        tokio::spawn(async move { port.answer_carried(stream).await });
    }
    Ok(())
}

/// The other publishers that are alive, the leaseholder first.
fn alive_publishers(coordinator: &Coordinator) -> Vec<NodeId> {
    let view = coordinator.view();
    let holder = view.best_claim().map(|claim| claim.holder);
    let alive = view.members().filter(|member| member.alive && member.member.role() == Role::Publisher);
    let mut publishers: Vec<_> = alive.map(|member| member.node()).filter(|node| *node != view.me()).collect();
    publishers.sort_by_key(|node| Some(*node) != holder);
    publishers
}

/// The publisher's side of joins.
struct PublisherAdmitter {
    publisher: Publisher,
    cluster: Cluster,
    store: Arc<Store>,
    /// The targets of the services that this node serves. A new node receives their virtual ports;
    /// for the first service, also the ports that other publishers announce.
    targets: watch::Receiver<Targets>,
    /// The newest discovery key.
    discovery: watch::Receiver<Option<Arc<Discovery>>>,
}

#[async_trait]
impl Admitter for PublisherAdmitter {
    fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    fn unix(&self) -> u64 {
        unix_now()
    }

    fn with_admissions(&self, decide: &mut dyn FnMut(&dyn Admissions)) {
        self.cluster.look(|coordinator, now| decide(&AdmissionState { coordinator, now, admitter: self }));
    }

    async fn record(&self, redemption: &Redemption) -> bool {
        let invitation = std::slice::from_ref(&redemption.invitation);
        if let Err(error) = on_disk(|| self.store.put_invitations(invitation, unix_now())) {
            warn!(name: "member_admit_failed", %error, "cannot admit a new member: the redemption cannot be stored");
            return false;
        }
        let known = Event::KnownMembers(vec![redemption.member.chain()]);
        self.cluster.send_event_and_wait(Event::Fact(redemption.invitation.clone().into())).await.is_ok()
            && self.cluster.send_event_and_wait(known).await.is_ok()
    }
}

/// The state of the cluster during one decision. It is all in memory: the decision is made inside
/// [`Cluster::look`].
struct AdmissionState<'a> {
    coordinator: &'a Coordinator,
    now: Now,
    admitter: &'a PublisherAdmitter,
}

impl Admissions for AdmissionState<'_> {
    fn invitation(&self, id: &InvitationId) -> Option<Invitation> {
        self.coordinator.invitation(id).cloned()
    }

    fn member(&self, node: &NodeId) -> Option<Member> {
        self.coordinator.view().member(node).map(|member| member.member.clone())
    }

    fn is_revoked(&self, node: &NodeId) -> bool {
        self.coordinator.view().revoked(node)
    }

    fn postponed(&self, role: Role) -> Option<JoinRefusal> {
        self.coordinator.may_admit(role, self.now).err().map(|missing| match missing {
            AdmissionDelay::Isolated | AdmissionDelay::Starting(_) => JoinRefusal::NotYet,
            AdmissionDelay::Silent(node) => JoinRefusal::Silent(node),
        })
    }

    fn chains(&self) -> Vec<Chain> {
        let mut members: Vec<_> = self.coordinator.view().members().collect();
        members.sort_by_key(|member| (!member.alive, member.member.role()));
        members.into_iter().map(|member| member.member.chain()).collect()
    }

    fn services(&self) -> Vec<JoinedService> {
        let others = self.coordinator.view().members().filter(|member| {
            member.alive && member.member.role() == Role::Publisher && member.node() != self.coordinator.view().me()
        });
        let of_others = others.filter_map(|member| member.card()).flat_map(|card| card.ports.iter().copied());
        let first = self.admitter.publisher.membership.certificate.cluster.first_service();
        let ports = self.admitter.targets.borrow().ports(first);
        let own = |service| ports.get(&service).cloned().unwrap_or_default();
        let mut ports = own(first);
        for port in of_others {
            if !ports.contains(&port) && ports.len() < MAX_PORTS {
                ports.push(port);
            }
        }
        let services = self.admitter.publisher.services.iter().map(|secrets| secrets.service);
        let further = services.filter(|service| *service != first);
        let further = further.map(|service| JoinedService { service, ports: own(service) });
        std::iter::once(JoinedService { service: first, ports }).chain(further).collect()
    }

    fn discovery(&self) -> Option<Offer> {
        self.admitter.discovery.borrow().as_ref().map(|newest| newest.offer())
    }
}
