use std::fs;

use serde_json::json;

use super::{Fault, check, edit_json, truncate};
use crate::tiny_llama::{self, Tensor, bf16, safetensors, with_header};
use crate::tools::Dir;

const INIT: &str = "ptq-init model --scheme w4g8 -o out";

/// Writes the model's weights again, edited.
fn weights(dir: &Dir, edit: impl Fn(&mut Vec<Tensor>)) {
    let mut tensors = tiny_llama::tensors();
    edit(&mut tensors);
    fs::write(dir.join("model/model.safetensors"), safetensors(&tensors)).unwrap();
}

/// A file of two tensors with this header.
fn header(dir: &Dir, header: &str) {
    fs::write(dir.join("model/model.safetensors"), with_header(header, &[0; 16])).unwrap();
}

fn find<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    tensors.iter_mut().find(|t| t.name == name).unwrap()
}

fn config(dir: &Dir, edit: impl Fn(&mut serde_json::Value)) {
    edit_json(&dir.join("model/config.json"), edit);
}

/// The model as two shards with an index.
fn sharded(dir: &Dir) {
    let tensors = tiny_llama::tensors();
    let (a, b) = tensors.split_at(5);
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let mut map = serde_json::Map::new();
    for (name, part) in [(one, a), (two, b)] {
        fs::write(dir.join("model").join(name), safetensors(part)).unwrap();
        map.extend(part.iter().map(|t| (t.name.clone(), json!(name))));
    }
    let index = json!({"weight_map": map}).to_string();
    fs::write(dir.join("model/model.safetensors.index.json"), index).unwrap();
    fs::remove_file(dir.join("model/model.safetensors")).unwrap();
}

#[test]
fn two_shards_are_a_model() {
    let dir = Dir::with_stages();
    sharded(&dir);
    dir.run(INIT).ok();
    let file = |stage: &str| fs::read(dir.join(stage).join("scales.safetensors")).unwrap();
    assert!(file("out") == file("scales"));
}

#[test]
fn files_of_weights() {
    const FILE: &str = "model/model.safetensors: ";
    check(&[
        Fault {
            name: "a truncated file",
            spoil: |d| truncate(&d.join("model/model.safetensors"), 0.7),
            line: INIT,
            status: 1,
            says: &[FILE, "expected a", "; fetch"],
        },
        Fault {
            name: "a header cut short",
            spoil: |d| truncate(&d.join("model/model.safetensors"), 0.001),
            line: INIT,
            status: 1,
            says: &[FILE, "expected", "; fetch"],
        },
        Fault {
            name: "an empty file",
            spoil: |d| fs::write(d.join("model/model.safetensors"), "").unwrap(),
            line: INIT,
            status: 1,
            says: &[FILE, "empty file, expected", "; fetch"],
        },
        Fault {
            name: "a length beyond the file",
            spoil: |d| fs::write(d.join("model/model.safetensors"), u64::MAX.to_le_bytes()).unwrap(),
            line: INIT,
            status: 1,
            says: &[FILE, "header too large", "expected"],
        },
        Fault {
            name: "overlapping tensors",
            spoil: |d| {
                header(
                    d,
                    r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}}"#,
                )
            },
            line: INIT,
            status: 1,
            says: &[FILE, "safetensors", "expected"],
        },
        Fault {
            name: "a shape that lies about its bytes",
            spoil: |d| header(d, r#"{"a":{"dtype":"F32","shape":[1073741824,1073741824,16],"data_offsets":[0,16]}}"#),
            line: INIT,
            status: 1,
            says: &[FILE, "safetensors", "expected"],
        },
        Fault {
            name: "data that no tensor owns",
            spoil: |d| header(d, r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#),
            line: INIT,
            status: 1,
            says: &[FILE, "safetensors", "expected"],
        },
        Fault {
            name: "a tensor twice in the header",
            spoil: |d| {
                header(
                    d,
                    r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
                )
            },
            line: INIT,
            status: 1,
            says: &[FILE, "safetensors", "expected"],
        },
        Fault {
            name: "a missing tensor",
            spoil: |d| weights(d, |t| t.retain(|t| !t.name.contains("1.mlp.up"))),
            line: INIT,
            status: 1,
            says: &["model: ", "no tensor model.layers.1.mlp.up_proj.weight", "config.json", "; fetch"],
        },
        Fault {
            name: "a missing norm",
            spoil: |d| weights(d, |t| t.retain(|t| t.name != "model.norm.weight")),
            line: "eval model --ppl text.txt --ctx 64",
            status: 1,
            says: &["model: ", "no tensor model.norm.weight", "; fetch"],
        },
        Fault {
            name: "a shape against config.json",
            spoil: |d| config(d, |c| c["intermediate_size"] = json!(96)),
            line: INIT,
            status: 1,
            says: &[
                "model.safetensors: ",
                "mlp.down_proj.weight has shape [32, 64]",
                "[32, 96] from config.json",
                "; ",
            ],
        },
        Fault {
            name: "integers for weights",
            spoil: |d| weights(d, |t| find(t, "model.layers.0.self_attn.q_proj.weight").dtype = "I16"),
            line: INIT,
            status: 1,
            says: &["q_proj.weight has type I16", "expected F32, F16 or BF16", "; convert"],
        },
        Fault {
            name: "a weight that is not a number",
            spoil: |d| {
                weights(d, |t| {
                    let at = (3 * 32 + 7) * 2;
                    find(t, "model.layers.1.self_attn.k_proj.weight").bytes[at..at + 2]
                        .copy_from_slice(&bf16(f32::NAN));
                })
            },
            line: INIT,
            status: 1,
            says: &["model: ", "model.layers.1.self_attn.k_proj.weight[3, 7] is NaN", "expected finite", "; "],
        },
        Fault {
            name: "an infinite embedding",
            spoil: |d| {
                weights(d, |t| {
                    find(t, "model.embed_tokens.weight").bytes[64..66].copy_from_slice(&bf16(f32::INFINITY))
                });
                fs::remove_dir_all(d.join("scales")).unwrap();
                d.run("ptq-init model --scheme w4g8 -o scales").ok();
            },
            line: "lr-wrap scales -o out",
            status: 1,
            says: &["model: ", "model.embed_tokens.weight row 1", "not finite", "expected finite", "; "],
        },
        Fault {
            name: "weights that are no numbers, evaluated",
            spoil: |d| weights(d, |t| find(t, "lm_head.weight").bytes[64..66].copy_from_slice(&bf16(f32::NAN))),
            line: "eval model --ppl text.txt --ctx 64",
            status: 1,
            says: &["model: ", "text.txt", "expected finite weights", "; "],
        },
        Fault {
            name: "a bias that config.json does not tell of",
            spoil: |d| {
                weights(d, |t| {
                    let name = "model.layers.0.self_attn.q_proj.bias".to_string();
                    t.push(Tensor { name, dtype: "BF16", shape: vec![32], bytes: vec![0; 64] });
                })
            },
            line: INIT,
            status: 1,
            says: &["model: ", "q_proj.bias", "expected linears without a bias", "; "],
        },
    ]);
}

