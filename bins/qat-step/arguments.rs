//! The command line of `qat-step`, and what it means together with what the input remembers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use common::cli::device::DeviceFlags;
use common::cli::signals::Signals;
use common::cli::{self, flags::Common};
use common::compute::backend::Backend;
use common::error::{Error, Result};
use common::model::names;
use common::model::weights::{Model, Source};
use common::stage::checkpoint::{Checkpoint, METRICS, OPTIMIZER};
use common::stage::record::{Kind, Record, Stage};
use common::stage::shards::Shards;
use common::stage::wrapped::Wrapped;
use common::train::Recipe;
use common::train::optimizer::Moments;
use common::train::plan::Holding;
use common::train::recipe::Schedule;
use common::train::resume;

/// Trains the low-rank factors and the scales of a wrapped model
#[derive(Parser)]
#[command(name = "qat-step", version)]
pub struct Args {
    /// Directory that lr-wrap made, or a checkpoint to go on from; - reads its path from standard input
    input: PathBuf,
    /// Directory that shard made [a checkpoint remembers its own]
    #[arg(long, value_name = "DIR")]
    shards: Option<PathBuf>,
    /// Length of the schedule [default: 1000]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Sequences of a micro-batch [default: 4]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Micro-batches of a step [default: 1]
    #[arg(long, value_name = "N")]
    accum: Option<usize>,
    /// Tokens of a sequence [default: 512]
    #[arg(long, value_name = "N")]
    seq: Option<usize>,
    /// Peak learning rate of A and B [default: 1e-3]
    #[arg(long, value_name = "RATE")]
    lr_ab: Option<f64>,
    /// Peak learning rate of the scales [default: 1e-5]
    #[arg(long, value_name = "RATE")]
    lr_scale: Option<f64>,
    /// Part of the steps that warm up [default: 0.1]
    #[arg(long, value_name = "PART")]
    warmup: Option<f64>,
    /// linear, cosine or constant after the warm-up [default: linear]
    #[arg(long)]
    schedule: Option<Schedule>,
    /// Largest global gradient norm; 0 does not clip [default: 1]
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,
    /// Seed of the order of the data [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Save every N steps, so that a killed run goes on from there; 0 saves only when stopped
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub save_every: u64,
    /// End this job at a step of the schedule; the checkpoint can be gone on from
    #[arg(long, value_name = "STEP")]
    stop_at: Option<u64>,
    /// Save and exit with status 75 after this time: 3h50m, 90s
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    time_limit: Option<Duration>,
    /// Print what the run would hold in memory, and end
    #[arg(long)]
    pub plan: bool,
    /// Directory to write
    #[arg(short, long, value_name = "DIR", required_unless_present = "plan")]
    output: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceFlags,
    #[command(flatten)]
    pub common: Common,
}

fn parse_time(text: &str) -> std::result::Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|e| format!("{e}; write it as 3h50m or 90s")),
    }
}

impl Args {
    /// Not for --plan.
    pub fn output(&self) -> &Path {
        self.output.as_deref().expect("required but for --plan, which writes nothing")
    }

    /// Why the run should stop now, if it should.
    pub fn stop_reason(&self, begun: Instant, signals: &Signals) -> Option<String> {
        match (signals.received(), self.time_limit) {
            (Some(signal), _) => Some(signal.to_string()),
            (None, Some(limit)) if begun.elapsed() >= limit => Some("the time limit is reached".to_string()),
            _ => None,
        }
    }

    /// The recipe: what was typed over `base`.
    fn recipe(&self, base: &Recipe) -> Recipe {
        Recipe {
            steps: self.steps.unwrap_or(base.steps),
            batch: self.batch.unwrap_or(base.batch),
            accum: self.accum.unwrap_or(base.accum),
            seq: self.seq.unwrap_or(base.seq),
            lr_ab: self.lr_ab.unwrap_or(base.lr_ab),
            lr_scale: self.lr_scale.unwrap_or(base.lr_scale),
            warmup: self.warmup.unwrap_or(base.warmup),
            schedule: self.schedule.unwrap_or(base.schedule),
            clip: self.clip.unwrap_or(base.clip),
            seed: self.seed.unwrap_or(base.seed),
        }
    }
}

/// The job that the command line and its input describe together.
pub struct Resolved {
    pub wrapped: Wrapped,
    /// The checkpoint that is gone on from.
    checkpoint: Option<Checkpoint>,
    shards: Option<Shards>,
    pub recipe: Recipe,
    /// The step to stop at.
    pub until: u64,
}

