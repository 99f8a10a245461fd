//! The path for processors with AVX-512 IFMA: eight numbers at once, in limbs of 51 bits.
//!
//! The instructions multiply two numbers of 52 bits, and add the lower or the upper 52 bits of the
//! product to a sum of 64 bits.

use std::arch::x86_64::*;

use crate::Search;
use crate::field::{LIMB_BITS, MASK, Number};
use crate::pass::{Arithmetic, Entry, pass as pass_over};
use crate::prefix::COARSE_BITS;

/// Numbers in one vector.
pub(crate) const LANES: usize = 8;

/// Eight numbers; vector `k` holds limb `k` of each. They are loose, as in [`crate::field`].
pub(crate) type Vector = [__m512i; 5];

#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn zero() -> Vector {
    [_mm512_setzero_si512(); 5]
}

#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn splat(number: &Number) -> Vector {
    let mut vector = zero();
    for (element, limb) in vector.iter_mut().zip(number.0) {
        *element = _mm512_set1_epi64(limb.cast_signed());
    }
    vector
}

#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn eight(elements: [u64; 8]) -> __m512i {
    let [a, b, c, d, e, f, g, h] = elements.map(u64::cast_signed);
    _mm512_setr_epi64(a, b, c, d, e, f, g, h)
}

#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn load(numbers: &[Number; LANES]) -> Vector {
    std::array::from_fn(|k| eight(numbers.map(|number| number.0[k])))
}

#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn lanes(vector: __m512i) -> [u64; LANES] {
    let mut all = [0; LANES];
    for (half, two) in [_mm512_castsi512_si256(vector), _mm512_extracti64x4_epi64::<1>(vector)].into_iter().enumerate()
    {
        all[4 * half] = _mm256_extract_epi64::<0>(two).cast_unsigned();
        all[4 * half + 1] = _mm256_extract_epi64::<1>(two).cast_unsigned();
        all[4 * half + 2] = _mm256_extract_epi64::<2>(two).cast_unsigned();
        all[4 * half + 3] = _mm256_extract_epi64::<3>(two).cast_unsigned();
    }
    all
}

#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn store(vector: &Vector) -> [Number; LANES] {
    let limbs = vector.map(|limb| lanes(limb));
    std::array::from_fn(|lane| Number(std::array::from_fn(|k| limbs[k][lane])))
}

/// `a + b` of two canonical numbers.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn add(a: &Vector, b: &Vector) -> Vector {
    let mut sum = zero();
    for k in 0..5 {
        sum[k] = _mm512_add_epi64(a[k], b[k]);
    }
    sum
}

/// `19 * vector`.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn times_19(vector: __m512i) -> __m512i {
    let times_3 = _mm512_add_epi64(_mm512_add_epi64(vector, vector), vector);
    _mm512_add_epi64(_mm512_slli_epi64::<4>(vector), times_3)
}

/// `term + a * b`.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn mul_add(term: &Vector, a: &Vector, b: &Vector) -> Vector {
    let mut sums = [_mm512_setzero_si512(); 10];
    for i in 0..5 {
        for k in 0..5 {
            sums[i + k + 1] = _mm512_madd52hi_epu64(sums[i + k + 1], a[i], b[k]);
        }
    }
    // An upper half counts 2^52, a limb 2^51.
    for sum in &mut sums {
        *sum = _mm512_add_epi64(*sum, *sum);
    }
    for k in 0..5 {
        sums[k] = _mm512_add_epi64(sums[k], term[k]);
    }
    for i in 0..5 {
        for k in 0..5 {
            sums[i + k] = _mm512_madd52lo_epu64(sums[i + k], a[i], b[k]);
        }
    }
    // Now less than 2^57. Limb k + 5 counts 2^255 times as much as limb k: 19 times.
    let mask = _mm512_set1_epi64(MASK.cast_signed());
    let (mut product, mut carries) = (zero(), zero());
    for k in 0..5 {
        let limb = _mm512_add_epi64(sums[k], times_19(sums[k + 5]));
        carries[k] = _mm512_srli_epi64::<LIMB_BITS>(limb);
        product[k] = _mm512_and_si512(limb, mask);
    }
    product[0] = _mm512_madd52lo_epu64(product[0], carries[4], _mm512_set1_epi64(19));
    for k in 1..5 {
        product[k] = _mm512_add_epi64(product[k], carries[k - 1]);
    }
    product
}

