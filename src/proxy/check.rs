//! How the target of a port is checked, as the table `[port.health]` says. `src/health/` does it.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use hyper::header::{HeaderName, HeaderValue};

/// How a target is checked. What is `None` is as `[health]` says, or has the default named here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortCheck {
    /// What is asked of the target.
    pub kind: Option<CheckKind>,
    /// Path of the request, with its query; default `/`.
    pub path: Option<String>,
    /// Value of `Host`, and the name that a certificate must have; by default that of the target.
    pub host: Option<String>,
    /// Further headers of the request.
    pub headers: Vec<HeaderLine>,
    /// The status that the answer must have; default [`StatusRange::default`].
    pub expect_status: Option<StatusRange>,
    /// Headers that the answer must have.
    pub expect_headers: Vec<ExpectedHeader>,
    /// A text that the beginning of the answer's body must contain.
    pub expect_body: Option<String>,
    /// Certificates (PEM) that may have signed the target's.
    pub ca_file: Option<PathBuf>,
    /// Hash of the target's certificate or of its key.
    pub pin: Option<Pin>,
    /// Time between two checks while the target does not answer.
    pub interval: Option<Duration>,
    /// Time between two checks while the target answers.
    pub healthy_interval: Option<Duration>,
    /// Time limit for one check.
    pub timeout: Option<Duration>,
    /// Successes in a row that make an unhealthy target healthy.
    pub successes: Option<u32>,
    /// Failures in a row that make a healthy target unhealthy.
    pub failures: Option<u32>,
}

impl PortCheck {
    /// What is asked of the target.
    pub fn kind(&self) -> CheckKind {
        self.kind.unwrap_or_default()
    }

    /// The path of the request without its query, which may be secret.
    pub fn shown_path(&self) -> &str {
        self.path.as_deref().unwrap_or("/").split('?').next().unwrap_or_default()
    }
}

/// For `status`: `connect`, `HTTP GET /path`.
impl fmt::Display for PortCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            CheckKind::Connect => f.write_str("connect"),
            CheckKind::Http => write!(f, "HTTP GET {}", self.shown_path()),
            CheckKind::Https => write!(f, "HTTPS GET {}", self.shown_path()),
        }
    }
}

/// What is asked of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CheckKind {
    /// That it accepts a connection.
    #[default]
    Connect,
    /// That it answers an HTTP request.
    Http,
    /// That it answers an HTTP request over TLS, with a certificate that is known.
    Https,
}

/// The statuses that an answer may have. The default is 200 to 399, as with Kubernetes: a redirect
/// shows that the application answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusRange(RangeInclusive<u16>);

impl Default for StatusRange {
    fn default() -> Self {
        Self(200..=399)
    }
}

impl StatusRange {
    /// Whether this status is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.contains(&status)
    }
}

/// Reads `200` and `200-299`.
impl FromStr for StatusRange {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let status = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status)).ok_or(());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = status(first)?..=status(last)?;
        if range.is_empty() { Err(()) } else { Ok(Self(range)) }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (first, last) if first == last => first.fmt(f),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// Headers that a check sets itself, or that would change where its request ends.
const OWN_HEADERS: [&str; 6] = ["host", "user-agent", "connection", "content-length", "transfer-encoding", "expect"];

/// A header to send. Its value may be secret, so `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct HeaderLine {
    /// The header's name.
    pub name: HeaderName,
    /// The header's value.
    pub value: HeaderValue,
}

/// Reads `Name: value`.
impl FromStr for HeaderLine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').ok_or("a header is written \"Name: value\"")?;
        let name: HeaderName =
            name.trim().parse().map_err(|_| format!("{:?} is not the name of a header", name.trim()))?;
        if OWN_HEADERS.contains(&name.as_str()) {
            return Err(format!("the check sets {name} itself (for Host there is the key \"host\")"));
        }
        let value =
            value.trim().parse().map_err(|_| format!("the value of {name} has characters that no header may have"))?;
        Ok(Self { name, value })
    }
}

impl fmt::Display for HeaderLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.value.to_str().unwrap_or_default())
    }
}

impl fmt::Debug for HeaderLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ...", self.name)
    }
}

/// A header that an answer must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedHeader {
    /// The header's name.
    pub name: HeaderName,
    /// Its value; `None` for any.
    pub value: Option<HeaderValue>,
}

/// Reads `Name: value`, and `Name` for any value.
impl FromStr for ExpectedHeader {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value.trim())));
        let name: HeaderName =
            name.trim().parse().map_err(|_| format!("{:?} is not the name of a header", name.trim()))?;
        let value = value.map(|value| value.parse().map_err(|_| format!("no header has the value {value:?}")));
        Ok(Self { name, value: value.transpose()? })
    }
}

impl fmt::Display for ExpectedHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}: {}", self.name, value.to_str().unwrap_or_default()),
            None => self.name.fmt(f),
        }
    }
}

/// The SHA-256 by which a certificate is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// Of the whole certificate (DER).
    Certificate([u8; 32]),
    /// Of its public key (SubjectPublicKeyInfo, DER), which stays when a certificate is renewed
    /// with the same key.
    Spki([u8; 32]),
}

/// Reads `certificate-sha256:HEX` and `spki-sha256:HEX`; colons between the digits, as `openssl`
/// prints them, are ignored.
impl FromStr for Pin {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (of, digits) = text.split_once(':').ok_or(())?;
        let digits: String = digits.chars().filter(|c| *c != ':').collect();
        let hash = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).map_err(drop)?.try_into().map_err(drop)?;
        match of {
            "certificate-sha256" => Ok(Self::Certificate(hash)),
            "spki-sha256" => Ok(Self::Spki(hash)),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (of, hash) = match self {
            Self::Certificate(hash) => ("certificate", hash),
            Self::Spki(hash) => ("spki", hash),
        };
        write!(f, "{of}-sha256:{}", HEXLOWER_PERMISSIVE.encode(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_headers_and_pins_read_as_they_are_shown() {
        for text in ["200", "200-299", "100-599"] {
            assert_eq!(text.parse::<StatusRange>().unwrap().to_string(), text);
        }
        for text in ["", "2xx", "99", "600", "299-200", "200-", "-200"] {
            assert!(text.parse::<StatusRange>().is_err(), "{text}");
        }
        let header: HeaderLine = "Authorization:  Bearer secret".parse().unwrap();
        assert_eq!(header.to_string(), "authorization: Bearer secret");
        assert!(!format!("{header:?}").contains("secret"));
        for text in ["Host: x", "content-length: 3", "no colon", "a b: c", "x: a\nb"] {
            assert!(text.parse::<HeaderLine>().is_err(), "{text:?}");
        }
        assert_eq!("Server".parse::<ExpectedHeader>().unwrap().to_string(), "server");
        assert_eq!("Server: x".parse::<ExpectedHeader>().unwrap().to_string(), "server: x");
        let hash = "0f".repeat(32);
        for of in ["certificate", "spki"] {
            let text = format!("{of}-sha256:{hash}");
            assert_eq!(text.parse::<Pin>().unwrap().to_string(), text);
        }
        let printed = format!("certificate-sha256:{}", vec!["0F"; 32].join(":"));
        assert_eq!(printed.parse::<Pin>().unwrap().to_string(), format!("certificate-sha256:{hash}"));
        for text in [hash.as_str(), "spki-sha256:0f", "spki-sha1:0f", "spki:xx"] {
            assert!(text.parse::<Pin>().is_err(), "{text}");
        }
    }
}
