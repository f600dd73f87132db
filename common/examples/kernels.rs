//! Times what is no linear: `cargo run --release -p lrqat-common --example kernels -- SEQUENCES TOKENS D INNER HEADS KV_HEADS
//! VOCAB [--threads T] [--seconds S] [--device cpu|cuda]`. Prints one JSON line: of each op the milliseconds of the median call,
//! what it has to move and compute at least (bytes, and FLOPs of bf16 products), and on a GPU the time of each kernel.

mod shared;

use std::time::Instant;

use common::compute::backend::{AdamStep, Branch, Head, Heads, Loss, Moments, RowLoss, Weight};
use common::compute::cpu::Cpu;
use common::compute::cuda::{Cuda, Fitting, Time};
use common::format::tensor::{Dtype, Tensor};
use common::quant::fit::Fit;
use half::bf16;
use shared::{Timed, json, random};

/// Trained numbers of the optimizer's row.
const TRAINED: usize = 1 << 24;

fn main() {
    let mut numbers = Vec::new();
    let (mut threads, mut seconds, mut gpu) = (0, 1.0, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("the flag takes a value");
        match argument.as_str() {
            "--threads" => threads = value().parse().expect("--threads takes a number"),
            "--seconds" => seconds = value().parse().expect("--seconds takes a number"),
            "--device" => gpu = value() == "cuda",
            number => numbers.push(number.parse::<usize>().expect("the shape is seven numbers")),
        }
    }
    let shape: [usize; 7] = numbers.try_into().expect("kernels SEQUENCES TOKENS D INNER HEADS KV_HEADS VOCAB");
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the first pool");
    match gpu {
        false => time(&Cpu::<bf16>::new(), shape, seconds).print(),
        true => {
            let timed = Cuda::open().and_then(|cuda| {
                let mut to = time(&cuda, shape, seconds);
                time_fit(&mut to, Fitting::open()?);
                Ok(to)
            });
            match timed {
                Ok(to) => to.print(),
                Err(error) => {
                    eprintln!("kernels: {error}");
                    std::process::exit(1);
                }
            }
        }
    }
}

struct Rows {
    seconds: f64,
    printed: Vec<String>,
}

impl Rows {
    fn print(&self) {
        println!("{{{}}}", self.printed.join(", "));
    }

    /// An op of a backend.
    fn time<B: Timed>(&mut self, b: &B, name: &str, bytes: usize, flops: usize, mut call: impl FnMut()) {
        let nothing = [b.zeros(1).expect("memory")];
        self.median(name, bytes, flops, || {
            call();
            // A device that runs behind the host answers when it is done.
            b.square_sums(&nothing).expect("the device works");
        });
        self.kernels(&b.times(&mut call));
    }

