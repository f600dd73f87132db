//! What learning how each weight is rounded needs besides the ops of training: the integers of Z, and what the output of a
//! block lacks of the float model's.

use rayon::prelude::*;

use super::PART;
use super::reduce::dot;
use super::rows_per_part;
use super::simd::simd;
use crate::quant::{Scheme, grid};

/// The integers of Z: [`grid::kept`], or W_Z of 8 bits.
pub fn round(z: &[f32], scheme: Scheme, to: &mut [i8]) {
    assert!(z.len() == to.len(), "round: shapes");
    let beyond = if scheme.bits < 8 { 0.0 } else { 1.0 };
    let (qmin, qmax) = (scheme.qmin() + beyond, scheme.qmax() - beyond);
    to.par_chunks_mut(PART).zip(z.par_chunks(PART)).for_each(|(to, z)| {
        simd(
            #[inline(always)]
            || {
                for (to, z) in to.iter_mut().zip(z) {
                    *to = grid::kept(*z, qmin, qmax);
                }
            },
        )
    });
}

/// dy = (y − target) / |target|² of each row [rows, d], half the gradient of the sum of |y − target|² / |target|² that is
/// returned. What follows a block norms its rows, so that an error weighs by the size of its row.
pub fn output_error(y: &[f32], target: &[f32], d: usize, dy: &mut [f32]) -> f64 {
    assert!(y.len() == target.len() && y.len() == dy.len() && y.len().is_multiple_of(d), "error: shapes");
    let part = rows_per_part(d) * d;
    let parts = dy.par_chunks_mut(part).zip(y.par_chunks(part)).zip(target.par_chunks(part));
    let sums: Vec<f64> = parts
        .map(|((dy, y), target)| {
            let mut sum = 0.0;
            simd(
                #[inline(always)]
                || {
                    for ((dy, y), target) in dy.chunks_exact_mut(d).zip(y.chunks_exact(d)).zip(target.chunks_exact(d)) {
                        let weight = 1.0 / dot(target, target).max(f32::MIN_POSITIVE);
                        for ((dy, y), target) in dy.iter_mut().zip(y).zip(target) {
                            *dy = y - target;
                        }
                        sum += f64::from(weight * dot(dy, dy));
                        for dy in dy {
                            *dy *= weight;
                        }
                    }
                },
            );
            sum
        })
        .collect();
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::random;

    /// As training rounds them; of 8 bits, which leave no room for a step beyond the grid, as they are stored.
    #[test]
    fn integers() {
        let z = [-9.6, -8.5, -8.4, -0.5, 0.5, 1.5, 6.9, 7.5, 7.6, 300.0];
        let mut to = [0; 10];
        round(&z, "w4pc".parse().unwrap(), &mut to);
        assert_eq!(to, [-9, -8, -8, 0, 0, 2, 7, 8, 8, 8]);
        round(&z, "w8pc".parse().unwrap(), &mut to);
        assert_eq!(to, [-10, -8, -8, 0, 0, 2, 7, 8, 8, 127]);
    }

    /// The definition, and its gradient by finite differences.
    #[test]
    fn errors_weigh_by_the_size_of_their_row() {
        let (rows, d) = (40, 24);
        let (mut y, target) = (random(1, rows * d), random(2, rows * d));
        let mut dy = vec![0.0; rows * d];
        let sum = output_error(&y, &target, d, &mut dy);
        let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let of_row = |y: &[f32], row: usize| {
            let (y, target) = (&y[row * d..][..d], &target[row * d..][..d]);
            let difference: Vec<f32> = y.iter().zip(target).map(|(y, target)| y - target).collect();
            square(&difference) / square(target)
        };
        let expected: f64 = (0..rows).map(|row| of_row(&y, row)).sum();
        assert!((sum / expected - 1.0).abs() < 1e-5, "{sum} {expected}");
        for at in [0, 77, rows * d - 1] {
            let (x, step) = (y[at], 1e-2);
            let mut at_step = |step: f32| {
                y[at] = x + step;
                let of = of_row(&y, at / d);
                y[at] = x;
                of
            };
            let slope = (at_step(step) - at_step(-step)) / (2.0 * f64::from(step));
            assert!((2.0 * f64::from(dy[at]) - slope).abs() < 1e-3 * slope.abs().max(0.01), "{at}: {} {slope}", dy[at]);
        }
    }
}
