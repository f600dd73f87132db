//! `config.json` of the LLaMA family and Mistral, as transformers reads it.

use std::path::Path;

use serde_json::Value;

use crate::compute::backend::Heads;
use crate::error::{Error, Result};
use crate::format::rope_config::optional_number;
pub use crate::format::rope_config::{Rope, Scaling};

/// Architectures that this project trains, by their name in `architectures`.
pub const ARCHITECTURES: [&str; 2] = ["LlamaForCausalLM", "MistralForCausalLM"];

/// Dims of the model and what its forward pass needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub vocab: usize,
    pub d: usize,
    pub ffn: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm_eps: f32,
    pub rope: Rope,
    /// Mistral: a position sees itself and the `window − 1` before it.
    pub window: Option<usize>,
    pub tied: bool,
    /// Positions the model was made for.
    pub max_positions: usize,
}

impl Config {
    /// Reads a parsed config.json; `path` is for messages.
    pub fn parse(path: &Path, json: &Value) -> Result<Config> {
        let read = Reader { path, json };
        read.architecture()?;
        read.refuse_biases()?;
        let d = read.dim("hidden_size")?;
        let heads = read.dim("num_attention_heads")?;
        let kv_heads = read.optional_dim("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(read.bad(format!("{heads} heads and {kv_heads} key-value heads"), "heads to be a multiple"));
        }
        let head_dim = match read.optional_dim("head_dim")? {
            Some(n) => n,
            None if d % heads == 0 => d / heads,
            None => return Err(read.bad(format!("hidden_size {d} and {heads} heads"), "a multiple, or head_dim")),
        };
        if head_dim % 2 != 0 {
            return Err(read.bad(format!("head_dim {head_dim}"), "an even number"));
        }
        match &json["hidden_act"] {
            Value::Null => {}
            act if act == "silu" => {}
            act => return Err(read.bad(format!("hidden_act {act}"), "\"silu\"")),
        }
        let window = match json["model_type"] == "mistral" || json["architectures"][0] == ARCHITECTURES[1] {
            true => read.optional_dim("sliding_window")?,
            false => None,
        };
        Ok(Config {
            vocab: read.dim("vocab_size")?,
            d,
            ffn: read.dim("intermediate_size")?,
            layers: read.layers()?,
            heads,
            kv_heads,
            head_dim,
            norm_eps: optional_number(path, json, "rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope: Rope::parse(path, json)?,
            window,
            tied: read.optional_bool("tie_word_embeddings")?.unwrap_or(false),
            max_positions: read.optional_dim("max_position_embeddings")?.unwrap_or(2048),
        })
    }

    /// As the attention op takes them.
    pub fn attention_heads(&self) -> Heads {
        Heads { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim, window: self.window }
    }

    /// Width of the queries, h·head_dim.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the keys and of the values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

struct Reader<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Reader<'_> {
    fn bad(&self, found: impl std::fmt::Display, expected: impl std::fmt::Display) -> Error {
        Error::input(self.path, found, expected, "fetch the model's config.json again")
    }

    fn architecture(&self) -> Result<()> {
        let name = match self.json["architectures"][0].as_str() {
            Some(name) => name.to_string(),
            None => match self.json["model_type"].as_str() {
                Some("llama") | Some("mistral") => return Ok(()),
                other => other.unwrap_or("no architecture").to_string(),
            },
        };
        if ARCHITECTURES.contains(&name.as_str()) {
            return Ok(());
        }
        Err(Error::input(
            self.path,
            format!("the architecture is {name}"),
            format!("one of {}", ARCHITECTURES.join(", ")),
            "choose a model of the LLaMA family or Mistral",
        ))
    }

    fn refuse_biases(&self) -> Result<()> {
        for key in ["attention_bias", "mlp_bias"] {
            if self.optional_bool(key)? == Some(true) {
                return Err(Error::input(
                    self.path,
                    format!("{key} is true"),
                    "linears without a bias",
                    "choose a model of the LLaMA family or Mistral",
                ));
            }
        }
        Ok(())
    }

    fn optional_bool(&self, key: &str) -> Result<Option<bool>> {
        match &self.json[key] {
            Value::Null => Ok(None),
            Value::Bool(b) => Ok(Some(*b)),
            v => Err(self.bad(format!("{key} is {v}"), "true or false")),
        }
    }

    fn optional_dim(&self, key: &str) -> Result<Option<usize>> {
        match &self.json[key] {
            Value::Null => Ok(None),
            v => match v.as_u64() {
                Some(n) if (1..=1 << 31).contains(&n) => Ok(Some(n as usize)),
                _ => Err(self.bad(format!("{key} is {v}"), "a positive number")),
            },
        }
    }

    /// Far more than any model has, few enough to list the tensors of.
    fn layers(&self) -> Result<usize> {
        match self.dim("num_hidden_layers")? {
            n if n <= 1 << 14 => Ok(n),
            n => Err(self.bad(format!("num_hidden_layers is {n}"), format!("at most {}", 1 << 14))),
        }
    }

    fn dim(&self, key: &str) -> Result<usize> {
        self.optional_dim(key)?.ok_or_else(|| self.bad(format!("no {key}"), "a positive number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Value {
        json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 172,
               "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512})
    }

    fn parse(edit: impl Fn(&mut Value)) -> Result<Config> {
        let mut v = base();
        edit(&mut v);
        Config::parse(Path::new("config.json"), &v)
    }

    #[test]
    fn dims_and_defaults() {
        let c = parse(|_| {}).unwrap();
        assert_eq!((c.head_dim, c.q_width(), c.kv_width(), c.tied), (8, 64, 32, false));
        assert_eq!(parse(|v| v["head_dim"] = json!(16)).unwrap().q_width(), 128);
        let llama31 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192});
        let c = parse(|v| v["rope_scaling"] = llama31.clone()).unwrap();
        assert_eq!(c.rope.scaling, Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 });
    }

