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
//! GPTQ knows of a column only those before it. So groups and columns are visited again: the scale of each group, and then each
//! column, becomes what loses least of tr(E·H·Eᵀ) beside all others as they are, which is a division each: of the scale
//! Σ c·(E·H) / (c·H·c) of its codes c = W_Z − z, of a column (E·H)_j / H_jj (coordinate descent: Behdin et al. 2023, "QuantEase").
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

/// Added to the diagonal of H, of its mean. GPTQ's 0.01 fits the text that it is shown: of three blocks of
/// SmolLM2-135M-Instruct at w4g64s, shown Wikipedia, the output lacks (|y − ŷ|² / |y|²) 0.0038 on other Wikipedia text and 0.0089
/// on web text; with 0.05 0.0037 and 0.0077, with this 0.0039 and 0.0070, with 1 0.0046 and 0.0072.
const DAMPING: f64 = 0.2;
/// The part of W·D·H⁻¹ that is taken over, as in GPTAQ's code. Least squares make outputs smaller where inputs differ by noise,
/// and that adds up over the blocks: KL divergence of SmolLM2-135M-Instruct at w4pc on web text, by 32 windows, 0.2456 with
/// nothing of it, 0.1976 with this, 0.4598 with all.
const PART: f64 = 0.25;
/// Rows of W that are rounded together.
const ROWS: usize = 32;
/// Columns whose errors are handed on together.
const BLOCK: usize = 64;
/// How often groups and columns are visited again. In two blocks of SmolLM2-135M-Instruct at w4g64s, what is lost of outputs of
/// other windows goes down by 2.5 to 7.6 % in 4 rounds; 8 lose one part in a hundred less of those it is weighed by.
const ROUNDS: usize = 3;
/// What a row's scales are multiplied by; of those that lose the same, the first.
const FACTORS: [f32; 7] = [1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 1.06];

/// What columns hand on to each other.
pub struct Order {
    columns: Vec<usize>,
    /// R_ij / R_jj of columns i < j in that order, [j][i].
    shares: Vec<f32>,
    /// R_jj², in that order.
    sizes: Vec<f32>,
    /// H with what was added to its diagonal, in that order.
    gram: Vec<f32>,
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
        let mut ordered = vec![0.0; k * k];
        ordered.par_chunks_exact_mut(k).zip(&columns).enumerate().for_each(|(i, (to, column))| {
            to.iter_mut().zip(&columns).for_each(|(to, j)| *to = gram[column * k + j]);
            to[i] += damping as f32;
        });
        let shift = drift.iter().any(|d| *d != 0.0).then(|| shift(&l, &columns, drift));
        Some(Order { columns, shares, sizes, gram: ordered, shift })
    }

    /// Z [n, k] = W/s + z becomes what is rounded: φ of each number as it was when its turn came last, by the scales [n, G]
    /// that are returned.
    pub fn compensate(
        &self,
        workspace: &Workspace,
        z: &mut [f32],
        of: &LinearGrid,
        scheme: Scheme,
        phi: Phi,
    ) -> Vec<f32> {
        if let Some(shift) = &self.shift {
            correct(workspace, shift, z, of, scheme, self.columns.len());
        }
        self.round(z, of, scheme, phi, ROUNDS)
    }

    /// The same without what inputs lack, by so many rounds of visits after GPTQ.
    fn round(&self, z: &mut [f32], of: &LinearGrid, scheme: Scheme, phi: Phi, rounds: usize) -> Vec<f32> {
        let k = self.columns.len();
        let groups = scheme.groups(k);
        let mut members = vec![Vec::new(); groups];
        for (at, column) in self.columns.iter().enumerate() {
            members[column / scheme.group_size(k)].push(at);
        }
        let mut scale = of.scale.clone();
        let panels = z.par_chunks_mut(ROWS * k).zip(scale.par_chunks_mut(ROWS * groups)).enumerate();
        panels.for_each_init(Panel::default, |panel, (at, (z, scale))| {
            simd(
                #[inline(always)]
                || {
                    panel.read(self, z, of, scheme, at * ROWS);
                    panel.choose(self, scheme, phi);
                    if rounds > 0 {
                        panel.settle(self, &members, scheme, phi, rounds);
                    }
                    panel.write(self, z, scale);
                },
            );
        });
        scale
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
    /// What a column took over, in units of W; then E·H.
    taken: Vec<Lanes>,
    best: Vec<Lanes>,
    /// W_Z − z.
    codes: Vec<Lanes>,
    /// H·c of a group's codes c.
    weighed: Vec<Lanes>,
}

impl Panel {
    /// Rounds by each factor and keeps what loses least.
    #[inline(always)]
    fn choose(&mut self, by: &Order, scheme: Scheme, phi: Phi) {
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
        for scale in &mut self.scales {
            for row in 0..ROWS {
                scale[row] *= chosen[row];
            }
        }
    }

