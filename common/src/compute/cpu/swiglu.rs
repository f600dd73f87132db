//! SwiGLU (Shazeer, 2020), where products end: the gate, the product with it and its gradient never pass through memory
//! but to be kept.

use rayon::prelude::*;

use super::PART;
use super::element::Element;
use super::product::{COLUMNS, Kernel, Shared, Sink, Tile};
use super::simd::{exp, simd};

#[inline(always)]
fn swiglu(gate: f32, up: f32) -> f32 {
    gate * sigmoid(gate) * up
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// dgate = dout∘up∘silu'(gate), dup = dout∘silu(gate); silu'(x) = σ(x)·(1 + x·(1 - σ(x)))
#[inline(always)]
fn swiglu_gradient(gate: f32, up: f32, dout: f32) -> (f32, f32) {
    let s = sigmoid(gate);
    let slope = s * gate.mul_add(1.0 - s, 1.0);
    (dout * up * slope, dout * (gate * s))
}

/// out = silu(gate)∘up
pub fn swiglu_all<E: Element>(gate: &[E], up: &[E], out: &mut [E]) {
    let parts = gate.par_chunks(PART).zip(up.par_chunks(PART));
    out.par_chunks_mut(PART).zip(parts).for_each(|(out, (gate, up))| {
        simd(
            #[inline(always)]
            || {
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = E::from_f32(swiglu(gate.to_f32(), up.to_f32()));
                }
            },
        )
    });
}

/// out = silu(gate)∘up of the tiles of gate and up, which come by turns. Both are rounded first, as they are kept.
pub struct ToSwiGlu<'a, E> {
    /// Where gate and up are kept for the backward pass.
    pub kept: Option<[Shared<'a, E>; 2]>,
    pub out: Shared<'a, E>,
}

impl<E: Element, K: Kernel> Sink<K> for ToSwiGlu<'_, E> {
    /// The tile of gate, which waits for that of up.
    type State = Tile;

    /// Two tiles of each matrix make whole lines, so each is asked for once in four.
    fn ahead(&self, row: usize, column: usize) -> Option<(*const u8, usize)> {
        let pair = column / 4 * 2;
        match (column % 4, &self.kept) {
            (0, _) => self.out.ahead::<K>(row, pair),
            (1, Some([gate, _])) => gate.ahead::<K>(row, pair),
            (2, Some([_, up])) => up.ahead::<K>(row, pair),
            _ => None,
        }
    }

    fn store(&self, kernel: K, gate: &mut Tile, row: usize, column: usize, tile: &mut [f32]) {
        let (which, column) = (column % 2, column / 2);
        if let Some(kept) = &self.kept {
            // SAFETY: each tile is given once, by one thread.
            unsafe { kept[which].put(kernel, row, column, tile) };
        }
        if which == 0 {
            gate.0[..tile.len()].copy_from_slice(tile);
            return;
        }
        simd(
            #[inline(always)]
            || {
                for (tile, gate) in tile.iter_mut().zip(&gate.0) {
                    *tile = swiglu(E::from_f32(*gate).to_f32(), E::from_f32(*tile).to_f32());
                }
            },
        );
        // SAFETY: as above.
        unsafe { self.out.put(kernel, row, column, tile) };
    }
}

/// Tiles of dout make dgate of gate and dup of up, in place.
pub struct ToSwiGluGradient<'a, E> {
    pub gate: Shared<'a, E>,
    pub up: Shared<'a, E>,
}

