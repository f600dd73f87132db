use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;
use crate::format::gguf::encode::exact_type;
use crate::format::gguf::testing::{decode, encode, random_integers, schemes};

const TYPES: [GgmlType; 5] = [GgmlType::Q2K, GgmlType::Q3K, GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q8_0];

#[test]
fn integers_survive_the_round_trip() {
    let (n, k) = (5, 512);
    for scheme in schemes(k) {
        let ty = exact_type(scheme, k).unwrap();
        let integers = random_integers(scheme, n, k);
        let read = decode(ty, scheme, n, k, &encode(ty, scheme, n, k, &integers));
        assert_eq!(read, Ok(integers), "{scheme} {ty:?}");
    }
}

/// Two rows of 256 of each type, one byte changed.
struct Blocks {
    ty: GgmlType,
    scheme: Scheme,
    bytes: Vec<u8>,
}

fn blocks(ty: GgmlType, word: &str) -> Blocks {
    let scheme = word.parse().unwrap();
    let mut integers = random_integers(scheme, 2, 256);
    integers.grid.scale.fill(0.5);
    integers.grid.zero.iter_mut().for_each(|z| z.fill(-1.0));
    Blocks { ty, scheme, bytes: encode(ty, scheme, 2, 256, &integers) }
}

#[track_caller]
fn refused(ty: GgmlType, word: &str, at: usize, bytes: &[u8], says: &str) {
    let mut b = blocks(ty, word);
    b.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    assert_eq!(decode(ty, b.scheme, 2, 256, &b.bytes).unwrap_err(), says);
}

#[test]
fn one_wrong_field_each() {
    use GgmlType::*;
    let half = |v: f32| f16::from_f32(v).to_le_bytes();
    let row = 8 * 18;
    refused(Q4_0, "w4pc", 18, &half(0.25), "two scales, 0.5 and 0.25, in row 0, group 0");
    refused(Q4_0, "w4g32", row + 18, &half(0.0), "scale 0 in row 1, group 1");
    refused(Q4_0, "w4g32", 18, &half(-0.5), "scale -0.5 in row 0, group 1");
    refused(Q4_0, "w4g32", 18, &half(f32::INFINITY), "scale inf in row 0, group 1");
    refused(Q4_0, "w4g32", 18, &half(f32::NAN), "scale NaN in row 0, group 1");
    refused(Q4_0, "w3pc", 18 + 2, &[0xc4], "the integer 4, not in -4 to 3, at 48 in row 0, group 0");
    refused(Q4_0, "w2pc", 18 + 2, &[0x81], "the integer -7, not in -2 to 1, at 32 in row 0, group 0");
    refused(Q8_0, "w6pc", 2, &[0x80], "the integer -128, not in -32 to 31, at 0 in row 0, group 0");
    refused(Q8_0, "w7pc", 3, &[0x7f], "the integer 127, not in -64 to 63, at 1 in row 0, group 0");
    refused(Q4_1, "w4g32z", 2, &half(-3.25), "minimum -3.25, no multiple of the scale 0.5, in row 0, group 0");
    refused(Q4_1, "w4g32z", 2, &half(0.5), "zero point -9, not in -8 to 7, in row 0, group 0");
    refused(Q4_1, "w4g32z", 2, &half(f32::NEG_INFINITY), "zero point inf, not in -8 to 7, in row 0, group 0");
    refused(Q4_1, "w4pcz", 20 + 2, &half(-3.0), "two minima in row 0, group 0");
    refused(Q4_1, "w3g32z", 4, &[0x80], "the integer 4, not in -4 to 3, at 16 in row 0, group 0");
    refused(Q2K, "w2pc", 3, &[0x22], "a sub-block scale of 2 for 1 in row 0, group 0");
    refused(Q2K, "w2pcz", 3, &[0x21], "two minima in row 0, group 0");
    refused(Q2K, "w2pc", 84, &[0x31; 16], "zero point 1, not in 0 to 0, in row 1, group 0");
    refused(Q2K, "w2pcz", 84, &[0x41; 16], "zero point 2, not in -2 to 1, in row 1, group 0");
    refused(Q2K, "w2pc", 82, &half(0.25), "a d and a dmin that differ in row 0, group 0");
    refused(Q3K, "w3pc", 96 + 5, &[0x12], "a sub-block scale of 2 for 1 in row 0, group 0");
    refused(Q3K, "w3pc", 96 + 11, &[0xa6], "a sub-block scale of -15 for 1 in row 0, group 0");
    refused(Q3K, "w3pc", 110 + 108, &half(-1.0), "scale -1 in row 1, group 0");
}

#[test]
fn types_and_sizes_that_do_not_belong_together() {
    let b = blocks(GgmlType::Q4_0, "w4pc");
    let read = |ty, word: &str, n, k, bytes: &[u8]| decode(ty, word.parse().unwrap(), n, k, bytes).unwrap_err();
    assert_eq!(read(b.ty, "w4pcz", 2, 256, &b.bytes), "type Q4_0, which w4pcz is not written as");
    assert_eq!(read(b.ty, "w5pc", 2, 256, &b.bytes), "type Q4_0, which w5pc is not written as");
    assert_eq!(read(GgmlType::F16, "w4pc", 2, 256, &b.bytes), "type F16, which w4pc is not written as");
    assert_eq!(read(b.ty, "w4g48", 2, 256, &b.bytes), "rows of 256 in groups of 48 and blocks of 32");
    assert_eq!(read(b.ty, "w4g16", 2, 256, &b.bytes), "rows of 256 in groups of 16 and blocks of 32");
    assert_eq!(read(b.ty, "w4pc", 2, 0, &b.bytes), "rows of 0 in groups of 0 and blocks of 32");
    assert_eq!(read(b.ty, "w4g32", 2, 0, &b.bytes), "rows of 0 in groups of 32 and blocks of 32");
    assert_eq!(read(b.ty, "w4pc", 3, 256, &b.bytes), "288 bytes of Q4_0 for [3, 256]");
    let huge = read(b.ty, "w4pc", usize::MAX, 256, &b.bytes);
    assert!(huge.starts_with("288 bytes of Q4_0"), "{huge}");
}

#[test]
fn any_bytes_are_integers_or_an_error() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for scheme in schemes(512) {
        for ty in TYPES {
            let mut bytes = vec![0; 2 * 512 / ty.block_len() * ty.block_bytes()];
            for _ in 0..20 {
                random.fill_bytes(&mut bytes);
                let _ = decode(ty, scheme, 2, 512, &bytes);
            }
            for cut in 0..bytes.len() {
                assert!(decode(ty, scheme, 2, 512, &bytes[..cut]).is_err());
            }
        }
    }
}

/// No changed byte of sound blocks makes the reader panic.
#[test]
fn every_changed_byte_is_an_error_or_integers() {
    for (ty, word) in [
        (GgmlType::Q2K, "w2pcz"),
        (GgmlType::Q3K, "w3pc"),
        (GgmlType::Q4_0, "w3pc"),
        (GgmlType::Q4_1, "w3g32z"),
        (GgmlType::Q8_0, "w5pc"),
    ] {
        let b = blocks(ty, word);
        for i in 0..b.bytes.len() {
            for v in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = b.bytes.clone();
                bytes[i] = v;
                let _ = decode(ty, b.scheme, 2, 256, &bytes);
            }
        }
    }
}
