//! The path for processors with AVX2: four numbers at once, in limbs of 26 and 25 bits in turn.
//!
//! The instruction multiplies two numbers of 32 bits. Limb `k` counts 2^ceil(25.5 k), so the
//! product of two odd limbs counts twice.

use std::arch::x86_64::*;
use std::sync::Arc;

use crate::Search;
use crate::field::Number;
use crate::pass::{Arithmetic, Entry, pass as pass_over};

/// Numbers in one vector.
pub(crate) const LANES: usize = 4;

/// A number of the table in limbs of this path.
pub(crate) type Split = [u64; 10];

/// Four numbers; vector `k` holds limb `k` of each. Limbs of loose numbers have less than 27 bits.
pub(crate) type Vector = [__m256i; 10];

/// Bits of limb `k`.
const fn bits(k: usize) -> u32 {
    [26, 25][k % 2]
}

/// A canonical number in limbs of this path.
pub(crate) fn split(number: &Number) -> Split {
    std::array::from_fn(|k| match k % 2 {
        0 => number.0[k / 2] & ((1 << 26) - 1),
        _ => number.0[k / 2] >> 26,
    })
}

#[target_feature(enable = "avx2")]
#[inline]
fn zero() -> Vector {
    [_mm256_setzero_si256(); 10]
}

