//! `folded/`: plain integers in the format of an engine, with config and tokenizer: a model directory that loads
//! unchanged. One file per format under `format/`; this module joins them with the rest of the model.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;

use super::float::{SupportFiles, open_weights, read_config, read_support_files, sample_files};
use crate::error::{Error, Result};
use crate::format::atomic::{FileDigest, OutputFile};
use crate::format::compressed_tensors::pack_quantized as ct;
use crate::format::safetensors::{Spec, TensorFile, TensorWriter};
use crate::format::tensor::{Dtype, Tensor, encode_f32};
use crate::model::Config;
use crate::model::names::{self, LinearName};
use crate::model::weights::{Codes, HostLinear, Source};
use crate::quant::{LinearGrid, Scheme};

pub const FILE: &str = "model.safetensors";

/// What `fold --format` can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    CompressedTensors,
}

impl Format {
    pub const NAMES: &str = "compressed-tensors";
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::CompressedTensors => f.write_str("compressed-tensors"),
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(word: &str) -> Result<Format> {
        match word {
            "compressed-tensors" => Ok(Format::CompressedTensors),
            _ => Err(Error::usage(format!("format {word:?} is not known"), format!("choose one of {}", Format::NAMES))),
        }
    }
}

/// config.json of the folded model: the model's own, with the quantization described.
pub fn config_json(format: Format, config: &Value, scheme: Scheme) -> Value {
    let mut config = config.clone();
    match format {
        Format::CompressedTensors => config["quantization_config"] = ct::quantization_config(scheme),
    }
    config
}

/// The type that the model computes in, and so the type of the scales.
fn scale_dtype(config: &Value) -> Dtype {
    match config["torch_dtype"].as_str().or(config["dtype"].as_str()) {
        Some("float16") => Dtype::F16,
        Some("float32") => Dtype::F32,
        _ => Dtype::BF16,
    }
}

/// The tensors of the folded model.
pub fn specs(source: &dyn Source, config_json: &Value, scheme: Scheme) -> Result<Vec<Spec>> {
    let config = source.config();
    let scale_type = scale_dtype(config_json);
    let linears = names::linears(config);
    let mut specs: Vec<Spec> = linears.iter().flat_map(|l| ct::specs(&l.name, l.n, l.k, scheme, scale_type)).collect();
    for (name, shape) in names::floats(config) {
        let dtype = source.float(&name, &shape)?.dtype;
        specs.push(Spec::new(name, dtype, shape));
    }
    Ok(specs)
}

/// Writes the weights of `source`, folded linear by linear; `each` is told the bytes written.
pub fn write(
    path: &Path,
    source: &dyn Source,
    config_json: &Value,
    scheme: Scheme,
    mut each: impl FnMut(u64),
) -> Result<FileDigest> {
    let scale_type = scale_dtype(config_json);
    let linears = names::linears(source.config());
    let specs = specs(source, config_json, scheme)?;
    let mut writer = TensorWriter::create(OutputFile::create(path)?, specs, &[("format", "pt".to_string())])?;
    let find = |name: &str| linears.iter().find(|l| l.name == name);
    // Scales and zero points lie behind all codes in the file: they are kept until their turn.
    let mut small = std::collections::BTreeMap::new();
    for spec in writer.order().to_vec() {
        let (stem, suffix) = spec.name.rsplit_once('.').unwrap_or((&spec.name, ""));
        let bytes = match (find(stem), suffix) {
            (Some(linear), "weight_shape") => ct::shape_bytes(linear.n, linear.k),
            (Some(linear), "weight_packed") => {
                let codes = fold_linear(source, linear)?;
                let scale = encode_f32(&codes.scale, scale_type);
                if Tensor::owned(scale.clone(), scale_type, vec![codes.scale.len()]).to_f32() != codes.scale {
                    return Err(Error::input(
                        path,
                        format!("a scale of {stem} is not exact in {scale_type:?}"),
                        "scales with 8 significant bits",
                        "report this: it should be impossible",
                    ));
                }
                small.insert(format!("{stem}.weight_scale"), scale);
                if codes.zero.is_some() {
                    let grid = LinearGrid { scale: codes.scale.clone(), zero: codes.zero.clone() };
                    let packed = ct::encode_rest("weight_zero_point", linear.n, linear.k, scheme, &grid, scale_type);
                    let packed =
                        packed.map_err(|why| Error::input(path, why, "a zero point of the grid", "report this"))?;
                    small.insert(format!("{stem}.weight_zero_point"), packed);
                }
                codes.codes.bytes().to_vec()
            }
            // Narrower or later in the alphabet than the codes, so written after them.
            (Some(_), _) => small.remove(&spec.name).expect("the codes of this linear were folded before"),
            (None, _) => {
                let t = source.float(&spec.name, &spec.shape)?;
                writer.put(&spec.name, t.bytes())?;
                t.forget();
                each(spec.bytes() as u64);
                continue;
            }
        };
        writer.put(&spec.name, &bytes)?;
        each(spec.bytes() as u64);
    }
    writer.finish()
}

