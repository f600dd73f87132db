//! Rounding column by column, where what a column lost is made up for by those that follow: GPTQ (Frantar et al. 2022).
//!
//! With the Gram matrix H = Σ x·xᵀ of a linear's inputs, the loss of its output is tr(E·H·Eᵀ) of the error E = W − Ŵ. H = R·Rᵀ
//! with R upper triangular, and a column is rounded after it took over from those before it
//! w̃_j = w_j + Σ_{i<j} e_i·R_ij / R_jj: the form that Chee et al. (2023, "QuIP", theorem 6) show to be GPTQ's, in which
//! nothing is inverted. Columns come in the order of their inputs' size, the largest first ("act order"), which the integers
//! do not show: the scales are known beforehand. What a row loses is Σ_j R_jj²·(w̃_j − ŵ_j)², so each row can choose among
//! scales: errors that are made up for are best spread otherwise than those that are not, and the fit knew of none.
//! What is rounded is φ(Z), as it is stored: rounding twice can give another integer than rounding once.
//!
//! The inputs x are those of a model whose linears before are rounded already. So that a linear gives what it gave of the
//! inputs x̂ of the float model, it takes over a part of W·D·H⁻¹ with D = Σ (x̂ − x)·xᵀ before it is rounded: all of it is the
//! least squares of W·x̂ by x (Li et al. 2025, "GPTAQ"; Zhang et al. 2025, "Qronos").

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::cholesky::llt::solve::solve_in_place;
use faer::{Mat, Par};
use rayon::prelude::*;

use crate::compute::cpu::linear::Workspace;
use crate::compute::cpu::product::{Lines, ToF32};
use crate::compute::cpu::simd::simd;
use crate::quant::lanes::not_finite;
use crate::quant::{LinearGrid, Phi, Scheme, grid};

/// Added to the diagonal of H, of its mean (GPTQ).
const DAMPING: f64 = 0.01;
/// The part of W·D·H⁻¹ that is taken over, as in GPTAQ's code. Least squares make outputs smaller where inputs differ by noise,
/// and that adds up over the blocks: KL divergence of SmolLM2-135M-Instruct at w4pc on web text, by 32 windows, 0.2456 with
/// nothing of it, 0.1976 with this, 0.4598 with all.
const PART: f64 = 0.25;
/// Rows of W that are rounded together.
const ROWS: usize = 32;
/// Columns whose errors are handed on together.
const BLOCK: usize = 64;
/// What a row's scales are multiplied by; of those that lose the same, the first.
const FACTORS: [f32; 7] = [1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 1.06];

/// What columns hand on to each other.
pub struct Order {
    columns: Vec<usize>,
    /// R_ij / R_jj of columns i < j in that order, [j][i].
    shares: Vec<f32>,
    /// R_jj², in that order.
    sizes: Vec<f32>,
    /// [`PART`] of (H + damping)⁻¹·Dᵀ [k, k], columns as they lie; none if D is 0.
    shift: Option<Vec<f32>>,
}

impl Order {
    /// Of `gram` H = Σ x·xᵀ and `drift` D = Σ (x̂ − x)·xᵀ [k, k]. None if not all of them is finite. On all threads: not to be
    /// called from one of them.
    pub fn new(gram: &[f32], drift: Vec<f32>, k: usize) -> Option<Order> {
        assert_eq!(gram.len(), k * k);
        let size = |i: usize| gram[i * k + i];
        if not_finite(gram).or(not_finite(&drift)).is_some() {
            return None;
        }
        let mean = (0..k).map(|i| f64::from(size(i))).sum::<f64>() / k as f64;
        // Inputs that are all 0 weigh nothing: any order and nothing handed on.
        let mut damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        let mut columns: Vec<usize> = (0..k).collect();
        columns.sort_by(|i, j| size(*j).total_cmp(&size(*i)));
        // Sums in f32 can leave a pivot that is not positive.
        let l = loop {
            match cholesky(gram, &columns, damping) {
                Some(l) => break l,
                None => damping *= 10.0,
            }
        };
        let mut shares = vec![0.0; k * k];
        shares.par_chunks_exact_mut(k).enumerate().for_each(|(j, shares)| {
            let at = k - 1 - j;
            for (i, share) in shares[..j].iter_mut().enumerate() {
                *share = (l[(k - 1 - i, at)] / l[(at, at)]) as f32;
            }
        });
        let sizes = (0..k).rev().map(|at| l[(at, at)].powi(2) as f32).collect();
        let shift = drift.iter().any(|d| *d != 0.0).then(|| shift(&l, &columns, drift));
        Some(Order { columns, shares, sizes, shift })
    }

