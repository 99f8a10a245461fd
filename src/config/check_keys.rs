//! The values of keys in `[port.health]`.

use std::ops::{RangeFull, RangeInclusive};

use toml::de::DeValue;

use super::keys::{Refused, Value, quoted, quoted_list, texts};
use crate::proxy::{CheckKind, ExpectedHeader, HeaderLine, Pin, StatusRange};

/// Most headers in one list.
const MOST_HEADERS: usize = 32;

/// A text of one line, with the allowed number of bytes.
impl Value for String {
    type Allowed = RangeInclusive<usize>;

    fn read(value: &DeValue<'_>, allowed: &Self::Allowed) -> Result<Self, Refused> {
        let text = value.as_str().filter(|text| allowed.contains(&text.len()) && !text.contains(char::is_control));
        let why = || {
            Refused::Instead(format!("a text of one line in quotes, of {} to {} bytes", allowed.start(), allowed.end()))
        };
        text.map(str::to_owned).ok_or_else(why)
    }

    fn show(&self) -> String {
        quoted(self)
    }

    /// Without what may be the query of a path, because keys are passed in it.
    fn logged(&self) -> String {
        match self.split_once('?') {
            Some((path, _)) if path.starts_with('/') => quoted(&format!("{path}?...")),
            _ => self.show(),
        }
    }

    #[cfg(test)]
    fn another(&self, _allowed: &Self::Allowed) -> Self {
        format!("{self}x")
    }
}

impl Value for CheckKind {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        match value.as_str() {
            Some("connect") => Ok(Self::Connect),
            Some("http") => Ok(Self::Http),
            Some("https") => Ok(Self::Https),
            _ => Err(Refused::Instead("\"connect\", \"http\" or \"https\"".into())),
        }
    }

    fn show(&self) -> String {
        quoted(match self {
            Self::Connect => "connect",
            Self::Http => "http",
            Self::Https => "https",
        })
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        if *self == Self::Http { Self::Connect } else { Self::Http }
    }
}

impl Value for StatusRange {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let number = value.as_integer().map(|number| number.as_str().to_owned());
        let text = number.or_else(|| value.as_str().map(str::to_owned));
        let read = text.and_then(|text| text.parse().ok());
        read.ok_or_else(|| Refused::Instead("a status such as \"200\", or a range such as \"200-299\"".into()))
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        "204".parse().unwrap_or_default()
    }
}

impl Value for Pin {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let read = value.as_str().and_then(|text| text.parse().ok());
        read.ok_or_else(|| {
            let why = "\"spki-sha256:\" or \"certificate-sha256:\", and the hash in 64 hexadecimal digits";
            Refused::Instead(why.into())
        })
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        Self::Spki([0x77; 32])
    }
}

/// Reads a list of texts.
fn list<T: std::str::FromStr<Err = String>>(value: &DeValue<'_>) -> Result<Vec<T>, Refused> {
    let why = || Refused::Instead("a list of texts, as in [\"Name: value\"]".into());
    let items = texts(value).filter(|items| items.len() <= MOST_HEADERS).ok_or_else(why)?;
    items.iter().map(|text| text.parse().map_err(Refused::Because)).collect()
}

impl Value for Vec<HeaderLine> {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        list(value)
    }

    fn show(&self) -> String {
        quoted_list(self)
    }

    /// The names alone: a value may be a password.
    fn logged(&self) -> String {
        quoted_list(self.iter().map(|header| format!("{header:?}")))
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        Vec::new()
    }
}

impl Value for Vec<ExpectedHeader> {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        list(value)
    }

    fn show(&self) -> String {
        quoted_list(self)
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        Vec::new()
    }
}
