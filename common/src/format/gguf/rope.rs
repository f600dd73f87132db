//! The RoPE scaling of a GGUF in Hugging Face terms. Linear scaling stands in the metadata; Llama 3's is stored only as
//! what it does to each frequency (`rope_freqs.weight`), from which its parameters are found again here.

use std::f64::consts::TAU;

use serde_json::{Value, json};

use super::Gguf;
use crate::error::{Error, Result};

/// The parameters of Llama 3's scaling as JSON, in a file that this project wrote.
pub(super) const SCALING_KEY: &str = "lrqat.rope_scaling";

const CURE: &str = "give the model's Hugging Face directory";

/// `rope_scaling` of config.json, `null` for none. `factors` is `rope_freqs.weight`, empty when absent.
pub(super) fn scaling(gguf: &Gguf, theta: f64, head_dim: usize, context: u64, factors: &[f32]) -> Result<Value> {
    let refuse = |found: String, expected: &str| Err(Error::input(gguf.path(), found, expected, CURE));
    let kind = gguf.text("llama.rope.scaling.type")?.unwrap_or("none");
    let factor = match gguf.float("llama.rope.scaling.factor")? {
        Some(f) => Some(f),
        None => gguf.float("llama.rope.scale_linear")?,
    };
    let linear = match (kind, factor) {
        ("none", None) => None,
        ("linear" | "none", Some(f)) if f >= 1.0 && f.is_finite() => Some(f).filter(|f| *f != 1.0),
        ("none" | "linear", f) => return refuse(format!("rope scaling factor {f:?}"), "a finite number from 1"),
        (other, _) => return refuse(format!("rope scaling \"{other}\""), "none, linear or Llama 3's"),
    };
    if factors.is_empty() || factors.iter().all(|f| *f == 1.0) {
        return Ok(linear.map_or(Value::Null, |f| json!({"rope_type": "linear", "factor": f})));
    }
    if let Some(f) = linear {
        return refuse(format!("linear rope scaling by {f} beside rope_freqs.weight"), "one of the two");
    }
    let original = gguf.uint("llama.rope.scaling.original_context_length")?.filter(|n| *n < context);
    let stated = gguf.text(SCALING_KEY)?.and_then(Llama3::stated).filter(|stated| stated.explains(theta, factors));
    let found = stated.or_else(|| Llama3::fit(theta, factors, original));
    match found {
        Some(found) if factors.len() == head_dim / 2 => Ok(found.config()),
        _ => refuse("rope_freqs.weight that is not Llama 3's scaling".into(), "none, linear or Llama 3's"),
    }
}

/// Llama 3's scaling (transformers, `modeling_rope_utils.py`): a frequency of wavelength λ is divided by 1 where
/// λ < original/high, by `factor` where λ > original/low, and between by 1 / ((1 − u)/factor + u) with
/// u = (original/λ − low) / (high − low).
#[derive(Debug, PartialEq)]
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: u64,
}

/// Largest relative difference between stored factors (f32) and those of the parameters found.
const TOLERANCE: f64 = 2e-5;

fn wavelength(theta: f64, i: usize, half: usize) -> f64 {
    TAU * theta.powf(i as f64 / half as f64)
}

