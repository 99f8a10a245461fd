//! The wanted beginnings of addresses.

use std::fmt;
use std::str::FromStr;

/// The characters of an onion address, in the order of their values (RFC 4648, in lower case).
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Longest prefix, in characters. Its mean is 2^60 keys: centuries, at a thousand million a second
/// 36 years.
pub const LONGEST: usize = 12;
/// Bits of one character.
const CHARACTER_BITS: u32 = 5;
/// Bits of a key that choose a bit of [`Filter::fine`].
const FINE_BITS: u32 = 16;
/// Bits of a key that choose a bit of each table of [`Filter::coarse`].
pub(crate) const COARSE_BITS: u32 = 9;
/// Bits of a key that every path computes.
pub(crate) const LOW_BITS: u32 = 26;

/// The beginning of an address that is searched for, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    text: String,
    /// The bits that it fixes, and their values, in the first eight bytes of a public key, least
    /// significant byte first.
    mask: u64,
    value: u64,
}

/// Why a text cannot be the beginning of an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// It has no character.
    #[error("an empty prefix fits every address: give at least one character")]
    Empty,
    /// A character that base32 lacks.
    #[error("{prefix:?} cannot begin an address: it contains {character:?}, and addresses consist of a to z and 2 to 7{}", hint(*character))]
    Character {
        /// The text.
        prefix: String,
        /// The first such character.
        character: char,
    },
    /// Too many characters to be found.
    #[error(
        "{prefix:?} has {length} characters, and each makes the search 32 times as long: 13 would take longer than a \
         lifetime on any machine; give at most {LONGEST}"
    )]
    TooLong {
        /// The text.
        prefix: String,
        /// Its number of characters.
        length: usize,
    },
}

/// The letter that resembles a digit that base32 lacks.
fn hint(character: char) -> &'static str {
    match character {
        '0' => "; `o` resembles 0",
        '1' => "; `l` and `i` resemble 1",
        '8' => "; `b` resembles 8",
        '9' => "; `g` resembles 9",
        _ => "",
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let text = text.to_ascii_lowercase();
        let length = text.chars().count();
        if length == 0 {
            return Err(PrefixError::Empty);
        }
        let (mut mask, mut value) = (0_u64, 0_u64);
        for character in text.chars() {
            let place = ALPHABET.iter().position(|&known| char::from(known) == character);
            let Some(place) = place else { return Err(PrefixError::Character { prefix: text.clone(), character }) };
            mask = mask << CHARACTER_BITS | 31;
            value = value << CHARACTER_BITS | place as u64;
        }
        if length > LONGEST {
            return Err(PrefixError::TooLong { prefix: text, length });
        }
        // The first character is in the highest bits of the first byte.
        let unused = u64::BITS - CHARACTER_BITS * length as u32;
        Ok(Self { text, mask: (mask << unused).swap_bytes(), value: (value << unused).swap_bytes() })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Prefix {
    /// True if the address of this public key begins so.
    pub fn fits(&self, public: &[u8; 32]) -> bool {
        let first = public.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
        (first ^ self.value) & self.mask == 0
    }
}

/// Tables of bits that say whether a key can fit, so that many prefixes are searched as quickly as
/// one.
#[derive(Debug, Clone)]
struct Filter {
    /// By the lowest 16 bits of a key.
    fine: Vec<u64>,
    /// By the lowest nine bits, and by the nine above them, for paths that look a table up in a
    /// vector. Three bits choose the element, and six the bit.
    coarse: [[u64; 8]; 2],
}

impl Filter {
    fn new(all: &[Prefix]) -> Self {
        let fits = |bits: u64, shift: u32, count: u32| {
            let mask = ((1 << count) - 1) << shift;
            all.iter().any(|prefix| (bits << shift ^ prefix.value) & prefix.mask & mask == 0)
        };
        let mut fine = vec![0; 1 << (FINE_BITS - 6)];
        for bits in (0..1 << FINE_BITS).filter(|bits| fits(*bits, 0, FINE_BITS)) {
            fine[bits as usize >> 6] |= 1 << (bits & 63);
        }
        let mut coarse = [[0; 8]; 2];
        for (table, shift) in coarse.iter_mut().zip([0, COARSE_BITS]) {
            for bits in (0..1 << COARSE_BITS).filter(|bits| fits(*bits, shift, COARSE_BITS)) {
                table[bits as usize & 7] |= 1 << (bits >> 3);
            }
        }
        Self { fine, coarse }
    }
}

/// The prefixes of one search.
#[derive(Debug, Clone)]
pub struct Prefixes {
    /// None begins with another.
    all: Vec<Prefix>,
    filter: Filter,
}

impl Prefixes {
    /// A search for any of these prefixes. Those that begin with another of them are left out.
    pub fn new(prefixes: &[Prefix]) -> Self {
        let mut all: Vec<Prefix> = Vec::new();
        let mut sorted = prefixes.to_vec();
        sorted.sort();
        for prefix in sorted {
            if all.last().is_none_or(|last| !prefix.text.starts_with(&last.text)) {
                all.push(prefix);
            }
        }
        let filter = Filter::new(&all);
        Self { all, filter }
    }

    /// The prefixes that are searched for.
    pub fn all(&self) -> &[Prefix] {
        &self.all
    }

    /// The first prefix that the address of this public key has.
    pub fn fitting(&self, public: &[u8; 32]) -> Option<&Prefix> {
        self.all.iter().find(|prefix| prefix.fits(public))
    }

    /// The share of keys that fit, from 0 to 1.
    pub fn probability(&self) -> f64 {
        self.all.iter().map(|prefix| 32_f64.powi(-(prefix.text.len() as i32))).sum()
    }

    /// A bit for each value of the lowest 16 bits of a key: 1 if such a key can fit.
    pub fn fine(&self) -> &[u64] {
        &self.filter.fine
    }

    /// For each prefix, the bits that it fixes among the lowest 26 of a key, and their values.
    /// Equal ones are left out.
    pub fn low_bits(&self) -> Vec<[u32; 2]> {
        let low = |bits: u64| (bits & ((1 << LOW_BITS) - 1)) as u32;
        let mut all: Vec<_> = self.all.iter().map(|prefix| [low(prefix.mask), low(prefix.value)]).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// False for most keys that do not fit. `low` has any bits above its lowest 16.
    #[inline]
    pub(crate) fn may_fit(&self, low: u64) -> bool {
        self.filter.fine[(low & ((1 << FINE_BITS) - 1)) as usize >> 6] >> (low & 63) & 1 == 1
    }

    /// The tables for the lowest nine bits of a key, and for the nine above them.
    pub(crate) fn coarse(&self) -> &[[u64; 8]; 2] {
        &self.filter.coarse
    }

    /// False for almost all keys that do not fit. `low` has any bits above its lowest 26.
    pub(crate) fn may_well_fit(&self, low: u64) -> bool {
        self.all.iter().any(|prefix| (low ^ prefix.value) & prefix.mask & ((1 << LOW_BITS) - 1) == 0)
    }
}
