//! The nodes and keys of the vectors: keys from fixed bytes, certificates of a fixed day.

use std::convert::Infallible;

use rand::{TryCryptoRng, TryRng};
use rustbalance::discovery::Discovery;
use rustbalance::join::Token;
use rustbalance::keys::{AuthoritySecret, IdentitySecret, NodeSecret, TokenSecret};
use rustbalance_gossip::id::{ClusterId, InvitationId};
use rustbalance_gossip::record::{
    AuthorityCertificate, Invitation, MEMBERSHIP_SECONDS, Member, MemberCertificate, Role,
};
use rustbalance_gossip::signed::{Sign, Statement, Verified};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::hex;

/// Current time in the vectors, in seconds since the Unix epoch.
pub(crate) const NOW: u64 = 1_800_000_000;
/// Time of the founding of the cluster, in seconds since the Unix epoch.
pub(crate) const FOUNDED: u64 = NOW - 86_400;

/// 32 bytes that count up from `first`.
pub(crate) fn bytes(first: u8) -> [u8; 32] {
    std::array::from_fn(|at| first.wrapping_add(at as u8))
}

fn seed(first: u8) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(bytes(first))
}

/// A random number generator that returns these bytes in turn.
pub(crate) struct FixedRng(pub(crate) std::vec::IntoIter<u8>);

impl FixedRng {
    pub(crate) fn of(parts: &[[u8; 32]]) -> Self {
        Self(parts.concat().into_iter())
    }
}

impl TryRng for FixedRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.next().unwrap().into())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        panic!("the protocol draws no 64-bit numbers");
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        dst.fill_with(|| self.0.next().unwrap());
        Ok(())
    }
}

impl TryCryptoRng for FixedRng {}

/// The keys of one cluster: alpha founded it, beta joins as a worker, gamma as a publisher.
pub(crate) struct VectorKeys {
    pub(crate) master: IdentitySecret,
    pub(crate) authority: AuthoritySecret,
    pub(crate) alpha: NodeSecret,
    pub(crate) beta: NodeSecret,
    pub(crate) gamma: NodeSecret,
    worker_token: TokenSecret,
    publisher_token: TokenSecret,
}

impl VectorKeys {
    pub(crate) fn new() -> Self {
        let mut master = Zeroizing::new([0; 64]);
        master[..32].copy_from_slice(&bytes(0x01));
        master[32..].copy_from_slice(&bytes(0x21));
        master[0] &= 248;
        master[31] = master[31] & 63 | 64;
        Self {
            master: IdentitySecret::from_expanded(&master).unwrap(),
            authority: AuthoritySecret::from_seed(&seed(0x41)),
            alpha: NodeSecret::from_seed(&seed(0x51)),
            beta: NodeSecret::from_seed(&seed(0x61)),
            gamma: NodeSecret::from_seed(&seed(0x71)),
            worker_token: TokenSecret::from_seed(&seed(0x81)),
            publisher_token: TokenSecret::from_seed(&seed(0x91)),
        }
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        ClusterId::named_by(self.master.service_id())
    }

    pub(crate) fn token(&self, role: Role) -> Token {
        let secret = match role {
            Role::Worker => &self.worker_token,
            Role::Publisher => &self.publisher_token,
        };
        Token::new(secret.duplicate(), self.cluster())
    }

    /// An invitation that is not redeemed yet.
    pub(crate) fn invitation(&self, role: Role) -> Invitation {
        Invitation {
            cluster: self.cluster(),
            token: self.token(role).invitation_id(),
            role,
            uses: 1,
            issued: NOW - 600,
            expires: NOW - 600 + 86_400,
            redeemed: Default::default(),
            revoked: false,
        }
    }

    /// The certificate of the authority key, signed with the service's identity key.
    pub(crate) fn authority_certificate(&self) -> Verified<AuthorityCertificate> {
        let authority = self.authority.authority_id();
        sign(AuthorityCertificate { cluster: self.cluster(), authority, issued: FOUNDED }, &self.master)
    }

    /// A member with a certificate signed by the authority.
    pub(crate) fn member(
        &self,
        node: &NodeSecret,
        role: Role,
        issued: u64,
        invitation: Option<InvitationId>,
    ) -> Member {
        let (cluster, expires) = (self.cluster(), issued + MEMBERSHIP_SECONDS);
        let certificate = MemberCertificate { cluster, node: node.node_id(), role, issued, expires, invitation };
        Member { authority: self.authority_certificate(), certificate: sign(certificate, &self.authority) }
    }

    pub(crate) fn founder(&self) -> Member {
        self.member(&self.alpha, Role::Publisher, FOUNDED, None)
    }

    /// Beta as the member that the join in the vectors creates.
    pub(crate) fn worker(&self) -> Member {
        self.member(&self.beta, Role::Worker, NOW, Some(self.token(Role::Worker).invitation_id()))
    }

    /// The discovery key after `generation` revocations; 0 is the key of the founding.
    pub(crate) fn discovery(&self, generation: u32) -> Discovery {
        let first = 0xa1 + 0x10 * generation as u8;
        Discovery::generate(self.cluster(), generation, &self.authority, &mut FixedRng::of(&[bytes(first)])).unwrap()
    }

    /// The secrets and the values derived from them.
    pub(crate) fn describe(&self) -> Value {
        let seeded = |secret: &[u8; 32], public: [u8; 32]| json!({ "seed": hex(secret), "public": hex(&public) });
        let token = |role| {
            let token = self.token(role);
            let mut described = seeded(token.secret().seed(), token.secret().public_key());
            described["text"] = token.text().as_str().into();
            described
        };
        let discovery = |generation| {
            let Discovery { secret, .. } = self.discovery(generation);
            json!({ "secret": hex(secret.as_bytes()), "public": hex(&secret.public().0) })
        };
        json!({
            "master": {
                "expanded": hex(self.master.expanded()),
                "public": hex(&self.master.public_key()),
                "address": self.cluster().to_string(),
            },
            "authority": seeded(self.authority.seed(), self.authority.public_key()),
            "alpha": seeded(self.alpha.seed(), self.alpha.public_key()),
            "beta": seeded(self.beta.seed(), self.beta.public_key()),
            "gamma": seeded(self.gamma.seed(), self.gamma.public_key()),
            "worker_token": token(Role::Worker),
            "publisher_token": token(Role::Publisher),
            "discovery_0": discovery(0),
            "discovery_1": discovery(1),
        })
    }
}

pub(crate) fn sign<T: Statement>(statement: T, key: &dyn Sign) -> Verified<T> {
    Verified::sign(statement, key).unwrap()
}