    /// Z [n, k] = W/s + z becomes what is rounded: φ of each number as it was when its turn came, by the scales of its row
    /// times what is returned [n].
    pub fn compensate(
        &self,
        workspace: &Workspace,
        z: &mut [f32],
        of: &LinearGrid,
        scheme: Scheme,
        phi: Phi,
    ) -> Vec<f32> {
        let k = self.columns.len();
        if let Some(shift) = &self.shift {
            correct(workspace, shift, z, of, scheme, k);
        }
        let mut factors = vec![1.0; z.len() / k];
        let panels = z.par_chunks_mut(ROWS * k).zip(factors.par_chunks_mut(ROWS)).enumerate();
        panels.for_each_init(Panel::default, |panel, (at, (z, factors))| {
            simd(
                #[inline(always)]
                || panel.choose(self, z, of, (scheme, phi), at * ROWS, factors),
            );
        });
        factors
    }
}

/// Of the factor of H with these columns in reverse, and D.
fn shift(l: &Mat<f64>, columns: &[usize], mut drift: Vec<f32>) -> Vec<f32> {
    let k = columns.len();
    let reversed = |i: usize| columns[k - 1 - i];
    let mut shift = Mat::from_fn(k, k, |i, c| PART * f64::from(drift[c * k + reversed(i)]));
    solve_in_place(l.as_ref(), shift.as_mut(), Par::rayon(0), MemStack::new(&mut []));
    for i in 0..k {
        for (c, to) in drift[reversed(i) * k..][..k].iter_mut().enumerate() {
            *to = shift[(i, c)] as f32;
        }
    }
    drift
}

/// Z [n, k] of W becomes that of W + W·shiftᵀ.
fn correct(workspace: &Workspace, shift: &[f32], z: &mut [f32], of: &LinearGrid, scheme: Scheme, k: usize) {
    let n = z.len() / k;
    let (group, groups) = (scheme.group_size(k), scheme.groups(k));
    let grid = |row: usize, column: usize| {
        let at = row * groups + column / group;
        (of.scale[at], of.zero.as_ref().map_or(0.0, |zero| zero[at]))
    };
    let mut w = z.to_vec();
    w.par_chunks_exact_mut(k).enumerate().for_each(|(row, w)| {
        for (column, w) in w.iter_mut().enumerate() {
            let (scale, zero) = grid(row, column);
            *w = scale * (*w - zero);
        }
    });
    let mut more = vec![0.0; n * k];
    let to = ToF32::new(&mut more, n, k, k, false);
    workspace.multiply_f32(&Lines::rows(&w, n, k), &Lines::rows(shift, k, k), to);
    z.par_chunks_exact_mut(k).zip(more.par_chunks_exact(k)).enumerate().for_each(|(row, (z, more))| {
        for (column, (z, more)) in z.iter_mut().zip(more).enumerate() {
            *z += more / grid(row, column).0;
        }
    });
}

