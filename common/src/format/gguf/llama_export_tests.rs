use super::*;
use crate::format::atomic::OutputFile;
use crate::format::gguf::encode::{encode_float, exact_type};
use crate::format::gguf::llama::GgufLlama;
use crate::format::gguf::testing::{encode, random_integers};
use crate::format::gguf::writer::{GgufWriter, TensorSpec};

const HIDDEN: usize = 256;
const VOCAB: usize = 40;

/// Two layers, four heads over two key-value heads, of a width that is not hidden/heads.
fn config() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": 512, "head_dim": 32,
           "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
           "max_position_embeddings": 128, "vocab_size": VOCAB, "rope_theta": 500000.0})
}

/// Hugging Face name, N and K of the linears of a layer.
const LINEARS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 128, HIDDEN),
    ("self_attn.k_proj", 64, HIDDEN),
    ("self_attn.v_proj", 64, HIDDEN),
    ("self_attn.o_proj", HIDDEN, 128),
    ("mlp.gate_proj", 512, HIDDEN),
    ("mlp.up_proj", 512, HIDDEN),
    ("mlp.down_proj", HIDDEN, 512),
];

fn linears() -> impl Iterator<Item = (String, usize, usize)> {
    (0..2).flat_map(|l| LINEARS.map(|(name, n, k)| (format!("model.layers.{l}.{name}"), n, k)))
}

fn embedding() -> Vec<f32> {
    (0..VOCAB * HIDDEN).map(|i| (i % 97) as f32 - 48.0).collect()
}

/// Writes the model as `fold` does.
fn write(config: &Value, scheme: Scheme) -> (tempfile::TempDir, Result<GgufLlama>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut tensors = Vec::new();
    if let Some(factors) = rope_factors(config).unwrap() {
        let spec = TensorSpec::new(ROPE_FACTORS, [factors.len()], GgmlType::F32);
        tensors.push((spec, encode_float(GgmlType::F32, &factors)));
    }
    let mut float = |name: &str, dims: &[usize], ty, values: &[f32]| {
        tensors.push((TensorSpec::new(gguf_name(name).unwrap(), dims, ty), encode_float(ty, values)));
    };
    float("model.embed_tokens.weight", &[HIDDEN, VOCAB], GgmlType::F16, &embedding());
    float("model.norm.weight", &[HIDDEN], GgmlType::F32, &[0.1; HIDDEN]);
    float("lm_head.weight", &[HIDDEN, VOCAB], GgmlType::Q8_0, &[0.75; HIDDEN * VOCAB]);
    for (l, norm) in [(0, "input"), (0, "post_attention"), (1, "input"), (1, "post_attention")] {
        float(&format!("model.layers.{l}.{norm}_layernorm.weight"), &[HIDDEN], GgmlType::F32, &[1.0; HIDDEN]);
    }
    for (name, n, k) in linears() {
        let mut integers = random_integers(scheme, n, k);
        match name.rsplit('.').next() {
            Some("q_proj") => integers = permute_rows(&integers, 4, n),
            Some("k_proj") => integers = permute_rows(&integers, 2, n),
            _ => {}
        }
        let ty = exact_type(scheme, k).unwrap();
        let stored = gguf_name(&format!("{name}.weight")).unwrap();
        tensors.push((TensorSpec::new(stored, [k, n], ty), encode(ty, scheme, n, k, &integers)));
    }
    let metadata = metadata(config, "tiny", scheme, exact_type(scheme, HIDDEN).unwrap()).unwrap();
    let specs = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut w = GgufWriter::create(OutputFile::create(&path).unwrap(), metadata, specs).unwrap();
    tensors.iter().for_each(|(spec, bytes)| w.put(&spec.name, bytes).unwrap());
    w.finish().unwrap();
    let read = GgufLlama::open(&path);
    (dir, read)
}

