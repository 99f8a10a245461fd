//! The text of the shader: arithmetic modulo p = 2^255 - 19, written out by this module, and the
//! passes (`pass.wgsl`).
//!
//! The language has no product of 64 bits, so a number has 20 limbs of 13 bits; limb k counts
//! 2^(13 k). The products of one column then add up to less than 2^32. *Loose* limbs, the results
//! of all functions but `sum` and `difference`, are at most 8255 = 2^13 + 63, and the highest has
//! eight bits. Every function accepts loose numbers.
//!
//! The text has neither loops over limbs nor computed indices: drivers would check each index, and
//! keep the limbs in memory instead of registers.

use std::fmt::Write as _;

use rustbalance_vanity::remote::{self, Bytes, REACH};

/// Limbs of a number.
pub(crate) const LIMBS: usize = 20;
/// Bits of a limb.
const LIMB_BITS: usize = 13;
/// Bits of the highest limb.
const HIGHEST_BITS: usize = 255 - LIMB_BITS * (LIMBS - 1);
/// 2^260, where the columns of a product wrap around, is 2^5 * 19.
const WRAPPED: u32 = 19 << (LIMB_BITS * LIMBS - 255);
/// Integers for the two numbers of a step of a pass: two limbs in each.
pub(crate) const STEP_WORDS: usize = LIMBS;
/// Integers that a lane keeps between passes: eight numbers, and how many passes it has done.
pub(crate) const STATE_WORDS: usize = 8 * LIMBS + 1;

/// What the text depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Lanes of the search; a multiple of `group`.
    pub(crate) lanes: u32,
    /// Lanes of a workgroup.
    pub(crate) group: u32,
    /// Candidates that fit into a report.
    pub(crate) capacity: u32,
}

/// The limbs of a number.
pub(crate) fn limbs(bytes: &Bytes) -> [u32; LIMBS] {
    std::array::from_fn(|k| {
        let (first, shift) = (LIMB_BITS * k / 8, LIMB_BITS * k % 8);
        let word = (first..first + 3).rev().fold(0, |word, byte| word << 8 | u32::from(*bytes.get(byte).unwrap_or(&0)));
        word >> shift & ((1 << LIMB_BITS) - 1)
    })
}

/// The whole shader.
pub(crate) fn text(layout: Layout) -> String {
    [constants(layout), arithmetic(), memory(), include_str!("pass.wgsl").into()].join("\n")
}

fn constants(layout: Layout) -> String {
    let mut text = String::from("alias Number = array<u32, 20>;\n");
    let Layout { lanes, group, capacity } = layout;
    let integers = [
        ("LIMBS", LIMBS as u32),
        ("LANES", lanes),
        ("GROUP", group),
        ("CAPACITY", capacity),
        ("REACH", REACH as u32),
        ("MASK", (1 << LIMB_BITS) - 1),
    ];
    for (name, value) in integers {
        let _ = writeln!(text, "const {name} = {value}u;");
    }
    let mut one = [0; 32];
    one[0] = 1;
    let [x, y] = remote::stride(lanes);
    for (name, bytes) in [("ONE", one), ("D", remote::d()), ("STRIDE_X", x), ("STRIDE_Y", y)] {
        let _ = writeln!(text, "const {name} = {};", number(|k| format!("{}u", limbs(&bytes)[k])));
    }
    text
}

/// An expression for a number, of those for its limbs.
fn number(limb: impl Fn(usize) -> String) -> String {
    let limbs: Vec<String> = (0..LIMBS).map(limb).collect();
    format!("Number({})", limbs.join(", "))
}

/// Twice limb `k` of p: more than any loose limb.
fn twice_p(k: usize) -> u32 {
    2 * match k {
        0 => (1 << LIMB_BITS) - 19,
        k if k == LIMBS - 1 => (1 << HIGHEST_BITS) - 1,
        _ => (1 << LIMB_BITS) - 1,
    }
}

