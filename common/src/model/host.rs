//! Weights as an artefact hands them over, on the host.

use rayon::prelude::*;

use super::config::Config;
use super::names::LinearName;
use crate::compute::cpu::simd::simd;
use crate::error::Result;
use crate::format::tensor::{Dtype, Tensor};
use crate::quant::{Factors, Integers, LinearGrid, Phi, Rounding, Scheme, grid, pack};

/// Any artefact that holds a whole model.
pub trait Source: Sync {
    fn config(&self) -> &Config;
    /// A tensor that stays floating point ([`names::floats`]).
    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor>;
    fn linear(&self, linear: &LinearName) -> Result<HostLinear>;

    /// The grid of the forward pass of a quantized linear. Where it can be read without the rest, it is.
    fn grid(&self, linear: &LinearName) -> Result<LinearGrid> {
        Ok(self.linear(linear)?.grid())
    }
}

/// A model whose fixed integers keep their scales too: only what lies beside them is trained.
pub struct FixedScales<'a>(pub &'a dyn Source);

impl Source for FixedScales<'_> {
    fn config(&self) -> &Config {
        self.0.config()
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.0.float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        Ok(match self.0.linear(linear)? {
            HostLinear::Codes(w) => {
                let LinearGrid { scale, zero } = w.grid();
                HostLinear::Codes(Codes { scale, zero, master: false, ..w })
            }
            other => other,
        })
    }
}

/// A linear's weight as an artefact holds it.
pub enum HostLinear {
    Float(Tensor),
    Codes(Codes),
    LowRank(HostLowRank),
}

/// Integers that stay as they are. `codes` is I32 [n, words], the packing of compressed-tensors.
pub struct Codes {
    pub scheme: Scheme,
    pub codes: Tensor,
    /// Forward scales [n, G], or their masters.
    pub scale: Vec<f32>,
    /// The scales are masters, which are trained.
    pub master: bool,
    /// Zero points [n, G] on the signed grid, for schemes with `z`.
    pub zero: Option<Vec<f32>>,
    pub adapter: Option<HostAdapter>,
    /// Z [n, k], which the integers are rounded from, where it is learned.
    pub latent: Option<Vec<f32>>,
}

/// Low-rank factors outside the rounding: A [n, r], B [r, k].
pub struct HostAdapter {
    pub rank: usize,
    pub alpha: f32,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
}

pub struct HostLowRank {
    pub scheme: Scheme,
    pub stored: Phi,
    pub phi: Tensor,
    pub rank: usize,
    pub alpha: f32,
    /// Masters [n, G].
    pub scale: Vec<f32>,
    pub zero: Option<Vec<f32>>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
}

impl HostLowRank {
    /// The grid of the forward pass.
    pub fn grid(&self) -> LinearGrid {
        forward_grid(LinearGrid { scale: self.scale.clone(), zero: self.zero.clone() })
    }

    /// What makes the integers of a linear of `k` inputs.
    pub fn rounding(&self, k: usize) -> Rounding<'_> {
        Rounding::new(Factors {
            scheme: self.scheme,
            phi: self.phi.bytes(),
            stored: self.stored,
            a: &self.a,
            b: &self.b,
            rank: self.rank,
            factor: self.alpha / self.rank as f32,
            k,
        })
    }

    /// W_Z = clip(round(Φ0 + α/r·AB)) and the forward scales, packed: what evaluation of a checkpoint computes with.
    pub fn fold(&self, n: usize, k: usize) -> Codes {
        let LinearGrid { scale, zero } = self.grid();
        let rounding = self.rounding(k);
        let codes = pack_codes(self.scheme, n, k, |first, codes| rounding.rows(first, codes));
        Codes::forward(self.scheme, codes, LinearGrid { scale, zero })
    }
}

/// The integers of a quantized linear, some rows at a time.
pub enum IntegerRows<'a> {
    Rounding(Rounding<'a>),
    /// As they are, of `k` inputs.
    Codes(&'a Codes, usize),
}

impl IntegerRows<'_> {
    /// W_Z − qmin of whole rows from row `first` on.
    pub fn rows(&self, first: usize, codes: &mut [u8]) {
        match self {
            IntegerRows::Rounding(rounding) => rounding.rows(first, codes),
            IntegerRows::Codes(w, k) => w.rows(first, *k, codes),
        }
    }
}

impl HostLinear {
    /// The grid of the forward pass. A weight in floating point has none.
    pub fn grid(&self) -> LinearGrid {
        match self {
            HostLinear::LowRank(w) => w.grid(),
            HostLinear::Codes(w) => w.grid(),
            HostLinear::Float(_) => unreachable!("a weight in floating point has no grid"),
        }
    }

