//! The relays' keys: made once for each port base, in parallel, and kept between runs.
//!
//! Each port base has a cache of its own, because an authority's certificate names its address, and
//! clients follow it.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;

use crate::options::{Options, Ports};
use crate::relay::{Relay, Role};

/// Certificates are valid for 12 months; keys older than these 10 months are replaced.
const MAX_AGE: Duration = Duration::from_secs(300 * 24 * 3600);

/// Creates the relays of a network: their folders with keys in them, ready for a `torrc`.
pub(crate) fn relays(options: &Options, ports: &Ports, base: &Path) -> Result<Vec<Relay>> {
    let cache = options.key_cache().join(ports.base.to_string());
    create_private(&cache)?;
    let mut relays = Vec::new();
    for index in 0..options.authorities + options.relays {
        let (role, nickname) = match index.checked_sub(options.authorities) {
            None => (Role::Authority, format!("auth{index}")),
            Some(index) if index < options.exits => (Role::Exit, format!("exit{index}")),
            Some(index) => (Role::Middle, format!("mid{}", index - options.exits)),
        };
        relays.push(Relay {
            nickname,
            role,
            rsa_fingerprint: String::new(),
            ed25519_id: String::new(),
            or_port: ports.or_port(index),
            control_port: ports.control_port(index),
            dir_port: (role == Role::Authority).then(|| ports.dir_port(index)),
            v3_identity: None,
            base: base.to_path_buf(),
        });
    }
    let todo = Mutex::new(relays.iter_mut().collect::<VecDeque<_>>());
    let next = || todo.lock().pop_front();
    let workers = std::thread::available_parallelism().map_or(2, |count| count.get().min(8));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    while let Some(relay) = next() {
                        prepare(relay, &cache)?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread that makes keys panicked"))?)
            .collect::<Result<Vec<()>>>()
    })?;
    Ok(relays)
}

/// Copies a relay's keys from the cache, where they are made first if need be, and reads its
/// identities from them.
fn prepare(relay: &mut Relay, cache: &Path) -> Result<()> {
    let kept = cache.join(&relay.nickname);
    if !is_fresh(&kept) {
        make(relay, &kept).with_context(|| format!("cannot make the keys of {}", relay.nickname))?;
    }
    let read = |name: &str| {
        let path = kept.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}; remove {}", path.display(), cache.display()))
    };
    let second = |text: String| {
        text.split_whitespace()
            .nth(1)
            .map(str::to_owned)
            .with_context(|| format!("no keys in {}; remove that folder", kept.display()))
    };
    relay.rsa_fingerprint = second(read("fingerprint")?)?;
    relay.ed25519_id = second(read("fingerprint-ed25519")?)?;
    if relay.role == Role::Authority {
        let certificate = read("keys/authority_certificate")?;
        let identity = certificate
            .lines()
            .find_map(|line| line.strip_prefix("fingerprint "))
            .with_context(|| format!("no certificate in {}; remove that folder", kept.display()))?;
        relay.v3_identity = Some(identity.to_owned());
    }
    let folder = relay.folder();
    create_private(&folder.join("keys"))?;
    for entry in fs::read_dir(kept.join("keys"))? {
        let entry = entry?;
        fs::copy(entry.path(), folder.join("keys").join(entry.file_name()))?;
    }
    Ok(())
}

/// Whether `kept` holds keys that are not about to expire.
fn is_fresh(kept: &Path) -> bool {
    fs::metadata(kept.join("fingerprint-ed25519"))
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|made| made.elapsed().is_ok_and(|age| age < MAX_AGE))
}

/// Makes keys in a temporary folder, and moves them to `kept` once they are complete.
fn make(relay: &Relay, kept: &Path) -> Result<()> {
    let fresh = kept.with_extension("new");
    let _ = fs::remove_dir_all(&fresh);
    create_private(&fresh.join("keys"))?;
    if let Some(dir_port) = relay.dir_port {
        authority_keys(&fresh, dir_port)?;
    }
    let torrc = fresh.join("torrc");
    // Under TestingTorNetwork tor requires an authority; this one is never contacted.
    fs::write(
        &torrc,
        format!(
            "DataDirectory {}\nNickname {}\nORPort 127.0.0.1:{}\nAddress 127.0.0.1\nSocksPort 0\nTestingTorNetwork 1\n\
             AssumeReachable 1\nExitRelay 0\nDirAuthority none 127.0.0.1:1 {}\n",
            fresh.display(),
            relay.nickname,
            relay.or_port,
            "0".repeat(40)
        ),
    )?;
    let output = Command::new("tor")
        .args(["--defaults-torrc", "/dev/null", "--list-fingerprint", "-f"])
        .arg(&torrc)
        .stdin(Stdio::null())
        .output()
        .context("cannot run tor; scripts/install.sh installs it")?;
    if !fresh.join("fingerprint-ed25519").exists() {
        bail!("tor --list-fingerprint made no keys ({}): {}", output.status, String::from_utf8_lossy(&output.stdout));
    }
    let _ = fs::remove_dir_all(kept);
    fs::rename(&fresh, kept).with_context(|| format!("cannot create {}", kept.display()))
}

/// Makes an authority's long-term keys and its certificate.
fn authority_keys(folder: &Path, dir_port: u16) -> Result<()> {
    let keys: PathBuf = folder.join("keys");
    let mut child = Command::new("tor-gencert")
        .args(["--create-identity-key", "--passphrase-fd", "0", "-m", "12"])
        .args(["-a", &format!("127.0.0.1:{dir_port}")])
        .arg("-i")
        .arg(keys.join("authority_identity_key"))
        .arg("-s")
        .arg(keys.join("authority_signing_key"))
        .arg("-c")
        .arg(keys.join("authority_certificate"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run tor-gencert; scripts/install.sh installs it")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(b"not a secret\n")?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("tor-gencert failed ({status})");
    }
    Ok(())
}

/// Creates a folder that only this user can read, as tor demands of its own folders.
pub(crate) fn create_private(folder: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot create {}", folder.display()))
}