    /// Visits the groups, of these columns, and the columns again.
    #[inline(always)]
    fn settle(&mut self, by: &Order, members: &[Vec<usize>], scheme: Scheme, phi: Phi, rounds: usize) {
        let k = by.columns.len();
        let (group, qmin, qmax) = (scheme.group_size(k), scheme.qmin(), scheme.qmax());
        self.codes.resize(k, [0.0; ROWS]);
        self.weighed.resize(k, [0.0; ROWS]);
        for scale in &mut self.scales {
            *scale = scale.map(grid::forward_scale);
        }
        for (j, column) in by.columns.iter().enumerate() {
            let (best, zero, scale) = (&self.best[j], &self.zeros[column / group], &self.scales[column / group]);
            for row in 0..ROWS {
                self.codes[j][row] = grid::code(best[row], qmin, qmax) - zero[row];
                self.z[j][row] = self.w[j][row] - self.codes[j][row] * scale[row];
            }
        }
        for (taken, gram) in self.taken.iter_mut().zip(by.gram.chunks_exact(k)) {
            *taken = [0.0; ROWS];
            hand_on(gram, &self.z, taken);
        }
        for _ in 0..rounds {
            for (g, columns) in members.iter().enumerate() {
                self.visit_group(by, g, columns);
            }
            self.visit_columns(by, scheme, phi);
        }
    }

    /// The scale of group `g`.
    #[inline(always)]
    fn visit_group(&mut self, by: &Order, g: usize, columns: &[usize]) {
        let k = by.columns.len();
        for (weighed, gram) in self.weighed.iter_mut().zip(by.gram.chunks_exact(k)) {
            let mut sum = [0.0; ROWS];
            for j in columns {
                for (sum, code) in sum.iter_mut().zip(&self.codes[*j]) {
                    *sum = gram[*j].mul_add(*code, *sum);
                }
            }
            *weighed = sum;
        }
        let (mut over, mut under) = ([0.0; ROWS], [0.0; ROWS]);
        for j in columns {
            for row in 0..ROWS {
                over[row] += self.codes[*j][row] * self.taken[*j][row];
                under[row] += self.codes[*j][row] * self.weighed[*j][row];
            }
        }
        let mut more = [0.0; ROWS];
        for row in 0..ROWS {
            let scale = self.scales[g][row];
            let least = grid::forward_scale(scale + over[row] / under[row]);
            // A group without codes, or of inputs that are all 0, has no least.
            if least > 0.5 * scale && least < 2.0 * scale {
                (self.scales[g][row], more[row]) = (least, least - scale);
            }
        }
        for (taken, weighed) in self.taken.iter_mut().zip(&self.weighed) {
            for row in 0..ROWS {
                taken[row] -= more[row] * weighed[row];
            }
        }
    }

    #[inline(always)]
    fn visit_columns(&mut self, by: &Order, scheme: Scheme, phi: Phi) {
        let k = by.columns.len();
        let (group, qmin, qmax) = (scheme.group_size(k), scheme.qmin(), scheme.qmax());
        for from in (0..k).step_by(BLOCK) {
            let (to, mut changes) = ((from + BLOCK).min(k), [[0.0; ROWS]; BLOCK]);
            for j in from..to {
                let gram = &by.gram[j * k..(j + 1) * k];
                let mut error = self.taken[j];
                hand_on(&gram[from..j], &changes, &mut error);
                let g = by.columns[j] / group;
                let (scale, zero) = (&self.scales[g], &self.zeros[g]);
                let (best, code, change) = (&mut self.best[j], &mut self.codes[j], &mut changes[j - from]);
                for row in 0..ROWS {
                    best[row] = code[row] + error[row] / (gram[j] * scale[row]) + zero[row];
                }
                phi.keep(scheme, best);
                for row in 0..ROWS {
                    let least = grid::code(best[row], qmin, qmax) - zero[row];
                    (change[row], code[row]) = (scale[row] * (code[row] - least), least);
                }
            }
            for (taken, gram) in self.taken.iter_mut().zip(by.gram.chunks_exact(k)) {
                hand_on(&gram[from..to], &changes, taken);
            }
        }
    }

    /// What is rounded to the rows of `z`, and the scales.
    #[inline(always)]
    fn write(&self, by: &Order, z: &mut [f32], scale: &mut [f32]) {
        let (k, groups) = (by.columns.len(), self.scales.len());
        for (row, (z, scale)) in z.chunks_exact_mut(k).zip(scale.chunks_exact_mut(groups)).enumerate() {
            for (best, column) in self.best.iter().zip(&by.columns) {
                z[*column] = best[row];
            }
            for (to, scale) in scale.iter_mut().zip(&self.scales) {
                *to = scale[row];
            }
        }
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
fn hand_on(shares: &[f32], errors: &[Lanes], taken: &mut Lanes) {
    let mut sum = *taken;
    for (share, error) in shares.iter().zip(errors) {
        for row in 0..ROWS {
            sum[row] = share.mul_add(error[row], sum[row]);
        }
    }
    *taken = sum;
}

#[cfg(test)]
mod tests;
