//! What the formats of quantized linears have in common: where a reader finds the tensors of a model that may lie in
//! several files, what it checks of them, and what a writer refuses of a grid. No packing of bits.

use std::cell::Cell;
use std::path::Path;

use super::tensor::{Dtype, Tensor, encode_f32, is_float};
use crate::error::{Error, Result};
use crate::quant::{LinearGrid, Scheme};

/// Larger widths are no linear of any model, and their products could overflow.
const WIDEST: usize = 1 << 28;

/// The tensors of a model by name; `path` is for messages.
pub struct Lookup<'a> {
    pub path: &'a Path,
    pub find: &'a dyn Fn(&str) -> Option<Tensor>,
    /// Memory for codes, if there is some from before.
    pub room: Cell<Vec<u8>>,
}

/// Memory for `len` codes, which hold anything. To touch new memory costs as much as to read codes into it, so whoever
/// reads one linear after another hands on what it has.
pub fn room_for(mut room: Vec<u8>, len: usize) -> Vec<u8> {
    if room.capacity() < len {
        return vec![0; len];
    }
    room.resize(len, 0);
    room
}

impl Lookup<'_> {
    pub fn get(&self, name: &str) -> Option<Tensor> {
        (self.find)(name)
    }

    pub fn room(&self, len: usize) -> Vec<u8> {
        room_for(self.room.take(), len)
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
        let t = self.need(name)?;
        if !is_float(t.dtype) || t.shape != shape {
            let found = format!("{name} is {:?} {:?}", t.dtype, t.shape);
            return Err(self.bad(found, format!("F16, BF16 or F32 {shape:?}")));
        }
        let scale = t.to_f32();
        match scale.iter().find(|s| !s.is_finite() || **s <= 0.0) {
            Some(bad) => Err(self.bad(format!("{name} holds {bad}"), "finite positive scales")),
            None => Ok(scale),
        }
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
pub fn encode_scales(grid: &LinearGrid, n: usize, dtype: Dtype, transposed: bool) -> Result<Vec<u8>, String> {
    if n == 0 || !grid.scale.len().is_multiple_of(n) {
        return Err(format!("{} scales for {n} rows", grid.scale.len()));
    }
    let scale = if transposed { transpose(&grid.scale, n) } else { grid.scale.clone() };
    let bytes = encode_f32(&scale, dtype);
    let back = Tensor::owned(bytes.clone(), dtype, vec![scale.len()]).to_f32();
    if let Some(at) = scale.iter().zip(&back).position(|(s, b)| s != b || !s.is_finite() || *s <= 0.0) {
        let groups = grid.scale.len() / n;
        let (row, group) = if transposed { (at % n, at / n) } else { (at / groups, at % groups) };
        let why = format!("not a positive number exact in {dtype:?}");
        return Err(format!("the scale {:e} of row {row}, group {group} is {why}", scale[at]));
    }
    Ok(bytes)
}

/// Unsigned zero points z + 2^(b−1) [G, N]; those of a symmetric scheme are all 2^(b−1).
pub fn zero_codes(grid: &LinearGrid, n: usize, k: usize, scheme: Scheme) -> Result<Vec<u8>, String> {
    let count = n * scheme.groups(k);
    let zero = match &grid.zero {
        None if !scheme.asymmetric => return Ok(vec![1 << (scheme.bits - 1); count]),
        Some(zero) if scheme.asymmetric && zero.len() == count => transpose(zero, n),
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

/// [N, G] to [G, N].
fn transpose(values: &[f32], n: usize) -> Vec<f32> {
    let groups = values.len() / n;
    (0..groups * n).map(|at| values[at % n * groups + at / n]).collect()
}
