use super::super::testing::{kv, kv_text, kv_texts, kv_uint as uint, write};
use super::*;

const HIDDEN: u64 = 12;
const HEAD_DIM: usize = 4;

struct Model {
    entries: Vec<Vec<u8>>,
    tensors: Vec<(String, Vec<u64>, u32)>,
}

/// One layer, three heads of 4 over one key-value head, vocabulary of 5, tied.
fn model() -> Model {
    let entries = vec![
        kv_text("general.architecture", "llama"),
        uint("llama.embedding_length", HIDDEN as u32),
        uint("llama.attention.head_count", 3),
        uint("llama.attention.head_count_kv", 1),
        uint("llama.feed_forward_length", 8),
        uint("llama.block_count", 1),
        uint("llama.context_length", 64),
        kv("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()),
        uint("tokenizer.ggml.eos_token_id", 2),
    ];
    let f32s = |name: &str, dims: &[u64]| (name.to_string(), dims.to_vec(), 0);
    let tensors = vec![
        f32s("token_embd.weight", &[HIDDEN, 5]),
        f32s("output_norm.weight", &[HIDDEN]),
        f32s("blk.0.attn_norm.weight", &[HIDDEN]),
        f32s("blk.0.attn_q.weight", &[HIDDEN, 12]),
        f32s("blk.0.attn_k.weight", &[HIDDEN, 4]),
        f32s("blk.0.attn_v.weight", &[HIDDEN, 4]),
        f32s("blk.0.attn_output.weight", &[12, HIDDEN]),
        f32s("blk.0.ffn_norm.weight", &[HIDDEN]),
        f32s("blk.0.ffn_gate.weight", &[HIDDEN, 8]),
        f32s("blk.0.ffn_up.weight", &[HIDDEN, 8]),
        f32s("blk.0.ffn_down.weight", &[8, HIDDEN]),
    ];
    Model { entries, tensors }
}

impl Model {
    fn open(&self) -> Result<GgufLlama> {
        let (_dir, path) = write(&self.entries, &self.tensors);
        GgufLlama::open(&path)
    }

    #[track_caller]
    fn refused(&self, part: &str) {
        let e = self.open().map(|_| ()).unwrap_err().to_string();
        assert!(e.contains(part), "{e}");
    }
}

#[test]
fn config_names_what_the_metadata_say() {
    let m = model().open().unwrap();
    let c = m.hf_config();
    assert_eq!(c["architectures"], json!(["LlamaForCausalLM"]));
    assert_eq!((&c["head_dim"], &c["num_key_value_heads"]), (&json!(4), &json!(1)));
    assert_eq!((&c["rms_norm_eps"], &c["rope_theta"]), (&json!(1e-5), &json!(10000.0)));
    assert_eq!((&c["tie_word_embeddings"], &c["vocab_size"]), (&json!(true), &json!(5)));
    assert_eq!((&c["eos_token_id"], c.get("bos_token_id")), (&json!(2), None));
    assert_eq!((&c["torch_dtype"], &c["rope_scaling"]), (&json!("float32"), &Value::Null));
}

#[test]
fn the_dtype_of_the_model_is_that_of_its_matrices() {
    let mut m = model();
    m.tensors.iter_mut().filter(|t| t.1.len() == 2).for_each(|t| t.2 = 1);
    let half = m.open().unwrap();
    assert_eq!(half.hf_config()["torch_dtype"], json!("float16"));
    assert_eq!(half.hf_tensors().next().unwrap().dtype, Dtype::F16);
    m.tensors[0].2 = 0;
    assert_eq!(m.open().unwrap().hf_config()["torch_dtype"], json!("bfloat16"));
}

#[test]
fn linear_scaling_and_an_untied_head() {
    let mut m = model();
    m.entries.push(kv_text("llama.rope.scaling.type", "linear"));
    m.entries.push(kv("llama.rope.scaling.factor", 6, &4f32.to_le_bytes()));
    m.tensors.push(("output.weight".into(), vec![HIDDEN, 5], 0));
    let c = m.open().unwrap().hf_config().clone();
    assert_eq!(c["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    assert_eq!(c["tie_word_embeddings"], json!(false));
}

/// The converter's permutation, as it is documented (reshape [heads, 2, hd/2], swap the last two), applied to row
/// numbers: the rows that `read_hf` gives are then in order.
#[test]
fn q_and_k_rows_come_back_in_hugging_face_order() {
    let m = model().open().unwrap();
    for (name, heads) in [("q_proj", 3), ("k_proj", 1)] {
        let mut stored_to_hf = Vec::new();
        for head in 0..heads {
            for j in 0..HEAD_DIM / 2 {
                for p in 0..2 {
                    stored_to_hf.push((head * 2 + p) * (HEAD_DIM / 2) + j);
                }
            }
        }
        let mut out = Vec::new();
        m.read_hf(&format!("model.layers.0.self_attn.{name}.weight"), &mut out).unwrap();
        for (stored, hf) in stored_to_hf.into_iter().enumerate() {
            let k = HIDDEN as usize;
            assert_eq!(out[hf * k], (stored * k) as f32, "{name} row {hf}");
            assert_eq!(out[hf * k + k - 1], (stored * k + k - 1) as f32);
        }
    }
    let mut v = Vec::new();
    m.read_hf("model.layers.0.self_attn.v_proj.weight", &mut v).unwrap();
    assert!(v.iter().enumerate().all(|(i, v)| *v == i as f32));
}

#[test]
fn models_that_are_not_a_plain_llama_are_refused_by_name() {
    let with = |entry: Vec<u8>| Model { entries: [model().entries, vec![entry]].concat(), tensors: model().tensors };
    let mut m = model();
    m.entries[0] = kv_text("general.architecture", "gemma2");
    m.refused("architecture \"gemma2\", expected one of: llama");
    with(uint("llama.expert_count", 8)).refused("a mixture of 8 experts");
    with(uint("llama.rope.dimension_count", 2)).refused("2 of them rotated");
    with(uint("tokenizer.ggml.bos_token_id", 5)).refused("bos_token_id 5 with an embedding of 5 rows");
    with(kv_texts("tokenizer.ggml.tokens", &["a"; 6])).refused("6 tokens with an embedding of 5 rows");
    with(kv_text("llama.rope.scaling.type", "yarn")).refused("rope scaling \"yarn\"");
    let mut m = model();
    m.tensors.push(("blk.0.attn_q.bias".into(), vec![12], 0));
    m.refused("tensor blk.0.attn_q.bias");
}

#[test]
fn shapes_and_names_against_the_metadata() {
    let mut m = model();
    m.tensors[8].1 = vec![8, HIDDEN];
    m.refused("blk.0.ffn_gate.weight of shape [12, 8], expected [8, 12]");
    let mut m = model();
    m.tensors.remove(5);
    m.refused("no tensor \"blk.0.attn_v.weight\"");
    let mut m = model();
    m.entries[5] = uint("llama.block_count", 4_000_000_000);
    m.refused("4000000000 layers in 11 tensors");
    let mut m = model();
    m.entries[2] = uint("llama.attention.head_count", 0);
    m.refused("llama.attention.head_count 0");
}