#[test]
fn shards_of_weights() {
    check(&[
        Fault {
            name: "a missing shard",
            spoil: |d| {
                sharded(d);
                fs::remove_file(d.join("model/model-00002-of-00002.safetensors")).unwrap();
            },
            line: INIT,
            status: 1,
            says: &["model/model-00002-of-00002.safetensors: ", "missing", "expected all 2 shards", "; fetch it"],
        },
        Fault {
            name: "a tensor in two shards",
            spoil: |d| {
                sharded(d);
                let all = safetensors(&tiny_llama::tensors());
                fs::write(d.join("model/model-00002-of-00002.safetensors"), all).unwrap();
            },
            line: INIT,
            status: 1,
            says: &["model/model-00002-of-00002.safetensors: tensor ", "also in another shard", "expected each", "; "],
        },
        Fault {
            name: "an index that lies",
            spoil: |d| {
                sharded(d);
                let index = d.join("model/model.safetensors.index.json");
                edit_json(&index, |v| v["weight_map"]["model.norm.weight"] = json!("model-00002-of-00002.safetensors"));
            },
            line: INIT,
            status: 1,
            says: &["model/model.safetensors.index.json: model.norm.weight is not in", "expected", "; fetch it again"],
        },
        Fault {
            name: "an index that leads out of the directory",
            spoil: |d| {
                sharded(d);
                let index = d.join("model/model.safetensors.index.json");
                edit_json(&index, |v| v["weight_map"]["model.norm.weight"] = json!("../scales/scales.safetensors"));
            },
            line: INIT,
            status: 1,
            says: &["index.json: shard name \"../scales", "expected", "; "],
        },
    ]);
}