/// The products of a and b that count 2^(13 k).
fn column(k: usize) -> String {
    let products: Vec<String> =
        (0..LIMBS).filter(|i| (*i..*i + LIMBS).contains(&k)).map(|i| format!("a[{i}] * b[{}]", k - i)).collect();
    products.join(" + ")
}

/// Lines of a function in which values are carried from one column to the next.
#[derive(Default)]
struct Chain {
    lines: String,
    /// What is carried to the next column.
    carry: Option<String>,
}

impl Chain {
    /// Adds the carry to `value`, and keeps the lowest bits as `name`.
    fn digit(&mut self, name: &str, value: &str, bits: usize) {
        let carry = self.carry.take().map_or_else(String::new, |carry| format!(" + {carry}"));
        let _ = writeln!(self.lines, "    let {name}_sum = {value}{carry};");
        let _ = writeln!(self.lines, "    let {name} = {name}_sum & {}u;", (1_u32 << bits) - 1);
        self.carry = Some(format!("({name}_sum >> {bits}u)"));
    }

    /// What is carried out of the last column.
    fn carried_out(&mut self) -> String {
        self.carry.take().unwrap_or_else(|| "0u".into())
    }
}

/// A chain over the 20 values, whose result is the number of the digits `{name}{k}`, and the carry
/// out of it.
fn digits(chain: &mut Chain, name: &str, value: impl Fn(usize) -> String) -> String {
    for k in 0..LIMBS {
        let bits = if k == LIMBS - 1 { HIGHEST_BITS } else { LIMB_BITS };
        chain.digit(&format!("{name}{k}"), &value(k), bits);
    }
    chain.carried_out()
}

fn arithmetic() -> String {
    let sum = number(|k| format!("a[{k}] + b[{k}]"));
    let difference = number(|k| format!("a[{k}] + {}u - b[{k}]", twice_p(k)));
    let (carried, mul_add, low_product) = (carried(), mul_add(), low_product());
    format!(
        "// a + b, and a - b + 2 p: not loose, so at most one factor of a product may be such a sum.
fn sum(a: Number, b: Number) -> Number {{
    return {sum};
}}
fn difference(a: Number, b: Number) -> Number {{
    return {difference};
}}
fn carried(a: Number) -> Number {{
{carried}}}
fn add(a: Number, b: Number) -> Number {{
    return carried(sum(a, b));
}}
fn sub(a: Number, b: Number) -> Number {{
    return carried(difference(a, b));
}}
// term + a b.
fn mul_add(term: Number, a: Number, b: Number) -> Number {{
{mul_add}}}
fn mul(a: Number, b: Number) -> Number {{
    return mul_add(Number(), a, b);
}}
fn low_product(a: Number, b: Number) -> u32 {{
{low_product}}}
"
    )
}

/// The limbs of a sum, made loose: at most three times p is carried out.
fn carried() -> String {
    let mut chain = Chain::default();
    let out = digits(&mut chain, "l", |k| format!("a[{k}]"));
    let result = number(|k| if k == 0 { format!("l0 + 19u * {out}") } else { format!("l{k}") });
    format!("{}    return {result};\n", chain.lines)
}

/// The columns above 2^260 are carried first: then they have 13 bits, and can be multiplied.
fn mul_add() -> String {
    let mut chain = Chain::default();
    for k in LIMBS..2 * LIMBS - 1 {
        chain.digit(&format!("h{}", k - LIMBS), &column(k), LIMB_BITS);
    }
    let highest = chain.carried_out();
    let _ = writeln!(chain.lines, "    let h{} = {highest};", LIMBS - 1);
    let out = digits(&mut chain, "l", |k| format!("term[{k}] + {} + {WRAPPED}u * h{k}", column(k)));
    // Up to 19 * 2^24 more in the lowest limb.
    chain.digit("m0", &format!("l0 + 19u * {out}"), LIMB_BITS);
    chain.digit("m1", "l1", LIMB_BITS);
    let rest = chain.carried_out();
    let result = number(|k| match k {
        0 | 1 => format!("m{k}"),
        2 => format!("l2 + {rest}"),
        _ => format!("l{k}"),
    });
    format!("{}    return {result};\n", chain.lines)
}

