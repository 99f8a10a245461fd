//! The definition of a configuration key: its name, the allowed values, its field in
//! [`super::Config`] and its meaning.
//!
//! `tables` defines each key once, and passes the keys to a visitor ([`KeyVisitor`]): `reader`
//! reads their values from a file, `initial` writes the initial file, `document` (a test) generates
//! `docs/CONFIGURATION.md`, and `live` compares two configurations.

use std::net::{IpAddr, SocketAddr};
use std::ops::{RangeFull, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::NodeName;
use toml::de::DeValue;

use super::{WIREGUARD_PORT, WireguardDevice};
use crate::log::LogLevel;
use crate::proxy::{ProxyProtocol, Target};

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// In the running daemon: connections, streams and checks that begin after the change use it.
    Running,
    /// At the next start.
    Restart,
}

/// A visitor of the tables, key by key.
pub(super) trait KeyVisitor: Sized {
    /// Begins the table `[name]`, to which the next keys belong. Keys before the first table belong
    /// to the top level.
    fn table(&mut self, name: &'static str, meaning: &'static str);

    /// A key. `value` holds its default before the call.
    fn key<V: Value>(
        &mut self,
        name: &'static str,
        effect: Effect,
        allowed: V::Allowed,
        value: &mut V,
        meaning: &'static str,
    );

    /// A key without a default; `example` is an allowed value to show.
    fn optional<V: Value>(
        &mut self,
        name: &'static str,
        effect: Effect,
        allowed: V::Allowed,
        value: &mut Option<V>,
        example: V,
        meaning: &'static str,
    );

    /// The repeated tables `[[name]]`. `keys` visits one of them, and is given those before it. The
    /// keys `named_by` together tell one table from the others.
    fn each<T: Default>(
        &mut self,
        name: &'static str,
        named_by: &'static [&'static str],
        meaning: &'static str,
        items: &mut Vec<T>,
        keys: fn(&mut Self, &mut T, &[T]),
    );

    /// The table `[outer.name]` inside the repeated table that is being visited, whose keys `keys`
    /// visits.
    fn inside<T>(&mut self, name: &'static str, meaning: &'static str, item: &mut T, keys: fn(&mut Self, &mut T));

    /// A table whose keys another program defines, as TOML text. True if it is in the file.
    fn foreign(&mut self, name: &'static str, effect: Effect, meaning: &'static str, text: &mut String) -> bool;

    /// A requirement on the key `name`, beyond its allowed values. If it does not hold, `why`
    /// returns the reason.
    fn require(&mut self, name: &'static str, holds: bool, why: impl FnOnce() -> String);
}

/// Why a value was refused, as the end of an error message.
pub(super) enum Refused {
    /// The values to write instead. The message adds the refused value.
    Instead(String),
    /// The complete reason. The message does not add the value.
    Because(String),
}

/// A type of value that a key may hold.
pub(super) trait Value: Clone + PartialEq {
    /// The description of the allowed values.
    type Allowed;
    /// Reads a value from a file, and refuses it unless it is allowed.
    fn read(value: &DeValue<'_>, allowed: &Self::Allowed) -> Result<Self, Refused>;
    /// The value as TOML.
    fn show(&self) -> String;
    /// The value in the messages about a reload, which reach the log: without an onion address.
    fn logged(&self) -> String {
        self.show()
    }
    /// The allowed values, for a person; `None` if the default or the meaning shows them.
    fn allowed(_allowed: &Self::Allowed) -> Option<String> {
        None
    }
    /// Another value, if there is one.
    #[cfg(test)]
    fn another(&self, allowed: &Self::Allowed) -> Self;
}

macro_rules! whole_numbers {
    ($($type:ty)*) => {$(
        impl Value for $type {
            type Allowed = RangeInclusive<Self>;

            fn read(value: &DeValue<'_>, allowed: &Self::Allowed) -> Result<Self, Refused> {
                let number = value.as_integer().and_then(|int| i128::from_str_radix(int.as_str(), int.radix()).ok());
                let number = number.and_then(|number| Self::try_from(number).ok());
                number.filter(|number| allowed.contains(number)).ok_or_else(|| {
                    Refused::Instead(format!("a whole number from {} to {}", allowed.start(), allowed.end()))
                })
            }

            fn show(&self) -> String {
                self.to_string()
            }

            fn allowed(allowed: &Self::Allowed) -> Option<String> {
                Some(format!("{} to {}", allowed.start(), allowed.end()))
            }

            #[cfg(test)]
            fn another(&self, allowed: &Self::Allowed) -> Self {
                if self == allowed.end() { *allowed.start() } else { *allowed.end() }
            }
        }
    )*};
}

whole_numbers!(u8 u16 u32 u64 usize);

/// Times carry their unit.
impl Value for Duration {
    type Allowed = RangeInclusive<Self>;

