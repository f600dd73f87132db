//! The recipe: everything that, with the wrapped model and the shards, decides the bytes of a checkpoint.

use std::fmt;
use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Linear,
    Cosine,
    Constant,
}

/// What Adam's moments are held in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum MomentType {
    #[default]
    F32,
    Bf16,
}

impl MomentType {
    pub fn bytes(self) -> usize {
        match self {
            MomentType::F32 => 4,
            MomentType::Bf16 => 2,
        }
    }

    fn is_default(&self) -> bool {
        *self == MomentType::default()
    }
}

impl fmt::Display for MomentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

/// How the two terms of the loss are brought to one size: both are means over tokens, or, as in INT2.1 (arXiv 2306.08162), the
/// divergence is summed over the positions of a sequence and the cross entropy is a mean over tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LossNorm {
    #[default]
    Token,
    Paper,
}

/// What is minimised: ce·CE(next token) + kl·KL(teacher ‖ model). Cross entropy alone is not recorded, as before there was
/// a choice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    pub kl_weight: f64,
    pub ce_weight: f64,
    pub loss_norm: LossNorm,
}

impl Default for Objective {
    fn default() -> Objective {
        Objective { kl_weight: 0.0, ce_weight: 1.0, loss_norm: LossNorm::Token }
    }
}

impl Objective {
    fn is_default(&self) -> bool {
        *self == Objective::default()
    }

    pub fn taught(&self) -> bool {
        self.kl_weight > 0.0
    }

    /// Weights of the cross entropy and of the divergence of a token, in sequences of `seq` tokens.
    pub fn weights(&self, seq: usize) -> (f64, f64) {
        // The last token of a sequence predicts nothing.
        let positions = if self.loss_norm == LossNorm::Paper { (seq - 1) as f64 } else { 1.0 };
        (self.ce_weight, self.kl_weight * positions)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Length of the schedule.
    pub steps: u64,
    /// Sequences of a micro-batch.
    pub batch: usize,
    /// Micro-batches of a step.
    pub accum: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Peak learning rate of A and B.
    pub lr_ab: f64,
    /// Peak learning rate of the scales.
    pub lr_scale: f64,
    /// Part of the steps that warm up.
    pub warmup: f64,
    pub schedule: Schedule,
    /// Largest global gradient norm; 0 is no clipping.
    pub clip: f64,
    pub seed: u64,
    /// f32 is not recorded, as before there was a choice.
    #[serde(default, skip_serializing_if = "MomentType::is_default")]
    pub moments: MomentType,
    #[serde(default, skip_serializing_if = "Objective::is_default")]
    pub objective: Objective,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            steps: 1000,
            batch: 4,
            accum: 1,
            seq: 512,
            lr_ab: 1e-3,
            lr_scale: 1e-5,
            warmup: 0.1,
            schedule: Schedule::Linear,
            clip: 1.0,
            seed: 0,
            moments: MomentType::default(),
            objective: Objective::default(),
        }
    }
}

impl Recipe {
    pub const BETA1: f32 = 0.9;
    pub const BETA2: f32 = 0.95;
    pub const EPSILON: f32 = 1e-8;

    pub fn check(&self) -> Result<()> {
        let bad = |what: &str, cure: &str| Err(Error::usage(what, cure));
        if self.steps == 0 || self.batch == 0 || self.accum == 0 {
            return bad("--steps, --batch and --accum must be positive", "give at least 1");
        }
        if self.seq < 2 {
            return bad("--seq must be at least 2", "a sequence predicts all of its tokens but the first");
        }
        let tokens = self.batch.checked_mul(self.seq).and_then(|n| n.checked_mul(self.accum));
        if tokens.is_none_or(|n| n > 1 << 40) {
            return bad("--batch × --accum × --seq is more than 2^40 tokens a step", "lower one of them");
        }
        if !(0.0..=1.0).contains(&self.warmup) {
            return bad("--warmup must be between 0 and 1", "give the part of the steps that warm up");
        }
        let rates = [self.lr_ab, self.lr_scale, self.clip];
        if rates.iter().any(|r| !r.is_finite() || *r < 0.0) {
            return bad("--lr-ab, --lr-scale and --clip must be finite and not negative", "give numbers such as 1e-3");
        }
        let weights = [self.objective.kl_weight, self.objective.ce_weight];
        if weights.iter().any(|w| !(0.0..=1e9).contains(w)) || weights.iter().all(|w| *w == 0.0) {
            return bad(
                "--kl-weight and --ce-weight must be 0 to 1e9, and not both 0",
                "give --kl-weight 1 --ce-weight 0",
            );
        }
        Ok(())
    }

