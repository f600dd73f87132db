//! Logits and loss of the float model against PyTorch's.

use common::format::safetensors::TensorFile;

use super::case::{read, stories, tokens};
use super::{Runner, largest_difference, shared};

#[test]
fn logits_and_loss_of_the_float_model() {
    let Some(shared) = shared("logits_and_loss_of_the_float_model") else { return };
    let golden = TensorFile::open(&shared.join("golden/fp.safetensors")).unwrap();
    let batch = tokens(&shared);
    let mut runner = Runner::new(&stories(&shared), &batch);
    let logits = largest_difference(&runner.logits(&batch), &read(&golden, "logits"));
    let loss = runner.loss(&batch) / batch.predictions() as f64 - f64::from(read(&golden, "loss")[0]);
    eprintln!("float model: logits differ by at most {logits:.1e}, the loss by {:.1e}", loss.abs());
    assert!(logits <= 1e-4 && loss.abs() <= 1e-4);
}