impl Llama3 {
    fn stated(json: &str) -> Option<Llama3> {
        let json: Value = serde_json::from_str(json).ok()?;
        let number = |key: &str| json[key].as_f64().filter(|v| *v > 0.0);
        Some(Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original: number("original_max_position_embeddings")? as u64,
        })
    }

    /// Only original/low and original/high can be told from the factors; `original` decides between the triples that
    /// mean the same, and without it low is taken as 1, its value in all of Meta's models.
    fn fit(theta: f64, factors: &[f32], original: Option<u64>) -> Option<Llama3> {
        let factor = factors.iter().fold(0f64, |m, f| m.max(*f as f64));
        if !factors.iter().all(|f| f.is_finite() && *f >= 1.0) || factor <= 1.0 {
            return None;
        }
        // u is a line in x = 1/λ: least squares over the wavelengths between the two bounds.
        let (mut n, mut sx, mut su, mut sxx, mut sxu) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (i, f) in factors.iter().enumerate() {
            let u = (1.0 / *f as f64 - 1.0 / factor) / (1.0 - 1.0 / factor);
            if u > 1e-6 && u < 1.0 - 1e-6 {
                let x = 1.0 / wavelength(theta, i, factors.len());
                (n, sx, su, sxx, sxu) = (n + 1.0, sx + x, su + u, sxx + x * x, sxu + x * u);
            }
        }
        if n < 2.0 {
            return None;
        }
        let slope = (n * sxu - sx * su) / (n * sxx - sx * sx);
        let at_zero = (su - slope * sx) / n;
        // slope = original/(high − low), −at_zero = low/(high − low)
        let over_low = -slope / at_zero;
        let high_over_low = 1.0 - 1.0 / at_zero;
        let low = original.map_or(1.0, |o| o as f64 / over_low);
        let neat = |v: f64| (v * 1000.0).round() / 1000.0;
        let (low, high) = (neat(low), neat(high_over_low * low));
        let original = (over_low * low).round();
        let sound = low > 0.0 && high > low && (1.0..1e9).contains(&original);
        let found = Llama3 { factor: neat(factor), low, high, original: original as u64 };
        (sound && found.explains(theta, factors)).then_some(found)
    }

    fn explains(&self, theta: f64, factors: &[f32]) -> bool {
        factors.iter().enumerate().all(|(i, f)| {
            let want = self.divisor(wavelength(theta, i, factors.len()));
            (*f as f64 - want).abs() <= TOLERANCE * want
        })
    }

    fn divisor(&self, wavelength: f64) -> f64 {
        let u = (self.original as f64 / wavelength - self.low) / (self.high - self.low);
        1.0 / ((1.0 - u.clamp(0.0, 1.0)) / self.factor + u.clamp(0.0, 1.0))
    }

    fn config(&self) -> Value {
        json!({
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low,
            "high_freq_factor": self.high,
            "original_max_position_embeddings": self.original,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Default over scaled frequencies of Llama 3.2 1B (head_dim 64, θ 500000), by transformers' `ROPE_INIT_FUNCTIONS`.
    fn llama_3_2() -> Vec<f32> {
        let mut factors = vec![1.0; 15];
        factors.extend([1.6513292, 3.2922626, 9.66673]);
        factors.resize(32, 32.0);
        factors
    }

    /// The formula in f32, as llama.cpp's converter has it, for parameters that nobody published.
    fn stored(theta: f32, head_dim: usize, factor: f32, low: f32, high: f32, original: f32) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let freq = 1.0 / theta.powf(2.0 * i as f32 / head_dim as f32);
                let wavelen = 2.0 * std::f32::consts::PI / freq;
                if wavelen < original / high {
                    1.0
                } else if wavelen > original / low {
                    factor
                } else {
                    let smooth = (original / wavelen - low) / (high - low);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            })
            .collect()
    }

    #[test]
    fn the_parameters_of_llama_3_2_are_found_again() {
        let want = Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 };
        assert_eq!(Llama3::fit(500000.0, &llama_3_2(), None), Some(want));
    }

    #[test]
    fn a_known_original_length_settles_the_triple() {
        let factors = stored(500000.0, 128, 8.0, 2.0, 6.0, 4096.0);
        let same = Llama3 { factor: 8.0, low: 1.0, high: 3.0, original: 2048 };
        assert_eq!(Llama3::fit(500000.0, &factors, None), Some(same));
        let exact = Llama3 { factor: 8.0, low: 2.0, high: 6.0, original: 4096 };
        assert_eq!(Llama3::fit(500000.0, &factors, Some(4096)), Some(exact));
    }

    #[test]
    fn other_factors_are_not_taken_for_it() {
        let mut factors = llama_3_2();
        factors[3] = 1.01;
        assert_eq!(Llama3::fit(500000.0, &factors, None), None);
        assert_eq!(Llama3::fit(500000.0, &[1.0, 1.0, 8.0, 8.0], None), None);
        assert_eq!(Llama3::fit(500000.0, &[1.0, f32::NAN], None), None);
        assert_eq!(Llama3::fit(500000.0, &[0.5, 2.0], None), None);
    }
}
