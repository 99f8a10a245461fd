//! Removes from a text what an operator would not want to show to others.

use std::net::{IpAddr, SocketAddr};

/// Length of an onion address without `.onion`.
const LABEL: usize = 56;
/// Length of the beginning of an address with which log lines name a node.
const SHORT: usize = 8;
/// A run of this many letters and digits is a key, a fingerprint or a hash.
const OPAQUE: usize = 20;

/// The text with every onion address of version 3 replaced, whether it ends in `.onion` or not, and
/// mistyped ones too.
pub(crate) fn onion_addresses(text: &str) -> String {
    by_run(text, |run, is_onion| match run.len() == LABEL || is_onion {
        true => Some("(onion address)".into()),
        false => None,
    })
}

/// The text with onion addresses cut to the beginning with which log lines and `status` name a
/// node, and without the IP addresses of other hosts. For the log, which may be read by more people
/// than the node's operator.
pub(crate) fn shortened(text: &str) -> String {
    between_escapes(text, shortened_part)
}

fn shortened_part(text: &str) -> String {
    let text = by_run(text, |run, is_onion| {
        let is_long = run.len() == LABEL || is_onion && run.len() > SHORT;
        is_long.then(|| run.get(..SHORT).map(|start| format!("{start}…")).unwrap_or_default())
    });
    without_ip_addresses(&text)
}

/// Redacts the parts of one report: onion addresses get a number each, which distinguishes them; IP
/// addresses other than loopback, keys and fingerprints are replaced.
#[derive(Debug, Default)]
pub(crate) struct Redaction {
    /// The onion addresses so far, without `.onion`.
    seen: Vec<String>,
}

impl Redaction {
    /// The redacted text. The short form of an address is recognized once the address has been
    /// seen.
    pub(crate) fn apply(&mut self, text: &str) -> String {
        between_escapes(text, |part| {
            let part = by_run(part, |run, is_onion| self.replace(run, is_onion));
            without_ip_addresses(&part)
        })
    }

    fn replace(&mut self, run: &str, is_onion: bool) -> Option<String> {
        let run = run.to_ascii_lowercase();
        if run.len() == LABEL || is_onion {
            let at = self.seen.iter().position(|seen| *seen == run).unwrap_or_else(|| {
                self.seen.push(run);
                self.seen.len() - 1
            });
            return Some(format!("(onion address {})", at + 1));
        }
        if run.len() == SHORT
            && let Some(at) = self.seen.iter().position(|seen| seen.starts_with(&run))
        {
            return Some(format!("(onion address {})", at + 1));
        }
        let has = |kind: fn(&u8) -> bool| run.as_bytes().iter().any(kind);
        let is_opaque = run.len() >= OPAQUE && has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic);
        is_opaque.then(|| "(hidden)".into())
    }
}

/// Applies `redact` to what is between escapes: a backslash and a character, as in JSON and where a
/// line shows a control character. That character would otherwise be taken for a part of what
/// follows.
fn between_escapes(text: &str, mut redact: impl FnMut(&str) -> String) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('\\') {
        let (part, escape) = rest.split_at(start);
        let length = 1 + escape.chars().nth(1).map_or(0, char::len_utf8);
        shown.push_str(&redact(part));
        shown.push_str(&escape[..length]);
        rest = &escape[length..];
    }
    shown.push_str(&redact(rest));
    shown
}

/// Replaces runs of letters and digits. `replace` is given each run, and whether `.onion` follows,
/// which is replaced with it.
fn by_run(text: &str, mut replace: impl FnMut(&str, bool) -> Option<String>) -> String {
    let in_run = |it: char| it.is_ascii_alphanumeric();
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(in_run) {
        let (before, from) = rest.split_at(start);
        let (run, after) = from.split_at(from.find(|it| !in_run(it)).unwrap_or(from.len()));
        shown.push_str(before);
        let onion = after.strip_prefix(".onion");
        match replace(run, onion.is_some()) {
            Some(instead) => {
                shown.push_str(&instead);
                rest = onion.unwrap_or(after);
            }
            None => {
                shown.push_str(run);
                rest = after;
            }
        }
    }
    shown.push_str(rest);
    shown
}

fn without_ip_addresses(text: &str) -> String {
    let in_address = |it: char| it.is_ascii_hexdigit() || matches!(it, ':' | '.' | '[' | ']');
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(in_address) {
        let (before, from) = rest.split_at(start);
        let (run, after) = from.split_at(from.find(|it| !in_address(it)).unwrap_or(from.len()));
        shown.push_str(before);
        // A letter of a longer term begins no address, but one may follow a colon behind the term.
        let behind = if before.ends_with(|it: char| it.is_ascii_alphanumeric()) {
            run.trim_start_matches(|it| !matches!(it, ':' | '.')).trim_start_matches([':', '.'])
        } else {
            run
        };
        let (term, address) = run.split_at(run.len() - behind.len());
        shown.push_str(term);
        shown.push_str(&without_ip_address(address));
        rest = after;
    }
    shown.push_str(rest);
    shown
}

