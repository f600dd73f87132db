//! `fold`: merges Φ0, A, B and s into plain integers, in the format of an engine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::cli::{self, flags::Common, progress};
use common::error::{Error, Result};
use common::format::atomic::{PartDir, write_file};
use common::format::safetensors::Spec;
use common::model::weights::Source;
use common::stage::checkpoint::Checkpoint;
use common::stage::folded::{self, Format};
use common::stage::record::{self, Begin, Kind, Record, Stage};
use common::stage::wrapped::Wrapped;

/// Merges a checkpoint into plain integers that an engine loads
#[derive(Parser)]
#[command(name = "fold", version)]
struct Args {
    /// Directory that qat-step or lr-wrap made; - reads its path from standard input
    checkpoint: PathBuf,
    /// What to write: compressed-tensors
    #[arg(long, default_value = "compressed-tensors")]
    format: Format,
    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
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
    let path = cli::input_path(&args.checkpoint)?;
    let stage = Stage::open(&path, &[Kind::Checkpoint, Kind::Wrapped])?;
    let trained = match stage.record.kind {
        Kind::Checkpoint => Trained::Checkpoint(Box::new(Checkpoint::open(&path)?)),
        _ => Trained::Wrapped(Box::new(Wrapped::open(&path)?)),
    };
    let (stage, wrapped, _) = trained.parts();
    if args.common.verify {
        trained.verify()?;
    }
    let inputs = vec![stage.as_input(&stage.record.kind.to_string(), &args.output)?];
    if wrapped.scheme.asymmetric {
        // Read in the engines' packages: they make the zero points' placeholder unpacked, and then refuse the packed.
        let told = "with a zero point: loads with compressed-tensors 0.17; 0.18 to 0.20 refuse packed zero points";
        cli::say(&args.common, "fold", format!("{}: {told}", wrapped.scheme));
    }
    let arguments = serde_json::json!({"format": args.format.to_string()});
    let mut record = Record::new(Kind::Folded, Some(wrapped.scheme.to_string()), arguments, inputs);
    match record::begin(&args.output, &record, args.common.force, false)? {
        Begin::Done => {}
        Begin::Write(part) => {
            write(&args, &trained, &part, &mut record)?;
            record::commit(part, &record)?;
        }
    }
    cli::print_path(&args.common, &args.output)
}

fn write(args: &Args, trained: &Trained, part: &PartDir, record: &mut Record) -> Result<()> {
    let (_, wrapped, source) = trained.parts();
    for (name, bytes) in wrapped.support_files()? {
        record.files.insert(name.clone(), write_file(&part.join(&name), &bytes)?);
    }
    let config = folded::config_json(args.format, &wrapped.config_json, wrapped.scheme);
    let bytes = serde_json::to_vec_pretty(&config).map_err(|e| {
        Error::input(part.path(), format!("config.json cannot be written ({e})"), "plain JSON", "report this")
    })?;
    record.files.insert("config.json".into(), write_file(&part.join("config.json"), &bytes)?);
    let path = part.join(folded::FILE);
    let bytes = folded::specs(source, &config, wrapped.scheme)?.iter().map(Spec::bytes).sum::<usize>();
    let bar = progress::bytes(&args.common, "fold", bytes as u64);
    let digest = folded::write(&path, source, &config, wrapped.scheme, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    record.files.insert(folded::FILE.into(), digest);
    Ok(())
}
