//! What the directories hold: every relay asked for one onion service's descriptor.
//!
//! A stock client is told by `HSFETCH … SERVER=` to ask one relay, over a circuit of its own; one command each, all at
//! once. Such a fetch is not subject to the 15 minutes in which a client asks no directory twice, and it is reported by
//! `HS_DESC_CONTENT` as the directory sent it, even if the client knows a newer one. Its limit: a client asks for the key
//! of the time period that its own consensus is in, so what is published for the neighbouring period stays unseen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::Client;
use crate::relay::Relay;

/// How long relays may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A descriptor that a directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedDescriptor {
    /// The RSA identity of the relay that holds it: 40 upper-case hexadecimal digits.
    pub relay: String,
    /// Its revision, from the outer layer.
    pub revision: u64,
    /// The descriptor itself.
    pub text: String,
}

/// Asks every relay.
pub(crate) fn ask(
    monitor: &Client,
    relays: &[Relay],
    onion: &str,
) -> Result<Vec<PublishedDescriptor>> {
    let onion = onion.strip_suffix(".onion").unwrap_or(onion);
    if onion.len() != 56 || !onion.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        bail!("{onion:?} is not a v3 onion address, which has 56 letters and digits");
    }
    let deadline = Instant::now() + PATIENCE;
    let mut control = monitor.control()?;
    control.command("SETEVENTS HS_DESC HS_DESC_CONTENT")?;
    for relay in relays {
        control.send(&format!(
            "HSFETCH {onion} SERVER=${}",
            relay.rsa_fingerprint
        ))?;
    }
    for _ in relays {
        // A relay that the monitor's consensus doesn't list is refused; it holds nothing that a client could get.
        let _ = control.reply("HSFETCH");
    }
    let mut waiting: Vec<&str> = relays
        .iter()
        .filter(|relay| relay.is_running())
        .map(|relay| relay.rsa_fingerprint.as_str())
        .collect();
    let mut found = BTreeMap::new();
    while !waiting.is_empty() {
        let Some(event) = control.event(deadline)? else {
            break;
        };
        let Some(line) = event.lines.first() else {
            continue;
        };
        let words: Vec<&str> = line.text.split(' ').collect();
        match words.as_slice() {
            ["HS_DESC", "FAILED", address, _, relay, ..] if *address == onion => {
                waiting.retain(|name| *name != fingerprint(relay));
            }
            ["HS_DESC_CONTENT", address, _, relay] if *address == onion => {
                let text = line.data.clone().unwrap_or_default();
                // A failed fetch is reported with an empty descriptor too.
                if text.trim().is_empty() {
                    continue;
                }
                let relay = fingerprint(relay).to_owned();
                waiting.retain(|name| *name != relay);
                found.insert(relay, text);
            }
            _ => {}
        }
    }
    found
        .into_iter()
        .map(|(relay, text)| {
            let revision = revision(&text)
                .with_context(|| format!("{relay} sent a descriptor without a revision"))?;
            Ok(PublishedDescriptor {
                relay,
                revision,
                text,
            })
        })
        .collect()
}

/// The digits of `$FINGERPRINT~nickname`.
fn fingerprint(name: &str) -> &str {
    let name = name.strip_prefix('$').unwrap_or(name);
    name.split(['~', '=']).next().unwrap_or(name)
}

/// The revision counter in a descriptor's outer layer.
pub(crate) fn revision(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("revision-counter "))?
        .trim()
        .parse()
        .ok()
}
