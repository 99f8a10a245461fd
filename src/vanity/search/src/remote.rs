//! A search whose passes another device runs: what it gets, and what is made of its reports.
//!
//! The device gets the numbers of the formula, all of which come from public points. It reports
//! where a key may fit, and [`RemoteSearch::hits`] computes each such key by curve25519-dalek
//! again. So an error of the device can hide a key, but never give a wrong one.
//!
//! The centres of all lanes lie beside each other, and each pass moves them on by [`stride`].

use std::sync::Arc;

use curve25519_dalek::EdwardsPoint;

use crate::curve::{self, CONSTANTS, Projective, advanced};
use crate::field::{Number, invert_all};
use crate::pass::Centre;
use crate::prefix::Prefixes;
use crate::{Hit, SearchError, walk};

/// A number below p, least significant byte first.
pub type Bytes = [u8; 32];

/// Points of the table. Fewer than of the processor's, because each lane needs memory for all.
pub const REACH: usize = walk::REACH / 2;
/// Multiples of 8 B between the centres of two lanes.
const STRIDE: u64 = 2 * REACH as u64 + 1;

/// The table: alpha, beta and g of each point.
pub fn table() -> Vec<[Bytes; 3]> {
    walk::table(REACH).iter().map(|entry| [entry.alpha, entry.beta, entry.g].map(|number| number.to_bytes())).collect()
}

/// The number d of the curve.
pub fn d() -> Bytes {
    CONSTANTS.d.to_bytes()
}

/// x and y of the point by which each pass moves a centre on.
pub fn stride(lanes: u32) -> [Bytes; 2] {
    let point = Projective::from_dalek(&advanced(&EdwardsPoint::default(), STRIDE * u64::from(lanes)));
    [point.x, point.y].map(|number| number.to_bytes())
}

/// What a lane begins with.
#[derive(Debug, Clone, Copy)]
pub struct Lane {
    /// s, m and k of the first centre.
    pub centre: [Bytes; 3],
    /// x, y and z of the second centre, a point x/z, y/z.
    pub next: [Bytes; 3],
}

/// A key that may fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Number of passes before the one that has tested it.
    pub pass: u64,
    /// The lane.
    pub lane: u32,
    /// Index of the point Q in the table.
    pub index: u32,
    /// P - Q, not P + Q.
    pub minus: bool,
}

/// A search from one start, with passes that a device runs.
#[derive(Debug)]
pub struct RemoteSearch {
    start: EdwardsPoint,
    prefixes: Arc<Prefixes>,
    lanes: u32,
}

impl RemoteSearch {
    /// A search of keys `start + 8 n B`, n = 0, 1, ..., in this number of lanes.
    ///
    /// # Errors
    /// If the start is not a point of the group.
    pub fn new(start: &[u8; 32], prefixes: &Arc<Prefixes>, lanes: u32) -> Result<Self, SearchError> {
        let start = curve::decompress(start).ok_or(SearchError::Start)?;
        Ok(Self { start, prefixes: Arc::clone(prefixes), lanes })
    }

    /// Keys that one pass tests.
    pub fn keys_per_pass(&self) -> u64 {
        2 * REACH as u64 * u64::from(self.lanes)
    }

    /// What each lane begins with.
    pub fn lanes(&self) -> Vec<Lane> {
        let step = Projective::from_dalek(&advanced(&EdwardsPoint::default(), STRIDE));
        let stride = Projective::from_dalek(&advanced(&EdwardsPoint::default(), STRIDE * u64::from(self.lanes)));
        let first = Projective::from_dalek(&advanced(&self.start, REACH as u64));
        let points: Vec<Projective> =
            std::iter::successors(Some(first), |point| Some(point.plus(&step))).take(self.lanes as usize).collect();
        let mut inverses: Vec<Number> = points.iter().map(Centre::to_invert).collect();
        invert_all(&mut inverses);
        let lane = |(point, inverse): (&Projective, &Number)| {
            let (centre, next) = (Centre::new(point, inverse), point.plus(&stride));
            Lane {
                centre: [centre.s, centre.m, centre.k[0]].map(|number| number.to_bytes()),
                next: [next.x, next.y, next.z].map(|number| number.to_bytes()),
            }
        };
        points.iter().zip(&inverses).map(lane).collect()
    }

    /// The candidates that fit. Each was computed again by curve25519-dalek.
    pub fn hits(&self, candidates: impl IntoIterator<Item = Candidate>) -> Vec<Hit> {
        let exact = |candidate: Candidate| {
            // A device in error may report anything; what does not fit is left out below.
            let centre = candidate.pass.wrapping_mul(self.lanes.into()).wrapping_add(candidate.lane.into());
            let place = centre.wrapping_mul(STRIDE).wrapping_add(REACH as u64);
            let distance = u64::from(candidate.index) + 1;
            let offset = if candidate.minus { place.wrapping_sub(distance) } else { place.wrapping_add(distance) };
            Hit { offset, public: advanced(&self.start, offset).compress().to_bytes() }
        };
        candidates.into_iter().map(exact).filter(|hit| self.prefixes.fitting(&hit.public).is_some()).collect()
    }
}
