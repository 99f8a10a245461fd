//! A stock C tor client.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::Vitals;
use crate::control::Control;
use crate::facts::{ClientPorts, Facts};
use crate::http::{self, Response};
use crate::process::{self, Keeper};
use crate::relay::{bootstrapped, log_tail};
use crate::{keys, torrc};

/// How long a client may take to be ready.
pub(crate) const READY_PATIENCE: Duration = Duration::from_secs(60);

/// The folder of the network's own client.
pub(crate) const MAIN: &str = "client";

/// What a new client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmth {
    /// Nothing: it fetches the consensus first, which takes 2 to 6 s.
    Fresh,
    /// The directory documents of the network's own client, but no guards, circuits or descriptors.
    /// It is ready in about 1 s.
    Warm,
}

/// A stock C tor client. Dropping it ends its process, unless it is the network's own client.
#[derive(Debug)]
pub struct Client {
    base: PathBuf,
    name: String,
    /// The file that records its pid.
    record: String,
    ports: ClientPorts,
    ends_with_us: bool,
}

impl Client {
    /// Starts a client and waits until it is ready. `extra` is added to its `torrc`.
    pub(crate) fn start(
        keeper: &Keeper,
        facts: &Facts,
        name: &str,
        warmth: Warmth,
        extra: impl FnOnce(&Path) -> String,
    ) -> Result<Self> {
        Self::begin(keeper, facts, name, warmth, extra)?.finish(READY_PATIENCE)
    }

    /// Starts a client without waiting until it is ready.
    pub(crate) fn begin(
        keeper: &Keeper,
        facts: &Facts,
        name: &str,
        warmth: Warmth,
        extra: impl FnOnce(&Path) -> String,
    ) -> Result<Starting> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            bail!("a client cannot be called {name:?}; use letters, digits and dashes");
        }
        // Processes that share the network may choose the same name.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("clients/{name}-{}-{number}", std::process::id());
        let main = keeper.base().join(MAIN);
        let teacher = (warmth == Warmth::Warm).then_some(main.as_path());
        Self::launch(keeper, facts, unique, teacher, extra)
    }

    /// Starts a client without waiting until it is ready. It begins with the directory documents in
    /// `teacher`, the folder of another tor.
    pub(crate) fn launch(
        keeper: &Keeper,
        facts: &Facts,
        name: String,
        teacher: Option<&Path>,
        extra: impl FnOnce(&Path) -> String,
    ) -> Result<Starting> {
        let base = keeper.base().to_path_buf();
        let folder = base.join(&name);
        let _ = fs::remove_dir_all(&folder);
        keys::create_private(&folder)?;
        if let Some(teacher) = teacher {
            for document in ["cached-certs", "cached-microdesc-consensus", "cached-microdescs", "cached-microdescs.new"]
            {
                // Tor fetches a document that is missing or only half written.
                let _ = fs::copy(teacher.join(document), folder.join(document));
            }
        }
        let text = torrc::client(&folder, facts) + &extra(&folder);
        fs::write(folder.join("torrc"), text).with_context(|| format!("cannot write to {}", folder.display()))?;
        keeper.start(&name)?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Starting(Self {
            base,
            name,
            record: keeper.own_record().to_owned(),
            ports: ClientPorts { socks: nowhere, control: nowhere },
            ends_with_us: true,
        }))
    }

    /// The network's own client. Dropping the value does not end it.
    pub(crate) fn main(base: &Path, ports: ClientPorts) -> Self {
        Self { base: base.to_path_buf(), name: MAIN.to_owned(), record: String::new(), ports, ends_with_us: false }
    }

    /// Its SOCKS port.
    pub fn socks(&self) -> SocketAddr {
        self.ports.socks
    }

    /// Whether its process exists.
    pub fn is_running(&self) -> bool {
        process::running(&self.base, &self.name).is_some()
    }

    /// The resources that its process uses; `None` if it has ended.
    pub fn vitals(&self) -> Option<Vitals> {
        Vitals::of(process::running(&self.base, &self.name)?.as_raw_nonzero().get())
    }

    /// The folder with its log (`notice.log`) and its data.
    pub fn folder(&self) -> PathBuf {
        self.base.join(&self.name)
    }

    /// Fetches `http://HOST[:PORT]/PATH` through it; an answer with any status is a success.
    pub fn get(&self, url: &str, timeout: Duration) -> Result<Response> {
        http::request(self.ports.socks, None, url, None, timeout)
    }

    /// Like [`Client::get`], on circuits of its own: requests with the same `user` share circuits,
    /// others do not. All of them share cached descriptors and the memory of failed introduction
    /// points.
    pub fn get_isolated(&self, user: &str, url: &str, timeout: Duration) -> Result<Response> {
        http::request(self.ports.socks, Some(user), url, None, timeout)
    }

    /// Opens a stream to a port of an onion service, on circuits of its own like those of
    /// [`Client::get_isolated`]. Dropping it closes the stream; the circuits stay for a while.
    pub fn open_isolated(&self, user: &str, onion: &str, port: u16, timeout: Duration) -> Result<TcpStream> {
        http::open(self.ports.socks, user, onion, port, timeout)
    }

    /// Posts a body to `http://HOST[:PORT]/PATH`.
    pub fn post(&self, url: &str, body: &[u8], timeout: Duration) -> Result<Response> {
        http::request(self.ports.socks, None, url, Some(body), timeout)
    }

    /// Makes it forget its circuits, cached descriptors and failed introduction points, and waits
    /// until it has. Tor does this at most once in 10 s, so a second call waits for the rest of
    /// these.
    pub fn new_identity(&self) -> Result<()> {
        let mut control = self.control()?;
        control.command("SETEVENTS SIGNAL")?;
        control.command("SIGNAL NEWNYM")?;
        let deadline = Instant::now() + Duration::from_secs(15);
        while let Some(event) = control.event(deadline)? {
            if event.text() == "SIGNAL NEWNYM" {
                return Ok(());
            }
        }
        bail!("the client {} did not take a new identity within 15 s", self.name)
    }

    /// Kills it and starts it again; its files stay. The caller must then call
    /// [`Client::await_ready`].
    pub(crate) fn relaunch(&self) -> Result<()> {
        process::kill(&self.base, &self.name)?;
        for stale in ["notice.log", "control-port"] {
            let _ = fs::remove_file(self.folder().join(stale));
        }
        process::launch(&self.base, &self.name, &self.record)
    }

    /// Waits until it is ready, and learns its ports.
    pub(crate) fn await_ready(&mut self, patience: Duration) -> Result<()> {
        wait(self, patience)?;
        let control = control_port(&self.folder())?;
        let listeners = Control::connect(control, &self.folder())?.get_info("net/listeners/socks")?;
        let socks = listeners
            .trim_matches('"')
            .parse()
            .with_context(|| format!("tor says that its SOCKS port is {listeners:?}"))?;
        self.ports = ClientPorts { socks, control };
        Ok(())
    }

    /// A connection to its control port, which it opens long before it is ready.
    pub(crate) fn early_control(&self) -> Result<Control> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let control = control_port(&self.folder()).and_then(|port| Control::connect(port, &self.folder()));
            match control {
                Ok(control) => return Ok(control),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub(crate) fn ports(&self) -> ClientPorts {
        self.ports
    }

    /// A new connection to its control port.
    pub fn control(&self) -> Result<Control> {
        Control::connect(self.ports.control, &self.folder())
    }
}

