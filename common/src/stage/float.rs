//! The float model: a Hugging Face directory (config.json, one or many safetensors shards), or a GGUF file. Paths are
//! opened by [`super::base`], which tells it from a quantized one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::tokenizer;
use crate::error::{Error, Result};
use crate::format::gguf::llama::GgufLlama;
use crate::format::mmap::Mmap;
use crate::format::safetensors::TensorFile;
use crate::format::tensor::{Dtype, Tensor};
use crate::model::Config;
use crate::model::host::{HostLinear, Source};
use crate::model::names::LinearName;

/// A file that travels with a model from stage to stage, by name.
pub type SupportFiles = Vec<(String, Vec<u8>)>;

pub struct FloatModel {
    path: PathBuf,
    pub config: Config,
    pub config_json: Value,
    weights: Weights,
}

enum Weights {
    Safetensors(WeightFiles),
    Gguf(Box<GgufLlama>),
}

impl FloatModel {
    pub(super) fn of_gguf(gguf: GgufLlama) -> Result<FloatModel> {
        let (path, config_json) = (gguf.gguf().path().to_path_buf(), gguf.hf_config().clone());
        let config = Config::parse(&path, &config_json)?;
        Ok(FloatModel { path, config, config_json, weights: Weights::Gguf(Box::new(gguf)) })
    }

    pub(super) fn open_dir(path: &Path) -> Result<FloatModel> {
        let config_json = read_config(path)?;
        let config_path = path.join("config.json");
        let config = Config::parse(&config_path, &config_json)?;
        let files = WeightFiles::open(path)?;
        if let Some(bias) = files.place.keys().find(|name| name.ends_with("_proj.bias")) {
            return Err(Error::input(
                path,
                format!("it holds {bias}"),
                "linears without a bias",
                "choose a model of the LLaMA family or Mistral",
            ));
        }
        Ok(FloatModel { path: path.into(), config, config_json, weights: Weights::Safetensors(files) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells whether a model changed: names, lengths and a sample of the bytes of its files. Not of all bytes, which
    /// would take as long as the work itself.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        match &self.weights {
            Weights::Gguf(gguf) => sample(gguf.gguf().map(), &mut hash),
            Weights::Safetensors(files) => {
                hash.update(self.config_json.to_string().as_bytes());
                files.sample(&mut hash);
            }
        }
        Ok(hash.finalize().to_hex().to_string())
    }

    /// config.json, generation config, chat template and tokenizer: all that later stages need besides weights.
    pub fn support_files(&self) -> Result<SupportFiles> {
        let config = serde_json::to_vec_pretty(&self.config_json).expect("a value is plain JSON");
        let mut files = vec![("config.json".to_string(), config)];
        match &self.weights {
            Weights::Gguf(gguf) => files.extend(tokenizer::hf_tokenizer_files(gguf.gguf())?),
            Weights::Safetensors(_) => files.extend(read_support_files(&self.path)?),
        }
        Ok(files)
    }

    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match &self.weights {
            Weights::Gguf(gguf) => read_gguf(gguf, name, shape),
            Weights::Safetensors(files) => files.float(name, shape),
        }
    }
}

impl Source for FloatModel {
    fn config(&self) -> &Config {
        &self.config
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.tensor(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        Ok(HostLinear::Float(self.tensor(&format!("{}.weight", linear.name), &[linear.n, linear.k])?))
    }
}

/// The files of a directory that travel with the model.
pub fn read_support_files(dir: &Path) -> Result<SupportFiles> {
    let mut files = Vec::new();
    for path in tokenizer::hf_files(dir) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((name, fs::read(&path).map_err(Error::io(&path, "read"))?));
    }
    Ok(files)
}

pub fn read_config(dir: &Path) -> Result<Value> {
    let path = dir.join("config.json");
    if !path.is_file() {
        return Err(Error::input(
            dir,
            "it holds no config.json",
            "a Hugging Face model directory",
            "give the directory that holds config.json",
        ));
    }
    let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::input(&path, format!("not JSON ({e})"), "the model's configuration", "fetch it again"))
}

/// The safetensors files of a model and in which of them each tensor lies.
pub(super) struct WeightFiles {
    dir: PathBuf,
    files: Vec<TensorFile>,
    place: BTreeMap<String, usize>,
}

