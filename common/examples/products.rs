//! Times the matrix kernels: `cargo run --release -p lrqat-common --example products -- M,K,N... [--seconds S]`.
//! Prints one JSON line for each kernel and shape: GFLOP/s of the fastest and of the median call on all threads
//! (RAYON_NUM_THREADS). C = A·Wᵀ with random bf16 A [M, K] and W [N, K], both packed within the time, C in bf16.

use std::time::Instant;

use common::compute::cpu::element::Element;
use common::compute::cpu::product::{Amx, Fma, Kernel, Left, Lines, Scratch, Split, ToActivation, amx, product};
use half::bf16;

fn main() {
    let mut shapes = Vec::new();
    let mut seconds = 1.0;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            seconds = arguments.next().and_then(|s| s.parse().ok()).expect("--seconds takes a number");
        } else {
            let shape: Vec<usize> = argument.split(',').map(|x| x.parse().expect("shapes are M,K,N")).collect();
            shapes.push(<[usize; 3]>::try_from(shape).expect("shapes are M,K,N"));
        }
    }
    if shapes.is_empty() {
        shapes = vec![[1024, 576, 1536], [1024, 4096, 4096]];
    }
    for shape in shapes {
        if amx::available() {
            time::<bf16, _>(Amx, "amx", shape, seconds);
        }
        time::<bf16, _>(Fma, "fma-bf16", shape, seconds);
        time::<f32, _>(Fma, "fma-f32", shape, seconds);
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
        "{{\"kernel\": \"{name}\", \"m\": {m}, \"k\": {k}, \"n\": {n}, \"threads\": {}, \"best\": {:.0}, \"median\": {:.0}}}",
        rayon::current_num_threads(),
        gflops(times[0]),
        gflops(times[times.len() / 2]),
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
