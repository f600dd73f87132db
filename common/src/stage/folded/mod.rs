//! `folded/`: plain integers in the format of an engine, with config and tokenizer: what loads unchanged. One file per
//! format under `format/`; this module joins them with the rest of the model, and reads any of them back.
//!
//! | format | files |
//! |---|---|
//! | compressed-tensors, int-quantized, gptq, gptq-v2, awq | `model.safetensors`, `config.json`, the tokenizer's files |
//! | gguf | `model.gguf`, complete in itself |
//!
//! and in each `README.md`, the model card, `size.json`, what takes how many bytes, and `stage.json`; with adapters
//! outside the rounding also `adapter/`, which `peft` and vLLM read.

pub mod adapter;
pub mod card;
pub mod digest;
mod gguf;
pub mod sizes;
pub mod targets;
pub mod verify;
pub mod write;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rayon::prelude::*;
use serde_json::Value;

use super::float::{SupportFiles, WeightFiles, read_config, read_gguf, read_support_files};
use super::record::{self, Stage};
use crate::data::tokenizer;
use crate::error::{Error, Result};
use crate::format::compressed_tensors::{int_quantized, pack_quantized};
use crate::format::gguf::llama::GgufLlama;
use crate::format::peft::PeftAdapter;
use crate::format::quantized::{Lookup, Stored};
use crate::format::tensor::{Dtype, Tensor};
use crate::format::{awq, gptq};
use crate::model::Config;
use crate::model::host::{Codes, HostAdapter, HostLinear, Source};
use crate::model::names::{self, LinearName};
use crate::quant::{Integers, Scheme, Symmetry, grid};

pub const SAFETENSORS: &str = "model.safetensors";
pub const GGUF: &str = "model.gguf";
pub const CARD: &str = "README.md";

/// What `fold --format` can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    CompressedTensors,
    IntQuantized,
    Gptq,
    GptqV2,
    Awq,
    Gguf,
}

impl Format {
    pub const ALL: [Format; 6] =
        [Format::CompressedTensors, Format::IntQuantized, Format::Gptq, Format::GptqV2, Format::Awq, Format::Gguf];

