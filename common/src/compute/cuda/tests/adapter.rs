//! Linears with an adapter beside fixed integers, alone and under SwiGLU, with and without dropout.

use super::{Adapted, Case, compare, devices, narrow, random, wide};
use crate::compute::backend::{Backend, Branch, Dropout, Gradients, Output};

struct Adapters {
    word: &'static str,
    /// n, k, rank
    shape: [usize; 3],
    rows: usize,
    dropout: Option<Dropout>,
    kept: bool,
}

impl Case for Adapters {
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)> {
        let ([n, k, rank], rows) = (self.shape, self.rows);
        let [one, two] = [1, 11].map(|seed| Adapted::random(b, self.word, self.shape, seed));
        let x = narrow(b, &random(5, rows * k));
        let mut found = Vec::new();
        let mut y = b.upload(&random(6, rows * n)).unwrap();
        b.linear_forward(&x, rows, &one.weight(self.dropout, self.kept), Output::add(&mut y));
        found.push(("y", b.download(&y).unwrap()));
        let mut kept = [0, 1].map(|_| b.activation(rows * n).unwrap());
        let mut out = b.activation(rows * n).unwrap();
        let gate_up = [one.weight(self.dropout, self.kept), two.weight(self.dropout, self.kept)];
        b.swiglu_forward(&x, rows, gate_up, Some(kept.each_mut()), &mut out);
        found.push(("gate", wide(b, &kept[0], rows * n)));
        found.push(("out", wide(b, &out, rows * n)));

        let dy = [7, 8].map(|seed| narrow(b, &random(seed, rows * n)));
        let ones = |len: usize| b.upload(&vec![1.0; len]).unwrap();
        let scales = n * self.word.parse::<crate::quant::Scheme>().unwrap().groups(k);
        let (mut ds, mut da, mut db) = (ones(scales), ones(n * rank), ones(rank * k));
        let mut dx = b.zeros(rows * k).unwrap();
        let grads = Gradients { scale: Some(&mut ds), factors: Some([&mut da, &mut db]), latent: None };
        let first = Branch { weight: one.weight(self.dropout, self.kept), dy: &dy[0], grads: Some(grads) };
        let second = Branch { weight: two.weight(self.dropout, self.kept), dy: &dy[1], grads: None };
        b.linears_backward(&x, rows, [first, second], Output::set(&mut dx));
        found.push(("dx", b.download(&dx).unwrap()));
        for (name, grad) in [("ds", &ds), ("dA", &da), ("dB", &db)] {
            found.push((name, b.download(grad).unwrap()));
        }

        // Scales that are not trained.
        let (mut dgate, mut dup) = (narrow(b, &random(9, rows * k)), narrow(b, &random(10, rows * k)));
        let grads = Gradients { scale: None, factors: Some([&mut da, &mut db]), latent: None };
        let down = Branch { weight: one.weight(self.dropout, self.kept), dy: &dy[0], grads: Some(grads) };
        b.swiglu_backward(&x, rows, down, &mut dgate, &mut dup);
        found.push(("dgate", wide(b, &dgate, rows * k)));
        found.push(("dup", wide(b, &dup, rows * k)));
        found.push(("dA twice", b.download(&da).unwrap()));
        found
    }
}

/// h and dh are rounded to bf16 on both, from sums in another order; the GPU rounds what goes to activations before and
/// after the adapter's part: 2^-9 of values up to five times the mean, some of them twice.
fn limit(name: &str) -> f64 {
    match name {
        "y" | "dx" | "ds" | "dA" | "dB" | "dA twice" => 5.0 / 256.0,
        "gate" => 2.0 * 5.0 / 256.0,
        _ => 4.0 * 5.0 / 256.0,
    }
}

#[test]
fn adapters() {
    let dropout = Dropout { key: [3, 4], threshold: 1 << 30, scale: 4.0 / 3.0 };
    for device in devices() {
        device.run(|| {
            for (word, shape, rows, dropout, kept) in [
                ("w4pc", [70, 96, 32], 50, None, true),
                ("w2g48", [31, 96, 7], 33, Some(dropout), true),
                ("w3pc", [40, 70, 5], 9, Some(dropout), false),
                ("w8pc", [33, 64, 8], 20, None, false),
            ] {
                compare(&format!("{word} {shape:?}"), &Adapters { word, shape, rows, dropout, kept }, limit);
            }
        });
    }
}
