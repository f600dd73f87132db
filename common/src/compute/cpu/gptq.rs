//! Rounding column by column, where what a column lost is made up for by those that follow: GPTQ (Frantar et al. 2022).
//!
//! With the Gram matrix H = Σ x·xᵀ of a linear's inputs, the loss of its output is tr(E·H·Eᵀ) of the error E = W − Ŵ. H = R·Rᵀ
//! with R upper triangular, and a column is rounded after it took over from those before it
//! w̃_j = w_j + Σ_{i<j} e_i·R_ij / R_jj: the form that Chee et al. (2023, "QuIP", theorem 6) show to be GPTQ's, in which
//! nothing is inverted. Columns come in the order of their inputs' size, the largest first ("act order"), which the integers
//! do not show: the scales are known beforehand.

use nalgebra::{Cholesky, DMatrix};
use rayon::prelude::*;

use crate::compute::cpu::simd::simd;
use crate::quant::{LinearGrid, Scheme, grid};

/// Added to the diagonal of H, of its mean (GPTQ).
const DAMPING: f64 = 0.01;
/// Rows of W that are rounded together.
const ROWS: usize = 32;
/// Columns whose errors are handed on together.
const BLOCK: usize = 64;

/// What columns hand on to each other.
pub struct Order {
    columns: Vec<usize>,
    /// R_ij / R_jj of columns i < j in that order, [j][i].
    shares: Vec<f32>,
}

impl Order {
    /// Of `gram` [k, k]. None if it holds what is no number.
    pub fn new(gram: &[f32], k: usize) -> Option<Order> {
        assert_eq!(gram.len(), k * k);
        let size = |i: usize| gram[i * k + i];
        let mean = (0..k).map(|i| f64::from(size(i))).sum::<f64>() / k as f64;
        // Inputs that are all 0 weigh nothing: any order and nothing handed on.
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        let mut columns: Vec<usize> = (0..k).collect();
        columns.sort_by(|i, j| size(*j).total_cmp(&size(*i)));
        // L·Lᵀ of the columns in reverse is R·Rᵀ of them in order.
        let reversed = |i: usize| columns[k - 1 - i];
        let h = DMatrix::from_fn(k, k, |i, j| {
            f64::from(gram[reversed(i) * k + reversed(j)]) + if i == j { damping } else { 0.0 }
        });
        let l = Cholesky::new(h).filter(|_| mean.is_finite())?.unpack();
        let mut shares = vec![0.0; k * k];
        shares.par_chunks_exact_mut(k).enumerate().for_each(|(j, shares)| {
            let at = k - 1 - j;
            for (i, share) in shares[..j].iter_mut().enumerate() {
                *share = (l[(k - 1 - i, at)] / l[(at, at)]) as f32;
            }
        });
        Some(Order { columns, shares })
    }

    /// Z [n, k] = W/s + z becomes what is rounded: each number as it was when its turn came.
    pub fn compensate(&self, z: &mut [f32], of: &LinearGrid, scheme: Scheme) {
        let k = self.columns.len();
        z.par_chunks_mut(ROWS * k).enumerate().for_each_init(Panel::default, |panel, (at, z)| {
            simd(
                #[inline(always)]
                || panel.round(self, z, of, scheme, at * ROWS),
            );
        });
    }
}

/// Some rows of W, side by side; columns in their order.
#[derive(Default)]
struct Panel {
    z: Vec<[f32; ROWS]>,
    /// What a column took over, in units of W.
    taken: Vec<[f32; ROWS]>,
    scales: Vec<[f32; ROWS]>,
    zeros: Vec<[f32; ROWS]>,
}

