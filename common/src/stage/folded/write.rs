//! Writing `folded/`: linear by linear, so that memory does not grow with the model.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::join;
use serde_json::Value;

use super::{Format, SAFETENSORS, gguf};
use crate::error::{Error, Result};
use crate::format::atomic::{FileDigest, OutputFile, PartDir, write_file};
use crate::format::compressed_tensors::{int_quantized, pack_quantized};
use crate::format::gguf::blocks::GgmlType;
use crate::format::safetensors::{Spec, TensorWriter};
use crate::format::tensor::{Dtype, Tensor};
use crate::format::{awq, gptq};
use crate::model::names::{self, LinearName};
use crate::model::weights::{HostLinear, HostLowRank, Source};
use crate::quant::{LinearGrid, Scheme};
use crate::stage::float::SupportFiles;

/// What is to be written.
pub struct Target<'a> {
    /// Where the trained model lies, for messages.
    pub from: &'a Path,
    /// What the model is called.
    pub name: &'a str,
    pub source: &'a dyn Source,
    pub config_json: &'a Value,
    pub support: &'a SupportFiles,
    pub scheme: Scheme,
    pub format: Format,
    /// Type of embedding and head in a GGUF; none is the model's own.
    pub embedding: Option<GgmlType>,
}

/// The files written.
pub type Files = BTreeMap<String, FileDigest>;

impl Target<'_> {
    pub fn linears(&self) -> Vec<LinearName> {
        names::linears(self.source.config())
    }

    /// Refuses what the format cannot hold, and says which can.
    pub fn check(&self) -> Result<()> {
        let linears = self.linears();
        let why = |format: Format| linears.iter().find_map(|l| Some((format.unfit(l, self.scheme)?, &l.name)));
        let Some((why_not, linear)) = why(self.format) else { return Ok(()) };
        let hold: Vec<&str> = Format::ALL.into_iter().filter(|f| why(*f).is_none()).map(Format::name).collect();
        Err(Error::usage(
            format!(
                "{}: {} cannot be written as {}: {why_not} ({linear})",
                self.from.display(),
                self.scheme,
                self.format
            ),
            format!("choose --format {}; fold --list-targets shows what loads which", hold.join(" or ")),
        ))
    }

    /// The trained linear.
    pub fn low_rank(&self, linear: &LinearName) -> Result<HostLowRank> {
        match self.source.linear(linear)? {
            HostLinear::LowRank(w) => Ok(w),
            HostLinear::Codes(_) | HostLinear::Float(_) => {
                unreachable!("only wrapped models and checkpoints are folded")
            }
        }
    }

    /// Bytes of the weights to come, for a progress bar.
    pub fn bytes(&self) -> Result<u64> {
        match self.format {
            Format::Gguf => gguf::bytes(self),
            _ => Ok(self.specs()?.iter().map(Spec::bytes).sum::<usize>() as u64),
        }
    }

    /// What a value that the format cannot say is reported as.
    pub(super) fn cannot_say(&self, why: String) -> Error {
        let cure = match self.format {
            Format::Gptq => "choose --format gptq-v2 or compressed-tensors",
            Format::CompressedTensors => "report this: it should be impossible",
            _ => "choose --format compressed-tensors",
        };
        Error::input(self.from, why, format!("values that {} can say", self.format), cure)
    }

    /// The tensors of `model.safetensors`.
    fn specs(&self) -> Result<Vec<Spec>> {
        let mut specs = Vec::new();
        for LinearName { name, n, k } in &self.linears() {
            specs.extend(match self.format {
                Format::CompressedTensors => pack_quantized::specs(name, *n, *k, self.scheme, self.scale_dtype()),
                Format::IntQuantized => int_quantized::specs(name, *n, *k, self.scheme, self.scale_dtype()),
                Format::Gptq | Format::GptqV2 => gptq::specs(name, *n, *k, self.scheme),
                Format::Awq | Format::Gguf => awq::specs(name, *n, *k, self.scheme),
            });
        }
        for (name, shape) in names::floats(self.source.config()) {
            let dtype = self.source.float(&name, &shape)?.dtype;
            specs.push(Spec::new(name, dtype, shape));
        }
        Ok(specs)
    }

    /// The type that the model computes in, and so the type of compressed-tensors' scales.
    fn scale_dtype(&self) -> Dtype {
        match self.config_json["torch_dtype"].as_str().or(self.config_json["dtype"].as_str()) {
            Some("float16") => Dtype::F16,
            Some("float32") => Dtype::F32,
            _ => Dtype::BF16,
        }
    }

    fn quantization_config(&self) -> Value {
        match self.format {
            Format::CompressedTensors => pack_quantized::quantization_config(self.scheme),
            Format::IntQuantized => int_quantized::quantization_config(self.scheme),
            Format::Gptq => gptq::quantization_config(self.scheme, gptq::Version::V1),
            Format::GptqV2 => gptq::quantization_config(self.scheme, gptq::Version::V2),
            Format::Awq | Format::Gguf => awq::quantization_config(self.scheme),
        }
    }

    fn encode_codes(&self, linear: &LinearName) -> Result<Vec<u8>> {
        let (n, k, scheme) = (linear.n, linear.k, self.scheme);
        let w = self.low_rank(linear)?;
        let codes = w.integers(n, k).codes;
        w.phi.forget();
        Ok(match self.format {
            Format::CompressedTensors => pack_quantized::encode_codes(&codes, n, k, scheme),
            Format::IntQuantized => int_quantized::encode_codes(&codes, n, k, scheme),
            Format::Gptq | Format::GptqV2 => gptq::encode_codes(&codes, n, k, scheme),
            Format::Awq | Format::Gguf => awq::encode_codes(&codes, n, k, scheme),
        })
    }

    fn encode_rest(&self, suffix: &str, linear: &LinearName, grid: &LinearGrid) -> Result<Vec<u8>> {
        let (n, k, scheme) = (linear.n, linear.k, self.scheme);
        let bytes = match self.format {
            Format::CompressedTensors => pack_quantized::encode_rest(suffix, n, k, scheme, grid, self.scale_dtype()),
            Format::IntQuantized => int_quantized::encode_rest(suffix, n, k, scheme, grid, self.scale_dtype()),
            Format::Gptq => gptq::encode_rest(suffix, n, k, scheme, grid, gptq::Version::V1),
            Format::GptqV2 => gptq::encode_rest(suffix, n, k, scheme, grid, gptq::Version::V2),
            Format::Awq | Format::Gguf => awq::encode_rest(suffix, n, k, scheme, grid),
        };
        bytes.map_err(|why| self.cannot_say(format!("{}: {why}", linear.name)))
    }
}

