//! Finds out from a client's control port which directory the client is waiting for.
//!
//! A stock client asks one directory after the other for a descriptor. It waits some 35 s for a
//! directory that has died, because it takes the death for a failure of its circuits. No service
//! can prevent that: it does not choose its directories.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::client::Client;
use crate::control::Control;

/// How long to wait for an event that tor has already sent.
const READING: Duration = Duration::from_millis(20);

/// Follows the requests of one client to directories.
#[derive(Debug)]
pub(super) struct Directories {
    control: Control,
    awaited: AwaitedDirectory,
}

impl Directories {
    /// Follows a client from now on.
    pub(super) fn of(client: &Client) -> Result<Self> {
        let mut control = client.control()?;
        control.command("SETEVENTS HS_DESC")?;
        Ok(Self { control, awaited: AwaitedDirectory::default() })
    }

    /// The RSA identity of the directory that was asked for a descriptor and has not answered yet.
    pub(super) fn awaited(&mut self) -> Result<Option<&str>> {
        while let Some(event) = self.control.event(Instant::now() + READING)? {
            self.awaited.note(event.text());
        }
        Ok(self.awaited.0.as_deref())
    }
}

#[derive(Debug, Default)]
struct AwaitedDirectory(Option<String>);

impl AwaitedDirectory {
    /// Processes an event: `HS_DESC ACTION ADDRESS AUTH $FINGERPRINT~NAME ...` (control-spec,
    /// 4.1.25).
    fn note(&mut self, event: &str) {
        let mut words = event.split(' ').skip(1);
        let Some(action) = words.next() else { return };
        let fingerprint = words.nth(2).and_then(|directory| directory.strip_prefix('$')?.get(..40));
        match (action, fingerprint) {
            ("REQUESTED", Some(fingerprint)) => self.0 = Some(fingerprint.to_owned()),
            ("RECEIVED" | "FAILED", fingerprint) if fingerprint == self.0.as_deref() => self.0 = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_awaited_until_it_has_answered_or_was_given_up() {
        let (one, other) = ("A".repeat(40), "B".repeat(40));
        let event = |action: &str, directory: &str| format!("HS_DESC {action} address NO_AUTH ${directory}~name id");
        for answer in ["RECEIVED", "FAILED"] {
            let mut awaited = AwaitedDirectory::default();
            awaited.note(&event("REQUESTED", &one));
            assert_eq!(awaited.0.as_ref(), Some(&one));
            awaited.note(&event(answer, &other));
            assert_eq!(awaited.0.as_ref(), Some(&one), "the answer of another directory does not count");
            awaited.note(&event(answer, &one));
            assert_eq!(awaited.0, None);
        }
    }

    #[test]
    fn other_events_are_ignored() {
        let mut awaited = AwaitedDirectory::default();
        for event in ["", "HS_DESC", "HS_DESC REQUESTED", "HS_DESC REQUESTED a b UNKNOWN", "SIGNAL NEWNYM"] {
            awaited.note(event);
            assert_eq!(awaited.0, None);
        }
    }
}
