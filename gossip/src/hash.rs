//! SHA3-256 with a label in front, so that a hash made for one purpose is never valid for another.

use sha3::{Digest, Sha3_256};

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident = $text:literal,)*) => {
        /// The purpose of a hash. Every label of the program is listed here, and each has one use.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Label {
            $($(#[$meta])* $name,)*
        }

        impl Label {
            /// All labels.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The label as it is hashed before the parts: its text and a zero byte.
            fn text(self) -> &'static [u8] {
                match self {
                    $(Self::$name => concat!($text, "\0").as_bytes(),)*
                }
            }
        }
    };
}

labels! {
    /// A node's IPv6 address: [`crate::address::mesh_address`].
    MeshAddress = "rustbalance mesh address v1",
    /// The digest by which neighbours compare the facts they know.
    Facts = "rustbalance facts v2",
    /// The short name of an incarnation of gossip.
    Incarnation = "rustbalance incarnation v1",
    /// The preference of two members for each other as neighbours.
    Neighbours = "rustbalance neighbours v1",
    /// A node's place among those of equal priority, in the queue for a term.
    Rank = "rustbalance rank v1",
    /// The lots that select sources when there are more of them than places in the descriptor.
    Lot = "rustbalance lot v1",
    /// The lots that decide which of several sources keeps a relay.
    Relay = "rustbalance relay v1",
    /// The lots that decide which publisher stands in at an unattended point.
    StandIn = "rustbalance stand-in v1",
    /// The time for which the points of a silent node stay published.
    HiddenOutage = "rustbalance hidden outage v1",
    /// The secret that goes into [`Label::HiddenOutage`].
    OutageSecret = "rustbalance outage secret v1",
    /// The seed from which a node's introduction point keys are derived.
    PointSeed = "rustbalance point seed v1",
    /// The session key of an introduction point.
    PointSession = "rustbalance point session v1",
    /// The encryption key of an introduction point.
    PointEncryption = "rustbalance point encryption v1",
    /// The digest under which the replay cache remembers an INTRODUCE2 cell.
    Introduction = "rustbalance introduction v1",
    /// The digest of the cluster's id inside a token.
    TokenCluster = "rustbalance token cluster v1",
    /// The checksum of a token.
    Token = "rustbalance token v1",
    /// The transcript of a join, up to what the joiner signs.
    JoinRequest = "rustbalance join request v1",
    /// The transcript of a join, up to what the publisher signs.
    JoinAnswer = "rustbalance join answer v1",
    /// The channel binding of links through a WireGuard tunnel.
    WireguardBinding = "rustbalance wireguard binding v1",
    /// The key that seals what a node announces of its WireGuard.
    EndpointSeal = "rustbalance endpoint seal v1",
    /// The checksum of a state file.
    StateFile = "rustbalance state file",
}

/// SHA3-256 of the label and the concatenated parts. A part of variable length must contain its
/// length or be the last one, so that no other split gives the same bytes.
pub fn labelled(label: Label, parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha3_256::new_with_prefix(label.text());
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each label ends with its only zero byte, so none is a prefix of another either.
    #[test]
    fn no_label_is_used_twice() {
        for (at, label) in Label::ALL.iter().enumerate() {
            assert_eq!(label.text().iter().position(|byte| *byte == 0), Some(label.text().len() - 1), "{label:?}");
            assert!(Label::ALL[..at].iter().all(|other| other.text() != label.text()), "{label:?}");
        }
    }
}
