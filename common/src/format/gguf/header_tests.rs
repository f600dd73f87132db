//! One wrong file per way a header can lie.

use super::super::testing::{header as file, info, kv, text};
use super::*;

/// A header with these tensors, aligned, and `data` bytes after it.
fn with_tensors(infos: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut b = file(3, infos.len() as u64, 0, infos);
    b.resize(b.len().next_multiple_of(32) + data, 0);
    b
}

#[track_caller]
fn rejects(bytes: &[u8], part: &str) {
    match parse(bytes) {
        Ok(_) => panic!("accepted, expected a message with {part:?}"),
        Err(wrong) => {
            let message = format!("{}, expected {}", wrong.found, wrong.expected);
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn versions_2_and_3_with_metadata_and_tensors() {
    for version in [2, 3] {
        let entries = [
            kv("n", 4, &7u32.to_le_bytes()),
            kv("list", 9, &[&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &text("a"), &text("bc")].concat()),
            kv("ids", 9, &[&5u32.to_le_bytes()[..], &1u64.to_le_bytes(), &(-3i32).to_le_bytes()].concat()),
        ];
        let mut b = file(version, 1, 3, &[entries.concat(), info("w", &[4, 2], 0, 0)]);
        b.resize(b.len().next_multiple_of(32) + 32, 0);
        let h = parse(&b).unwrap_or_else(|w| panic!("{w:?}"));
        assert_eq!(h.metadata["n"], Value::Uint(7));
        assert_eq!(h.metadata["list"], Value::Texts(vec!["a".into(), "bc".into()]));
        assert_eq!(h.metadata["ids"], Value::Ints(vec![-3]));
        assert_eq!((h.tensors[0].shape(), h.tensors[0].end), (vec![2, 4], b.len()));
    }
}

#[test]
fn wrong_beginnings() {
    rejects(b"", "not a GGUF file");
    rejects(b"GGML\x03\0\0\0", "not a GGUF file");
    rejects(&file(1, 0, 0, &[]), "GGUF version 1, expected version 2 or 3");
    rejects(&file(4, 0, 0, &[]), "GGUF version 4");
    rejects(&file(3u32.swap_bytes(), 0, 0, &[]), "big-endian");
    rejects(&file(3, 0, 0, &[])[..20], "the number of metadata entries of 8 bytes");
}

#[test]
fn counts_that_the_file_cannot_hold() {
    rejects(&file(3, 0, u64::MAX, &[]), "metadata entries in 0 bytes");
    rejects(&file(3, u64::MAX, 0, &[]), "tensors in 0 bytes");
    let strings = [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    rejects(&file(3, 0, 1, &[kv("list", 9, &strings)]), "strings of list in 0 bytes");
    let floats = [&6u32.to_le_bytes()[..], &(1u64 << 62).to_le_bytes(), &[0; 8]].concat();
    rejects(&file(3, 0, 1, &[kv("scores", 9, &floats)]), "elements of scores in 8 bytes");
}

#[test]
fn metadata_that_lies() {
    let long = [u64::MAX.to_le_bytes().to_vec(), vec![0; 32]].concat();
    rejects(&file(3, 0, 1, &[long]), "a metadata key of 18446744073709551615 bytes");
    rejects(&file(3, 0, 1, &[text(&"k".repeat(70_000)), vec![0; 32]]), "a metadata key of 70000 bytes");
    rejects(&file(3, 0, 1, &[kv("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])]), "not UTF-8");
    rejects(&file(3, 0, 1, &[kv("k", 13, &[0; 8])]), "metadata k of type 13");
    rejects(&file(3, 0, 1, &[kv("k", 7, &[2])]), "boolean k of value 2");
    rejects(&file(3, 0, 1, &[kv("k", 4, &[0])]), "k of 4 bytes");
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 16]].concat();
    rejects(&file(3, 0, 1, &[kv("k", 9, &nested)]), "an array k of type 9");
    let twice = [kv("k", 0, &[1]), kv("k", 0, &[1])].concat();
    rejects(&file(3, 0, 2, &[twice]), "metadata k twice");
    rejects(&file(3, 0, 1, &[kv("split.count", 2, &3u16.to_le_bytes())]), "one of 3 parts");
    for alignment in [0u32, 24, 1 << 30] {
        let entry = kv("general.alignment", 4, &alignment.to_le_bytes());
        rejects(&file(3, 0, 1, &[entry]), "a power of two");
    }
}

#[test]
fn tensor_infos_that_lie() {
    let one = |dims: &[u64], ty, offset| with_tensors(&[info("w", dims, ty, offset)], 64);
    assert!(parse(&one(&[16], 0, 0)).is_ok());
    rejects(&one(&[17], 0, 0), "tensor w of 68 bytes at offset 0");
    rejects(&one(&[8], 0, 64), "data within the file");
    rejects(&one(&[8], 0, u64::MAX - 31), "data within the file");
    rejects(&one(&[8], 0, 8), "tensor w at offset 8, expected a multiple of 32");
    rejects(&one(&[], 0, 0), "0 dimensions");
    rejects(&one(&[1; 5], 0, 0), "5 dimensions");
    rejects(&one(&[0, 4], 0, 0), "shape [0, 4]");
    rejects(&one(&[1 << 32, 1 << 32], 0, 0), "whose product fits");
    rejects(&one(&[1 << 62, 2], 0, 0), "whose product fits");
    rejects(&one(&[48], 2, 0), "tensor w of type Q4_0 with rows of 48, expected a multiple of 32");
    rejects(&one(&[128], 12, 0), "Q4_K with rows of 128");
    rejects(&one(&[32], 16, 0), "tensor w has type IQ2_XXS, expected one of F32, F16, BF16, Q4_0");
    rejects(&one(&[32], 99, 0), "tensor w has type number 99");
}

#[test]
fn tensors_that_meet() {
    let pair = |a: &str, b: &str, at| with_tensors(&[info(a, &[16], 0, at), info(b, &[16], 0, 0)], 128);
    assert!(parse(&pair("a", "b", 64)).is_ok());
    rejects(&pair("a", "b", 32), "tensors b and a share bytes");
    rejects(&pair("a", "a", 64), "tensor a twice");
}

/// No prefix and no single changed byte of a sound file makes the reader panic.
#[test]
fn every_cut_and_every_changed_byte_is_an_error_or_a_file() {
    let entries = [kv("general.name", 8, &text("x")), kv("n", 4, &7u32.to_le_bytes())];
    let mut b = file(3, 2, 2, &[entries.concat(), info("a", &[32, 2], 2, 0), info("b", &[8], 1, 64)]);
    b.resize(b.len().next_multiple_of(32) + 96, 0);
    assert!(parse(&b).is_ok());
    for cut in 0..b.len() {
        let _ = parse(&b[..cut]);
    }
    for i in 0..b.len() {
        for v in [0, 1, 0x7f, 0x80, 0xff] {
            let mut c = b.clone();
            c[i] = v;
            let _ = parse(&c);
        }
    }
}
