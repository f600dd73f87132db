//! Times attention: `cargo run --release -p lrqat-common --example attention -- [--seconds S] [SEQUENCES,TOKENS,HEADS,KV_HEADS,HEAD_DIM...]`.
//! Prints one JSON line for each shape and type: microseconds a token of the fastest and of the median call, of the
//! forward pass and of the backward pass, on all threads (RAYON_NUM_THREADS).

use std::time::Instant;

use common::compute::cpu::attention::{Attention, AttentionSaved, attention_backward, attention_forward};
use common::compute::cpu::element::Element;
use half::bf16;

/// SmolLM2-135M at two lengths, LLaMA-2-7B, LLaMA-3-8B.
const SHAPES: [[usize; 5]; 4] =
    [[4, 512, 9, 3, 64], [1, 2048, 9, 3, 64], [1, 1024, 32, 32, 128], [1, 1024, 32, 8, 128]];

fn main() {
    let mut shapes = Vec::new();
    let mut seconds = 1.0;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            seconds = arguments.next().and_then(|s| s.parse().ok()).expect("--seconds takes a number");
        } else {
            let shape: Vec<usize> = argument.split(',').map(|x| x.parse().expect("shapes are five numbers")).collect();
            shapes.push(<[usize; 5]>::try_from(shape).expect("shapes are SEQUENCES,TOKENS,HEADS,KV_HEADS,HEAD_DIM"));
        }
    }
    if shapes.is_empty() {
        shapes = SHAPES.to_vec();
    }
    for shape in shapes {
        time::<f32>("f32", shape, seconds);
        time::<bf16>("bf16", shape, seconds);
    }
}

fn time<E: Element>(name: &str, [sequences, tokens, heads, kv_heads, head_dim]: [usize; 5], seconds: f64) {
    let segments: Vec<usize> = (0..=sequences).map(|s| s * tokens).collect();
    let shape = Attention { segments: &segments, heads, kv_heads, head_dim, window: None };
    let (rows, wide, narrow) = (sequences * tokens, heads * head_dim, kv_heads * head_dim);
    let (q, dout) = (random::<E>(1, rows * wide), random::<E>(4, rows * wide));
    let (k, v) = (random::<E>(2, rows * narrow), random::<E>(3, rows * narrow));
    let (mut out, mut lse) = (vec![E::zeroed(); rows * wide], vec![0.0; rows * heads]);
    let (mut dq, mut dk, mut dv) =
        (vec![E::zeroed(); rows * wide], vec![E::zeroed(); rows * narrow], vec![E::zeroed(); rows * narrow]);
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while forward.len() < 5 || begun.elapsed().as_secs_f64() < seconds {
        let call = Instant::now();
        attention_forward(&shape, &q, &k, &v, &mut out, &mut lse);
        forward.push(call.elapsed().as_secs_f64() * 1e6 / rows as f64);
        let call = Instant::now();
        let saved = AttentionSaved { q: &q, k: &k, v: &v, out: &out, lse: &lse };
        attention_backward(&shape, saved, &dout, &mut dq, &mut dk, &mut dv);
        backward.push(call.elapsed().as_secs_f64() * 1e6 / rows as f64);
    }
    forward.sort_by(f64::total_cmp);
    backward.sort_by(f64::total_cmp);
    let of = |times: &[f64]| format!("{{\"best\": {:.3}, \"median\": {:.3}}}", times[0], times[times.len() / 2]);
    println!(
        "{{\"type\": \"{name}\", \"shape\": {:?}, \"threads\": {}, \"forward\": {}, \"backward\": {}}}",
        [sequences, tokens, heads, kv_heads, head_dim],
        rayon::current_num_threads(),
        of(&forward),
        of(&backward),
    );
}

/// Numbers from -2 to 2: scores of some units.
fn random<E: Element>(seed: u32, n: usize) -> Vec<E> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        E::from_f32((state >> 8) as f32 / 4_194_304.0 - 2.0)
    };
    (0..n).map(|_| next()).collect()
}
