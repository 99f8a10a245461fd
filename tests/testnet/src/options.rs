//! The options of a network, and the reservation of its ports.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

/// Port bases tried in turn, in thousands. All are below the range from which Linux takes the ports
/// of outgoing connections.
const PORT_BASES: std::ops::Range<u16> = 15..32;

/// Which network to boot.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder that holds everything of the network. It is created if it does not exist.
    pub base: PathBuf,
    /// Whether to remove `base` when the network goes.
    pub wipe: bool,
    /// Number of directory authorities; they are relays too.
    pub authorities: usize,
    /// Number of relays in addition to the authorities.
    pub relays: usize,
    /// Number of these relays that are exits (to loopback addresses too).
    pub exits: usize,
    /// Time between two consensuses: whole seconds that divide a day. Arti requires at least 15 s.
    /// A time period of onion services lasts 24 of them.
    pub voting_interval: Duration,
    /// The first of 300 ports to use; `None` takes the first free of 15000, 16000 and so on.
    pub port_base: Option<u16>,
    /// Where keys are kept between runs; `None` takes `testnet-keys` in cargo's target folder.
    pub key_cache: Option<PathBuf>,
}

impl Default for Options {
    /// Three authorities and eight relays in a temporary folder that is removed at the end.
    fn default() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}{}-{}", TEMPORARY_PREFIX, std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { wipe: true, ..Self::at(std::env::temp_dir().join(name)) }
    }
}

/// The names of the temporary folders of [`Options::default`] begin with this.
pub(crate) const TEMPORARY_PREFIX: &str = "rustbalance-testnet-";

impl Options {
    /// The default network in a folder that stays.
    pub fn at(base: impl Into<PathBuf>) -> Self {
        Self {
            base: base.into(),
            wipe: false,
            authorities: 3,
            relays: 8,
            exits: 4,
            voting_interval: Duration::from_secs(20),
            port_base: None,
            key_cache: None,
        }
    }

    /// Refuses numbers that cannot make a network.
    pub(crate) fn check(&self) -> Result<()> {
        if self.authorities == 0 || self.authorities + self.relays < 5 {
            bail!(
                "a network needs an authority and at least 5 relays in all, not {} authorities and {} relays",
                self.authorities,
                self.relays
            );
        }
        if self.authorities + self.relays > 100 {
            bail!("a network of {} relays has no room in 100 ports; ask for fewer", self.authorities + self.relays);
        }
        if self.exits == 0 || self.exits > self.relays {
            bail!("of {} relays, {} cannot be exits; ask for 1 to {}", self.relays, self.exits, self.relays);
        }
        if self.voting_interval < Duration::from_secs(15) || self.voting_interval.subsec_nanos() != 0 {
            bail!("a voting interval of {:?} is not usable; ask for whole seconds, 15 at least", self.voting_interval);
        }
        if 86_400 % self.voting_interval.as_secs() != 0 {
            bail!("a voting interval of {:?} does not divide a day, which tor demands", self.voting_interval);
        }
        Ok(())
    }

    /// The folder in which keys are kept between runs.
    pub(crate) fn key_cache(&self) -> PathBuf {
        if let Some(folder) = &self.key_cache {
            return folder.clone();
        }
        target_folder().unwrap_or_else(std::env::temp_dir).join("testnet-keys")
    }

    /// Reserves the ports of this network.
    pub(crate) fn reserve_ports(&self) -> Result<Ports> {
        if let Some(base) = self.port_base {
            return Ports::reserve(base, self).with_context(|| {
                format!("cannot use the ports from {base}; choose another port base, or none to have one found")
            });
        }
        let mut last = None;
        for thousand in PORT_BASES {
            match Ports::reserve(thousand * 1000, self) {
                Ok(ports) => return Ok(ports),
                Err(error) => last = Some(error),
            }
        }
        bail!(
            "no free ports for a network from {}000 to {}000; stop other test networks or name a port base; the last error: {:#}",
            PORT_BASES.start,
            PORT_BASES.end,
            last.unwrap_or_else(|| anyhow!("none was tried"))
        )
    }
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, or the one that holds this program.
pub(crate) fn target_folder() -> Option<PathBuf> {
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        return Some(PathBuf::from(target));
    }
    // Cargo marks its target folder with this file; our executable is somewhere below it.
    let exe = std::env::current_exe().ok()?;
    exe.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists()).map(PathBuf::from)
}

/// The id of this process's user outside of its user namespace. Inside of one, such as the soak's,
/// every user may be root.
fn user() -> u32 {
    let uid = rustix::process::getuid().as_raw();
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    outside(uid, &map).unwrap_or(uid)
}

/// Maps a user id of this namespace to the one outside. A line of `map` has the first id inside,
/// the first id outside, and how many ids follow each other.
fn outside(uid: u32, map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>());
        let (Some(Ok(here)), Some(Ok(there)), Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next())
        else {
            return None;
        };
        let nth = uid.checked_sub(here).filter(|nth| *nth < count)?;
        there.checked_add(nth)
    })
}

/// The ports of one network, reserved against other networks of this user as long as this value
/// exists.
#[derive(Debug)]
pub(crate) struct Ports {
    /// The first port.
    pub(crate) base: u16,
    /// Locked; the lock ends with the process.
    _reservation: File,
}

impl Ports {
    /// Reserves the ports from `base`, if no process uses them.
    fn reserve(base: u16, options: &Options) -> Result<Self> {
        if !(1024..=u16::MAX - 300).contains(&base) {
            bail!("a port base must be between 1024 and {}, not {base}", u16::MAX - 300);
        }
        let folder = std::env::temp_dir().join(format!("rustbalance-ports-{}", user()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(format!("{base}.lock"));
        let reservation = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        reservation.try_lock().map_err(|_| anyhow!("another test network holds these ports"))?;
        let ports = Self { base, _reservation: reservation };
        let relays = options.authorities + options.relays;
        for index in 0..relays {
            let mut wanted = vec![ports.or_port(index), ports.control_port(index)];
            if index < options.authorities {
                wanted.push(ports.dir_port(index));
            }
            for port in wanted {
                TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("port {port} is taken"))?;
            }
        }
        Ok(ports)
    }

    /// The directory port of an authority.
    pub(crate) fn dir_port(&self, index: usize) -> u16 {
        self.nth(0, index)
    }

    /// The onion-routing port of a relay.
    pub(crate) fn or_port(&self, index: usize) -> u16 {
        self.nth(100, index)
    }

    /// The control port of a relay.
    pub(crate) fn control_port(&self, index: usize) -> u16 {
        self.nth(200, index)
    }

    fn nth(&self, offset: u16, index: usize) -> u16 {
        // `Options::check` keeps `index` below 100.
        self.base + offset + u16::try_from(index).unwrap_or(99)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_a_namespace_are_mapped_to_their_outer_ids() {
        assert_eq!(outside(0, "         0       1000          1\n"), Some(1000));
        assert_eq!(outside(5, "0 1000 1\n1 100000 65536\n"), Some(100_004));
        assert_eq!(outside(1000, "0 0 4294967295\n"), Some(1000));
        assert_eq!(outside(7, "0 1000 1\n"), None);
    }
}
