//! Decides whether an interface may be made or removed, and says why one cannot be made. No IO.

use data_encoding::HEXLOWER;
use rustbalance_gossip::id::NodeId;

use super::KernelError;

/// The bit of CAP_NET_ADMIN (`linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;
/// Bytes of the node id in the name: with the prefix, 12 of the 15 bytes that a name may have.
const ID_BYTES: usize = 5;

/// An interface of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// The kernel's number, which no later interface gets.
    pub(super) index: u32,
    /// Whether it is WireGuard's.
    pub(super) is_wireguard: bool,
    /// The text that its maker has attached.
    pub(super) alias: Option<String>,
}

/// What may be done about the name of an interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// No interface has it.
    Free,
    /// The interface of this number was left over by this node.
    LeftOver(u32),
    /// Another program's interface has it, which must not be touched: the crate would take it over,
    /// remove its addresses, and change its MTU.
    Foreign,
}

impl Claim {
    /// Decides by the interface that has the name now.
    pub(super) fn of(found: Option<&Link>, node: &NodeId) -> Self {
        match found {
            None => Self::Free,
            Some(link) if link.is_wireguard && link.alias.as_deref() == Some(&alias(node)) => {
                Self::LeftOver(link.index)
            }
            Some(_) => Self::Foreign,
        }
    }
}

/// The name of this node's interface: two nodes on one host have different ones. Letters and digits
/// only, and never a number alone, which the crate would take for a file descriptor.
pub(super) fn interface_name(node: &NodeId) -> String {
    format!("rb{}", HEXLOWER.encode(&node.public_key()[..ID_BYTES]))
}

/// The text by which this node recognises its own interface.
pub(super) fn alias(node: &NodeId) -> String {
    format!("rustbalance {node}")
}

/// Why an interface could not be made: the crate hides the system's reason. `process` is the
/// content of /proc/thread-self/status.
pub(super) fn refusal(name: String, process: &str) -> KernelError {
    if has_net_admin(process) { KernelError::NoModule(name) } else { KernelError::NotPermitted(name) }
}

fn has_net_admin(process: &str) -> bool {
    let effective = process.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> CAP_NET_ADMIN & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    #[test]
    fn only_a_free_name_or_this_nodes_own_left_over_interface_is_used() {
        let me = node(1);
        let ours = Link { index: 7, is_wireguard: true, alias: Some(alias(&me)) };
        assert_eq!(Claim::of(None, &me), Claim::Free);
        assert_eq!(Claim::of(Some(&ours), &me), Claim::LeftOver(7));
        for foreign in [
            Link { is_wireguard: false, ..ours.clone() },
            Link { alias: None, ..ours.clone() },
            Link { alias: Some(alias(&node(2))), ..ours.clone() },
            Link { alias: Some("rustbalance".into()), ..ours },
        ] {
            assert_eq!(Claim::of(Some(&foreign), &me), Claim::Foreign, "{foreign:?}");
        }
    }

    #[test]
    fn names_are_short_differ_by_node_and_are_never_numbers() {
        let (one, two) = (interface_name(&node(0x11)), interface_name(&node(0x22)));
        assert_eq!(one, "rb1111111111");
        assert_ne!(one, two);
        for name in [one, two] {
            assert!(name.len() <= 12 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        }
    }

    #[test]
    fn a_refusal_says_whether_the_capability_or_the_module_is_missing() {
        let status = |bits: &str| format!("Name:\trustbalance\nCapPrm:\t000001ffffffffff\nCapEff:\t{bits}\n");
        let refused = |bits: &str| refusal("rb1".into(), &status(bits));
        assert!(matches!(refused("0000000000001000"), KernelError::NoModule(_)));
        assert!(matches!(refused("000001ffffffffff"), KernelError::NoModule(_)));
        for without in ["0000000000000000", "000001ffffffefff", "nothing"] {
            assert!(matches!(refused(without), KernelError::NotPermitted(_)), "{without}");
        }
        let text = refused("0").to_string();
        assert!(text.contains("CAP_NET_ADMIN") && text.contains("wireguard-kernel.conf"), "{text}");
        assert!(text.contains("device = \"userspace\""), "{text}");
    }
}
