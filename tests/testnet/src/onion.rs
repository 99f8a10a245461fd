//! A plain C tor onion service, for comparison.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::{Client, READY_PATIENCE, Warmth};
use crate::control::{Control, Reply};
use crate::facts::Facts;
use crate::process::Keeper;
use crate::relay::log_tail;

/// How long its descriptor may take to be published.
const PATIENCE: Duration = Duration::from_secs(60);

/// The only authorized client of a restricted service, in the format of tor's folder
/// `authorized_clients`. Its public key is 32 bytes of 9; no client has the secret key.
const NO_CLIENT: &str = "descriptor:x25519:BEEQSCIJBEEQSCIJBEEQSCIJBEEQSCIJBEEQSCIJBEEQSCIJBEEQ";

/// A plain C tor v3 onion service. Dropping it ends its tor.
#[derive(Debug)]
pub struct OnionService {
    client: Client,
    hostname: String,
}

impl OnionService {
    pub(crate) fn start(
        keeper: &Keeper,
        facts: &Facts,
        name: &str,
        virtual_port: u16,
        target: SocketAddr,
        options: &str,
    ) -> Result<Self> {
        let started = Instant::now();
        let starting = Client::begin(keeper, facts, name, Warmth::Warm, |folder| {
            format!(
                "HiddenServiceDir {}/service\nHiddenServicePort {virtual_port} {target}\n{options}\n",
                folder.display()
            )
        })?;
        // Subscribed before the client is ready, so that no upload is missed.
        let uploads = watch_uploads(starting.early_control()?)?;
        let client = starting.finish(READY_PATIENCE)?;
        let hostname = fs::read_to_string(client.folder().join("service/hostname"))
            .with_context(|| format!("tor made no key for the onion service {name}"))?
            .trim()
            .to_owned();
        let service = Self { client, hostname };
        service.wait_until_published(uploads, started)?;
        Ok(service)
    }

    /// Like [`OnionService::start`], but returns as soon as all uploads that tor has begun are
    /// done.
    pub(crate) fn start_hastily(keeper: &Keeper, facts: &Facts, name: &str, target: SocketAddr) -> Result<Self> {
        let started = Instant::now();
        let starting = Client::begin(keeper, facts, name, Warmth::Warm, |folder| {
            format!("HiddenServiceDir {}/service\nHiddenServicePort 80 {target}\n", folder.display())
        })?;
        let mut uploads = watch_uploads(starting.early_control()?)?;
        let client = starting.finish(READY_PATIENCE)?;
        let hostname = fs::read_to_string(client.folder().join("service/hostname"))?.trim().to_owned();
        let mut tally = Uploads::default();
        while let Some(event) = uploads.event(started + PATIENCE)? {
            tally.count(&event);
            if tally.accepted > 0 && tally.under_way <= 0 {
                return Ok(Self { client, hostname });
            }
        }
        bail!("the onion service {hostname} was not published within {PATIENCE:?}")
    }

    /// Its address, `.onion` included.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// The folder with its keys and `hostname`, tor's `HiddenServiceDir`.
    pub fn service_folder(&self) -> PathBuf {
        self.client.folder().join("service")
    }

    /// The tor that runs it, which is a client too.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Kills its tor, starts it again, and waits until its new descriptor is published: with the
    /// same address, other introduction points and a higher revision.
    pub fn restart(&mut self) -> Result<()> {
        let started = Instant::now();
        self.client.relaunch()?;
        let uploads = watch_uploads(self.client.early_control()?)?;
        self.client.await_ready(READY_PATIENCE)?;
        self.wait_until_published(uploads, started)?;
        Ok(())
    }

    /// Restricts its descriptor to an authorized client that does not exist, or opens it to every
    /// client again, and waits until tor has published it again, or directories have refused it:
    /// within seconds, with the same introduction points and normally with a higher revision.
    /// `restricted` must differ from the present state, or tor publishes nothing. Tor publishes
    /// each time period when the introduction points of that period are established, so only one of
    /// two may be published yet.
    pub fn restrict(&self, restricted: bool) -> Result<Uploads> {
        let started = Instant::now();
        let client = self.service_folder().join("authorized_clients/nobody.auth");
        match restricted {
            true => fs::write(&client, NO_CLIENT),
            false => fs::remove_file(&client),
        }
        .with_context(|| format!("cannot change {}", client.display()))?;
        let mut uploads = watch_uploads(self.client.control()?)?;
        uploads.command("SIGNAL RELOAD")?;
        self.wait_until(uploads, started, |uploads| uploads.accepted + uploads.failures.len() > 0)
    }

    /// Waits until a directory has the descriptor and no upload is under way.
    fn wait_until_published(&self, uploads: Control, started: Instant) -> Result<()> {
        self.wait_until(uploads, started, |uploads| uploads.accepted > 0).map(drop)
    }

    /// Waits until no upload is under way and `is_enough` of what has ended.
    fn wait_until(
        &self,
        mut uploads: Control,
        started: Instant,
        is_enough: impl Fn(&Uploads) -> bool,
    ) -> Result<Uploads> {
        let mut tally = Uploads::default();
        let deadline = started + PATIENCE;
        // The descriptors of the two time periods are uploaded one after the other, so the wait
        // ends only after a time without events.
        loop {
            let quiet = Instant::now() + Duration::from_millis(1500);
            match uploads.event(quiet.min(deadline))? {
                Some(event) => tally.count(&event),
                None if tally.under_way <= 0 && is_enough(&tally) => return Ok(tally),
                None if Instant::now() >= deadline => bail!(
                    "the onion service {} was not published within {PATIENCE:?}; its log ends with:\n{}",
                    self.hostname,
                    log_tail(&self.client.folder())
                ),
                None => {}
            }
        }
    }
}

/// What tor has reported of a service's uploads.
#[derive(Debug, Default)]
pub struct Uploads {
    under_way: i32,
    accepted: usize,
    /// The reasons that tor gives.
    failures: Vec<String>,
}

impl Uploads {
    /// Whether a directory has refused a descriptor, as it does if it has one of this or a higher
    /// revision.
    pub fn were_refused(&self) -> bool {
        self.failures.iter().any(|reason| reason == "REASON=UPLOAD_REJECTED")
    }

    fn count(&mut self, event: &Reply) {
        let mut words = event.text().split(' ');
        match (words.next(), words.next()) {
            (Some("HS_DESC"), Some("UPLOAD")) => self.under_way += 1,
            (Some("HS_DESC"), Some("UPLOADED")) => {
                self.under_way -= 1;
                self.accepted += 1;
            }
            (Some("HS_DESC"), Some("FAILED")) => {
                self.under_way -= 1;
                self.failures.extend(words.next_back().map(str::to_owned));
            }
            _ => {}
        }
    }
}

impl fmt::Display for Uploads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} uploads were accepted, {} failed: {:?}",
            self.accepted,
            self.failures.len(),
            self.failures
        )
    }
}

/// Subscribes to tor's reports of descriptor uploads.
fn watch_uploads(mut control: Control) -> Result<Control> {
    control.command("SETEVENTS HS_DESC")?;
    Ok(control)
}
