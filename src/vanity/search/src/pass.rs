//! One pass over the table, written once for all paths: the formula of the crate's documentation.
//!
//! A path gives its arithmetic on `V`, which is one number or one for each of its lanes. The loops
//! and the closures are inlined into a function that may use the path's instructions.

use crate::field::Number;
use crate::walk::{Near, Sign, Walk};

/// What the formula needs of a point Q of the table, in numbers of the path's form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<E> {
    /// 1 / x.
    pub(crate) alpha: E,
    /// - d (x + 1 / x) / (1 + d).
    pub(crate) beta: E,
    /// y (1 - d x^2) / (x (1 + d)).
    pub(crate) g: E,
}

/// What the formula needs of the centre P.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Centre<V> {
    /// 1 + x^2.
    pub(crate) s: V,
    /// y (1 - d x^2).
    pub(crate) m: V,
    /// x / m, and its negative. Canonical, as `g` is, so that their sum is loose.
    pub(crate) k: [V; 2],
}

/// A denominator, and the product of `m` with all denominators before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<V> {
    before: V,
    denominator: V,
}

/// The arithmetic of a path with `N` lanes.
pub(crate) struct Arithmetic<Load, Store, Mul, Denominator, Low> {
    /// `N` numbers as `V`.
    pub(crate) load: Load,
    /// `V` as `N` numbers.
    pub(crate) store: Store,
    /// The product of two `V`.
    pub(crate) mul: Mul,
    /// `alpha + s * beta`.
    pub(crate) denominator: Denominator,
    /// The lowest bits of `(g + k) * i` in each lane, as [`Number::low_product`] has them; keys
    /// that do not fit may be among them. `None` if none can fit.
    pub(crate) low: Low,
}

/// Tests the keys P + Q and P - Q for all Q of the table in all lanes of the walk, and moves each
/// centre P on. Keys that may be wanted are added to `near`.
#[inline(always)]
pub(crate) fn pass<const N: usize, E, V: Copy>(
    walk: &mut Walk,
    table: &[Entry<E>],
    steps: &mut Vec<Step<V>>,
    near: &mut Vec<Near>,
    path: Arithmetic<
        impl Fn(&[Number; N]) -> V,
        impl Fn(&V) -> [Number; N],
        impl Fn(&V, &V) -> V,
        impl Fn(&Entry<E>, &V) -> V,
        impl Fn(&Entry<E>, &V, &V) -> Option<[u64; N]>,
    >,
) {
    let lanes = |part: fn(&Centre<Number>) -> Number| (path.load)(&std::array::from_fn(|lane| part(walk.centre(lane))));
    let (s, m) = (lanes(|centre| centre.s), lanes(|centre| centre.m));
    let k = [lanes(|centre| centre.k[0]), lanes(|centre| centre.k[1])];

    steps.resize(table.len(), Step { before: m, denominator: m });
    let mut product = m;
    for (q, step) in table.iter().zip(steps.iter_mut()) {
        let denominator = (path.denominator)(q, &s);
        *step = Step { before: product, denominator };
        product = (path.mul)(&product, &denominator);
    }

    let mut inverse = (path.load)(&walk.turn((path.store)(&product)));
    for (index, (q, step)) in table.iter().zip(steps.iter()).enumerate().rev() {
        let i = (path.mul)(&step.before, &inverse);
        inverse = (path.mul)(&inverse, &step.denominator);
        if let Some(low) = (path.low)(q, &k[0], &i) {
            walk.sift(index, Sign::Plus, &low, near);
        }
        if let Some(low) = (path.low)(q, &k[1], &i) {
            walk.sift(index, Sign::Minus, &low, near);
        }
    }
    walk.end_pass();
}
