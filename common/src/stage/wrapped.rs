//! `wrapped/`: frozen Φ0, the low-rank factors at their start, and everything else of the model. From here on the
//! float model is not needed.
//!
//! | tensor in `wrapped.safetensors` | type | shape | |
//! |---|---|---|---|
//! | `<linear>.phi` | u8 | [N, row bytes] | Φ0 as [`Phi`] packs it; the metadata name φ and the scheme |
//! | `<linear>.scale`, `<linear>.zero_point` | f32, i32 | [N, G] | as in `scales/`; rounded by GPTQ, each row's times a factor |
//! | `<linear>.lora_a`, `<linear>.lora_b` | f32 | [N, r], [r, K] | start values: zero, and U(−1/√K, 1/√K); or [`super::init`]'s |
//! | embeddings, norms, head | as in the model | | under their own names |
//!
//! With the factors outside the rounding (format 2) the integers are fixed: in place of `phi` there is
//! `<linear>.codes`, i32 [N, words], W_Z + 2^(b−1) as [`crate::quant::pack`] packs rows, and only the targets have
//! `lora_a` and `lora_b`.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;

use super::ahead::{Made, ahead};
use super::base::BaseModel;
use super::compensated::Compensated;
use super::float::{SupportFiles, read_config, read_support_files};
use super::init::Factors;
use super::record::{Kind, Stage};
use super::scales::{self, Scales, read_grid, scheme_of};
use super::wrapping::{Place, Wrapping};
use crate::compute::cpu::simd::simd;
use crate::error::{Error, Result};
use crate::format::safetensors::{Spec, TensorFile, TensorWriter};
use crate::format::tensor::{Dtype, Tensor, decode_f32};
use crate::model::Config;
use crate::model::host::{Codes, HostAdapter, HostLinear, HostLowRank, Source, forward_grid};
use crate::model::names::{self, LinearName};
use crate::quant::lanes::not_finite;
use crate::quant::{LinearGrid, Phi, Scheme, lowrank};

pub const FILE: &str = "wrapped.safetensors";

/// All tensors of the file, with the stored type of those that stay floating point.
pub fn specs(model: &BaseModel, scheme: Scheme, w: &Wrapping) -> Result<Vec<Spec>> {
    let mut specs = Vec::new();
    for linear in names::linears(model.config()) {
        specs.push(w.frozen(&linear, scheme));
        specs.extend(scales::specs(&linear, scheme));
        let rank = w.rank_of(&linear);
        if rank > 0 {
            specs.push(Spec::new(format!("{}.lora_a", linear.name), Dtype::F32, [linear.n, rank]));
            specs.push(Spec::new(format!("{}.lora_b", linear.name), Dtype::F32, [rank, linear.k]));
        }
    }
    for (name, shape) in names::floats(model.config()) {
        specs.push(Spec::new(name.clone(), model.float(&name, &shape)?.dtype, shape));
    }
    Ok(specs)
}

