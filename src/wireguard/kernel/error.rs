//! Why the kernel's WireGuard does not run.

use std::io;
use std::time::Duration;

use defguard_wireguard_rs::error::WireguardInterfaceError;

/// What to do instead.
const OR: &str = ", or set device = \"userspace\" in [wireguard]";

/// Why the kernel's WireGuard does not run.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process may not make network interfaces.
    #[error(
        "this process may not make the network interface {0}: it needs CAP_NET_ADMIN, which the drop-in \
         wireguard-kernel.conf gives to the systemd unit{OR}"
    )]
    NotPermitted(String),
    /// The kernel cannot make WireGuard interfaces.
    #[error(
        "this kernel cannot make the WireGuard interface {0}: try `modprobe wireguard`, which Linux has since 5.6{OR}"
    )]
    NoModule(String),
    /// An interface has the name, and this node has not made it.
    #[error(
        "a network interface {0} exists which this node has not made: if nothing needs it, remove it with \
         `ip link delete {0}`{OR}"
    )]
    Foreign(String),
    /// The addresses to listen on have different ports: an interface has one.
    #[error("the kernel's WireGuard has one port, not {0} and {1}: give both addresses in listen the same{OR}")]
    Ports(u16, u16),
    /// Another program has the port.
    #[error("cannot use port {port} for WireGuard: choose another one in listen")]
    Port {
        /// The UDP port.
        port: u16,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The crate has failed.
    #[error("cannot {what} of the WireGuard interface {name}")]
    Call {
        /// What was asked for.
        what: &'static str,
        /// The interface.
        name: String,
        /// The reason.
        #[source]
        source: WireguardInterfaceError,
    },
    /// A request to the kernel has failed.
    #[error("cannot {what} of the WireGuard interface {name}")]
    Netlink {
        /// What was asked for.
        what: &'static str,
        /// The interface.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The socket for streams cannot be made.
    #[error("cannot listen on the WireGuard interface {name}")]
    Listen {
        /// The interface.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The interface was removed.
    #[error("the WireGuard interface {0} is gone: it was removed, and is made again")]
    Gone(String),
    /// A call has not returned in time.
    #[error("the kernel did not answer within {0:?}: its WireGuard is not used any more")]
    TooSlow(Duration),
    /// The thread that makes the calls has ended.
    #[error("the thread of the kernel's WireGuard has ended")]
    Ended,
}