    #[test]
    fn only_mistral_has_a_window() {
        assert_eq!(parse(|v| v["sliding_window"] = json!(8)).unwrap().window, None);
        let mistral = |v: &mut Value| {
            v["architectures"] = json!(["MistralForCausalLM"]);
            v["model_type"] = json!("mistral");
            v["sliding_window"] = json!(8);
        };
        assert_eq!(parse(mistral).unwrap().window, Some(8));
        let with = |window: Value| {
            parse(|v| {
                mistral(v);
                v["sliding_window"] = window.clone();
            })
        };
        assert_eq!(with(Value::Null).unwrap().window, None);
        for wrong in [json!(0), json!(-1), json!("4096")] {
            assert!(with(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn others_are_refused_by_name() {
        let e = parse(|v| v["architectures"] = json!(["Qwen2ForCausalLM"])).unwrap_err().to_string();
        assert!(e.contains("Qwen2ForCausalLM") && e.contains("LlamaForCausalLM, MistralForCausalLM"), "{e}");
        for (key, value) in [
            ("attention_bias", json!(true)),
            ("hidden_size", json!(-1)),
            ("num_key_value_heads", json!(3)),
            ("vocab_size", Value::Null),
            ("hidden_act", json!("gelu")),
            ("hidden_act", json!(["silu"])),
            ("rms_norm_eps", json!("1e-5")),
            ("rms_norm_eps", json!(-1e-5)),
            ("rope_theta", json!("500000")),
            ("rope_theta", json!(0)),
            ("rope_scaling", json!("linear")),
            ("rope_scaling", json!({"rope_type": 3})),
            ("rope_parameters", json!([5e5])),
            ("rope_parameters", json!({"rope_theta": "5e5"})),
            ("tie_word_embeddings", json!("true")),
            ("mlp_bias", json!(1)),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
        ] {
            assert!(parse(|v| v[key] = value.clone()).is_err(), "{key}");
        }
    }
}
