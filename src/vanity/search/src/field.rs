//! Numbers modulo p = 2^255 - 19, one at a time, in five limbs of 51 bits.
//!
//! A number is *canonical* if it is less than p; then every limb has at most 51 bits. The results
//! of a multiplication are *loose*: their limbs have less than 52 bits. Every function here accepts
//! loose numbers. Nothing runs in constant time, because no number here is secret.

/// Bits of a limb.
pub(crate) const LIMB_BITS: u32 = 51;
/// The largest limb.
pub(crate) const MASK: u64 = (1 << LIMB_BITS) - 1;

/// A number modulo p. Limb `k` counts 2^(51 k).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Number(pub(crate) [u64; 5]);

impl Number {
    pub(crate) const ZERO: Self = Self([0; 5]);
    pub(crate) const ONE: Self = Self([1, 0, 0, 0, 0]);

    /// The number in 32 bytes, least significant first. The highest bit is ignored.
    pub(crate) fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut limbs = [0; 5];
        for bit in (0..255).filter(|bit| bytes[bit / 8] >> (bit % 8) & 1 == 1) {
            limbs[bit / 51] |= 1 << (bit % 51);
        }
        Self(limbs)
    }

    /// The canonical number in 32 bytes, least significant first.
    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let [a, b, c, d, e] = self.canonical().0;
        let words = [a | b << 51, b >> 13 | c << 38, c >> 26 | d << 25, d >> 39 | e << 12];
        let mut bytes = [0; 32];
        for (part, word) in bytes.chunks_exact_mut(8).zip(words) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn small(value: u32) -> Self {
        Self([value.into(), 0, 0, 0, 0])
    }

    pub(crate) fn add(&self, other: &Self) -> Self {
        carried(std::array::from_fn(|k| self.0[k] + other.0[k]))
    }

    pub(crate) fn negated(&self) -> Self {
        // 4 p, whose limbs are larger than those of any loose number.
        let limbs = std::array::from_fn(|k| 4 * MASK - if k == 0 { 4 * 18 } else { 0 } - self.0[k]);
        carried(limbs)
    }

    pub(crate) fn sub(&self, other: &Self) -> Self {
        self.add(&other.negated())
    }

    #[inline]
    pub(crate) fn mul(&self, other: &Self) -> Self {
        self.mul_add(other, &Self::ZERO)
    }

    /// `self * factor + term`.
    #[inline]
    pub(crate) fn mul_add(&self, factor: &Self, term: &Self) -> Self {
        let mut limbs = [0; 5];
        let mut carry = 0;
        for (k, limb) in limbs.iter_mut().enumerate() {
            let sum = column(&self.0, &factor.0, k) + u128::from(term.0[k]) + carry;
            *limb = sum as u64 & MASK;
            carry = sum >> LIMB_BITS;
        }
        // The carry has at most 61 bits: 2^255 = 19.
        let lowest = u128::from(limbs[0]) + 19 * carry;
        limbs[0] = lowest as u64 & MASK;
        limbs[1] += (lowest >> LIMB_BITS) as u64;
        Self(limbs)
    }

    /// Squares this number `times` times.
    fn squared(&self, times: u32) -> Self {
        (0..times).fold(*self, |number, _| number.mul(&number))
    }

    pub(crate) fn square(&self) -> Self {
        self.squared(1)
    }

    /// `self^(2^250 - 1)` and `self^11`, from which both exponentiations below follow.
    fn powers(&self) -> (Self, Self) {
        let square = self.square();
        let to_9 = self.mul(&square.squared(2));
        let to_11 = square.mul(&to_9);
        // The exponents are 2^n - 1.
        let n5 = to_11.square().mul(&to_9);
        let n10 = n5.squared(5).mul(&n5);
        let n20 = n10.squared(10).mul(&n10);
        let n40 = n20.squared(20).mul(&n20);
        let n50 = n40.squared(10).mul(&n10);
        let n100 = n50.squared(50).mul(&n50);
        let n200 = n100.squared(100).mul(&n100);
        (n200.squared(50).mul(&n50), to_11)
    }

    /// `1 / self`, which is `self^(p - 2)`; zero for zero.
    pub(crate) fn inverse(&self) -> Self {
        let (n250, to_11) = self.powers();
        n250.squared(5).mul(&to_11)
    }

    /// A square root; `None` if there is none.
    pub(crate) fn root(&self) -> Option<Self> {
        // p = 5 (mod 8): the root is self^((p + 3) / 8), or that times a root of -1, which is
        // 2^((p - 1) / 4).
        let eighth = |number: &Self| number.powers().0.squared(2).mul(number);
        let root = eighth(self).mul(self);
        let two = Self::small(2);
        let of_minus_one = eighth(&two).square().mul(&two);
        [root, root.mul(&of_minus_one)].into_iter().find(|root| root.square().is(self))
    }

    /// The only form that is less than p.
    pub(crate) fn canonical(&self) -> Self {
        let once = carried(carried(self.0).0).0;
        // 1 if the number is p or more: adding 19 then carries out of the highest limb.
        let over = once.iter().fold(19, |carry, limb| (limb + carry) >> LIMB_BITS);
        let mut carry = 19 * over;
        Self(once.map(|limb| {
            let sum = limb + carry;
            carry = sum >> LIMB_BITS;
            sum & MASK
        }))
    }

    /// True if both are the same number.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.canonical().0 == other.canonical().0
    }

    pub(crate) fn is_odd(&self) -> bool {
        self.canonical().0[0] & 1 == 1
    }

    /// The lowest 51 bits of the canonical product, for [`crate::pass::Arithmetic::low`]: correct
    /// but for one product in 2^40, because the lower part of the three missing columns is not
    /// carried.
    #[inline]
    pub(crate) fn low_product(&self, other: &Self) -> u64 {
        let [lowest, third, highest] = [0, 3, 4].map(|k| column(&self.0, &other.0, k));
        let quotient = (highest + (third >> LIMB_BITS)) >> LIMB_BITS;
        (lowest as u64).wrapping_add((quotient as u64).wrapping_mul(19)) & MASK
    }
}

