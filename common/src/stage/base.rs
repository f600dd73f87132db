//! The model that quantization starts from: in floating point, or quantized already (GPTQ, AWQ, compressed-tensors,
//! a GGUF that `fold` wrote), to be trained further from its own integers.

use std::path::Path;

use serde_json::Value;

use super::float::{FloatModel, SupportFiles, read_config};
use super::folded::{self, Folded};
use crate::error::{Error, Result};
use crate::format::gguf::llama::GgufLlama;
use crate::format::tensor::Tensor;
use crate::model::Config;
use crate::model::host::{HostLinear, Source};
use crate::model::names::LinearName;
use crate::quant::{Integers, Scheme};

pub enum BaseModel {
    Float(FloatModel),
    Quantized(Folded),
}

impl BaseModel {
    /// A Hugging Face directory, a `.gguf`, or what `fold` wrote.
    pub fn open(path: &Path) -> Result<BaseModel> {
        if !path.exists() {
            let expected = "a Hugging Face model directory or a .gguf";
            return Err(Error::input(path, "does not exist", expected, "check the path"));
        }
        let inside = path.join(folded::GGUF);
        if path.is_dir() && !path.join("config.json").is_file() && inside.is_file() {
            return BaseModel::open(&inside);
        }
        if path.is_dir() {
            return match read_config(path)?["quantization_config"].is_null() {
                true => Ok(BaseModel::Float(FloatModel::open_dir(path)?)),
                false => Ok(BaseModel::Quantized(Folded::open_dir(path)?)),
            };
        }
        if path.extension().is_none_or(|e| e != "gguf") {
            return Err(Error::input(
                path,
                "a file that is no .gguf",
                "a Hugging Face model directory or a .gguf",
                "give the directory that holds config.json",
            ));
        }
        let gguf = GgufLlama::open(path)?;
        match gguf.scheme()? {
            None => Ok(BaseModel::Float(FloatModel::of_gguf(gguf)?)),
            Some(scheme) => Ok(BaseModel::Quantized(Folded::of_gguf(gguf, scheme)?)),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            BaseModel::Float(m) => m.path(),
            BaseModel::Quantized(m) => m.path(),
        }
    }

    /// The scheme it is quantized by.
    pub fn scheme(&self) -> Option<Scheme> {
        match self {
            BaseModel::Float(_) => None,
            BaseModel::Quantized(m) => Some(m.scheme),
        }
    }

    /// Tells whether it changed.
    pub fn fingerprint(&self) -> Result<String> {
        match self {
            BaseModel::Float(m) => m.fingerprint(),
            BaseModel::Quantized(m) => Ok(m.fingerprint()),
        }
    }

    /// config.json as of a float model, generation config, chat template and tokenizer.
    pub fn support_files(&self) -> Result<SupportFiles> {
        match self {
            BaseModel::Float(m) => m.support_files(),
            BaseModel::Quantized(m) => {
                let mut config: Value = m.config_json.clone();
                if let Some(fields) = config.as_object_mut() {
                    fields.remove("quantization_config");
                }
                let bytes = serde_json::to_vec_pretty(&config).expect("a value is plain JSON");
                Ok([vec![("config.json".to_string(), bytes)], m.support_files()?].concat())
            }
        }
    }

    /// The weight [n, k] of a linear; of a quantized one s·(W_Z − z), f32.
    pub fn weight(&self, linear: &LinearName) -> Result<Tensor> {
        match self {
            BaseModel::Float(m) => m.tensor(&format!("{}.weight", linear.name), &[linear.n, linear.k]),
            BaseModel::Quantized(m) => m.dequantized(linear),
        }
    }

    /// The integers of a linear, if the model is quantized by `scheme`.
    pub fn integers(&self, linear: &LinearName, scheme: Scheme) -> Result<Option<Integers>> {
        match self {
            BaseModel::Quantized(m) if m.scheme == scheme => m.integers(linear).map(Some),
            _ => Ok(None),
        }
    }
}

impl Source for BaseModel {
    fn config(&self) -> &Config {
        match self {
            BaseModel::Float(m) => m.config(),
            BaseModel::Quantized(m) => m.config(),
        }
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self {
            BaseModel::Float(m) => m.float(name, shape),
            BaseModel::Quantized(m) => m.float(name, shape),
        }
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        match self {
            BaseModel::Float(m) => m.linear(linear),
            BaseModel::Quantized(m) => m.linear(linear),
        }
    }
}