#[test]
fn a_model_comes_back_with_its_integers_in_hugging_face_order() {
    for word in ["w4g32", "w4g128", "w4pcz", "w3pc", "w3g64", "w2pcz", "w2pc", "w8pc", "w5g32", "w3g32z"] {
        let scheme: Scheme = word.parse().unwrap();
        let (_dir, read) = write(&config(), scheme);
        let read = read.unwrap();
        assert_eq!(read.scheme().unwrap(), Some(scheme));
        for (name, n, k) in linears() {
            assert_eq!(
                read.linear(&name, scheme).unwrap().integers().unwrap(),
                random_integers(scheme, n, k),
                "{word} {name}"
            );
        }
        let mut values = Vec::new();
        read.read_hf("model.embed_tokens.weight", &mut values).unwrap();
        assert_eq!(values, embedding());
        read.read_hf("model.norm.weight", &mut values).unwrap();
        assert_eq!(values, [0.1; HIDDEN]);
    }
}

#[test]
fn integers_that_are_none_name_the_tensor() {
    let scheme: Scheme = "w4g32".parse().unwrap();
    let (_dir, read) = write(&config(), scheme);
    let read = read.unwrap();
    let of = |name: &str, scheme: Scheme| read.linear(name, scheme).and_then(|linear| linear.integers());
    let e = of("model.layers.1.mlp.up_proj", "w3g32".parse().unwrap()).unwrap_err().to_string();
    assert!(e.contains("blk.1.ffn_up.weight has the integer ") && e.contains("expected integers of w3g32"), "{e}");
    let e = of("model.layers.2.mlp.up_proj", scheme).unwrap_err().to_string();
    assert!(e.contains("no tensor \"model.layers.2.mlp.up_proj.weight\""), "{e}");
    assert!(of("model.norm", scheme).is_err());
    assert!(of("lm_head", scheme).is_err());
}

#[test]
fn config_json_comes_back() {
    let read = |config: &Value| write(config, "w4pc".parse().unwrap()).1.unwrap().hf_config().clone();
    let (want, got) = (config(), read(&config()));
    for (key, value) in want.as_object().unwrap() {
        assert_eq!(&got[key], value, "{key}");
    }
    assert_eq!(got["rope_scaling"], Value::Null);
    let mut linear = config();
    linear["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0});
    let got = read(&linear);
    assert_eq!(got["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    assert_eq!(got["rope_theta"], 10000.0);
}

/// With `low_freq_factor` other than 1, or a base so small that no two frequencies lie between the bounds, the
/// parameters cannot be told from the factors.
#[test]
fn llama_3_scaling_comes_back_whatever_its_parameters() {
    for (theta, factor, low, high, original) in [
        (500000.0, 8.0, 1.0, 4.0, 8192),
        (500000.0, 32.0, 2.0, 6.0, 4096),
        (100.0, 8.0, 1.0, 4.0, 7),
        (1e6, 4.0, 1.0, 1.5, 64),
    ] {
        let mut config = config();
        config["rope_theta"] = json!(theta);
        let scaling = json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                             "original_max_position_embeddings": original});
        config["rope_scaling"] = scaling.clone();
        let (_dir, read) = write(&config, "w4pc".parse().unwrap());
        assert_eq!(read.unwrap().hf_config()["rope_scaling"], scaling);
    }
}

/// Default over scaled frequencies of Llama 3.1 8B, and of a small base and width, by transformers'
/// `ROPE_INIT_FUNCTIONS`.
#[test]
fn rope_factors_are_those_of_transformers() {
    let check = |theta: f64, head_dim: usize, original: u64, between: &[f32], ones: usize| {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": original});
        let config = json!({"hidden_size": 4 * head_dim, "num_attention_heads": 4, "rope_theta": theta,
                            "rope_scaling": scaling});
        let mut want = vec![1.0; ones];
        want.extend(between);
        want.resize(head_dim / 2, 8.0);
        let got = rope_factors(&config).unwrap().unwrap();
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(&want).all(|(a, b): (&f32, &f32)| (a - b).abs() < 2e-6 * b), "{got:?}");
    };
    let llama_3_1 = [1.2074839, 1.5534146, 2.026313, 2.6945302, 3.6842535, 5.257327];
    check(500000.0, 128, 8192, &llama_3_1, 29);
    check(100.0, 16, 32, &[1.495526, 3.2995393], 1);
    assert_eq!(rope_factors(&config()).unwrap(), None);
}

