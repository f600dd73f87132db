//! `checkpoint/`: the trained tensors, and what training needs to go on.
//!
//! | file | |
//! |---|---|
//! | `trained.safetensors` | `<linear>.scale` [N, G], `<linear>.lora_a` [N, r], `<linear>.lora_b` [r, K] where there are any, all f32 |
//! | `optimizer.safetensors` | the same names with `.m` and `.v`: Adam's moments; only while the schedule is not at its end |
//! | `metrics.jsonl`, `loss.svg` | one line a step, and its picture: logs, no part of the digests |
//!
//! `stage.json` names the wrapped model and the shards it was trained on, the recipe (`arguments`) and the step
//! (`details`).

use std::path::Path;

use super::record::{Kind, Stage};
use super::wrapped::Wrapped;
use crate::error::{Error, Result};
use crate::format::safetensors::TensorFile;
use crate::format::tensor::Tensor;
use crate::model::Config;
use crate::model::host::{HostLinear, Source, forward_grid};
use crate::model::names::LinearName;
use crate::quant::LinearGrid;

pub const TRAINED: &str = "trained.safetensors";
pub const OPTIMIZER: &str = "optimizer.safetensors";
pub const METRICS: &str = "metrics.jsonl";
pub const LOSS_CURVE: &str = "loss.svg";
/// Before the step, the name of a save in an unfinished checkpoint.
pub const SAVE: &str = "step-";

/// An open `checkpoint/` over its `wrapped/`.
pub struct Checkpoint {
    pub stage: Stage,
    pub wrapped: Wrapped,
    pub trained: TensorFile,
    /// Steps done, counted from the start of the schedule, and its length.
    pub step: u64,
    pub steps: u64,
}

impl Checkpoint {
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let stage = Stage::open(dir, &[Kind::Checkpoint])?;
        let wrapped = Wrapped::of(stage.open_input("wrapped", Kind::Wrapped)?)?;
        let trained = TensorFile::open(&dir.join(TRAINED))?;
        let detail = |key: &str| {
            stage.record.details.get(key).and_then(|v| v.as_u64()).ok_or_else(|| {
                let path = dir.join(super::record::FILE);
                Error::input(path, format!("no {key} in details"), "a number", "run qat-step again with --force")
            })
        };
        let (step, steps) = (detail("step")?, detail("steps")?);
        Ok(Checkpoint { wrapped, trained, step, steps, stage })
    }

    /// Hashes its files again, and those of the wrapped model that it trains.
    pub fn verify(&self) -> Result<()> {
        self.stage.verify()?;
        self.wrapped.stage.verify()
    }

    pub fn finished(&self) -> bool {
        self.step >= self.steps
    }
}

impl Source for Checkpoint {
    fn config(&self) -> &Config {
        &self.wrapped.config
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.wrapped.float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        self.wrapped.linear_from(linear, Some(&self.trained))
    }

    fn grid(&self, linear: &LinearName) -> Result<LinearGrid> {
        self.wrapped.masters_from(linear, Some(&self.trained)).map(forward_grid)
    }
}
