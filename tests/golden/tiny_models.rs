//! Sliding window, LLaMA-3 and linear rotary scaling, a head_dim of its own, tied and untied heads, f16, bf16 and
//! f32, several shards: tiny models of `tests/data/make_tiny_models.py` against transformers' logits.

use std::path::PathBuf;

use common::format::safetensors::TensorFile;
use common::model::config::Scaling;
use common::model::forward::Batch;
use common::model::host::Source;
use common::stage::base::BaseModel;

use super::case::{read, read_tokens};
use super::{Runner, largest_difference};

#[test]
fn mistral_with_a_window() {
    let model = check("mistral_window");
    assert_eq!((model.config().window, model.config().head_dim, model.config().tied), (Some(5), 6, false));
}

#[test]
fn llama3_rotary_scaling() {
    assert!(matches!(check("llama3_rope").config().rope.scaling, Scaling::Llama3 { .. }));
}

#[test]
fn linear_rotary_scaling() {
    let model = check("linear_rope");
    assert_eq!((model.config().rope.scaling.clone(), model.config().tied), (Scaling::Linear { factor: 4.0 }, true));
}

/// Logits of all sequences, read in one ragged batch.
fn check(name: &str) -> BaseModel {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny")).join(name);
    let golden = TensorFile::open(&dir.join("logits.safetensors")).unwrap();
    let sequences = [0, 1, 2].map(|i| read_tokens(&golden, &format!("tokens{i}")));
    let logits = [0, 1, 2].map(|i| read(&golden, &format!("logits{i}"))).concat();
    let batch = Batch::next_token(sequences.iter().map(Vec::as_slice));
    let model = BaseModel::open(&dir).unwrap();
    let worst = largest_difference(&Runner::new(&model, &batch).logits(&batch), &logits);
    eprintln!("{name}: logits differ by at most {worst:.1e}");
    assert!(worst <= 1e-4);
    model
}
