//! Searches files and memory for secrets, in every form in which a program is likely to write
//! bytes.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use data_encoding::{BASE32_NOPAD, BASE64_NOPAD, BASE64URL_NOPAD, Encoding, HEXLOWER};

/// Length of a needle in bytes of the secret: short enough to find a part of it, long enough to
/// exclude chance.
const WINDOW: usize = 16;
/// Distance between the starts of two needles in a secret, in bytes.
const STRIDE: usize = 8;
/// Needles are looked up by this number of first bytes.
const KEY: usize = 6;
/// Overlap of two consecutive chunks, in bytes; every needle is shorter.
const OVERLAP: usize = 256;
/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// The secrets to search for.
pub(crate) struct Needles {
    /// Names of the secrets and their needles, by the first bytes of the needle.
    all: HashMap<[u8; KEY], Vec<(String, Vec<u8>)>>,
    /// Whether a needle begins with these two bytes, which alone skips most of the haystack.
    begins: Vec<bool>,
}

impl Needles {
    pub(crate) fn new() -> Self {
        Self { all: HashMap::new(), begins: vec![false; 1 << 16] }
    }

    /// Adds a binary secret in all forms.
    pub(crate) fn add(&mut self, name: &str, secret: &[u8]) {
        let last = secret.len().saturating_sub(WINDOW);
        for start in (0..=last).step_by(STRIDE) {
            for (form, needle) in forms(&secret[start..start + WINDOW]) {
                self.add_exactly(&format!("{name} in {form}"), needle);
            }
        }
    }

    /// Adds a secret in this form only; it must have at least [`KEY`] bytes.
    pub(crate) fn add_exactly(&mut self, name: &str, needle: Vec<u8>) {
        let key: [u8; KEY] = needle[..KEY].try_into().unwrap();
        self.begins[usize::from(u16::from_be_bytes([key[0], key[1]]))] = true;
        self.all.entry(key).or_default().push((name.to_owned(), needle));
    }

    /// The names of the secrets in these bytes.
    pub(crate) fn find(&self, hay: &[u8], found: &mut BTreeSet<String>) {
        for at in 0..hay.len().saturating_sub(KEY) {
            if !self.begins[usize::from(u16::from_be_bytes([hay[at], hay[at + 1]]))] {
                continue;
            }
            let rest = &hay[at..];
            if let Some(needles) = rest.first_chunk::<KEY>().and_then(|key| self.all.get(key)) {
                let here = needles.iter().filter(|(_, needle)| rest.starts_with(needle));
                found.extend(here.map(|(name, _)| name.clone()));
            }
        }
    }

    /// The names of the secrets in a file, or in all files below a folder.
    pub(crate) fn find_in(&self, path: &Path) -> Result<BTreeSet<String>> {
        let kind = std::fs::metadata(path).with_context(|| format!("cannot look into {}", path.display()))?;
        if !kind.is_dir() {
            return self.find_in_file(path).with_context(|| format!("cannot read {}", path.display()));
        }
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(path)? {
            let path = entry?.path();
            let here = match std::fs::symlink_metadata(&path) {
                Ok(kind) if kind.is_dir() => self.find_in(&path)?,
                Ok(kind) if kind.is_file() => match self.find_in_file(&path) {
                    Ok(here) => here,
                    // A running daemon replaces its files.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(error.into()),
                },
                _ => continue,
            };
            found.extend(here.into_iter().map(|name| format!("{name} in {}", path.display())));
        }
        Ok(found)
    }

    fn find_in_file(&self, path: &Path) -> std::io::Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let mut file = File::open(path)?;
        let (mut buffer, mut kept) = (vec![0; CHUNK + OVERLAP], 0);
        loop {
            let read = file.read(&mut buffer[kept..])?;
            if read == 0 {
                return Ok(found);
            }
            let filled = kept + read;
            self.find(&buffer[..filled], &mut found);
            kept = filled.min(OVERLAP);
            buffer.copy_within(filled - kept..filled, 0);
        }
    }

    /// The names of the secrets in the writable memory of a process.
    pub(crate) fn find_in_memory(&self, pid: i32) -> Result<BTreeSet<String>> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let memory = File::open(format!("/proc/{pid}/mem")).context("cannot read the memory of a daemon")?;
        let mut found = BTreeSet::new();
        let mut buffer = vec![0; CHUNK + OVERLAP];
        for line in maps.lines() {
            let mut columns = line.split_whitespace();
            let (Some(range), Some(rights)) = (columns.next(), columns.next()) else { continue };
            if !rights.starts_with("rw") {
                continue;
            }
            let (start, end) = range.split_once('-').context("a line of maps begins with a range")?;
            let (mut at, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
            while at < end {
                let length = usize::try_from(end - at)?.min(buffer.len());
                // Some special mappings cannot be read.
                if memory.read_exact_at(&mut buffer[..length], at).is_err() {
                    break;
                }
                self.find(&buffer[..length], &mut found);
                at += CHUNK as u64;
            }
        }
        Ok(found)
    }
}

