//! `lr-wrap`: adds the low-rank factors, to weights downcast to Φ0, or beside fixed integers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use common::cli::{self, flags::Common, progress};
use common::compute::cpu::Cpu;
use common::data::tokenizer::Tokenizer;
use common::error::{Error, Result};
use common::format::atomic::{FileDigest, OutputFile, PartDir, write_file};
use common::format::safetensors::{Spec, TensorWriter};
use common::model::forward::Batch;
use common::model::host::Source;
use common::model::inputs::{MeanSquares, mean_squares};
use common::model::names;
use common::quant::Phi;
use common::stage::compensated::{Compensated, Did};
use common::stage::init::{Factors, fit_error};
use common::stage::record::{self, Begin, Kind, Record};
use common::stage::rounded::{self, RoundedBlocks};
use common::stage::scales::Scales;
use common::stage::shards::Shards;
use common::stage::wrapped;
use common::stage::wrapping::{Budget, Place, RankChoice, RoundedBy, Targets, Wrapping};

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
    /// How weights are rounded before training: to the nearest integer; so that columns make up for what those before them
    /// lost, as inputs weigh it (gptq; needs --shards); or, from there on, learned block by block, so that each gives what
    /// the float model's does (learned; needs --shards)
    #[arg(long, value_enum, default_value = "nearest")]
    rounding: RoundingWord,
    /// With --rounding learned: steps of 8 windows that each block learns by [default: 100]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// error: A and B start as the best product of their rank for what rounding lost
    #[arg(long, value_enum)]
    init: Option<Init>,
    /// What inputs weigh, from windows of 512 tokens of what shard made: 128 with --rounding gptq, 400 with
    /// --rounding learned, 16 with --init error
    /// [default: with --init error, all the same]
    #[arg(long, value_name = "DIR")]
    shards: Option<PathBuf>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoundingWord {
    Nearest,
    Gptq,
    Learned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Init {
    Error,
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
    let shards = args.shards.as_deref().map(Shards::open).transpose()?;
    if let Some(shards) = shards.as_ref().filter(|_| args.common.verify) {
        shards.stage.verify()?;
    }
    let mut inputs = vec![scales.stage.as_input("scales", &args.output)?];
    if let Some(shards) = &shards {
        inputs.push(shards.stage.as_input("shards", &args.output)?);
    }
    let mut record = Record::new(Kind::Wrapped, Some(scales.scheme.to_string()), wrapping.arguments(), inputs);
    if !wrapping.is_outside() {
        record = record.in_format(1);
    }
    match record::begin(&args.output, &record, args.common.force)? {
        Begin::Done => {}
        Begin::Write(part) => {
            for (name, bytes) in scales.model.support_files()? {
                record.files.insert(name.clone(), write_file(&part.join(&name), &bytes)?);
            }
            let compensated = compensated(&args, &scales, &wrapping, shards.as_ref(), &part, &record)?;
            let fitted = fitted(&args, &scales, &wrapping, shards.as_ref(), compensated.as_ref())?;
            let digest = write_tensors(&args, &scales, &wrapping, &fitted, compensated.as_ref(), &part)?;
            record.files.insert(wrapped::FILE.into(), digest);
            part.remove(rounded::is_directory)?;
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
    let from_error = args.init == Some(Init::Error);
    let rounding = rounded_by(args)?;
    let (gptq, word) = (rounding != RoundedBy::Nearest, word(args.rounding));
    if args.shards.is_some() && !from_error && !gptq {
        return refuse(
            "--shards without --rounding gptq or learned, or --init error".into(),
            "leave it out; qat-step takes the shards",
        );
    }
    if gptq && args.shards.is_none() {
        return refuse(format!("--rounding {word} without --shards"), "give what shard made of some text");
    }
    if gptq && from_error && !outside {
        return refuse(
            format!(
                "--rounding {word} with --init error: inside the rounding nothing is left that A and B could start at"
            ),
            "leave --init error out",
        );
    }
    if let (true, Some(alpha)) = (from_error, args.alpha.filter(|alpha| *alpha <= 0.0)) {
        return refuse(
            format!("--init error with --alpha {alpha}: no factors give what was lost"),
            "give an alpha above 0",
        );
    }
    let targets = args.targets.unwrap_or(Targets::ALL);
    let budget = Budget::new(&scales.model, scales.scheme, targets)?;
    let rank = match args.rank {
        RankChoice::Rank(rank) => rank,
        RankChoice::Auto(factor) => budget.rank(factor)?,
    };
    if rank == 0 && from_error {
        return refuse("--init error with --rank 0: there is nothing to start".into(), "give a rank");
    }
    if rank == 0 {
        let given =
            [("alpha", args.alpha.is_some()), ("dropout", args.dropout.is_some()), ("targets", args.targets.is_some())];
        if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
            return refuse(format!("--{flag} with --rank 0: there are no factors"), "leave it out, or give a rank");
        }
        return Ok(Wrapping::scales_alone(rounding, if gptq { args.seed } else { 0 }));
    }
    if !outside {
        let place = Place::Inside { phi: args.phi.unwrap_or(Phi::Q) };
        let alpha = args.alpha.unwrap_or(1.0);
        return Ok(Wrapping { place, rank, alpha, seed: args.seed, from_error, rounding });
    }
    let (megabytes, factor) = ((budget.per_rank * rank as u64) as f64 / 1e6, budget.factor(rank));
    let size = format!("rank {rank}: {megabytes:.1} MB of adapters, {factor:.3} times the quantized size");
    cli::say(&args.common, "lr-wrap", size);
    let alpha = args.alpha.unwrap_or(4.0 * rank as f32);
    let place = Place::Outside { targets, dropout };
    Ok(Wrapping { place, rank, alpha, seed: args.seed, from_error, rounding })
}

fn word(rounding: RoundingWord) -> &'static str {
    match rounding {
        RoundingWord::Nearest => "nearest",
        RoundingWord::Gptq => "gptq",
        RoundingWord::Learned => "learned",
    }
}

fn rounded_by(args: &Args) -> Result<RoundedBy> {
    const STEPS: u64 = 100;
    match (args.rounding, args.steps) {
        (RoundingWord::Learned, Some(0)) => {
            Err(Error::usage("--steps 0: nothing is learned", "give --rounding gptq, or some steps"))
        }
        (RoundingWord::Learned, steps) => Ok(RoundedBy::Learned { steps: steps.unwrap_or(STEPS) }),
        (_, Some(_)) => Err(Error::usage("--steps is for --rounding learned", "leave it out")),
        (RoundingWord::Nearest, None) => Ok(RoundedBy::Nearest),
        (RoundingWord::Gptq, None) => Ok(RoundedBy::Gptq),
    }
}

/// The weights rounded by GPTQ, or learned, if it is asked for.
fn compensated<'a>(
    args: &Args,
    scales: &Scales,
    wrapping: &Wrapping,
    shards: Option<&Shards>,
    part: &'a PartDir,
    record: &Record,
) -> Result<Option<Compensated<'a>>> {
    let (RoundedBy::Gptq | RoundedBy::Learned { .. }, Some(shards)) = (wrapping.rounding, shards) else {
        return Ok(None);
    };
    let batches = sampled(scales, shards, wrapping.seed, wrapping.rounding.windows())?;
    let config = scales.model.config();
    let rounded = RoundedBlocks::open(part, record, config, scales.scheme, wrapping)?;
    let blocks = config.layers;
    if rounded.count() > 0 {
        let goes_on =
            format!("{}: {} of {blocks} blocks are rounded: it goes on", part.path().display(), rounded.count());
        cli::say(&args.common, "lr-wrap", goes_on);
    }
    let steps = if let RoundedBy::Learned { steps } = wrapping.rounding { steps } else { 0 };
    let of_block = names::LINEARS.len() as u64 + steps;
    let bar = progress::count(&args.common, word(args.rounding), of_block * blocks as u64);
    let made = Compensated::new(scales, wrapping, &batches, rounded, |did| match did {
        Did::Linear | Did::Step => bar.inc(1),
        Did::Before => bar.inc(of_block),
        Did::Learned { layer, errors: [before, after] } => bar.suspend(|| {
            let done = format!("block {} of {blocks}: its output lacked {before:.5}, lacks {after:.5}", layer + 1);
            cli::say(&args.common, "lr-wrap", done);
        }),
    });
    bar.finish_and_clear();
    made.map(Some)
}