    pub fn name(self) -> &'static str {
        match self {
            Format::CompressedTensors => "compressed-tensors",
            Format::IntQuantized => "int-quantized",
            Format::Gptq => "gptq",
            Format::GptqV2 => "gptq-v2",
            Format::Awq => "awq",
            Format::Gguf => "gguf",
        }
    }

    pub fn names() -> String {
        Format::ALL.map(Format::name).join(", ")
    }

    /// Suffix of the tensor that holds a linear's codes, in the formats that are safetensors.
    fn codes_suffix(self) -> Option<&'static str> {
        match self {
            Format::CompressedTensors => Some(pack_quantized::CODES),
            Format::IntQuantized => Some(int_quantized::CODES),
            Format::Gptq | Format::GptqV2 => Some(gptq::CODES),
            Format::Awq => Some(awq::CODES),
            Format::Gguf => None,
        }
    }

    /// Why the format cannot hold this linear at this scheme; none if it can.
    pub fn unfit(self, linear: &LinearName, scheme: Scheme) -> Option<String> {
        let (n, k) = (linear.n, linear.k);
        match self {
            Format::CompressedTensors => pack_quantized::unfit(n, k, scheme),
            Format::IntQuantized => int_quantized::unfit(n, k, scheme),
            Format::Gptq | Format::GptqV2 => gptq::unfit(n, k, scheme),
            Format::Awq => awq::unfit(n, k, scheme),
            Format::Gguf => gguf::unfit(k, scheme),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(word: &str) -> Result<Format> {
        let found = Format::ALL.into_iter().find(|format| format.name() == word);
        found.ok_or_else(|| {
            Error::usage(format!("format {word:?} is not known"), format!("choose one of {}", Format::names()))
        })
    }
}

/// A quantized model, whoever wrote it: a directory that its config.json alone describes, or a GGUF that `fold` wrote.
pub struct Folded {
    path: PathBuf,
    pub scheme: Scheme,
    pub format: Format,
    pub config: Config,
    pub config_json: Value,
    weights: Weights,
    /// Beside the integers.
    pub adapter: Option<PeftAdapter>,
}

enum Weights {
    Safetensors(WeightFiles),
    Gguf(Box<GgufLlama>),
}

impl Folded {
    /// A directory that `fold` wrote.
    pub fn open(dir: &Path) -> Result<Folded> {
        let inside = dir.join(GGUF);
        if !inside.is_file() {
            return Folded::open_dir(dir);
        }
        let gguf = GgufLlama::open(&inside)?;
        match gguf.scheme()? {
            Some(scheme) => Folded::of_gguf(gguf, scheme),
            None => {
                Err(Error::input(inside, "no lrqat.scheme in its metadata", "the GGUF that fold wrote", "fold again"))
            }
        }
    }

    pub(super) fn open_dir(dir: &Path) -> Result<Folded> {
        let config_json = read_config(dir)?;
        let config_path = dir.join("config.json");
        let config = Config::parse(&config_path, &config_json)?;
        let files = WeightFiles::open(dir)?;
        let (format, scheme) = described(&config_path, &config_json["quantization_config"])?;
        let weights = Weights::Safetensors(files);
        let adapter = PeftAdapter::open(&dir.join(adapter::DIR))?;
        let mut folded = Folded { path: dir.into(), scheme, format, config, config_json, weights, adapter };
        if format == Format::Awq {
            // AWQ always stores zero points: whether they are the middle of the grid is what the first linear says.
            let first = names::block_linears(&folded.config, 0)[0].clone();
            folded.check_width(&first)?;
            let find = |name: &str| folded.tensor(name);
            let symmetric = awq::is_symmetric(&folded.lookup(&find), &first.name, first.n, first.k, scheme)?;
            folded.scheme.symmetry = if symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric };
        }
        if folded.scheme.symmetry == Symmetry::Symmetric && folded.has_negative_scales() {
            folded.scheme.symmetry = Symmetry::Signed;
        }
        names::linears(&folded.config).iter().try_for_each(|linear| folded.check_width(linear))?;
        Ok(folded)
    }

    pub(super) fn of_gguf(gguf: GgufLlama, scheme: Scheme) -> Result<Folded> {
        let (path, config_json) = (gguf.gguf().path().to_path_buf(), gguf.hf_config().clone());
        let config = Config::parse(&path, &config_json)?;
        let weights = Weights::Gguf(Box::new(gguf));
        let adapter = path.parent().map_or(Ok(None), |dir| PeftAdapter::open(&dir.join(adapter::DIR)))?;
        let folded = Folded { path, scheme, format: Format::Gguf, config, config_json, weights, adapter };
        names::linears(&folded.config).iter().try_for_each(|linear| folded.check_width(linear))?;
        Ok(folded)
    }

    /// The same, which has positive scales only, as a model that could have negative ones.
    pub(super) fn allowing_both_signs(mut self) -> Folded {
        if self.scheme.symmetry == Symmetry::Symmetric {
            self.scheme.symmetry = Symmetry::Signed;
        }
        self
    }

    fn has_negative_scales(&self) -> bool {
        let suffix = match self.format {
            Format::Gptq | Format::GptqV2 | Format::Awq => "scales",
            Format::CompressedTensors => "weight_scale",
            Format::IntQuantized | Format::Gguf => return false,
        };
        let find = |name: &str| self.tensor(name);
        let at = self.lookup(&find);
        names::linears(&self.config).iter().any(|linear| at.any_negative(&format!("{}.{suffix}", linear.name)))
    }

    fn check_width(&self, linear: &LinearName) -> Result<()> {
        let group = self.scheme.group_size(linear.k);
        if linear.k.is_multiple_of(group) {
            return Ok(());
        }
        let found = format!("groups of {group} in a linear of {} inputs ({})", linear.k, linear.name);
        let described = self.path.join("config.json");
        let path = if described.is_file() { &described } else { &self.path };
        Err(Error::input(path, found, "a group_size that divides them", "fold the checkpoint again"))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory with its `stage.json`, if `fold` wrote it.
    pub fn stage_dir(&self) -> Option<&Path> {
        let dir = if self.path.is_dir() { Some(self.path.as_path()) } else { self.path.parent() };
        dir.filter(|dir| dir.join(record::FILE).is_file())
    }

    /// Hashes its files again, if `fold` wrote it; others' models have no digests.
    pub fn verify(&self) -> Result<()> {
        self.stage_dir().map_or(Ok(()), |dir| Stage::read(dir)?.verify())
    }

    /// Tells whether it changed, as that of a float model does.
    pub fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(format!("{:?} {} {}", self.config, self.scheme, self.format).as_bytes());
        match &self.weights {
            Weights::Safetensors(files) => files.sample(&mut hash),
            Weights::Gguf(gguf) => super::float::sample(gguf.gguf().map(), &mut hash),
        }
        hash.finalize().to_hex().to_string()
    }

    /// The files of the tokenizer and what else travels with a model, config.json left out.
    pub fn support_files(&self) -> Result<SupportFiles> {
        match &self.weights {
            Weights::Safetensors(_) => read_support_files(&self.path),
            Weights::Gguf(gguf) => tokenizer::hf_tokenizer_files(gguf.gguf()),
        }
    }

    /// A tensor as it is stored in a safetensors file.
    fn tensor(&self, name: &str) -> Option<Tensor> {
        match &self.weights {
            Weights::Safetensors(files) => files.get(name).cloned(),
            Weights::Gguf(_) => None,
        }
    }

    fn lookup<'a>(&'a self, find: &'a dyn Fn(&str) -> Option<Tensor>) -> Lookup<'a> {
        Lookup { path: &self.path, find }
    }

    /// The integers and the grid of a linear.
    pub fn integers(&self, linear: &LinearName) -> Result<Integers> {
        self.stored(linear)?.integers()
    }

    /// A linear as the reading rule of the format's engines finds it.
    pub fn stored(&self, linear: &LinearName) -> Result<Stored> {
        let LinearName { name, n, k } = linear;
        let (n, k, scheme) = (*n, *k, self.scheme);
        let find = |tensor: &str| self.tensor(tensor);
        let at = self.lookup(&find);
        match (&self.weights, self.format) {
            (Weights::Gguf(gguf), _) => gguf.linear(name, scheme),
            (_, Format::IntQuantized) => int_quantized::read(&at, name, n, k, scheme),
            (_, Format::Gptq) => gptq::read(&at, name, n, k, scheme, gptq::Version::V1),
            (_, Format::GptqV2) => gptq::read(&at, name, n, k, scheme, gptq::Version::V2),
            (_, Format::Awq) => awq::read(&at, name, n, k, scheme),
            (_, Format::CompressedTensors | Format::Gguf) => pack_quantized::read(&at, name, n, k, scheme),
        }
    }

    /// s·(W_Z − z) [n, k], f32.
    pub fn dequantized(&self, linear: &LinearName) -> Result<Tensor> {
        let Integers { codes, grid: g } = self.integers(linear)?;
        let (group, groups) = (self.scheme.group_size(linear.k), self.scheme.groups(linear.k));
        let qmin = self.scheme.qmin();
        let mut bytes = vec![0u8; codes.len() * 4];
        bytes.par_chunks_mut(group * 4).zip(codes.par_chunks(group)).enumerate().for_each(|(at, (out, codes))| {
            debug_assert!(at < linear.n * groups);
            let (s, z) = (g.scale[at], g.zero.as_ref().map_or(0.0, |zero| zero[at]));
            for (out, code) in out.chunks_exact_mut(4).zip(codes) {
                out.copy_from_slice(&grid::dequantize(*code as f32 + qmin, z, s).to_le_bytes());
            }
        });
        Ok(Tensor::owned(bytes, Dtype::F32, vec![linear.n, linear.k]))
    }
}

