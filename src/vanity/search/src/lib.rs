//! Searches public keys whose onion address has a given beginning: three multiplications a key, one
//! of them of a third of the work.
//!
//! An address begins with the lowest bits of the y coordinate of its public key, a point of
//! -x^2 + y^2 = 1 + d x^2 y^2. A search knows the point of a start and tests the points that are
//! 8 B, 16 B, ... away from it, where B is the base point (\[VANITY\] in torspec: the lowest three
//! bits of a secret scalar are zero). It needs no secret: the caller adds the distance of a hit to
//! the secret scalar of the start.
//!
//! # The formula
//!
//! In each pass P is a *centre*, and Q one point of a table of 8 B, 16 B, ..., which is the same
//! for all centres. Let `w(x) = 1 - d x^2`. By the addition law, and with y^2 = (1 + x^2) / w(x),
//!
//! ```text
//! y(P + Q), y(P - Q) =
//!     (y1 y2 w(x1) w(x2) +- (1 + d) x1 x2) / (1 + d - d (1 + x1^2) (1 + x2^2))
//! ```
//!
//! with one denominator for both. It is never zero: 1 - (d x1 x2 y1 y2)^2, by which the addition
//! law divides, is the product of it and (1 + d x1^2 x2^2) / (w(x1) w(x2)), and Edwards' law for
//! this d has no exception. So neither has the formula.
//!
//! Numerator and denominator are divided by (1 + d) x2, and m = y1 w(x1) is taken out of the
//! numerator:
//!
//! ```text
//! of the table:   alpha = 1 / x2
//!                 beta = - d (x2 + 1 / x2) / (1 + d)
//!                 g = y2 w(x2) / (x2 (1 + d))
//! of the centre:  s = 1 + x1^2
//!                 m = y1 w(x1)
//!                 k = x1 / m
//!
//! i = m / (alpha + s beta)
//! y(P + Q) = (g + k) i
//! y(P - Q) = (g - k) i
//! ```
//!
//! The denominators of all Q are inverted together (Montgomery's trick: the products of the first
//! 1, 2, 3, ... denominators, one inversion, and then two multiplications for each). The products
//! begin with m, so that i comes out instead of the inverse alone. For the two keys of one Q this
//! makes:
//!
//! | | multiplications |
//! |---|---:|
//! | denominator | 1 |
//! | inversion with m | 3 |
//! | the lowest bits of both y | 2, each of a third of the work |
//!
//! Of the last two only the lowest bits of the reduced product are computed. They need the lowest
//! column of the product, the one that is folded onto it, and the highest ones, which say how often
//! p is in it. The carry from the columns between is left out. This is wrong for one key in 2^40,
//! which is then missed; no wrong key is ever returned, because [`Search::hits`] computes each by
//! curve25519-dalek again.
//!
//! Centres are 2 n + 1 table steps apart, for a table of n points. What they need once per pass
//! shares the one inversion with the denominators. All secrets stay outside, so nothing here runs
//! in constant time.
//!
//! # Paths
//!
//! A [`Path`] is an implementation of the arithmetic: [`ifma`], [`avx2`] or [`portable`]. Their
//! functions may use instructions that not every processor has; the crate
//! `rustbalance-vanity-dispatch` calls them, because such a call is `unsafe`. A graphics processor
//! runs passes by itself (the crate `rustbalance-vanity-gpu`); [`remote`] prepares them, and checks
//! what it reports.
//!
//! ```
//! use std::sync::Arc;
//!
//! use rustbalance_vanity::{Path, Prefixes, Search, Table, portable};
//!
//! let prefixes = Arc::new(Prefixes::new(&["a".parse()?, "rb".parse()?]));
//! let start = curve25519_dalek::constants::ED25519_BASEPOINT_COMPRESSED.0;
//! let mut search = Search::new(Path::Portable, &start, &prefixes, &Arc::new(Table::new()))?;
//! portable::pass(&mut search);
//! for hit in search.hits() {
//!     assert!(prefixes.fitting(&hit.public).is_some());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