impl<E: Element, K: Kernel> Sink<K> for ToSwiGluGradient<'_, E> {
    /// dgate of a tile.
    type State = Tile;

    fn ahead(&self, row: usize, column: usize) -> Option<(*const u8, usize)> {
        let of = if column.is_multiple_of(2) { &self.gate } else { &self.up };
        of.ahead::<K>(row, column / 2 * 2)
    }

    fn store(&self, kernel: K, dgate: &mut Tile, row: usize, column: usize, dout: &mut [f32]) {
        let (gate, stride, rows, columns) = self.gate.tile::<K>(row, column);
        let (up, ..) = self.up.tile::<K>(row, column);
        simd(
            #[inline(always)]
            || {
                for row in 0..rows {
                    // SAFETY: these columns of this row exist and belong to this tile.
                    let (gate, up) = unsafe {
                        let gate = std::slice::from_raw_parts(gate.add(row * stride), columns);
                        (gate, std::slice::from_raw_parts(up.add(row * stride), columns))
                    };
                    let at = row * COLUMNS..row * COLUMNS + columns;
                    gradient_of_row(gate, up, &mut dgate.0[at.clone()], &mut dout[at]);
                }
            },
        );
        // SAFETY: each tile is given once, by one thread.
        unsafe {
            self.gate.put(kernel, row, column, &dgate.0);
            self.up.put(kernel, row, column, dout);
        }
    }
}

/// `dout` becomes dup.
#[inline(always)]
fn gradient_of_row<E: Element>(gate: &[E], up: &[E], dgate: &mut [f32], dout: &mut [f32]) {
    let (n, dgate, dout) = (gate.len(), &mut dgate[..gate.len()], &mut dout[..gate.len()]);
    let up = &up[..n];
    // A whole row is a loop of known length.
    if n == COLUMNS {
        for j in 0..COLUMNS {
            (dgate[j], dout[j]) = swiglu_gradient(gate[j].to_f32(), up[j].to_f32(), dout[j]);
        }
    } else {
        for j in 0..n {
            (dgate[j], dout[j]) = swiglu_gradient(gate[j].to_f32(), up[j].to_f32(), dout[j]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::{assert_close, check_gradient, fixture, on_every_isa, random};

    fn forward(gate: &[f32], up: &[f32]) -> Vec<f32> {
        gate.iter().zip(up).map(|(gate, up)| swiglu(*gate, *up)).collect()
    }

    fn backward(gate: &[f32], up: &[f32], dout: &[f32]) -> [Vec<f32>; 2] {
        let (mut dgate, mut dup) = (vec![0.0; gate.len()], dout.to_vec());
        gradient_of_row(gate, up, &mut dgate, &mut dup);
        [dgate, dup]
    }

    #[test]
    fn as_pytorch() {
        let t = |part: &str| fixture(&format!("swiglu.{part}"));
        let (gate, up, dout) = (t("gate"), t("up"), t("dout"));
        assert_close(&forward(&gate, &up), &t("out"), 1e-6);
        let [dgate, dup] = backward(&gate, &up, &dout);
        assert_close(&dgate, &t("dgate"), 1e-6);
        assert_close(&dup, &t("dup"), 1e-6);
    }

    #[test]
    fn gradient_by_finite_differences() {
        let n = 50;
        let (gate, up, dout) = (random(1, n), random(2, n), random(3, n));
        let [dgate, dup] = backward(&gate, &up, &dout);
        let silu = |x: f64| x / (1.0 + (-x).exp());
        check_gradient(&gate, &dgate, 1e-5, |gate| {
            (0..n).map(|i| silu(gate[i]) * f64::from(up[i]) * f64::from(dout[i])).sum()
        });
        check_gradient(&up, &dup, 1e-5, |up| {
            (0..n).map(|i| silu(f64::from(gate[i])) * up[i] * f64::from(dout[i])).sum()
        });
    }

    #[test]
    fn saturated_gates_stay_finite() {
        let gate = [-1e30, -200.0, -90.0, 90.0, 200.0, 1e30];
        let out = forward(&gate, &[1.0; 6]);
        assert_eq!(out, [0.0, 0.0, 0.0, 90.0, 200.0, 1e30]);
        let [dgate, _] = backward(&gate, &[1.0; 6], &[1.0; 6]);
        assert_eq!(dgate[3..], [1.0; 3]);
        assert!(dgate[..3].iter().all(|x| x.abs() < 1e-30), "{dgate:?}");
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (gate, up, dout) = (random(1, 999), random(2, 999), random(3, 999));
        on_every_isa(|| (0..999).map(|i| swiglu_gradient(gate[i], up[i], dout[i]).0).collect());
        on_every_isa(|| (0..999).map(|i| swiglu(gate[i], up[i])).collect());
    }
}
