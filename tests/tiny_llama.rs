//! A random LLaMA small enough to train in milliseconds (2 layers, a vocabulary of 300 with a byte-level BPE), and
//! a text: both the same each time. Its safetensors file is written here by hand, so that it can also be written wrong.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

pub const VOCAB: usize = 300;
const LAYERS: usize = 2;

/// Widths of a model with four heads, which share two key-value heads.
pub struct Widths {
    pub d: usize,
    pub ffn: usize,
}

pub const TINY: Widths = Widths { d: 32, ffn: 64 };
/// For groups of 128 and blocks of 256.
pub const WIDE: Widths = Widths { d: 256, ffn: 512 };

/// Pairs that the tokenizer merges, most frequent first; Ġ is a space.
const MERGES: [&str; 42] = [
    "t h", "th e", "Ġ t", "i n", "e r", "a n", "o n", "Ġt he", "r e", "o u", "a t", "Ġ s", "Ġ w", "Ġ b", "e d", "n d",
    "h e", "i s", "Ġ c", "o r", "in g", "e n", "l l", "Ġ f", "Ġ m", "Ġ p", "Ġ d", "l e", "i t", "o f", "Ġ of", "Ġ a",
    "Ġa nd", "Ġ in", "Ġt o", "e s", "o m", "Ġ h", "Ġ l", "Ġ o", "Ġ n", "Ġ he",
];

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Uniform in −1..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// One tensor of a safetensors file.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// The bytes of a safetensors file: u64 length of the header, the header, the data.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for t in tensors {
        let at = data.len();
        data.extend_from_slice(&t.bytes);
        let entry = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, data.len()]});
        header.insert(t.name.clone(), entry);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

pub fn config_of(widths: &Widths) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "hidden_size": widths.d, "intermediate_size": widths.ffn, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1
    })
}

/// Weights in bf16, uniform in ±1/√K.
pub fn tensors() -> Vec<Tensor> {
    tensors_of(&TINY)
}

pub fn tensors_of(widths: &Widths) -> Vec<Tensor> {
    let (d, ffn, kv) = (widths.d, widths.ffn, widths.d / 2);
    let mut all = vec![matrix("model.embed_tokens", VOCAB, d), matrix("lm_head", VOCAB, d), norm("model.norm", d)];
    for layer in 0..LAYERS {
        let p = format!("model.layers.{layer}");
        all.push(norm(&format!("{p}.input_layernorm"), d));
        all.push(norm(&format!("{p}.post_attention_layernorm"), d));
        for (name, n, k) in [("q", d, d), ("k", kv, d), ("v", kv, d), ("o", d, d)] {
            all.push(matrix(&format!("{p}.self_attn.{name}_proj"), n, k));
        }
        for (name, n, k) in [("gate", ffn, d), ("up", ffn, d), ("down", d, ffn)] {
            all.push(matrix(&format!("{p}.mlp.{name}_proj"), n, k));
        }
    }
    all
}

fn matrix(name: &str, n: usize, k: usize) -> Tensor {
    let mut random = Random(name.bytes().fold(7, |h, b| h * 31 + b as u64));
    let bytes = (0..n * k).flat_map(|_| bf16(random.unit() * 2.0 / (k as f32).sqrt())).collect();
    Tensor { name: format!("{name}.weight"), dtype: "BF16", shape: vec![n, k], bytes }
}

fn norm(name: &str, d: usize) -> Tensor {
    let bytes = (0..d).flat_map(|i| bf16(1.0 + (i % 32) as f32 / 64.0)).collect();
    Tensor { name: format!("{name}.weight"), dtype: "BF16", shape: vec![d], bytes }
}

/// Truncated, which is as good as rounded here.
pub fn bf16(v: f32) -> [u8; 2] {
    ((v.to_bits() >> 16) as u16).to_le_bytes()
}

/// GPT-2's names of the bytes: printable ones are themselves, the others follow from U+0100 on.
fn byte_names() -> Vec<char> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let name = |b: u8| {
        if printable(b) {
            b as char
        } else {
            next += 1;
            char::from_u32(next - 1).expect("a character")
        }
    };
    (0..=255u8).map(name).collect()
}

pub fn tokenizer() -> Value {
    let bytes = byte_names().into_iter().map(String::from);
    let pieces = ["<s>", "</s>"].map(String::from).into_iter().chain(bytes);
    let pieces = pieces.chain(MERGES.iter().map(|m| m.replace(' ', "")));
    let vocab: Map<String, Value> = pieces.enumerate().map(|(id, piece)| (piece, json!(id))).collect();
    assert_eq!(vocab.len(), VOCAB);
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")], "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                  "merges": MERGES.as_slice()}
    })
}

/// The model's directory.
pub fn write(dir: &Path) {
    write_of(dir, &TINY);
}

pub fn write_of(dir: &Path, widths: &Widths) {
    fs::create_dir_all(dir).expect("a directory");
    fs::write(dir.join("model.safetensors"), safetensors(&tensors_of(widths))).expect("weights");
    for (name, value) in [
        ("config.json", config_of(widths)),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false})),
        ("generation_config.json", json!({"bos_token_id": 0, "eos_token_id": 1})),
    ] {
        fs::write(dir.join(name), value.to_string()).expect("a file");
    }
}

/// Sentences of a few words, about `bytes` long.
pub fn text(bytes: usize) -> String {
    let parts = [
        ["the miller", "an old hen", "the fox", "a sailor", "the king's cook", "my sister"],
        ["found", "lost", "painted", "ate", "mended", "asked for"],
        ["a red boat", "the bread", "two lanterns", "a story", "the garden gate", "nothing"],
        ["in the morning", "by the river", "and laughed", "at once", "before winter", "with care"],
    ];
    let mut random = Random(3);
    let mut text = String::new();
    while text.len() < bytes {
        let words = parts.map(|p| p[random.below(6) as usize]);
        text += &format!("{}. ", words.join(" "));
    }
    text
}
