//! `fold`: merges Φ0, A, B and s into plain integers, in the format of an engine.

mod targets;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use common::cli::{self, flags::Common, progress};
use common::error::{Error, Result};
use common::format::atomic::{PartDir, write_file};
use common::format::gguf::blocks::GgmlType;
use common::format::peft::Lora;
use common::model::host::Source;
use common::stage::checkpoint::Checkpoint;
use common::stage::folded::card::{self, Making};
use common::stage::folded::targets::{Engine, Loads, loads};
use common::stage::folded::verify::verify;
use common::stage::folded::write::{Target, Written, write};
use common::stage::folded::{self, Format, adapter};
use common::stage::record::{self, Begin, Input, Kind, Record, Stage};
use common::stage::report::Report;
use common::stage::wrapped::Wrapped;

/// Merges a checkpoint into plain integers that an engine loads
#[derive(Parser)]
#[command(name = "fold", version)]
struct Args {
    /// Directory that qat-step or lr-wrap made; - reads its path from standard input
    #[arg(required_unless_present = "list_targets")]
    checkpoint: Option<PathBuf>,
    /// What to write: compressed-tensors, int-quantized, gptq, gptq-v2, awq, gguf
    #[arg(long, default_value = "compressed-tensors")]
    format: Format,
    /// Type of embedding and head in a GGUF [default: as in the model]
    #[arg(long, value_name = "TYPE")]
    embedding: Option<Embedding>,
    /// keep: adapters outside the rounding are written beside the integers, as peft and vLLM load them
    #[arg(long, value_enum, value_name = "keep")]
    adapter: Option<KeepAdapter>,
    /// Figures for the model card: a report that eval -o wrote of this checkpoint
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Do not read the result back before it gets its name
    #[arg(long)]
    no_verify: bool,
    /// Show which format holds which scheme and which engine loads it, for the checkpoint or for the usual schemes
    #[arg(long)]
    list_targets: bool,
    /// Only look whether the format can hold it: before training, of what lr-wrap made
    #[arg(long)]
    check: bool,
    /// Directory to write
    #[arg(short, long, value_name = "DIR", required_unless_present_any = ["list_targets", "check"])]
    output: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Embedding {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KeepAdapter {
    Keep,
}

impl Embedding {
    fn ggml(self) -> GgmlType {
        match self {
            Embedding::F32 => GgmlType::F32,
            Embedding::F16 => GgmlType::F16,
            Embedding::Bf16 => GgmlType::Bf16,
            Embedding::Q8_0 => GgmlType::Q8_0,
        }
    }
}

fn main() -> ExitCode {
    cli::main("fold", run)
}

/// What can be folded.
enum Trained {
    Checkpoint(Box<Checkpoint>),
    Wrapped(Box<Wrapped>),
}

impl Trained {
    fn open(path: &Path) -> Result<Trained> {
        let stage = Stage::open(path, &[Kind::Checkpoint, Kind::Wrapped])?;
        Ok(match stage.record.kind {
            Kind::Checkpoint => Trained::Checkpoint(Box::new(Checkpoint::open(path)?)),
            _ => Trained::Wrapped(Box::new(Wrapped::of(stage)?)),
        })
    }

    fn parts(&self) -> (&Stage, &Wrapped, &dyn Source) {
        match self {
            Trained::Checkpoint(c) => (&c.stage, &c.wrapped, c.as_ref()),
            Trained::Wrapped(w) => (&w.stage, w, w.as_ref()),
        }
    }

    fn verify(&self) -> Result<()> {
        match self {
            Trained::Checkpoint(c) => c.verify(),
            Trained::Wrapped(w) => w.stage.verify(),
        }
    }
}

fn run() -> Result<()> {
    let args: Args = cli::parse()?;
    args.common.start()?;
    let path = args.checkpoint.as_deref().map(cli::input_path).transpose()?;
    if args.list_targets {
        return targets::list(&args.common, path.as_deref());
    }
    let Some(path) = path else { unreachable!("clap asks for it") };
    if args.embedding.is_some() && args.format != Format::Gguf {
        let what = format!("--embedding with --format {}", args.format);
        return Err(Error::usage(what, "only a GGUF says the type of its embedding; leave it out"));
    }
    let trained = Trained::open(&path)?;
    if args.common.verify {
        trained.verify()?;
    }
    let (stage, wrapped, source) = trained.parts();
    let support = wrapped.support_files()?;
    let lineage = card::lineage(stage);
    let name = card::model_name(&lineage).unwrap_or("model".into());
    let target = Target {
        from: &path,
        name: &name,
        source,
        config_json: &wrapped.config_json,
        support: &support,
        scheme: wrapped.scheme,
        format: args.format,
        embedding: args.embedding.map(Embedding::ggml),
        lora: lora(&args, &path, wrapped)?,
    };
    target.check()?;
    let (Some(output), false) = (&args.output, args.check) else {
        warn(&args, &target);
        return target.check_values();
    };
    let report = args.report.as_deref().map(|file| open_report(file, stage)).transpose()?;
    let mut record = wanted(&args, stage, output)?;
    match record::begin(output, &record, args.common.force)? {
        Begin::Done => {}
        Begin::Write(part) => {
            warn(&args, &target);
            make(&args, &target, &lineage, report.as_ref(), &part, &mut record)?;
            record::commit(part, &record)?;
        }
    }
    cli::print_path(&args.common, output)
}

/// The adapters to keep. They are never merged, and there must be some.
fn lora(args: &Args, path: &Path, wrapped: &Wrapped) -> Result<Option<Lora>> {
    let (lora, path) = (adapter::lora(&wrapped.wrapping), path.display());
    match (&lora, args.adapter) {
        (Some(_), None) => Err(Error::usage(
            format!(
                "{path}: its adapters lie outside the rounding; merged, the sum would be rounded and what they repair lost"
            ),
            "give --adapter keep",
        )),
        (None, Some(_)) => Err(Error::usage(
            format!("{path}: it has no adapters outside the rounding: nothing is left beside its integers"),
            "leave --adapter out",
        )),
        _ => Ok(lora),
    }
}

fn wanted(args: &Args, stage: &Stage, output: &Path) -> Result<Record> {
    let mut inputs = vec![stage.as_input(&stage.record.kind.to_string(), output)?];
    if let Some(file) = &args.report {
        let bytes = std::fs::read(file).map_err(Error::io(file, "read"))?;
        let digest = blake3::hash(&bytes).to_hex().to_string();
        inputs.push(Input { role: "report".into(), path: record::relative_path(file, output)?, digest });
    }
    let mut arguments = serde_json::json!({"format": args.format.to_string()});
    if let Some(embedding) = args.embedding {
        arguments["embedding"] = embedding.ggml().name().to_lowercase().into();
    }
    if args.adapter.is_some() {
        arguments["adapter"] = "keep".into();
    }
    let record = Record::new(Kind::Folded, stage.record.scheme.clone(), arguments, inputs);
    Ok(if args.adapter.is_some() { record } else { record.in_format(1) })
}

/// The figures for the card; they must be of this checkpoint.
fn open_report(file: &Path, checkpoint: &Stage) -> Result<Report> {
    let bytes = std::fs::read(file).map_err(Error::io(file, "read"))?;
    let bad = |found: String, cure: &str| Error::input(file, found, "a report of eval -o", cure);
    let report: Report =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("not a report ({e})"), "run eval -o again"))?;
    if !card::speaks_of(&report, checkpoint) {
        return Err(bad(format!("no figures of {} as it is now", checkpoint.dir.display()), "run eval -o on it"));
    }
    Ok(report)
}

