//! Weights as products read them: rows of Ŵ made from the stored form, rounded to the compute type.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::product::Rows;
use super::simd::simd;
use crate::compute::backend::{Codes, LowRank, Weight};
use crate::format::tensor::{Dtype, Tensor};
use crate::quant::grid::{self, COLUMNS, ROWS};
use crate::quant::lanes;
use crate::quant::{Factors, RealWeight, Rounding, Scheme, pack};

/// A weight [n, k] whose Ŵ is made where it is needed.
pub enum MadeWeight<'a, E> {
    Float(FloatRows<'a, E>),
    Quantized(Box<QuantizedRows<'a, E>>),
}

impl<'a, E: Element> MadeWeight<'a, E> {
    pub fn new(w: &'a Weight<'a, Cpu<E>>) -> MadeWeight<'a, E> {
        match w {
            Weight::Float { w, n, k } => MadeWeight::Float(FloatRows::new(w, *n, *k)),
            Weight::Codes(w) => MadeWeight::Quantized(Box::new(QuantizedRows::of_codes(w))),
            Weight::LowRank(w) => MadeWeight::Quantized(Box::new(QuantizedRows::of_low_rank(w))),
        }
    }
}

impl<E: Element> Rows for MadeWeight<'_, E> {
    type E = E;

    fn n(&self) -> usize {
        match self {
            MadeWeight::Float(w) => w.n,
            MadeWeight::Quantized(w) => w.n,
        }
    }

    fn k(&self) -> usize {
        match self {
            MadeWeight::Float(w) => w.k,
            MadeWeight::Quantized(w) => w.grid.k,
        }
    }

    fn make(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [E]) {
        match self {
            MadeWeight::Float(w) => w.make(rows, columns, out),
            MadeWeight::Quantized(w) => w.make(rows, columns, out),
        }
    }
}

/// A weight stored in floating point.
pub struct FloatRows<'a, E> {
    tensor: &'a Tensor,
    n: usize,
    k: usize,
    _of: PhantomData<E>,
}

impl<'a, E: Element> FloatRows<'a, E> {
    pub fn new(tensor: &'a Tensor, n: usize, k: usize) -> FloatRows<'a, E> {
        FloatRows { tensor, n, k, _of: PhantomData }
    }
}

impl<E: Element> Rows for FloatRows<'_, E> {
    type E = E;

    fn n(&self) -> usize {
        self.n
    }

    fn k(&self) -> usize {
        self.k
    }

    fn make(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [E]) {
        let bytes = self.tensor.bytes();
        simd(
            #[inline(always)]
            || {
                for (row, out) in rows.zip(out.chunks_exact_mut(columns.len())) {
                    let at = row * self.k + columns.start..row * self.k + columns.end;
                    match (self.tensor.dtype, E::as_bf16_mut(out)) {
                        (Dtype::BF16, Some(out)) => {
                            bytemuck::cast_slice_mut(out).copy_from_slice(&bytes[2 * at.start..2 * at.end]);
                        }
                        _ => {
                            let mut wide = [0f32; 256];
                            for (i, out) in out.chunks_mut(256).enumerate() {
                                let from = at.start + 256 * i;
                                self.tensor.read_f32(from..from + out.len(), &mut wide[..out.len()]);
                                for (out, x) in out.iter_mut().zip(&wide) {
                                    *out = E::from_f32(*x);
                                }
                            }
                        }
                    }
                }
            },
        );
    }
}

/// Integers on a grid: W_Z itself, or Φ0 with A and B, which give round(Z).
pub struct QuantizedRows<'a, E> {
    pub stored: Stored<'a>,
    /// What was kept of every weight [n, k]: [`grid::kept`], or W_Z.
    integers: Option<&'a [i8]>,
    pub grid: GridRows<'a>,
    pub n: usize,
    _of: PhantomData<E>,
}

