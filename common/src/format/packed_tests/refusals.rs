//! What a writer will not write and a reader will not read.

use std::path::Path;

use super::{KINDS, Kind, Tensors, random, refuses};
use crate::error::Result;
use crate::format::awq;
use crate::format::gptq::Version;
use crate::format::quantized::Lookup;
use crate::format::tensor::{Dtype, Tensor};
use crate::quant::{Scheme, Symmetry};

fn refuses_to_write(result: Result<Tensors, String>, says: &[&str]) {
    let Err(e) = result else { panic!("written, expected {says:?}") };
    assert!(says.iter().all(|s| e.contains(s)), "{e:?} does not say {says:?}");
}

#[test]
fn what_a_format_cannot_say_is_not_written() {
    let scheme: Scheme = "w2g16z".parse().unwrap();
    let mut w = random(32, 32, scheme, 1);
    w.grid.zero.as_mut().unwrap()[2 * 5 + 1] = -2.0;
    let says = ["row 5, group 1", "GPTQ v1"];
    refuses_to_write(Kind::Gptq(Version::V1).write(&w, 32, 32, scheme), &says);
    assert!(Kind::Gptq(Version::V2).write(&w, 32, 32, scheme).is_ok());

    let scheme: Scheme = "w4g16z".parse().unwrap();
    for kind in [Kind::Pack, Kind::Gptq(Version::V2), Kind::Awq] {
        for bad in [0.5, 8.0, -9.0, f32::NAN] {
            let mut w = random(32, 32, scheme, 1);
            w.grid.zero.as_mut().unwrap()[2 * 7] = bad;
            refuses_to_write(kind.write(&w, 32, 32, scheme), &["row 7, group 0", &bad.to_string()]);
        }
        let mut w = random(32, 32, scheme, 1);
        w.grid.zero = None;
        refuses_to_write(kind.write(&w, 32, 32, scheme), &["zero points"]);
    }

    // 2^-25 is exact in bf16 but not in f16, 1 + 2^-10 the other way round.
    let scheme: Scheme = "w8g16".parse().unwrap();
    let always = [0.0, -1.0, f32::NAN, f32::INFINITY, 1.0 + 2f32.powi(-20)];
    let f16 = [2f32.powi(-25), 65536.0];
    let bf16 = [1.0 + 2f32.powi(-10)];
    for (kind, own) in [(Kind::Gptq(Version::V1), &f16[..]), (Kind::Pack, &bf16), (Kind::Int8, &bf16)] {
        for bad in always.iter().chain(own) {
            let mut w = random(32, 32, scheme, 0);
            w.grid.scale[2 * 9 + 1] = *bad;
            refuses_to_write(kind.write(&w, 32, 32, scheme), &["row 9, group 1", "exact in"]);
        }
        let mut w = random(32, 32, scheme, 0);
        w.grid.scale[3] = if kind == Kind::Pack { 2f32.powi(-40) } else { 2f32.powi(-17) };
        assert!(kind.write(&w, 32, 32, scheme).is_ok());
    }
}

#[test]
fn linears_that_do_not_fit_are_told_why() {
    let why = |kind: Kind, word: &str, n, k| kind.unfit(n, k, word.parse().unwrap());
    let (v1, v2) = (Kind::Gptq(Version::V1), Kind::Gptq(Version::V2));
    for (kind, word, n, k, says) in [
        (v1, "w5pc", 32, 32, "2, 3, 4 or 8 bits"),
        (v1, "w3pc", 32, 48, "32 codes"),
        (v2, "w4pc", 12, 32, "8 codes"),
        (v2, "w8pc", 32, 30, "4 codes"),
        (Kind::Awq, "w8pc", 32, 32, "4 bits"),
        (Kind::Awq, "w4pc", 12, 32, "8 rows"),
        (Kind::Int8, "w4pc", 32, 32, "8-bit symmetric"),
        (Kind::Int8, "w8pcz", 32, 32, "8-bit symmetric"),
        (Kind::Pack, "w4g32", 32, 48, "does not divide"),
        (Kind::Pack, "w4pc", 0, 48, "no linear"),
        (Kind::Pack, "w4pc", 1, 1 << 60, "no linear"),
    ] {
        let told = why(kind, word, n, k).unwrap_or_default();
        assert!(told.contains(says), "{kind:?} {word} [{n}, {k}]: {told:?}");
    }
    assert_eq!(why(Kind::Awq, "w4pcz", 8, 1), None);
    assert_eq!(why(v1, "w3g32", 32, 64), None);
}