/// The lowest 26 bits of the canonical product, of a third of its columns; wrong for one product in
/// 2^28, because carries from the columns below those of each group are left out.
///
/// With L and H the digits of the product below and above 2^260, V = L + 608 H is congruent to it,
/// and q = V / 2^255, rounded down, says how often p is in V: the result is L + 608 H + 19 q.
fn low_product() -> String {
    let mut chain = Chain::default();
    for k in 16..LIMBS {
        chain.digit(&format!("l{k}"), &column(k), LIMB_BITS);
    }
    chain.digit("h0", &column(20), LIMB_BITS);
    chain.digit("h1", &column(21), LIMB_BITS);
    chain.carried_out();
    for k in 35..39 {
        chain.digit(&format!("h{}", k - LIMBS), &column(k), LIMB_BITS);
    }
    let highest = chain.carried_out();
    let _ = writeln!(chain.lines, "    let h19 = {highest};");
    for k in 16..LIMBS {
        let bits = if k == LIMBS - 1 { HIGHEST_BITS } else { LIMB_BITS };
        chain.digit(&format!("v{k}"), &format!("l{k} + {WRAPPED}u * h{k}"), bits);
    }
    let quotient = chain.carried_out();
    format!(
        "{}    let low = {} + (({}) << {LIMB_BITS}u) + {WRAPPED}u * (h0 + (h1 << {LIMB_BITS}u)) + 19u * {quotient};
    return low & {}u;\n",
        chain.lines,
        column(0),
        column(1),
        (1_u32 << (2 * LIMB_BITS)) - 1
    )
}

/// Reading and writing numbers in memory, and the inverse.
fn memory() -> String {
    let word = |k: usize| format!("state[(number * LIMBS + {k}u) * LANES + lane]");
    let load = number(word);
    let store: String = (0..LIMBS).map(|k| format!("    {} = value[{k}];\n", word(k))).collect();
    let step = |pair: usize| format!("steps[((n * 2u + which) * {}u + {pair}u) * LANES + lane]", LIMBS / 2);
    let load_step: String = (0..LIMBS / 2).map(|pair| format!("    let w{pair} = {};\n", step(pair))).collect();
    let unpacked = number(|k| format!("w{} {}", k / 2, if k % 2 == 0 { "& 0xffffu" } else { ">> 16u" }));
    let store_step: String = (0..LIMBS / 2)
        .map(|pair| format!("    {} = value[{}] | value[{}] << 16u;\n", step(pair), 2 * pair, 2 * pair + 1))
        .collect();
    format!(
        "fn load(number: u32, lane: u32) -> Number {{
    return {load};
}}
fn store(number: u32, lane: u32, value: Number) {{
{store}}}
fn load_step(n: u32, which: u32, lane: u32) -> Number {{
{load_step}    return {unpacked};
}}
fn store_step(n: u32, which: u32, lane: u32, value: Number) {{
{store_step}}}
fn squared(a: Number, times: u32) -> Number {{
    var square = a;
    for (var n = 0u; n < times; n++) {{
        square = mul(square, square);
    }}
    return square;
}}
"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use num_bigint::BigUint;
    use proptest::prelude::*;
    use wgpu::BufferUsages;

    use super::*;
    use crate::Device;
    use crate::device::{empty, pipelines};

    /// Numbers 0 to 2 of a lane are replaced by results.
    const CHECK: &str = "
