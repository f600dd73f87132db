//! `quantization_config`: one group of linears, all with the same scheme.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::quant::{Scheme, Symmetry};

/// The oldest release whose packing of 3, 5, 6 and 7 bits is dense; written into the configuration.
const VERSION: &str = "0.17.0";

pub(super) fn describe(format: &str, scheme: Scheme, input_activations: Value) -> Value {
    let strategy = if scheme.group.is_some() { "group" } else { "channel" };
    json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "version": VERSION,
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "kv_cache_scheme": null,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": scheme.bits, "type": "int", "symmetric": !scheme.stores_zero_points(), "strategy": strategy,
                "group_size": scheme.group, "block_structure": null, "dynamic": false, "actorder": null,
                "observer": "minmax", "observer_kwargs": {}
            },
            "input_activations": input_activations,
            "output_activations": null
        }}
    })
}

/// The scheme of the weights in a configuration of `format`. Dynamic quantization of activations says nothing of the
/// weights and is passed over; whatever changes the weights or is not known is refused.
pub(super) fn parse(path: &Path, q: &Value, format: &str) -> Result<Scheme> {
    let bad = |found: String, expected: &str| {
        Error::input(path, found, expected, format!("choose a model quantized as compressed-tensors {format}"))
    };
    let must = |holds: bool, key: &str, value: &Value, expected: &str| {
        if holds { Ok(()) } else { Err(bad(format!("{key} {value}"), expected)) }
    };
    must(q["quant_method"] == "compressed-tensors", "quant_method", &q["quant_method"], "\"compressed-tensors\"")?;
    must(q["format"] == format, "format", &q["format"], &format!("{format:?}"))?;
    let status = &q["quantization_status"];
    must(status.is_null() || status == "compressed", "quantization_status", status, "\"compressed\"")?;
    for key in ["kv_cache_scheme", "transform_config"] {
        let empty = q[key].as_object().is_some_and(|o| o.is_empty());
        must(q[key].is_null() || empty, key, &q[key], "null, since it changes what the model computes")?;
    }
    let sparse = &q["sparsity_config"]["format"];
    must(sparse.is_null() || sparse == "dense", "sparsity_config.format", sparse, "\"dense\"")?;
    let groups = q["config_groups"].as_object().filter(|groups| groups.len() == 1);
    let group = groups.and_then(|groups| groups.values().next());
    let group = group.ok_or_else(|| bad("config_groups is not one group".into(), "one for all linears"))?;
    let targets = &group["targets"];
    must(*targets == json!(["Linear"]), "targets", targets, "[\"Linear\"]")?;
    let own = &group["format"];
    must(own.is_null() || own == format, "format of the group", own, &format!("{format:?}"))?;
    for key in ["input_activations", "output_activations"] {
        let a = &group[key];
        must(a.is_null() || a["dynamic"] == true, key, a, "null, or dynamic activations")?;
    }
    weights(&group["weights"], bad)
}

fn weights(w: &Value, bad: impl Fn(String, &str) -> Error) -> Result<Scheme> {
    let kind = &w["type"];
    if !(kind.is_null() || kind == "int") || !(w["dynamic"].is_null() || w["dynamic"] == false) {
        return Err(bad(format!("weights of type {kind}, dynamic {}", w["dynamic"]), "static \"int\" weights"));
    }
    if !(w["actorder"].is_null() || w["actorder"] == false || w["actorder"] == "weight" || w["actorder"] == "static") {
        return Err(bad(format!("actorder {}", w["actorder"]), "null: reordered groups are not read"));
    }
    let bits = w["num_bits"].as_u64().filter(|b| (2..=8).contains(b));
    let bits = bits.ok_or_else(|| bad(format!("num_bits {}", w["num_bits"]), "2 to 8"))? as u32;
    let size = w["group_size"].as_i64();
    // Without a strategy the size of the group says which it is, as in QuantizationArgs.
    let strategy = match (&w["strategy"], size) {
        (Value::Null, Some(-1)) => "channel",
        (Value::Null, Some(_)) => "group",
        (strategy, _) => strategy.as_str().unwrap_or("none"),
    };
    let group = match (strategy, size) {
        ("channel", _) => None,
        ("group", Some(g)) if g > 0 => Some(g as usize),
        ("group", _) => return Err(bad(format!("group_size {}", w["group_size"]), "a positive number")),
        _ => return Err(bad(format!("strategy {strategy:?}"), "\"channel\" or \"group\"")),
    };
    let symmetry = match &w["symmetric"] {
        Value::Null | Value::Bool(true) => Symmetry::Symmetric,
        Value::Bool(false) => Symmetry::Asymmetric,
        other => return Err(bad(format!("symmetric {other}"), "true or false")),
    };
    Ok(Scheme { bits, group, symmetry })
}
