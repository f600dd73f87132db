//! A random low-rank model of any size and scheme, and the float model of the same weights.

use std::collections::BTreeMap;
use std::path::Path;

use common::error::Result;
use common::format::tensor::{Dtype, Tensor};
use common::model::Config;
use common::model::forward::Batch;
use common::model::host::{HostLinear, HostLowRank, Source};
use common::model::names::{self, LinearName};
use common::quant::{Phi, Scheme};

pub struct Random {
    pub config: Config,
    pub scheme: Scheme,
    pub stored: Phi,
    pub rank: usize,
}

/// Values in [-1, 1) that depend on name and index alone (SplitMix64).
pub fn values(name: &str, n: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(0u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn scaled(name: &str, n: usize, by: f32) -> Vec<f32> {
    values(name, n).into_iter().map(|v| v * by).collect()
}

impl Random {
    /// `dims`: d, heads, kv heads, head_dim, ffn, vocabulary, layers.
    pub fn new(dims: [usize; 7], scheme: &str, stored: Phi, rank: usize) -> Random {
        let [d, heads, kv_heads, head_dim, ffn, vocab, layers] = dims;
        let json = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": d, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": ffn, "vocab_size": vocab,
            "num_hidden_layers": layers, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        });
        let config = Config::parse(Path::new("config.json"), &json).unwrap();
        Random { config, scheme: scheme.parse().unwrap(), stored, rank }
    }

    pub fn lowrank(&self, linear: &LinearName) -> HostLowRank {
        let (n, k, scheme) = (linear.n, linear.k, self.scheme);
        let own = |suffix: &str| format!("{}.{suffix}", linear.name);
        let groups = scheme.groups(k);
        // Reaches a little beyond the grid on both sides, so that some weights are clipped.
        let (middle, half) = ((scheme.qmin() + scheme.qmax()) / 2.0, (scheme.qmax() - scheme.qmin()) / 2.0 + 0.4);
        let row_bytes = self.stored.row_bytes(scheme, k);
        let mut packed = vec![0; n * row_bytes];
        let phi = values(&own("phi"), n * k).into_iter().map(|v| middle + half * v).collect::<Vec<_>>();
        for (phi, packed) in phi.chunks_exact(k).zip(packed.chunks_exact_mut(row_bytes)) {
            self.stored.pack_row(scheme, phi, packed);
        }
        let unit = 2.0 / (half * (k as f32).sqrt());
        HostLowRank {
            scheme,
            stored: self.stored,
            phi: Tensor::owned(packed, Dtype::U8, vec![n, row_bytes]),
            rank: self.rank,
            alpha: 1.0,
            scale: values(&own("scale"), n * groups).into_iter().map(|v| unit * (1.0 + 0.3 * v)).collect(),
            zero: scheme
                .has_zero_points()
                .then(|| values(&own("zero"), n * groups).into_iter().map(f32::round).collect()),
            a: scaled(&own("lora_a"), n * self.rank, 2.0),
            b: scaled(&own("lora_b"), self.rank * k, 1.0),
        }
    }

    /// Sequences of these lengths; no token comes twice while the vocabulary lasts.
    pub fn batch(&self, lengths: &[usize]) -> Batch {
        let vocab = self.config.vocab;
        let mut next = (0..vocab).cycle().map(|i| (i * 7 % vocab) as u32);
        let sequences: Vec<Vec<u32>> = lengths.iter().map(|n| next.by_ref().take(*n).collect()).collect();
        Batch::next_token(sequences.iter().map(Vec::as_slice))
    }
}

impl Source for Random {
    fn config(&self) -> &Config {
        &self.config
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let n = shape.iter().product();
        let values = match name {
            _ if shape.len() == 1 => values(name, n).into_iter().map(|v| 1.0 + 0.3 * v).collect(),
            names::HEAD => scaled(name, n, 4.0 / (self.config.d as f32).sqrt()),
            _ => scaled(name, n, 1.0),
        };
        Ok(Tensor::from_f32(&values, Dtype::F32, shape.to_vec()))
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        Ok(HostLinear::LowRank(self.lowrank(linear)))
    }
}

/// The same model with float weights, by the name of the linear.
pub struct Dense<'a> {
    pub of: &'a Random,
    pub weights: BTreeMap<String, Vec<f32>>,
}

impl Source for Dense<'_> {
    fn config(&self) -> &Config {
        &self.of.config
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.of.float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        let w = &self.weights[&linear.name];
        Ok(HostLinear::Float(Tensor::from_f32(w, Dtype::F32, vec![linear.n, linear.k])))
    }
}
