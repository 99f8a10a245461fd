//! The ids under which applications and operators know the circuits of clients, as C tor exports
//! them with `HiddenServiceExportCircuitID haproxy`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// The first 96 bits of every address that stands for a circuit. C tor has the same.
const PREFIX: [u16; 6] = [0xfc00, 0xdead, 0xbeef, 0x4dad, 0, 0];

/// Names an open circuit of a client outside of this program. It is a random number, which says
/// nothing about the client, and no other open circuit of this node has it.
///
/// Neither half of the 32 bits is zero: so the address has one spelling, that of C tor and that of
/// programs which shorten addresses, and the source port that C tor takes from it is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExportedCircuitId(u32);

/// The text does not name a circuit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} does not name a circuit: give its address as the application has it, such as \
     \"fc00:dead:beef:4dad::12ab:34cd\", or its number, \"0x12ab34cd\" or in decimal"
)]
pub struct ExportedCircuitIdError(String);

impl ExportedCircuitId {
    /// The id with this number; `None` if one of its halves is zero.
    pub fn new(number: u32) -> Option<Self> {
        (number >> 16 != 0 && number & 0xffff != 0).then_some(Self(number))
    }

    pub(super) fn draw(rng: &mut impl Rng) -> Self {
        let [mut half, mut other] = [0_u32; 2];
        for part in [&mut half, &mut other] {
            *part = rng.random_range(1..=0xffff);
        }
        Self(half << 16 | other)
    }

    /// The number, which C tor calls the circuit's global identifier.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The address that stands for the circuit.
    pub fn address(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = PREFIX;
        let [first, second, third, fourth] = self.0.to_be_bytes();
        Ipv6Addr::new(a, b, c, d, e, f, u16::from_be_bytes([first, second]), u16::from_be_bytes([third, fourth]))
    }

    /// The source port that goes with the address: the lower half of the number, as in C tor.
    pub fn port(self) -> u16 {
        let [.., high, low] = self.0.to_be_bytes();
        u16::from_be_bytes([high, low])
    }
}

impl fmt::Display for ExportedCircuitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address().fmt(f)
    }
}

impl FromStr for ExportedCircuitId {
    type Err = ExportedCircuitIdError;

    fn from_str(text: &str) -> Result<Self, ExportedCircuitIdError> {
        let bare = text.trim();
        // Logs may have an address in brackets.
        let address = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(bare);
        let number = match address.parse::<Ipv6Addr>() {
            Ok(address) => match address.segments() {
                [prefix @ .., high, low] if prefix == PREFIX => Some(u32::from(high) << 16 | u32::from(low)),
                _ => None,
            },
            Err(_) => match bare.strip_prefix("0x").or_else(|| bare.strip_prefix("0X")) {
                Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
                    u32::from_str_radix(digits, 16).ok()
                }
                Some(_) => None,
                None if bare.bytes().all(|digit| digit.is_ascii_digit()) => bare.parse().ok(),
                None => None,
            },
        };
        let wrong = || ExportedCircuitIdError(text.chars().take(80).collect());
        number.and_then(Self::new).ok_or_else(wrong)
    }
}

impl TryFrom<String> for ExportedCircuitId {
    type Error = ExportedCircuitIdError;

    fn try_from(text: String) -> Result<Self, ExportedCircuitIdError> {
        text.parse()
    }
}

impl From<ExportedCircuitId> for String {
    fn from(id: ExportedCircuitId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_is_read_in_each_form_that_a_log_may_have() {
        let id = ExportedCircuitId::new(0x12ab_34cd).unwrap();
        for text in [
            "fc00:dead:beef:4dad::12ab:34cd",
            "FC00:DEAD:BEEF:4DAD:0000:0000:12AB:34CD",
            "[fc00:dead:beef:4dad::12ab:34cd]",
            "0x12ab34cd",
            "313210061",
            " 0X12AB34CD ",
        ] {
            assert_eq!(text.parse(), Ok(id), "{text}");
        }
        for text in [
            "",
            "0x",
            "12ab34cd",
            "0x112ab34cd",
            "0x+2ab34cd",
            "+313210061",
            "99999999999",
            "5",
            "fc00:dead:beef:4dad::5",
            "fc00:dead:beef:4dad::5:0",
            "fc00:dead:beef:4dae::12ab:34cd",
            "::ffff:10.0.0.1",
            "127.0.0.1",
        ] {
            let error = text.parse::<ExportedCircuitId>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} does not name a circuit")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn an_id_is_shown_as_c_tor_writes_it_and_read_again(number in any::<u32>()) {
            let Some(id) = ExportedCircuitId::new(number) else { return Ok(()) };
            let (high, low) = (number >> 16, number & 0xffff);
            prop_assert_eq!(id.to_string(), format!("fc00:dead:beef:4dad::{high:x}:{low:x}"));
            prop_assert_eq!(u32::from(id.port()), low);
            for text in [id.to_string(), id.number().to_string(), format!("{number:#x}")] {
                prop_assert_eq!(text.parse(), Ok(id));
            }
        }

        #[test]
        fn a_drawn_id_can_be_exported(seed in any::<u64>()) {
            use rand::SeedableRng;
            let id = ExportedCircuitId::draw(&mut rand::rngs::StdRng::seed_from_u64(seed));
            prop_assert_eq!(ExportedCircuitId::new(id.number()), Some(id));
        }
    }
}