/// A run of hexadecimal digits, colons, dots and brackets without the address that it may be, with
/// what surrounds the address.
fn without_ip_address(run: &str) -> String {
    let ends = |it: char| matches!(it, '.' | ':');
    let candidates = [
        run.trim_end_matches(ends),
        run.trim_end_matches(ends).trim_start_matches(ends),
        run.trim_start_matches('[').trim_end_matches(ends),
        run.trim_matches(|it| ends(it) || matches!(it, '[' | ']')),
    ];
    for core in candidates {
        if is_elsewhere(core)
            && let Some((before, after)) = run.split_once(core)
        {
            return format!("{before}(address){after}");
        }
    }
    run.to_owned()
}

/// Whether this is an address of another host, with or without brackets and a port.
fn is_elsewhere(text: &str) -> bool {
    let parse = |text: &str| {
        let with_port = text.parse::<SocketAddr>().map(|address| address.ip());
        with_port.or_else(|_| text.parse::<IpAddr>()).ok()
    };
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    parse(text).or_else(|| inner.and_then(parse)).is_some_and(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUCK: &str = "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad";

    #[test]
    fn onion_addresses_are_replaced_and_the_rest_stays() {
        for (text, shown) in [
            (format!("{DUCK}.onion"), "(onion address)"),
            (format!("at http://www.{DUCK}.onion:80/ now"), "at http://www.(onion address):80/ now"),
            (DUCK.to_uppercase(), "(onion address)"),
            (format!("\"{}x.onion\" is mistyped", &DUCK[..50]), "\"(onion address)\" is mistyped"),
            ("line 3, column 1: no address\u{e4}".into(), "line 3, column 1: no address\u{e4}"),
            (String::new(), ""),
        ] {
            assert_eq!(onion_addresses(&text), shown);
        }
    }

    #[test]
    fn a_log_line_names_nodes_by_the_beginning_of_their_addresses_and_no_other_host() {
        for (line, shown) in [
            (format!("peer={DUCK}.onion lost"), "peer=duckduck… lost"),
            (
                format!("{{\"peer\":\"{DUCK}\",\"at\":\"203.0.113.7:7440\"}}"),
                "{\"peer\":\"duckduck…\",\"at\":\"(address)\"}",
            ),
            ("listens=[203.0.113.7, 198.51.100.2]".into(), "listens=[(address), (address)]"),
            ("endpoint:203.0.113.7:51820 tcp:203.0.113.7".into(), "endpoint:(address) tcp:(address)"),
            ("rustbalance::add v0.1.0 at:2001:db8::7".into(), "rustbalance::add v0.1.0 at:(address)"),
            ("[2001:db8::7, ::1]".into(), "[(address), ::1]"),
            ("failed\\n203.0.113.7:9\\tabc".into(), "failed\\n(address)\\tabc"),
            (format!("failed\\n{DUCK}"), "failed\\nduckduck…"),
            ("join <master.onion> at 127.0.0.1:80".into(), "join <master.onion> at 127.0.0.1:80"),
            (
                "2026-11-30T20:06:30.123456Z  INFO rustbalance: up".into(),
                "2026-11-30T20:06:30.123456Z  INFO rustbalance: up",
            ),
        ] {
            assert_eq!(shortened(&line), shown);
        }
    }

    #[test]
    fn a_report_tells_addresses_apart_and_shows_none() {
        let mut redaction = Redaction::default();
        let other = DUCK.replace('d', "e");
        let mut shown = |text: &str| redaction.apply(text);
        assert_eq!(shown(&format!("\"{DUCK}.onion\" and {other}")), "\"(onion address 1)\" and (onion address 2)");
        assert_eq!(shown(&format!("peer={} again", &other[..8])), "peer=(onion address 2) again");
        assert_eq!(shown("relay=$A9B8C7D6E5F4A3B2C1D0A9B8C7D6E5F4A3B2C1D0"), "relay=$(hidden)");
        for (address, kept) in [
            ("203.0.113.7:7440", false),
            ("203.0.113.7", false),
            ("[2001:db8::7]:7440", false),
            ("2001:db8::7", false),
            ("[203.0.113.7:7440]", false),
            ("127.0.0.1:8080", true),
            ("[::1]:80", true),
            ("0.1.0", true),
            ("20:06:30", true),
            ("2026-11-30T20:06:30Z", true),
        ] {
            let text = format!("listens={address} now");
            assert_eq!(shown(&text), if kept { text.clone() } else { "listens=(address) now".into() });
        }
        assert_eq!(shown("at 203.0.113.7: refused"), "at (address): refused");
        assert_eq!(shown("[limits] streams changed from 4096 to 9"), "[limits] streams changed from 4096 to 9");
    }
}