#[test]
fn configurations() {
    check(&[
        Fault {
            name: "an architecture that is not supported",
            spoil: |d| config(d, |c| c["architectures"] = json!(["Qwen2ForCausalLM"])),
            line: INIT,
            status: 1,
            says: &[
                "config.json: ",
                "Qwen2ForCausalLM",
                "expected one of LlamaForCausalLM, MistralForCausalLM",
                "; choose",
            ],
        },
        Fault {
            name: "a rope scaling that is not supported",
            spoil: |d| config(d, |c| c["rope_scaling"] = json!({"rope_type": "yarn", "factor": 2.0})),
            line: INIT,
            status: 1,
            says: &["config.json: ", "\"yarn\"", "expected default, linear or llama3", "; "],
        },
        Fault {
            name: "a size that is no number",
            spoil: |d| config(d, |c| c["hidden_size"] = json!(-32)),
            line: INIT,
            status: 1,
            says: &["config.json: hidden_size is -32", "expected a positive number", "; fetch"],
        },
        Fault {
            name: "a base that is no number",
            spoil: |d| config(d, |c| c["rope_theta"] = json!("500000")),
            line: INIT,
            status: 1,
            says: &["config.json: rope_theta is \"500000\"", "expected a positive number", "; fetch"],
        },
        Fault {
            name: "more layers than can be",
            spoil: |d| config(d, |c| c["num_hidden_layers"] = json!(2_000_000_000)),
            line: INIT,
            status: 1,
            says: &["config.json: num_hidden_layers is 2000000000", "expected at most", "; fetch"],
        },
        Fault {
            name: "more layers than there are",
            spoil: |d| config(d, |c| c["num_hidden_layers"] = json!(3)),
            line: INIT,
            status: 1,
            says: &["model: no tensor model.layers.2.", "expected every tensor that config.json implies", "; "],
        },
        Fault {
            name: "a config.json that is no JSON",
            spoil: |d| fs::write(d.join("model/config.json"), "{").unwrap(),
            line: INIT,
            status: 1,
            says: &["model/config.json: not JSON", "expected the model's configuration", "; fetch it again"],
        },
        Fault {
            name: "no config.json",
            spoil: |d| fs::remove_file(d.join("model/config.json")).unwrap(),
            line: INIT,
            status: 1,
            says: &["model: it holds no config.json", "expected a Hugging Face model", "; give"],
        },
        Fault {
            name: "pytorch_model.bin only",
            spoil: |d| fs::rename(d.join("model/model.safetensors"), d.join("model/pytorch_model.bin")).unwrap(),
            line: INIT,
            status: 1,
            says: &["model: ", "neither model.safetensors", "expected", "; convert pytorch_model.bin"],
        },
        Fault {
            name: "a model quantized some other way",
            spoil: |d| config(d, |c| c["quantization_config"] = json!({"quant_method": "hqq", "bits": 4})),
            line: "eval model --ppl text.txt --ctx 64",
            status: 1,
            says: &["model/config.json: quant_method \"hqq\"", "expected compressed-tensors, gptq or awq", "; "],
        },
        Fault {
            name: "a GPTQ model whose weights are reordered",
            spoil: |d| {
                let order = json!({"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": true, "desc_act": true});
                config(d, |c| c["quantization_config"] = order.clone());
            },
            line: "ptq-init model -o out",
            status: 1,
            says: &["model/config.json: desc_act true", "expected false", "; quantize with"],
        },
        Fault {
            name: "folded with a group that does not divide",
            spoil: |d| {
                let size = "/quantization_config/config_groups/group_0/weights/group_size";
                edit_json(&d.join("folded/config.json"), |c| *c.pointer_mut(size).unwrap() = json!(24));
            },
            line: "eval folded --ppl text.txt --ctx 64",
            status: 1,
            says: &["folded/config.json: groups of 24", "expected a group_size that divides", "; "],
        },
        Fault {
            name: "a path that leads nowhere",
            spoil: |_| {},
            line: "ptq-init modell --scheme w4g8 -o out",
            status: 1,
            says: &["modell: does not exist", "expected a Hugging Face model directory or a .gguf", "; check the path"],
        },
        Fault {
            name: "a file that is no model",
            spoil: |_| {},
            line: "ptq-init text.txt --scheme w4g8 -o out",
            status: 1,
            says: &["text.txt: ", "no .gguf", "expected a Hugging Face model directory", "; give"],
        },
        Fault {
            name: "a .gguf that is none",
            spoil: |d| fs::write(d.join("x.gguf"), "GGML and more than a header of it").unwrap(),
            line: "ptq-init x.gguf --scheme w4g8 -o out",
            status: 1,
            says: &["x.gguf: ", "expected", "; "],
        },
        Fault {
            name: "a model without a tokenizer",
            spoil: |d| fs::remove_file(d.join("model/tokenizer.json")).unwrap(),
            line: "shard text.txt --tokenizer model -o out",
            status: 1,
            says: &["model: no tokenizer", "expected tokenizer.json or tokenizer.model", "; copy"],
        },
        Fault {
            name: "a broken tokenizer",
            spoil: |d| truncate(&d.join("model/tokenizer.json"), 0.5),
            line: "eval model --ppl text.txt --ctx 64",
            status: 1,
            says: &["model/tokenizer.json: not JSON", "expected", "; fetch it again"],
        },
    ]);
}