impl Panel {
    #[inline(always)]
    fn round(&mut self, by: &Order, z: &mut [f32], of: &LinearGrid, scheme: Scheme, first: usize) {
        let (k, rows) = (by.columns.len(), z.len() / by.columns.len());
        let (group, groups) = (scheme.group_size(k), scheme.groups(k));
        self.z.resize(k, [0.0; ROWS]);
        self.taken.clear();
        self.taken.resize(k, [0.0; ROWS]);
        self.scales.resize(groups, [1.0; ROWS]);
        self.zeros.resize(groups, [0.0; ROWS]);
        for row in 0..rows {
            for (to, column) in self.z.iter_mut().zip(&by.columns) {
                to[row] = z[row * k + column];
            }
            for g in 0..groups {
                let at = (first + row) * groups + g;
                self.scales[g][row] = of.scale[at];
                self.zeros[g][row] = of.zero.as_ref().map_or(0.0, |zero| zero[at]);
            }
        }
        let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
        let mut errors = [[0.0; ROWS]; BLOCK];
        for from in (0..k).step_by(BLOCK) {
            let to = (from + BLOCK).min(k);
            for j in from..to {
                let mut taken = self.taken[j];
                hand_on(&by.shares[j * k + from..j * k + j], &errors, &mut taken);
                let g = by.columns[j] / group;
                let (z, scale, zero) = (&mut self.z[j], &self.scales[g], &self.zeros[g]);
                let error = &mut errors[j - from];
                for row in 0..ROWS {
                    let w = scale[row] * (z[row] - zero[row]);
                    z[row] += taken[row] / scale[row];
                    let code = grid::code(z[row], qmin, qmax);
                    error[row] = w - grid::dequantize(code, zero[row], grid::forward_scale(scale[row]));
                }
            }
            for j in to..k {
                hand_on(&by.shares[j * k + from..j * k + to], &errors, &mut self.taken[j]);
            }
        }
        for row in 0..rows {
            for (from, column) in self.z.iter().zip(&by.columns) {
                z[row * k + column] = from[row];
            }
        }
    }
}

