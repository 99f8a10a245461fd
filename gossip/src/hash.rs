//! SHA3-256 with a label in front, so that no hash for one purpose is a hash for another.

use sha3::{Digest, Sha3_256};

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident = $text:literal,)*) => {
        /// What a hash is for. Every label of the program stands here; none is used for two things.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Label {
            $($(#[$meta])* $name,)*
        }

        impl Label {
            /// All labels.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The bytes before the parts, up to and with a zero.
            fn text(self) -> &'static [u8] {
                match self {
                    $(Self::$name => concat!($text, "\0").as_bytes(),)*
                }
            }
        }
    };
}

labels! {
    /// [`crate::address::mesh_address`].
    MeshAddress = "rustbalance mesh address v1",
    /// The digest that neighbours compare of the facts they know.
    Facts = "rustbalance facts v2",
    /// Who of two members chooses the other as a neighbour.
    Neighbours = "rustbalance neighbours v1",
    /// A node's place among those of equal priority, in the queue for a term.
    Rank = "rustbalance rank v1",
    /// Which nodes are published when there are more than places.
    Lot = "rustbalance lot v1",
    /// Which of several nodes at one relay keeps it.
    Relay = "rustbalance relay v1",
    /// Which publisher stands in at a point.
    StandIn = "rustbalance stand-in v1",
    /// How long the points of a silent node stay published.
    HiddenOutage = "rustbalance hidden outage v1",
    /// The secret for [`Label::HiddenOutage`].
    OutageSecret = "rustbalance outage secret v1",
    /// The seed of a node's introduction point keys.
    PointSeed = "rustbalance point seed v1",
    /// The session key of an introduction point.
    PointSession = "rustbalance point session v1",
    /// The encryption key of an introduction point.
    PointEncryption = "rustbalance point encryption v1",
    /// What is remembered of an introduction.
    Introduction = "rustbalance introduction v1",
    /// The cluster in a token.
    TokenCluster = "rustbalance token cluster v1",
    /// The checksum of a token.
    Token = "rustbalance token v1",
    /// The transcript of a join, up to what the joiner signs.
    JoinRequest = "rustbalance join request v1",
    /// The transcript of a join, up to what the publisher signs.
    JoinAnswer = "rustbalance join answer v1",
    /// The checksum of a state file.
    StateFile = "rustbalance state file",
}

/// SHA3-256 of the label and the parts, one after the other. Parts of variable length carry their length, or are last.
pub fn labelled(label: Label, parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha3_256::new_with_prefix(label.text());
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each ends with its only zero, so none is the beginning of another either.
    #[test]
    fn no_label_is_used_twice() {
        for (at, label) in Label::ALL.iter().enumerate() {
            assert_eq!(label.text().iter().position(|byte| *byte == 0), Some(label.text().len() - 1), "{label:?}");
            assert!(Label::ALL[..at].iter().all(|other| other.text() != label.text()), "{label:?}");
        }
    }
}
