//! The best product of low rank: A·B nearest to a matrix in the Frobenius norm, from its largest singular values
//! (Eckart & Young 1936), found by a randomized range finder with power iterations (Halko, Martinsson & Tropp 2011,
//! algorithms 4.4 and 5.1).

use faer::{Mat, MatRef, Side};

use super::linear::Workspace;
use super::product::{Lines, ToF32};
use crate::quant::lowrank::init_b;

/// Directions that are followed beyond the rank.
const MORE: usize = 8;
const POWERS: usize = 2;

/// A [n, r] and B [r, k] with A·B nearest to `e` [n, k]; both carry the root of each singular value. Where the rank is
/// more than `e` has, the rest is zero.
pub fn nearest(ws: &Workspace, e: &[f32], n: usize, k: usize, rank: usize, seed: u64, name: &str) -> [Vec<f32>; 2] {
    assert_eq!(e.len(), n * k);
    let l = (rank + MORE).min(n).min(k);
    let rows = Lines::rows(e, n, k);
    let columns = Lines::new(e, k, n, (1, k));
    // [l, k], then by turns the range of E [n, l] and of Eᵀ [k, l].
    let mut right = init_b(l, k, seed, name);
    let mut range = vec![0.0; n * l];
    for power in 0..=POWERS {
        ws.multiply_f32(&rows, &Lines::rows(&right, l, k), ToF32::new(&mut range, n, l, l, false));
        orthonormal(&mut range, n, l);
        if power < POWERS {
            let mut back = vec![0.0; k * l];
            ws.multiply_f32(&columns, &Lines::columns(&range, n, l), ToF32::new(&mut back, k, l, l, false));
            orthonormal(&mut back, k, l);
            right = transposed(&back, k, l);
        }
    }
    // QᵀE [l, k] is small: its singular values are the roots of the eigenvalues of QᵀE·EᵀQ.
    let of_range = Lines::new(&range, l, n, (1, l));
    let mut small = vec![0.0; l * k];
    ws.multiply_f32(&of_range, &Lines::columns(e, n, k), ToF32::new(&mut small, l, k, k, false));
    let wide = in_f64(&small, l, k);
    let found = (&wide * wide.transpose()).self_adjoint_eigen(Side::Lower).expect("finite");
    // The largest is the last.
    let (values, vectors) = (found.S().column_vector(), found.U());
    let (mut a, mut b) = (vec![0.0; n * rank], vec![0.0; rank * k]);
    for (r, at) in (0..l).rev().take(rank).enumerate() {
        // In f32 nothing smaller can be told from 0.
        if values[at] <= values[l - 1] * f64::from(f32::EPSILON).powi(2) || values[at] <= 0.0 {
            break;
        }
        let root = values[at].powf(0.25);
        let u = vectors.col(at);
        for (a, range) in a.chunks_exact_mut(rank).zip(range.chunks_exact(l)) {
            a[r] = (root * range.iter().zip(u.iter()).map(|(q, u)| f64::from(*q) * u).sum::<f64>()) as f32;
        }
        let v = u.transpose() * &wide;
        for (b, v) in b[r * k..(r + 1) * k].iter_mut().zip(v.iter()) {
            *b = (v / root) as f32;
        }
    }
    [a, b]
}

/// The columns of x [n, l], orthonormal, by QR.
fn orthonormal(x: &mut [f32], n: usize, l: usize) {
    let q = in_f64(x, n, l).qr().compute_thin_Q();
    for (i, row) in x.chunks_exact_mut(l).enumerate() {
        for (j, x) in row.iter_mut().enumerate() {
            *x = q[(i, j)] as f32;
        }
    }
}

/// x [n, l], row by row.
fn in_f64(x: &[f32], n: usize, l: usize) -> Mat<f64> {
    let x = MatRef::from_row_major_slice(x, n, l);
    Mat::from_fn(n, l, |i, j| f64::from(x[(i, j)]))
}

fn transposed(x: &[f32], n: usize, l: usize) -> Vec<f32> {
    (0..l).flat_map(|j| (0..n).map(move |i| x[i * l + j])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::random;

    fn product(a: &[f32], b: &[f32], n: usize, k: usize, rank: usize) -> Vec<f64> {
        let at = |i: usize, j: usize| (0..rank).map(|r| f64::from(a[i * rank + r]) * f64::from(b[r * k + j])).sum();
        (0..n * k).map(|i| at(i / k, i % k)).collect()
    }

    fn distance(x: &[f32], y: &[f64]) -> f64 {
        x.iter().zip(y).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum::<f64>().sqrt()
    }

    /// A matrix that has the rank is found; of one with known singular values the rest is what lies beyond the rank.
    #[test]
    fn is_the_nearest() {
        let ws = Workspace::default();
        for (n, k, rank) in [(70, 50, 3), (40, 96, 8), (5, 7, 9)] {
            let exact: Vec<f32> =
                product(&random(1, n * rank), &random(2, rank * k), n, k, rank).iter().map(|x| *x as f32).collect();
            let [a, b] = nearest(&ws, &exact, n, k, rank, 0, "x");
            let off = distance(&exact, &product(&a, &b, n, k, rank));
            assert!(off < 1e-5 * distance(&exact, &vec![0.0; n * k]), "{n} {k} {rank}: {off}");
        }
        // Σ σᵢ uᵢ vᵢᵀ with orthonormal u and v: rows and columns of cosines (DCT-II).
        let (n, k) = (48, 40);
        let basis = |n: usize, i: usize, at: usize| {
            let norm = if i == 0 { 1.0 / n as f64 } else { 2.0 / n as f64 };
            norm.sqrt() * (std::f64::consts::PI * (at as f64 + 0.5) * i as f64 / n as f64).cos()
        };
        let sigma = |i: usize| 0.8f64.powi(i as i32);
        let value = |i: usize, j: usize| (0..k).map(|s| sigma(s) * basis(n, s, i) * basis(k, s, j)).sum::<f64>();
        let e: Vec<f32> = (0..n * k).map(|at| value(at / k, at % k) as f32).collect();
        for rank in [1, 4, 12] {
            let [a, b] = nearest(&ws, &e, n, k, rank, 0, "x");
            let least = (rank..k).map(|i| sigma(i).powi(2)).sum::<f64>().sqrt();
            let off = distance(&e, &product(&a, &b, n, k, rank));
            assert!((least * (1.0 - 1e-5)..least * 1.01).contains(&off), "rank {rank}: {off}, least {least}");
            // Each of A's columns is as long as B's row.
            for r in 0..rank {
                let of_a = (0..n).map(|i| f64::from(a[i * rank + r]).powi(2)).sum::<f64>();
                let of_b = b[r * k..(r + 1) * k].iter().map(|b| f64::from(*b).powi(2)).sum::<f64>();
                assert!((of_a / of_b - 1.0).abs() < 1e-4, "{of_a} {of_b}");
            }
        }
    }

    /// With any number of threads the same numbers.
    #[test]
    fn threads_do_not_show() {
        let (n, k, rank) = (900, 300, 40);
        let e = random(1, n * k);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| nearest(&Workspace::default(), &e, n, k, rank, 0, "x"))
        };
        let one = with(1);
        assert!((2..5).all(|threads| with(threads) == one));
    }

    #[test]
    fn of_nothing_is_nothing() {
        let [a, b] = nearest(&Workspace::default(), &[0.0; 60], 6, 10, 2, 0, "x");
        assert!(a.iter().chain(&b).all(|x| *x == 0.0));
    }
}
