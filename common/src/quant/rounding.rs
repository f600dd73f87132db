//! The integers of a linear, W_Z = clip(round(Φ0 + α/r·AB)), row by row: what folding writes and
//! training keeps.

use pulp::{Simd, WithSimd};

use super::grid::{self, COLUMNS, Panels};
use super::lanes::{ARCH, fetch};
use super::{Factors, Phi};

/// Columns that are rounded at once. Few rows and many columns, since every row is read and written elsewhere.
const STRIP: usize = 4 * COLUMNS;

/// Makes the integers of a linear, some rows at a time.
pub struct Rounding<'a> {
    of: Factors<'a>,
    b: Panels,
}

impl<'a> Rounding<'a> {
    pub fn new(of: Factors<'a>) -> Rounding<'a> {
        Rounding { b: Panels::new(of.b, of.rank), of }
    }

    /// W_Z − qmin of whole rows from row `first` on.
    pub fn rows(&self, first: usize, codes: &mut [u8]) {
        ARCH.dispatch(Rows { of: self, first, to: codes, rule: grid::unsigned_code });
    }

    /// [`grid::kept`] of whole rows from row `first` on.
    pub fn kept(&self, first: usize, integers: &mut [i8]) {
        ARCH.dispatch(Rows { of: self, first, to: integers, rule: grid::kept });
    }
}

struct Rows<'a, T, F> {
    of: &'a Rounding<'a>,
    first: usize,
    to: &'a mut [T],
    /// Of Z, qmin and qmax.
    rule: F,
}

impl<T, F: Fn(f32, f32, f32) -> T> WithSimd for Rows<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many sums as there are registers for them, of 32 or of 16.
        if S::F32_LANES == 16 { self.make::<S, 8>(simd) } else { self.make::<S, 4>(simd) }
    }
}

impl<T, F: Fn(f32, f32, f32) -> T> Rows<'_, T, F> {
    #[inline(always)]
    fn make<S: Simd, const N: usize>(self, simd: S) {
        let Rows { of, first, to, rule } = self;
        let Factors { k, rank, .. } = of.of;
        let (mut a, mut sums) = (vec![[0.0; N]; rank], [[0.0; STRIP]; N]);
        for (i, to) in to.chunks_mut(N * k).enumerate() {
            let first = first + i * N;
            of.gather(first, to.len() / k, &mut a);
            for from in (0..k).step_by(STRIP) {
                let columns = from..(from + STRIP).min(k);
                of.fetch(first, to.len() / k, columns.end);
                for at in (0..columns.len()).step_by(COLUMNS) {
                    of.b.sums(simd, (from + at) / COLUMNS, &a, &mut sums, at);
                }
                for ((row, to), sums) in to.chunks_exact_mut(k).enumerate().zip(&sums) {
                    of.round(first + row, from, sums, &mut to[columns.clone()], &rule);
                }
            }
        }
    }
}