    fn read(value: &DeValue<'_>, allowed: &Self::Allowed) -> Result<Self, Refused> {
        if let Some(number) = value.as_integer() {
            return Err(Refused::Instead(format!("\"{number}s\" for seconds: a time has a unit")));
        }
        let time = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
        time.filter(|time| allowed.contains(time)).ok_or_else(|| {
            let (least, most) = (duration(*allowed.start()), duration(*allowed.end()));
            Refused::Instead(format!("a time from {least} to {most} with its unit, in quotes"))
        })
    }

    fn show(&self) -> String {
        format!("\"{}\"", duration(*self))
    }

    fn allowed(allowed: &Self::Allowed) -> Option<String> {
        Some(format!("{} to {}", duration(*allowed.start()), duration(*allowed.end())))
    }

    #[cfg(test)]
    fn another(&self, allowed: &Self::Allowed) -> Self {
        if self == allowed.end() { *allowed.start() } else { *allowed.end() }
    }
}

/// The value that turns a timeout off.
const NEVER: &str = "never";

/// A time, or [`NEVER`] (also `"off"`), which is `None`.
impl Value for Option<Duration> {
    type Allowed = RangeInclusive<Duration>;

    fn read(value: &DeValue<'_>, allowed: &Self::Allowed) -> Result<Self, Refused> {
        if value.as_str().is_some_and(|text| matches!(text.trim(), NEVER | "off")) {
            return Ok(None);
        }
        Duration::read(value, allowed).map(Some).map_err(|refused| match refused {
            Refused::Instead(text) => Refused::Instead(format!("{text}; or {NEVER:?}")),
            other => other,
        })
    }

    fn show(&self) -> String {
        self.map_or_else(|| format!("{NEVER:?}"), |time| time.show())
    }

    fn allowed(allowed: &Self::Allowed) -> Option<String> {
        Duration::allowed(allowed).map(|times| format!("{times}, or {NEVER:?}"))
    }

    #[cfg(test)]
    fn another(&self, allowed: &Self::Allowed) -> Self {
        if self.is_none() { Some(*allowed.start()) } else { None }
    }
}

impl Value for bool {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        value.as_bool().ok_or_else(|| Refused::Instead("true or false, without quotes".into()))
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn allowed(_allowed: &RangeFull) -> Option<String> {
        Some("true or false".into())
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        !self
    }
}

impl Value for PathBuf {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        value.as_str().map(Self::from).ok_or_else(|| Refused::Instead("a path in quotes".into()))
    }

    fn show(&self) -> String {
        quoted(&self.display().to_string())
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        self.join("another")
    }
}

impl Value for ServiceId {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let text = value.as_str().ok_or_else(|| Refused::Instead("an onion address in quotes".into()))?;
        text.parse().map_err(|error: <Self as std::str::FromStr>::Err| Refused::Because(error.to_string()))
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }

    fn logged(&self) -> String {
        "of another address".into()
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        Self::from_public_key([0x77; 32])
    }
}