#[target_feature(enable = "avx2")]
#[inline]
fn splat(number: &Split) -> Vector {
    let mut vector = zero();
    for k in 0..10 {
        vector[k] = _mm256_set1_epi64x(number[k].cast_signed());
    }
    vector
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(numbers: &[Number; LANES]) -> Vector {
    let split = numbers.map(|number| split(&number.canonical()));
    std::array::from_fn(|k| {
        let [a, b, c, d] = split.map(|limbs| limbs[k].cast_signed());
        _mm256_setr_epi64x(a, b, c, d)
    })
}

#[target_feature(enable = "avx2")]
#[inline]
fn lanes(vector: __m256i) -> [u64; LANES] {
    [
        _mm256_extract_epi64::<0>(vector).cast_unsigned(),
        _mm256_extract_epi64::<1>(vector).cast_unsigned(),
        _mm256_extract_epi64::<2>(vector).cast_unsigned(),
        _mm256_extract_epi64::<3>(vector).cast_unsigned(),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(vector: &Vector) -> [Number; LANES] {
    let limbs = vector.map(|limb| lanes(limb));
    // An even limb of 27 bits runs into the odd one above it.
    std::array::from_fn(|lane| Number(std::array::from_fn(|k| limbs[2 * k][lane] + (limbs[2 * k + 1][lane] << 26))))
}

/// `a + b` of two canonical numbers.
#[target_feature(enable = "avx2")]
#[inline]
fn add(a: &Vector, b: &Vector) -> Vector {
    let mut sum = zero();
    for k in 0..10 {
        sum[k] = _mm256_add_epi64(a[k], b[k]);
    }
    sum
}

/// `19 * vector`, which may have more than 32 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn times_19(vector: __m256i) -> __m256i {
    let times_3 = _mm256_add_epi64(_mm256_add_epi64(vector, vector), vector);
    _mm256_add_epi64(_mm256_slli_epi64::<4>(vector), times_3)
}

/// The factors of one multiplication, with the multiples that its columns need.
struct Factors {
    a: Vector,
    /// `2 * a`.
    doubled: Vector,
    b: Vector,
    /// `19 * b`.
    wrapped: Vector,
}

#[target_feature(enable = "avx2")]
#[inline]
fn factors(a: &Vector, b: &Vector) -> Factors {
    let nineteen = _mm256_set1_epi64x(19);
    let (mut doubled, mut wrapped) = (zero(), zero());
    for k in 0..10 {
        doubled[k] = _mm256_add_epi64(a[k], a[k]);
        wrapped[k] = _mm256_mul_epu32(b[k], nineteen);
    }
    Factors { a: *a, doubled, b: *b, wrapped }
}

/// `sum` and all products that count 2^ceil(25.5 K): less than 2^63.
#[target_feature(enable = "avx2")]
#[inline]
fn column<const K: usize>(sum: __m256i, factors: &Factors) -> __m256i {
    let mut sum = sum;
    for i in 0..10 {
        let (other, b) = if i <= K { (K - i, &factors.b) } else { (10 + K - i, &factors.wrapped) };
        let a = if i % 2 == 1 && other % 2 == 1 { &factors.doubled } else { &factors.a };
        sum = _mm256_add_epi64(sum, _mm256_mul_epu32(a[i], b[other]));
    }
    sum
}

/// Adds the excess of limb `K` to the next one.
#[target_feature(enable = "avx2")]
#[inline]
fn carry<const K: usize>(limbs: &mut Vector) {
    let limb = limbs[K];
    let excess = if bits(K) == 26 { _mm256_srli_epi64::<26>(limb) } else { _mm256_srli_epi64::<25>(limb) };
    limbs[K] = _mm256_and_si256(limb, _mm256_set1_epi64x((1 << bits(K)) - 1));
    let (next, excess) = if K == 9 { (0, times_19(excess)) } else { (K + 1, excess) };
    limbs[next] = _mm256_add_epi64(limbs[next], excess);
}

/// `term + a * b`.
#[target_feature(enable = "avx2")]
#[inline]
fn mul_add(term: &Vector, a: &Vector, b: &Vector) -> Vector {
    let factors = factors(a, b);
    let mut limbs = [
        column::<0>(term[0], &factors),
        column::<1>(term[1], &factors),
        column::<2>(term[2], &factors),
        column::<3>(term[3], &factors),
        column::<4>(term[4], &factors),
        column::<5>(term[5], &factors),
        column::<6>(term[6], &factors),
        column::<7>(term[7], &factors),
        column::<8>(term[8], &factors),
        column::<9>(term[9], &factors),
    ];
    // Two chains at once. Limbs 0 and 4 are carried again, because the chains end there; then each
    // limb has at most one bit too many.
    carry::<0>(&mut limbs);
    carry::<4>(&mut limbs);
    carry::<1>(&mut limbs);
    carry::<5>(&mut limbs);
    carry::<2>(&mut limbs);
    carry::<6>(&mut limbs);
    carry::<3>(&mut limbs);
    carry::<7>(&mut limbs);
    carry::<4>(&mut limbs);
    carry::<8>(&mut limbs);
    carry::<9>(&mut limbs);
    carry::<0>(&mut limbs);
    limbs
}

#[target_feature(enable = "avx2")]
#[inline]
fn mul(a: &Vector, b: &Vector) -> Vector {
    mul_add(&zero(), a, b)
}

/// The lowest limb of the canonical product, as [`Number::low_product`] has it; higher bits of the
/// lanes are arbitrary. `a` is the sum of two canonical numbers.
#[target_feature(enable = "avx2")]
#[inline]
fn low_product(a: &Vector, b: &Vector) -> __m256i {
    let (factors, zero) = (factors(a, b), _mm256_setzero_si256());
    let seventh = column::<7>(zero, &factors);
    let eighth = column::<8>(_mm256_srli_epi64::<25>(seventh), &factors);
    let ninth = column::<9>(_mm256_srli_epi64::<26>(eighth), &factors);
    let quotient = _mm256_srli_epi64::<25>(ninth);
    column::<0>(times_19(quotient), &factors)
}

/// Tests the keys of one pass.
///
/// # Safety
/// A caller without the features of this function must have seen that the processor has them;
/// [`Search::new`] refuses a processor that lacks them.
#[target_feature(enable = "avx2")]
pub fn pass(search: &mut Search) {
    let Search { walk, near, scratch, table, .. } = search;
    let prefixes = Arc::clone(walk.prefixes());
    let arithmetic = Arithmetic {
        load: |numbers: &[Number; LANES]| load(numbers),
        store: |vector: &Vector| store(vector),
        mul: |a: &Vector, b: &Vector| mul(a, b),
        denominator: |q: &Entry<Split>, s: &Vector| mul_add(&splat(&q.alpha), s, &splat(&q.beta)),
        low: |q: &Entry<Split>, k: &Vector, i: &Vector| {
            let low = lanes(low_product(&add(&splat(&q.g), k), i));
            low.iter().fold(false, |any, low| any | prefixes.may_fit(*low)).then_some(low)
        },
    };
    pass_over(walk, &table.split, &mut scratch.avx2, near, arithmetic);
}