#[test]
fn rows_go_where_the_converter_puts_them() {
    // numpy: arange(12).reshape(2, 2, 3).swapaxes(1, 2).reshape(12)
    let rows: Vec<u8> = (0..12).flat_map(|row| [row, row]).collect();
    let want = [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11];
    assert_eq!(permuted(&rows, 2, 12), want.map(|row| [row, row]).concat());
}

#[test]
fn names_of_tensors() {
    for (hf, stored) in [
        ("model.embed_tokens.weight", Some("token_embd.weight")),
        ("lm_head.weight", Some("output.weight")),
        ("model.norm.weight", Some("output_norm.weight")),
        ("model.layers.0.self_attn.q_proj.weight", Some("blk.0.attn_q.weight")),
        ("model.layers.31.mlp.down_proj.weight", Some("blk.31.ffn_down.weight")),
        ("model.layers.7.post_attention_layernorm.weight", Some("blk.7.ffn_norm.weight")),
        ("model.layers.x.mlp.down_proj.weight", None),
        ("model.layers.0.mlp.down_proj.bias", None),
        ("model.layers.0", None),
        ("transformer.wte.weight", None),
    ] {
        assert_eq!(gguf_name(hf).as_deref(), stored, "{hf}");
    }
}

/// For SmolLM2-135M-Instruct, what `convert_hf_to_gguf.py` (llama.cpp as of llama-cpp-python 0.3.36) writes besides the
/// tokenizer, but for `general.size_label` and its own file type.
#[test]
fn metadata_are_those_of_the_converter() {
    let config = json!({"architectures": ["LlamaForCausalLM"], "head_dim": 64, "hidden_size": 576,
                        "intermediate_size": 1536, "max_position_embeddings": 8192, "num_attention_heads": 9,
                        "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 9.999999747378752e-06,
                        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}, "vocab_size": 49152});
    let want = [
        ("general.architecture", Entry::Text("llama".into())),
        ("general.type", Entry::Text("model".into())),
        ("general.name", Entry::Text("Smollm2 Hf".into())),
        ("llama.block_count", Entry::U32(30)),
        ("llama.context_length", Entry::U32(8192)),
        ("llama.embedding_length", Entry::U32(576)),
        ("llama.feed_forward_length", Entry::U32(1536)),
        ("llama.attention.head_count", Entry::U32(9)),
        ("llama.attention.head_count_kv", Entry::U32(3)),
        ("llama.rope.freq_base", Entry::F32(100000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Entry::F32(1e-5)),
        ("llama.attention.key_length", Entry::U32(64)),
        ("llama.attention.value_length", Entry::U32(64)),
        ("llama.vocab_size", Entry::U32(49152)),
        ("llama.rope.dimension_count", Entry::U32(64)),
        ("general.quantization_version", Entry::U32(2)),
    ];
    let got = metadata(&config, "Smollm2 Hf", "w4g64".parse().unwrap(), GgmlType::Q4_0).unwrap();
    for (key, value) in &want {
        assert_eq!(got.iter().find(|(k, _)| k == key).map(|(_, v)| v), Some(value), "{key}");
    }
    let ours: Vec<_> = got.iter().filter(|(k, _)| want.iter().all(|(key, _)| key != k)).cloned().collect();
    let (file_type, scheme) = (Entry::U32(2), Entry::Text("w4g64".into()));
    assert_eq!(ours, [("general.file_type".to_string(), file_type), (SCHEME_KEY.to_string(), scheme)]);
}

#[test]
fn a_config_that_is_no_model_is_refused() {
    let refused = |edit: &dyn Fn(&mut Value), says: &str| {
        let mut config = config();
        edit(&mut config);
        let e = metadata(&config, "x", "w4pc".parse().unwrap(), GgmlType::Q4_0).unwrap_err().to_string();
        assert!(e.contains(says) && !e.contains('\n'), "{e}");
    };
    refused(&|c| c["hidden_size"] = Value::Null, "hidden_size is null, expected a number");
    refused(&|c| c["vocab_size"] = json!(1u64 << 32), "vocab_size is 4294967296");
    refused(&|c| c["num_attention_heads"] = json!(0), "num_attention_heads is 0");
    refused(&|c| c["rope_scaling"] = json!({"type": "yarn"}), "rope scaling \"yarn\"");
    refused(&|c| c["rope_scaling"] = json!({"type": "linear"}), "rope scaling \"linear\" without factor");
}
