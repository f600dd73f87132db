//! `quantization_config`: ours, other writers', and those that are not understood.

use std::path::Path;

use serde_json::{Value, json};

use super::{KINDS, Kind, every_scheme, refuses};
use crate::format::compressed_tensors::pack_quantized;
use crate::format::gptq::Version;
use crate::format::{awq, gptq};
use crate::quant::{Scheme, Symmetry};

#[test]
fn configurations_come_back() {
    for kind in KINDS {
        every_scheme(|scheme| {
            if kind.unfit(64, 64, scheme).is_none() {
                // AWQ's cannot say that a model is symmetric, and none that scales have both signs.
                let symmetry = match scheme.symmetry {
                    _ if kind == Kind::Awq => Symmetry::Asymmetric,
                    Symmetry::Signed => Symmetry::Symmetric,
                    other => other,
                };
                let told = Scheme { symmetry, ..scheme };
                assert_eq!(kind.parse(&kind.config(scheme)).unwrap(), told, "{kind:?}");
            }
        });
    }
}

#[test]
fn configurations_that_are_not_understood_are_refused() {
    let weights = "/config_groups/group_0/weights";
    let ct: &[(&str, Value, &str)] = &[
        ("/quant_method", json!("gptq"), "quant_method \"gptq\""),
        ("/format", json!("marlin-24"), "format \"marlin-24\""),
        ("/format", Value::Null, "format null"),
        ("/quantization_status", json!("frozen"), "quantization_status"),
        ("/kv_cache_scheme", json!({"num_bits": 8}), "kv_cache_scheme"),
        ("/config_groups/group_1", json!({}), "config_groups"),
        ("/config_groups", json!([]), "config_groups"),
        ("/config_groups/group_0/targets", json!(["re:.*q_proj"]), "targets"),
        ("/config_groups/group_0/input_activations", json!({"dynamic": false}), "input_activations"),
        ("/transform_config", json!({"config_groups": {"u": {}}}), "transform_config"),
        (&format!("{weights}/num_bits"), json!(16), "num_bits 16"),
        (&format!("{weights}/num_bits"), json!(-4), "num_bits -4"),
        (&format!("{weights}/type"), json!("float"), "type \"float\""),
        (&format!("{weights}/dynamic"), json!(true), "dynamic true"),
        (&format!("{weights}/actorder"), json!("group"), "actorder"),
        (&format!("{weights}/strategy"), json!("tensor"), "strategy \"tensor\""),
        (&format!("{weights}/group_size"), json!(0), "group_size 0"),
        (&format!("{weights}/symmetric"), json!(1), "symmetric 1"),
    ];
    let gptq: &[(&str, Value, &str)] = &[
        ("/quant_method", json!("awq"), "quant_method \"awq\""),
        ("/checkpoint_format", json!("marlin"), "checkpoint_format \"marlin\""),
        ("/checkpoint_format", json!("gptq_p"), "checkpoint_format \"gptq_p\""),
        ("/bits", json!(5), "bits 5"),
        ("/bits", json!("4"), "bits \"4\""),
        ("/group_size", json!(0), "group_size 0"),
        ("/group_size", json!(-2), "group_size -2"),
        ("/desc_act", json!(true), "quantize with desc_act false"),
        ("/pack_dtype", json!("int64"), "pack_dtype"),
        ("/lm_head", json!(true), "lm_head"),
        ("/dynamic", json!({"+:.*down": {"bits": 8}}), "dynamic"),
        ("/sym", json!("yes"), "sym \"yes\""),
    ];
    let awq: &[(&str, Value, &str)] = &[
        ("/quant_method", json!("gptq"), "quant_method \"gptq\""),
        ("/version", json!("gemv"), "version \"gemv\""),
        ("/bits", json!(8), "bits 8"),
        ("/group_size", json!(0), "group_size 0"),
        ("/zero_point", Value::Null, "zero_point null"),
    ];
    let group = |word: &str| word.parse::<Scheme>().unwrap();
    for (kind, word, rows) in [
        (Kind::Pack, "w4g32", ct),
        (Kind::Int8, "w8g32", ct),
        (Kind::Int8, "w8g32", &[(&format!("{weights}/num_bits"), json!(4), "8-bit symmetric")]),
        (Kind::Gptq(Version::V1), "w4g32", gptq),
        (Kind::Gptq(Version::V2), "w4g32", gptq),
        (Kind::Awq, "w4g32", awq),
    ] {
        for (at, value, says) in rows {
            let mut q = kind.config(group(word));
            let (parent, key) = at.rsplit_once('/').unwrap();
            q.pointer_mut(parent).unwrap()[key] = value.clone();
            refuses(kind.parse(&q), &["config.json", says]);
        }
        refuses(kind.parse(&Value::Null), &["config.json"]);
        refuses(kind.parse(&json!([1])), &["config.json"]);
    }
}

/// As other projects' files say the same.
#[test]
fn configurations_of_other_writers() {
    let path = Path::new("config.json");
    let q = json!({"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": true, "sym": true, "damp_percent": 0.1});
    assert_eq!(gptq::parse_config(path, &q).unwrap(), (Version::V1, "w4pc".parse().unwrap()));
    let q = json!({"quant_method": "gptq", "format": "gptq_v2", "bits": 2, "group_size": 64, "desc_act": false,
        "sym": false, "lm_head": false, "dynamic": {}, "pack_dtype": "int32"});
    assert_eq!(gptq::parse_config(path, &q).unwrap(), (Version::V2, "w2g64z".parse().unwrap()));
    let q = json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "version": "GEMM", "zero_point": true});
    assert_eq!(awq::parse_config(path, &q).unwrap(), "w4g128z".parse().unwrap());
    let q = json!({"quant_method": "awq", "bits": 4, "group_size": 128, "format": "gemm", "zero_point": false});
    assert_eq!(awq::parse_config(path, &q).unwrap(), "w4g128".parse().unwrap());
    let q = json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
        "config_group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}}}});
    assert_eq!(pack_quantized::parse_config(path, &q).unwrap(), "w4g128".parse().unwrap());
    let q = json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
        "g": {"targets": ["Linear"], "weights": {"num_bits": 8, "group_size": -1, "symmetric": false, "actorder": "weight"},
        "input_activations": {"num_bits": 8, "dynamic": true}}}});
    assert_eq!(pack_quantized::parse_config(path, &q).unwrap(), "w8pcz".parse().unwrap());
}
