//! A tensor on the host in its stored form: mapped from a file, or owned.

use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
pub use safetensors::Dtype;

use super::mmap::Mmap;
use crate::error::Result;

/// Bytes that are handled at a time where a whole tensor need not be in memory.
const PART: usize = 8 << 20;

/// Row-major bytes with type and shape.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    bytes: Bytes,
}

#[derive(Debug, Clone)]
enum Bytes {
    Mapped(Arc<Mmap>, Range<usize>),
    Owned(Arc<Vec<u8>>),
}

impl Tensor {
    /// `bytes` holds exactly `shape` elements of `dtype`; the caller has checked it.
    pub fn mapped(map: Arc<Mmap>, range: Range<usize>, dtype: Dtype, shape: Vec<usize>) -> Tensor {
        Tensor { dtype, shape, bytes: Bytes::Mapped(map, range) }
    }

    pub fn owned(bytes: Vec<u8>, dtype: Dtype, shape: Vec<usize>) -> Tensor {
        debug_assert_eq!(bytes.len() * 8, shape.iter().product::<usize>() * dtype.bitsize());
        Tensor { dtype, shape, bytes: Bytes::Owned(Arc::new(bytes)) }
    }

    /// The values in `dtype` (f32, f16 or bf16), rounded to nearest even where it is narrower.
    pub fn from_f32(values: &[f32], dtype: Dtype, shape: Vec<usize>) -> Tensor {
        Tensor::owned(encode_f32(values, dtype), dtype, shape)
    }

    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map, range) => &map[range.clone()],
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// Whether its pages can be let go of.
    pub fn is_mapped(&self) -> bool {
        matches!(self.bytes, Bytes::Mapped(..))
    }

    /// Lets go of the resident pages of a mapped tensor.
    pub fn forget(&self) {
        if let Bytes::Mapped(map, range) = &self.bytes {
            map.forget(&map[range.clone()]);
        }
    }

    /// Hands out the bytes part by part, a few MiB of whole blocks at a time, and lets go of the pages
    /// of each: a tensor of any size is copied in little memory.
    pub fn for_each_part(&self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        for part in self.bytes().chunks(PART) {
            each(part)?;
            self.forget_part(part);
        }
        Ok(())
    }

    /// Do both hold the same bytes? Compared and let go of part by part.
    pub fn same_bytes(&self, other: &Tensor) -> bool {
        let (a, b) = (self.bytes(), other.bytes());
        let same = |(a, b): (&[u8], &[u8])| {
            let same = a == b;
            self.forget_part(a);
            other.forget_part(b);
            same
        };
        a.len() == b.len() && a.chunks(PART).zip(b.chunks(PART)).all(same)
    }

    fn forget_part(&self, part: &[u8]) {
        if let Bytes::Mapped(map, _) = &self.bytes {
            map.forget(part);
        }
    }

    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements `range` of a floating-point tensor as f32.
    #[inline(always)]
    pub fn read_f32(&self, range: Range<usize>, out: &mut [f32]) {
        let size = self.dtype.bitsize() / 8;
        decode_f32(&self.bytes()[range.start * size..range.end * size], self.dtype, out);
    }

    /// The whole tensor as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.read_f32(0..self.len(), &mut out);
        out
    }
}

pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Little-endian f32, f16 or bf16 to f32. Other types are a mistake of the caller ([`is_float`]).
#[inline(always)]
pub fn decode_f32(bytes: &[u8], dtype: Dtype, out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        Dtype::BF16 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = f32::from_bits((u16::from_le_bytes([b[0], b[1]]) as u32) << 16);
            }
        }
        Dtype::F16 => {
            // By slices, whose conversion looks for the machine's instructions once.
            const SOME: usize = 512;
            for (out, bytes) in out.chunks_mut(SOME).zip(bytes.chunks(2 * SOME)) {
                let mut halves = [f16::ZERO; SOME];
                for (half, b) in halves.iter_mut().zip(bytes.as_chunks().0) {
                    *half = f16::from_le_bytes(*b);
                }
                halves[..out.len()].convert_to_f32_slice(out);
            }
        }
        other => panic!("{other:?} is not a floating-point type of this project"),
    }
}

pub fn encode_f32(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => encode_each(values, f32::to_le_bytes),
        Dtype::BF16 => encode_each(values, |v| bf16::from_f32(v).to_le_bytes()),
        Dtype::F16 => encode_halves(values),
        other => panic!("{other:?} is not a floating-point type of this project"),
    }
}

fn encode_halves(values: &[f32]) -> Vec<u8> {
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    let mut out = vec![0; 2 * values.len()];
    for (out, half) in out.as_chunks_mut().0.iter_mut().zip(halves) {
        *out = half.to_le_bytes();
    }
    out
}

fn encode_each<const BYTES: usize>(values: &[f32], encode: impl Fn(f32) -> [u8; BYTES]) -> Vec<u8> {
    let mut out = vec![0; values.len() * BYTES];
    for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
        *out = encode(*value);
    }
    out
}
