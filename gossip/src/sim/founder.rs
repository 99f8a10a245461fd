//! Makes clusters for tests: keys derived from small numbers, certificates, records of any node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ed25519_dalek::SigningKey;

use crate::address::mesh_address;
use crate::bytes::{FixedBytes, VarBytes};
use crate::id::{AuthorityId, ClusterId, InvitationId, NodeId, ServiceId};
use crate::record::{
    AuthorityCertificate, Fitness, Heartbeat, IntroPoint, IntroPoints, Invitation, Lease, Member, MemberCertificate,
    NodeCard, NodeReport, Phase, PointNonce, ProblemCode, RelayId, Renewal, Revocation, Role, ServedPoint, Service,
};
use crate::signed::{Sign, Statement, Verified, sign_unknown_kind};

/// When every simulated cluster is founded, in seconds since the Unix epoch.
pub const FOUNDED: u64 = 1_800_000_000;

/// Lifetime of member certificates: a year, in seconds.
const YEAR: u64 = 365 * 24 * 3600;

fn key(label: u8, number: u32) -> SigningKey {
    let mut seed = [label; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

/// The holder of the authority key of a cluster.
#[derive(Debug, Clone)]
pub struct Founder {
    authority: SigningKey,
    certificate: Verified<AuthorityCertificate>,
}

/// A node's key and certificates.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The node's secret key.
    pub key: SigningKey,
    /// The node's certificates.
    pub member: Member,
}

impl Founder {
    /// The founder of the `number`th cluster.
    pub fn new(number: u32) -> Self {
        Self::with_authority(number, number)
    }

    /// The `number`th cluster with the `other`th authority, which its master key has certified too.
    pub fn with_authority(number: u32, other: u32) -> Self {
        let (master, authority) = (key(b'm', number), key(b'a', other));
        let cluster = ClusterId::named_by(ServiceId::from_public_key(master.public_key()));
        let authority_id = AuthorityId::from_public_key(authority.public_key());
        let statement = AuthorityCertificate { cluster, authority: authority_id, issued: FOUNDED };
        Self { certificate: sign(statement, &master), authority }
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.certificate.cluster
    }

    /// The `number`th service; the key of number 0 is the cluster's id.
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

    /// The `number`th node with this role, admitted at the founding without an invitation.
    pub fn node(&self, number: u32, role: Role) -> Identity {
        self.admit(number, role, FOUNDED, None)
    }

    /// The `number`th node, admitted with this invitation; `issued` in seconds since the Unix
    /// epoch.
    pub fn admit(&self, number: u32, role: Role, issued: u64, invitation: Option<InvitationId>) -> Identity {
        let key = key(b'n', number);
        let node = NodeId::from_public_key(key.public_key());
        let expires = issued + YEAR;
        let statement = MemberCertificate { cluster: self.cluster(), node, role, issued, expires, invitation };
        let certificate = sign(statement, &self.authority);
        Identity { key, member: Member { authority: self.certificate.clone(), certificate } }
    }

    /// An encoded statement signed by the authority in a context that this version does not know.
    pub fn sign_unknown_kind(&self, context: &str, statement: Vec<u8>) -> Vec<u8> {
        sign_unknown_kind(context, statement, &self.authority).unwrap()
    }

    /// The `number`th invitation, with this number of uses and these redeemers.
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

    /// The node with another end of its certificate, in seconds since the Unix epoch.
    pub fn certify_until(&self, node: &Identity, expires: u64) -> Identity {
        let certificate = MemberCertificate { expires, ..(*node.member.certificate).clone() };
        let certificate = sign(certificate, &self.authority);
        Identity { key: node.key.clone(), member: Member { certificate, ..node.member.clone() } }
    }

    /// The fact that the node's certificate is renewed until `expires`, in seconds since the Unix
    /// epoch.
    pub fn renew(&self, node: &Identity, expires: u64) -> Verified<Renewal> {
        sign(Renewal::of(&self.certify_until(node, expires).member.certificate), &self.authority)
    }

    /// The fact that carries a certificate that a coordinator asks to sign.
    pub fn sign_renewal(&self, certificate: MemberCertificate) -> Verified<Renewal> {
        sign(Renewal::of(&sign(certificate, &self.authority)), &self.authority)
    }

    /// Signs an invitation, such as one merged from several versions.
    pub fn sign_invitation(&self, invitation: Invitation) -> Verified<Invitation> {
        sign(invitation, &self.authority)
    }

    /// The fact that a node is revoked.
    pub fn revoke(&self, node: NodeId) -> Verified<Revocation> {
        sign(Revocation { cluster: self.cluster(), node, revoked: FOUNDED }, &self.authority)
    }
}

/// Signs a statement. Panics if it cannot be encoded.
pub fn sign<T: Statement>(statement: T, key: &SigningKey) -> Verified<T> {
    Verified::sign(statement, key).expect("records can be encoded")
}

impl Identity {
    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.member.node()
    }

    /// The id of the node's cluster.
    pub fn cluster(&self) -> ClusterId {
        self.member.authority.cluster
    }

    /// A card with this priority, weight 10 and port 80.
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

    /// A heartbeat dated at the founding of the cluster.
    pub fn beat(&self, seq: u64, phase: Phase) -> Heartbeat {
        Heartbeat { cluster: self.cluster(), node: self.node(), seq, phase, hears: 0, unix: FOUNDED, instance: 0 }
    }

    /// A report with this name and these problems. Panics if it is not a name.
    pub fn report(&self, seq: u64, name: Option<&str>, problems: Vec<ProblemCode>) -> NodeReport {
        let name = name.map(|name| name.parse().expect("a name"));
        NodeReport { cluster: self.cluster(), node: self.node(), seq, name, problems }
    }

    /// A lease with priority 100.
    pub fn lease(&self, seq: u64, term: u64, ttl: Duration) -> Lease {
        let ttl_ms = ttl.as_millis() as u32;
        Lease { cluster: self.cluster(), holder: self.node(), seq, term, priority: 100, ttl_ms }
    }

    /// The first service, whose key is the cluster's id.
    pub fn service(&self) -> ServiceId {
        self.cluster().first_service()
    }

    /// The node's points for its first service, as healthy.
    pub fn points(&self, seq: u64, points: Vec<IntroPoint>) -> IntroPoints {
        let nonces = points.iter().map(nonce).collect();
        let (cluster, node, service) = (self.cluster(), self.node(), self.service());
        IntroPoints { cluster, node, seq, service, fitness: Fitness::Healthy, points, nonces, subprotocols: Vec::new() }
    }
}

/// The `number`th relay.
pub fn relay(number: u32) -> RelayId {
    let (mut rsa, mut ed25519) = ([9; 20], [9; 32]);
    rsa[..4].copy_from_slice(&number.to_be_bytes());
    ed25519[..4].copy_from_slice(&number.to_be_bytes());
    RelayId { rsa: FixedBytes(rsa), ed25519: FixedBytes(ed25519) }
}

/// An introduction point at the `at`th relay, with a session key derived from `number`.
pub fn point(at: u32, number: u32) -> IntroPoint {
    let mut session = [5; 32];
    // Scrambled, so that the order of session keys is not the order of the numbers.
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

/// The same point as its node announces it, with its nonce.
pub fn served(point: IntroPoint) -> ServedPoint {
    ServedPoint { nonce: nonce(&point), point }
}

fn nonce(point: &IntroPoint) -> PointNonce {
    let mut nonce = [0; 16];
    nonce.copy_from_slice(&point.session_key.0[..16]);
    PointNonce(FixedBytes(nonce))
}
