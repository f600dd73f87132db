//! `scales/`: the fitted grid of every linear.
//!
//! | tensor in `scales.safetensors` | type | shape | |
//! |---|---|---|---|
//! | `<linear>.scale` | f32 | [N, G] | master scale s0, at least 2^-17 |
//! | `<linear>.zero_point` | i32 | [N, G] | schemes with `z` or `s`: integer on the signed grid, with `s` 0 or −1 |

use std::path::Path;

use rayon::prelude::*;

use super::base::BaseModel;
use super::record::{Kind, Stage};
use crate::compute::cpu::simd::simd;
use crate::compute::cuda::Fitting;
use crate::error::{Error, Result};
use crate::format::safetensors::{Spec, TensorFile, TensorWriter};
use crate::format::tensor::{Dtype, Tensor};
use crate::model::Config;
use crate::model::host::{Codes, HostLinear, Source, forward_grid, pack_rows};
use crate::model::names::LinearName;
use crate::quant::fit::Fit;
use crate::quant::lanes;
use crate::quant::{LinearGrid, Scheme};

pub const FILE: &str = "scales.safetensors";

/// Fits the grid of one linear, in parallel over its rows. Weights that are not finite are an error.
pub fn fit_linear(w: &Tensor, linear: &LinearName, scheme: Scheme, fit: Fit, path: &Path) -> Result<LinearGrid> {
    let (n, k) = (linear.n, linear.k);
    let (group, groups) = (scheme.group_size(k), scheme.groups(k));
    let mut scale = vec![0.0; n * groups];
    let mut zero = vec![0.0; n * groups];
    let rows = scale.par_chunks_mut(groups).zip(zero.par_chunks_mut(groups)).enumerate();
    let room = || (vec![0.0; k], fit.of(scheme));
    let finite = rows.map_init(room, |(values, fitter), (row, (scale, zero))| {
        let bad = simd(
            #[inline(always)]
            || {
                w.read_f32(row * k..(row + 1) * k, values);
                let bad = lanes::not_finite(values);
                if bad.is_none() {
                    for (g, values) in values.chunks_exact(group).enumerate() {
                        let fitted = fitter.fit(values);
                        (scale[g], zero[g]) = (fitted.scale, fitted.zero_point);
                    }
                }
                bad
            },
        );
        bad.map_or(Ok(()), |column| Err(not_finite(path, linear, (row, column), values[column])))
    });
    finite.collect::<Result<()>>()?;
    w.forget();
    Ok(LinearGrid { scale, zero: scheme.has_zero_points().then_some(zero) })
}

/// The same grid, fitted on a GPU that takes the fit.
pub fn fit_linear_on(
    gpu: &mut Fitting,
    w: &Tensor,
    linear: &LinearName,
    scheme: Scheme,
    fit: Fit,
    path: &Path,
) -> Result<LinearGrid> {
    let grid = gpu.fit(w, linear.k, scheme, fit)?;
    let Some(group) = grid.scale.iter().position(|s| s.is_nan()) else { return Ok(grid) };
    let row = group / scheme.groups(linear.k);
    let mut values = vec![0.0; linear.k];
    w.read_f32(row * linear.k..(row + 1) * linear.k, &mut values);
    let column = lanes::not_finite(&values).expect("its group has a weight that is not finite");
    Err(not_finite(path, linear, (row, column), values[column]))
}

fn not_finite(path: &Path, linear: &LinearName, (row, column): (usize, usize), value: f32) -> Error {
    Error::input(
        path,
        format!("{}.weight[{row}, {column}] is {value}", linear.name),
        "finite weights",
        "fetch the model again, or fix the checkpoint",
    )
}

/// The tensors of a linear in this file.
pub fn specs(linear: &LinearName, scheme: Scheme) -> Vec<Spec> {
    let shape = [linear.n, scheme.groups(linear.k)];
    let mut specs = vec![Spec::new(format!("{}.scale", linear.name), Dtype::F32, shape)];
    if scheme.has_zero_points() {
        specs.push(Spec::new(format!("{}.zero_point", linear.name), Dtype::I32, shape));
    }
    specs
}

/// Writes the grid that belongs to the writer's next tensor, `<linear>.scale` or `<linear>.zero_point`.
pub fn put(writer: &mut TensorWriter, name: &str, grid: &LinearGrid) -> Result<()> {
    let bytes: Vec<u8> = match (&grid.zero, name.ends_with(".zero_point")) {
        (Some(zero), true) => zero.iter().flat_map(|z| (*z as i32).to_le_bytes()).collect(),
        _ => grid.scale.iter().flat_map(|s| s.to_le_bytes()).collect(),
    };
    writer.put(name, &bytes)
}