    /// Factor of the learning rates at step `t` (from 0): linear warm-up, then down to 0 at the end of the schedule.
    pub fn rate_factor(&self, t: u64) -> f64 {
        let (t, n) = (t as f64, self.steps as f64);
        let warm = self.warmup * n;
        let rising = if warm > 0.0 { (t + 1.0) / warm } else { 1.0 };
        let left = if n > warm { ((n - t) / (n - warm)).clamp(0.0, 1.0) } else { 1.0 };
        let falling = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => left,
            Schedule::Cosine => 0.5 - 0.5 * (std::f64::consts::PI * left).cos(),
        };
        rising.min(falling).min(1.0)
    }

    /// Tokens that a step sees.
    pub fn tokens_per_step(&self) -> u64 {
        (self.batch * self.accum * self.seq) as u64
    }

    /// The first value in which the two differ, as flags: this one's, the other's.
    pub fn difference(&self, other: &Recipe) -> Option<(String, String)> {
        let fields = |r: &Recipe| match (serde_json::to_value(r), serde_json::to_value(r.objective)) {
            (Ok(serde_json::Value::Object(mut fields)), Ok(serde_json::Value::Object(objective))) => {
                fields.remove("objective");
                fields.extend(objective);
                fields.insert("moments".into(), serde_json::json!(r.moments));
                fields
            }
            _ => unreachable!("a recipe is a plain JSON object"),
        };
        let (own, other) = (fields(self), fields(other));
        let flag = |name: &str, value: &serde_json::Value| {
            format!("--{} {}", name.replace('_', "-"), value.to_string().trim_matches('"'))
        };
        let (name, value) = own.iter().find(|(name, value)| other[*name] != **value)?;
        Some((flag(name, value), flag(name, &other[name])))
    }

    /// As recorded in a checkpoint's `stage.json`; `path` is for messages.
    pub fn from_arguments(path: &Path, arguments: &serde_json::Map<String, serde_json::Value>) -> Result<Recipe> {
        serde_json::from_value(serde_json::Value::Object(arguments.clone())).map_err(|e| {
            Error::input(
                path,
                format!("no whole recipe in stage.json ({e})"),
                "qat-step's arguments",
                "run qat-step again with --force",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::safetensors::TensorFile;

    /// Points of the schedules by their definition: warm-up reaches 1 at its last step, the end is near 0.
    #[test]
    fn schedules_warm_up_and_decay() {
        let linear = Recipe { steps: 100, ..Recipe::default() };
        for (t, expected) in [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.5), (99, 1.0 / 90.0)] {
            assert!((linear.rate_factor(t) - expected).abs() < 1e-12, "{t}: {}", linear.rate_factor(t));
        }
        let cosine = Recipe { schedule: Schedule::Cosine, ..linear.clone() };
        for (t, expected) in [(0, 0.1), (10, 1.0), (55, 0.5), (100, 0.0)] {
            assert!((cosine.rate_factor(t) - expected).abs() < 1e-12, "{t}: {}", cosine.rate_factor(t));
        }
        let constant = Recipe { schedule: Schedule::Constant, warmup: 0.0, ..linear };
        assert!((0..100).all(|t| constant.rate_factor(t) == 1.0));
    }

    /// PyTorch's sum of both terms as INT2.1 weighs them (tests/data/make_distillation.py).
    #[test]
    fn the_papers_weighting() {
        let file = format!("{}/../tests/data/distillation.safetensors", env!("CARGO_MANIFEST_DIR"));
        let file = TensorFile::open(Path::new(&file)).unwrap();
        let read = |name: &str| file.get(name).unwrap().to_f32().into_iter().map(f64::from).collect::<Vec<_>>();
        let (given, terms, expected) = (read("paper.weights"), read("paper.terms"), read("paper.loss")[0]);
        let objective = Objective { kl_weight: given[0], ce_weight: given[1], loss_norm: LossNorm::Paper };
        // Every position of the script's sequences is predicted.
        let (ce, kl) = objective.weights(given[2] as usize + 1);
        let found = kl * terms[0] + ce * terms[1];
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
    }

    /// What was written before there was a choice is read, and what needs none is written as it was.
    #[test]
    fn cross_entropy_is_recorded_as_before() {
        let plain = serde_json::to_value(Recipe::default()).unwrap();
        assert!(plain.get("objective").is_none(), "{plain}");
        let fields = plain.as_object().unwrap();
        assert_eq!(Recipe::from_arguments(Path::new("x"), fields).unwrap(), Recipe::default());
        let objective = Objective { kl_weight: 1.0, ce_weight: 0.5, loss_norm: LossNorm::Paper };
        let taught = Recipe { objective, ..Recipe::default() };
        let recorded = serde_json::to_value(&taught).unwrap();
        let read = Recipe::from_arguments(Path::new("x"), recorded.as_object().unwrap()).unwrap();
        assert_eq!(read, taught);
        let (own, other) = Recipe::default().difference(&taught).unwrap();
        assert_eq!((own.as_str(), other.as_str()), ("--kl-weight 0.0", "--kl-weight 1.0"));
        let narrow = Recipe { moments: MomentType::Bf16, ..Recipe::default() };
        let recorded = serde_json::to_value(&narrow).unwrap();
        assert_eq!(Recipe::from_arguments(Path::new("x"), recorded.as_object().unwrap()).unwrap(), narrow);
        let (own, other) = narrow.difference(&Recipe::default()).unwrap();
        assert_eq!((own.as_str(), other.as_str()), ("--moments bf16", "--moments f32"));
    }
}
