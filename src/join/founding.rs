//! Writing the state directory of a new node: a founder's, or a joiner's. Interrupted at any moment, the same call
//! finishes it with the same keys.

use rand::CryptoRng;
use rustbalance_gossip::codec::DecodeError;
use rustbalance_gossip::id::ClusterId;
use rustbalance_gossip::record::{AuthorityCertificate, Chain, Member, MemberCertificate, Role};
use rustbalance_gossip::signed::{Statement, Verified};

use super::joiner::Joined;
use crate::discovery::{Discovery, KeyRing};
use crate::keys::{AuthoritySecret, MasterSecret, NodeSecret, PointSeed, ServiceSecrets};
use crate::store::{Beginning, Contents, Draft, Store, StoreError};

/// How long a membership lasts, in seconds: ten years. It ends before that by eviction alone.
pub const MEMBERSHIP_SECONDS: u64 = 10 * 365 * 86_400;

/// Founds a cluster of one, at `unix` seconds since the epoch, with an imported master key or a new one.
///
/// # Errors
/// As [`found_with`].
pub fn found(
    draft: Draft,
    imported: Option<MasterSecret>,
    unix: u64,
    rng: &mut impl CryptoRng,
) -> Result<Store, StoreError> {
    found_with(draft, imported, &[], unix, rng)
}

/// The same for a cluster that serves the addresses of `further` keys, too.
///
/// # Errors
/// The state directory cannot be written, or holds what a join has left.
pub fn found_with(
    mut draft: Draft,
    imported: Option<MasterSecret>,
    further: &[MasterSecret],
    unix: u64,
    rng: &mut impl CryptoRng,
) -> Result<Store, StoreError> {
    // What an interrupted founding left is used again; what a join left is not ours to use.
    let left = match draft.begun() {
        Some((Beginning::Founding, _)) => draft.identity_secret()?,
        _ => None,
    };
    let master = imported.or(left).unwrap_or_else(|| MasterSecret::generate(rng));
    let cluster = ClusterId::named_by(master.service_id());
    draft.begin(Beginning::Founding, cluster)?;
    let node = draft.node_secret(|| NodeSecret::generate(rng))?;
    let authority = draft.authority_secret()?.unwrap_or_else(|| AuthoritySecret::generate(rng));
    let discovery = match draft.discovery(authority.authority_id())? {
        Some(left) => left,
        None => KeyRing::new(Discovery::generate(cluster, 0, &authority, rng).map_err(unsigned)?),
    };

    let certified = AuthorityCertificate { cluster, authority: authority.authority_id(), issued: unix };
    let founder = MemberCertificate {
        cluster,
        node: node.node_id(),
        role: Role::Publisher,
        issued: unix,
        expires: unix.saturating_add(MEMBERSHIP_SECONDS),
        invitation: None,
    };
    let chain = Chain {
        authority: signed(certified, &master)?.unverified(),
        member: signed(founder, &authority)?.unverified(),
    };
    let further = further.iter().map(|secret| ServiceSecrets::of(secret.duplicate()));
    draft.complete(&Contents {
        chain: &chain,
        services: &Vec::from_iter(std::iter::once(ServiceSecrets::of(master)).chain(further)),
        authority: Some(&authority),
        discovery: &discovery,
        points: &PointSeed::derive(&authority, node.node_id()),
        members: &[],
    })
}

/// Writes what a join has brought. The draft is the one that gave the node key.
pub fn persist_joined(draft: Draft, joined: &Joined) -> Result<Store, StoreError> {
    let members: Vec<Chain> = joined.members.iter().map(Member::chain).collect();
    let services: Vec<_> = match &joined.secrets {
        Some(secrets) => secrets.services.iter().map(ServiceSecrets::duplicate).collect(),
        None => joined.services.iter().map(|joined| ServiceSecrets::none(joined.service)).collect(),
    };
    draft.complete(&Contents {
        chain: &joined.member.chain(),
        services: &services,
        authority: joined.secrets.as_ref().map(|secrets| &secrets.authority),
        discovery: &KeyRing::new(joined.discovery.duplicate()),
        points: &joined.points,
        members: &members,
    })
}

fn signed<T: Statement>(statement: T, key: &dyn rustbalance_gossip::signed::Sign) -> Result<Verified<T>, StoreError> {
    Verified::sign(statement, key).map_err(unsigned)
}

fn unsigned(error: DecodeError) -> StoreError {
    StoreError::Invalid { what: "a certificate", why: error.to_string() }
}