/// A client that may not be ready yet. Dropping it ends the client.
pub(crate) struct Starting(Client);

impl Starting {
    /// Waits until it is ready.
    pub(crate) fn finish(mut self, patience: Duration) -> Result<Client> {
        self.0.await_ready(patience)?;
        Ok(self.0)
    }

    /// See [`Client::early_control`].
    pub(crate) fn early_control(&self) -> Result<Control> {
        self.0.early_control()
    }

    /// From now on the client ends with the network, not with this value.
    pub(crate) fn release(&mut self) {
        self.0.ends_with_us = false;
    }
}

/// Waits until a client is ready.
fn wait(client: &Client, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut last_running = Instant::now();
    while !bootstrapped(&client.folder()) {
        if client.is_running() {
            last_running = Instant::now();
        }
        // A single look may fall between the writing of the file with the pid and the start of the
        // program.
        if last_running.elapsed() > Duration::from_secs(2) {
            bail!("the client {} ended before it was ready; it said:\n{}", client.name, log_tail(&client.folder()));
        }
        if Instant::now() > deadline {
            bail!(
                "the client {} was not ready within {patience:?}; its log ends with:\n{}",
                client.name,
                log_tail(&client.folder())
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The address of the control port of the client in `folder`.
fn control_port(folder: &Path) -> Result<SocketAddr> {
    let path = folder.join("control-port");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("tor opened no control port: cannot read {}", path.display()))?;
    text.trim()
        .strip_prefix("PORT=")
        .and_then(|port| port.parse().ok())
        .with_context(|| format!("{} says {text:?}", path.display()))
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.ends_with_us {
            return;
        }
        let _ = process::kill(&self.base, &self.name);
        // After a failure its log may show the reason.
        if !std::thread::panicking() && std::env::var_os(crate::ENV_KEEP).is_none() {
            let _ = fs::remove_dir_all(self.folder());
        }
    }
}
