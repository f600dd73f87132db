//! Writing `folded/`: linear by linear, so that memory does not grow with the model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde_json::Value;

use super::digest::{self, Digests};
use super::sizes::{self, Sizes};
use super::{Format, SAFETENSORS, adapter, gguf};
use crate::error::{Error, Result};
use crate::format::atomic::{FileDigest, OutputFile, PartDir, write_file};
use crate::format::compressed_tensors::{int_quantized, pack_quantized};
use crate::format::gguf::blocks::GgmlType;
use crate::format::peft::Lora;
use crate::format::safetensors::{Spec, TensorWriter};
use crate::format::spare::Spare;
use crate::format::tensor::Dtype;
use crate::format::{awq, gptq};
use crate::model::host::Source;
use crate::model::names::{self, LinearName};
use crate::quant::{LinearGrid, Scheme, pack};
use crate::stage::ahead::{Made, ahead};
use crate::stage::float::SupportFiles;

/// Rows of a linear that are made at a time, so few that their integers stay in the cache.
pub(super) const ROWS: usize = 32;

/// Tensors that are the same whatever was trained.
const OF_THE_SHAPE: [&str; 2] = ["weight_shape", "g_idx"];

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
    /// Adapters that are kept beside the integers.
    pub lora: Option<Lora>,
}

/// The files written.
pub type Files = BTreeMap<String, FileDigest>;