use curve25519_dalek::EdwardsPoint;

use field::Number;
use pass::{Entry, Step};
use walk::{Near, Walk};

pub use path::Path;
pub use prefix::{LONGEST, Prefix, PrefixError, Prefixes};

#[cfg(target_arch = "x86_64")]
pub mod avx2;
mod curve;
mod field;
#[cfg(target_arch = "x86_64")]
pub mod ifma;
mod pass;
mod path;
pub mod portable;
mod prefix;
pub mod remote;
mod walk;

/// The table of points around a centre, which all searches of a process share.
#[derive(Debug)]
pub struct Table {
    whole: Vec<Entry<Number>>,
    /// The same for the path of AVX2.
    #[cfg(target_arch = "x86_64")]
    split: Vec<Entry<avx2::Split>>,
}

impl Table {
    /// Computes the table: about a millisecond.
    pub fn new() -> Self {
        let whole = walk::table(walk::REACH);
        #[cfg(target_arch = "x86_64")]
        let split = whole
            .iter()
            .map(|entry| Entry {
                alpha: avx2::split(&entry.alpha),
                beta: avx2::split(&entry.beta),
                g: avx2::split(&entry.g),
            })
            .collect();
        Self {
            whole,
            #[cfg(target_arch = "x86_64")]
            split,
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

/// What a pass writes down between its two loops.
#[derive(Debug, Default)]
struct Scratch {
    portable: Vec<Step<Number>>,
    #[cfg(target_arch = "x86_64")]
    avx2: Vec<Step<avx2::Vector>>,
    #[cfg(target_arch = "x86_64")]
    ifma: Vec<Step<ifma::Vector>>,
}

/// A key that was searched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The key is this multiple of 8 B away from the start.
    pub offset: u64,
    /// The public key.
    pub public: [u8; 32],
}

/// Why a search cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// The processor lacks the instructions of this path.
    #[error("this processor cannot run the path {0}")]
    Unavailable(Path),
    /// The start is not the public key of an onion service.
    #[error("the start is not a public key of an onion service")]
    Start,
}

/// A search on one thread, from one start.
#[derive(Debug)]
pub struct Search {
    path: Path,
    start: EdwardsPoint,
    table: Arc<Table>,
    walk: Walk,
    scratch: Scratch,
    near: Vec<Near>,
}

impl Search {
    /// A search of keys `start + 8 n B`, n = 0, 1, ..., in lanes that begin 2^56 apart.
    ///
    /// # Errors
    /// If the processor cannot run the path, or if the start is not a point of the group.
    pub fn new(
        path: Path,
        start: &[u8; 32],
        prefixes: &Arc<Prefixes>,
        table: &Arc<Table>,
    ) -> Result<Self, SearchError> {
        if !path.is_available() {
            return Err(SearchError::Unavailable(path));
        }
        let start = curve::decompress(start).ok_or(SearchError::Start)?;
        let walk = Walk::new(&start, path.lanes(), Arc::clone(prefixes));
        Ok(Self { path, start, table: Arc::clone(table), walk, scratch: Scratch::default(), near: Vec::new() })
    }

    /// The path, which this processor can run.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Keys that one pass tests.
    pub fn keys_per_pass(&self) -> u64 {
        self.walk.keys_per_pass()
    }

    /// The hits of the passes since the last call. Each was computed again by curve25519-dalek.
    pub fn hits(&mut self) -> Vec<Hit> {
        let (start, prefixes) = (self.start, self.walk.prefixes());
        let exact = |offset: Near| Hit { offset, public: curve::advanced(&start, offset).compress().to_bytes() };
        self.near.drain(..).map(exact).filter(|hit| prefixes.fitting(&hit.public).is_some()).collect()
    }
}
