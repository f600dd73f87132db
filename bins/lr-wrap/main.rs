//! `lr-wrap`: downcasts the weights to Φ0 and adds the low-rank factors.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::cli::{self, flags::Common, progress};
use common::error::{Error, Result};
use common::format::atomic::{FileDigest, OutputFile, PartDir, write_file};
use common::format::safetensors::{Spec, TensorWriter};
use common::quant::Phi;
use common::stage::record::{self, Begin, Kind, Record};
use common::stage::scales::Scales;
use common::stage::wrapped::{self, Wrapping};

/// Downcasts W0/s0 to Φ0 and adds the low-rank factors A and B
#[derive(Parser)]
#[command(name = "lr-wrap", version)]
struct Args {
    /// Directory that ptq-init made; - reads its path from standard input
    scales: PathBuf,
    /// Rank of A and B
    #[arg(long, default_value_t = 32)]
    rank: usize,
    /// The product A·B is scaled by alpha/rank
    #[arg(long, default_value_t = 1.0)]
    alpha: f32,
    /// How Φ0 is stored: q (fixed point in one byte), int (the b-bit integer), bf16, f32
    #[arg(long, default_value = "q")]
    phi: Phi,
    /// Seed of B
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    cli::main("lr-wrap", run)
}

fn run() -> Result<()> {
    let args: Args = cli::parse()?;
    args.common.start()?;
    if !(1..=1 << 14).contains(&args.rank) || !args.alpha.is_finite() {
        let what =
            format!("--rank {} --alpha {}, expected a rank of 1 to 16384 and a finite alpha", args.rank, args.alpha);
        return Err(Error::usage(what, "give --rank 32 --alpha 1"));
    }
    let scales = Scales::open(&cli::input_path(&args.scales)?)?;
    if args.common.verify {
        scales.stage.verify()?;
    }
    let wrapping = Wrapping { phi: args.phi, rank: args.rank, alpha: args.alpha, seed: args.seed };
    let inputs = vec![scales.stage.as_input("scales", &args.output)?];
    let mut record = Record::new(Kind::Wrapped, Some(scales.scheme.to_string()), wrapping.arguments(), inputs);
    match record::begin(&args.output, &record, args.common.force, false)? {
        Begin::Done => {}
        Begin::Write(part) => {
            for (name, bytes) in scales.model.support_files()? {
                record.files.insert(name.clone(), write_file(&part.join(&name), &bytes)?);
            }
            let digest = write_tensors(&args, &scales, &wrapping, &part)?;
            record.files.insert(wrapped::FILE.into(), digest);
            record::commit(part, &record)?;
        }
    }
    cli::print_path(&args.common, &args.output)
}

fn write_tensors(args: &Args, scales: &Scales, wrapping: &Wrapping, part: &PartDir) -> Result<FileDigest> {
    let specs = wrapped::specs(&scales.model, scales.scheme, wrapping)?;
    let bar = progress::bytes(&args.common, "lr-wrap", specs.iter().map(Spec::bytes).sum::<usize>() as u64);
    let metadata = [("scheme", scales.scheme.to_string()), ("phi", wrapping.phi.to_string())];
    let file = OutputFile::create(&part.join(wrapped::FILE))?;
    let mut writer = TensorWriter::create(file, specs, &metadata)?;
    wrapped::write(scales, wrapping, &mut writer, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    writer.finish()
}
