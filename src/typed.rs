//! What people type and paste: onion addresses in upper case, out of a browser's address bar, with
//! a port; and names with a slip.
//!
//! Addresses from the wire or from disk have one form and are read by `FromStr`, which accepts
//! nothing else.

use rustbalance_gossip::id::{AddressError, OnionAddress};

/// The service's label in a typed address, in lower case: without scheme, path, port, trailing dot,
/// `.onion`, and subdomains (every name below an onion address leads to the same service). Not
/// checked further.
pub fn label(text: &str) -> String {
    let text = text.trim();
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let host = text.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let host = host.strip_suffix(".onion").unwrap_or(&host);
    host.rsplit('.').next().unwrap_or_default().to_owned()
}

/// The typed address, or what is wrong with it. Can be the value parser of a command line option.
pub fn address<T: From<OnionAddress>>(text: &str) -> Result<T, AddressError> {
    // The error then shows only the label, not the text around it.
    format!("{}.onion", label(text)).parse::<OnionAddress>().map(T::from)
}

/// The name that was most likely meant by a typed one: the nearest, if at most a third of the typed
/// characters differ.
pub(crate) fn meant<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = typed.chars().count().div_ceil(3).max(1);
    let rated = names.into_iter().map(|name| (strsim::osa_distance(typed, name), name));
    rated.filter(|(distance, _)| *distance <= most).min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustbalance_gossip::id::ServiceId;

    const DUCK: &str = "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad";

    #[test]
    fn an_address_is_taken_as_people_type_it() {
        let meant: ServiceId = format!("{DUCK}.onion").parse().unwrap();
        for typed in [
            format!("{DUCK}.onion"),
            DUCK.into(),
            format!("{}.ONION", DUCK.to_uppercase()),
            format!("  {DUCK}.onion\n"),
            format!("http://{DUCK}.onion/"),
            format!("HTTPS://{DUCK}.onion/path?query=1#part"),
            format!("{DUCK}.onion/"),
            format!("{DUCK}.onion."),
            format!("www.{DUCK}.onion"),
            format!("a.b.{DUCK}.onion"),
            format!("{DUCK}.onion:80"),
            format!("http://www.{}.onion.:443/index.html", DUCK.to_uppercase()),
        ] {
            assert_eq!(address(&typed), Ok(meant), "{typed}");
        }
    }

    #[test]
    fn a_mistyped_address_is_called_mistyped_whatever_is_around_it() {
        let last = format!("{}q", &DUCK[..55]);
        for typed in [format!("{last}.onion"), last.clone(), format!("http://www.{last}.onion:80/")] {
            assert!(matches!(address::<ServiceId>(&typed), Err(AddressError::Checksum(_))), "{typed}");
        }
        let short = address::<ServiceId>("http://expyuzz4wqqyqhjn.onion/").unwrap_err();
        assert_eq!(short, AddressError::Length("expyuzz4wqqyqhjn.onion".into(), 16));
        for typed in ["", "/", "http://", ".onion", "example.com", &format!("user@{DUCK}.onion"), "é"] {
            assert!(address::<ServiceId>(typed).is_err(), "{typed}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
            let _ = address::<OnionAddress>(&text);
        }
    }
}