/// The written forms of bytes, each with its name.
fn forms(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let list = |each: &dyn Fn(&u8) -> String, between: &str| bytes.iter().map(each).collect::<Vec<_>>().join(between);
    let mut forms = vec![
        ("bytes", bytes.to_vec()),
        ("hexadecimal", HEXLOWER.encode(bytes).into_bytes()),
        ("hexadecimal", HEXLOWER.encode(bytes).to_ascii_uppercase().into_bytes()),
        ("a Debug list", list(&u8::to_string, ", ").into_bytes()),
        ("a JSON list", list(&u8::to_string, ",").into_bytes()),
        ("a hexadecimal list", list(&|byte| format!("{byte:x}"), ", ").into_bytes()),
        ("a hexadecimal list", list(&|byte| format!("{byte:02x}"), ", ").into_bytes()),
        ("a hexadecimal list", list(&|byte| format!("{byte:#04x}"), ", ").into_bytes()),
        ("hexadecimal pairs", list(&|byte| format!("{byte:02x}"), ":").into_bytes()),
        ("hexadecimal pairs", list(&|byte| format!("{byte:02x}"), " ").into_bytes()),
        ("escapes", bytes.escape_ascii().to_string().into_bytes()),
    ];
    // The digits depend on the position of the bytes in the encoded input.
    let mut encoded = |name, encoding: &Encoding, group: usize, bits: usize| {
        for shift in 0..group {
            let mut shifted = vec![0; shift];
            shifted.extend_from_slice(bytes);
            let text = encoding.encode(&shifted);
            // Only the digits that encode nothing but these bytes.
            let (first, last) = ((shift * 8).div_ceil(bits), shifted.len() * 8 / bits);
            forms.push((name, text.as_bytes()[first..last].to_vec()));
            if bits == 5 {
                forms.push((name, text[first..last].to_ascii_lowercase().into_bytes()));
            }
        }
    };
    encoded("base64", &BASE64_NOPAD, 3, 6);
    encoded("base64", &BASE64URL_NOPAD, 3, 6);
    encoded("base32", &BASE32_NOPAD, 5, 5);
    forms
}

#[test]
fn needles_are_found_in_every_form_and_nowhere_else() {
    let secret: Vec<u8> = (0..32_u8).map(|index| index.wrapping_mul(37).wrapping_add(201)).collect();
    let mut needles = Needles::new();
    needles.add("key", &secret);
    let finds = |hay: &[u8]| {
        let mut found = BTreeSet::new();
        needles.find(hay, &mut found);
        !found.is_empty()
    };
    let mut longer = b"??".to_vec();
    longer.extend_from_slice(&secret);
    longer.push(b'!');
    for hay in [
        longer.clone(),
        format!("{secret:?} ").into_bytes(),
        format!("{secret:02x?} ").into_bytes(),
        format!("key={} ", HEXLOWER.encode(&secret)).into_bytes(),
        format!("{} ", BASE64_NOPAD.encode(&longer)).into_bytes(),
        format!("{} ", BASE32_NOPAD.encode(&longer).to_ascii_lowercase()).into_bytes(),
        format!("b\"{}\" ", secret.escape_ascii()).into_bytes(),
        format!("{} ", serde_json::to_string(&secret).unwrap()).into_bytes(),
    ] {
        assert!(finds(&hay), "{}", hay.escape_ascii());
    }
    let other: Vec<u8> = secret.iter().map(|byte| byte ^ 1).collect();
    for hay in [other.clone(), format!("{other:?} ").into_bytes(), format!("{} ", HEXLOWER.encode(&other)).into_bytes()]
    {
        assert!(!finds(&hay), "{}", hay.escape_ascii());
    }
}
