//! What `lr-wrap` is asked for: where the low-rank factors go, and how large they are.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::base::BaseModel;
use super::record;
use crate::error::{Error, Result};
use crate::format::safetensors::Spec;
use crate::format::tensor::Dtype;
use crate::model::host::Source;
use crate::model::names::{self, LinearName};
use crate::quant::{Phi, Scheme, pack};

/// Where A·B goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    /// Inside the rounding (LR-QAT): W_Z = clip(round(Φ0 + α/r·AB)), and nothing is left of it after folding.
    Inside { phi: Phi },
    /// Beside fixed integers (LoRA, INT2.1), kept at inference: y = x·Ŵᵀ + α/r·drop(x)·Bᵀ·Aᵀ. Of rank 0 there is none, and
    /// the scales alone are trained (PEQA; Kim et al. 2023).
    Outside { targets: Targets, dropout: f32 },
}

/// What `lr-wrap` was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Wrapping {
    pub place: Place,
    pub rank: usize,
    pub alpha: f32,
    pub seed: u64,
    /// A and B start at what rounding lost, and not at nothing.
    pub from_error: bool,
    pub rounding: RoundedBy,
}

/// How the weights are rounded before training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoundedBy {
    #[default]
    Nearest,
    /// Columns make up for what those before them lost ([`crate::compute::cpu::gptq`]).
    Gptq,
    /// From there on, by so many steps a block, so that each gives what the float model's does ([`crate::model::learned`]).
    Learned { steps: u64 },
}

impl RoundedBy {
    /// Windows of text that it asks for.
    pub fn windows(self) -> u64 {
        match self {
            RoundedBy::Nearest => 0,
            RoundedBy::Gptq => RoundedBy::GPTQ_WINDOWS,
            RoundedBy::Learned { .. } => 400,
        }
    }

    /// Of these the first, where there are more.
    pub const GPTQ_WINDOWS: u64 = 128;
}

impl Wrapping {
    pub fn arguments(&self) -> Value {
        let Wrapping { place, rank, alpha, seed, from_error, rounding } = self;
        let mut arguments = match place {
            Place::Inside { phi } => json!({"phi": phi.to_string(), "rank": rank, "alpha": alpha, "seed": seed}),
            Place::Outside { .. } if *rank == 0 => json!({"rank": 0}),
            Place::Outside { targets, dropout } => json!({
                "adapter": "outside", "targets": targets.to_string(), "rank": rank, "alpha": alpha, "dropout": dropout,
                "seed": seed,
            }),
        };
        if *from_error {
            arguments["init"] = "error".into();
        }
        match rounding {
            RoundedBy::Nearest => {}
            RoundedBy::Gptq => arguments["rounding"] = "gptq".into(),
            RoundedBy::Learned { steps } => {
                arguments["rounding"] = "learned".into();
                arguments["steps"] = (*steps).into();
            }
        }
        if rounding.windows() > 0 {
            // It draws the windows of text, whatever the rank.
            arguments["seed"] = (*seed).into();
        }
        arguments
    }

    /// As recorded in a `stage.json`.
    pub(super) fn read(dir: &Path, args: &Map<String, Value>) -> Result<Wrapping> {
        let number = |key: &str| args.get(key)?.as_f64().map(|x| x as f32);
        let read = || {
            let rank = args.get("rank")?.as_u64()? as usize;
            let rounding = match args.get("rounding") {
                None => RoundedBy::Nearest,
                Some(word) if word == "gptq" => RoundedBy::Gptq,
                Some(word) if word == "learned" => RoundedBy::Learned { steps: args.get("steps")?.as_u64()? },
                Some(_) => return None,
            };
            if rank == 0 {
                let seed = args.get("seed").map_or(Some(0), Value::as_u64)?;
                return Some(Wrapping::scales_alone(rounding, seed));
            }
            let place = match args.get("adapter") {
                None => Place::Inside { phi: args.get("phi")?.as_str()?.parse().ok()? },
                Some(word) if word == "outside" => Place::Outside {
                    targets: args.get("targets")?.as_str()?.parse().ok()?,
                    dropout: number("dropout").filter(|p| (0.0..1.0).contains(p))?,
                },
                Some(_) => return None,
            };
            let from_error = args.get("init").is_some_and(|init| init == "error");
            let (alpha, seed) = (number("alpha")?, args.get("seed")?.as_u64()?);
            Some(Wrapping { place, rank, alpha, seed, from_error, rounding })
        };
        read().ok_or_else(|| {
            let (found, expected) = ("arguments that are not lr-wrap's", "phi, rank, alpha and seed");
            Error::input(dir.join(record::FILE), found, expected, "run lr-wrap again with --force")
        })
    }

