//! What the formats of quantized linears have in common: where a reader finds the tensors of a model that may lie in
//! several files, what it checks of them, how it hands out integers, and what a writer refuses of a grid. No packing of
//! bits.

use std::borrow::Cow;
use std::path::Path;

use rayon::prelude::*;

use super::spare::Spare;
use super::tensor::{Dtype, Tensor, decode_f32, encode_f32, is_float};
use crate::error::{Error, Result};
use crate::quant::{Integers, LinearGrid, Scheme, Symmetry};

/// Larger widths are no linear of any model, and their products could overflow.
const WIDEST: usize = 1 << 28;

/// The tensors of a model by name; `path` is for messages.
pub struct Lookup<'a> {
    pub path: &'a Path,
    pub find: &'a dyn Fn(&str) -> Option<Tensor>,
}

impl Lookup<'_> {
    pub fn get(&self, name: &str) -> Option<Tensor> {
        (self.find)(name)
    }

    /// An error about the file, with the one cure that is left to a reader.
    pub fn bad(&self, found: String, expected: impl Into<String>) -> Error {
        Error::input(self.path, found, expected.into(), "quantize or fold the model again")
    }

    fn need(&self, name: &str) -> Result<Tensor> {
        self.get(name).ok_or_else(|| self.bad(format!("no tensor {name}"), "it to be there"))
    }

    /// A tensor that must be there, of this type and shape.
    pub fn expect(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
        let t = self.need(name)?;
        if t.dtype != dtype || t.shape != shape {
            return Err(self.bad(format!("{name} is {:?} {:?}", t.dtype, t.shape), format!("{dtype:?} {shape:?}")));
        }
        Ok(t)
    }

    /// Scales of any floating-point type; finite and positive, since an engine takes whatever they are.
    pub fn scales(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.scales_but(name, shape, |s| !s.is_finite() || s <= 0.0, "finite positive scales")
    }

    /// Scales that may be negative where the scheme says so: [`Stored::upright`] takes them.
    pub fn signed_scales(&self, name: &str, shape: &[usize], scheme: Scheme) -> Result<Vec<f32>> {
        if scheme.symmetry != Symmetry::Signed {
            return self.scales(name, shape);
        }
        self.scales_but(name, shape, |s| !s.is_finite() || s == 0.0, "finite scales other than 0")
    }

    fn scales_but(&self, name: &str, shape: &[usize], bad: impl Fn(f32) -> bool, expected: &str) -> Result<Vec<f32>> {
        let t = self.need(name)?;
        if !is_float(t.dtype) || t.shape != shape {
            let found = format!("{name} is {:?} {:?}", t.dtype, t.shape);
            return Err(self.bad(found, format!("F16, BF16 or F32 {shape:?}")));
        }
        let scale = t.to_f32();
        // A look at all of them is vectorized, a search is not.
        if !scale.iter().fold(false, |any, s| any | bad(*s)) {
            return Ok(scale);
        }
        let found = scale.iter().copied().find(|s| bad(*s)).unwrap_or(f32::NAN);
        Err(self.bad(format!("{name} holds {found}"), expected))
    }

    /// Whether one of these scales is negative; a tensor that is not there or holds no floats has none. The pages of the file
    /// are let go of.
    pub fn any_negative(&self, name: &str) -> bool {
        let Some(t) = self.get(name).filter(|t| is_float(t.dtype)) else { return false };
        // The sign is the highest bit of the last byte.
        let negative = |any, s: &[u8]| any | (s[s.len() - 1] & 0x80 != 0);
        let any = t.bytes().chunks_exact(t.dtype.bitsize() / 8).fold(false, negative);
        t.forget();
        any
    }

    /// Some writers give every linear a bias of zeros; one that is not zero would be lost here.
    pub fn no_bias(&self, linear: &str) -> Result<()> {
        let name = format!("{linear}.bias");
        match self.get(&name) {
            Some(t) if !is_float(t.dtype) => Err(self.bad(format!("{name} is {:?}", t.dtype), "floating point")),
            Some(t) if t.to_f32().iter().any(|b| *b != 0.0) => Err(Error::input(
                self.path,
                format!("{name} is not zero"),
                "linears without a bias",
                "choose a LLaMA or Mistral model",
            )),
            _ => Ok(()),
        }
    }
}

