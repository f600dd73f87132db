//! The command line of `qat-step`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use common::cli::device::DeviceFlags;
use common::cli::flags::Common;
use common::cli::signals::Signals;
use common::error::{Error, Result};
use common::train::Recipe;
use common::train::recipe::{LossNorm, MomentType, Objective, Schedule};

/// Trains the low-rank factors and the scales of a wrapped model
#[derive(Parser)]
#[command(name = "qat-step", version)]
pub struct Args {
    /// Directory that lr-wrap made, or a checkpoint to go on from; - reads its path from standard input
    pub input: PathBuf,
    /// Directory that shard made [a checkpoint remembers its own]
    #[arg(long, value_name = "DIR")]
    pub shards: Option<PathBuf>,
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
    /// Shape of the learning rate after the warm-up [default: linear]
    #[arg(long)]
    schedule: Option<Schedule>,
    /// Largest global gradient norm; 0 does not clip [default: 1]
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,
    /// What Adam's moments are held in [default: f32]
    #[arg(long, value_name = "TYPE")]
    moments: Option<MomentType>,
    /// Seed of the order of the data [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// ce: cross entropy of the next token; kl: divergence from a teacher, --teacher or the answers in the shards; lrec:
    /// both as INT2.1 weighs them, a divergence of 1 to a cross entropy of 120/2048 [default: ce]
    #[arg(long, value_enum)]
    loss: Option<LossName>,
    /// Of the divergence, KL(teacher ‖ model) [default: 1 with --loss kl or lrec, else 0]
    #[arg(long, value_name = "WEIGHT")]
    kl_weight: Option<f64>,
    /// Of the cross entropy [default: 0 with --loss kl; with lrec 120/2048, or 120 with --loss-norm paper; else 1]
    #[arg(long, value_name = "WEIGHT")]
    ce_weight: Option<f64>,
    /// token: both terms are means over tokens; paper: the divergence is summed over a sequence (INT2.1)
    /// [default: token]
    #[arg(long, value_name = "NORM")]
    loss_norm: Option<LossNorm>,
    /// Model that is learnt from, whatever eval takes as --reference; it runs along, a block at a time [a checkpoint
    /// remembers its own]
    #[arg(long, value_name = "MODEL")]
    pub teacher: Option<PathBuf>,
    /// Save every N steps, so that a killed run goes on from there; 0 saves only when stopped
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub save_every: u64,
    /// End this job at a step of the schedule; the checkpoint can be gone on from
    #[arg(long, value_name = "STEP")]
    pub stop_at: Option<u64>,
    /// Save and exit with status 75 after this time: 3h50m, 90s
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    time_limit: Option<Duration>,
    /// Most memory to plan for: 6GB, 870MiB, or least; what is left of it keeps activations that would be computed
    /// again, which is faster and changes no byte of the result [default: 95 % of what the GPU has free; on the CPU half
    /// of what is available]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub memory: Option<Memory>,
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

/// What --memory says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    Least,
    /// Bytes.
    Most(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LossName {
    Ce,
    Kl,
    Lrec,
}

/// Weight of the mean cross entropy in INT2.1's runs at 2 bits, where the divergence is summed over 2048 positions.
const LREC_CE: f64 = 120.0;
const LREC_POSITIONS: f64 = 2048.0;

fn parse_memory(text: &str) -> std::result::Result<Memory, String> {
    match text {
        "least" => Ok(Memory::Least),
        size => {
            size.parse().map(|size: ByteSize| Memory::Most(size.as_u64())).map_err(|e| format!("{e}; write it as 6GB"))
        }
    }
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
    pub fn recipe(&self, base: &Recipe) -> Result<Recipe> {
        Ok(Recipe {
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
            moments: self.moments.unwrap_or(base.moments),
            objective: self.objective(base.objective)?,
        })
    }

    /// --loss gives both weights, those that are typed beside it take their place.
    fn objective(&self, base: Objective) -> Result<Objective> {
        if self.loss == Some(LossName::Ce) && self.kl_weight.is_some_and(|w| w != 0.0) {
            return Err(Error::usage("--loss ce with --kl-weight", "give --loss kl with --kl-weight and --ce-weight"));
        }
        let loss_norm = self.loss_norm.unwrap_or(base.loss_norm);
        let (ce, kl) = match self.loss {
            Some(LossName::Ce) => (1.0, 0.0),
            Some(LossName::Kl) => (0.0, 1.0),
            Some(LossName::Lrec) if loss_norm == LossNorm::Paper => (LREC_CE, 1.0),
            Some(LossName::Lrec) => (LREC_CE / LREC_POSITIONS, 1.0),
            None => (base.ce_weight, base.kl_weight),
        };
        Ok(Objective { kl_weight: self.kl_weight.unwrap_or(kl), ce_weight: self.ce_weight.unwrap_or(ce), loss_norm })
    }
}
