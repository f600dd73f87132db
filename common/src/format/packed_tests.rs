//! The packed formats together: what is written comes back, and a reader refuses what is not as its format says.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::compressed_tensors::{int_quantized, pack_quantized};
use super::gptq::Version;
use super::quantized::Lookup;
use super::safetensors::{Spec, TensorFile};
use super::tensor::{Dtype, Tensor};
use super::{awq, gptq};
use crate::error::Result;
use crate::quant::{Integers, LinearGrid, Scheme};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Pack,
    Int8,
    Gptq(Version),
    Awq,
}

const KINDS: [Kind; 5] = [Kind::Pack, Kind::Int8, Kind::Gptq(Version::V1), Kind::Gptq(Version::V2), Kind::Awq];
const SCALE: Dtype = Dtype::BF16;

type Tensors = BTreeMap<String, Tensor>;

impl Kind {
    fn unfit(self, n: usize, k: usize, scheme: Scheme) -> Option<String> {
        match self {
            Kind::Pack => pack_quantized::unfit("l", n, k, scheme),
            Kind::Int8 => int_quantized::unfit("l", n, k, scheme),
            Kind::Gptq(_) => gptq::unfit("l", n, k, scheme),
            Kind::Awq => awq::unfit("l", n, k, scheme),
        }
    }

    fn specs(self, n: usize, k: usize, scheme: Scheme) -> Vec<Spec> {
        match self {
            Kind::Pack => pack_quantized::specs("l", n, k, scheme, SCALE),
            Kind::Int8 => int_quantized::specs("l", n, k, scheme, SCALE),
            Kind::Gptq(_) => gptq::specs("l", n, k, scheme),
            Kind::Awq => awq::specs("l", n, k, scheme),
        }
    }

    fn encode(self, suffix: &str, w: &Integers, n: usize, k: usize, scheme: Scheme) -> Result<Vec<u8>, String> {
        match self {
            Kind::Pack if suffix == pack_quantized::CODES => Ok(pack_quantized::encode_codes(&w.codes, n, k, scheme)),
            Kind::Int8 if suffix == int_quantized::CODES => Ok(int_quantized::encode_codes(&w.codes, n, k, scheme)),
            Kind::Gptq(_) if suffix == gptq::CODES => Ok(gptq::encode_codes(&w.codes, n, k, scheme)),
            Kind::Awq if suffix == awq::CODES => Ok(awq::encode_codes(&w.codes, n, k, scheme)),
            Kind::Pack => pack_quantized::encode_rest(suffix, n, k, scheme, &w.grid, SCALE),
            Kind::Int8 => int_quantized::encode_rest(suffix, n, k, scheme, &w.grid, SCALE),
            Kind::Gptq(version) => gptq::encode_rest(suffix, n, k, scheme, &w.grid, version),
            Kind::Awq => awq::encode_rest(suffix, n, k, scheme, &w.grid),
        }
    }

    fn write(self, w: &Integers, n: usize, k: usize, scheme: Scheme) -> Result<Tensors, String> {
        let tensor = |spec: Spec| {
            let bytes = self.encode(&spec.name["l.".len()..], w, n, k, scheme)?;
            assert_eq!(bytes.len(), spec.bytes(), "{self:?} {}", spec.name);
            Ok((spec.name, Tensor::owned(bytes, spec.dtype, spec.shape)))
        };
        self.specs(n, k, scheme).into_iter().map(tensor).collect()
    }

    fn read(self, tensors: &Tensors, n: usize, k: usize, scheme: Scheme) -> Result<Integers> {
        let at = Lookup { path: Path::new("model"), find: &|name| tensors.get(name).cloned() };
        match self {
            Kind::Pack => pack_quantized::read(&at, "l", n, k, scheme),
            Kind::Int8 => int_quantized::read(&at, "l", n, k, scheme),
            Kind::Gptq(version) => gptq::read(&at, "l", n, k, scheme, version),
            Kind::Awq => awq::read(&at, "l", n, k, scheme),
        }
    }

    fn config(self, scheme: Scheme) -> Value {
        match self {
            Kind::Pack => pack_quantized::quantization_config(scheme),
            Kind::Int8 => int_quantized::quantization_config(scheme),
            Kind::Gptq(version) => gptq::quantization_config(scheme, version),
            Kind::Awq => awq::quantization_config(scheme),
        }
    }

    fn parse(self, q: &Value) -> Result<Scheme> {
        let path = Path::new("config.json");
        match self {
            Kind::Pack => pack_quantized::parse_config(path, q),
            Kind::Int8 => int_quantized::parse_config(path, q),
            Kind::Gptq(wanted) => gptq::parse_config(path, q).map(|(version, scheme)| {
                assert_eq!(version, wanted);
                scheme
            }),
            Kind::Awq => awq::parse_config(path, q),
        }
    }
}

/// Seeded integers; `lowest` is the smallest unsigned zero point.
fn random(n: usize, k: usize, scheme: Scheme, lowest: u64) -> Integers {
    let mut state = (n * 1000 + k) as u64 + 77;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let (levels, count) = (1u64 << scheme.bits, n * scheme.groups(k));
    let codes = (0..n * k).map(|_| next(levels) as u8).collect();
    // Eight significant bits from 2^-17 on: exact in bf16 and in f16.
    let scale = (0..count).map(|_| (128 + next(128)) as f32 * 2f32.powi(next(14) as i32 - 24)).collect();
    let mut zero = || (lowest + next(levels - lowest)) as f32 + scheme.qmin();
    let zero = scheme.asymmetric.then(|| (0..count).map(|_| zero()).collect());
    Integers { codes, grid: LinearGrid { scale, zero } }
}

fn every_scheme(mut each: impl FnMut(Scheme)) {
    for bits in 2..=8 {
        for group in [None, Some(1), Some(16), Some(32), Some(64)] {
            for asymmetric in [false, true] {
                each(Scheme { bits, group, asymmetric });
            }
        }
    }
}

#[test]
fn what_is_written_comes_back() {
    let mut told = 0;
    for kind in KINDS {
        every_scheme(|scheme| {
            for (n, k) in [(8, 16), (5, 37), (32, 64), (64, 192), (160, 64), (1, 1), (264, 320)] {
                if kind.unfit(n, k, scheme).is_some() {
                    continue;
                }
                let w = random(n, k, scheme, u64::from(kind == Kind::Gptq(Version::V1)));
                let back = kind.read(&kind.write(&w, n, k, scheme).unwrap(), n, k, scheme).unwrap();
                assert!(back == w, "{kind:?} {scheme} [{n}, {k}]");
                told += 1;
            }
        });
    }
    assert!(told > 400, "{told}");
}