/// taken += Σ share·error
#[inline(always)]
fn hand_on(shares: &[f32], errors: &[[f32; ROWS]; BLOCK], taken: &mut [f32; ROWS]) {
    let mut sum = *taken;
    for (share, error) in shares.iter().zip(errors) {
        for row in 0..ROWS {
            sum[row] = share.mul_add(error[row], sum[row]);
        }
    }
    *taken = sum;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::random;

    /// Inputs that depend on each other, as those of real models do.
    fn gram(k: usize, tokens: usize) -> Vec<f32> {
        let (own, shared) = (random(1, tokens * k), random(2, tokens * 4));
        let x = |t: usize, i: usize| own[t * k + i] * (1.0 + (i % 7) as f32) + 3.0 * shared[t * 4 + i % 4];
        (0..k * k).map(|at| (0..tokens).map(|t| x(t, at / k) * x(t, at % k)).sum()).collect()
    }

    fn start(n: usize, k: usize, scheme: Scheme) -> (Vec<f32>, LinearGrid) {
        let groups = scheme.groups(k);
        let scale = (0..n * groups).map(|i| grid::forward_scale(0.01 + 0.001 * (i % 5) as f32)).collect();
        let zero = scheme.asymmetric.then(|| (0..n * groups).map(|i| (i % 3) as f32 - 1.0).collect());
        (random(3, n * k).iter().map(|z| z * scheme.qmax()).collect(), LinearGrid { scale, zero })
    }

    /// As GPTQ is written down: H⁻¹ by inverting, the rest of the row updated after every column.
    fn gptq(z: &[f32], of: &LinearGrid, scheme: Scheme, gram: &[f32], k: usize) -> Vec<f64> {
        let mean = (0..k).map(|i| f64::from(gram[i * k + i])).sum::<f64>() / k as f64;
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|i, j| gram[j * k + j].total_cmp(&gram[i * k + i]));
        let damped =
            |i: usize, j: usize| f64::from(gram[order[i] * k + order[j]]) + if i == j { 0.01 * mean } else { 0.0 };
        let inverse = DMatrix::from_fn(k, k, damped).try_inverse().unwrap();
        let u = Cholesky::new(inverse).unwrap().l().transpose();
        let (group, groups) = (scheme.group_size(k), scheme.groups(k));
        let mut out = vec![0.0; z.len()];
        for (row, z) in z.chunks_exact(k).enumerate() {
            let of = |j: usize| {
                let at = row * groups + order[j] / group;
                (f64::from(of.scale[at]), of.zero.as_ref().map_or(0.0, |zero| f64::from(zero[at])))
            };
            let mut w: Vec<f64> = (0..k).map(|j| of(j).0 * (f64::from(z[order[j]]) - of(j).1)).collect();
            for j in 0..k {
                let (s, zero) = of(j);
                let at = w[j] / s + zero;
                out[row * k + order[j]] = at;
                let code = at.round_ties_even().clamp(scheme.qmin().into(), scheme.qmax().into());
                let error = (w[j] - s * (code - zero)) / u[(j, j)];
                for t in j + 1..k {
                    w[t] -= error * u[(j, t)];
                }
            }
        }
        out
    }

    #[test]
    fn is_gptq() {
        for (word, n, k) in [("w4pc", 35, 150), ("w3g16", 5, 64), ("w2g32z", 33, 96)] {
            let scheme: Scheme = word.parse().unwrap();
            let (z, of) = start(n, k, scheme);
            let gram = gram(k, 3 * k);
            let want = gptq(&z, &of, scheme, &gram, k);
            let mut got = z.clone();
            Order::new(&gram, k).unwrap().compensate(&mut got, &of, scheme);
            // A number that lies between two integers may go either way, and all that follow it in its row with it.
            let off =
                |(got, want): (&[f32], &[f64])| got.iter().zip(want).any(|(g, w)| (f64::from(*g) - w).abs() > 2e-3);
            let rows = got.chunks_exact(k).zip(want.chunks_exact(k)).filter(|pair| off(*pair)).count();
            assert!(rows * 20 <= n, "{word}: {rows} of {n} rows differ");
            assert!(got != z, "{word}");
        }
    }

    /// What it is for: less is lost of the output than by rounding to the nearest.
    #[test]
    fn loses_less() {
        let (scheme, n, k): (Scheme, _, _) = ("w3pc".parse().unwrap(), 20, 120);
        let (z, of) = start(n, k, scheme);
        let gram = gram(k, 2 * k);
        let lost = |rounded: &[f32]| -> f64 {
            let error = |row: usize, i: usize| {
                let code = grid::code(rounded[row * k + i], scheme.qmin(), scheme.qmax());
                f64::from(of.scale[row] * (z[row * k + i] - code))
            };
            let of_row = |row: usize| -> f64 {
                (0..k * k).map(|at| error(row, at / k) * f64::from(gram[at]) * error(row, at % k)).sum()
            };
            (0..n).map(of_row).sum()
        };
        let mut made = z.clone();
        Order::new(&gram, k).unwrap().compensate(&mut made, &of, scheme);
        let (gptq, nearest) = (lost(&made), lost(&z));
        assert!(gptq < 0.5 * nearest, "{gptq} {nearest}");
    }

    /// Inputs that have nothing to do with each other, or are not there, leave nothing to make up for.
    #[test]
    fn of_a_diagonal_is_rounding_to_the_nearest() {
        let (scheme, n, k): (Scheme, _, _) = ("w4pc".parse().unwrap(), 3, 40);
        let (z, of) = start(n, k, scheme);
        for size in [0.0, 2.0] {
            let gram: Vec<f32> = (0..k * k).map(|at| if at / k == at % k { size * at as f32 } else { 0.0 }).collect();
            let mut made = z.clone();
            Order::new(&gram, k).unwrap().compensate(&mut made, &of, scheme);
            assert_eq!(made, z);
        }
        assert!(Order::new(&vec![f32::NAN; k * k], k).is_none());
    }
}