fn fold_linear(source: &dyn Source, linear: &LinearName) -> Result<Codes> {
    match source.linear(linear)? {
        HostLinear::LowRank(w) => {
            let codes = w.fold(linear.n, linear.k);
            w.phi.forget();
            Ok(codes)
        }
        HostLinear::Codes(codes) => Ok(codes),
        HostLinear::Float(_) => unreachable!("only wrapped models and checkpoints are folded"),
    }
}

/// A folded model, read back by its config.json alone, whoever wrote it.
pub struct Folded {
    pub dir: PathBuf,
    pub scheme: Scheme,
    pub config: Config,
    files: Vec<TensorFile>,
    place: std::collections::BTreeMap<String, usize>,
}

impl Folded {
    pub fn open(dir: &Path) -> Result<Folded> {
        let json = read_config(dir)?;
        let config_path = dir.join("config.json");
        let config = Config::parse(&config_path, &json)?;
        let scheme = ct::parse_config(&config_path, &json["quantization_config"])?;
        for linear in names::linears(&config) {
            if !linear.k.is_multiple_of(scheme.group_size(linear.k)) {
                return Err(Error::input(
                    &config_path,
                    format!(
                        "groups of {} in a linear of {} inputs ({})",
                        scheme.group_size(linear.k),
                        linear.k,
                        linear.name
                    ),
                    "a group_size that divides them",
                    "fold the checkpoint again",
                ));
            }
        }
        let (files, place) = open_weights(dir)?;
        Ok(Folded { dir: dir.to_path_buf(), scheme, config, files, place })
    }

    /// Tells whether it changed, as that of a float model does.
    pub fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(format!("{:?} {}", self.config, self.scheme).as_bytes());
        sample_files(&self.files, &mut hash);
        hash.finalize().to_hex().to_string()
    }

    pub fn support_files(&self) -> Result<SupportFiles> {
        read_support_files(&self.dir)
    }

    fn file(&self, tensor: &str) -> Result<&TensorFile> {
        self.place.get(tensor).map(|i| &self.files[*i]).ok_or_else(|| {
            Error::input(
                &self.dir,
                format!("no tensor {tensor}"),
                "every tensor of the model",
                "fold the checkpoint again",
            )
        })
    }
}

impl Source for Folded {
    fn config(&self) -> &Config {
        &self.config
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.file(name)?.expect_float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        let file = self.file(&format!("{}.weight_packed", linear.name))?;
        let read = ct::read_file(file, &linear.name, linear.n, linear.k, self.scheme)?;
        Ok(HostLinear::Codes(Codes {
            scheme: self.scheme,
            codes: read.codes,
            scale: read.grid.scale,
            zero: read.grid.zero,
        }))
    }
}