/// What the file will hold but an engine of its format will not load.
fn warn(args: &Args, target: &Target) {
    for engine in Engine::ALL {
        if let Loads::No(why) = loads(engine, target.format, target.scheme) {
            let told = format!("{} will not load {} as {}: {why}", engine.name(), target.scheme, target.format);
            cli::say(&args.common, "fold", told);
        }
    }
    if target.format == Format::Gguf && target.source.config().window.is_some() {
        let told = "a GGUF of architecture llama has no sliding window: llama.cpp attends to all positions";
        cli::say(&args.common, "fold", told);
    }
}

/// Writes, reads back, describes.
fn make(
    args: &Args,
    target: &Target,
    lineage: &[Stage],
    report: Option<&Report>,
    part: &PartDir,
    record: &mut Record,
) -> Result<()> {
    let bar = progress::bytes(&args.common, "fold", target.bytes()?);
    let Written { files, digests } = write(part, target, |bytes| bar.inc(bytes))?;
    record.files = files;
    bar.finish_and_clear();
    if !args.no_verify {
        let bar = progress::count(&args.common, "verify", target.linears().len() as u64);
        verify(part.path(), target, &digests, || bar.inc(1))?;
        bar.finish_and_clear();
    }
    let making = Making { lineage, report, arguments: &record.arguments, files: &record.files };
    let card = card::card(target, &making);
    record.files.insert(folded::CARD.into(), write_file(&part.join(folded::CARD), card.as_bytes())?);
    Ok(())
}
