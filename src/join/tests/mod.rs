//! Whole joins, against an in-memory publisher.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::rng;
use rustbalance_gossip::id::{ClusterId, InvitationId, NodeId, ServiceId};
use rustbalance_gossip::record::{AuthorityCertificate, Chain, Invitation, Member, MemberCertificate, Role};
use rustbalance_gossip::signed::Verified;

use super::*;
use crate::discovery::{Discovery, Offer};
use crate::keys::{AuthoritySecret, IdentitySecret, NodeSecret, PointSeed, ServiceSecrets};

mod attacks;
mod disk;
mod services;
mod streams;
mod verdicts;

/// The time in the tests, in seconds since the epoch.
const NOW: u64 = 1_800_000_000;

/// The state of one publisher.
#[derive(Default)]
struct PublisherState {
    invitations: BTreeMap<InvitationId, Invitation>,
    members: BTreeMap<NodeId, Member>,
    revoked: BTreeSet<NodeId>,
    recorded: Vec<Redemption>,
    /// See [`Admissions::postponed`].
    postponed: Option<JoinRefusal>,
    /// The services that the answer lists; `None` for those whose secrets `us` has.
    named: Option<Vec<ServiceId>>,
}

/// A publisher with its state.
struct TestPublisher {
    us: Publisher,
    discovery: Discovery,
    known: Mutex<PublisherState>,
    broken_disk: AtomicBool,
}

impl TestPublisher {
    fn new() -> Self {
        Self::beside(IdentitySecret::generate(&mut rng()), AuthoritySecret::generate(&mut rng()), Role::Publisher)
    }

    /// A node of the cluster that has these keys.
    fn beside(master: IdentitySecret, authority: AuthoritySecret, role: Role) -> Self {
        let node = NodeSecret::generate(&mut rng());
        let cluster = ClusterId::named_by(master.service_id());
        let certificate = AuthorityCertificate { cluster, authority: authority.authority_id(), issued: NOW };
        let expires = NOW + 1_000_000;
        let founder = MemberCertificate { cluster, node: node.node_id(), role, issued: NOW, expires, invitation: None };
        let membership = Member {
            authority: Verified::sign(certificate, &master).unwrap(),
            certificate: Verified::sign(founder, &authority).unwrap(),
        };
        let discovery = Discovery::generate(cluster, 3, &authority, &mut rng()).unwrap();
        Self {
            us: Publisher { membership, node, authority, services: vec![ServiceSecrets::of(master)] },
            discovery,
            known: Mutex::default(),
            broken_disk: AtomicBool::new(false),
        }
    }

    fn cluster(&self) -> ClusterId {
        self.us.membership.certificate.cluster
    }

    /// The identity key of the first service.
    fn master(&self) -> &IdentitySecret {
        self.us.services[0].identity().unwrap()
    }

    fn invite(&self, role: Role, uses: u16) -> Token {
        let terms = Terms { role, uses, lifetime: Duration::from_secs(3600) };
        let (token, invitation) = invite(self.cluster(), &self.us.authority, terms, NOW, &mut rng()).unwrap();
        self.known.lock().invitations.insert(invitation.token, (*invitation).clone());
        token
    }

    fn change(&self, token: &Token, change: impl FnOnce(&mut Invitation)) {
        change(self.known.lock().invitations.get_mut(&token.invitation_id()).unwrap());
    }

    fn write(&self, redemption: &Redemption) {
        let mut known = self.known.lock();
        known.invitations.insert(redemption.invitation.token, (*redemption.invitation).clone());
        known.members.insert(redemption.member.node(), redemption.member.clone());
        known.recorded.push(redemption.clone());
    }

    fn recorded(&self) -> usize {
        self.known.lock().recorded.len()
    }