    /// Calls it until `seconds` have passed, five times at least; once if there are none.
    fn median(&mut self, name: &str, bytes: usize, flops: usize, mut call: impl FnMut()) {
        let mut times = Vec::new();
        let begun = Instant::now();
        let least = if self.seconds > 0.0 { 5 } else { 1 };
        while times.len() < least || begun.elapsed().as_secs_f64() < self.seconds {
            let one = Instant::now();
            call();
            times.push(one.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let ms = times[times.len() / 2];
        self.printed.push(format!("\"{name}\": {{\"ms\": {ms:.4}, \"bytes\": {bytes}, \"flops\": {flops}}}"));
    }

    /// Of the op that was timed last.
    fn kernels(&mut self, times: &[Time]) {
        let op = self.printed.last_mut().expect("an op was timed");
        op.pop();
        *op += &format!(", {}}}", json(times));
    }
}

fn time<B: Timed>(b: &B, [sequences, tokens, d, inner, heads, kv_heads, vocab]: [usize; 7], seconds: f64) -> Rows {
    let rows = sequences * tokens;
    let (all, wide) = (rows * d, d / heads * kv_heads);
    let buffer = |seed, len| b.upload(&random(seed, len)).expect("memory");
    let activation = |seed, len| {
        let mut to = b.activation(len).expect("memory");
        b.round(&buffer(seed, len), &mut to, len);
        to
    };
    let mut to = Rows { seconds, printed: Vec::new() };
    let segments: Vec<usize> = (0..=sequences).map(|s| s * tokens).collect();

    let ids: Vec<u32> = (0..rows).map(|i| (i * 7919 % vocab) as u32).collect();
    let table = Tensor::from_f32(&random(1, vocab * d), Dtype::BF16, vec![vocab, d]);
    let table = b.freeze(&table).expect("memory");
    let (mut x, w, dy) = (buffer(2, all), buffer(3, d), buffer(4, all));
    let mut y = activation(5, all);
    to.time(b, "embedding", all * 6, 0, || b.embedding_forward(&table, &ids, d, &mut x));
    to.time(b, "norm", all * 6, 0, || b.rmsnorm_forward(&x, &w, 1e-5, rows, d, &mut y));
    let mut dx = buffer(6, all);
    to.time(b, "norm, backward", all * 16, 0, || b.rmsnorm_backward(&x, &w, 1e-5, rows, d, &dy, &mut dx));
    to.time(b, "f32 to bf16", all * 6, 0, || b.round(&x, &mut y, all));
    to.time(b, "bf16 to f32", all * 6, 0, || b.widen(&y, &mut x, all));
    let frequencies: Vec<f32> = (0..d / heads / 2).map(|i| 0.8f32.powi(i as i32)).collect();
    let angles = b.rope_table(&frequencies, tokens).expect("memory");
    to.time(b, "rope", all * 4, 0, || b.rope_forward(&angles, &mut y, heads, d / heads, &segments));

    let [q, dout] = [7, 8].map(|seed| activation(seed, all));
    let [k, v] = [9, 10].map(|seed| activation(seed, rows * wide));
    let (mut dq, mut dk, mut dv) = (activation(0, all), activation(0, rows * wide), activation(0, rows * wide));
    let (mut out, mut lse) = (activation(0, all), buffer(0, rows * heads));
    let of = Heads { heads, kv_heads, head_dim: d / heads, window: None };
    // Half of the scores are masked, and two products are made of the others; five in the backward pass.
    let product = rows * tokens * d;
    let moved = (2 * all + 2 * rows * wide) * 2;
    to.time(b, "attention", moved, 2 * product, || {
        b.attention_forward(&q, &k, &v, of, &segments, &mut out, &mut lse);
    });
    to.time(b, "attention, backward", 2 * moved, 5 * product, || {
        b.attention_backward(&q, &k, &v, &out, &lse, of, &segments, &dout, &mut dq, &mut dk, &mut dv);
    });

    let weights = Tensor::from_f32(&random(16, inner * d), Dtype::BF16, vec![inner, d]);
    let weights = b.freeze(&weights).expect("memory");
    let float = |n, k| -> Weight<B> { Weight::Float { w: &weights, n, k } };
    let [mut gate, mut up, mut hidden] = [17, 18, 19].map(|seed| activation(seed, rows * inner));
    let (product, moved) = (2 * all * inner, rows * inner * 2);
    to.time(b, "gate, up and SwiGLU", 3 * moved, 2 * product, || {
        b.swiglu_forward(&q, rows, [float(inner, d), float(inner, d)], Some([&mut gate, &mut up]), &mut hidden);
    });
    to.time(b, "down and SwiGLU, backward", 6 * moved, product, || {
        let down = Branch { weight: float(d, inner), dy: &dout, grads: None };
        b.swiglu_backward(&hidden, rows, down, &mut gate, &mut up);
    });

    let weight: Weight<B> = Weight::Float { w: &table, n: vocab, k: d };
    let mut losses = vec![RowLoss::default(); rows];
    to.time(b, "head and loss", rows * vocab * 6, 4 * rows * vocab * d, || {
        let head = Head { hidden: &q, weight: &weight };
        b.head_loss(head, &ids, &Loss { ce: 1.0, kl: 0.0, teacher: None }, 1.0, Some(&mut dx), &mut losses)
            .expect("the device works");
    });

    let [mut p, g] = [11, 12].map(|seed| [buffer(seed, TRAINED)]);
    let mut moments = Moments::F32 { m: vec![buffer(13, TRAINED)], v: vec![buffer(14, TRAINED)] };
    to.time(b, "square sums", TRAINED * 4, 0, || {
        b.square_sums(&g).expect("the device works");
    });
    let step = AdamStep { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, step: 1, grad_factor: 1.0 };
    to.time(b, "adamw", TRAINED * 28, 0, || b.adamw(step, &[1e-6], &mut p, &g, &mut moments));
    to
}

/// What `ptq-init` does with a linear: the weights are sent, fitted, and their grids come back.
fn time_fit(to: &mut Rows, mut gpu: Fitting) {
    const K: usize = 4096;
    let w = Tensor::from_f32(&random(15, TRAINED), Dtype::BF16, vec![TRAINED / K, K]);
    for (name, how) in [("ptq-init, minmax", Fit::MinMax), ("ptq-init, lp:3", Fit::Lp(3.0))] {
        let fit = |gpu: &mut Fitting| {
            gpu.fit(&w, K, "w4g128".parse().expect("a scheme"), how).expect("the device works");
        };
        to.median(name, 2 * TRAINED, 0, || fit(&mut gpu));
        to.kernels(&gpu.times(fit).expect("the device works"));
    }
}
