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

const FETCH: &str = "fetch the model's config.json again";

/// A positive number of config.json, if it has one of this name. `path` is for messages.
pub fn optional_number(path: &Path, json: &Value, key: &str) -> Result<Option<f64>> {
    match &json[key] {
        Value::Null => Ok(None),
        v => match v.as_f64().filter(|n| *n > 0.0) {
            Some(n) => Ok(Some(n)),
            None => Err(Error::input(path, format!("{key} is {v}"), "a positive number", FETCH)),
        },
    }
}

impl Rope {
    /// `rope_scaling` beside `rope_theta` (transformers 4), or both inside `rope_parameters` (transformers 5). `path` is
    /// for messages.
    pub fn parse(path: &Path, json: &Value) -> Result<Rope> {
        let (params, scaling) = (&json["rope_parameters"], &json["rope_scaling"]);
        for (key, value) in [("rope_parameters", params), ("rope_scaling", scaling)] {
            if !value.is_null() && !value.is_object() {
                return Err(Error::input(path, format!("{key} is {value}"), "an object or null", FETCH));
            }
        }
        let theta = match optional_number(path, params, "rope_theta")? {
            Some(theta) => theta,
            None => optional_number(path, json, "rope_theta")?.unwrap_or(10000.0),
        };
        let scaling = if params.is_object() { params } else { scaling };
        let kind = match [&scaling["rope_type"], &scaling["type"]].into_iter().find(|v| !v.is_null()) {
            None => "default",
            Some(Value::String(kind)) => kind,
            Some(other) => return Err(Error::input(path, format!("rope_type is {other}"), "a name", FETCH)),
        };
        let number = |key: &str| {
            let none =
                || Error::input(path, format!("rope scaling {kind:?} without {key}"), "a positive number", FETCH);
            optional_number(path, scaling, key)?.ok_or_else(none)
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
