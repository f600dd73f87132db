//! The weights of a model: how an artefact hands them over (on the host), and as they lie on the device.

use rayon::prelude::*;

use super::config::Config;
use super::names::{self, LinearName};
use super::params::{ParamSpec, Params, Rate};
use super::rope::inverse_frequencies;
use crate::compute::backend::{self, Adapter, Backend, Gradients, LowRank, Weight};
use crate::compute::cpu::simd::simd;
use crate::compute::dropout;
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
        Codes { scheme, codes, scale, master: false, zero, adapter: None }
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

/// A linear on the device.
pub struct Linear<B: Backend> {
    pub name: String,
    n: usize,
    k: usize,
    stored: Stored<B>,
}

enum Stored<B: Backend> {
    Float(B::Frozen),
    Codes {
        codes: B::Frozen,
        scheme: Scheme,
        scale: Scale<B>,
        zero: Option<B::Buffer>,
        adapter: Option<Beside>,
    },
    LowRank {
        phi: B::Frozen,
        stored: Phi,
        scheme: Scheme,
        zero: Option<B::Buffer>,
        rank: usize,
        factor: f32,
        /// Row of the scale in the parameter table; A and B follow.
        params: usize,
    },
}

enum Scale<B: Backend> {
    Forward(B::Buffer),
    /// The row of the master in the parameter table.
    Master(usize),
}

/// An adapter: the row of A in the parameter table; B follows.
struct Beside {
    rank: usize,
    factor: f32,
    params: usize,
}

impl<B: Backend> Linear<B> {
    fn load(backend: &B, name: &LinearName, host: &HostLinear, params: &mut Params<B>) -> Result<Linear<B>> {
        let (n, k) = (name.n, name.k);
        let upload = |zero: &Option<Vec<f32>>| zero.as_deref().map(|z| backend.upload(z)).transpose();
        let mut add = |suffix: &str, shape: Vec<usize>, rate, value: &[f32]| {
            params.add(backend, ParamSpec { name: format!("{}.{suffix}", name.name), shape, rate }, value)
        };
        let stored = match host {
            HostLinear::Float(t) => Stored::Float(backend.freeze(t)?),
            HostLinear::Codes(c) => {
                let scale = if c.master {
                    Scale::Master(add("scale", vec![n, c.scheme.groups(k)], Rate::Scale, &c.scale)?)
                } else {
                    Scale::Forward(backend.upload(&c.scale)?)
                };
                let mut adapter = None;
                if let Some(HostAdapter { rank, alpha, a, b }) = &c.adapter {
                    let row = add("lora_a", vec![n, *rank], Rate::LowRank, a)?;
                    add("lora_b", vec![*rank, k], Rate::LowRank, b)?;
                    adapter = Some(Beside { rank: *rank, factor: alpha / *rank as f32, params: row });
                }
                Stored::Codes {
                    codes: backend.freeze(&c.codes)?,
                    scheme: c.scheme,
                    scale,
                    zero: upload(&c.zero)?,
                    adapter,
                }
            }
            HostLinear::LowRank(w) => {
                let row = add("scale", vec![n, w.scheme.groups(k)], Rate::Scale, &w.scale)?;
                add("lora_a", vec![n, w.rank], Rate::LowRank, &w.a)?;
                add("lora_b", vec![w.rank, k], Rate::LowRank, &w.b)?;
                Stored::LowRank {
                    phi: backend.freeze(&w.phi)?,
                    stored: w.stored,
                    scheme: w.scheme,
                    zero: upload(&w.zero)?,
                    rank: w.rank,
                    factor: w.alpha / w.rank as f32,
                    params: row,
                }
            }
        };
        Ok(Linear { name: name.name.clone(), n, k, stored })
    }

    fn weight<'a>(
        &'a self,
        params: &'a [B::Buffer],
        integers: Option<&'a B::Integers>,
        dropout: Option<&dropout::Pass>,
    ) -> Weight<'a, B> {
        let (n, k) = (self.n, self.k);
        match &self.stored {
            Stored::Float(w) => Weight::Float { w, n, k },
            Stored::Codes { codes, scheme, scale, zero, adapter } => {
                let (scale, master) = match scale {
                    Scale::Forward(scale) => (scale, false),
                    Scale::Master(row) => (&params[*row], true),
                };
                let adapter = adapter.as_ref().map(|of| Adapter {
                    a: &params[of.params],
                    b: &params[of.params + 1],
                    rank: of.rank,
                    factor: of.factor,
                    dropout: dropout.and_then(|pass| pass.of_linear(of.params as u64)),
                });
                let (scheme, zero) = (*scheme, zero.as_ref());
                Weight::Codes(backend::Codes { codes, scheme, scale, master, zero, integers, adapter, n, k })
            }
            Stored::LowRank { phi, stored, scheme, zero, rank, factor, params: row } => Weight::LowRank(LowRank {
                phi,
                stored: *stored,
                scheme: *scheme,
                scale: &params[*row],
                zero: zero.as_ref(),
                integers,
                a: &params[row + 1],
                b: &params[row + 2],
                rank: *rank,
                factor: *factor,
                n,
                k,
            }),
        }
    }

    /// Rows of the parameter table: the first, whether it is a scale, whether A and B follow.
    fn rows(&self) -> Option<(usize, bool, bool)> {
        match &self.stored {
            Stored::LowRank { params, .. } => Some((*params, true, true)),
            Stored::Codes { scale: Scale::Master(row), adapter, .. } => Some((*row, true, adapter.is_some())),
            Stored::Codes { adapter: Some(of), .. } => Some((of.params, false, true)),
            Stored::Codes { .. } | Stored::Float(_) => None,
        }
    }

    /// The rows of the gradient table that belong to these linears, which are in the order of the model.
    pub fn grads<'a, const N: usize>(
        linears: [&Linear<B>; N],
        grads: &'a mut [B::Buffer],
    ) -> [Option<Gradients<'a, B>>; N] {
        let (mut rest, mut passed) = (grads, 0);
        linears.map(|linear| {
            let (row, scale, factors) = linear.rows()?;
            let count = usize::from(scale) + 2 * usize::from(factors);
            let (own, after) = std::mem::take(&mut rest).split_at_mut(row - passed).1.split_at_mut(count);
            (rest, passed) = (after, row + count);
            let (of_scale, own) = own.split_at_mut(usize::from(scale));
            let factors = if let [a, b] = own { Some([a, b]) } else { None };
            Some(Gradients { scale: of_scale.first_mut(), factors })
        })
    }
}

