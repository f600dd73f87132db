//! A LoRA adapter as the package `peft` (0.17 and later) and vLLM read it: a directory with `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! | tensor | shape | |
//! |---|---|---|
//! | `base_model.model.<linear>.lora_A.weight` | [r, K] | B of this project |
//! | `base_model.model.<linear>.lora_B.weight` | [N, r] | A of this project |
//!
//! y = W·x + (lora_alpha/r)·lora_B·lora_A·x.

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Value, json};

use super::safetensors::{Spec, TensorFile};
use super::tensor::Dtype;
use crate::error::{Error, Result};

pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// What the configuration says of all adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    pub rank: usize,
    pub alpha: f32,
    pub dropout: f32,
    /// Last parts of the names of the modules that have one: `q_proj`.
    pub modules: Vec<String>,
}

/// `base` is where the model lies that the adapter is for, if that can be said.
pub fn config(lora: &Lora, base: Option<&str>) -> Value {
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "use_dora": false,
        "use_rslora": false,
    })
}

/// Names of the tensors of a linear: lora_A, lora_B.
fn names(linear: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|which| format!("base_model.model.{linear}.{which}.weight"))
}

/// The tensors of a linear [n, k]: lora_A, lora_B.
pub fn specs(linear: &str, n: usize, k: usize, rank: usize, dtype: Dtype) -> [Spec; 2] {
    let [a, b] = names(linear);
    [Spec::new(a, dtype, [rank, k]), Spec::new(b, dtype, [n, rank])]
}

/// Values in a type of two bytes, or as they are. What F16 cannot hold is told by its place.
pub fn encode(values: &[f32], dtype: Dtype) -> Result<Vec<u8>, usize> {
    let bytes: Vec<u8> = match dtype {
        Dtype::F16 => {
            if let Some(at) = values.iter().position(|x| !f16::from_f32(*x).is_finite()) {
                return Err(at);
            }
            values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
        }
        Dtype::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    Ok(bytes)
}

/// An open adapter.
pub struct PeftAdapter {
    dir: PathBuf,
    pub lora: Lora,
    file: TensorFile,
}

impl PeftAdapter {
    /// None if there is none in the directory.
    pub fn open(dir: &Path) -> Result<Option<PeftAdapter>> {
        let path = dir.join(CONFIG);
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
        let lora = serde_json::from_slice(&bytes).map_err(|e| e.to_string()).and_then(|json| parse(&json));
        let lora = lora.map_err(|why| {
            let cure = "merge it into the float model first, or take it out of the directory";
            Error::input(&path, why, "a plain LoRA adapter of one rank", cure)
        })?;
        Ok(Some(PeftAdapter { dir: dir.to_path_buf(), lora, file: TensorFile::open(&dir.join(WEIGHTS))? }))
    }

    /// lora_A and lora_B of a linear [n, k]; none if it has none.
    pub fn factors(&self, linear: &str, n: usize, k: usize) -> Result<Option<[Vec<f32>; 2]>> {
        let [a, b] = names(linear);
        match (self.file.get(&a), self.file.get(&b)) {
            (None, None) => Ok(None),
            _ => {
                let read = |name: &str, shape: [usize; 2]| Ok(self.file.expect_float(name, &shape)?.to_f32());
                Ok(Some([read(&a, [self.lora.rank, k])?, read(&b, [n, self.lora.rank])?]))
            }
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names of its tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file.names()
    }
}

/// Refuses what would compute something else.
fn parse(json: &Value) -> Result<Lora, String> {
    let set = |key: &str| match &json[key] {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    let others = ["use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication"];
    if let Some(key) = others.into_iter().find(|key| set(key)) {
        return Err(format!("it sets {key}"));
    }
    if json["peft_type"] != "LORA" || json["bias"].as_str().is_some_and(|bias| bias != "none") {
        return Err("no LoRA without biases".into());
    }
    let number = |key: &str| json[key].as_f64().ok_or(format!("no {key}"));
    let modules = json["target_modules"].as_array().map(|list| list.iter().filter_map(Value::as_str));
    let rank = json["r"].as_u64().filter(|r| (1..=1 << 14).contains(r)).ok_or("no rank r")?;
    Ok(Lora {
        rank: rank as usize,
        alpha: number("lora_alpha")? as f32,
        dropout: json["lora_dropout"].as_f64().unwrap_or(0.0) as f32,
        modules: modules.map(|words| words.map(str::to_string).collect()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_read_back() {
        let lora = Lora { rank: 8, alpha: 32.0, dropout: 0.0625, modules: vec!["q_proj".into(), "up_proj".into()] };
        assert_eq!(parse(&config(&lora, None)).unwrap(), lora);
        for (key, value) in [("use_dora", json!(true)), ("rank_pattern", json!({"q_proj": 4})), ("r", json!(0))] {
            let mut other = config(&lora, Some("folded"));
            other[key] = value;
            assert!(parse(&other).is_err(), "{key}");
        }
    }

    #[test]
    fn f16_has_an_end() {
        assert_eq!(encode(&[1.0, 1e6], Dtype::F16), Err(1));
        assert_eq!(encode(&[1.0, -2.5], Dtype::F16).unwrap(), [0, 0x3c, 0, 0xc1]);
        assert_eq!(encode(&[1.0], Dtype::BF16).unwrap(), [0x80, 0x3f]);
    }
}
