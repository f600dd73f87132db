//! Small GGUF files for tests.

use std::path::PathBuf;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::blocks::GgmlType;
use super::integers::Linear;
use crate::quant::grid::{MIN_SCALE, forward_scale};
use crate::quant::{Integers, LinearGrid, Scheme, Symmetry};

/// The blocks of a whole linear.
pub fn encode(ty: GgmlType, scheme: Scheme, n: usize, k: usize, integers: &Integers) -> Vec<u8> {
    let mut out = vec![0xEE; n * k / ty.block_len() * ty.block_bytes()];
    super::encode::encode(ty, scheme, k, integers, &mut out);
    out
}

/// The integers of a whole linear, into memory that holds something else.
pub fn decode(ty: GgmlType, scheme: Scheme, n: usize, k: usize, bytes: &[u8]) -> Result<Integers, String> {
    let linear = Linear::new(ty, scheme, n, k, bytes.len())?;
    let mut codes = vec![0xEE; n * k];
    let grid = linear.read(bytes, 0..n, &mut codes)?;
    Ok(Integers { codes, grid })
}

/// A linear [n, k] of this scheme with any codes and zero points, and scales from the smallest to about 1.
pub fn random_integers(scheme: Scheme, n: usize, k: usize) -> Integers {
    let mut random = ChaCha8Rng::seed_from_u64(scheme.bits as u64);
    let mut below = |n: u32| random.next_u32() % n;
    let codes = (0..n * k).map(|_| below(1 << scheme.bits) as u8).collect();
    let grids = n * scheme.groups(k);
    let scale = (0..grids).map(|_| forward_scale(MIN_SCALE * 1.1f32.powi(below(124) as i32))).collect();
    let zero = (0..grids).map(|_| match scheme.symmetry {
        Symmetry::Signed => -(below(2) as f32),
        _ => below(1 << scheme.bits) as f32 + scheme.qmin(),
    });
    let zero = scheme.has_zero_points().then(|| zero.collect());
    Integers { codes, grid: LinearGrid { scale, zero } }
}

/// Every scheme that has an exact type in rows of `k`.
pub fn schemes(k: usize) -> Vec<Scheme> {
    let mut all = Vec::new();
    for bits in 2..=8 {
        for group in [None, Some(32), Some(64), Some(128), Some(256)] {
            all.extend(Symmetry::ALL.map(|symmetry| Scheme { bits, group, symmetry }));
        }
    }
    all.retain(|s| super::encode::exact_type(*s, k).is_some());
    all
}

pub fn text(s: &str) -> Vec<u8> {
    [(s.len() as u64).to_le_bytes().as_slice(), s.as_bytes()].concat()
}

/// A metadata entry; `value` as it stands in the file.
pub fn kv(key: &str, ty: u32, value: &[u8]) -> Vec<u8> {
    [text(key).as_slice(), &ty.to_le_bytes(), value].concat()
}

pub fn kv_text(key: &str, value: &str) -> Vec<u8> {
    kv(key, 8, &text(value))
}

pub fn kv_uint(key: &str, value: u32) -> Vec<u8> {
    kv(key, 4, &value.to_le_bytes())
}

pub fn kv_texts(key: &str, values: &[&str]) -> Vec<u8> {
    let items: Vec<u8> = values.iter().flat_map(|v| text(v)).collect();
    kv(key, 9, &[&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), &items].concat())
}

pub fn kv_ints(key: &str, values: &[i32]) -> Vec<u8> {
    let items: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    kv(key, 9, &[&5u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), &items].concat())
}

pub fn header(version: u32, tensors: u64, entries: u64, rest: &[Vec<u8>]) -> Vec<u8> {
    let head = [b"GGUF".as_slice(), &version.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()];
    [head.concat(), rest.concat()].concat()
}

pub fn info(name: &str, dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut b = text(name);
    b.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| b.extend(d.to_le_bytes()));
    b.extend(ty.to_le_bytes());
    b.extend(offset.to_le_bytes());
    b
}

/// A file of these entries and tensors (F32 or F16), element i of each tensor being i. The directory goes with it.
pub fn write(entries: &[Vec<u8>], tensors: &[(String, Vec<u64>, u32)]) -> (tempfile::TempDir, PathBuf) {
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    for (name, dims, ty) in tensors {
        infos.push(info(name, dims, *ty, data.len() as u64));
        for i in 0..dims.iter().product::<u64>() {
            match ty {
                0 => data.extend((i as f32).to_le_bytes()),
                _ => data.extend(half::f16::from_f32(i as f32).to_le_bytes()),
            }
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut bytes = header(3, tensors.len() as u64, entries.len() as u64, &[entries.concat(), infos.concat()]);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}