/// Writes everything but the model card; `each` is told the bytes of weights written.
pub fn write(part: &PartDir, target: &Target, each: impl FnMut(u64) + Send) -> Result<Files> {
    let mut files = Files::new();
    if target.format == Format::Gguf {
        files.insert(super::GGUF.into(), gguf::write(&part.join(super::GGUF), target, each)?);
        return Ok(files);
    }
    let mut put = |name: &str, bytes: &[u8]| -> Result<()> {
        files.insert(name.into(), write_file(&part.join(name), bytes)?);
        Ok(())
    };
    for (name, bytes) in target.support {
        put(name, bytes)?;
    }
    let quantization = target.quantization_config();
    if matches!(target.format, Format::Gptq | Format::GptqV2) {
        put("quantize_config.json", &pretty(&quantization))?;
    }
    let mut config = target.config_json.clone();
    config["quantization_config"] = quantization;
    put("config.json", &pretty(&config))?;
    files.insert(SAFETENSORS.into(), safetensors(&part.join(SAFETENSORS), target, each)?);
    Ok(files)
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// A tensor on its way to the file.
pub(super) enum Made {
    Bytes(Vec<u8>),
    /// Copied as it lies in the input.
    Stored(Tensor),
}

/// Each tensor is made while the one before it is written.
fn safetensors(path: &Path, target: &Target, mut each: impl FnMut(u64) + Send) -> Result<FileDigest> {
    let metadata = [("format", "pt".to_string())];
    let mut writer = TensorWriter::create(OutputFile::create(path)?, target.specs()?, &metadata)?;
    let linears: BTreeMap<String, LinearName> = target.linears().into_iter().map(|l| (l.name.clone(), l)).collect();
    let make = |spec: &Spec| encode(target, &linears, spec);
    let specs = writer.order().to_vec();
    let mut next = specs.first().map(make).transpose()?;
    for (i, spec) in specs.iter().enumerate() {
        let now = next.take().expect("made in the round before");
        let (written, made) = join(
            || match &now {
                Made::Bytes(bytes) => writer.put(&spec.name, bytes),
                Made::Stored(tensor) => writer.copy(&spec.name, tensor),
            },
            || specs.get(i + 1).map(make).transpose(),
        );
        written?;
        next = made?;
        each(spec.bytes() as u64);
    }
    writer.finish()
}

fn encode(target: &Target, linears: &BTreeMap<String, LinearName>, spec: &Spec) -> Result<Made> {
    let (stem, suffix) = spec.name.rsplit_once('.').unwrap_or((&spec.name, ""));
    let bytes = match linears.get(stem) {
        Some(linear) if Some(suffix) == target.format.codes_suffix() => target.encode_codes(linear),
        Some(linear) => target.encode_rest(suffix, linear, &target.low_rank(linear)?.grid()),
        None => return Ok(Made::Stored(target.source.float(&spec.name, &spec.shape)?)),
    };
    Ok(Made::Bytes(bytes?))
}
