use std::path::Path;

use super::*;
use crate::format::gguf::Gguf;
use crate::format::gguf::blocks::dequantize;
use crate::format::gguf::testing::{decode, encode, random_integers, schemes};

fn scheme(word: &str) -> Scheme {
    word.parse().unwrap()
}

#[test]
fn the_smallest_exact_type_of_a_scheme() {
    for (word, k, ty) in [
        ("w2pc", 4096, Some(Q2K)),
        ("w2pcz", 4096, Some(Q2K)),
        ("w2g256", 4096, Some(Q2K)),
        ("w2g128", 4096, Some(Q4_0)),
        ("w2g128z", 4096, Some(Q4_1)),
        ("w2pc", 576, Some(Q4_0)),
        ("w3pc", 4096, Some(Q3K)),
        ("w3g512", 4096, Some(Q3K)),
        ("w3pcz", 4096, Some(Q4_1)),
        ("w3g128", 4096, Some(Q4_0)),
        ("w4pc", 4096, Some(Q4_0)),
        ("w4g32", 4096, Some(Q4_0)),
        ("w4g64z", 576, Some(Q4_1)),
        ("w4g16", 4096, None),
        ("w4pc", 48, None),
        ("w5pc", 4096, Some(Q8_0)),
        ("w8g64", 4096, Some(Q8_0)),
        ("w5g64z", 4096, None),
        ("w8pcz", 4096, None),
    ] {
        assert_eq!(exact_type(scheme(word), k), ty, "{word} in rows of {k}");
    }
}

/// The reader of blocks, which equals the PyPI package `gguf` to the bit, gives s·(W_Z − z) in f32.
#[test]
fn blocks_hold_the_weights_exactly() {
    let (n, k) = (3, 512);
    for scheme in schemes(k) {
        let ty = exact_type(scheme, k).unwrap();
        let integers = random_integers(scheme, n, k);
        let mut got = vec![0f32; n * k];
        dequantize(ty, &encode(ty, scheme, n, k, &integers), &mut got);
        let group = scheme.group_size(k);
        for (i, got) in got.iter().enumerate() {
            let s = integers.grid.scale[i / group];
            let z = integers.grid.zero.as_ref().map_or(0.0, |zero| zero[i / group]);
            let want = s * (integers.codes[i] as f32 + scheme.qmin() - z);
            // Only m = −(z + 2^(b−1))·s of Q4_1 is rounded, to 11 bits (below 2^-14, to 2^-24).
            let m = (z - scheme.qmin()) * s;
            let tolerance = if ty == Q4_1 { (m / 2048.0).max(2f32.powi(-25)) } else { 0.0 };
            assert!((got - want).abs() <= tolerance, "{scheme} {ty:?}: {got} {want}");
        }
    }
}

/// A wider type of the table is as exact, for whoever wants one type in all layers.
#[test]
fn other_types_that_hold_the_scheme() {
    let (n, k) = (2, 256);
    for (word, ty) in [("w2pc", Q4_0), ("w3pc", Q4_0), ("w3pc", Q8_0), ("w2pcz", Q4_1), ("w4pc", Q8_0)] {
        let scheme = scheme(word);
        let integers = random_integers(scheme, n, k);
        let read = decode(ty, scheme, n, k, &encode(ty, scheme, n, k, &integers));
        assert_eq!(read, Ok(integers), "{word} {ty:?}");
    }
}

#[test]
#[should_panic(expected = "Q2_K cannot hold w2g128")]
fn a_type_that_does_not_hold_the_scheme() {
    let scheme = scheme("w2g128");
    encode(Q2K, scheme, 1, 256, &random_integers(scheme, 1, 256));
}

/// By the PyPI package `gguf` (tests/data/make_ggml_blocks.py), which follows ggml's reference to the bit.
#[test]
fn floats_become_the_same_q8_0_as_by_the_gguf_package() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/ggml_blocks.gguf"));
    let file = Gguf::open(path).unwrap();
    let mut values = Vec::new();
    file.read("quantized.from", &mut values).unwrap();
    assert_eq!(encode_float(Q8_0, &values), file.stored("quantized.to").unwrap().bytes());
}

#[test]
fn floats_longer_than_a_step() {
    let values: Vec<f32> = (0..10_016).map(|i| (i as f32 - 5000.0) / 3.0).collect();
    let bytes = encode_float(F16, &values);
    let halves = bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b));
    assert!(halves.eq(values.iter().map(|v| f16::from_f32(*v))));
    let bytes = encode_float(Bf16, &values);
    let halves = bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b));
    assert!(halves.eq(values.iter().map(|v| bf16::from_f32(*v))));
    assert_eq!(encode_float(F32, &values), bytemuck::cast_slice::<f32, u8>(&values));
    let bytes = encode_float(Q8_0, &values);
    assert_eq!(bytes[34 * 312..], encode_float(Q8_0, &values[32 * 312..]));
}

#[test]
fn rounding_equals_round_half_away_from_zero() {
    for i in -127_000..=127_000 {
        let mut x = [i as f32 / 1000.0; 32];
        x[0] = 127.0;
        for (at, step) in [(1, 1), (2, -1)] {
            x[at] = f32::from_bits(x[3].to_bits().wrapping_add_signed(step));
        }
        let mut b = [0; 34];
        quantize_q8_0(&x, &mut b);
        for (b, x) in b[2..6].iter().zip(x) {
            assert_eq!(*b as i8, x.round() as i8, "{x}");
        }
    }
}