/// The factors for what rounding lost, if they are asked for.
fn fitted(
    args: &Args,
    scales: &Scales,
    wrapping: &Wrapping,
    shards: Option<&Shards>,
    compensated: Option<&Compensated>,
) -> Result<Factors> {
    if !wrapping.from_error {
        return Ok(Factors::new());
    }
    let inputs = shards.map(|shards| input_sizes(scales, shards, wrapping.seed)).transpose()?;
    let bar = progress::count(&args.common, "fit", names::linears(scales.model.config()).len() as u64);
    let factors = fit_error(scales, wrapping, inputs.as_ref(), compensated, || bar.inc(1));
    bar.finish_and_clear();
    factors
}

/// How large the inputs of the float model's linears are on the text.
fn input_sizes(scales: &Scales, shards: &Shards, seed: u64) -> Result<MeanSquares> {
    const WINDOWS: u64 = 16;
    // Of what they would be, not of what is rounded.
    mean_squares(&Cpu::<f32>::new(), &scales.model, &sampled(scales, shards, seed, WINDOWS)?)
}

/// Windows of the text, a few at a time: by the same seed those that qat-step's first steps see, if they are of as many
/// tokens and its batch is as large, as they are by default.
fn sampled(scales: &Scales, shards: &Shards, seed: u64, count: u64) -> Result<Vec<Batch>> {
    const TOKENS: usize = 512;
    const TOGETHER: u64 = 4;
    let (dir, files) = (&scales.stage.dir, scales.model.support_files()?);
    shards.check_tokenizer(dir, Tokenizer::from_files(dir, &files)?.digest())?;
    let (windows, vocab) = (shards.windows(TOKENS, false)?, scales.model.config().vocab);
    let batch = |t: u64| {
        let read = (0..TOGETHER).map(|i| {
            let (shard, at) = windows.sample(seed, t, i);
            shards.read(shard, at, TOKENS, vocab)
        });
        let read = read.collect::<Result<Vec<_>>>()?;
        Ok(Batch::next_token(read.iter().map(|tokens| tokens.as_slice())))
    };
    (0..count / TOGETHER).map(batch).collect()
}

fn write_tensors(
    args: &Args,
    scales: &Scales,
    wrapping: &Wrapping,
    fitted: &Factors,
    compensated: Option<&Compensated>,
    part: &PartDir,
) -> Result<FileDigest> {
    let specs = wrapped::specs(&scales.model, scales.scheme, wrapping)?;
    let bar = progress::bytes(&args.common, "lr-wrap", specs.iter().map(Spec::bytes).sum::<usize>() as u64);
    let phi = match wrapping.place {
        Place::Inside { phi } => phi.to_string(),
        Place::Outside { .. } => "codes".to_string(),
    };
    let metadata = [("scheme", scales.scheme.to_string()), ("phi", phi)];
    let file = OutputFile::create(&part.join(wrapped::FILE))?;
    let mut writer = TensorWriter::create(file, specs, &metadata)?;
    wrapped::write(scales, wrapping, fitted, compensated, &mut writer, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    writer.finish()
}