/// Fills whole rows of codes from a row on, out of the bytes that hold them. Where these hold the grid as well, gives that
/// of the rows.
pub type ReadRows = Box<dyn Fn(&[u8], usize, &mut [u8]) -> Result<Option<LinearGrid>> + Send + Sync>;

/// A linear [n, k] as a reader found it: checked, its integers still packed.
pub struct Stored {
    pub n: usize,
    pub k: usize,
    /// What the integers are packed in.
    pub packed: Tensor,
    /// None where it lies among the integers.
    pub grid: Option<LinearGrid>,
    /// Rows that are read at a time, so that they take whole cache lines of the file.
    pub together: usize,
    pub read: ReadRows,
}

impl Stored {
    /// The same weights by positive scales, where those of a symmetric file may be negative: W_Z·s is (−1 − W_Z + 1)·(−s), so
    /// that the codes are mirrored and the zero point is −1.
    pub fn upright(mut self, scheme: Scheme) -> Stored {
        let Some(grid) = self.grid.as_mut().filter(|_| scheme.symmetry == Symmetry::Signed) else { return self };
        let turned: Vec<bool> = grid.scale.iter().map(|s| *s < 0.0).collect();
        grid.scale.iter_mut().for_each(|s| *s = s.abs());
        grid.zero = Some(turned.iter().map(|turned| if *turned { -1.0 } else { 0.0 }).collect());
        let (group, groups, top) = (scheme.group_size(self.k), scheme.groups(self.k), u8::MAX >> (8 - scheme.bits));
        let read = self.read;
        self.read = Box::new(move |packed, first, codes| {
            let grid = read(packed, first, codes)?;
            for (codes, turned) in codes.chunks_exact_mut(group).zip(&turned[first * groups..]) {
                if *turned {
                    codes.iter_mut().for_each(|u| *u ^= top);
                }
            }
            Ok(grid)
        });
        self
    }

    /// Hands out the codes, W_Z − qmin, some whole rows from a row on at a time, in parallel: they need not leave the cache.
    /// What `each` makes of them comes back in the order of the rows. The pages of the file are let go of.
    pub fn visit<T: Send>(
        &self,
        spare: &Spare<Vec<u8>>,
        each: impl Fn(usize, &[u8]) -> T + Sync,
    ) -> Result<(LinearGrid, Vec<T>)> {
        let (n, k, bytes) = (self.n, self.k, self.packed.bytes());
        let blocks = (0..n.div_ceil(self.together)).into_par_iter().with_max_len(1);
        let visited = blocks.map(|block| {
            let first = block * self.together;
            spare.lend(|codes| {
                codes.resize(self.together.min(n - first) * k, 0);
                let grid = (self.read)(bytes, first, codes)?;
                Ok((grid, each(first, codes)))
            })
        });
        let visited: Vec<Result<_>> = visited.collect();
        self.packed.forget();
        // In order, so that of several errors the first is told.
        let (grids, made): (Vec<_>, Vec<T>) = visited.into_iter().collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok((self.joined(grids), made))
    }

    /// All integers. The pages of the file are let go of.
    pub fn integers(&self) -> Result<Integers> {
        let mut codes = vec![0; self.n * self.k];
        let bytes = self.packed.bytes();
        let blocks = codes.par_chunks_mut(self.together * self.k).enumerate();
        let grids: Vec<Result<_>> =
            blocks.map(|(block, codes)| (self.read)(bytes, block * self.together, codes)).collect();
        self.packed.forget();
        let grid = self.joined(grids.into_iter().collect::<Result<_>>()?);
        Ok(Integers { codes, grid })
    }

    /// The grid of the linear, which was known, or is joined from those of its rows.
    fn joined(&self, of_rows: Vec<Option<LinearGrid>>) -> LinearGrid {
        if let Some(grid) = &self.grid {
            return grid.clone();
        }
        let (mut scale, mut zero) = (Vec::new(), None);
        for grid in of_rows.into_iter().flatten() {
            scale.extend(grid.scale);
            if let Some(rows) = grid.zero {
                zero.get_or_insert_with(Vec::new).extend(rows);
            }
        }
        LinearGrid { scale, zero }
    }
}