    /// Nothing but the scales is trained.
    pub fn scales_alone(rounding: RoundedBy, seed: u64) -> Wrapping {
        let place = Place::Outside { targets: Targets::NONE, dropout: 0.0 };
        Wrapping { place, rank: 0, alpha: 1.0, seed, from_error: false, rounding }
    }

    /// Rank of the factors of a linear; 0 if it has none.
    pub fn rank_of(&self, linear: &LinearName) -> usize {
        match self.place {
            Place::Outside { targets, .. } if !targets.has(linear) => 0,
            _ => self.rank,
        }
    }

    pub fn is_outside(&self) -> bool {
        matches!(self.place, Place::Outside { .. })
    }

    pub fn dropout(&self) -> f32 {
        match self.place {
            Place::Inside { .. } => 0.0,
            Place::Outside { dropout, .. } => dropout,
        }
    }

    /// The tensor that holds the frozen weights of a linear.
    pub fn frozen(&self, linear: &LinearName, scheme: Scheme) -> Spec {
        let LinearName { name, n, k } = linear;
        match self.place {
            Place::Inside { phi } => Spec::new(format!("{name}.phi"), Dtype::U8, [*n, phi.row_bytes(scheme, *k)]),
            Place::Outside { .. } => Spec::new(format!("{name}.codes"), Dtype::I32, [*n, pack::words(*k, scheme.bits)]),
        }
    }
}

/// The linears of a block that have an adapter, in the order of [`names::LINEARS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Targets([bool; 7]);

impl Targets {
    pub const ALL: Targets = Targets([true; 7]);
    const NONE: Targets = Targets([false; 7]);
    const WORDS: [&str; 7] = ["q", "k", "v", "o", "gate", "up", "down"];

    fn has(self, linear: &LinearName) -> bool {
        self.0.iter().zip(names::LINEARS).any(|(on, name)| *on && linear.name.ends_with(name))
    }

    /// As the last part of a module's name: `q_proj`.
    pub fn modules(self) -> Vec<String> {
        Targets::WORDS.iter().zip(self.0).filter(|(_, on)| *on).map(|(word, _)| format!("{word}_proj")).collect()
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = Targets::WORDS.into_iter().zip(self.0).filter(|(_, on)| *on).map(|(w, _)| w).collect();
        f.write_str(&words.join(","))
    }
}

impl FromStr for Targets {
    type Err = Error;

    /// `q,v`, or `q_proj,v_proj`.
    fn from_str(text: &str) -> Result<Targets> {
        let mut targets = Targets::NONE;
        for word in text.split(',').map(str::trim) {
            let short = word.strip_suffix("_proj").unwrap_or(word);
            match Targets::WORDS.iter().position(|w| *w == short) {
                Some(at) => targets.0[at] = true,
                None => {
                    let known = format!("choose some of {}", Targets::ALL);
                    return Err(Error::usage(format!("target {word:?} is not known"), known));
                }
            }
        }
        Ok(targets)
    }
}

/// `--rank`: a number, or as much as fits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RankChoice {
    Rank(usize),
    /// The largest with which the whole model stays within this times its quantized size.
    Auto(f64),
}

impl FromStr for RankChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<RankChoice> {
        let found = match text.strip_prefix("auto:") {
            Some(factor) => factor.parse().ok().filter(|f: &f64| *f > 1.0 && *f <= 100.0).map(RankChoice::Auto),
            None => text.parse().ok().filter(|rank| *rank <= 1 << 14).map(RankChoice::Rank),
        };
        found.ok_or_else(|| {
            Error::usage(
                format!("--rank {text}, expected 0 to 16384 or auto:FACTOR"),
                "give --rank 32 or --rank auto:1.05",
            )
        })
    }
}

