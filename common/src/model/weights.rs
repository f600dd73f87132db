//! The weights of a model as they lie on the device.

use super::config::Config;
use super::host::{HostAdapter, HostLinear, Source};
use super::names::{self, LinearName};
use super::params::{ParamSpec, Params, Rate};
use super::rope::inverse_frequencies;
use crate::compute::backend::{self, Adapter, Backend, Gradients, LowRank, Weight};
use crate::compute::dropout;
use crate::error::{Error, Result};
use crate::format::tensor::Tensor;
use crate::quant::{Phi, Scheme};

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
        /// Z follows the scale in the parameter table.
        latent: bool,
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

/// Rows of the parameter table that belong to a linear: the first, and which of the scale, Z, and A and B there are, in
/// this order.
struct Rows {
    first: usize,
    scale: bool,
    latent: bool,
    factors: bool,
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
                if let Some(z) = &c.latent {
                    add("z", vec![n, k], Rate::Latent, z)?;
                }
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
                    latent: c.latent.is_some(),
                }
            }
            HostLinear::LowRank(w) => {
                if let Some(max) = backend.max_rank().filter(|max| w.rank > *max) {
                    let what = format!("{}: rank {}, and the GPU takes {max} inside the rounding", name.name, w.rank);
                    return Err(Error::usage(what, "wrap with a smaller --rank, or use --device cpu"));
                }
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
            Stored::Codes { codes, scheme, scale, zero, adapter, latent: _ } => {
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

    /// Its rows of the parameter table, if it has some.
    fn rows(&self) -> Option<Rows> {
        match &self.stored {
            Stored::LowRank { params, .. } => Some(Rows { first: *params, scale: true, latent: false, factors: true }),
            Stored::Codes { scale: Scale::Master(row), adapter, latent, .. } => {
                Some(Rows { first: *row, scale: true, latent: *latent, factors: adapter.is_some() })
            }
            Stored::Codes { adapter: Some(of), .. } => {
                Some(Rows { first: of.params, scale: false, latent: false, factors: true })
            }
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
            let Rows { first, scale, latent, factors } = linear.rows()?;
            let (scale, latent, factors) = (usize::from(scale), usize::from(latent), 2 * usize::from(factors));
            let count = scale + latent + factors;
            let (own, after) = std::mem::take(&mut rest).split_at_mut(first - passed).1.split_at_mut(count);
            (rest, passed) = (after, first + count);
            let (of_scale, own) = own.split_at_mut(scale);
            let (of_latent, own) = own.split_at_mut(latent);
            let factors = if let [a, b] = own { Some([a, b]) } else { None };
            Some(Gradients { scale: of_scale.first_mut(), factors, latent: of_latent.first_mut() })
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
