//! Asks every relay for one onion service's descriptor, to see what the directories hold.
//!
//! `HSFETCH … SERVER=` makes a stock client ask one relay, over a circuit of its own. There is one
//! command per relay, all at once. Such a fetch is exempt from the 15 minutes in which a client
//! asks no directory twice. `HS_DESC_CONTENT` reports the descriptor as the directory sent it, even
//! if the client knows a newer one. Limit: a client asks for the key of the time period that its
//! own consensus is in, so a descriptor that is published for the neighbouring period is not seen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::Client;
use crate::control::Reply;
use crate::relay::Relay;

/// How long all relays together may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// After this time a relay is asked again, on another circuit: a circuit through a frozen relay
/// never answers.
const ROUND: Duration = Duration::from_secs(3);

/// A descriptor that a directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedDescriptor {
    /// The RSA identity of the relay that holds it: 40 upper-case hexadecimal digits.
    pub relay: String,
    /// Its revision counter, from the outer layer.
    pub revision: u64,
    /// The descriptor itself.
    pub text: String,
}

/// Asks every running relay. Relays that hold no descriptor, or do not answer in time, are left
/// out.
pub(crate) fn ask(monitor: &Client, relays: &[Relay], onion: &str) -> Result<Vec<PublishedDescriptor>> {
    let onion = onion.strip_suffix(".onion").unwrap_or(onion);
    if onion.len() != 56 || !onion.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        bail!("{onion:?} is not a v3 onion address, which has 56 letters and digits");
    }
    let deadline = Instant::now() + PATIENCE;
    let mut control = monitor.control()?;
    control.command("SETEVENTS HS_DESC HS_DESC_CONTENT")?;
    let mut waiting: Vec<&str> =
        relays.iter().filter(|relay| relay.is_running()).map(|relay| relay.rsa_fingerprint.as_str()).collect();
    let mut found = BTreeMap::new();
    while !waiting.is_empty() && Instant::now() < deadline {
        for relay in &waiting {
            control.send(&format!("HSFETCH {onion} SERVER=${relay}"))?;
        }
        // Tor refuses to ask a relay that its consensus does not list. No client could ask that
        // relay either.
        waiting.retain(|_| control.reply("HSFETCH").is_ok());
        let round = deadline.min(Instant::now() + ROUND);
        while !waiting.is_empty()
            && let Some(event) = control.event(round)?
        {
            if let Some((relay, text)) = answer(&event, onion) {
                waiting.retain(|name| *name != relay);
                if let Some(text) = text {
                    found.insert(relay.to_owned(), text);
                }
            }
        }
    }
    found
        .into_iter()
        .map(|(relay, text)| {
            let revision = revision(&text).with_context(|| format!("{relay} sent a descriptor without a revision"))?;
            Ok(PublishedDescriptor { relay, revision, text })
        })
        .collect()
}

/// The relay that has answered, and what it holds. `None` if the event is about something else, or
/// if the relay could not be asked.
fn answer<'a>(event: &'a Reply, onion: &str) -> Option<(&'a str, Option<String>)> {
    let line = event.lines.first()?;
    let words: Vec<&str> = line.text.split(' ').collect();
    match words.as_slice() {
        ["HS_DESC", "FAILED", address, _, relay, .., "REASON=NOT_FOUND"] if *address == onion => {
            Some((fingerprint(relay), None))
        }
        // Tor reports a failed fetch with an empty text, too.
        ["HS_DESC_CONTENT", address, _, relay] if *address == onion => {
            let text = line.data.clone().unwrap_or_default();
            (!text.trim().is_empty()).then(|| (fingerprint(relay), Some(text)))
        }
        _ => None,
    }
}

/// The digits of `$FINGERPRINT~nickname`.
fn fingerprint(name: &str) -> &str {
    let name = name.strip_prefix('$').unwrap_or(name);
    name.split(['~', '=']).next().unwrap_or(name)
}

/// The revision counter in a descriptor's outer layer.
pub(crate) fn revision(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("revision-counter "))?.trim().parse().ok()
}
