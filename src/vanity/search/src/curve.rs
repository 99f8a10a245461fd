//! Points of Ed25519: -x^2 + y^2 = 1 + d x^2 y^2.

use std::sync::LazyLock;

use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::{EdwardsPoint, Scalar};

use crate::field::Number;

/// Keys are a multiple of this many base points apart: the lowest three bits of a clamped scalar
/// are zero (RFC 8032, section 5.1.5).
pub(crate) const COFACTOR: u64 = 8;

/// The constants of the formula.
pub(crate) struct Constants {
    pub(crate) d: Number,
    /// 1 / (1 + d).
    pub(crate) inverse_of_1_plus_d: Number,
}

pub(crate) static CONSTANTS: LazyLock<Constants> = LazyLock::new(|| {
    let d = Number::small(121_665).negated().mul(&Number::small(121_666).inverse());
    Constants { d, inverse_of_1_plus_d: Number::ONE.add(&d).inverse() }
});

/// A point as X/Z, Y/Z.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Projective {
    pub(crate) x: Number,
    pub(crate) y: Number,
    pub(crate) z: Number,
}

impl Projective {
    /// The point that dalek knows; only dalek's public interface is used, which gives y and a bit.
    pub(crate) fn from_dalek(point: &EdwardsPoint) -> Self {
        let bytes = point.compress().to_bytes();
        let y = Number::from_bytes(&bytes);
        let square = y.square();
        let denominator = CONSTANTS.d.mul(&square).add(&Number::ONE);
        // The point is on the curve, so there is a root.
        let x = square.sub(&Number::ONE).mul(&denominator.inverse()).root().unwrap_or(Number::ZERO);
        let x = if x.is_odd() == (bytes[31] >> 7 == 1) { x } else { x.negated() };
        Self { x, y, z: Number::ONE }
    }

    /// The sum of two points (Bernstein and Lange, add-2007-bl for twisted curves; complete).
    pub(crate) fn plus(&self, other: &Self) -> Self {
        let z = self.z.mul(&other.z);
        let zz = z.square();
        let (xx, yy) = (self.x.mul(&other.x), self.y.mul(&other.y));
        let product = CONSTANTS.d.mul(&xx.mul(&yy));
        let (less, more) = (zz.sub(&product), zz.add(&product));
        let cross = self.x.add(&self.y).mul(&other.x.add(&other.y)).sub(&xx).sub(&yy);
        Self { x: z.mul(&less).mul(&cross), y: z.mul(&more).mul(&yy.add(&xx)), z: less.mul(&more) }
    }
}

/// `point + 8 * count * B`.
pub(crate) fn advanced(point: &EdwardsPoint, count: u64) -> EdwardsPoint {
    point + EdwardsPoint::mul_base(&(Scalar::from(COFACTOR) * Scalar::from(count)))
}

/// The point of a public key; `None` if these bytes are not one.
pub(crate) fn decompress(public: &[u8; 32]) -> Option<EdwardsPoint> {
    CompressedEdwardsY(*public).decompress().filter(|point| point.is_torsion_free() && !point.is_small_order())
}
