//! `ptq-init`: fits the grid of every linear of a model.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::cli::{self, device::Device, flags::Common, progress};
use common::compute::cuda::Fitting;
use common::error::{Error, Result};
use common::format::atomic::{FileDigest, OutputFile, PartDir};
use common::format::safetensors::TensorWriter;
use common::model::host::Source;
use common::model::names::{self, LinearName};
use common::quant::{LinearGrid, Scheme, Symmetry, fit::Fit, grid};
use common::stage::base::BaseModel;
use common::stage::record::{self, Begin, Input, Kind, Record};
use common::stage::scales;

/// Fits the scales (and zero points) of every linear of a LLaMA or Mistral model
#[derive(Parser)]
#[command(name = "ptq-init", version)]
struct Args {
    /// Hugging Face model directory, or a .gguf; in floating point, or quantized (GPTQ, AWQ, compressed-tensors, or a
    /// GGUF that fold wrote)
    model: PathBuf,
    /// What is quantized and how: w4g128, w3pc, w2g64z [default: that of a quantized model, whose integers are kept]
    #[arg(long)]
    scheme: Option<Scheme>,
    /// minmax, or lp:P, the grid search that minimizes Σ|w − ŵ|^P
    #[arg(long, default_value = "lp:3")]
    fit: Fit,
    /// Where to fit: the same scales to the bit; auto is the GPU if there is one
    #[arg(long, value_enum, default_value = "auto")]
    device: Device,
    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    cli::main("ptq-init", run)
}

fn run() -> Result<()> {
    let args: Args = cli::parse()?;
    args.common.start()?;
    let model = BaseModel::open(&cli::input_path(&args.model)?)?;
    if let BaseModel::Quantized(folded) = &model
        && let Some(adapter) = &folded.adapter
    {
        let (path, cure) = (adapter.dir(), "move it out of the directory to start from the integers without it");
        return Err(Error::input(path, "an adapter beside the integers", "a model without one", cure));
    }
    if let (true, BaseModel::Quantized(folded)) = (args.common.verify, &model) {
        folded.verify()?;
    }
    let scheme = scheme(&args, &model)?;
    let linears = names::linears(model.config());
    linears.iter().try_for_each(|linear| scheme.check_width(&linear.name, linear.k))?;
    let mut record = wanted(&args, &model, scheme)?;
    match record::begin(&args.output, &record, args.common.force)? {
        Begin::Done => {}
        Begin::Write(part) => {
            record.files.insert(scales::FILE.into(), write(&args, &model, scheme, &linears, &part)?);
            record::commit(part, &record)?;
        }
    }
    cli::print_path(&args.common, &args.output)
}

/// The scheme asked for, or that of the model.
fn scheme(args: &Args, model: &BaseModel) -> Result<Scheme> {
    match (args.scheme, model.scheme()) {
        (None, None) => Err(Error::usage(
            format!("{}: no --scheme for a model in floating point", model.path().display()),
            "give one, as in --scheme w4g128",
        )),
        (Some(asked), Some(own)) if asked != own => {
            let told = format!("{}: its {own} integers are rounded again to {asked}", model.path().display());
            cli::say(&args.common, "ptq-init", told);
            Ok(asked)
        }
        (asked, own) => Ok(asked.or(own).expect("one of them is there")),
    }
}

/// Are the integers and scales of the model kept as they are?
fn keeps(model: &BaseModel, scheme: Scheme) -> bool {
    model.scheme() == Some(scheme)
}

fn wanted(args: &Args, model: &BaseModel, scheme: Scheme) -> Result<Record> {
    let path = record::relative_path(model.path(), &args.output)?;
    let input = Input { role: "model".into(), path, digest: model.fingerprint()? };
    let fit = if keeps(model, scheme) { "kept".to_string() } else { args.fit.to_string() };
    let arguments = serde_json::json!({"scheme": scheme.to_string(), "fit": fit});
    Ok(Record::new(Kind::Scales, Some(scheme.to_string()), arguments, vec![input]))
}

/// The GPU that fits, if one is to.
fn gpu(args: &Args, scheme: Scheme) -> Result<Option<Fitting>> {
    if !args.device.is_gpu() {
        return Ok(None);
    }
    if !Fitting::takes(args.fit, scheme) {
        let told = match scheme.symmetry {
            Symmetry::Signed => format!("{scheme} is fitted on the CPU: the kernels know no scales of both signs"),
            _ => format!("{} is fitted on the CPU: only minmax, lp:2 and lp:3 are the same to the bit", args.fit),
        };
        cli::say(&args.common, "ptq-init", told);
        return Ok(None);
    }
    Fitting::open().map(Some)
}

/// Tensor by tensor: memory does not grow with the model.
fn write(args: &Args, model: &BaseModel, scheme: Scheme, linears: &[LinearName], part: &PartDir) -> Result<FileDigest> {
    let specs = linears.iter().flat_map(|l| scales::specs(l, scheme)).collect();
    let file = OutputFile::create(&part.join(scales::FILE))?;
    let mut writer = TensorWriter::create(file, specs, &[("scheme", scheme.to_string())])?;
    let bar = progress::count(&args.common, "ptq-init", linears.len() as u64);
    let mut rounded = 0;
    let mut gpu = if keeps(model, scheme) { None } else { gpu(args, scheme)? };
    // The writer's order is by name and a linear's two tensors follow each other, so each is fitted once.
    let mut fitted: Option<(String, LinearGrid)> = None;
    for spec in writer.order().to_vec() {
        let (stem, _) = spec.name.rsplit_once('.').expect("the specs are named <linear>.<what>");
        if fitted.as_ref().is_none_or(|(name, _)| name != stem) {
            let linear = linears.iter().find(|l| l.name == stem).expect("the specs come from the linears");
            let grid = match model.integers(linear, scheme)? {
                Some(integers) => kept(integers.grid, linear, model, &mut rounded)?,
                None => fit(gpu.as_mut(), linear, model, scheme, args.fit)?,
            };
            fitted = Some((stem.to_string(), grid));
            bar.inc(1);
        }
        if let Some((_, grid)) = &fitted {
            scales::put(&mut writer, &spec.name, grid)?;
        }
    }
    bar.finish_and_clear();
    if rounded > 0 {
        let told = format!("{rounded} scales have more than 8 significant bits: they are used rounded to bf16");
        cli::say(&args.common, "ptq-init", told);
    }
    writer.finish()
}

fn fit(
    gpu: Option<&mut Fitting>,
    linear: &LinearName,
    model: &BaseModel,
    scheme: Scheme,
    how: Fit,
) -> Result<LinearGrid> {
    let w = model.weight(linear)?;
    match gpu {
        Some(gpu) => scales::fit_linear_on(gpu, &w, linear, scheme, how, model.path()),
        None => scales::fit_linear(&w, linear, scheme, how, model.path()),
    }
}

/// The grid of a quantized model; counts the scales that the forward pass rounds.
fn kept(kept: LinearGrid, linear: &LinearName, model: &BaseModel, rounded: &mut usize) -> Result<LinearGrid> {
    if let Some(small) = kept.scale.iter().find(|s| **s < grid::MIN_SCALE) {
        return Err(Error::input(
            model.path(),
            format!("{} has a scale of {small:e}", linear.name),
            format!("at least {:e} (2^-17), which is exact in f16 and bf16", grid::MIN_SCALE),
            "start from the original model",
        ));
    }
    *rounded += kept.scale.iter().filter(|s| grid::forward_scale(**s) != **s).count();
    Ok(kept)
}