pub enum Stored<'a> {
    Codes(&'a Tensor),
    Real(RealWeight<'a>),
}

impl<'a, E: Element> QuantizedRows<'a, E> {
    fn of_codes(w: &'a Codes<'a, Cpu<E>>) -> QuantizedRows<'a, E> {
        let scale = if w.master { forward_scales(w.scale) } else { Cow::Borrowed(&w.scale[..]) };
        QuantizedRows {
            stored: Stored::Codes(w.codes),
            integers: w.integers.map(|i| &i[..]),
            grid: GridRows::new(w.scheme, w.k, scale, w.zero.map(|z| &z[..])),
            n: w.n,
            _of: PhantomData,
        }
    }

    fn of_low_rank(w: &LowRank<'a, Cpu<E>>) -> QuantizedRows<'a, E> {
        QuantizedRows {
            stored: Stored::Real(RealWeight::new(factors(w))),
            integers: w.integers.filter(|_| fits_a_byte(w.scheme)).map(|i| &i[..]),
            grid: GridRows::new(w.scheme, w.k, forward_scales(w.scale), w.zero.map(|z| &z[..])),
            n: w.n,
            _of: PhantomData,
        }
    }

    /// round(Z) of a block: of the integers that were kept, or made. Clipped ones may lie anywhere beyond the grid.
    #[inline(always)]
    pub fn rounded(&self, rows: Range<usize>, columns: Range<usize>) -> [[f32; COLUMNS]; ROWS] {
        let Some(integers) = self.integers else {
            return match &self.stored {
                Stored::Codes(codes) => self.unpacked(codes, rows, columns),
                Stored::Real(real) => {
                    // Loops, not map(): what is not inlined is not compiled for the instruction set.
                    let mut z = real.block(rows, columns);
                    for z in z.as_flattened_mut() {
                        *z = grid::round(*z);
                    }
                    z
                }
            };
        };
        let mut block = [[0f32; COLUMNS]; ROWS];
        for (out, row) in block.iter_mut().zip(rows) {
            let kept = &integers[row * self.grid.k..][columns.clone()];
            match <&[i8; COLUMNS]>::try_from(kept) {
                Ok(kept) => {
                    for j in 0..COLUMNS {
                        out[j] = f32::from(kept[j]);
                    }
                }
                Err(_) => {
                    for (out, kept) in out.iter_mut().zip(kept) {
                        *out = f32::from(*kept);
                    }
                }
            }
        }
        block
    }

    #[inline(always)]
    fn unpacked(&self, codes: &Tensor, rows: Range<usize>, columns: Range<usize>) -> [[f32; COLUMNS]; ROWS] {
        let GridRows { scheme, k, .. } = self.grid;
        let (row_bytes, offset) = (4 * pack::words(k, scheme.bits), scheme.qmin());
        // 32 codes are whole words.
        let first = 4 * pack::words(columns.start, scheme.bits);
        let words = first..first + 4 * pack::words(columns.len(), scheme.bits);
        let mut block = [[0f32; COLUMNS]; ROWS];
        for (out, row) in block.iter_mut().zip(rows) {
            let packed = &codes.bytes()[row * row_bytes..][words.clone()];
            pack::unpack(packed, scheme.bits, columns.len(), |j, code| out[j] = f32::from(code) + offset);
        }
        block
    }

    /// Brings what [`QuantizedRows::rounded`] reads of these rows, as far as there are any, ahead of its use.
    #[inline(always)]
    pub fn fetch(&self, rows: Range<usize>, columns: Range<usize>) {
        match self.integers {
            None => {
                if let Stored::Real(real) = &self.stored {
                    real.fetch(rows, columns);
                }
            }
            Some(integers) => {
                for row in integers.chunks_exact(self.grid.k).take(rows.end).skip(rows.start) {
                    lanes::fetch(&row[columns.clone()]);
                }
            }
        }
    }

    fn make(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [E]) {
        let (qmin, qmax) = (self.grid.scheme.qmin(), self.grid.scheme.qmax());
        let width = columns.len();
        self.fetch(rows.end..rows.end + rows.len(), columns.clone());
        simd(
            #[inline(always)]
            || {
                // Columns first: a panel of B, once in the cache, serves all rows.
                for from in columns.clone().step_by(COLUMNS) {
                    let some = from..(from + COLUMNS).min(columns.end);
                    for first in rows.clone().step_by(ROWS) {
                        let block = first..(first + ROWS).min(rows.end);
                        let z = self.rounded(block.clone(), some.clone());
                        for (row, z) in block.zip(&z) {
                            let at = (row - rows.start) * width + from - columns.start;
                            let (scale, zero) = self.grid.columns(row, from, some.len());
                            each(
                                &mut out[at..at + some.len()],
                                #[inline(always)]
                                |j| {
                                    let code = grid::code(z[j], qmin, qmax);
                                    E::from_f32(grid::dequantize(code, zero[j], scale[j]))
                                },
                            );
                        }
                    }
                }
            },
        );
    }
}

/// Sets at most [`COLUMNS`] elements, a whole row without leaving registers.
#[inline(always)]
fn each<T>(to: &mut [T], of: impl Fn(usize) -> T) {
    match <&mut [T; COLUMNS]>::try_from(&mut *to) {
        Ok(to) => {
            for (j, to) in to.iter_mut().enumerate() {
                *to = of(j);
            }
        }
        Err(_) => {
            for (j, to) in to.iter_mut().enumerate() {
                *to = of(j);
            }
        }
    }
}

/// A step beyond the grid on each side still fits a signed byte.
fn fits_a_byte(scheme: Scheme) -> bool {
    scheme.bits < 8
}

/// So many rows that a panel of B, once in the cache, serves some blocks.
const TOGETHER: usize = 8 * ROWS;

/// Keeps round(Z) of a whole low-rank weight, if it fits, or W_Z of one with fixed integers.
pub fn round_all<E: Element>(w: &Weight<Cpu<E>>, to: &mut [i8]) {
    let (n, k) = w.shape();
    let to = to[..n * k].par_chunks_mut(TOGETHER * k).enumerate();
    match w {
        Weight::LowRank(w) if fits_a_byte(w.scheme) => {
            let rounding = Rounding::new(factors(w));
            to.for_each(|(i, to)| rounding.kept(i * TOGETHER, to));
        }
        Weight::Codes(w) => {
            let (row_bytes, least) = (4 * pack::words(k, w.scheme.bits), w.scheme.qmin() as i8);
            to.zip(w.codes.bytes().par_chunks(TOGETHER * row_bytes)).for_each(|((_, to), packed)| {
                for (to, packed) in to.chunks_exact_mut(k).zip(packed.chunks_exact(row_bytes)) {
                    pack::unpack(packed, w.scheme.bits, k, |j, code| to[j] = (code as i8).wrapping_add(least));
                }
            });
        }
        _ => {}
    }
}

/// The scales of the forward pass, of the masters.
fn forward_scales(masters: &[f32]) -> Cow<'_, [f32]> {
    masters.iter().map(|s| grid::forward_scale(*s)).collect()
}

