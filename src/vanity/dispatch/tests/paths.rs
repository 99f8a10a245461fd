//! Every path finds exactly the keys that curve25519-dalek and integers of any size find.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::{EdwardsPoint, Scalar};
use num_bigint::BigUint;
use proptest::prelude::*;
use rustbalance_vanity::{Path, Prefix, Prefixes, Search, SearchError, Table};
use rustbalance_vanity_dispatch::pass;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Multiples of 8 B between two lanes.
const LANE_STRIDE: u64 = 1 << 56;

fn paths() -> impl Iterator<Item = Path> {
    Path::ALL.into_iter().filter(|path| path.is_available())
}

/// 8 n B.
fn multiple(n: u64) -> EdwardsPoint {
    EdwardsPoint::mul_base(&(Scalar::from(n) * Scalar::from(8_u64)))
}

/// The keys of the next passes of a search from `start`, in all lanes, with their distances.
fn keys(start: &EdwardsPoint, lanes: u64, per_lane: u64) -> Vec<(u64, [u8; 32])> {
    let step = multiple(1);
    let mut all = Vec::new();
    for lane in 0..lanes {
        let first = lane * LANE_STRIDE;
        let mut point = start + multiple(first);
        for n in first..first + per_lane {
            all.push((n, point.compress().to_bytes()));
            point += step;
        }
    }
    all
}

/// Two characters each, so that half of all keys fit.
fn half_of_all(picks: &[bool]) -> Arc<Prefixes> {
    let pairs = ALPHABET.iter().flat_map(|first| ALPHABET.iter().map(move |second| [*first, *second]));
    let chosen = pairs.zip(picks).filter(|(_, pick)| **pick);
    let prefixes: Vec<Prefix> = chosen.map(|(pair, _)| std::str::from_utf8(&pair).unwrap().parse().unwrap()).collect();
    Arc::new(Prefixes::new(&prefixes))
}

/// What a path finds in this number of passes is what the reference finds among the same keys.
fn compare(path: Path, start: &EdwardsPoint, prefixes: &Arc<Prefixes>, table: &Arc<Table>, passes: u64) {
    let mut search = Search::new(path, &start.compress().0, prefixes, table).unwrap();
    let mut found = BTreeSet::new();
    for _ in 0..passes {
        found.extend(pass(&mut search).into_iter().map(|hit| (hit.offset, hit.public)));
    }
    let lanes = path.lanes() as u64;
    let per_pass = search.keys_per_pass() / lanes;
    // Each pass leaves out the key in its middle.
    let tested = keys(start, lanes, passes * (per_pass + 1))
        .into_iter()
        .filter(|(n, _)| n % LANE_STRIDE % (per_pass + 1) != per_pass / 2)
        .filter(|(_, public)| prefixes.fitting(public).is_some());
    let expected: BTreeSet<_> = tested.collect();
    assert!(found == expected, "{path}: {} found, {} expected", found.len(), expected.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1))]

    #[test]
    fn every_path_finds_exactly_the_keys_of_the_reference(
        start in any::<[u8; 32]>(),
        picks in proptest::collection::vec(any::<bool>(), 1024),
    ) {
        let table = Arc::new(Table::new());
        let prefixes = half_of_all(&picks);
        let start = EdwardsPoint::mul_base(&Scalar::from_bytes_mod_order(start));
        for path in paths() {
            compare(path, &start, &prefixes, &table, 2);
        }
    }
}

/// The start is so far before the neutral element that the first pass crosses it: the formula has
/// no exception, although there P = Q, P = -Q and P = 0 occur.
#[test]
fn a_search_across_the_neutral_element_is_exact() {
    let table = Arc::new(Table::new());
    let picks: Vec<bool> = (0..1024).map(|index| index % 3 != 0).collect();
    for before in [1, 1030, 2048] {
        let start = -multiple(before);
        compare(Path::best(), &start, &half_of_all(&picks), &table, 1);
    }
    for path in paths() {
        compare(path, &-multiple(1024), &half_of_all(&picks), &table, 1);
    }
}

/// The formula itself, in integers: y(P + Q) and y(P - Q) by the addition law and as in the crate's
/// documentation.
#[test]
fn the_formula_holds_in_integers() {
    let p = (BigUint::from(1_u8) << 255) - 19_u8;
    let inverse = |n: &BigUint| n.modpow(&(&p - 2_u8), &p);
    let minus = |a: BigUint, b: BigUint| ((a % &p) + &p - (b % &p)) % &p;
    let one = BigUint::from(1_u8);
    let d = minus(BigUint::ZERO, BigUint::from(121_665_u32) * inverse(&121_666_u32.into()));
    let root_of_minus_one = BigUint::from(2_u8).modpow(&((&p - 1_u8) / 4_u8), &p);
    let coordinates = |point: EdwardsPoint| {
        let mut bytes = point.compress().to_bytes();
        let odd = bytes[31] >> 7 == 1;
        bytes[31] &= 0x7f;
        let y = BigUint::from_bytes_le(&bytes);
        let xx = minus(&y * &y, one.clone()) * inverse(&(&d * &y * &y + 1_u8)) % &p;
        let mut x = xx.modpow(&((&p + 3_u8) / 8_u8), &p);
        if &x * &x % &p != xx {
            x = x * &root_of_minus_one % &p;
        }
        (if x.bit(0) == odd { x } else { &p - x }, y)
    };
    for n in 1..40_u64 {
        let (big_p, big_q) = (multiple(n * n * 77_777_777), multiple(n + 100));
        let ((x1, y1), (x2, y2)) = (coordinates(big_p), coordinates(big_q));
        let w = |x: &BigUint| minus(one.clone(), &d * x * x);
        let inverse_of_1_plus_d = inverse(&(&d + 1_u8));
        let alpha = inverse(&x2);
        let beta = minus(BigUint::ZERO, &d * (&x2 + &alpha) * &inverse_of_1_plus_d);
        let g = &y2 * w(&x2) * &alpha * &inverse_of_1_plus_d;
        let (s, m) = (&x1 * &x1 + 1_u8, &y1 * w(&x1) % &p);
        let k = &x1 * inverse(&m);
        let i = &m * inverse(&((&alpha + &s * &beta) % &p));
        let sum = (&g + &k) * &i % &p;
        let difference = minus(g, k) * i % &p;
        assert_eq!((sum, difference), (coordinates(big_p + big_q).1, coordinates(big_p - big_q).1), "{n}");
    }
}

#[test]
fn a_start_outside_the_group_is_refused() {
    let (table, prefixes) = (Arc::new(Table::new()), Arc::new(Prefixes::new(&["a".parse().unwrap()])));
    let torsion = curve25519_dalek::constants::EIGHT_TORSION[1];
    let two = {
        let mut bytes = [0; 32];
        bytes[0] = 2;
        CompressedEdwardsY(bytes)
    };
    for bytes in [torsion.compress(), (torsion + multiple(1)).compress(), EdwardsPoint::default().compress(), two] {
        let refused = Search::new(Path::Portable, &bytes.0, &prefixes, &table);
        assert_eq!(refused.err(), Some(SearchError::Start));
    }
}
