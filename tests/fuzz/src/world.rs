//! The fixed cluster of all targets: two publishers, two workers, and two nodes that are not
//! members.

use std::fmt::Write;
use std::path::Path;
use std::sync::OnceLock;

use rustbalance::discovery::Discovery;
use rustbalance::keys::{AuthoritySecret, DiscoverySecret, IdentitySecret, NodeSecret, TokenSecret};
use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::codec;
use rustbalance_gossip::id::{AuthorityId, ClusterId, InvitationId, NodeId};
use rustbalance_gossip::record::{
    AuthorityCertificate, Chain, DiscoveryKey, IntroPoint, Invitation, Member, MemberCertificate, PeriodId, PointNonce,
    RelayId, Revocation, Role, Service,
};
use rustbalance_gossip::signed::{Check, Statement, Verified};
use serde::Serialize;
use zeroize::Zeroizing;

/// Current time on every clock, in seconds since the Unix epoch.
pub(crate) const NOW: u64 = 1_800_000_000;
/// The time period of all descriptors.
pub(crate) const PERIOD: PeriodId = PeriodId { number: 20_000, length_minutes: 1440, offset_seconds: 43_200 };
/// Number of nodes with keys; the first [`MEMBERS`] of them are members.
pub(crate) const NODES: usize = 6;
pub(crate) const MEMBERS: usize = 4;
/// End of all certificates, in seconds since the Unix epoch.
const EXPIRES: u64 = NOW + 86_400;

/// The keys of the cluster and the statements signed with them.
pub(crate) struct TestCluster {
    pub(crate) master: IdentitySecret,
    pub(crate) authority: AuthoritySecret,
    pub(crate) keys: Vec<NodeSecret>,
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) members: Vec<Member>,
    pub(crate) token: TokenSecret,
    pub(crate) discovery: Discovery,
    pub(crate) cluster: ClusterId,
    pub(crate) authority_id: AuthorityId,
    pub(crate) token_id: InvitationId,
}

pub(crate) fn world() -> &'static TestCluster {
    static WORLD: OnceLock<TestCluster> = OnceLock::new();
    WORLD.get_or_init(TestCluster::new)
}

impl TestCluster {
    fn new() -> Self {
        let mut expanded = Zeroizing::new([7; 64]);
        expanded[0] &= 248;
        expanded[31] = expanded[31] & 63 | 64;
        let master = IdentitySecret::from_expanded(&expanded).unwrap();
        let cluster = ClusterId::named_by(master.service_id());
        let authority = AuthoritySecret::from_seed(&Zeroizing::new([2; 32]));
        let token = TokenSecret::from_seed(&Zeroizing::new([5; 32]));
        let token_id = token.invitation_id();
        let keys: Vec<_> = (0..NODES).map(|i| NodeSecret::from_seed(&Zeroizing::new([10 + i as u8; 32]))).collect();
        let nodes: Vec<_> = keys.iter().map(NodeSecret::node_id).collect();
        let certified = AuthorityCertificate { cluster, authority: authority.authority_id(), issued: 7 };
        let certified = Verified::sign(certified, &master).unwrap();
        let member = |i: usize| {
            let role = if i < 2 { Role::Publisher } else { Role::Worker };
            let invitation = (i > 0).then_some(token_id);
            let certificate =
                MemberCertificate { cluster, node: nodes[i], role, issued: NOW - 100, expires: EXPIRES, invitation };
            Member { authority: certified.clone(), certificate: Verified::sign(certificate, &authority).unwrap() }
        };
        let members = (0..MEMBERS).map(member).collect();
        let secret = DiscoverySecret::from_bytes(&Zeroizing::new([6; 32]));
        let key = DiscoveryKey { cluster, generation: 0, public: FixedBytes(secret.public().0) };
        let discovery = Discovery { key: Verified::sign(key, &authority).unwrap(), secret };
        let authority_id = authority.authority_id();
        Self { master, authority, keys, nodes, members, token, discovery, cluster, authority_id, token_id }
    }

    pub(crate) fn chain(&self, i: usize) -> Chain {
        self.members[i].chain()
    }

    /// The token's invitation, for `uses` nodes, not redeemed yet.
    pub(crate) fn invitation(&self, uses: u16) -> Invitation {
        Invitation {
            cluster: self.cluster,
            token: self.token_id,
            role: Role::Worker,
            uses,
            issued: NOW - 200,
            expires: EXPIRES,
            redeemed: Default::default(),
            revoked: false,
        }
    }