/// What Z is made of.
fn factors<'a, E: Element>(w: &LowRank<'a, Cpu<E>>) -> Factors<'a> {
    Factors {
        scheme: w.scheme,
        phi: w.phi.bytes(),
        stored: w.stored,
        a: w.a,
        b: w.b,
        rank: w.rank,
        factor: w.factor,
        k: w.k,
    }
}

/// Scales and zero points by row and column.
pub struct GridRows<'a> {
    pub scheme: Scheme,
    pub k: usize,
    pub groups: usize,
    pub group: usize,
    /// Forward scales [n, G].
    scale: Cow<'a, [f32]>,
    zero: Option<&'a [f32]>,
}

impl<'a> GridRows<'a> {
    fn new(scheme: Scheme, k: usize, scale: Cow<'a, [f32]>, zero: Option<&'a [f32]>) -> GridRows<'a> {
        let groups = scheme.groups(k);
        GridRows { scheme, k, groups, group: k / groups, scale, zero }
    }

    /// The group that these columns share, if it is one.
    #[inline(always)]
    pub fn shared_group(&self, from: usize, columns: usize) -> Option<usize> {
        let group = from / self.group;
        ((from + columns - 1) / self.group == group).then_some(group)
    }

    /// Scale and zero point of `columns` (at most [`COLUMNS`]) of a row.
    #[inline(always)]
    pub fn columns(&self, row: usize, from: usize, columns: usize) -> ([f32; COLUMNS], [f32; COLUMNS]) {
        let first = row * self.groups;
        let zero_at = |group: usize| self.zero.map_or(0.0, |z| z[first + group]);
        if let Some(group) = self.shared_group(from, columns) {
            return ([self.scale[first + group]; COLUMNS], [zero_at(group); COLUMNS]);
        }
        let (mut scale, mut zero) = ([0.0; COLUMNS], [0.0; COLUMNS]);
        for j in 0..columns {
            let group = (from + j) / self.group;
            scale[j] = self.scale[first + group];
            zero[j] = zero_at(group);
        }
        (scale, zero)
    }
}