/// L of H with these columns in reverse: L·Lᵀ of it is R·Rᵀ of them in order. None if a pivot is not positive.
fn cholesky(gram: &[f32], columns: &[usize], damping: f64) -> Option<Mat<f64>> {
    let k = columns.len();
    let reversed = |i: usize| columns[k - 1 - i];
    let mut l =
        Mat::from_fn(k, k, |i, j| f64::from(gram[reversed(i) * k + reversed(j)]) + if i == j { damping } else { 0.0 });
    let mut scratch = MemBuffer::new(cholesky_in_place_scratch::<f64>(k, Par::rayon(0), Default::default()));
    let scratch = MemStack::new(&mut scratch);
    cholesky_in_place(l.as_mut(), Default::default(), Par::rayon(0), scratch, Default::default()).ok()?;
    Some(l)
}

/// Numbers of some rows, side by side.
type Lanes = [f32; ROWS];

/// Some rows of W; columns in their order.
#[derive(Default)]
struct Panel {
    w: Vec<Lanes>,
    scales: Vec<Lanes>,
    zeros: Vec<Lanes>,
    z: Vec<Lanes>,
    /// What a column took over, in units of W.
    taken: Vec<Lanes>,
    best: Vec<Lanes>,
}

impl Panel {
    /// Rounds the rows from `first` on by each factor and keeps what loses least.
    #[inline(always)]
    fn choose(
        &mut self,
        by: &Order,
        z: &mut [f32],
        of: &LinearGrid,
        (scheme, phi): (Scheme, Phi),
        first: usize,
        factors: &mut [f32],
    ) {
        let (k, rows) = (by.columns.len(), factors.len());
        self.read(by, z, of, scheme, first);
        let (mut least, mut chosen) = ([f32::INFINITY; ROWS], [1.0; ROWS]);
        for factor in FACTORS {
            let loss = self.round(by, scheme, phi, factor);
            for (best, z) in self.best.iter_mut().zip(&self.z) {
                for row in 0..ROWS {
                    best[row] = if loss[row] < least[row] { z[row] } else { best[row] };
                }
            }
            for row in 0..ROWS {
                if loss[row] < least[row] {
                    (least[row], chosen[row]) = (loss[row], factor);
                }
            }
        }
        for row in 0..rows {
            for (best, column) in self.best.iter().zip(&by.columns) {
                z[row * k + column] = best[row];
            }
        }
        factors.copy_from_slice(&chosen[..rows]);
    }

    #[inline(always)]
    fn read(&mut self, by: &Order, z: &[f32], of: &LinearGrid, scheme: Scheme, first: usize) {
        let (k, rows) = (by.columns.len(), z.len() / by.columns.len());
        let (group, groups) = (scheme.group_size(k), scheme.groups(k));
        for of_columns in [&mut self.w, &mut self.z, &mut self.taken, &mut self.best] {
            of_columns.resize(k, [0.0; ROWS]);
        }
        self.scales.resize(groups, [1.0; ROWS]);
        self.zeros.resize(groups, [0.0; ROWS]);
        for row in 0..rows {
            for g in 0..groups {
                let at = (first + row) * groups + g;
                self.scales[g][row] = of.scale[at];
                self.zeros[g][row] = of.zero.as_ref().map_or(0.0, |zero| zero[at]);
            }
            for (w, column) in self.w.iter_mut().zip(&by.columns) {
                let g = column / group;
                w[row] = self.scales[g][row] * (z[row * k + column] - self.zeros[g][row]);
            }
        }
    }

