//! Makes clusters for tests: keys from small numbers, certificates, records of anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ed25519_dalek::SigningKey;

use crate::address::mesh_address;
use crate::bytes::{FixedBytes, VarBytes};
use crate::id::{AuthorityId, ClusterId, InvitationId, NodeId, ServiceId};
use crate::record::{
    AuthorityCertificate, Fitness, Heartbeat, IntroPoint, IntroPoints, Invitation, Lease, Member, MemberCertificate,
    NodeCard, Phase, PointNonce, RelayId, Revocation, Role, ServedPoint, Service,
};
use crate::signed::{Sign, Statement, Verified, sign_foreign};

/// Seconds since the epoch at which every simulated cluster is founded.
pub const FOUNDED: u64 = 1_800_000_000;

/// A year, in seconds: how long member certificates are good.
const YEAR: u64 = 365 * 24 * 3600;

fn key(label: u8, number: u32) -> SigningKey {
    let mut seed = [label; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

/// Whoever holds all the keys of a cluster.
#[derive(Debug, Clone)]
pub struct Founder {
    authority: SigningKey,
    certificate: Verified<AuthorityCertificate>,
}

/// A node's keys and what proves its membership.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its key.
    pub key: SigningKey,
    /// Its certificates.
    pub member: Member,
}

impl Founder {
    /// The cluster of this number.
    pub fn new(number: u32) -> Self {
        Self::with_authority(number, number)
    }

    /// The same cluster, whose address has certified the `other`th authority too.
    pub fn with_authority(number: u32, other: u32) -> Self {
        let (master, authority) = (key(b'm', number), key(b'a', other));
        let cluster = ClusterId::named_by(ServiceId::from_public_key(master.public_key()));
        let authority_id = AuthorityId::from_public_key(authority.public_key());
        let statement = AuthorityCertificate { cluster, authority: authority_id, issued: FOUNDED };
        Self { certificate: sign(statement, &master), authority }
    }

    /// The cluster's name.
    pub fn cluster(&self) -> ClusterId {
        self.certificate.cluster
    }

    /// The `number`th service; the first, 0, names the cluster.
    pub fn service(&self, number: u32) -> ServiceId {
        match number {
            0 => self.cluster().first_service(),
            number => ServiceId::from_public_key(key(b's', number).public_key()),
        }
    }

    /// The fact that the cluster has the `number`th service.
    pub fn serve(&self, number: u32) -> Verified<Service> {
        let (cluster, service, settings) = (self.cluster(), self.service(number), BTreeMap::new());
        let statement =
            Service { cluster, service, seq: 1, issued: FOUNDED, removed: false, ports: vec![80], settings };
        sign(statement, &self.authority)
    }

    /// The `number`th node, a founder of that role.
    pub fn node(&self, number: u32, role: Role) -> Identity {
        self.admit(number, role, FOUNDED, None)
    }

    /// The `number`th node, admitted at that time with that invitation.
    pub fn admit(&self, number: u32, role: Role, issued: u64, invitation: Option<InvitationId>) -> Identity {
        let key = key(b'n', number);
        let node = NodeId::from_public_key(key.public_key());
        let expires = issued + YEAR;
        let statement = MemberCertificate { cluster: self.cluster(), node, role, issued, expires, invitation };
        let certificate = sign(statement, &self.authority);
        Identity { key, member: Member { authority: self.certificate.clone(), certificate } }
    }

    /// What the authority says in a way that this version does not know.
    pub fn sign_foreign(&self, context: &str, statement: Vec<u8>) -> Vec<u8> {
        sign_foreign(context, statement, &self.authority).unwrap()
    }

    /// A version of the `number`th invitation.
    pub fn invitation(&self, number: u32, uses: u16, redeemed: &[NodeId]) -> Verified<Invitation> {
        let token = InvitationId::from_public_key(key(b't', number).public_key());
        let statement = Invitation {
            cluster: self.cluster(),
            token,
            role: Role::Worker,
            uses,
            issued: FOUNDED,
            expires: FOUNDED + 24 * 3600,
            redeemed: redeemed.iter().copied().collect::<BTreeSet<_>>(),
            revoked: false,
        };
        sign(statement, &self.authority)
    }

    /// A merger of several versions, signed as one.
    pub fn sign_invitation(&self, invitation: Invitation) -> Verified<Invitation> {
        sign(invitation, &self.authority)
    }

    /// The end of a node's membership.
    pub fn revoke(&self, node: NodeId) -> Verified<Revocation> {
        sign(Revocation { cluster: self.cluster(), node, revoked: FOUNDED }, &self.authority)
    }
}

/// Signs; a test has no use for a record that cannot be encoded.
pub fn sign<T: Statement>(statement: T, key: &SigningKey) -> Verified<T> {
    Verified::sign(statement, key).expect("records can be encoded")
}

impl Identity {
    /// Its id.
    pub fn node(&self) -> NodeId {
        self.member.node()
    }

    /// Its cluster.
    pub fn cluster(&self) -> ClusterId {
        self.member.authority.cluster
    }

    /// A card of that priority.
    pub fn card(&self, seq: u64, priority: u8) -> NodeCard {
        NodeCard {
            cluster: self.cluster(),
            node: self.node(),
            seq,
            chain: self.member.chain(),
            address: mesh_address(&self.node()),
            priority,
            weight: 10,
            version: "0".into(),
            ports: vec![80],
        }
    }

    /// A heartbeat of the time of the founding.
    pub fn beat(&self, seq: u64, phase: Phase) -> Heartbeat {
        Heartbeat { cluster: self.cluster(), node: self.node(), seq, phase, hears: 0, unix: FOUNDED, instance: 0 }
    }

    /// A lease.
    pub fn lease(&self, seq: u64, term: u64, ttl: Duration) -> Lease {
        let ttl_ms = ttl.as_millis() as u32;
        Lease { cluster: self.cluster(), holder: self.node(), seq, term, priority: 100, ttl_ms }
    }

    /// The service that names the cluster.
    pub fn service(&self) -> ServiceId {
        self.cluster().first_service()
    }

    /// Intro points of a node that is healthy, for that service.
    pub fn points(&self, seq: u64, points: Vec<IntroPoint>) -> IntroPoints {
        let nonces = points.iter().map(nonce).collect();
        let (cluster, node, service) = (self.cluster(), self.node(), self.service());
        IntroPoints { cluster, node, seq, service, fitness: Fitness::Healthy, points, nonces }
    }
}

/// The relay of this number.
pub fn relay(number: u32) -> RelayId {
    let (mut rsa, mut ed25519) = ([9; 20], [9; 32]);
    rsa[..4].copy_from_slice(&number.to_be_bytes());
    ed25519[..4].copy_from_slice(&number.to_be_bytes());
    RelayId { rsa: FixedBytes(rsa), ed25519: FixedBytes(ed25519) }
}

/// An intro point at the relay of this number, its keys made of the second number.
pub fn point(at: u32, number: u32) -> IntroPoint {
    let mut session = [5; 32];
    // Spread, so that the order of session keys is not the order of numbers.
    session[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
    session[4..8].copy_from_slice(&number.to_be_bytes());
    IntroPoint {
        relay: relay(at),
        link_specifiers: vec![VarBytes(vec![0; 8])],
        onion_key: FixedBytes([1; 32]),
        session_key: FixedBytes(session),
        encryption_key: FixedBytes([2; 32]),
    }
}

/// The same as its node tells of it.
pub fn served(point: IntroPoint) -> ServedPoint {
    ServedPoint { nonce: nonce(&point), point }
}

fn nonce(point: &IntroPoint) -> PointNonce {
    let mut nonce = [0; 16];
    nonce.copy_from_slice(&point.session_key.0[..16]);
    PointNonce(FixedBytes(nonce))
}