impl Rounding<'_> {
    /// `rows` of A from row `first` on, side by side; what is missing is never looked at.
    #[inline(always)]
    fn gather<const N: usize>(&self, first: usize, rows: usize, a: &mut [[f32; N]]) {
        let rank = self.of.rank;
        for (row, values) in self.of.a[first * rank..][..rows * rank].chunks_exact(rank).enumerate() {
            for (a, value) in a.iter_mut().zip(values) {
                a[row] = *value;
            }
        }
    }

    /// Asks for Φ0 of `rows` from row `first` on, and of a strip from column `from` on, ahead of its use.
    #[inline(always)]
    fn fetch(&self, first: usize, rows: usize, from: usize) {
        let Factors { scheme, phi, stored, k, .. } = self.of;
        let bytes = stored.row_bytes(scheme, from)..stored.row_bytes(scheme, (from + STRIP).min(k));
        let row_bytes = stored.row_bytes(scheme, k);
        for row in phi[first * row_bytes..].chunks_exact(row_bytes).take(rows) {
            fetch(&row[bytes.clone()]);
        }
    }

    /// What becomes of Z in row `n` and the columns from `from` on, of their sums.
    #[inline(always)]
    fn round<T>(&self, n: usize, from: usize, sums: &[f32; STRIP], to: &mut [T], rule: impl Fn(f32, f32, f32) -> T) {
        let Factors { scheme, phi, stored, factor, k, .. } = self.of;
        let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
        // An even number of columns lies before, so that they are whole bytes.
        let bytes = stored.row_bytes(scheme, from)..stored.row_bytes(scheme, from + to.len());
        let phi = &phi[n * stored.row_bytes(scheme, k)..][bytes];
        if stored == Phi::Q {
            let unit = Phi::unit(scheme);
            for ((to, p), c) in to.iter_mut().zip(phi).zip(sums) {
                *to = rule(factor.mul_add(*c, f32::from(*p as i8) * unit), qmin, qmax);
            }
            return;
        }
        let mut z = [0.0; STRIP];
        stored.unpack_row(scheme, phi, &mut z[..to.len()]);
        for ((to, z), c) in to.iter_mut().zip(&z).zip(sums) {
            *to = rule(factor.mul_add(*c, *z), qmin, qmax);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Phi, RealWeight, Scheme, Symmetry};

    fn on<S: Simd>(simd: Option<S>, of: &Rounding, first: usize, codes: &mut [u8]) {
        if let Some(simd) = simd {
            codes.fill(0xEE);
            simd.vectorize(Rows { of, first, to: codes, rule: grid::unsigned_code });
        }
    }

    /// The integers that training rounds to, of every φ, on every instruction set, for whole blocks and for rests.
    #[test]
    fn the_integers_of_training() {
        let value = |i: usize| ((i * 2_654_435_761) % 4001) as f32 / 400.0 - 5.0;
        for (n, k, rank) in [(37, 2 * STRIP + 77, 5), (16, STRIP, 32), (3, 31, 1), (24, 96, 4)] {
            for (bits, stored) in
                [(4, Phi::Q), (2, Phi::Q), (3, Phi::Int), (8, Phi::Int), (5, Phi::Bf16), (4, Phi::F32)]
            {
                let scheme = Scheme { bits, group: None, symmetry: Symmetry::Symmetric };
                let row_bytes = stored.row_bytes(scheme, k);
                let mut phi = vec![0; n * row_bytes];
                for (row, phi) in phi.chunks_exact_mut(row_bytes).enumerate() {
                    let x: Vec<f32> = (0..k).map(|i| value(row * k + i)).collect();
                    stored.pack_row(scheme, &x, phi);
                }
                let (a, b): (Vec<f32>, Vec<f32>) =
                    ((0..n * rank).map(|i| value(i + 7)).collect(), (0..rank * k).map(|i| value(i + 77)).collect());
                let of = Factors { scheme, phi: &phi, stored, a: &a, b: &b, rank, factor: 0.07, k };
                let (real, rounding) = (RealWeight::new(of), Rounding::new(of));
                for first in [0, 8.min(n / 2)] {
                    let mut want = vec![0; (n - first) * k];
                    for (i, want) in want.iter_mut().enumerate() {
                        let (row, column) = (first + i / k, i % k);
                        let (rows, columns) = (row / 4 * 4, column / COLUMNS * COLUMNS);
                        let z = real.block(rows..(rows + 4).min(n), columns..(columns + COLUMNS).min(k));
                        let code = grid::code(z[row - rows][column - columns], scheme.qmin(), scheme.qmax());
                        *want = (code - scheme.qmin()) as u8;
                    }
                    let mut got = want.clone();
                    let mut kept = vec![0; got.len()];
                    rounding.kept(first, &mut kept);
                    let clipped = |kept: &i8| f32::from(*kept).clamp(scheme.qmin(), scheme.qmax()) - scheme.qmin();
                    assert!(bits == 8 || kept.iter().map(|kept| clipped(kept) as u8).eq(want.iter().copied()));
                    let mut check = |what: &str, make: &dyn Fn(&mut [u8])| {
                        make(&mut got);
                        assert!(got == want, "{what} [{n}, {k}] r {rank} w{bits} {stored} from {first}");
                    };
                    check("chosen", &|codes| rounding.rows(first, codes));
                    check("portable", &|codes| on(Some(pulp::Scalar), &rounding, first, codes));
                    #[cfg(target_arch = "x86_64")]
                    {
                        check("avx2", &|codes| on(pulp::x86::V3::try_new(), &rounding, first, codes));
                        check("avx512", &|codes| on(pulp::x86::V4::try_new(), &rounding, first, codes));
                    }
                }
            }
        }
    }
}