    /// By the scales times a factor: Z as it is rounded, and what that loses.
    #[inline(always)]
    fn round(&mut self, by: &Order, scheme: Scheme, phi: Phi, factor: f32) -> Lanes {
        let k = by.columns.len();
        let (group, qmin, qmax) = (scheme.group_size(k), scheme.qmin(), scheme.qmax());
        let (mut errors, mut loss) = ([[0.0; ROWS]; BLOCK], [0.0; ROWS]);
        self.taken.fill([0.0; ROWS]);
        for from in (0..k).step_by(BLOCK) {
            let to = (from + BLOCK).min(k);
            for j in from..to {
                let mut taken = self.taken[j];
                hand_on(&by.shares[j * k + from..j * k + j], &errors, &mut taken);
                let g = by.columns[j] / group;
                let (w, scale, zero) = (&self.w[j], &self.scales[g], &self.zeros[g]);
                let (z, error) = (&mut self.z[j], &mut errors[j - from]);
                for row in 0..ROWS {
                    taken[row] += w[row];
                    z[row] = taken[row] / (scale[row] * factor) + zero[row];
                }
                phi.keep(scheme, z);
                for row in 0..ROWS {
                    let code = grid::code(z[row], qmin, qmax);
                    let made = grid::dequantize(code, zero[row], grid::forward_scale(scale[row] * factor));
                    error[row] = w[row] - made;
                    loss[row] += by.sizes[j] * (taken[row] - made).powi(2);
                }
            }
            for j in to..k {
                hand_on(&by.shares[j * k + from..j * k + to], &errors, &mut self.taken[j]);
            }
        }
        loss
    }
}