impl WeightFiles {
    /// `model.safetensors`, or the shards of `model.safetensors.index.json`. A tensor that lies in two shards, or not
    /// where the index says, is an error.
    pub fn open(dir: &Path) -> Result<WeightFiles> {
        let index = dir.join("model.safetensors.index.json");
        if !index.is_file() {
            let single = dir.join("model.safetensors");
            if !single.is_file() {
                return Err(Error::input(
                    dir,
                    "it holds neither model.safetensors nor model.safetensors.index.json",
                    "weights as safetensors",
                    "convert pytorch_model.bin with transformers' save_pretrained",
                ));
            }
            let file = TensorFile::open(&single)?;
            let place = file.names().map(|n| (n.to_string(), 0)).collect();
            return Ok(WeightFiles { dir: dir.into(), files: vec![file], place });
        }
        let bytes = fs::read(&index).map_err(Error::io(&index, "read"))?;
        let bad = |found: String| Error::input(&index, found, "a weight_map of tensors to shards", "fetch it again");
        let json: Value = serde_json::from_slice(&bytes).map_err(|e| bad(format!("not JSON ({e})")))?;
        let map = json["weight_map"].as_object().ok_or_else(|| bad("no weight_map".into()))?;
        let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let mut files = Vec::new();
        let mut place = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            if name.contains('/') || name.contains("..") {
                return Err(bad(format!("shard name {name:?}")));
            }
            let path = dir.join(name);
            if !path.is_file() {
                return Err(Error::input(
                    &path,
                    "this shard is missing",
                    format!("all {} shards of the index", names.len()),
                    "fetch it",
                ));
            }
            let file = TensorFile::open(&path)?;
            for tensor in file.names() {
                if place.insert(tensor.to_string(), i).is_some() {
                    return Err(Error::input(
                        &path,
                        format!("tensor {tensor} is also in another shard"),
                        "each tensor once",
                        "remove the stale shard and fetch the model again",
                    ));
                }
            }
            files.push(file);
        }
        for (tensor, shard) in map {
            if place.get(tensor).is_none_or(|i| Some(names[*i]) != shard.as_str()) {
                return Err(bad(format!("{tensor} is not in {shard}")));
            }
        }
        Ok(WeightFiles { dir: dir.into(), files, place })
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.place.get(name).and_then(|i| self.files[*i].get(name))
    }

    /// A floating-point tensor that must be there.
    pub fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.place.get(name) {
            Some(file) => self.files[*file].expect_float(name, shape),
            None => Err(Error::input(
                &self.dir,
                format!("no tensor {name} in its safetensors files"),
                "every tensor that config.json implies",
                "fetch or make the model again",
            )),
        }
    }

    /// Names and samples of the files.
    pub fn sample(&self, hash: &mut blake3::Hasher) {
        for file in &self.files {
            let name = file.path().file_name().unwrap_or_default();
            hash.update(name.as_encoded_bytes());
            sample(file.map(), hash);
        }
    }
}

/// A tensor of a GGUF, in Hugging Face order and in the type that holds it exactly.
pub(super) fn read_gguf(gguf: &GgufLlama, name: &str, shape: &[usize]) -> Result<Tensor> {
    let found = gguf.hf_tensors().find(|t| t.name == name);
    if let Some(found) = found.filter(|t| t.shape != shape) {
        return Err(Error::input(
            gguf.gguf().path(),
            format!("{name} has shape {:?}", found.shape),
            format!("{shape:?} from its metadata"),
            "convert the model again",
        ));
    }
    if let Some(tensor) = gguf.mapped_hf(name)? {
        return Ok(tensor);
    }
    let mut values = Vec::new();
    gguf.read_hf(name, &mut values)?;
    Ok(Tensor::from_f32(&values, found.map_or(Dtype::F32, |t| t.dtype), shape.to_vec()))
}

/// Length, the first MiB, and 256 blocks spread over the rest.
pub(super) fn sample(bytes: &Mmap, hash: &mut blake3::Hasher) {
    const HEAD: usize = 1 << 20;
    const BLOCK: usize = 4096;
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(&bytes[..bytes.len().min(HEAD)]);
    let rest = bytes.len().saturating_sub(HEAD);
    for i in 0..256 {
        let from = HEAD + rest / 256 * i;
        if from < bytes.len() {
            let block = &bytes[from..(from + BLOCK).min(bytes.len())];
            hash.update(block);
            // A block may make 2 MiB of the file resident.
            bytes.forget(block);
        }
    }
    bytes.forget(&bytes[..bytes.len().min(HEAD)]);
}
