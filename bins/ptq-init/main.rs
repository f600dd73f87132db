//! `ptq-init`: fits the grid of every linear of a model.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::cli::{self, flags::Common, progress};
use common::error::Result;
use common::format::atomic::{OutputFile, PartDir};
use common::format::safetensors::TensorWriter;
use common::model::names;
use common::quant::{LinearGrid, Scheme, fit::Fit};
use common::stage::float::FloatModel;
use common::stage::record::{self, Begin, Input, Kind, Record};
use common::stage::scales;

/// Fits the scales (and zero points) of every linear of a LLaMA or Mistral model
#[derive(Parser)]
#[command(name = "ptq-init", version)]
struct Args {
    /// Hugging Face model directory, or a .gguf
    model: PathBuf,
    /// What is quantized and how: w4g128, w3pc, w2g64z
    #[arg(long)]
    scheme: Scheme,
    /// minmax, or lp:P, the grid search that minimizes Σ|w − ŵ|^P
    #[arg(long, default_value = "lp:3")]
    fit: Fit,
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
    let model = FloatModel::open(&cli::input_path(&args.model)?)?;
    for linear in names::linears(&model.config) {
        args.scheme.check_width(&linear.name, linear.k)?;
    }
    let mut record = wanted(&args, &model)?;
    match record::begin(&args.output, &record, args.common.force, false)? {
        Begin::Done => {}
        Begin::Write(part) => {
            record.files.insert(scales::FILE.into(), fit_all(&args, &model, &part)?);
            record::commit(part, &record)?;
        }
    }
    cli::print_path(&args.common, &args.output)
}

fn wanted(args: &Args, model: &FloatModel) -> Result<Record> {
    let path = record::relative_path(model.path(), &args.output)?;
    let input = Input { role: "model".into(), path, digest: model.fingerprint()? };
    let arguments = serde_json::json!({"scheme": args.scheme.to_string(), "fit": args.fit.to_string()});
    Ok(Record::new(Kind::Scales, Some(args.scheme.to_string()), arguments, vec![input]))
}

/// Tensor by tensor: memory does not grow with the model.
fn fit_all(args: &Args, model: &FloatModel, part: &PartDir) -> Result<common::format::atomic::FileDigest> {
    let linears = names::linears(&model.config);
    let specs = linears.iter().flat_map(|l| scales::specs(l, args.scheme)).collect();
    let file = OutputFile::create(&part.join(scales::FILE))?;
    let mut writer = TensorWriter::create(file, specs, &[("scheme", args.scheme.to_string())])?;
    let bar = progress::count(&args.common, "ptq-init", linears.len() as u64);
    // The writer's order is by name and a linear's two tensors follow each other, so each is fitted once.
    let mut fitted: Option<(String, LinearGrid)> = None;
    for spec in writer.order().to_vec() {
        let (stem, _) = spec.name.rsplit_once('.').expect("the specs are named <linear>.<what>");
        if fitted.as_ref().is_none_or(|(name, _)| name != stem) {
            let linear = linears.iter().find(|l| l.name == stem).expect("the specs come from the linears");
            let weight = model.tensor(&format!("{stem}.weight"), &[linear.n, linear.k])?;
            let grid = scales::fit_linear(&weight, linear, args.scheme, args.fit, model.path())?;
            fitted = Some((stem.to_string(), grid));
            bar.inc(1);
        }
        if let Some((_, grid)) = &fitted {
            scales::put(&mut writer, &spec.name, grid)?;
        }
    }
    bar.finish_and_clear();
    writer.finish()
}
