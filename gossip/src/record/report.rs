//! What a node tells the operator, through the `status` of every node: its name and its problems.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, NodeId};
use crate::signed::Statement;

/// A node's own report. It decides nothing: other nodes show it, and count no vote in it.
///
/// A node without a name and without problems need not have one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The cluster it is in.
    pub cluster: ClusterId,
    /// The node that signs.
    pub node: NodeId,
    /// Sequence number: rises with every change, also over restarts.
    pub seq: u64,
    /// The name that the operator gave it, if any. Several nodes may have the same one.
    pub name: Option<NodeName>,
    /// The problems of the node itself: in rising order, at most [`NodeReport::MAX_PROBLEMS`].
    pub problems: Vec<ProblemCode>,
}

impl NodeReport {
    /// Maximum number of problems of one node.
    pub const MAX_PROBLEMS: usize = 16;
}

impl Statement for NodeReport {
    const CONTEXT: &'static str = "rustbalance record report";
    const MAX_SIZE: usize = 1024;
}

/// A text is not a [`NodeName`] or not a [`ProblemCode`]: says what would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("1 to {max} characters of {allowed}")]
pub struct BadText {
    max: usize,
    allowed: &'static str,
}

macro_rules! plain_text {
    ($(#[$doc:meta])* $Name:ident, $max:literal, $allowed:literal, |$byte:ident| $fits:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $Name(String);

        impl $Name {
            /// Maximum length in characters.
            pub const MAX: usize = $max;

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The texts that are allowed, for a person.
            pub fn allowed_text() -> String {
                BadText { max: Self::MAX, allowed: $allowed }.to_string()
            }
        }

        impl FromStr for $Name {
            type Err = BadText;

            fn from_str(text: &str) -> Result<Self, BadText> {
                let fits = text.bytes().all(|$byte| $fits) && (1..=Self::MAX).contains(&text.len());
                if fits { Ok(Self(text.into())) } else { Err(BadText { max: Self::MAX, allowed: $allowed }) }
            }
        }

        impl TryFrom<String> for $Name {
            type Error = BadText;

            fn try_from(text: String) -> Result<Self, BadText> {
                text.parse()
            }
        }

        impl From<$Name> for String {
            fn from(text: $Name) -> Self {
                text.0
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

plain_text! {
    /// The name that an operator gives a node. Other members choose theirs freely, so it proves
    /// nothing. No character of it means anything to a terminal, a shell or a log.
    NodeName, 32, "a to z, A to Z, 0 to 9, '.', '_' and '-'",
    |byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

impl NodeName {
    /// A name for documentation.
    pub fn example() -> Self {
        Self("web-1".into())
    }
}

plain_text! {
    /// What kind of problem a node has: a name that does not change, such as `target_down`. Later
    /// versions may have kinds that this one does not know.
    ProblemCode, 32, "a to z, 0 to 9 and '_'",
    |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::record::{NodeRecord, Role};
    use crate::sim::Founder;

    fn codes(texts: &[&str]) -> Vec<ProblemCode> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn names_and_codes_are_short_and_plain() {
        for name in ["a", "web-1.example_B", &"x".repeat(32)] {
            assert_eq!(name.parse::<NodeName>().unwrap().as_str(), name);
        }
        for name in ["", "a b", "\u{1b}[31m", "é", "a/b", "a\n", "$(reboot)", &"x".repeat(33)] {
            assert!(name.parse::<NodeName>().is_err(), "{name:?}");
        }
        for code in ["", "Target", "a-b", "a b", &"x".repeat(33)] {
            assert!(code.parse::<ProblemCode>().is_err(), "{code:?}");
        }
        // As a hostile node would encode it.
        let bytes = codec::encode(&"\u{1b}[31m".to_owned()).unwrap();
        assert!(codec::decode::<NodeName>(&bytes, 100).is_err());
        let text: String = codec::decode(&codec::encode(&codes(&["disk_full"])[0]).unwrap(), 100).unwrap();
        assert_eq!(text, "disk_full");
    }

    #[test]
    fn problems_are_bounded_and_each_appears_once() {
        let node = Founder::new(1).node(1, Role::Worker);
        let report = |problems: Vec<ProblemCode>| node.report(1, Some("web"), problems);
        let many: Vec<String> = (10..27).map(|number| format!("code_{number}")).collect();
        let many = codes(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(report(many[..16].to_vec()).check_bounds(), Ok(()));
        for bad in [many.clone(), codes(&["b", "a"]), codes(&["a", "a"])] {
            assert!(report(bad).check_bounds().is_err());
        }
        let longest = (10..26).map(|number| format!("{number}{}", "x".repeat(30)).parse().unwrap()).collect();
        let longest = node.report(u64::MAX, Some(&"n".repeat(32)), longest);
        let size = crate::sim::sign(longest, &node.key).to_bytes().unwrap().len();
        assert!(size <= NodeReport::MAX_SIZE, "{size}");
    }
}