/// The sum of all products of limbs that count 2^(51 k), where 2^255 = 19.
#[inline(always)]
fn column(a: &[u64; 5], b: &[u64; 5], k: usize) -> u128 {
    (0..5).map(|i| u128::from(a[i]) * if i <= k { u128::from(b[k - i]) } else { u128::from(19 * b[5 + k - i]) }).sum()
}

/// The same number with each limb's excess added to the next.
#[inline(always)]
fn carried(limbs: [u64; 5]) -> Number {
    Number(std::array::from_fn(|k| {
        let carry = if k == 0 { 19 * (limbs[4] >> LIMB_BITS) } else { limbs[k - 1] >> LIMB_BITS };
        (limbs[k] & MASK) + carry
    }))
}

/// The inverses of several numbers with one inversion (Montgomery's trick).
pub(crate) fn invert_all(numbers: &mut [Number]) {
    let mut product = Number::ONE;
    let before: Vec<Number> = numbers
        .iter()
        .map(|number| {
            let before = product;
            product = product.mul(number);
            before
        })
        .collect();
    let mut inverse = product.inverse();
    for (number, before) in numbers.iter_mut().zip(before).rev() {
        let factor = *number;
        *number = inverse.mul(&before);
        inverse = inverse.mul(&factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigUint;
    use proptest::prelude::*;

    fn p() -> BigUint {
        (BigUint::from(1_u8) << 255) - 19_u8
    }

    fn big(number: &Number) -> BigUint {
        number.0.iter().rev().fold(BigUint::ZERO, |sum, limb| (sum << LIMB_BITS) + *limb) % p()
    }

    /// Loose numbers; each limb is often the smallest or the largest.
    fn loose() -> impl Strategy<Value = Number> {
        let limb =
            prop_oneof![0..1_u64 << 52, Just(0), Just(MASK), Just(MASK - 18), Just(MASK + 1), Just((1 << 52) - 1)];
        proptest::array::uniform5(limb).prop_map(Number)
    }

    proptest! {
        #[test]
        fn numbers_add_and_multiply_as_integers_do(a in loose(), b in loose(), c in loose()) {
            let (x, y, z) = (big(&a), big(&b), big(&c));
            prop_assert_eq!(big(&a.add(&b)), (&x + &y) % p());
            prop_assert_eq!(big(&a.sub(&b)), (&x + p() - &y) % p());
            prop_assert_eq!(big(&a.mul_add(&b, &c)), (&x * &y + z) % p());
            for result in [a.add(&b), a.sub(&b), a.mul_add(&b, &c)] {
                prop_assert!(result.0.iter().all(|limb| *limb < 1 << 52));
            }
            let canonical = a.canonical();
            prop_assert!(canonical.0.iter().all(|limb| *limb <= MASK));
            let whole = canonical.0.iter().rev().fold(BigUint::ZERO, |sum, limb| (sum << LIMB_BITS) + *limb);
            prop_assert_eq!(whole, x);
            prop_assert_eq!(Number::from_bytes(&a.to_bytes()).0, canonical.0);
        }

        #[test]
        fn the_low_bits_of_a_product_are_those_of_the_integer(a in any::<[u8; 32]>(), b in any::<[u8; 32]>()) {
            let (a, b) = (Number::from_bytes(&a), Number::from_bytes(&b));
            prop_assert_eq!(a.low_product(&b), a.mul(&b).canonical().0[0]);
        }

        #[test]
        fn inverses_and_roots_multiply_to_what_they_are_of(a in loose(), b in loose()) {
            let square = a.square();
            prop_assert!(square.root().is_some_and(|root| root.is(&a) || root.is(&a.negated())));
            // 2 is not a square modulo p.
            prop_assert!(square.is(&Number::ZERO) || square.add(&square).root().is_none());
            let mut both = [a, b];
            invert_all(&mut both);
            if !a.is(&Number::ZERO) && !b.is(&Number::ZERO) {
                prop_assert!(a.mul(&both[0]).is(&Number::ONE) && b.mul(&b.inverse()).is(&Number::ONE));
                prop_assert!(both[1].is(&b.inverse()));
            }
        }
    }
}
