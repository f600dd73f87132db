//! The packed formats together: what is written comes back, and a reader refuses what is not as its format says.

mod configurations;
mod refusals;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::format::compressed_tensors::{int_quantized, pack_quantized};
use crate::format::gptq::Version;
use crate::format::quantized::Lookup;
use crate::format::safetensors::{Spec, TensorFile};
use crate::format::spare::Spare;
use crate::format::tensor::{Dtype, Tensor};
use crate::format::{awq, gptq};
use crate::quant::{Integers, LinearGrid, Scheme, Symmetry};

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
            Kind::Pack => pack_quantized::unfit(n, k, scheme),
            Kind::Int8 => int_quantized::unfit(n, k, scheme),
            Kind::Gptq(_) => gptq::unfit(n, k, scheme),
            Kind::Awq => awq::unfit(n, k, scheme),
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

    fn codes(self) -> &'static str {
        match self {
            Kind::Pack => pack_quantized::CODES,
            Kind::Int8 => int_quantized::CODES,
            Kind::Gptq(_) => gptq::CODES,
            Kind::Awq => awq::CODES,
        }
    }

    fn encode(self, suffix: &str, w: &Integers, n: usize, k: usize, scheme: Scheme) -> Result<Vec<u8>, String> {
        match self {
            _ if suffix == self.codes() => {
                let spec =
                    self.specs(n, k, scheme).into_iter().find(|spec| spec.name == format!("l.{suffix}")).unwrap();
                let (mut out, mut codes) = (vec![0xEE; spec.bytes()], w.codes.clone());
                w.grid.mirror(&mut codes, 0, k, scheme);
                match self {
                    Kind::Pack => pack_quantized::encode_codes(&codes, k, scheme, &mut out),
                    Kind::Int8 => int_quantized::encode_codes(&codes, &mut out),
                    Kind::Gptq(_) => gptq::encode_codes(&codes, k, scheme, &mut out),
                    Kind::Awq => awq::encode_codes(&codes, k, &mut out),
                }
                Ok(out)
            }
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
        let stored = match self {
            Kind::Pack => pack_quantized::read(&at, "l", n, k, scheme),
            Kind::Int8 => int_quantized::read(&at, "l", n, k, scheme),
            Kind::Gptq(version) => gptq::read(&at, "l", n, k, scheme, version),
            Kind::Awq => awq::read(&at, "l", n, k, scheme),
        }?;
        let integers = stored.integers()?;
        // Visited, they are the same; and whatever stood there before is written over.
        let (grid, visited) = stored.visit(&Spare::default(), |first, codes| (first, codes.to_vec()))?;
        assert!(visited.iter().map(|(first, _)| *first).eq((0..n).step_by(stored.together)) && grid == integers.grid);
        assert!(visited.iter().flat_map(|(_, codes)| codes).eq(&integers.codes), "{self:?} {scheme} [{n}, {k}]");
        let mut codes = vec![0xEE; n * k];
        for (block, codes) in codes.chunks_mut(stored.together * k).enumerate() {
            (stored.read)(stored.packed.bytes(), block * stored.together, codes)?;
        }
        assert!(codes == integers.codes, "{self:?} {scheme} [{n}, {k}]");
        Ok(integers)
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
    let mut zero = || match scheme.symmetry {
        Symmetry::Signed => -(next(2) as f32),
        _ => (lowest + next(levels - lowest)) as f32 + scheme.qmin(),
    };
    let zero = scheme.has_zero_points().then(|| (0..count).map(|_| zero()).collect());
    Integers { codes, grid: LinearGrid { scale, zero } }
}

fn every_scheme(mut each: impl FnMut(Scheme)) {
    for bits in 2..=8 {
        for group in [None, Some(1), Some(16), Some(32), Some(64)] {
            Symmetry::ALL.into_iter().for_each(|symmetry| each(Scheme { bits, group, symmetry }));
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

/// By the formula of the formats' engines, W_Z·s, whatever the sign of s.
#[test]
fn weights_of_negative_scales_are_those_of_the_formula() {
    let (n, k) = (32, 64);
    for (kind, bits, group) in [
        (Kind::Pack, 3, Some(16)),
        (Kind::Gptq(Version::V1), 2, Some(16)),
        (Kind::Gptq(Version::V2), 3, Some(32)),
        (Kind::Gptq(Version::V2), 8, None),
        (Kind::Awq, 4, Some(32)),
    ] {
        let symmetric = Scheme { bits, group, symmetry: Symmetry::Symmetric };
        let scheme = Scheme { symmetry: Symmetry::Signed, ..symmetric };
        let (group, groups) = (scheme.group_size(k), scheme.groups(k));
        let w = random(n, k, symmetric, 1);
        let mut tensors = kind.write(&w, n, k, symmetric).unwrap();
        let (name, t) = tensors.iter().find(|(name, _)| name.contains("scale")).unwrap();
        let (name, dtype, shape) = (name.clone(), t.dtype, t.shape.clone());
        // [N, G], or [G, N] in the transposed formats.
        let place = |row: usize, g: usize| if shape == [n, groups] { row * groups + g } else { g * n + row };
        let mut stored = t.to_f32();
        stored.iter_mut().step_by(3).for_each(|s| *s = -*s);
        tensors.insert(name, Tensor::from_f32(&stored, dtype, shape.clone()));
        let back = kind.read(&tensors, n, k, scheme).unwrap();
        let zero = back.grid.zero.unwrap();
        for at in 0..n * k {
            let (row, g) = (at / k, at % k / group);
            let expected = (f32::from(w.codes[at]) + scheme.qmin()) * stored[place(row, g)];
            let got = (f32::from(back.codes[at]) + scheme.qmin() - zero[at / group]) * back.grid.scale[at / group];
            assert_eq!(got, expected, "{kind:?} {scheme} {row}, {}", at % k);
        }
        assert!(back.grid.scale.iter().all(|s| *s > 0.0) && zero.iter().all(|z| [0.0, -1.0].contains(z)));
    }
}

/// tests/data/packed.safetensors: what compressed-tensors and GPTQModel packed, both ways.
#[test]
fn other_projects_pack_the_same() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/packed.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let mut told = BTreeMap::new();
    for case in file.names().filter_map(|name| name.strip_suffix("/codes")) {
        let part = |name: &str| file.get(&format!("{case}/{name}"));
        let codes = part("codes").unwrap();
        let (n, k) = (codes.shape[0], codes.shape[1]);
        let scheme: Scheme = case.split('/').next().unwrap().parse().unwrap();
        let grid = LinearGrid { scale: part("scale").unwrap().to_f32(), zero: part("zero").map(Tensor::to_f32) };
        let w = Integers { codes: codes.bytes().to_vec(), grid };
        for (name, kind) in ["pack-quantized", "int-quantized", "gptq", "gptq_v2", "awq"].into_iter().zip(KINDS) {
            // v1 differs from v2 in the zero points only, and only these are in the file.
            let of = |format: &str, tensor: &str| part(&format!("{format}/{tensor}")).cloned();
            let theirs = |tensor: &str| of(name, tensor).or_else(|| of(&format!("{name}_v2"), tensor));
            if kind.unfit(n, k, scheme).is_some() {
                continue;
            }
            let ours = kind.write(&w, n, k, scheme).unwrap();
            let theirs: Tensors = ours.keys().filter_map(|name| Some((name.clone(), theirs(name)?))).collect();
            if theirs.is_empty() {
                continue;
            }
            for (tensor, ours) in &ours {
                let theirs = &theirs[tensor];
                assert_eq!((ours.dtype, &ours.shape), (theirs.dtype, &theirs.shape), "{name} {case} {tensor}");
                assert!(ours.bytes() == theirs.bytes(), "{name} {case} {tensor}");
            }
            assert!(kind.read(&theirs, n, k, scheme).unwrap() == w, "{name} {case}");
            *told.entry(name).or_insert(0) += 1;
        }
    }
    let counts = [("awq", 4), ("gptq", 10), ("gptq_v2", 10), ("int-quantized", 2), ("pack-quantized", 16)];
    assert_eq!(told, counts.into_iter().collect::<BTreeMap<_, _>>());
}

/// The words of a symmetric model, as AutoGPTQ and AutoAWQ are known to write them.
#[test]
fn symmetric_zero_points_are_the_known_words() {
    let word = |kind: Kind, bits| {
        let scheme = Scheme { bits, group: Some(32), symmetry: Symmetry::Symmetric };
        let tensors = kind.write(&random(64, 64, scheme, 0), 64, 64, scheme).unwrap();
        tensors["l.qzeros"].bytes().chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect::<Vec<_>>()
    };
    let (v1, v2) = (Kind::Gptq(Version::V1), Kind::Gptq(Version::V2));
    let known = [(v1, 4, 0x7777_7777), (v2, 4, 0x8888_8888), (v1, 8, 0x7F7F_7F7F), (v2, 8, 0x8080_8080)];
    for (kind, bits, known) in
        known.into_iter().chain([(v1, 2, 0x5555_5555), (v2, 2, 0xAAAA_AAAA), (Kind::Awq, 4, 0x8888_8888)])
    {
        assert!(word(kind, bits).iter().all(|w| *w == known), "{kind:?} {bits}");
    }
    // 3 and 4, repeated every three bits over three words.
    assert_eq!(word(v1, 3)[..3], [0xDB6D_B6DB, 0xB6DB_6DB6, 0x6DB6_DB6D]);
    assert_eq!(word(v2, 3)[..3], [0x2492_4924, 0x4924_9249, 0x9249_2492]);
}

#[test]
fn the_codes_of_gptq_3_bits_lie_as_its_authors_say() {
    // v10 and v21 straddle; only v10 = 5 and v21 = 3 are not zero.
    let scheme: Scheme = "w3pc".parse().unwrap();
    let mut codes = vec![0; 32 * 32];
    (codes[10], codes[21]) = (5, 3);
    let mut bytes = vec![0xEE; 3 * 4 * 32];
    gptq::encode_codes(&codes, 32, scheme, &mut bytes);
    let word = |row: usize| u32::from_le_bytes(bytes[row * 128..row * 128 + 4].try_into().unwrap());
    assert_eq!([word(0), word(1), word(2)], [1 << 30, 1 | 1 << 31, 1]);
}

fn refuses(result: Result<impl Sized>, says: &[&str]) {
    let Err(e) = result else { panic!("accepted, expected {says:?}") };
    let e = e.to_string();
    assert!(says.iter().all(|s| e.contains(s)) && !e.contains('\n'), "{e:?} does not say {says:?}");
}
