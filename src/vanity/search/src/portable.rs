//! The path for any processor: one number at a time.

use std::sync::Arc;

use crate::Search;
use crate::field::Number;
use crate::pass::{Arithmetic, Entry, pass as pass_over};

/// Tests the keys of one pass.
pub fn pass(search: &mut Search) {
    let Search { walk, near, scratch, table, .. } = search;
    let prefixes = Arc::clone(walk.prefixes());
    let arithmetic = Arithmetic {
        load: |numbers: &[Number; 1]| numbers[0],
        store: |number: &Number| [*number],
        mul: Number::mul,
        denominator: |q: &Entry<Number>, s: &Number| s.mul_add(&q.beta, &q.alpha),
        low: |q: &Entry<Number>, k: &Number, i: &Number| {
            // Both are canonical, so the sum is loose.
            let numerator = Number(std::array::from_fn(|limb| q.g.0[limb] + k.0[limb]));
            let low = numerator.low_product(i);
            prefixes.may_fit(low).then_some([low])
        },
    };
    pass_over(walk, &table.whole, &mut scratch.portable, near, arithmetic);
}