    /// The fact of the first service with this sequence number.
    pub(crate) fn service(&self, seq: u64, ports: Vec<u16>) -> Service {
        let (cluster, service) = (self.cluster, self.cluster.first_service());
        Service { cluster, service, seq, issued: NOW, removed: false, ports, settings: Default::default() }
    }

    pub(crate) fn revocation(&self, i: usize) -> Revocation {
        Revocation { cluster: self.cluster, node: self.nodes[i], revoked: NOW }
    }

    /// True for the public key of the cluster, of its authority and of its nodes.
    pub(crate) fn knows(&self, key: &[u8; 32]) -> bool {
        key == self.cluster.public_key()
            || key == self.authority_id.public_key()
            || self.nodes.iter().any(|node| node.public_key() == key)
    }
}

/// A valid introduction point; all its keys follow from `relay`.
pub(crate) fn point(relay: u8) -> IntroPoint {
    let specifier = |kind: u8, body: &[u8]| VarBytes([&[kind, u8::try_from(body.len()).unwrap()], body].concat());
    let session = NodeSecret::from_seed(&Zeroizing::new([relay; 32])).node_id();
    let encryption = DiscoverySecret::from_bytes(&Zeroizing::new([relay.wrapping_add(100); 32])).public();
    let relay = RelayId { rsa: FixedBytes([relay; 20]), ed25519: FixedBytes([relay; 32]) };
    IntroPoint {
        relay,
        link_specifiers: vec![
            specifier(0, &[127, 0, 0, 1, 0x13, 0x88]),
            specifier(2, &relay.rsa.0),
            specifier(3, &relay.ed25519.0),
        ],
        onion_key: FixedBytes([relay.rsa.0[0]; 32]),
        session_key: FixedBytes(*session.public_key()),
        encryption_key: FixedBytes(encryption.0),
    }
}

/// The nonce of an introduction point made by [`point`].
pub(crate) fn nonce(point: &IntroPoint) -> PointNonce {
    PointNonce(FixedBytes(point.session_key.0.first_chunk().copied().unwrap_or_default()))
}

/// Accepts every signature, so that inputs reach the code behind the signature check.
pub(crate) struct Lenient;

impl Check for Lenient {
    fn check(&self, _key: &[u8; 32], _message: &[u8], _signature: &[u8; 64]) -> bool {
        true
    }
}

/// A statement in an envelope with a signature that only [`Lenient`] accepts.
pub(crate) fn unsigned<T: Statement>(signer: &[u8; 32], statement: &T) -> Vec<u8> {
    envelope(signer, &codec::encode(statement).unwrap())
}

/// An envelope around any bytes, with a signature that only [`Lenient`] accepts.
pub(crate) fn envelope(signer: &[u8; 32], statement: &[u8]) -> Vec<u8> {
    signed(signer, statement, [0; 64])
}

/// An envelope around any bytes with this signature.
pub(crate) fn signed(signer: &[u8; 32], statement: &[u8], signature: [u8; 64]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Envelope {
        signer: FixedBytes<32>,
        statement: VarBytes,
        signature: FixedBytes<64>,
    }
    let (signer, statement) = (FixedBytes(*signer), VarBytes(statement.to_vec()));
    codec::encode(&Envelope { signer, statement, signature: FixedBytes(signature) }).unwrap()
}

/// An empty folder, in memory (`/dev/shm`) if possible: syncing costs nothing there.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// A dictionary in libFuzzer's format: the cluster's keys in CBOR and its addresses, which a fuzzer
/// hardly finds by chance.
pub fn dictionary() -> String {
    let world = world();
    let mut text =
        String::from("# The keys and addresses of the cluster in src/world.rs. Written by tests/decoders.rs.\n");
    let keys = [world.cluster.public_key(), world.authority_id.public_key(), world.token_id.public_key()];
    for key in keys.into_iter().chain(world.nodes.iter().map(NodeId::public_key)) {
        let hex: String = key.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        let _ = writeln!(text, "\"\\x58\\x20{hex}\"");
    }
    for address in std::iter::once(world.cluster.to_string()).chain(world.nodes.iter().map(ToString::to_string)) {
        let _ = writeln!(text, "\"{address}\"");
    }
    text
}
