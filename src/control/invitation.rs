//! An invitation as a person names it.

use std::str::FromStr;

use rustbalance_gossip::id::InvitationId;
use serde::{Deserialize, Serialize};

/// The beginning of an invitation's id, as `rustbalance invite --list` shows it: 4 to 64
/// hexadecimal digits, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InvitationPrefix(String);

/// Why a text does not name an invitation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} does not name an invitation: give its id as `rustbalance invite --list` shows it, or at least the first 4 \
     digits of it"
)]
pub struct InvitationPrefixError(String);

impl FromStr for InvitationPrefix {
    type Err = InvitationPrefixError;

    fn from_str(text: &str) -> Result<Self, InvitationPrefixError> {
        // A text that is not an id may be the token itself, given by mistake: only its first 8
        // characters are shown.
        let lower = text.trim().to_ascii_lowercase();
        let hexadecimal = lower.bytes().all(|byte| matches!(byte, b'a'..=b'f' | b'0'..=b'9'));
        match hexadecimal && (4..=64).contains(&lower.len()) {
            true => Ok(Self(lower)),
            false => Err(InvitationPrefixError(text.chars().take(8).collect())),
        }
    }
}

impl TryFrom<String> for InvitationPrefix {
    type Error = InvitationPrefixError;

    fn try_from(text: String) -> Result<Self, InvitationPrefixError> {
        text.parse()
    }
}

impl From<InvitationPrefix> for String {
    fn from(prefix: InvitationPrefix) -> Self {
        prefix.0
    }
}

impl InvitationPrefix {
    /// The invitation among `invitations` that it names.
    ///
    /// # Errors
    /// A sentence for the operator, with the way out, if it names none or several.
    pub fn choose(&self, invitations: impl IntoIterator<Item = InvitationId>) -> Result<InvitationId, String> {
        let mut found = invitations.into_iter().filter(|id| id.to_string().starts_with(&self.0));
        match (found.next(), found.next()) {
            (Some(id), None) => Ok(id),
            (None, _) => Err(format!(
                "no invitation begins with {:?}: `rustbalance invite --list` shows those known here",
                self.0
            )),
            (Some(_), Some(_)) => Err(format!("several invitations begin with {:?}: give more of the id", self.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_is_named_by_the_beginning_of_its_id() {
        let ids = [[0xab; 32], [0xac; 32]].map(InvitationId::from_public_key);
        let choose = |text: &str| text.parse::<InvitationPrefix>().unwrap().choose(ids);
        assert_eq!(choose("ABAB"), Ok(ids[0]));
        assert_eq!(choose(&ids[1].to_string()), Ok(ids[1]));
        assert!(choose("abac").unwrap_err().contains("invite --list"));
        let twins = "abab".parse::<InvitationPrefix>().unwrap().choose([ids[0], ids[0]]);
        assert!(twins.unwrap_err().contains("give more"));
    }

    #[test]
    fn a_token_in_the_place_of_an_id_is_not_shown() {
        let error = "rb1-qgbihbefq2dyrcmkrogi3dupscizfe4uswljpgeztknzzhm6t6qintn7li".parse::<InvitationPrefix>();
        assert!(!error.unwrap_err().to_string().contains("hbefq2dy"));
        for wrong in ["", "abc", "xyzw", &"a".repeat(65)] {
            assert!(wrong.parse::<InvitationPrefix>().is_err(), "{wrong}");
        }
    }
}