/// Writes every tensor, with the factors that were fitted and the weights that were compensated, if they were; `each` is
/// told the bytes written, for a progress bar.
pub fn write(
    scales: &Scales,
    w: &Wrapping,
    fitted: &Factors,
    compensated: Option<&Compensated>,
    writer: &mut TensorWriter,
    mut each: impl FnMut(u64) + Send,
) -> Result<()> {
    let config = scales.model.config();
    let linears: BTreeMap<String, LinearName> =
        names::linears(config).into_iter().map(|l| (l.name.clone(), l)).collect();
    let place = |spec: &Spec| {
        let (stem, suffix) = spec.name.rsplit_once('.').unwrap_or((&spec.name, ""));
        (linears.get(stem), suffix.to_string())
    };
    let make = |spec: &Spec, made: &mut Made| {
        let (linear, suffix) = place(spec);
        match (linear, suffix.as_str()) {
            (Some(linear), "phi" | "codes") => match (compensated, w.place) {
                (Some(of), _) => of.read(linear, made.room(spec.bytes())?)?,
                (None, Place::Inside { phi }) => downcast(scales, linear, phi, made.room(spec.bytes())?)?,
                (None, Place::Outside { .. }) => made.store(scales.rounded(linear)?.codes),
            },
            (Some(linear), "lora_a" | "lora_b") if fitted.contains_key(&linear.name) => {
                let [a, b] = &fitted[&linear.name];
                let values = if suffix == "lora_a" { a } else { b };
                made.put(bytemuck::cast_slice(values).to_vec());
            }
            (Some(_), "lora_a") => made.room(spec.bytes())?.fill(0),
            (Some(linear), "lora_b") => {
                made.put(bytemuck::cast_slice(&lowrank::init_b(w.rank, linear.k, w.seed, &spec.name)).to_vec());
            }
            (Some(_), _) => {}
            (None, _) => {
                let t = scales.model.float(&spec.name, &spec.shape)?;
                check_finite(&t, &spec.name, scales.model.path(), "fetch the model again, or fix the checkpoint")?;
                made.store(t);
            }
        }
        Ok(())
    };
    let specs = writer.order().to_vec();
    let put = |spec: &Spec, made: &Made| {
        let (linear, suffix) = place(spec);
        match (linear, suffix.as_str(), made.stored()) {
            (Some(linear), "scale" | "zero_point", _) => {
                let grid = compensated.map_or_else(|| scales.grid(linear), |of| of.grid(scales, linear))?;
                scales::put(writer, &spec.name, &grid)?;
            }
            (.., Some(tensor)) => writer.copy(&spec.name, tensor)?,
            (.., None) => writer.put(&spec.name, made.bytes())?,
        }
        each(spec.bytes() as u64);
        Ok(())
    };
    ahead(&specs, Spec::bytes, make, put)
}

/// Of a tensor of any size, part by part: no more of it is resident at a time.
fn check_finite(t: &Tensor, name: &str, path: &Path, cure: &str) -> Result<()> {
    const STEP: usize = 1 << 16;
    let (size, width) = (t.dtype.bitsize() / 8, t.shape.last().copied().unwrap_or(1));
    let mut before = 0;
    t.for_each_part(|part| {
        let steps = part.par_chunks(STEP).enumerate();
        let bad = steps.map_init(Vec::new, |values, (i, bytes)| {
            values.resize(bytes.len() / size, 0.0);
            decode_f32(bytes, t.dtype, values);
            not_finite(values).map(|at| i * STEP / size + at)
        });
        if let Some(at) = bad.find_map_first(|at| at) {
            return Err(not_finite_in(name, (before + at) / width, path, cure));
        }
        before += part.len() / size;
        Ok(())
    })
}

fn not_finite_in(name: &str, row: usize, path: &Path, cure: &str) -> Error {
    Error::input(path, format!("{name} row {row} holds a value that is not finite"), "finite weights", cure)
}

/// Φ0 = φ(W0/s0 + z) of one linear; of a model quantized by the same scheme, φ of its integers.
fn downcast(scales: &Scales, linear: &LinearName, phi: Phi, packed: &mut [u8]) -> Result<()> {
    let start = scales.start(linear)?;
    pack_phi(
        phi,
        scales.scheme,
        linear.k,
        packed,
        #[inline(always)]
        |row, z| start.read(row, z),
    );
    start.forget();
    Ok(())
}

/// φ of all rows of Z, made by `real` one by one (which must be `#[inline(always)]`, to be compiled for the machine's
/// instruction set).
pub(super) fn pack_phi(phi: Phi, scheme: Scheme, k: usize, packed: &mut [u8], real: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = packed.par_chunks_mut(phi.row_bytes(scheme, k)).enumerate();
    rows.for_each_init(
        || vec![0.0; k],
        |z, (row, packed)| {
            simd(
                #[inline(always)]
                || {
                    real(row, z);
                    phi.pack_row(scheme, z, packed);
                },
            );
        },
    );
}

/// An open `wrapped/`.
pub struct Wrapped {
    pub stage: Stage,
    pub scheme: Scheme,
    pub wrapping: Wrapping,
    pub config: Config,
    pub config_json: Value,
    file: TensorFile,
}