#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn mul(a: &Vector, b: &Vector) -> Vector {
    mul_add(&zero(), a, b)
}

/// The lowest limb of the canonical product, as [`Number::low_product`] has it; higher bits of the
/// lanes are arbitrary. `a` is the sum of two canonical numbers.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn low_product(a: &Vector, b: &Vector) -> __m512i {
    let zero = _mm512_setzero_si512();
    let (mut fourth, mut fifth) = (zero, zero);
    for k in 0..4 {
        fourth = _mm512_madd52hi_epu64(fourth, a[k], b[3 - k]);
    }
    for k in 0..5 {
        fifth = _mm512_madd52hi_epu64(fifth, a[k], b[4 - k]);
    }
    fourth = _mm512_add_epi64(fourth, fourth);
    fifth = _mm512_add_epi64(fifth, fifth);
    for k in 0..5 {
        fourth = _mm512_madd52lo_epu64(fourth, a[k], b[4 - k]);
    }
    for k in 1..5 {
        fifth = _mm512_madd52lo_epu64(fifth, a[k], b[5 - k]);
    }
    let ninth = _mm512_madd52hi_epu64(zero, a[4], b[4]);
    let highest = _mm512_add_epi64(fourth, times_19(_mm512_add_epi64(ninth, ninth)));
    let quotient = _mm512_srli_epi64::<LIMB_BITS>(highest);
    let lowest = _mm512_madd52lo_epu64(zero, a[0], b[0]);
    _mm512_madd52lo_epu64(lowest, _mm512_add_epi64(fifth, quotient), _mm512_set1_epi64(19))
}

/// True if one of the keys with these lowest bits may fit. `tables` are those of
/// [`crate::Prefixes::coarse`].
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn may_fit(low: __m512i, tables: &[__m512i; 2]) -> bool {
    // The lowest three bits choose the element, and a rotation by the next six the bit.
    let first = _mm512_rorv_epi64(_mm512_permutexvar_epi64(low, tables[0]), _mm512_srli_epi64::<3>(low));
    let above = _mm512_srli_epi64::<COARSE_BITS>(low);
    let second = _mm512_rorv_epi64(_mm512_permutexvar_epi64(above, tables[1]), _mm512_srli_epi64::<3>(above));
    _mm512_test_epi64_mask(_mm512_and_si512(first, second), _mm512_set1_epi64(1)) != 0
}

/// Tests the keys of one pass.
///
/// # Safety
/// A caller without the features of this function must have seen that the processor has them;
/// [`Search::new`] refuses a processor that lacks them.
#[target_feature(enable = "avx512f,avx512ifma")]
pub fn pass(search: &mut Search) {
    let Search { walk, near, scratch, table, .. } = search;
    let tables = walk.prefixes().coarse().map(|table| eight(table));
    let arithmetic = Arithmetic {
        load: |numbers: &[Number; LANES]| load(numbers),
        store: |vector: &Vector| store(vector),
        mul: |a: &Vector, b: &Vector| mul(a, b),
        denominator: |q: &Entry<Number>, s: &Vector| mul_add(&splat(&q.alpha), s, &splat(&q.beta)),
        low: |q: &Entry<Number>, k: &Vector, i: &Vector| {
            let low = low_product(&add(&splat(&q.g), k), i);
            may_fit(low, &tables).then(|| lanes(low))
        },
    };
    pass_over(walk, &table.whole, &mut scratch.ifma, near, arithmetic);
}
