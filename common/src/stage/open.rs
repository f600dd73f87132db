//! Any artefact by its path, for tools that take them all.

use std::path::{Path, PathBuf};

use super::base::BaseModel;
use super::checkpoint::Checkpoint;
use super::float::{FloatModel, SupportFiles};
use super::folded::Folded;
use super::record::{self, Kind, Stage};
use super::scales::Scales;
use super::wrapped::Wrapped;
use crate::error::{Error, Result};
use crate::format::tensor::Tensor;
use crate::model::Config;
use crate::model::host::{HostLinear, Source};
use crate::model::names::LinearName;
use crate::quant::Scheme;

pub enum Artefact {
    Model(Box<FloatModel>),
    Scales(Box<Scales>),
    Wrapped(Box<Wrapped>),
    Checkpoint(Box<Checkpoint>),
    Folded(Box<Folded>),
}

impl Artefact {
    pub fn open(path: &Path) -> Result<Artefact> {
        if path.join(record::FILE).is_file() {
            return match Stage::read(path)?.record.kind {
                Kind::Scales => Ok(Artefact::Scales(Box::new(Scales::open(path)?))),
                Kind::Wrapped => Ok(Artefact::Wrapped(Box::new(Wrapped::open(path)?))),
                Kind::Checkpoint => Ok(Artefact::Checkpoint(Box::new(Checkpoint::open(path)?))),
                Kind::Folded => Ok(Artefact::Folded(Box::new(Folded::open(path)?))),
                Kind::Shards => Err(Error::input(
                    path,
                    "this is \"shards\"",
                    "a model, scales, wrapped, checkpoint or folded",
                    "give the model's directory",
                )),
            };
        }
        if !path.exists() && PathBuf::from(format!("{}.part", path.display())).is_dir() {
            return Err(Error::input(path, "this stage is not finished", "a complete one", "run its tool again"));
        }
        Ok(match BaseModel::open(path)? {
            BaseModel::Float(model) => Artefact::Model(Box::new(model)),
            BaseModel::Quantized(model) => Artefact::Folded(Box::new(model)),
        })
    }

    /// `model`, `scales`, `wrapped`, `checkpoint` or `folded`.
    pub fn kind(&self) -> &'static str {
        match self {
            Artefact::Model(_) => "model",
            Artefact::Scales(_) => "scales",
            Artefact::Wrapped(_) => "wrapped",
            Artefact::Checkpoint(_) => "checkpoint",
            Artefact::Folded(_) => "folded",
        }
    }

    pub fn scheme(&self) -> Option<Scheme> {
        match self {
            Artefact::Model(_) => None,
            Artefact::Scales(a) => Some(a.scheme),
            Artefact::Wrapped(a) => Some(a.scheme),
            Artefact::Checkpoint(a) => Some(a.wrapped.scheme),
            Artefact::Folded(a) => Some(a.scheme),
        }
    }

    /// Tells whether it is still the same.
    pub fn digest(&self) -> Result<String> {
        match self {
            Artefact::Model(a) => a.fingerprint(),
            Artefact::Scales(a) => Ok(a.stage.digest.clone()),
            Artefact::Wrapped(a) => Ok(a.stage.digest.clone()),
            Artefact::Checkpoint(a) => Ok(a.stage.digest.clone()),
            Artefact::Folded(a) => Ok(a.fingerprint()),
        }
    }

    /// The tokenizer's files, among others.
    pub fn support_files(&self) -> Result<SupportFiles> {
        match self {
            Artefact::Model(a) => a.support_files(),
            Artefact::Scales(a) => a.model.support_files(),
            Artefact::Wrapped(a) => a.support_files(),
            Artefact::Checkpoint(a) => a.wrapped.support_files(),
            Artefact::Folded(a) => a.support_files(),
        }
    }

    /// Hashes the files of its stages again. A float model, or a folded one without its `stage.json`, has no digests.
    pub fn verify(&self) -> Result<()> {
        match self {
            Artefact::Model(_) => Ok(()),
            Artefact::Scales(a) => a.stage.verify(),
            Artefact::Wrapped(a) => a.stage.verify(),
            Artefact::Checkpoint(a) => a.verify(),
            Artefact::Folded(a) => a.verify(),
        }
    }

    fn inner(&self) -> &dyn Source {
        match self {
            Artefact::Model(a) => a.as_ref(),
            Artefact::Scales(a) => a.as_ref(),
            Artefact::Wrapped(a) => a.as_ref(),
            Artefact::Checkpoint(a) => a.as_ref(),
            Artefact::Folded(a) => a.as_ref(),
        }
    }
}

/// For evaluation: low-rank linears are folded while they are loaded, so that what is said of a checkpoint is said
/// of its integers.
impl Source for Artefact {
    fn config(&self) -> &Config {
        self.inner().config()
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.inner().float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        Ok(match self.inner().linear(linear)? {
            HostLinear::LowRank(w) => HostLinear::Codes(w.fold(linear.n, linear.k)),
            other => other,
        })
    }
}