impl Wrapped {
    pub fn open(dir: &Path) -> Result<Wrapped> {
        Wrapped::of(Stage::open(dir, &[Kind::Wrapped])?)
    }

    pub fn of(stage: Stage) -> Result<Wrapped> {
        let (scheme, wrapping) = (scheme_of(&stage)?, Wrapping::read(&stage.dir, &stage.record.arguments)?);
        let config_json = read_config(&stage.dir)?;
        let config = Config::parse(&stage.dir.join("config.json"), &config_json)?;
        let file = TensorFile::open(&stage.dir.join(FILE))?;
        Ok(Wrapped { stage, scheme, wrapping, config, config_json, file })
    }

    pub fn dir(&self) -> &Path {
        &self.stage.dir
    }

    /// config.json and the tokenizer's files.
    pub fn support_files(&self) -> Result<SupportFiles> {
        read_support_files(self.dir())
    }

    pub fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.file.expect_float(name, shape)
    }

    /// The scales that are trained, as `trained` has them if it is given, and the zero points.
    pub fn masters_from(&self, linear: &LinearName, trained: Option<&TensorFile>) -> Result<LinearGrid> {
        let start = read_grid(&self.file, linear, self.scheme)?;
        let Some(trained) = trained else { return Ok(start) };
        // Scales beside which only adapters were trained are those of the start.
        if self.wrapping.is_outside() && trained.get(&format!("{}.scale", linear.name)).is_none() {
            return Ok(start);
        }
        let scale = read_finite(trained, linear, "scale", [linear.n, self.scheme.groups(linear.k)])?;
        Ok(LinearGrid { scale, ..start })
    }

    /// A linear with its trained tensors taken from `trained`, or at their start.
    pub fn linear_from(&self, linear: &LinearName, trained: Option<&TensorFile>) -> Result<HostLinear> {
        let (w, scheme, rank) = (&self.wrapping, self.scheme, self.wrapping.rank_of(linear));
        let stored = w.frozen(linear, scheme);
        let weights = self.file.expect(&stored.name, stored.dtype, &stored.shape)?;
        let LinearGrid { scale, zero } = self.masters_from(linear, trained)?;
        let from = trained.unwrap_or(&self.file);
        let factors = || -> Result<(Vec<f32>, Vec<f32>)> {
            let a = read_finite(from, linear, "lora_a", [linear.n, rank])?;
            Ok((a, read_finite(from, linear, "lora_b", [rank, linear.k])?))
        };
        Ok(match w.place {
            Place::Inside { phi: stored } => {
                let (a, b) = factors()?;
                HostLinear::LowRank(HostLowRank {
                    scheme,
                    stored,
                    phi: weights,
                    rank,
                    alpha: w.alpha,
                    scale,
                    zero,
                    a,
                    b,
                })
            }
            Place::Outside { .. } => {
                let mut adapter = None;
                if rank > 0 {
                    let (a, b) = factors()?;
                    adapter = Some(HostAdapter { rank, alpha: w.alpha, a, b });
                }
                HostLinear::Codes(Codes { scheme, codes: weights, scale, master: true, zero, adapter, latent: None })
            }
        })
    }
}

/// The values of a tensor of a linear, none of which may be infinite or no number.
fn read_finite(from: &TensorFile, linear: &LinearName, suffix: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
    let name = format!("{}.{suffix}", linear.name);
    let tensor = from.expect(&name, Dtype::F32, &shape)?;
    let values = tensor.to_f32();
    tensor.forget();
    match not_finite(&values) {
        None => Ok(values),
        Some(at) => Err(not_finite_in(&name, at / shape[1], from.path(), "make the file again")),
    }
}

impl Source for Wrapped {
    fn config(&self) -> &Config {
        &self.config
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Wrapped::float(self, name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        self.linear_from(linear, None)
    }

    fn grid(&self, linear: &LinearName) -> Result<LinearGrid> {
        self.masters_from(linear, None).map(forward_grid)
    }
}