/// Format and scheme that a `quantization_config` describes.
fn described(path: &Path, q: &Value) -> Result<(Format, Scheme)> {
    match q["quant_method"].as_str() {
        Some("compressed-tensors") if q["format"] == "int-quantized" => {
            Ok((Format::IntQuantized, int_quantized::parse_config(path, q)?))
        }
        Some("compressed-tensors") => Ok((Format::CompressedTensors, pack_quantized::parse_config(path, q)?)),
        Some("gptq") => {
            let (version, scheme) = gptq::parse_config(path, q)?;
            let format = if version == gptq::Version::V1 { Format::Gptq } else { Format::GptqV2 };
            Ok((format, scheme))
        }
        Some("awq") => Ok((Format::Awq, awq::parse_config(path, q)?)),
        other => Err(Error::input(
            path,
            format!("quant_method {:?}", other.unwrap_or("none")),
            "compressed-tensors, gptq or awq",
            "start from the original model",
        )),
    }
}

impl Source for Folded {
    fn config(&self) -> &Config {
        &self.config
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match &self.weights {
            Weights::Safetensors(files) => files.float(name, shape),
            Weights::Gguf(gguf) => read_gguf(gguf, name, shape),
        }
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        let LinearName { name, n, k } = linear;
        let (n, k) = (*n, *k);
        let mut codes = if self.format == Format::CompressedTensors && self.scheme.symmetry != Symmetry::Signed {
            // The backend computes with this packing as it is: no copy.
            let find = |tensor: &str| self.tensor(tensor);
            let read = pack_quantized::read_packed(&self.lookup(&find), name, n, k, self.scheme)?;
            Codes::forward(self.scheme, read.codes, read.grid)
        } else {
            Codes::pack(self.scheme, n, k, &self.integers(linear)?)
        };
        if let Some(of) = &self.adapter
            && let Some([b, a]) = of.factors(name, n, k)?
        {
            codes.adapter = Some(HostAdapter { rank: of.lora.rank, alpha: of.lora.alpha, a, b });
        }
        Ok(HostLinear::Codes(codes))
    }
}
