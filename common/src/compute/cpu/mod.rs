//! The layers on slices of the CPU: activations in f32 or bf16, all else in f32.
//!
//! Activations are row-major [rows, width]; the rows are the tokens of a ragged batch, whose sequences begin at
//! the row offsets `segments` (n_seq + 1 of them, from 0 to rows), and the position of a token is its row less
//! the start of its segment.
//!
//! Each op is cut into the same parts however many threads there are, and adds up in the same order on every
//! instruction set, so its bits depend on neither; matrix products of bf16 depend on what multiplies them: tiles,
//! dot products or fused multiply-adds.

pub mod device;
pub mod linear;
pub mod adapter;
pub mod made;
pub mod weight_gradient;
pub mod gather;
mod head;
pub mod gptq;
pub mod learned;
pub mod low_rank;
pub mod adamw;
pub mod attention;
pub mod attention_step;
pub mod elementwise;
pub mod embedding;
pub mod product;
pub mod loss;
pub mod divergence;
pub mod reduce;
pub mod rmsnorm;
pub mod rope;
pub mod simd;
pub mod swiglu;
pub mod element;
pub mod aligned;

pub use device::Cpu;

#[cfg(test)]
mod adapter_tests;
#[cfg(test)]
mod linear_tests;
#[cfg(test)]
pub mod testing;

/// Elements in one unit of parallel work: long enough to hide its start, short enough to share out evenly.
const PART: usize = 16384;

/// Rows in one unit of parallel work. It depends on the width alone, never on the number of threads.
fn rows_per_part(width: usize) -> usize {
    (PART / width.max(1)).max(1)
}

/// Panics unless `segments` are offsets of sequences that cover exactly `rows` rows.
fn check_segments(segments: &[usize], rows: usize) {
    assert!(
        segments.first() == Some(&0) && segments.last() == Some(&rows) && segments.is_sorted(),
        "segments {segments:?} do not cover {rows} rows"
    );
}
