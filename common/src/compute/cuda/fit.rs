//! The grids of a weight fitted on the GPU: the very scales that the CPU finds ([`crate::quant::fit`]).

use std::sync::Arc;

use super::gpu::{Gpu, Grid as Blocks};
use super::launch::{Argument, kernels};
use super::memory::{Memory, Staging};
use super::open;
use super::times::Time;
use super::weight::stored_kind;
use crate::error::Result;
use crate::format::tensor::Tensor;
use crate::quant::fit::{self, Fit};
use crate::quant::{LinearGrid, Scheme, Symmetry};

kernels! {
    /// `fit.cu`
    Kernels in "fit";
    fn fit_min_max(to: Fitted);
    fn fit_squares(to: Fitted);
    fn fit_cubes(to: Fitted);
}

/// Groups of a block, which has a warp for each.
const WARPS: usize = 4;
const LANES: usize = 32;

/// What is fitted, as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Fitted {
    w: u64,
    scale: u64,
    zero: u64,
    groups: i64,
    group: i32,
    stored: i32,
    skew: i32,
    qmin: f32,
    qmax: f32,
    _end: i32,
}

// SAFETY: as in fit.cu: addresses and a long number first, then numbers of four bytes, then what rounds it up to eight.
unsafe impl Argument for Fitted {
    const SIZE: usize = size_of::<Fitted>();
}

/// A GPU that fits linear after linear. It holds one at a time.
pub struct Fitting {
    gpu: Arc<Gpu>,
    kernels: Kernels,
    staging: Staging,
}

impl Fitting {
    /// The first GPU, or what is missing.
    pub fn open() -> Result<Fitting> {
        let gpu = Arc::new(open::gpu()?);
        Ok(Fitting { kernels: Kernels::load(&gpu)?, staging: Staging::new(&gpu)?, gpu })
    }

    /// What `call` does on the GPU, kernel by kernel.
    pub fn times(&mut self, call: impl FnOnce(&mut Fitting)) -> Result<Vec<Time>> {
        let gpu = self.gpu.clone();
        gpu.times(|| call(self))
    }

    /// Does the GPU find the scales that the CPU finds? Of the powers these two are products. |w|^p of any other is what the C
    /// library of the host makes of it, to the last bit, and the GPU has another one. Its kernels know no scales of both signs.
    pub fn takes(fit: Fit, scheme: Scheme) -> bool {
        matches!(fit, Fit::MinMax | Fit::Lp(2.0 | 3.0)) && scheme.symmetry != Symmetry::Signed
    }

    /// The grids of `w`, of rows of `k`. The scale of a group with weights that are not finite is no number.
    ///
    /// # Panics
    /// If it does not take the fit.
    pub fn fit(&mut self, w: &Tensor, k: usize, scheme: Scheme, how: Fit) -> Result<LinearGrid> {
        let (gpu, groups) = (&self.gpu, w.len() / scheme.group_size(k));
        let weights = self.staging.upload(gpu, w)?;
        let mut scale = Memory::<f32>::new(gpu, groups)?;
        let mut zero = Memory::<f32>::new(gpu, if scheme.has_zero_points() { groups } else { 0 })?;
        let to = Fitted {
            w: weights.all().address(),
            scale: scale.all_mut().address(),
            zero: zero.all_mut().address(),
            groups: groups as i64,
            group: scheme.group_size(k) as i32,
            stored: stored_kind(w.dtype),
            skew: fit::skew(scheme),
            qmin: scheme.qmin(),
            qmax: scheme.qmax(),
            _end: 0,
        };
        let blocks = Blocks::blocks(groups.div_ceil(WARPS), (WARPS * LANES) as u32);
        match how {
            Fit::MinMax => self.kernels.fit_min_max(gpu, blocks, to),
            Fit::Lp(2.0) => self.kernels.fit_squares(gpu, blocks, to),
            Fit::Lp(3.0) => self.kernels.fit_cubes(gpu, blocks, to),
            Fit::Lp(p) => panic!("lp:{p} is not fitted on a GPU"),
        }
        let zero = if scheme.has_zero_points() { Some(zero.read(groups)?) } else { None };
        Ok(LinearGrid { scale: scale.read(groups)?, zero })
    }
}
