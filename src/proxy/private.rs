//! Which addresses belong to a private network, and names of hosts in one.

use std::fmt;
use std::net::IpAddr;

/// Longest name of a host, and longest part between two dots, in bytes (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Whether an address belongs to a private network: RFC 1918, RFC 4193, and RFC 6598
/// (100.64.0.0/10, which VPNs such as Tailscale use). Loopback addresses are not private: they are
/// this host. Link-local ones are not, because any device on the cable may take one.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.octets()[0] & 0xfe == 0xfc,
    }
}

/// The name of a host in a private network, in lower case: letters, digits, `-`, `_` and dots.
/// Never an IP address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

impl HostName {
    /// Reads a name in lower case; `None` if it is not one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let fits = |label: &str| {
            let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
            (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-')
        };
        // A last part of digits alone is part of an IPv4 address: resolvers read "10.1" as one.
        let number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit()) || label.starts_with("0x");
        let is_name =
            text.len() <= MAX_NAME && text.split('.').all(fits) && !text.rsplit('.').next().is_some_and(number);
        is_name.then(|| Self(text.to_owned()))
    }

    /// The name as the resolver takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_private_in_three_ranges_and_nowhere_else() {
        let private = |text: &str| is_private(text.parse().unwrap());
        for text in [
            "10.0.0.1",
            "10.255.255.255",
            "172.16.0.1",
            "172.31.9.9",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.254",
            "fd00::1",
            "fc00::1",
            "fdff:ffff::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(private(text), "{text}");
        }
        for text in [
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "169.254.1.1",
            "fe80::1",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "192.169.0.1",
            "11.0.0.1",
            "8.8.8.8",
            "0.0.0.0",
            "::",
            "2001:db8::1",
            "fe00::1",
            "::ffff:8.8.8.8",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!private(text), "{text}");
        }
    }

    #[test]
    fn a_name_is_not_an_address_in_disguise() {
        for name in ["web", "my_app", "db-1.internal", "a.b.c", "3com.example"] {
            assert!(HostName::parse(name).is_some(), "{name}");
        }
        let long = format!("{}.x", "a".repeat(64));
        for text in
            ["", ".", "a..b", "-a", "10.1", "2130706433", "0x7f000001", "a/b", "a:b", "caf\u{e9}", "a b", long.as_str()]
        {
            assert!(HostName::parse(text).is_none(), "{text}");
        }
    }
}
