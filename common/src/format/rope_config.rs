//! What a Hugging Face config.json says of the rotary position embedding.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// Rotary position embedding: base and the scaling of its frequencies.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: Scaling,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    None,
    Linear {
        factor: f64,
    },
    /// LLaMA-3.1 and later.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
}

impl Rope {
    /// `rope_scaling` beside `rope_theta` (transformers 4), or both inside `rope_parameters` (transformers 5). `path` is
    /// for messages.
    pub fn parse(path: &Path, json: &Value) -> Result<Rope> {
        let params = &json["rope_parameters"];
        let theta = params["rope_theta"].as_f64().or(json["rope_theta"].as_f64()).unwrap_or(10000.0);
        let scaling = if params.is_object() { params } else { &json["rope_scaling"] };
        let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default");
        let number = |key: &str| {
            let found = || format!("rope scaling {kind:?} with {key} {}", scaling[key]);
            let cure = "fetch the model's config.json again";
            let number = scaling[key].as_f64().filter(|v| *v > 0.0);
            number.ok_or_else(|| Error::input(path, found(), "a positive number", cure))
        };
        let scaling = match kind {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: number("factor")? },
            "llama3" => Scaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original: number("original_max_position_embeddings")?,
            },
            other => {
                return Err(Error::input(
                    path,
                    format!("rope scaling {other:?}"),
                    "default, linear or llama3",
                    "choose a model that uses one of these",
                ));
            }
        };
        Ok(Rope { theta, scaling })
    }
}
