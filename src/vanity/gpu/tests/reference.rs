//! A device finds exactly the keys that curve25519-dalek finds. Runs on Mesa's software Vulkan
//! (Debian's mesa-vulkan-drivers).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use curve25519_dalek::{EdwardsPoint, Scalar};
use proptest::prelude::*;
use rustbalance_vanity::{Prefix, Prefixes, SearchError};
use rustbalance_vanity_gpu::{Device, GpuError, Search};

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Keys that one lane tests in a pass, and the centre between them.
const STRIDE: u64 = 1025;

/// Compiled once for all tests.
static DEVICE: LazyLock<Arc<Device>> = LazyLock::new(|| match Device::open("llvmpipe") {
    Ok(device) => Arc::new(device),
    Err(error) => panic!("{error}: `./scripts/install.sh tests` installs mesa-vulkan-drivers"),
});

/// 8 n B.
fn multiple(n: u64) -> EdwardsPoint {
    EdwardsPoint::mul_base(&(Scalar::from(n) * Scalar::from(8_u64)))
}

/// All prefixes of two characters.
fn pairs() -> Vec<Prefix> {
    let pairs = ALPHABET.iter().flat_map(|first| ALPHABET.iter().map(move |second| [*first, *second]));
    pairs.map(|pair| std::str::from_utf8(&pair).unwrap().parse().unwrap()).collect()
}

/// What the device finds in this number of batches is what the reference finds among the same keys.
fn compare(start: &EdwardsPoint, prefixes: &[Prefix], batches: usize) {
    let prefixes = Arc::new(Prefixes::new(prefixes));
    let mut search = Search::new(&DEVICE, &start.compress().0, &prefixes).unwrap();
    let (mut found, mut tested) = (BTreeSet::new(), 0);
    for _ in 0..batches {
        let batch = search.run().unwrap();
        found.extend(batch.hits.into_iter().map(|hit| (hit.offset, hit.public)));
        tested += batch.tested;
    }
    let step = multiple(1);
    let points = std::iter::successors(Some(*start), |point| Some(point + step));
    // The keys of all lanes follow each other. Each centre is left out.
    let expected: BTreeSet<_> = (0..tested / (STRIDE - 1) * STRIDE)
        .zip(points)
        .filter(|(n, _)| n % STRIDE != STRIDE / 2)
        .map(|(n, point)| (n, point.compress().to_bytes()))
        .filter(|(_, public)| prefixes.fitting(public).is_some())
        .collect();
    assert!(found == expected, "{} found, {} expected", found.len(), expected.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1))]

    #[test]
    fn a_device_finds_exactly_the_keys_of_the_reference(
        start in any::<[u8; 32]>(),
        // With more prefixes, Mesa's limit of 65,535 rounds for all loops would end a pass.
        prefixes in proptest::sample::subsequence(pairs(), 50),
    ) {
        let start = EdwardsPoint::mul_base(&Scalar::from_bytes_mod_order(start));
        compare(&start, &prefixes, 2);
    }
}

/// The start is before the neutral element, so that a pass crosses it: P = Q, P = -Q and P = 0
/// occur, in a centre of the first lanes and between those of the last.
#[test]
fn a_search_across_the_neutral_element_is_exact() {
    let prefixes: Vec<Prefix> = pairs().into_iter().step_by(21).collect();
    for before in [3 * STRIDE + STRIDE / 2, 60_000] {
        compare(&-multiple(before), &prefixes, 1);
    }
}

#[test]
fn long_prefixes_are_found_by_more_bits_than_the_device_tests() {
    let picks = Arc::new(Prefixes::new(&["abcd", "rbx", "zyx4567"].map(|text| text.parse().unwrap())));
    let mut search = Search::new(&DEVICE, &multiple(77).compress().0, &picks).unwrap();
    let hit = loop {
        if let Some(hit) = search.run().unwrap().hits.first() {
            break *hit;
        }
    };
    assert_eq!(hit.public, (multiple(77) + multiple(hit.offset)).compress().0);
    assert!(picks.fitting(&hit.public).is_some());
}

#[test]
fn what_is_not_there_is_refused_with_what_is() {
    let refused = Device::open("no such device").unwrap_err().to_string();
    assert!(
        refused.contains("no graphics processor whose name contains \"no such device\"; Vulkan shows"),
        "{refused}"
    );
    assert!(DEVICE.name().starts_with("llvmpipe"), "{}", DEVICE.name());
    let prefixes = Arc::new(Prefixes::new(&["a".parse().unwrap()]));
    let refused = Search::new(&DEVICE, &[2; 32], &prefixes).unwrap_err();
    assert!(matches!(refused, GpuError::Start(SearchError::Start)));
}