    /// Passes a frame to an admission, and records redemptions at once. Returns the frame to send
    /// and the outcome.
    fn receive(&self, admission: &mut Admission, bytes: &[u8], unix: u64) -> (Option<Vec<u8>>, Option<Outcome>) {
        let mut effects = admission.handle(Event::Frame(bytes), unix, &self.us, &Snapshot(self));
        if let [Effect::Record(redemption)] = effects.as_slice() {
            let redemption = redemption.clone();
            self.write(&redemption);
            effects = admission.handle(Event::Recorded(true), unix, &self.us, &Snapshot(self));
        }
        let (mut sent, mut outcome) = (None, None);
        for effect in effects {
            match effect {
                Effect::Send(frame) => assert!(sent.replace(frame).is_none()),
                Effect::Close(how) => outcome = Some(how),
                Effect::Record(_) => panic!("recorded twice"),
            }
        }
        (sent, outcome)
    }

    /// Runs a whole join between the two state machines.
    fn join_at(&self, token: &Token, node: &NodeSecret, theirs: u64, ours: u64) -> Result<Joined, JoinError> {
        let (mut joiner, mut frame) = Joiner::new(token, node, self.cluster(), fresh())?;
        let mut admission = Admission::new(fresh());
        loop {
            let (answer, _) = self.receive(&mut admission, &frame, ours);
            match joiner.handle(&answer.unwrap(), theirs)? {
                Step::Send(next) => frame = next,
                Step::Joined(joined) => return Ok(*joined),
            }
        }
    }

    fn join(&self, token: &Token, node: &NodeSecret) -> Result<Joined, JoinError> {
        self.join_at(token, node, NOW, NOW)
    }

    fn refusal(&self, token: &Token, node: &NodeSecret) -> JoinRefusal {
        refusal(self.join(token, node))
    }
}

struct Snapshot<'a>(&'a TestPublisher);

impl Admissions for Snapshot<'_> {
    fn invitation(&self, id: &InvitationId) -> Option<Invitation> {
        self.0.known.lock().invitations.get(id).cloned()
    }
    fn member(&self, node: &NodeId) -> Option<Member> {
        self.0.known.lock().members.get(node).cloned()
    }
    fn is_revoked(&self, node: &NodeId) -> bool {
        self.0.known.lock().revoked.contains(node)
    }
    fn postponed(&self, _: Role) -> Option<JoinRefusal> {
        self.0.known.lock().postponed.clone()
    }
    fn chains(&self) -> Vec<Chain> {
        let known = self.0.known.lock();
        std::iter::once(&self.0.us.membership).chain(known.members.values()).map(Member::chain).collect()
    }
    fn services(&self) -> Vec<JoinedService> {
        let named = self.0.known.lock().named.clone();
        let services = named.unwrap_or_else(|| self.0.us.services.iter().map(|of| of.service).collect());
        services.into_iter().map(|service| JoinedService { service, ports: vec![80, 443] }).collect()
    }
    fn discovery(&self) -> Option<Offer> {
        Some(self.0.discovery.offer())
    }
}

#[async_trait]
impl Admitter for TestPublisher {
    fn publisher(&self) -> &Publisher {
        &self.us
    }
    fn unix(&self) -> u64 {
        NOW
    }
    fn with_admissions(&self, decide: &mut dyn FnMut(&dyn Admissions)) {
        decide(&Snapshot(self));
    }
    async fn record(&self, redemption: &Redemption) -> bool {
        // As slow as a disk: a joiner that did not wait for its turn would be admitted meanwhile.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let works = !self.broken_disk.load(Ordering::Relaxed);
        if works {
            self.write(redemption);
        }
        works
    }
}

fn fresh() -> Fresh {
    Fresh::generate(&mut rng())
}

fn node() -> NodeSecret {
    NodeSecret::generate(&mut rng())
}

fn refusal(result: Result<Joined, JoinError>) -> JoinRefusal {
    match result {
        Err(JoinError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

fn contains(bytes: &[u8], secret: &[u8]) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret)
}
