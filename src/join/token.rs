//! The token of an invitation, which the operator carries from one node to another.
//!
//! It is one line: `rb1-` and 58 characters of lower-case base32 (no padding), which encode 32
//! bytes of seed, 2 bytes of cluster tag and 2 bytes of checksum. The tag is a hash of the master
//! address: it exposes a token of another cluster before anything is dialled, and reveals no
//! address. The role and the expiry are in the invitation, not in the token.

use std::fmt;

use data_encoding::{BASE32_NOPAD, DecodeKind};
use rustbalance_gossip::hash::{Label, labelled};
use rustbalance_gossip::id::{ClusterId, InvitationId};
use zeroize::Zeroizing;

use crate::keys::TokenSecret;

/// The prefix of every token; the digit is the version.
const PREFIX: &str = "rb1-";
/// Bytes after the prefix.
const SIZE: usize = 36;
/// Characters after the prefix.
const CHARACTERS: usize = 58;

/// Why a text is not a token. The messages show no character of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It starts with something else.
    #[error(
        "not a rustbalance token: it does not begin with {PREFIX}; copy the whole line that `rustbalance invite` printed"
    )]
    Prefix,
    /// It has too few or too many characters. Contains the number after the prefix.
    #[error(
        "not a whole token: {0} characters follow {PREFIX}, not {CHARACTERS}; copy the whole line that `rustbalance \
         invite` printed"
    )]
    Length(usize),
    /// It contains a character outside base32.
    #[error("a character of the token is not one of a-z and 2-7; copy it again")]
    Alphabet,
    /// The checksum does not match.
    #[error("a character of the token is mistyped (its checksum does not match); copy it again")]
    Checksum,
}

/// A parsed token: the secret seed and the tag of its cluster.
pub struct Token {
    secret: TokenSecret,
    cluster: [u8; 2],
}

impl Token {
    /// The token of this secret, for this cluster.
    pub fn new(secret: TokenSecret, cluster: ClusterId) -> Self {
        Self { secret, cluster: tag(cluster) }
    }

    /// Parses the text that an operator typed or pasted: case and white space do not matter.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut line = Zeroizing::new(Vec::with_capacity(text.len()));
        line.extend(text.bytes().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| byte.to_ascii_uppercase()));
        let body = line.strip_prefix(PREFIX.to_ascii_uppercase().as_bytes()).ok_or(TokenError::Prefix)?;
        if body.len() != CHARACTERS {
            return Err(TokenError::Length(body.len()));
        }
        let mut bytes = Zeroizing::new([0; SIZE]);
        BASE32_NOPAD.decode_mut(body, &mut *bytes).map_err(|partial| match partial.error.kind {
            // The last character encodes fewer than 5 bits, so most of the alphabet is invalid
            // there.
            DecodeKind::Trailing => TokenError::Checksum,
            _ => TokenError::Alphabet,
        })?;
        let mut seed = Zeroizing::new([0; 32]);
        seed.copy_from_slice(&bytes[..32]);
        let cluster = [bytes[32], bytes[33]];
        if bytes[34..] != checksum(&seed, cluster) {
            return Err(TokenError::Checksum);
        }
        Ok(Self { secret: TokenSecret::from_seed(&seed), cluster })
    }

    /// The token as one line, without a line end.
    pub fn text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; SIZE]);
        bytes[..32].copy_from_slice(self.secret.seed());
        bytes[32..34].copy_from_slice(&self.cluster);
        bytes[34..].copy_from_slice(&checksum(self.secret.seed(), self.cluster));
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + CHARACTERS));
        text.push_str(PREFIX);
        BASE32_NOPAD.encode_append(&*bytes, &mut text);
        text.make_ascii_lowercase();
        text
    }

    /// False if the token was made for another cluster.
    pub fn is_for(&self, cluster: ClusterId) -> bool {
        self.cluster == tag(cluster)
    }

    /// The key that signs for the token.
    pub fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    /// The id of the token's invitation.
    pub fn invitation_id(&self) -> InvitationId {
        self.secret.invitation_id()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

fn tag(cluster: ClusterId) -> [u8; 2] {
    let digest = labelled(Label::TokenCluster, &[cluster.public_key()]);
    [digest[0], digest[1]]
}

fn checksum(seed: &[u8; 32], cluster: [u8; 2]) -> [u8; 2] {
    let digest = labelled(Label::Token, &[seed, &cluster]);
    [digest[0], digest[1]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        let seed = std::array::from_fn(|at| at as u8);
        Token::new(TokenSecret::from_seed(&Zeroizing::new(seed)), ClusterId::from_public_key([7; 32]))
    }

    /// Frozen: tokens printed by older builds must stay valid.
    #[test]
    fn the_text_form_does_not_change() {
        assert_eq!(&**token().text(), "rb1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dyp4f5f5tm");
        assert_eq!(
            token().invitation_id().to_string(),
            "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
        );
    }

    #[test]
    fn a_token_reads_as_it_was_written() {
        let text = token().text();
        for typed in [text.to_string(), text.to_uppercase(), format!("  {}\n {}\r\n", &text[..20], &text[20..])] {
            let read = Token::parse(&typed).unwrap();
            assert_eq!(read.secret().seed(), token().secret().seed());
            assert!(read.is_for(ClusterId::from_public_key([7; 32])));
            assert!(!read.is_for(ClusterId::from_public_key([8; 32])));
        }
    }

    #[test]
    fn every_mistake_has_its_own_error_and_shows_nothing() {
        let text = token().text();
        assert!(matches!(Token::parse(""), Err(TokenError::Prefix)));
        assert!(matches!(Token::parse(&text[4..]), Err(TokenError::Prefix)));
        assert!(matches!(Token::parse(&text[..61]), Err(TokenError::Length(57))));
        assert!(matches!(Token::parse(&text.replacen(&text[10..11], "1", 1)), Err(TokenError::Alphabet)));
        let secret = &text[10..20];
        for at in 4..text.len() {
            let mut typed = text.to_string().into_bytes();
            typed[at] = if typed[at] == b'q' { b'r' } else { b'q' };
            let error = Token::parse(std::str::from_utf8(&typed).unwrap()).unwrap_err();
            assert!(!error.to_string().contains(secret));
        }
        // Most of the alphabet is invalid as the last character; that error counts as a typing
        // error, too.
        for other in ('A'..='Z').chain('2'..='7').filter(|other| !text.ends_with(other.to_ascii_lowercase())) {
            let typed = Zeroizing::new(format!("{}{other}", &text[..text.len() - 1]));
            assert_eq!(Token::parse(&typed).err(), Some(TokenError::Checksum), "{other}");
        }
        assert_eq!(format!("{:?}", token()), "Token(redacted)");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(rb1-)?\\PC{0,70}") {
            prop_assert!(Token::parse(&text).is_err());
        }
    }
}