/// What lies as [G, N], row by row: for readers, who take nothing from writers.
pub fn by_row(values: &[f32], groups: usize) -> Vec<f32> {
    let n = values.len() / groups;
    let mut out = Vec::with_capacity(values.len());
    for row in 0..n {
        out.extend((0..groups).map(|group| values[group * n + row]));
    }
    out
}

/// Why no format can hold such a linear.
pub fn unfit(n: usize, k: usize, scheme: Scheme) -> Option<String> {
    if n == 0 || k == 0 || n > WIDEST || k > WIDEST {
        return Some(format!("a shape of [{n}, {k}], which is no linear"));
    }
    if !(2..=8).contains(&scheme.bits) {
        return Some(format!("codes of {} bits, and 2 to 8 can be written", scheme.bits));
    }
    let g = scheme.group_size(k);
    (g == 0 || !k.is_multiple_of(g)).then(|| format!("a group of {g} does not divide {k} inputs"))
}

/// Scales [N, G] in `dtype`, [G, N] where `transposed`. One that is not exact there is refused, never rounded.
pub fn encode_scales(
    grid: &LinearGrid,
    n: usize,
    scheme: Scheme,
    dtype: Dtype,
    transposed: bool,
) -> Result<Vec<u8>, String> {
    if n == 0 || !grid.scale.len().is_multiple_of(n) {
        return Err(format!("{} scales for {n} rows", grid.scale.len()));
    }
    let scale = grid.stored_scale(scheme);
    let scale = if transposed { Cow::Owned(transpose(&scale, n)) } else { scale };
    let bytes = encode_f32(&scale, dtype);
    let mut back = vec![0.0; scale.len()];
    decode_f32(&bytes, dtype, &mut back);
    let signed = scheme.symmetry == Symmetry::Signed;
    let bad = |(s, b): (&f32, &f32)| s != b || !s.is_finite() || *s == 0.0 || (*s < 0.0 && !signed);
    // A look at all of them is vectorized, a search is not.
    if !scale.iter().zip(&back).fold(false, |any, pair| any | bad(pair)) {
        return Ok(bytes);
    }
    let at = scale.iter().zip(&back).position(bad).unwrap_or(0);
    let groups = grid.scale.len() / n;
    let (row, group) = if transposed { (at % n, at / n) } else { (at / groups, at % groups) };
    let why = format!("not a positive number exact in {dtype:?}");
    Err(format!("the scale {:e} of row {row}, group {group} is {why}", scale[at]))
}

/// Unsigned zero points z + 2^(b−1) [G, N]; those that files do not say are all 2^(b−1).
pub fn zero_codes(grid: &LinearGrid, n: usize, k: usize, scheme: Scheme) -> Result<Vec<u8>, String> {
    let count = n * scheme.groups(k);
    let zero = match &grid.zero {
        zero if !scheme.stores_zero_points() && zero.is_some() == scheme.has_zero_points() => {
            return Ok(vec![1 << (scheme.bits - 1); count]);
        }
        Some(zero) if scheme.stores_zero_points() && zero.len() == count => transpose(zero, n),
        _ => return Err(format!("the zero points are not those of {scheme} for [{n}, {k}]")),
    };
    let code = |(at, z): (usize, &f32)| {
        if z.fract() == 0.0 && (scheme.qmin()..=scheme.qmax()).contains(z) {
            return Ok((z - scheme.qmin()) as u8);
        }
        let range = format!("a whole number from {} to {}", scheme.qmin(), scheme.qmax());
        Err(format!("the zero point {z} of row {}, group {} is not {range}", at % n, at / n))
    };
    zero.iter().enumerate().map(code).collect()
}

/// [rows, N] to [N, rows].
fn transpose(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    let mut out = vec![0.0; values.len()];
    // Some rows at a time, whose values share cache lines of the result.
    for (block, some) in values.chunks(16 * columns.max(1)).enumerate() {
        for column in 0..columns {
            let out = &mut out[column * rows + 16 * block..];
            for (out, row) in out.iter_mut().zip(some.chunks_exact(columns)) {
                *out = row[column];
            }
        }
    }
    out
}
