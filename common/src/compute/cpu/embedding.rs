//! The embedding: rows of a frozen table.

use rayon::prelude::*;

use super::rows_per_part;
use super::simd::simd;
use crate::format::tensor::Tensor;

/// x [tokens, d], each row that of its token in `table` [v, d]
pub fn embedding_forward(table: &Tensor, tokens: &[u32], d: usize, x: &mut [f32]) {
    assert!(x.len() == tokens.len() * d, "embedding: shapes");
    let rows = rows_per_part(d);
    x.par_chunks_mut(rows * d).zip(tokens.par_chunks(rows)).for_each(|(x, tokens)| {
        simd(
            #[inline(always)]
            || {
                for (x, token) in x.chunks_exact_mut(d).zip(tokens) {
                    let from = *token as usize * d;
                    table.read_f32(from..from + d, x);
                }
            },
        )
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::random;
    use crate::format::tensor::Dtype;

    #[test]
    fn rows_of_the_table() {
        let (v, d) = (50, 300);
        let table = Tensor::from_f32(&random(1, v * d), Dtype::BF16, vec![v, d]);
        let values = table.to_f32();
        let tokens: Vec<u32> = (0..200).map(|i| i * 7 % v as u32).collect();
        let mut x = vec![f32::NAN; tokens.len() * d];
        embedding_forward(&table, &tokens, d, &mut x);
        for (x, token) in x.chunks_exact(d).zip(tokens) {
            assert_eq!(*x, values[token as usize * d..][..d]);
        }
    }
}