impl Value for Target {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let text = value.as_str().ok_or_else(|| Refused::Instead("a text in quotes".into()))?;
        text.parse().map_err(|error: <Self as std::str::FromStr>::Err| Refused::Because(error.to_string()))
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        Self::Unix("/run/another.sock".into())
    }
}

/// An address with a port.
impl Value for SocketAddr {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let address = value.as_str().and_then(|text| text.parse().ok());
        address.ok_or_else(|| Refused::Instead("an address with a port in quotes, as in \"127.0.0.1:9441\"".into()))
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        Self::new(self.ip(), self.port() ^ 1)
    }
}

/// Socket addresses: a list, or a single one without brackets. An address without a port has
/// [`WIREGUARD_PORT`].
impl Value for Vec<SocketAddr> {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let why = || {
            Refused::Instead("an address with a port in quotes, as in \"203.0.113.7:7440\", or a list of them".into())
        };
        let one = |value: &DeValue<'_>| socket_address(value.as_str()?);
        let all = match value.as_array() {
            Some(list) => list.iter().map(|item| one(item.get_ref())).collect(),
            None => one(value).map(|address| vec![address]),
        };
        all.ok_or_else(why)
    }

    fn show(&self) -> String {
        quoted_list(self)
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        vec![SocketAddr::from(([203, 0, 113, 77], WIREGUARD_PORT))]
    }
}

/// An address with a port, or without one: then it has [`WIREGUARD_PORT`].
pub(crate) fn socket_address(text: &str) -> Option<SocketAddr> {
    let bare = || text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    text.parse().ok().or_else(|| bare().map(|ip| SocketAddr::new(ip, WIREGUARD_PORT)))
}

impl Value for NodeName {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let name = value.as_str().and_then(|text| text.parse().ok());
        name.ok_or_else(|| Refused::Instead(format!("{} in quotes", Self::allowed_text())))
    }

    fn show(&self) -> String {
        quoted(self.as_str())
    }

    fn allowed(_allowed: &RangeFull) -> Option<String> {
        Some(Self::allowed_text())
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        "another".parse().unwrap()
    }
}

impl Value for WireguardDevice {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        match value.as_str() {
            Some("userspace") => Ok(Self::Userspace),
            Some("kernel") => Ok(Self::Kernel),
            _ => Err(Refused::Instead("\"userspace\" or \"kernel\"".into())),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Userspace => quoted("userspace"),
            Self::Kernel => quoted("kernel"),
        }
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        match self {
            Self::Userspace => Self::Kernel,
            Self::Kernel => Self::Userspace,
        }
    }
}

impl Value for ProxyProtocol {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        match value.as_str() {
            Some("v1") => Ok(Self::V1),
            Some("v2") => Ok(Self::V2),
            _ => Err(Refused::Instead("\"v1\" or \"v2\"".into())),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::V1 => quoted("v1"),
            Self::V2 => quoted("v2"),
        }
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        match self {
            Self::V1 => Self::V2,
            Self::V2 => Self::V1,
        }
    }
}

impl Value for LogLevel {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let found = LogLevel::ALL.into_iter().find(|level| value.as_str() == Some(level.name()));
        found.ok_or_else(|| Refused::Instead("\"warn\", \"info\", \"debug\" or \"trace\"".into()))
    }

    fn show(&self) -> String {
        quoted(self.name())
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        if *self == Self::Info { Self::Debug } else { Self::Info }
    }
}

/// A text as a TOML string: a path may contain quotes and backslashes.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Texts as a TOML array.
pub(super) fn quoted_list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| quoted(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

/// The texts of an array; `None` if it is something else.
pub(super) fn texts(value: &DeValue<'_>) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| Some(item.get_ref().as_str()?.to_owned())).collect()
}

/// A time with its units, as in `1h 5m`.
pub(super) fn duration(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}