    /// What makes its integers, of a linear of `k` inputs.
    pub fn integers(&self, k: usize) -> IntegerRows<'_> {
        match self {
            HostLinear::LowRank(w) => IntegerRows::Rounding(w.rounding(k)),
            HostLinear::Codes(w) => IntegerRows::Codes(w, k),
            HostLinear::Float(_) => unreachable!("a weight in floating point has no integers"),
        }
    }

    /// The frozen weights as they are stored.
    pub fn stored(&self) -> &Tensor {
        match self {
            HostLinear::Float(w) => w,
            HostLinear::Codes(w) => &w.codes,
            HostLinear::LowRank(w) => &w.phi,
        }
    }
}

/// The grid of the forward pass, of one with the masters.
pub fn forward_grid(mut masters: LinearGrid) -> LinearGrid {
    for s in &mut masters.scale {
        *s = grid::forward_scale(*s);
    }
    masters
}

impl Codes {
    /// Packed integers and their forward grid.
    pub fn forward(scheme: Scheme, codes: Tensor, LinearGrid { scale, zero }: LinearGrid) -> Codes {
        Codes { scheme, codes, scale, master: false, zero, adapter: None, latent: None }
    }

    /// The grid of the forward pass.
    pub fn grid(&self) -> LinearGrid {
        let grid = LinearGrid { scale: self.scale.clone(), zero: self.zero.clone() };
        if self.master { forward_grid(grid) } else { grid }
    }

    /// W_Z − qmin of whole rows of `k` from row `first` on.
    pub fn rows(&self, first: usize, k: usize, codes: &mut [u8]) {
        let row_bytes = 4 * pack::words(k, self.scheme.bits);
        for (codes, packed) in codes.chunks_exact_mut(k).zip(self.codes.bytes()[first * row_bytes..].chunks(row_bytes))
        {
            pack::unpack(packed, self.scheme.bits, k, |j, code| codes[j] = code);
        }
    }

    /// Integers that lie unpacked, packed in parallel.
    pub fn pack(scheme: Scheme, n: usize, k: usize, integers: &Integers) -> Codes {
        let words = pack::words(k, scheme.bits);
        let mut bytes = vec![0u8; n * words * 4];
        bytes
            .par_chunks_mut(words * 4)
            .zip(integers.codes.par_chunks(k))
            .for_each_init(|| vec![0u32; words], |packed, (out, codes)| pack_row(codes, scheme.bits, packed, out));
        Codes::forward(scheme, Tensor::owned(bytes, Dtype::I32, vec![n, words]), integers.grid.clone())
    }
}

/// Rounds and packs Z, made by `real` for a few rows from row `first` on, in parallel (`real` must be
/// `#[inline(always)]`, to be compiled for the machine's instruction set).
pub fn pack_rows(scheme: Scheme, n: usize, k: usize, real: impl Fn(usize, &mut [f32]) + Sync) -> Tensor {
    let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
    pack_codes(scheme, n, k, |first, codes| {
        let mut z = vec![0.0; codes.len()];
        simd(
            #[inline(always)]
            || {
                real(first, &mut z);
                for (code, z) in codes.iter_mut().zip(&z) {
                    *code = grid::unsigned_code(*z, qmin, qmax);
                }
            },
        );
    })
}

/// Packs codes, W_Z − qmin, made by `make` for a few rows from row `first` on, in parallel.
fn pack_codes(scheme: Scheme, n: usize, k: usize, make: impl Fn(usize, &mut [u8]) + Sync) -> Tensor {
    const ROWS: usize = 16;
    let words = pack::words(k, scheme.bits);
    let mut bytes = vec![0u8; n * words * 4];
    bytes.par_chunks_mut(ROWS * words * 4).enumerate().for_each_init(
        || (vec![0; ROWS * k], vec![0; words]),
        |(codes, packed), (block, out)| {
            let codes = &mut codes[..out.len() / (4 * words) * k];
            make(block * ROWS, codes);
            for (codes, out) in codes.chunks_exact(k).zip(out.chunks_exact_mut(4 * words)) {
                pack_row(codes, scheme.bits, packed, out);
            }
        },
    );
    Tensor::owned(bytes, Dtype::I32, vec![n, words])
}

fn pack_row(codes: &[u8], bits: u32, packed: &mut [u32], out: &mut [u8]) {
    packed.fill(0);
    pack::pack(codes, bits, packed);
    for (out, word) in out.chunks_exact_mut(4).zip(packed) {
        out.copy_from_slice(&word.to_le_bytes());
    }
}