/// Bytes of a model that adapters are added to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Without adapters: packed integers, scales of two bytes, zero points, and what stays floating point.
    pub quantized: u64,
    /// Of adapters of rank 1, two bytes a value.
    pub per_rank: u64,
}

impl Budget {
    pub fn new(model: &BaseModel, scheme: Scheme, targets: Targets) -> Result<Budget> {
        let mut budget = Budget { quantized: 0, per_rank: 0 };
        for linear in names::linears(model.config()) {
            let (n, k, groups) = (linear.n, linear.k, scheme.groups(linear.k));
            let zeros = if scheme.stores_zero_points() { 4 * groups * pack::words(n, scheme.bits) } else { 0 };
            budget.quantized += (4 * n * pack::words(k, scheme.bits) + 2 * n * groups + zeros) as u64;
            if targets.has(&linear) {
                budget.per_rank += 2 * (n + k) as u64;
            }
        }
        for (name, shape) in names::floats(model.config()) {
            budget.quantized += model.float(&name, &shape)?.bytes().len() as u64;
        }
        Ok(budget)
    }

    /// The size with adapters of this rank, beside that without.
    pub fn factor(&self, rank: usize) -> f64 {
        1.0 + (self.per_rank * rank as u64) as f64 / self.quantized as f64
    }

    /// The largest rank within `factor`.
    pub fn rank(&self, factor: f64) -> Result<usize> {
        let rank = ((factor - 1.0) * self.quantized as f64 / self.per_rank as f64).floor() as usize;
        if rank == 0 {
            return Err(Error::usage(
                format!("--rank auto:{factor}: already rank 1 makes the model {:.3} times as large", self.factor(1)),
                "raise the factor, or leave some --targets out",
            ));
        }
        Ok(rank.min(1 << 14))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_typed_short_or_long() {
        let targets: Targets = "q,v_proj, down".parse().unwrap();
        assert_eq!((targets.to_string().as_str(), targets.modules()[1].as_str()), ("q,v,down", "v_proj"));
        assert_eq!(Targets::ALL.to_string().parse::<Targets>().unwrap(), Targets::ALL);
        assert!("q,w".parse::<Targets>().is_err());
        let linear = |name: &str| LinearName { name: name.into(), n: 1, k: 1 };
        assert!(targets.has(&linear("model.layers.3.mlp.down_proj")));
        assert!(!targets.has(&linear("model.layers.3.mlp.up_proj")));
    }

    #[test]
    fn ranks() {
        assert_eq!("0".parse::<RankChoice>().unwrap(), RankChoice::Rank(0));
        assert_eq!("auto:1.05".parse::<RankChoice>().unwrap(), RankChoice::Auto(1.05));
        assert!(["auto:1", "auto:x", "-1", "99999"].iter().all(|word| word.parse::<RankChoice>().is_err()));
        // 50 of 1000 bytes hold seven ranks of 7.
        let budget = Budget { quantized: 1000, per_rank: 7 };
        assert_eq!(budget.rank(1.05).unwrap(), 7);
        assert!((budget.factor(7) - 1.049).abs() < 1e-12);
        assert!(Budget { quantized: 1000, per_rank: 51 }.rank(1.05).is_err());
    }

    /// What is recorded is read again.
    #[test]
    fn records() {
        use RoundedBy::{Gptq, Learned, Nearest};
        let inside = Place::Inside { phi: Phi::Q };
        let outside = Place::Outside { targets: "q,up".parse().unwrap(), dropout: 0.05 };
        for wrapping in [
            Wrapping { place: inside, rank: 32, alpha: 1.0, seed: 7, from_error: false, rounding: Gptq },
            Wrapping { place: outside, rank: 8, alpha: 32.0, seed: 1, from_error: true, rounding: Nearest },
            Wrapping::scales_alone(Nearest, 0),
            Wrapping::scales_alone(Gptq, 7),
            Wrapping::scales_alone(Learned { steps: 100 }, 7),
        ] {
            let Value::Object(args) = wrapping.arguments() else { panic!("an object") };
            assert_eq!(Wrapping::read(Path::new("x"), &args).unwrap(), wrapping);
        }
    }
}
