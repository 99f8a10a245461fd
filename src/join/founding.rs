//! Writes the state directory of a new node, founder or joiner. If it is interrupted at any moment,
//! the same call completes it with the same keys.

use rand::CryptoRng;
use rustbalance_gossip::codec::DecodeError;
use rustbalance_gossip::id::ClusterId;
use rustbalance_gossip::record::{AuthorityCertificate, Chain, MEMBERSHIP_SECONDS, Member, MemberCertificate, Role};
use rustbalance_gossip::signed::{Statement, Verified};

use super::joiner::Joined;
use crate::discovery::{Discovery, KeyRing};
use crate::keys::{AuthoritySecret, IdentitySecret, NodeSecret, PointSeed, ServiceSecrets};
use crate::store::{Draft, InitialContents, SetupCommand, Store, StoreError};

/// Founds a cluster of one node, at `unix` seconds since the epoch, with the imported master key or
/// a new one.
///
/// # Errors
/// See [`found_with`].
pub fn found(
    draft: Draft,
    imported: Option<IdentitySecret>,
    unix: u64,
    rng: &mut impl CryptoRng,
) -> Result<Store, StoreError> {
    found_with(draft, imported, &[], unix, rng)
}

/// Like [`found`], for a cluster that also serves the addresses of the `further` keys.
///
/// # Errors
/// The state directory cannot be written, or holds the rest of an interrupted join.
pub fn found_with(
    mut draft: Draft,
    imported: Option<IdentitySecret>,
    further: &[IdentitySecret],
    unix: u64,
    rng: &mut impl CryptoRng,
) -> Result<Store, StoreError> {
    // Keys that an interrupted founding left are used again; those that a join left are not.
    let left = match draft.unfinished_command() {
        Some((SetupCommand::Init, _)) => draft.identity_secret()?,
        _ => None,
    };
    let master = imported.or(left).unwrap_or_else(|| IdentitySecret::generate(rng));
    let cluster = ClusterId::named_by(master.service_id());
    draft.begin(SetupCommand::Init, cluster)?;
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
    draft.complete(&InitialContents {
        chain: &chain,
        services: &Vec::from_iter(std::iter::once(ServiceSecrets::of(master)).chain(further)),
        authority: Some(&authority),
        discovery: &discovery,
        points: &PointSeed::derive(&authority, node.node_id()),
        members: &[],
    })
}

/// Writes the result of a join. `draft` is the one that supplied the node key.
pub fn persist_joined(draft: Draft, joined: &Joined) -> Result<Store, StoreError> {
    let members: Vec<Chain> = joined.members.iter().map(Member::chain).collect();
    let services: Vec<_> = match &joined.secrets {
        Some(secrets) => secrets.services.iter().map(ServiceSecrets::duplicate).collect(),
        None => joined.services.iter().map(|joined| ServiceSecrets::none(joined.service)).collect(),
    };
    draft.complete(&InitialContents {
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
