//! Times a matrix product: `cargo run --release -p lrqat-common --example products -- M K N [--threads T] [--seconds S]
//! [--kernel amx|avx512bf16|fma|f32]`. Prints one JSON line: GFLOP/s of the median and of the fastest call.
//! C = A·Wᵀ with random A [M, K] and W [N, K], both packed within the time, C in their type: bf16 by the tile unit (amx),
//! by dot products (avx512bf16) or by fused multiply-adds (fma), or f32. Without a kernel, what bf16 runs on here.

use std::time::Instant;

use common::compute::cpu::element::Element;
use common::compute::cpu::product::{Fma, Kernel, Left, Lines, Scratch, Split, ToActivation, kernel_name, product};
#[cfg(target_arch = "x86_64")]
use common::compute::cpu::product::{amx, dot};
use half::bf16;

fn main() {
    let mut numbers = Vec::new();
    let (mut threads, mut seconds, mut kernel) = (0, 1.0, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("the flag takes a value");
        match argument.as_str() {
            "--threads" => threads = value().parse().expect("--threads takes a number"),
            "--seconds" => seconds = value().parse().expect("--seconds takes a number"),
            "--kernel" => kernel = Some(value()),
            number => numbers.push(number.parse::<usize>().expect("M K N are numbers")),
        }
    }
    let shape: [usize; 3] = numbers.try_into().expect("products M K N");
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the first pool");
    match kernel.as_deref().unwrap_or(kernel_name::<bf16>()) {
        "f32" => time::<f32, _>(Fma, "f32", shape, seconds),
        "fma" => time::<bf16, _>(Fma, "fma", shape, seconds),
        #[cfg(target_arch = "x86_64")]
        "amx" => time::<bf16, _>(amx::Amx, "amx", shape, seconds),
        #[cfg(target_arch = "x86_64")]
        "avx512bf16" => time::<bf16, _>(dot::Dot, "avx512bf16", shape, seconds),
        other => panic!("no kernel {other:?}"),
    }
}

fn time<E: Element, K: Kernel>(kernel: K, name: &str, [m, k, n]: [usize; 3], seconds: f64) {
    let mut aligned = [Scratch::default(), Scratch::default(), Scratch::default()];
    let [a, w, c] = &mut aligned;
    let (a, w, c) = (a.take::<E>(m * k), w.take::<E>(n * k), c.take::<E>(m * n));
    fill(a, 1);
    fill(w, 2);
    let mut packed = Scratch::default();
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < 5 || begun.elapsed().as_secs_f64() < seconds {
        let call = Instant::now();
        let left = Left::new(kernel, &Lines::rows(a, m, k), &mut packed);
        product(kernel, &left, &Lines::rows(w, n, k), Split::Columns, &ToActivation::new(c, m, n));
        times.push(call.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let gflops = |t: f64| 2.0 * (m * n * k) as f64 / t / 1e9;
    println!(
        "{{\"kernel\": \"{name}\", \"threads\": {}, \"gflops\": {:.0}, \"best\": {:.0}}}",
        rayon::current_num_threads(),
        gflops(times[times.len() / 2]),
        gflops(times[0]),
    );
}

/// Numbers from -1 to 1: zeros would run faster than any weight.
fn fill<E: Element>(x: &mut [E], seed: u32) {
    let mut state = seed;
    for x in x {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *x = E::from_f32((state >> 8) as f32 / 8_388_608.0 - 1.0);
    }
}