/// Reads a linear's grid from any file that holds these two tensors.
pub fn read_grid(file: &TensorFile, linear: &LinearName, scheme: Scheme) -> Result<LinearGrid> {
    let shape = [linear.n, scheme.groups(linear.k)];
    let scale = file.expect(&format!("{}.scale", linear.name), Dtype::F32, &shape)?.to_f32();
    let bad = |s: &f32| !s.is_finite() || *s <= 0.0;
    // A look at all of them is vectorized, a search is not.
    if scale.iter().fold(false, |any, s| any | bad(s)) {
        let found = scale.iter().copied().find(bad).unwrap_or(f32::NAN);
        return Err(Error::input(
            file.path(),
            format!("{}.scale holds {found}", linear.name),
            "finite positive scales",
            "make the file again",
        ));
    }
    let zero = if scheme.has_zero_points() {
        let t = file.expect(&format!("{}.zero_point", linear.name), Dtype::I32, &shape)?;
        let ints = t.bytes().chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32);
        Some(ints.collect())
    } else {
        None
    };
    Ok(LinearGrid { scale, zero })
}

/// Scales with the model they were fitted to: round-to-nearest, before any training.
pub struct Scales {
    pub stage: Stage,
    pub scheme: Scheme,
    pub model: BaseModel,
    file: TensorFile,
}

impl Scales {
    pub fn open(dir: &Path) -> Result<Scales> {
        let stage = Stage::open(dir, &[Kind::Scales])?;
        let scheme = scheme_of(&stage)?;
        let (path, input) = stage.input_path("model")?;
        let model = BaseModel::open(&path)?;
        if model.fingerprint()? != input.digest {
            return Err(Error::input(
                dir,
                format!("its model, {}, changed since", path.display()),
                "the one the scales were fitted to",
                "run ptq-init again with --force",
            ));
        }
        let file = TensorFile::open(&dir.join(FILE))?;
        Ok(Scales { stage, scheme, model, file })
    }

    pub fn grid(&self, linear: &LinearName) -> Result<LinearGrid> {
        read_grid(&self.file, linear, self.scheme)
    }

    /// Where training of a linear starts.
    pub fn start(&self, linear: &LinearName) -> Result<Start> {
        let values = match self.model.integers(linear, self.scheme)? {
            Some(integers) => Values::Codes(integers.codes),
            None => Values::Weight(self.model.weight(linear)?),
        };
        Ok(Start { values, grid: self.grid(linear)?, k: linear.k, scheme: self.scheme })
    }
}

impl Scales {
    /// Round-to-nearest: W_Z = clip(round(W0/s0 + z)).
    pub fn rounded(&self, linear: &LinearName) -> Result<Codes> {
        let start = self.start(linear)?;
        let codes = pack_rows(
            self.scheme,
            linear.n,
            linear.k,
            #[inline(always)]
            |first, z| start.read(first, z),
        );
        start.forget();
        Ok(Codes::forward(self.scheme, codes, forward_grid(start.grid)))
    }
}

/// Z at the start of training: W0/s0 + z, or the very integers of a model that is quantized by the same scheme.
pub struct Start {
    values: Values,
    pub grid: LinearGrid,
    k: usize,
    scheme: Scheme,
}

enum Values {
    Weight(Tensor),
    Codes(Vec<u8>),
}

impl Start {
    /// Z of whole rows from row `first` on.
    #[inline(always)]
    pub fn read(&self, first: usize, z: &mut [f32]) {
        let range = first * self.k..first * self.k + z.len();
        match &self.values {
            Values::Weight(w) => {
                w.read_f32(range, z);
                self.grid.to_grid(z, first, self.k, self.scheme);
            }
            Values::Codes(codes) => {
                for (z, code) in z.iter_mut().zip(&codes[range]) {
                    *z = *code as f32 + self.scheme.qmin();
                }
            }
        }
    }

    /// Lets go of the pages that were read.
    pub fn forget(&self) {
        if let Values::Weight(w) = &self.values {
            w.forget();
        }
    }
}

/// The scheme that a stage records.
pub fn scheme_of(stage: &Stage) -> Result<Scheme> {
    let word = stage.record.scheme.as_deref().unwrap_or_default();
    word.parse().map_err(|_| {
        Error::input(
            stage.dir.join(super::record::FILE),
            format!("scheme {word:?}"),
            "a scheme such as w4g128",
            "run the stage again with --force",
        )
    })
}

impl Source for Scales {
    fn config(&self) -> &Config {
        self.model.config()
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.model.float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        self.rounded(linear).map(HostLinear::Codes)
    }
}
