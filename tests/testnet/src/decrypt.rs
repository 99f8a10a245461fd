//! Verifies and decrypts descriptors with python3-stem, a check that shares no code with the
//! product.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

const SCRIPT: &str = include_str!("../decrypt.py");

/// The contents of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DecryptedDescriptor {
    /// Its revision counter.
    pub revision: u64,
    /// How many minutes a directory keeps it.
    pub lifetime_minutes: u64,
    /// The blinded key that signs it, in hexadecimal digits; it depends on the address and the time
    /// period.
    pub blinded_key: String,
    /// The introduction points, in the order of the descriptor.
    pub intro_points: Vec<DecryptedIntroPoint>,
}

/// An introduction point in a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DecryptedIntroPoint {
    /// The relay's addresses, as `address:port`.
    pub addresses: Vec<String>,
    /// The relay's RSA identity: 40 upper-case hexadecimal digits.
    pub rsa_fingerprint: Option<String>,
    /// The relay's Ed25519 identity: base64 without padding.
    pub ed25519_id: Option<String>,
    /// The relay's ntor key: hexadecimal digits.
    pub onion_key: String,
    /// The service's key at this introduction point: hexadecimal digits.
    pub auth_key: String,
    /// The key to which introductions are encrypted: hexadecimal digits.
    pub enc_key: String,
}

/// Verifies a descriptor's signature and decrypts both its layers. It must be that of a service
/// without client authorization.
pub fn decrypt(onion: &str, text: &str) -> Result<DecryptedDescriptor> {
    let onion = onion.strip_suffix(".onion").unwrap_or(onion);
    // Only Debian's own interpreter sees Debian's python3-stem.
    let python = ["/usr/bin/python3", "python3"]
        .into_iter()
        .find(|path| !path.starts_with('/') || std::path::Path::new(path).exists())
        .unwrap_or("python3");
    let mut child = Command::new(python)
        .args(["-c", SCRIPT, onion])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run python3; scripts/install.sh installs it")?;
    if let Some(mut input) = child.stdin.take() {
        // If python ends early, its exit status says more than a broken pipe.
        let _ = input.write_all(text.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("the descriptor of {onion} is not sound: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("decrypt.py printed something unexpected")
}
