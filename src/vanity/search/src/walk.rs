//! The centres of a search, and the table of points around them.
//!
//! Per pass this is a few hundred multiplications beside the thousands of a pass, so all paths
//! share it, one lane after the other.

use std::sync::Arc;

use curve25519_dalek::EdwardsPoint;
use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;

use crate::curve::{COFACTOR, CONSTANTS, Projective, advanced};
use crate::field::{Number, invert_all};
use crate::pass::{Centre, Entry};
use crate::prefix::Prefixes;

/// Points of the table: 8 B, 16 B, ... One pass tests this number of keys twice in each lane, and
/// needs one inversion. Larger tables save little of that, and outgrow the processor's cache.
pub(crate) const REACH: usize = 1024;
/// Multiples of 8 B between two centres: the keys of a pass, and the centre itself, which is not
/// tested.
const STRIDE: u64 = 2 * REACH as u64 + 1;
/// Multiples of 8 B between two lanes, so that they never meet.
const LANE_STRIDE: u64 = 1 << 56;

/// The first `reach` points of the table, for numbers of the portable form.
pub(crate) fn table(reach: usize) -> Vec<Entry<Number>> {
    let step = Projective::from_dalek(&(ED25519_BASEPOINT_POINT * curve25519_dalek::Scalar::from(COFACTOR)));
    let points: Vec<Projective> =
        std::iter::successors(Some(step), |point| Some(point.plus(&step))).take(reach).collect();
    // x and y need 1 / z, and 1 / x is z / x.
    let mut inverses: Vec<Number> = points.iter().map(|point| point.x.mul(&point.z)).collect();
    invert_all(&mut inverses);
    let of_point = |(point, inverse): (&Projective, &Number)| {
        let alpha = point.z.square().mul(inverse);
        let inverse_of_z = point.x.mul(inverse);
        let (x, y) = (point.x.mul(&inverse_of_z), point.y.mul(&inverse_of_z));
        let scaled = |number: &Number| number.mul(&CONSTANTS.inverse_of_1_plus_d);
        let beta = scaled(&CONSTANTS.d.mul(&x.add(&alpha))).negated();
        let g = scaled(&y.mul(&Number::ONE.sub(&CONSTANTS.d.mul(&x.square())))).mul(&alpha);
        Entry { alpha: alpha.canonical(), beta: beta.canonical(), g: g.canonical() }
    };
    points.iter().zip(&inverses).map(of_point).collect()
}

/// A key that may be wanted, as the multiple of 8 B that it is away from the start.
pub(crate) type Near = u64;

/// Which of the two keys of one point Q.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sign {
    /// P + Q.
    Plus,
    /// P - Q.
    Minus,
}

/// One centre, and the next.
#[derive(Debug)]
struct Lane {
    centre: Centre<Number>,
    next: Projective,
}

impl Centre<Number> {
    /// The number whose inverse [`Centre::new`] needs.
    pub(crate) fn to_invert(point: &Projective) -> Number {
        point.z.mul(&point.y).mul(&Self::z_squared_times_w(point))
    }

    /// z^2 (1 - d x^2), where x is affine.
    fn z_squared_times_w(point: &Projective) -> Number {
        point.z.square().sub(&CONSTANTS.d.mul(&point.x.square()))
    }

    /// `inverse` is that of [`Centre::to_invert`].
    pub(crate) fn new(point: &Projective, inverse: &Number) -> Self {
        let w = Self::z_squared_times_w(point);
        let inverse_of_z = point.y.mul(&w).mul(inverse);
        let (x, y) = (point.x.mul(&inverse_of_z), point.y.mul(&inverse_of_z));
        let m = y.mul(&w.mul(&inverse_of_z.square()));
        // 1 / m = z^3 / (y w) = z^4 * inverse, with projective y.
        let k = x.mul(&point.z.square().square().mul(inverse));
        Self { s: Number::ONE.add(&x.square()), m, k: [k.canonical(), k.negated().canonical()] }
    }
}

/// Where a search is: in each lane around one centre.
#[derive(Debug)]
pub(crate) struct Walk {
    prefixes: Arc<Prefixes>,
    lanes: Vec<Lane>,
    stride: Projective,
    /// Passes that are done.
    passes: u64,
}

impl Walk {
    /// A walk that begins at `start`, with this number of lanes.
    pub(crate) fn new(start: &EdwardsPoint, lanes: usize, prefixes: Arc<Prefixes>) -> Self {
        let stride = Projective::from_dalek(&advanced(&EdwardsPoint::default(), STRIDE));
        let points = (0..lanes).map(|lane| Projective::from_dalek(&advanced(start, Self::place(lane, 0))));
        let lanes = points
            .map(|point| {
                let centre = Centre::new(&point, &Centre::to_invert(&point).inverse());
                Lane { centre, next: point.plus(&stride) }
            })
            .collect();
        Self { prefixes, lanes, stride, passes: 0 }
    }

    /// The centre of a lane in the pass of this number, as a multiple of 8 B away from the start.
    fn place(lane: usize, pass: u64) -> u64 {
        lane as u64 * LANE_STRIDE + REACH as u64 + pass * STRIDE
    }

    pub(crate) fn centre(&self, lane: usize) -> &Centre<Number> {
        &self.lanes[lane].centre
    }

    pub(crate) fn prefixes(&self) -> &Arc<Prefixes> {
        &self.prefixes
    }

    /// Moves every centre on. Takes the product of `m` and all denominators of each lane, and
    /// returns the inverse of the product of the denominators alone. The next centres need an
    /// inverse, too, and share the one inversion.
    pub(crate) fn turn<const N: usize>(&mut self, products: [Number; N]) -> [Number; N] {
        let mut numbers = products.to_vec();
        numbers.extend(self.lanes.iter().map(|lane| Centre::to_invert(&lane.next)));
        invert_all(&mut numbers);
        std::array::from_fn(|index| {
            let lane = &mut self.lanes[index];
            let inverse = numbers[index].mul(&lane.centre.m);
            lane.centre = Centre::new(&lane.next, &numbers[N + index]);
            lane.next = lane.next.plus(&self.stride);
            inverse
        })
    }

    /// Collects the keys that may fit of those at point `index` of the table, by their lowest bits
    /// in all lanes.
    #[cold]
    #[inline(never)]
    pub(crate) fn sift(&self, index: usize, sign: Sign, low: &[u64], near: &mut Vec<Near>) {
        for (lane, _) in low.iter().enumerate().filter(|(_, low)| self.prefixes.may_well_fit(**low)) {
            let (place, distance) = (Self::place(lane, self.passes), index as u64 + 1);
            near.push(match sign {
                Sign::Plus => place + distance,
                Sign::Minus => place - distance,
            });
        }
    }

    /// Ends a pass.
    pub(crate) fn end_pass(&mut self) {
        self.passes += 1;
    }

    /// Keys that one pass tests.
    pub(crate) fn keys_per_pass(&self) -> u64 {
        2 * (REACH * self.lanes.len()) as u64
    }
}