/// One transformer block; its linears are in the order of [`names::LINEARS`].
pub struct Block<B: Backend> {
    pub attention_norm: B::Buffer,
    pub mlp_norm: B::Buffer,
    pub linears: [Linear<B>; 7],
}

/// A transformer block as an artefact holds it.
pub struct HostBlock {
    attention_norm: Tensor,
    mlp_norm: Tensor,
    linears: Vec<(LinearName, HostLinear)>,
}

impl HostBlock {
    pub fn read(source: &dyn Source, layer: usize) -> Result<HostBlock> {
        let config = source.config();
        let norm = |name: String| source.float(&name, &[config.d]);
        let linears = names::block_linears(config, layer).into_iter().map(|name| {
            let host = source.linear(&name)?;
            Ok((name, host))
        });
        Ok(HostBlock {
            attention_norm: norm(names::attention_norm(layer))?,
            mlp_norm: norm(names::mlp_norm(layer))?,
            linears: linears.collect::<Result<_>>()?,
        })
    }

    pub fn load<B: Backend>(&self, backend: &B, params: &mut Params<B>) -> Result<Block<B>> {
        let linears = self.linears.iter().map(|(name, host)| Linear::load(backend, name, host, params));
        let linears = linears.collect::<Result<Vec<_>>>()?;
        Ok(Block {
            attention_norm: backend.upload(&self.attention_norm.to_f32())?,
            mlp_norm: backend.upload(&self.mlp_norm.to_f32())?,
            linears: linears.try_into().unwrap_or_else(|_| unreachable!("a block has seven linears")),
        })
    }

    fn weights(&self) -> impl Iterator<Item = &Tensor> {
        self.linears.iter().map(|(_, host)| host.stored())
    }

    /// Bytes of its linears as they are stored.
    pub fn bytes(&self) -> usize {
        self.weights().map(|w| w.bytes().len()).sum()
    }

    /// Whether all of them can be let go of.
    pub fn is_mapped(&self) -> bool {
        self.weights().all(Tensor::is_mapped)
    }

    /// Lets go of the pages of what is mapped.
    pub fn forget(&self) {
        self.weights().for_each(Tensor::forget);
    }
}

/// A whole model on a device.
pub struct Model<B: Backend> {
    pub config: Config,
    pub embedding: B::Frozen,
    head: Option<B::Frozen>,
    pub norm: B::Buffer,
    pub blocks: Vec<Block<B>>,
    pub rope: B::Rope,
    /// Longest sequence the rotary table holds.
    pub positions: usize,
    pub params: Params<B>,
    /// What the masks of adapters have in common, in training.
    pub dropout: Option<dropout::Pass>,
}

impl<B: Backend> Model<B> {
    /// Loads `source` for sequences of up to `positions` tokens.
    pub fn load(backend: &B, source: &dyn Source, positions: usize) -> Result<Model<B>> {
        let mut model = Model::without_blocks(backend, source, positions)?;
        for layer in 0..model.config.layers {
            model.blocks.push(HostBlock::read(source, layer)?.load(backend, &mut model.params)?);
        }
        Ok(model)
    }

    /// All but the blocks.
    pub fn without_blocks(backend: &B, source: &dyn Source, positions: usize) -> Result<Model<B>> {
        let config = source.config().clone();
        let matrix = |name: &str| backend.freeze(&source.float(name, &[config.vocab, config.d])?);
        let table = |name: &str| backend.freeze_table(&source.float(name, &[config.vocab, config.d])?);
        Ok(Model {
            embedding: if config.tied { matrix(names::EMBEDDING)? } else { table(names::EMBEDDING)? },
            head: if config.tied { None } else { Some(matrix(names::HEAD)?) },
            norm: backend.upload(&source.float(names::NORM, &[config.d])?.to_f32())?,
            blocks: Vec::with_capacity(config.layers),
            rope: backend.rope_table(&inverse_frequencies(&config.rope, config.head_dim), positions)?,
            positions,
            params: Params::new(),
            dropout: None,
            config,
        })
    }

    /// The weight as the backend's ops take it, with its integers where they were kept.
    pub fn weight<'a>(&'a self, linear: &'a Linear<B>, integers: Option<&'a B::Integers>) -> Weight<'a, B> {
        linear.weight(&self.params.values, integers, self.dropout.as_ref())
    }

    pub fn head(&self) -> Weight<'_, B> {
        let w = self.head.as_ref().unwrap_or(&self.embedding);
        Weight::Float { w, n: self.config.vocab, k: self.config.d }
    }
}
