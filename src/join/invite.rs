//! Makes a token and the invitation that makes it valid.

use std::time::Duration;

use rand::CryptoRng;
use rustbalance_gossip::id::ClusterId;
use rustbalance_gossip::record::{Invitation, Role};
use rustbalance_gossip::signed::Verified;

use super::token::Token;
use crate::keys::{AuthoritySecret, TokenSecret};

/// Maximum lifetime of a token, in days.
const MAX_DAYS: u64 = 30;
/// Maximum lifetime of a token.
pub const MAX_LIFETIME: Duration = Duration::from_secs(MAX_DAYS * 86_400);

/// The terms of an invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The role of the nodes that join with it.
    pub role: Role,
    /// How many nodes may join with it: 1 to [`Invitation::MAX_USES`].
    pub uses: u16,
    /// How long the token is valid, from now: 1 s to [`MAX_LIFETIME`].
    pub lifetime: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self { role: Role::Worker, uses: 1, lifetime: Duration::from_secs(86_400) }
    }
}

/// Why a token was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// The number of uses is zero or too large.
    #[error("a token cannot have {0} uses: 1 to {max} are possible", max = Invitation::MAX_USES)]
    Uses(u16),
    /// The lifetime is zero or too long.
    #[error("a token cannot last {0:?}: 1 second to {MAX_DAYS} days are possible")]
    Lifetime(Duration),
    /// The invitation could not be encoded.
    #[error("cannot sign the invitation: {0}")]
    Sign(#[from] rustbalance_gossip::codec::DecodeError),
}

/// Makes a token and its invitation, at `unix` seconds since the epoch. The token is valid once the
/// invitation is stored and gossiped.
pub fn invite(
    cluster: ClusterId,
    authority: &AuthoritySecret,
    terms: Terms,
    unix: u64,
    rng: &mut impl CryptoRng,
) -> Result<(Token, Verified<Invitation>), InviteError> {
    if terms.uses == 0 || terms.uses > Invitation::MAX_USES {
        return Err(InviteError::Uses(terms.uses));
    }
    if terms.lifetime.as_secs() == 0 || terms.lifetime > MAX_LIFETIME {
        return Err(InviteError::Lifetime(terms.lifetime));
    }
    let token = Token::new(TokenSecret::generate(rng), cluster);
    let invitation = Invitation {
        cluster,
        token: token.invitation_id(),
        role: terms.role,
        uses: terms.uses,
        issued: unix,
        expires: unix.saturating_add(terms.lifetime.as_secs()),
        redeemed: Default::default(),
        revoked: false,
    };
    Ok((token, Verified::sign(invitation, authority)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_holds_the_given_terms_and_not_the_secret() {
        let cluster = ClusterId::from_public_key([7; 32]);
        let authority = AuthoritySecret::generate(&mut rand::rng());
        let terms = Terms { role: Role::Publisher, uses: 3, lifetime: Duration::from_secs(60) };
        let (token, record) = invite(cluster, &authority, terms, 1000, &mut rand::rng()).unwrap();
        assert_eq!(
            (record.role, record.uses, record.expires, record.token),
            (Role::Publisher, 3, 1060, token.invitation_id())
        );
        let bytes = record.to_bytes().unwrap();
        assert!(!bytes.windows(32).any(|window| window == token.secret().seed()));
        for (uses, lifetime) in [(0, 60), (257, 60), (1, 0), (1, 31 * 86_400)] {
            let terms = Terms { role: Role::Worker, uses, lifetime: Duration::from_secs(lifetime) };
            assert!(invite(cluster, &authority, terms, 1000, &mut rand::rng()).is_err(), "{terms:?}");
        }
    }
}