impl Resolved {
    pub fn new(args: &Args) -> Result<Resolved> {
        let input = cli::input_path(&args.input)?;
        let stage = Stage::open(&input, &[Kind::Wrapped, Kind::Checkpoint])?;
        let checkpoint = match stage.record.kind {
            Kind::Checkpoint => Some(Checkpoint::open(&input)?),
            _ => None,
        };
        let wrapped = match &checkpoint {
            Some(c) => Wrapped::of(c.stage.open_input("wrapped", Kind::Wrapped)?)?,
            None => Wrapped::of(stage)?,
        };
        let recipe = resolve_recipe(args, checkpoint.as_ref())?;
        recipe.check()?;
        let shards = open_shards(args, checkpoint.as_ref())?;
        if args.common.verify {
            let stages =
                [checkpoint.as_ref().map(|c| &c.stage), Some(&wrapped.stage), shards.as_ref().map(|s| &s.stage)];
            stages.into_iter().flatten().try_for_each(Stage::verify)?;
        }
        let from = checkpoint.as_ref().filter(|c| !c.finished()).map_or(0, |c| c.step);
        let until = args.stop_at.unwrap_or(recipe.steps);
        if until <= from || until > recipe.steps {
            return Err(Error::usage(
                format!("--stop-at {until} lies outside of steps {} to {}", from + 1, recipe.steps),
                "give a step that is still to come",
            ));
        }
        Ok(Resolved { wrapped, checkpoint, shards, recipe, until })
    }

    pub fn shards(&self) -> Result<&Shards> {
        self.shards.as_ref().ok_or_else(|| Error::usage("no --shards", "give the directory that shard made"))
    }

    /// The values training starts from.
    pub fn source(&self) -> &dyn Source {
        match &self.checkpoint {
            Some(c) => c,
            None => &self.wrapped,
        }
    }

    /// Moments and step at the start of this job: those of an unfinished checkpoint, or fresh ones.
    pub fn start<B: Backend>(&self, backend: &B, model: &Model<B>) -> Result<(Moments<B>, u64)> {
        match &self.checkpoint {
            Some(c) if !c.finished() => {
                let moments = resume::load_moments(backend, &c.stage.dir.join(OPTIMIZER), &model.params)?;
                Ok((moments, c.step))
            }
            _ => Ok((Moments::zeros(backend, &model.params)?, 0)),
        }
    }

    /// The log of the unfinished checkpoint that is gone on from.
    pub fn earlier_log(&self) -> Option<PathBuf> {
        self.checkpoint.as_ref().filter(|c| !c.finished()).map(|c| c.stage.dir.join(METRICS))
    }

    /// The compute path of the unfinished checkpoint that is gone on from.
    pub fn begun_on(&self) -> Option<&str> {
        self.checkpoint.as_ref().filter(|c| !c.finished())?.stage.record.details.get("compute_path")?.as_str()
    }

    pub fn record(&self, args: &Args) -> Result<Record> {
        let out = args.output();
        let mut inputs =
            vec![self.wrapped.stage.as_input("wrapped", out)?, self.shards()?.stage.as_input("shards", out)?];
        if let Some(c) = &self.checkpoint {
            inputs.push(c.stage.as_input("checkpoint", out)?);
        }
        let mut arguments = serde_json::to_value(&self.recipe).expect("a recipe is plain JSON");
        arguments["stop_at"] = self.until.into();
        Ok(Record::new(Kind::Checkpoint, Some(self.wrapped.scheme.to_string()), arguments, inputs))
    }

    /// Digest of what the run is: recipe and inputs, but not where this job of it stops.
    pub fn making(&self, record: &Record) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(serde_json::to_string(&self.recipe).expect("a recipe is plain JSON").as_bytes());
        for input in &record.inputs {
            hash.update(input.digest.as_bytes());
        }
        hash.finalize().to_hex().to_string()
    }

    pub fn holding(&self) -> Result<Holding<'_>> {
        let mut float_bytes = 0;
        for (name, shape) in names::floats(&self.wrapped.config) {
            float_bytes += self.wrapped.float(&name, &shape)?.bytes().len() as u64;
        }
        Ok(Holding {
            config: &self.wrapped.config,
            scheme: self.wrapped.scheme,
            phi: self.wrapped.wrapping.phi,
            rank: self.wrapped.wrapping.rank,
            float_bytes,
            recipe: &self.recipe,
        })
    }
}

/// An unfinished checkpoint fixes the recipe; a different value typed is an error.
fn resolve_recipe(args: &Args, checkpoint: Option<&Checkpoint>) -> Result<Recipe> {
    let Some(c) = checkpoint.filter(|c| !c.finished()) else { return Ok(args.recipe(&Recipe::default())) };
    let own = Recipe::from_arguments(&c.stage.dir, &c.stage.record.arguments)?;
    if let Some((begun, typed)) = own.difference(&args.recipe(&own)) {
        return Err(Error::usage(
            format!("{}: at step {} of a schedule with {typed}, expected {begun}", c.stage.dir.display(), c.step),
            "leave the recipe's flags out to go on, or start from the wrapped model",
        ));
    }
    Ok(own)
}

fn open_shards(args: &Args, checkpoint: Option<&Checkpoint>) -> Result<Option<Shards>> {
    let path = match (&args.shards, checkpoint) {
        (Some(path), _) => path.clone(),
        (None, Some(c)) => c.stage.input_path("shards")?.0,
        (None, None) => return Ok(None),
    };
    let shards = Shards::open(&path)?;
    if let Some(c) = checkpoint.filter(|c| !c.finished())
        && c.stage.input("shards")?.digest != shards.stage.digest
    {
        return Err(Error::usage(
            format!("{}: its schedule is not at its end, and was begun with other shards", c.stage.dir.display()),
            "leave --shards out to go on, or start from the wrapped model",
        ));
    }
    Ok(Some(shards))
}
