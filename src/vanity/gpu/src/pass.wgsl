// One pass of a search: the formula of the crate `rustbalance-vanity`, one lane in each invocation.
// `shader.rs` puts the arithmetic and the constants before this text. All numbers here come from
// public points.

// Alpha, beta and g of each point.
struct Entry { alpha: Number, beta: Number, g: Number }
@group(0) @binding(0) var<storage, read> table: array<Entry>;
// A bit for each value of the lowest 16 bits of a key: 1 if such a key can fit.
@group(0) @binding(1) var<storage, read> fine: array<u32>;
// For each prefix, mask and value of the lowest 26 bits.
@group(0) @binding(2) var<storage, read> wanted: array<vec2<u32>>;
// What a lane keeps between passes. Integer n of a lane is at n * LANES + lane, so that neighbours
// read neighbouring memory; `steps` has the same order.
@group(0) @binding(3) var<storage, read_write> state: array<u32>;
// Each denominator, and the product before it.
@group(0) @binding(4) var<storage, read_write> steps: array<u32>;

struct Candidate { passes: u32, lane: u32, index: u32, minus: u32 }
struct Report { count: atomic<u32>, candidates: array<Candidate> }
@group(0) @binding(5) var<storage, read_write> report: Report;

// The numbers in `state`; after them comes the number of passes that are done.
const S = 0u;
const M = 1u;
const K = 2u;
const X = 3u;
const Y = 4u;
const Z = 5u;
// The product of m and all denominators, and later m times its inverse.
const PRODUCT = 6u;
const NEXT_K = 7u;
const PASSES = 8u * LIMBS * LANES;

const BEFORE = 0u;
const DENOMINATOR = 1u;

// The denominators alpha + s beta, and their products.
@compute @workgroup_size(GROUP)
fn multiply(@builtin(global_invocation_id) id: vec3<u32>) {
    let lane = id.x;
    let s = load(S, lane);
    var product = load(M, lane);
    for (var n = 0u; n < REACH; n++) {
        let denominator = mul_add(table[n].alpha, s, table[n].beta);
        store_step(n, BEFORE, lane, product);
        store_step(n, DENOMINATOR, lane, denominator);
        product = mul(product, denominator);
    }
    store(PRODUCT, lane, product);
}

// 1 / a, which is a^(p - 2), by the chain of the crate's `Number::inverse`.
fn inverse(a: Number) -> Number {
    let to_2 = mul(a, a);
    let to_9 = mul(a, squared(to_2, 2u));
    let to_11 = mul(to_2, to_9);
    // The exponents are 2^n - 1.
    let n5 = mul(mul(to_11, to_11), to_9);
    let n10 = mul(squared(n5, 5u), n5);
    let n20 = mul(squared(n10, 10u), n10);
    let n40 = mul(squared(n20, 20u), n20);
    let n50 = mul(squared(n40, 10u), n10);
    let n100 = mul(squared(n50, 50u), n50);
    let n200 = mul(squared(n100, 100u), n100);
    let n250 = mul(squared(n200, 50u), n50);
    return mul(squared(n250, 5u), to_11);
}

// Inverts the product, and moves the centre on; the next centre needs an inverse, too, and shares
// the inversion. The names are those of `walk.rs` and `curve.rs`.
@compute @workgroup_size(GROUP)
fn turn(@builtin(global_invocation_id) id: vec3<u32>) {
    let lane = id.x;
    let x = load(X, lane);
    let y = load(Y, lane);
    let z = load(Z, lane);
    let zz = mul(z, z);
    let w = sub(zz, mul(D, mul(x, x)));
    let to_invert = mul(mul(z, y), w);

    let product = load(PRODUCT, lane);
    let both = inverse(mul(product, to_invert));
    store(PRODUCT, lane, mul(mul(both, to_invert), load(M, lane)));

    let inverted = mul(both, product);
    let inverse_of_z = mul(mul(y, w), inverted);
    let affine_x = mul(x, inverse_of_z);
    store(S, lane, add(ONE, mul(affine_x, affine_x)));
    store(M, lane, mul(mul(y, inverse_of_z), mul(w, mul(inverse_of_z, inverse_of_z))));
    store(NEXT_K, lane, mul(affine_x, mul(mul(zz, zz), inverted)));

    // The sum with the stride, whose z is 1.
    let xx = mul(x, STRIDE_X);
    let yy = mul(y, STRIDE_Y);
    let all = mul(D, mul(xx, yy));
    let less = sub(zz, all);
    let more = add(zz, all);
    let cross = sub(sub(mul(add(x, y), add(STRIDE_X, STRIDE_Y)), xx), yy);
    store(X, lane, mul(z, mul(less, cross)));
    store(Y, lane, mul(z, mul(more, add(yy, xx))));
    store(Z, lane, mul(less, more));
}

// Reports a key if it may fit. `low` are its lowest 26 bits.
fn sift(lane: u32, index: u32, minus: u32, low: u32) {
    if ((fine[(low & 0xffffu) >> 5u] >> (low & 31u)) & 1u) == 0u {
        return;
    }
    for (var n = 0u; n < arrayLength(&wanted); n++) {
        if ((low ^ wanted[n].y) & wanted[n].x) == 0u {
            let place = atomicAdd(&report.count, 1u);
            if place < CAPACITY {
                report.candidates[place] = Candidate(state[PASSES + lane], lane, index, minus);
            }
            return;
        }
    }
}

// The inverse of each denominator times m, and with it the keys P + Q and P - Q.
@compute @workgroup_size(GROUP)
fn test(@builtin(global_invocation_id) id: vec3<u32>) {
    let lane = id.x;
    let k = load(K, lane);
    var inverse_of_product = load(PRODUCT, lane);
    for (var n = REACH; n > 0u; n--) {
        let index = n - 1u;
        let i = mul(load_step(index, BEFORE, lane), inverse_of_product);
        inverse_of_product = mul(inverse_of_product, load_step(index, DENOMINATOR, lane));
        let g = table[index].g;
        sift(lane, index, 0u, low_product(sum(g, k), i));
        sift(lane, index, 1u, low_product(difference(g, k), i));
    }
    store(K, lane, load(NEXT_K, lane));
    state[PASSES + lane] += 1u;
}
