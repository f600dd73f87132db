//! Times a quantized linear: `cargo run --release -p lrqat-common --example linear -- ROWS N K [--threads T] [--seconds S]
//! [--scheme w4pc] [--rank 32] [--device cpu|cuda]`. Prints one JSON line: milliseconds of the fastest and of the median call
//! for round(Z), the forward pass without and with it, dx alone, and dx with the gradients of A, B and s; in bf16. On a GPU
//! also the milliseconds of each kernel of the last.

mod shared;

use std::time::Instant;

use common::compute::backend::{Branch, Gradients, LowRank, Output, Weight};
use common::compute::cpu::Cpu;
use common::compute::cuda::Cuda;
use common::format::tensor::{Dtype, Tensor};
use common::quant::{Phi, Scheme};
use half::bf16;
use shared::{Timed, json, random};

fn main() {
    let mut numbers = Vec::new();
    let (mut threads, mut seconds, mut scheme, mut rank, mut gpu) = (0, 1.0, "w4pc".to_string(), 32, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("the flag takes a value");
        match argument.as_str() {
            "--threads" => threads = value().parse().expect("--threads takes a number"),
            "--seconds" => seconds = value().parse().expect("--seconds takes a number"),
            "--scheme" => scheme = value(),
            "--device" => gpu = value() == "cuda",
            "--rank" => rank = value().parse().expect("--rank takes a number"),
            number => numbers.push(number.parse::<usize>().expect("ROWS N K are numbers")),
        }
    }
    let shape: [usize; 3] = numbers.try_into().expect("linear ROWS N K");
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the first pool");
    let scheme = scheme.parse().expect("a scheme");
    match gpu {
        false => time(&Cpu::<bf16>::new(), shape, scheme, rank, seconds),
        true => match Cuda::open() {
            Ok(cuda) => time(&cuda, shape, scheme, rank, seconds),
            Err(error) => {
                eprintln!("linear: {error}");
                std::process::exit(1);
            }
        },
    }
}

fn time<B: Timed>(backend: &B, [rows, n, k]: [usize; 3], scheme: Scheme, rank: usize, seconds: f64) {
    let random = |seed, len| backend.upload(&random(seed, len)).expect("memory");
    let activation = |seed, len| {
        let mut to = backend.activation(len).expect("memory");
        backend.round(&random(seed, len), &mut to, len);
        to
    };
    let (x, dy) = (activation(1, rows * k), activation(2, rows * n));
    let sizes = [n * scheme.groups(k), n * rank, rank * k];
    let (a, b, scale) = (random(3, sizes[1]), random(4, sizes[2]), random(5, sizes[0]));
    let phi = backend.freeze(&phi(scheme, n, k)).expect("memory");
    let weight = |integers| {
        Weight::LowRank(LowRank {
            phi: &phi,
            stored: Phi::Q,
            scheme,
            scale: &scale,
            zero: None,
            integers,
            a: &a,
            b: &b,
            rank,
            factor: 0.01,
            n,
            k,
        })
    };
    let mut made = backend.integers(n * k).expect("memory");
    backend.round_weight(&weight(None), &mut made);
    let integers = made;
    let mut made = backend.integers(n * k).expect("memory");
    let (mut y, mut dx) = (activation(0, rows * n), activation(0, rows * k));
    let nothing = [backend.zeros(1).expect("memory")];
    let (mut ds, mut da, mut db) = (random(0, sizes[0]), random(0, sizes[1]), random(0, sizes[2]));
    let mut gradients = activation(0, rows * k);
    let mut backward = || {
        let grads = Some(Gradients { scale: Some(&mut ds), factors: Some([&mut da, &mut db]), latent: None });
        let branch = Branch { weight: weight(Some(&integers)), dy: &dy, grads };
        backend.linears_backward(&x, rows, [branch], Output::Activation(&mut gradients));
    };
    let mut times = [const { Vec::new() }; 5];
    let begun = Instant::now();
    while times[0].len() < 5 || begun.elapsed().as_secs_f64() < seconds {
        let mut call = Instant::now();
        let mut done = |part: usize| {
            // A device that runs behind the host answers when it is done.
            backend.square_sums(&nothing).expect("the device works");
            times[part].push(call.elapsed().as_secs_f64() * 1e3);
            call = Instant::now();
        };
        backend.round_weight(&weight(None), &mut made);
        done(0);
        backend.linear_forward(&x, rows, &weight(None), Output::Activation(&mut y));
        done(1);
        let rounded: Weight<B> = weight(Some(&integers));
        backend.linear_forward(&x, rows, &rounded, Output::Activation(&mut y));
        done(2);
        let branch = Branch { weight: weight(Some(&integers)), dy: &dy, grads: None };
        backend.linears_backward(&x, rows, [branch], Output::Activation(&mut dx));
        done(3);
        backward();
        done(4);
    }
    let kernels = backend.times(&mut backward);
    print!("{{\"shape\": [{rows}, {n}, {k}], \"threads\": {}", rayon::current_num_threads());
    for (part, times) in ["round", "forward", "forward_rounded", "dx", "backward"].iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        print!(", \"{part}\": {{\"best\": {:.3}, \"median\": {:.3}}}", times[0], times[times.len() / 2]);
    }
    println!(", {}}}", json(&kernels));
}

fn phi(scheme: Scheme, n: usize, k: usize) -> Tensor {
    let mut packed = vec![0; n * Phi::Q.row_bytes(scheme, k)];
    for (row, packed) in packed.chunks_exact_mut(Phi::Q.row_bytes(scheme, k)).enumerate() {
        let x: Vec<f32> = random(row as u32, k).iter().map(|x| x * scheme.qmax()).collect();
        Phi::Q.pack_row(scheme, &x, packed);
    }
    Tensor::owned(packed, Dtype::I8, vec![n, k])
}
