//! `lr-wrap`: adds the low-rank factors, to weights downcast to Φ0, or beside fixed integers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use common::cli::{self, flags::Common, progress};
use common::error::{Error, Result};
use common::format::atomic::{FileDigest, OutputFile, PartDir, write_file};
use common::format::safetensors::{Spec, TensorWriter};
use common::quant::Phi;
use common::stage::record::{self, Begin, Kind, Record};
use common::stage::scales::Scales;
use common::stage::wrapped;
use common::stage::wrapping::{Budget, Place, RankChoice, Targets, Wrapping};

/// Adds low-rank factors A and B: inside the rounding, or as an adapter beside fixed integers
#[derive(Parser)]
#[command(name = "lr-wrap", version)]
struct Args {
    /// Directory that ptq-init made; - reads its path from standard input
    scales: PathBuf,
    /// inside: A·B is rounded with the weights, and folds into plain integers; outside: an adapter (LoRA) beside fixed
    /// integers, kept at inference
    #[arg(long, value_enum, default_value = "inside")]
    adapter: Where,
    /// Rank of A and B; 0 trains the scales alone; auto:1.05, outside, is the largest with which the model is at most 1.05
    /// times as large
    #[arg(long, value_name = "RANK", default_value = "32")]
    rank: RankChoice,
    /// The product A·B is scaled by alpha/rank [default: 1 inside, 4·rank outside]
    #[arg(long)]
    alpha: Option<f32>,
    /// Inside: how Φ0 is stored: q (fixed point in one byte), int (the b-bit integer), bf16, f32 [default: q]
    #[arg(long)]
    phi: Option<Phi>,
    /// Outside: linears that get an adapter [default: q,k,v,o,gate,up,down]
    #[arg(long, value_name = "LIST")]
    targets: Option<Targets>,
    /// Outside: part of an adapter's input that is dropped in training [default: 0]
    #[arg(long, value_name = "PART")]
    dropout: Option<f32>,
    /// Seed of B
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Where {
    Inside,
    Outside,
}

fn main() -> ExitCode {
    cli::main("lr-wrap", run)
}

fn run() -> Result<()> {
    let args: Args = cli::parse()?;
    args.common.start()?;
    let scales = Scales::open(&cli::input_path(&args.scales)?)?;
    if args.common.verify {
        scales.stage.verify()?;
    }
    let wrapping = wrapping(&args, &scales)?;
    let inputs = vec![scales.stage.as_input("scales", &args.output)?];
    let mut record = Record::new(Kind::Wrapped, Some(scales.scheme.to_string()), wrapping.arguments(), inputs);
    if !wrapping.is_outside() {
        record = record.in_format(1);
    }
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

/// What the flags mean together.
fn wrapping(args: &Args, scales: &Scales) -> Result<Wrapping> {
    let outside = args.adapter == Where::Outside;
    let refuse = |what: String, cure: &str| Err(Error::usage(what, cure));
    let only = |flag: &str, place: &str| refuse(format!("--{flag} is for --adapter {place}"), "leave it out");
    match (outside, &args.phi, &args.targets, args.dropout, args.rank) {
        (true, Some(_), ..) => return only("phi", "inside"),
        (false, _, Some(_), ..) => return only("targets", "outside"),
        (false, _, _, Some(_), _) => return only("dropout", "outside"),
        (false, .., RankChoice::Auto(_)) => return only("rank auto", "outside"),
        _ => {}
    }
    let dropout = args.dropout.unwrap_or(0.0);
    if !(0.0..1.0).contains(&dropout) {
        return refuse(format!("--dropout {dropout}, expected 0 to less than 1"), "give --dropout 0.05");
    }
    if let Some(alpha) = args.alpha.filter(|alpha| !alpha.is_finite()) {
        return refuse(format!("--alpha {alpha}, expected a finite number"), "give --alpha 1");
    }
    let targets = args.targets.unwrap_or(Targets::ALL);
    let budget = Budget::new(&scales.model, scales.scheme, targets)?;
    let rank = match args.rank {
        RankChoice::Rank(rank) => rank,
        RankChoice::Auto(factor) => budget.rank(factor)?,
    };
    if rank == 0 {
        return Ok(Wrapping::scales_alone());
    }
    if !outside {
        let place = Place::Inside { phi: args.phi.unwrap_or(Phi::Q) };
        return Ok(Wrapping { place, rank, alpha: args.alpha.unwrap_or(1.0), seed: args.seed });
    }
    let (megabytes, factor) = ((budget.per_rank * rank as u64) as f64 / 1e6, budget.factor(rank));
    let size = format!("rank {rank}: {megabytes:.1} MB of adapters, {factor:.3} times the quantized size");
    cli::say(&args.common, "lr-wrap", size);
    let alpha = args.alpha.unwrap_or(4.0 * rank as f32);
    Ok(Wrapping { place: Place::Outside { targets, dropout }, rank, alpha, seed: args.seed })
}

fn write_tensors(args: &Args, scales: &Scales, wrapping: &Wrapping, part: &PartDir) -> Result<FileDigest> {
    let specs = wrapped::specs(&scales.model, scales.scheme, wrapping)?;
    let bar = progress::bytes(&args.common, "lr-wrap", specs.iter().map(Spec::bytes).sum::<usize>() as u64);
    let phi = match wrapping.place {
        Place::Inside { phi } => phi.to_string(),
        Place::Outside { .. } => "codes".to_string(),
    };
    let metadata = [("scheme", scales.scheme.to_string()), ("phi", phi)];
    let file = OutputFile::create(&part.join(wrapped::FILE))?;
    let mut writer = TensorWriter::create(file, specs, &metadata)?;
    wrapped::write(scales, wrapping, &mut writer, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    writer.finish()
}