@compute @workgroup_size(GROUP)
fn check(@builtin(global_invocation_id) id: vec3<u32>) {
    let a = load(0u, id.x);
    let b = load(1u, id.x);
    let c = load(2u, id.x);
    store(0u, id.x, mul_add(c, a, b));
    store(1u, id.x, add(a, b));
    store(2u, id.x, sub(a, b));
    store(3u, id.x, mul(difference(a, b), c));
    store(4u, id.x, inverse(a));
    state[5u * LIMBS * LANES + id.x] = low_product(sum(a, b), c);
    state[(5u * LIMBS + 1u) * LANES + id.x] = low_product(difference(a, b), c);
}
";

    static DEVICE: LazyLock<Device> = LazyLock::new(|| Device::open("llvmpipe").unwrap());

    /// What `check` makes of three numbers in each lane.
    fn check(numbers: &[[[u32; LIMBS]; 3]]) -> Vec<[u32; STATE_WORDS]> {
        let Device { device, queue, bindings, layout, table, steps, .. } = &*DEVICE;
        let lanes = layout.lanes as usize;
        let mut words = vec![0; STATE_WORDS * lanes];
        for (lane, numbers) in numbers.iter().enumerate() {
            for (word, limb) in numbers.as_flattened().iter().enumerate() {
                words[word * lanes + lane] = *limb;
            }
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let size = bytes.len() as u64;
        let state = empty(device, size, BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST);
        queue.write_buffer(&state, 0, &bytes);
        let (other, report) = (DEVICE.filled(&[0; 8]), DEVICE.filled(&[0; 8]));
        let buffers = [table, &other, &other, &state, steps, &report];
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let group =
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: bindings, entries: &entries });
        let [pipeline] = pipelines(device, bindings, text(*layout) + CHECK, ["check"]);
        let read = empty(device, size, BufferUsages::COPY_DST | BufferUsages::MAP_READ);
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_bind_group(0, &group, &[]);
            pass.set_pipeline(&pipeline);
            pass.dispatch_workgroups(layout.lanes / layout.group, 1, 1);
        }
        encoder.copy_buffer_to_buffer(&state, 0, &read, 0, size);
        queue.submit([encoder.finish()]);
        let words: Vec<u32> = DEVICE.read(&read, |words| words.collect::<Vec<_>>()).unwrap();
        (0..numbers.len()).map(|lane| std::array::from_fn(|word| words[word * lanes + lane])).collect()
    }

    fn big(limbs: &[u32]) -> BigUint {
        limbs.iter().rev().fold(BigUint::ZERO, |sum, limb| (sum << LIMB_BITS) + *limb)
    }

    /// Loose numbers; each limb is often the smallest or the largest.
    fn loose() -> impl Strategy<Value = [u32; LIMBS]> {
        let limb = prop_oneof![0..8256_u32, Just(0), Just(8173), Just(8191), Just(8192), Just(8255)];
        (proptest::collection::vec(limb, LIMBS), prop_oneof![0..256_u32, Just(0), Just(255)])
            .prop_map(|(limbs, highest)| std::array::from_fn(|k| if k == LIMBS - 1 { highest } else { limbs[k] }))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn the_shader_calculates_as_integers_do(
            numbers in proptest::collection::vec([loose(), loose(), loose()], 64),
        ) {
            let p = (BigUint::from(1_u8) << 255) - 19_u8;
            for (numbers, results) in numbers.iter().zip(check(&numbers)) {
                let [a, b, c] = [0, 1, 2].map(|k| big(&numbers[k]));
                let difference: BigUint = &a + &p + &p - &b;
                let expected = [&c + &a * &b, &a + &b, difference.clone(), &difference * &c, a.modpow(&(&p - 2_u8), &p)];
                for (k, expected) in expected.iter().enumerate() {
                    let result = &results[k * LIMBS..(k + 1) * LIMBS];
                    prop_assert_eq!(big(result) % &p, expected % &p, "result {}", k);
                    prop_assert!(result.iter().all(|limb| *limb <= 8255) && result[LIMBS - 1] <= 255, "{:?}", result);
                }
                for (result, expected) in results[5 * LIMBS..].iter().zip([(&a + &b) * &c, &difference * &c]) {
                    let low = (expected % &p) % (1_u32 << 26);
                    prop_assert_eq!(BigUint::from(*result), low);
                }
            }
        }
    }
}
