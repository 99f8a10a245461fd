//! What a key of the configuration is: a name, the values allowed, its place in [`super::Config`], a meaning.
//!
//! `tables` says that once for each key, to whatever walks the tables: `reader` takes the values from a file, `initial`
//! writes the first file, `document` (a test) writes `docs/CONFIGURATION.md`, and `live` compares two configurations.

use std::ops::{RangeFull, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use rustbalance_gossip::id::ServiceId;
use toml::de::DeValue;

use crate::proxy::Target;

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// In the running daemon, for what begins after the change.
    Running,
    /// At the next start.
    Restart,
}

/// Walks the tables key by key.
pub(super) trait Keys: Sized {
    /// Begins the table `[name]`: the keys that follow stand in it. Those before the first one stand at the top level.
    fn table(&mut self, name: &'static str, effect: Effect, meaning: &'static str);

    /// A key whose default is the value that is there already.
    fn key<V: Value>(&mut self, name: &'static str, allowed: V::Allowed, value: &mut V, meaning: &'static str);

    /// A key without a default; `example` is a value to show.
    fn optional<V: Value>(
        &mut self,
        name: &'static str,
        allowed: V::Allowed,
        value: &mut Option<V>,
        example: V,
        meaning: &'static str,
    );

    /// The tables `[[name]]`, none or more. `keys` walks one of them and sees those before it.
    fn each<T: Default>(
        &mut self,
        name: &'static str,
        effect: Effect,
        meaning: &'static str,
        items: &mut Vec<T>,
        keys: fn(&mut Self, &mut T, &[T]),
    );

    /// A table whose keys another program defines, as TOML text. True if it is there.
    fn foreign(&mut self, name: &'static str, effect: Effect, meaning: &'static str, text: &mut String) -> bool;

    /// What must hold for the key `name` beyond the values allowed; otherwise `why` says what is wrong with it.
    fn require(&mut self, name: &'static str, holds: bool, why: impl FnOnce() -> String);
}

/// Why a value was refused, as the rest of a sentence.
pub(super) enum Refused {
    /// What to write instead: the value itself is not in it.
    Instead(String),
    /// A whole sentence that names the value.
    Because(String),
}

/// What a key may hold.
pub(super) trait Value: Clone + PartialEq {
    /// The values allowed.
    type Allowed;
    /// Reads a value of a file.
    fn read(value: &DeValue<'_>, allowed: &Self::Allowed) -> Result<Self, Refused>;
    /// As it stands in a file.
    fn show(&self) -> String;
    /// The values allowed, for a person; `None` where the default shows it.
    fn allowed(allowed: &Self::Allowed) -> Option<String>;
}

macro_rules! whole_numbers {
    ($($type:ty)*) => {$(
        impl Value for $type {
            type Allowed = RangeInclusive<Self>;

            fn read(value: &DeValue<'_>, allowed: &Self::Allowed) -> Result<Self, Refused> {
                let number = value.as_integer().and_then(|it| i128::from_str_radix(it.as_str(), it.radix()).ok());
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
}

/// How a time that never comes is written.
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
}

impl Value for PathBuf {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        value.as_str().map(Self::from).ok_or_else(|| Refused::Instead("a path in quotes".into()))
    }

    fn show(&self) -> String {
        quoted(&self.display().to_string())
    }

    fn allowed(_allowed: &RangeFull) -> Option<String> {
        None
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

    fn allowed(_allowed: &RangeFull) -> Option<String> {
        None
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

    fn allowed(_allowed: &RangeFull) -> Option<String> {
        None
    }
}

/// A text as TOML: a path may hold quotes and backslashes.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A time as a person writes it.
pub(super) fn duration(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}