#[test]
fn a_reader_refuses_tensors_that_are_not_as_the_format_says() {
    for kind in KINDS {
        for word in ["w8g16", "w4g16z", "w4g16s"] {
            let scheme: Scheme = word.parse().unwrap();
            if kind.unfit(32, 32, scheme).is_some() {
                continue;
            }
            let whole = kind.write(&random(32, 32, scheme, 1), 32, 32, scheme).unwrap();
            for (name, t) in &whole {
                let with = |t: Option<Tensor>| {
                    let mut other = whole.clone();
                    other.remove(name);
                    other.extend(t.map(|t| (name.clone(), t)));
                    kind.read(&other, 32, 32, scheme)
                };
                if !name.ends_with("g_idx") {
                    refuses(with(None), &["model: no tensor l.", name]);
                }
                let mut long = t.shape.clone();
                long[0] += 1;
                let size = long.iter().product::<usize>() * t.dtype.bitsize() / 8;
                refuses(with(Some(Tensor::owned(vec![0; size], t.dtype, long.clone()))), &[name, "expected"]);
                long.swap(0, t.shape.len() - 1);
                refuses(with(Some(Tensor::owned(vec![0; size], t.dtype, long))), &[name, "expected"]);
                let bytes = vec![0; t.len()];
                refuses(with(Some(Tensor::owned(bytes, Dtype::U8, t.shape.clone()))), &[name, "U8", "expected"]);
                // Any bytes at all: an error or some integers, never a panic.
                for byte in [0, 0x55, 0x80, 0xFF] {
                    let _ = with(Some(Tensor::owned(vec![byte; t.bytes().len()], t.dtype, t.shape.clone())));
                }
                if name.ends_with("scale") || name.ends_with("scales") {
                    let signed = scheme.symmetry == Symmetry::Signed;
                    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
                        let mut scale = t.to_f32();
                        scale[7] = bad;
                        let read = with(Some(Tensor::from_f32(&scale, t.dtype, t.shape.clone())));
                        match signed {
                            true if bad == -1.0 => assert!(read.is_ok()),
                            true => refuses(read, &[name, "finite scales other than 0"]),
                            false => refuses(read, &[name, "finite positive"]),
                        }
                    }
                }
            }
            let bias = |value: f32| {
                let mut other = whole.clone();
                other.insert("l.bias".into(), Tensor::from_f32(&[0.0, value], Dtype::F16, vec![2]));
                kind.read(&other, 32, 32, scheme)
            };
            assert!(bias(0.0).is_ok());
            refuses(bias(0.25), &["l.bias is not zero"]);
            refuses(kind.read(&whole, 1 << 40, 1 << 40, scheme), &["no linear"]);
            refuses(kind.read(&whole, 32, 32, Scheme { group: Some(5), ..scheme }), &["does not divide"]);
        }
    }
}

/// The tensor with its little-endian word `at` replaced.
fn patched(tensors: &Tensors, name: &str, at: usize, word: u32) -> Tensors {
    let mut tensors = tensors.clone();
    let t = &tensors[name];
    let mut bytes = t.bytes().to_vec();
    bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
    let t = Tensor::owned(bytes, t.dtype, t.shape.clone());
    tensors.insert(name.into(), t);
    tensors
}

#[test]
fn values_that_engines_would_take_otherwise_are_refused() {
    let (v1, v2) = (Kind::Gptq(Version::V1), Kind::Gptq(Version::V2));
    let sym: Scheme = "w4g16".parse().unwrap();
    let w = random(32, 32, sym, 0);
    for (kind, word) in [(v1, 0x7777_8777), (v2, 0x8888_7888), (Kind::Awq, 0x8878_8888)] {
        let other = patched(&kind.write(&w, 32, 32, sym).unwrap(), "l.qzeros", 5, word);
        refuses(kind.read(&other, 32, 32, sym), &["l.qzeros", "group 1", "8 everywhere"]);
    }
    // One version read as the other.
    refuses(v2.read(&v1.write(&w, 32, 32, sym).unwrap(), 32, 32, sym), &["says 7 for row 0, group 0", "8 everywhere"]);

    let mut missing = v1.write(&w, 32, 32, sym).unwrap();
    refuses(
        v1.read(&patched(&missing, "l.g_idx", 17, 0), 32, 32, sym),
        &["column 17 into group 0", "group 1", "desc_act"],
    );
    refuses(v1.read(&patched(&missing, "l.g_idx", 0, u32::MAX), 32, 32, sym), &["column 0 into group -1"]);
    missing.remove("l.g_idx");
    assert!(v1.read(&missing, 32, 32, sym).unwrap() == w);

    let asym: Scheme = "w4g16z".parse().unwrap();
    let whole = v1.write(&random(32, 32, asym, 1), 32, 32, asym).unwrap();
    let wrapped = patched(&whole, "l.qzeros", 1, 0x1111_1F11);
    refuses(v1.read(&wrapped, 32, 32, asym), &["stores 15 for row 10, group 0", "0 or as 16"]);

    let whole = Kind::Pack.write(&w, 32, 32, sym).unwrap();
    refuses(Kind::Pack.read(&patched(&whole, "l.weight_shape", 0, 31), 32, 32, sym), &["l.weight_shape", "[32, 32]"]);
}

#[test]
fn padded_words_of_old_releases_are_told_by_their_shape() {
    let scheme: Scheme = "w3pc".parse().unwrap();
    let mut tensors = Kind::Pack.write(&random(8, 64, scheme, 0), 8, 64, scheme).unwrap();
    tensors.insert("l.weight_packed".into(), Tensor::owned(vec![0; 8 * 7 * 4], Dtype::I32, vec![8, 7]));
    refuses(Kind::Pack.read(&tensors, 8, 64, scheme), &["l.weight_packed has padding", "before 0.17"]);
}

#[test]
fn awq_tells_a_symmetric_model_by_its_zero_points() {
    let (sym, asym): (Scheme, Scheme) = ("w4g16".parse().unwrap(), "w4g16z".parse().unwrap());
    let path = Path::new("model");
    for scheme in [sym, asym] {
        let tensors = Kind::Awq.write(&random(32, 32, scheme, 0), 32, 32, scheme).unwrap();
        let at = Lookup { path, find: &|name| tensors.get(name).cloned() };
        assert_eq!(awq::is_symmetric(&at, "l", 32, 32, asym).unwrap(), scheme == sym);
        // Read as asymmetric, a symmetric model has zero points of 0.
        let zero = Kind::Awq.read(&tensors, 32, 32, asym).unwrap().grid.zero.unwrap();
        assert_eq!(zero.iter().all(|z| *z == 0.0), scheme == sym);
    }
}
