//! The passphrase of a backup.

use std::collections::BTreeSet;
use std::fmt;

use zeroize::Zeroizing;

/// Fewest characters. An attacker who has the file tries passphrases for as long as that pays;
/// 16 random letters are beyond guessing.
const FEWEST: usize = 16;
/// Fewest different characters: a repeated sequence is as weak as the sequence.
const FEWEST_DIFFERENT: usize = 8;

/// A passphrase.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

/// A passphrase is too easy to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the passphrase is too weak: a backup can be attacked for as long as the key in it is worth something. Take at \
     least {FEWEST} characters, {FEWEST_DIFFERENT} of them different, such as a password manager generates"
)]
pub struct WeakPassphrase;

impl Passphrase {
    /// The passphrase in the first line of `text`.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
    }

    /// Refuses a passphrase with which no backup should be made.
    ///
    /// # Errors
    /// It is too short, or has too few different characters.
    pub fn check_strength(&self) -> Result<(), WeakPassphrase> {
        let different: BTreeSet<char> = self.0.chars().collect();
        let is_strong = self.0.chars().count() >= FEWEST && different.len() >= FEWEST_DIFFERENT;
        if is_strong { Ok(()) } else { Err(WeakPassphrase) }
    }

    /// True if both are the same.
    pub fn is_same(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }

    pub(super) fn reveal(&self) -> String {
        (*self.0).clone()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_line_counts_and_weak_passphrases_are_refused() {
        let strong = Passphrase::new("correct horse battery\nsecond line");
        assert!(strong.is_same(&Passphrase::new("correct horse battery")));
        assert_eq!(strong.check_strength(), Ok(()));
        for weak in ["", "\ncorrect horse battery", "short", "abababababababababab", "fifteen chars 1"] {
            assert_eq!(Passphrase::new(weak).check_strength(), Err(WeakPassphrase), "{weak:?}");
        }
        assert_eq!(format!("{strong:?}"), "Passphrase(..)");
    }
}