/// taken += Σ share·error
#[inline(always)]
fn hand_on(shares: &[f32], errors: &[Lanes; BLOCK], taken: &mut Lanes) {
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
    use faer::Side;
    use faer::linalg::solvers::Solve;

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
        // Rows that fill their grid more or less: not all lose least by the same factor.
        let full = |at: usize| scheme.qmax() * [1.0, 0.6, 0.3][at / k % 3];
        let z = random(3, n * k).iter().enumerate().map(|(at, z)| z * full(at)).collect();
        (z, LinearGrid { scale, zero })
    }

    /// As GPTQ is written down: H⁻¹ by inverting, the rest of the row updated after every column; by these factors, that
    /// which loses least of H.
    fn gptq(z: &[f32], of: &LinearGrid, scheme: Scheme, phi: Phi, gram: &[f32], k: usize) -> (Vec<f64>, Vec<f32>) {
        let mean = (0..k).map(|i| f64::from(gram[i * k + i])).sum::<f64>() / k as f64;
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|i, j| gram[j * k + j].total_cmp(&gram[i * k + i]));
        let damped =
            |i: usize, j: usize| f64::from(gram[order[i] * k + order[j]]) + if i == j { 0.01 * mean } else { 0.0 };
        let h = Mat::from_fn(k, k, damped);
        let inverse = h.partial_piv_lu().solve(Mat::<f64>::identity(k, k));
        let u = inverse.llt(Side::Lower).unwrap().L().transpose().to_owned();
        let (group, groups) = (scheme.group_size(k), scheme.groups(k));
        let (mut out, mut factors) = (vec![0.0; z.len()], vec![0.0; z.len() / k]);
        for (row, z) in z.chunks_exact(k).enumerate() {
            let of = |j: usize| {
                let at = row * groups + order[j] / group;
                (of.scale[at], of.zero.as_ref().map_or(0.0, |zero| f64::from(zero[at])))
            };
            let weight: Vec<f64> = (0..k).map(|j| f64::from(of(j).0) * (f64::from(z[order[j]]) - of(j).1)).collect();
            let mut least = f64::INFINITY;
            for factor in FACTORS {
                let (mut w, mut rounded, mut error) = (weight.clone(), vec![0.0; k], vec![0.0; k]);
                for j in 0..k {
                    let (s, zero) = (of(j).0 * factor, of(j).1);
                    let mut kept = [(w[j] / f64::from(s) + zero) as f32];
                    phi.keep(scheme, &mut kept);
                    rounded[j] = f64::from(kept[0]);
                    let code = rounded[j].round_ties_even().clamp(scheme.qmin().into(), scheme.qmax().into());
                    let made = f64::from(grid::forward_scale(s)) * (code - zero);
                    let lost = (w[j] - made) / u[(j, j)];
                    for t in j + 1..k {
                        w[t] -= lost * u[(j, t)];
                    }
                    error[j] = weight[j] - made;
                }
                let of_column = |i: usize| (0..k).map(|j| error[j] * h[(j, i)]).sum::<f64>() * error[i];
                let loss = (0..k).map(of_column).sum::<f64>();
                if loss < least {
                    (least, factors[row]) = (loss, factor);
                    (0..k).for_each(|j| out[row * k + order[j]] = rounded[j]);
                }
            }
        }
        (out, factors)
    }

    #[test]
    fn is_gptq() {
        let cases = [
            ("w4pc", Phi::F32, 35, 150),
            ("w4pc", Phi::Q, 64, 150),
            ("w3g16", Phi::Bf16, 40, 64),
            ("w2g32z", Phi::Int, 33, 96),
        ];
        for (word, phi, n, k) in cases {
            let scheme: Scheme = word.parse().unwrap();
            let (z, of) = start(n, k, scheme);
            let gram = gram(k, 3 * k);
            let (want, by) = gptq(&z, &of, scheme, phi, &gram, k);
            let mut got = z.clone();
            let factors = Order::new(&gram, vec![0.0; k * k], k).unwrap().compensate(
                &Workspace::default(),
                &mut got,
                &of,
                scheme,
                phi,
            );
            // A number that lies between two integers may go either way, and all that follow it in its row with it.
            let off =
                |(got, want): (&[f32], &[f64])| got.iter().zip(want).any(|(g, w)| (f64::from(*g) - w).abs() > 2e-3);
            let rows = got.chunks_exact(k).zip(want.chunks_exact(k)).map(off).zip(factors.iter().zip(&by));
            let rows = rows.filter(|(off, (factor, by))| *off || factor != by).count();
            assert!(rows * 20 <= n, "{word} {phi}: {rows} of {n} rows differ");
            assert!(got != z && by.iter().any(|factor| *factor != by[0]), "{word}: {by:?}");
        }
    }

    /// What it is for: less is lost of the output than by rounding to the nearest.
    #[test]
    fn loses_less() {
        let (scheme, n, k): (Scheme, _, _) = ("w3pc".parse().unwrap(), 20, 120);
        let (z, of) = start(n, k, scheme);
        let gram = gram(k, 2 * k);
        let lost = |rounded: &[f32], factors: &[f32]| -> f64 {
            let error = |row: usize, i: usize| {
                let code = grid::code(rounded[row * k + i], scheme.qmin(), scheme.qmax());
                let made = grid::dequantize(code, 0.0, grid::forward_scale(of.scale[row] * factors[row]));
                f64::from(of.scale[row] * z[row * k + i] - made)
            };
            let of_row = |row: usize| -> f64 {
                (0..k * k).map(|at| error(row, at / k) * f64::from(gram[at]) * error(row, at % k)).sum()
            };
            (0..n).map(of_row).sum()
        };
        let order = Order::new(&gram, vec![0.0; k * k], k).unwrap();
        let mut made = z.clone();
        let factors = order.compensate(&Workspace::default(), &mut made, &of, scheme, Phi::F32);
        let (gptq, nearest) = (lost(&made, &factors), lost(&z, &vec![1.0; n]));
        assert!(gptq < 0.5 * nearest, "{gptq} {nearest}");
    }

    /// (V − W)·(H + damping) = [`PART`]·W·D of the V that is rounded, by its definition.
    #[test]
    fn takes_over_what_the_inputs_lack() {
        for word in ["w4pc", "w3g16z"] {
            let (scheme, n, k): (Scheme, _, _) = (word.parse().unwrap(), 6, 48);
            let (z, of) = start(n, k, scheme);
            let gram = gram(k, 3 * k);
            let mean = (0..k).map(|i| f64::from(gram[i * k + i])).sum::<f64>() / k as f64;
            let drift: Vec<f32> = random(9, k * k).iter().map(|d| 0.1 * mean as f32 * d).collect();
            let mut moved = z.clone();
            let order = Order::new(&gram, drift.clone(), k).unwrap();
            correct(&Workspace::default(), &order.shift.unwrap(), &mut moved, &of, scheme, k);
            let weight = |z: &[f32], row: usize, c: usize| {
                let at = row * scheme.groups(k) + c / scheme.group_size(k);
                f64::from(of.scale[at]) * (f64::from(z[row * k + c]) - of.zero.as_ref().map_or(0.0, |z| z[at].into()))
            };
            let sum = |of: &dyn Fn(usize) -> f64| (0..k).map(of).sum::<f64>();
            for at in 0..n * k {
                let (row, j) = (at / k, at % k);
                let damped = |c: usize| f64::from(gram[c * k + j]) + if c == j { DAMPING * mean } else { 0.0 };
                let left = sum(&|c| (weight(&moved, row, c) - weight(&z, row, c)) * damped(c));
                let right = sum(&|c| 0.25 * weight(&z, row, c) * f64::from(drift[c * k + j]));
                let size = sum(&|c| (weight(&z, row, c) * f64::from(drift[c * k + j])).abs());
                assert!((left - right).abs() < 1e-3 * size, "{word} {row} {j}: {left} {right}");
            }
        }
        let k = 8;
        assert!(Order::new(&gram(k, k), vec![0.0; k * k], k).unwrap().shift.is_none());
        assert!(Order::new(&gram(k, k), vec![f32::NAN; k * k], k).is_none());
    }

    /// Inputs that have nothing to do with each other, or are not there, leave nothing to make up for.
    #[test]
    fn of_a_diagonal_is_rounding_to_the_nearest() {
        let (scheme, n, k): (Scheme, _, _) = ("w4pc".parse().unwrap(), 3, 40);
        let (z, of) = start(n, k, scheme);
        for size in [0.0, 2.0] {
            let gram: Vec<f32> = (0..k * k).map(|at| if at / k == at % k { size * at as f32 } else { 0.0 }).collect();
            let mut made = z.clone();
            let factors = Order::new(&gram, vec![0.0; k * k], k).unwrap().compensate(
                &Workspace::default(),
                &mut made,
                &of,
                scheme,
                Phi::F32,
            );
            for (row, (made, z)) in made.chunks_exact(k).zip(z.chunks_exact(k)).enumerate() {
                for (made, z) in made.iter().zip(z) {
                    assert!((made * factors[row] - z).abs() <= 1e-5 * z.abs(), "{made} {z} {}", factors[row]);
                }
            }
        }
        assert!(Order::new(&vec![f32::NAN; k * k], vec![0.0; k * k], k).is_none());
    }

    /// What sums in f32 can leave of a Gram matrix: one that is none. It is damped more.
    #[test]
    fn a_pivot_that_is_not_positive() {
        let gram = [1.0, 1.5, 0.0, 1.5, 1.0, 0.0, 0.0, 0.0, 1.0];
        let order = Order::new(&gram, vec![0.0; 9], 3).unwrap();
        assert!(order.sizes.iter().chain(&order.shares).all(|x| x.is_finite()));
    }

    /// With any number of threads the same numbers, for as many inputs as a library would split among them.
    #[test]
    fn threads_do_not_show() {
        let (scheme, n, k): (Scheme, _, _) = ("w3g100".parse().unwrap(), 50, 700);
        let (gram, (z, of)) = (gram(k, 40), start(n, k, scheme));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let factor = cholesky(&gram, &(0..k).collect::<Vec<_>>(), 1.0).unwrap();
                let mut made = z.clone();
                let factors = Order::new(&gram, random(9, k * k), k).unwrap().compensate(
                    &Workspace::default(),
                    &mut made,
                    &of,
                    scheme,
                    Phi::Q,
                );
                (factor, made, factors)
            })
        };
        let one = with(1);
        assert!((2..5).all(|threads| with(threads) == one));
    }
}