/// What was written.
pub struct Written {
    pub files: Files,
    /// Of the integers, before they were packed.
    pub digests: Digests,
}

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

    /// Refuses values that the format cannot say: all that [`write`] could refuse but for the codes, which always fit.
    pub fn check_values(&self) -> Result<()> {
        if self.format == Format::Gguf {
            return gguf::check(self);
        }
        for linear in &self.linears() {
            let grid = self.source.grid(linear)?;
            for spec in self.linear_specs(linear) {
                let suffix = spec.name.rsplit('.').next().unwrap_or_default();
                if Some(suffix) != self.format.codes_suffix() {
                    self.encode_rest(suffix, linear, &grid)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes of the weights to come, for a progress bar.
    pub fn bytes(&self) -> Result<u64> {
        match self.format {
            Format::Gguf => gguf::bytes(self),
            _ => Ok(self.specs()?.iter().map(Spec::bytes).sum::<usize>() as u64),
        }
    }

    /// What a value that the format cannot say is reported as.
    pub(super) fn cannot_say(&self, why: String, suffix: &str) -> Error {
        let cure = match self.format {
            Format::Gptq if suffix == "qzeros" => "choose --format gptq-v2 or compressed-tensors",
            // Its scales have the type of the model: f16 is narrower than bf16.
            Format::CompressedTensors | Format::IntQuantized => {
                "start again from the model with torch_dtype bfloat16 in its config.json"
            }
            _ => "choose --format compressed-tensors",
        };
        Error::input(self.from, why, format!("values that {} can say", self.format), cure)
    }

    /// The tensors of `model.safetensors`.
    pub(super) fn specs(&self) -> Result<Vec<Spec>> {
        let mut specs: Vec<Spec> = self.linears().iter().flat_map(|linear| self.linear_specs(linear)).collect();
        for (name, shape) in names::floats(self.source.config()) {
            let dtype = self.source.float(&name, &shape)?.dtype;
            specs.push(Spec::new(name, dtype, shape));
        }
        Ok(specs)
    }

    fn linear_specs(&self, LinearName { name, n, k }: &LinearName) -> Vec<Spec> {
        match self.format {
            Format::CompressedTensors => pack_quantized::specs(name, *n, *k, self.scheme, self.float_dtype()),
            Format::IntQuantized => int_quantized::specs(name, *n, *k, self.scheme, self.float_dtype()),
            Format::Gptq | Format::GptqV2 => gptq::specs(name, *n, *k, self.scheme),
            Format::Awq => awq::specs(name, *n, *k, self.scheme),
            Format::Gguf => no_safetensors(),
        }
    }

    /// The type that the model computes in, and so the type of compressed-tensors' scales, and of adapters.
    pub fn float_dtype(&self) -> Dtype {
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
            Format::Awq => awq::quantization_config(self.scheme),
            Format::Gguf => no_safetensors(),
        }
    }

    /// The codes of a linear as they are stored, to `out`: some rows at a time are rounded and packed. Their digest.
    fn encode_codes(&self, linear: &LinearName, spare: &Spare<Block>, out: &mut [u8]) -> Result<u128> {
        let (n, k, scheme) = (linear.n, linear.k, self.scheme);
        let w = self.source.linear(linear)?;
        let (integers, grid) = (w.integers(k), w.grid());
        // Where the format stores a linear transposed, rows of W are a part of each of its rows.
        let (stored_rows, rows) = match self.format {
            Format::CompressedTensors | Format::IntQuantized => (1, ROWS),
            Format::Gptq | Format::GptqV2 => (pack::words(k, scheme.bits), gptq::TOGETHER),
            Format::Awq => (k, awq::ROWS),
            Format::Gguf => no_safetensors(),
        };
        let blocks = across(out, stored_rows, n, rows).into_par_iter().with_max_len(1).enumerate();
        let make = |Block { codes, packed }: &mut Block, block, parts: Vec<&mut [u8]>| {
            let first = block * rows;
            codes.resize(rows.min(n - first) * k, 0);
            integers.rows(first, codes);
            let digest = digest::of_rows(codes, k);
            grid.mirror(codes, first, k, scheme);
            packed.resize(parts.iter().map(|part| part.len()).sum(), 0);
            match self.format {
                Format::CompressedTensors => pack_quantized::encode_codes(codes, k, scheme, packed),
                Format::IntQuantized => int_quantized::encode_codes(codes, packed),
                Format::Gptq | Format::GptqV2 => gptq::encode_codes(codes, k, scheme, packed),
                Format::Awq => awq::encode_codes(codes, k, packed),
                Format::Gguf => no_safetensors(),
            }
            // Packed in the cache: in memory, what is read back there would wait for what is written.
            for (part, packed) in parts.into_iter().zip(packed.chunks_exact(packed.len() / stored_rows)) {
                part.copy_from_slice(packed);
            }
            digest
        };
        let digests = blocks.map(|(block, parts)| spare.lend(|memory| make(memory, block, parts)));
        let digest = digest::of_linear(digests.collect());
        w.stored().forget();
        Ok(digest)
    }

    fn encode_rest(&self, suffix: &str, linear: &LinearName, grid: &LinearGrid) -> Result<Vec<u8>> {
        let (n, k, scheme) = (linear.n, linear.k, self.scheme);
        let bytes = match self.format {
            Format::CompressedTensors => pack_quantized::encode_rest(suffix, n, k, scheme, grid, self.float_dtype()),
            Format::IntQuantized => int_quantized::encode_rest(suffix, n, k, scheme, grid, self.float_dtype()),
            Format::Gptq => gptq::encode_rest(suffix, n, k, scheme, grid, gptq::Version::V1),
            Format::GptqV2 => gptq::encode_rest(suffix, n, k, scheme, grid, gptq::Version::V2),
            Format::Awq => awq::encode_rest(suffix, n, k, scheme, grid),
            Format::Gguf => no_safetensors(),
        };
        bytes.map_err(|why| self.cannot_say(format!("{}: {why}", linear.name), suffix))
    }
}

/// Writes everything but the model card; `each` is told the bytes of weights written.
pub fn write(part: &PartDir, target: &Target, each: impl FnMut(u64) + Send) -> Result<Written> {
    let mut files = target.lora.as_ref().map_or(Ok(Files::new()), |lora| adapter::write(part, target, lora))?;
    let sizes = serde_json::to_value(Sizes::of(target)?).expect("sizes are plain JSON");
    files.insert(sizes::FILE.into(), write_file(&part.join(sizes::FILE), &pretty(&sizes))?);
    if target.format == Format::Gguf {
        let (file, digests) = gguf::write(&part.join(super::GGUF), target, each)?;
        files.insert(super::GGUF.into(), file);
        return Ok(Written { files, digests });
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
    let (file, digests) = safetensors(&part.join(SAFETENSORS), target, each)?;
    files.insert(SAFETENSORS.into(), file);
    Ok(Written { files, digests })
}

fn no_safetensors() -> ! {
    unreachable!("a GGUF is written by folded/gguf.rs")
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// Cuts each of the `rows` of `out`, in which `n` things lie side by side, into pieces of `width` of them. Piece by
/// piece, the parts of all rows.
fn across(out: &mut [u8], rows: usize, n: usize, width: usize) -> Vec<Vec<&mut [u8]>> {
    let row_bytes = out.len() / rows;
    let mut pieces: Vec<Vec<&mut [u8]>> = (0..n.div_ceil(width)).map(|_| Vec::with_capacity(rows)).collect();
    for row in out.chunks_exact_mut(row_bytes) {
        for (piece, part) in pieces.iter_mut().zip(row.chunks_mut(width * row_bytes / n)) {
            piece.push(part);
        }
    }
    pieces
}

fn safetensors(path: &Path, target: &Target, mut each: impl FnMut(u64) + Send) -> Result<(FileDigest, Digests)> {
    let metadata = [("format", "pt".to_string())];
    let mut writer = TensorWriter::create(OutputFile::create(path)?, target.specs()?, &metadata)?;
    let specs = writer.order().to_vec();
    let encoder = Encoder::new(target);
    let write = |spec: &Spec, made: &Made| {
        match made.stored() {
            Some(tensor) => writer.copy(&spec.name, tensor)?,
            None => writer.put(&spec.name, made.bytes())?,
        }
        each(spec.bytes() as u64);
        Ok(())
    };
    ahead(&specs, Spec::bytes, |spec, made| encoder.encode(spec, made), write)?;
    Ok((writer.finish()?, encoder.digests.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

/// Makes the tensors of `model.safetensors`.
struct Encoder<'a> {
    target: &'a Target<'a>,
    linears: BTreeMap<String, LinearName>,
    digests: Mutex<Digests>,
    spare: Spare<Block>,
}

/// Some rows of a linear.
#[derive(Default)]
struct Block {
    codes: Vec<u8>,
    packed: Vec<u8>,
}

impl<'a> Encoder<'a> {
    fn new(target: &'a Target<'a>) -> Encoder<'a> {
        let linears = target.linears().into_iter().map(|linear| (linear.name.clone(), linear)).collect();
        Encoder { target, linears, digests: Mutex::default(), spare: Spare::default() }
    }

    fn encode(&self, spec: &Spec, made: &mut Made) -> Result<()> {
        let target = self.target;
        let (stem, suffix) = spec.name.rsplit_once('.').unwrap_or((&spec.name, ""));
        let Some(linear) = self.linears.get(stem) else {
            made.store(target.source.float(&spec.name, &spec.shape)?);
            return Ok(());
        };
        if OF_THE_SHAPE.contains(&suffix) {
            let any = LinearGrid { scale: Vec::new(), zero: None };
            made.put(target.encode_rest(suffix, linear, &any)?);
            return Ok(());
        }
        if Some(suffix) == target.format.codes_suffix() {
            let digest = target.encode_codes(linear, &self.spare, made.room(spec.bytes())?)?;
            self.digests.lock().unwrap_or_else(PoisonError::into_inner).insert(stem.to_string(), digest);
        } else {
            made.put(target.encode_rest(suffix, linear, &target.source.grid(linear)?)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn pieces_across_rows() {
        let mut bytes: Vec<u8> = (0..24).collect();
        let pieces = super::across(&mut bytes, 2, 6, 4);
        assert_eq!(pieces[0], [&[0, 1, 2, 3, 4, 5, 6, 7], &[12, 13, 14, 15, 16, 17, 18, 19]]);
        assert_eq!(pieces[1], [&[8, 9, 10, 11], &[20, 21, 22, 23]]);
    }
}
