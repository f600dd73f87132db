//! The header of a GGUF file, read from bytes that may be anything: every length, count and offset is checked before
//! it is used, and nothing is allocated that the bytes do not pay for.

use std::collections::{HashMap, HashSet};

use super::blocks::GgmlType;
use super::{TensorInfo, Value, Wrong};

pub(super) struct Header {
    pub metadata: HashMap<String, Value>,
    pub tensors: Vec<TensorInfo>,
}

type Parsed<T> = Result<T, Wrong>;

const MAX_DIMS: u32 = 4;
/// The format's own limit for keys; tensor names are held to it as well.
const MAX_NAME: usize = 65535;
const DEFAULT_ALIGNMENT: u64 = 32;
/// Least bytes of a metadata entry (key length, type, one byte) and of a tensor info (lengths only).
const MIN_ENTRY: usize = 13;
const MIN_INFO: usize = 24;

/// Reads on from `at`, never past the end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: u64, what: &str) -> Parsed<&'a [u8]> {
        if n > self.left() as u64 {
            return Err(Wrong::new(
                format!("{what} of {n} bytes at byte {} of {}", self.at, self.bytes.len()),
                "a length within the file",
            ));
        }
        let part = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(part)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Parsed<[u8; N]> {
        let mut a = [0; N];
        a.copy_from_slice(self.take(N as u64, what)?);
        Ok(a)
    }

    fn u32(&mut self, what: &str) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn text(&mut self, what: &str) -> Parsed<String> {
        let n = self.u64(what)?;
        let raw = self.take(n, what)?;
        match std::str::from_utf8(raw) {
            Ok(s) => Ok(s.to_string()),
            Err(_) => Err(Wrong::new(format!("{what} ending at byte {} is not UTF-8", self.at), "UTF-8")),
        }
    }

    fn name(&mut self, what: &str) -> Parsed<String> {
        let name = self.text(what)?;
        if name.len() > MAX_NAME {
            return Err(Wrong::new(format!("{what} of {} bytes", name.len()), format!("at most {MAX_NAME}")));
        }
        Ok(name)
    }

    /// How many of something, each at least `min` bytes long.
    fn count(&self, n: u64, min: usize, what: &str) -> Parsed<usize> {
        if n > (self.left() / min) as u64 {
            return Err(Wrong::new(format!("{n} {what} in {} bytes", self.left()), "as many as the file can hold"));
        }
        Ok(n as usize)
    }
}

pub(super) fn parse(bytes: &[u8]) -> Parsed<Header> {
    let mut c = Cursor { bytes, at: 0 };
    if c.take(4, "the magic number").ok() != Some(b"GGUF".as_slice()) {
        return Err(Wrong::new("not a GGUF file", "\"GGUF\" as its first four bytes"));
    }
    match c.u32("the version")? {
        2 | 3 => {}
        v if matches!(v.swap_bytes(), 2 | 3) => {
            return Err(Wrong::new("a big-endian GGUF file", "a little-endian one"));
        }
        v => return Err(Wrong::new(format!("GGUF version {v}"), "version 2 or 3")),
    }
    let tensor_count = c.u64("the number of tensors")?;
    let entry_count = c.u64("the number of metadata entries")?;
    let entry_count = c.count(entry_count, MIN_ENTRY, "metadata entries")?;
    let metadata = metadata(&mut c, entry_count)?;
    let tensor_count = c.count(tensor_count, MIN_INFO, "tensors")?;
    let tensors = tensors(&mut c, tensor_count, alignment(&metadata)?)?;
    Ok(Header { metadata, tensors })
}

fn metadata(c: &mut Cursor, count: usize) -> Parsed<HashMap<String, Value>> {
    let mut all = HashMap::new();
    for _ in 0..count {
        let key = c.name("a metadata key")?;
        let ty = c.u32(&key)?;
        let value = value(c, &key, ty)?;
        if all.contains_key(&key) {
            return Err(Wrong::new(format!("metadata {key} twice"), "each key once"));
        }
        all.insert(key, value);
    }
    if let Some(Value::Uint(parts @ 2..)) = all.get("split.count") {
        return Err(Wrong {
            found: format!("one of {parts} parts"),
            expected: "a whole model".into(),
            cure: "join the parts with llama-gguf-split --merge",
        });
    }
    Ok(all)
}

/// Bytes of a scalar of this type; `None` for strings, arrays and unknown types.
fn scalar_bytes(ty: u32) -> Option<usize> {
    match ty {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn value(c: &mut Cursor, key: &str, ty: u32) -> Parsed<Value> {
    match ty {
        8 => Ok(Value::Text(c.text(key)?)),
        9 => array(c, key),
        _ => scalar(c, key, ty),
    }
}

fn scalar(c: &mut Cursor, key: &str, ty: u32) -> Parsed<Value> {
    Ok(match ty {
        0 => Value::Uint(u8::from_le_bytes(c.array(key)?) as u64),
        1 => Value::Int(i8::from_le_bytes(c.array(key)?) as i64),
        2 => Value::Uint(u16::from_le_bytes(c.array(key)?) as u64),
        3 => Value::Int(i16::from_le_bytes(c.array(key)?) as i64),
        4 => Value::Uint(c.u32(key)? as u64),
        5 => Value::Int(i32::from_le_bytes(c.array(key)?) as i64),
        6 => Value::Float32(f32::from_le_bytes(c.array(key)?)),
        7 => match c.array::<1>(key)?[0] {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            v => return Err(Wrong::new(format!("boolean {key} of value {v}"), "0 or 1")),
        },
        10 => Value::Uint(c.u64(key)?),
        11 => Value::Int(i64::from_le_bytes(c.array(key)?)),
        12 => Value::Float(f64::from_le_bytes(c.array(key)?)),
        v => return Err(Wrong::new(format!("metadata {key} of type {v}"), "a type from 0 to 12")),
    })
}

fn array(c: &mut Cursor, key: &str) -> Parsed<Value> {
    let ty = c.u32(key)?;
    let n = c.u64(key)?;
    if ty == 8 {
        let n = c.count(n, 8, &format!("strings of {key}"))?;
        return Ok(Value::Texts((0..n).map(|_| c.text(key)).collect::<Parsed<_>>()?));
    }
    let Some(size) = scalar_bytes(ty) else {
        return Err(Wrong::new(format!("an array {key} of type {ty}"), "an array of numbers, booleans or strings"));
    };
    let n = c.count(n, size, &format!("elements of {key}"))?;
    let items = (0..n).map(|_| scalar(c, key, ty));
    match ty {
        6 | 12 => items
            .map(|v| {
                v.map(|v| match v {
                    Value::Float32(x) => x,
                    Value::Float(x) => x as f32,
                    _ => 0.0,
                })
            })
            .collect::<Parsed<_>>()
            .map(Value::Floats),
        7 => items.map(|v| v.map(|v| v == Value::Bool(true))).collect::<Parsed<_>>().map(Value::Bools),
        _ => items
            .map(|v| match v? {
                Value::Int(x) => Ok(x),
                Value::Uint(x) => i64::try_from(x).map_err(|_| Wrong::new(format!("{x} in {key}"), "at most 2^63")),
                _ => Ok(0),
            })
            .collect::<Parsed<_>>()
            .map(Value::Ints),
    }
}

fn alignment(metadata: &HashMap<String, Value>) -> Parsed<u64> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Uint(a)) if a.is_power_of_two() && *a <= 1 << 20 => Ok(*a),
        Some(other) => Err(Wrong::new(format!("general.alignment {other:?}"), "a power of two up to 2^20")),
    }
}

fn tensors(c: &mut Cursor, count: usize, alignment: u64) -> Parsed<Vec<TensorInfo>> {
    let mut all = Vec::with_capacity(count);
    let mut names = HashSet::new();
    for _ in 0..count {
        let (info, offset) = tensor(c)?;
        if offset % alignment != 0 {
            let found = format!("tensor {} at offset {offset}", info.name);
            return Err(Wrong::new(found, format!("a multiple of {alignment}")));
        }
        if !names.insert(info.name.clone()) {
            return Err(Wrong::new(format!("tensor {} twice", info.name), "each tensor once"));
        }
        all.push((info, offset));
    }
    // The data begin at the first aligned byte after the header.
    let data = (c.at as u64).next_multiple_of(alignment);
    let mut infos = Vec::with_capacity(count);
    for (mut info, offset) in all {
        let end = data.checked_add(offset).and_then(|start| start.checked_add(info.end as u64));
        match end {
            Some(end) if end <= c.bytes.len() as u64 => {
                (info.start, info.end) = (end as usize - info.end, end as usize);
                infos.push(info);
            }
            _ => {
                let found = format!("tensor {} of {} bytes at offset {offset}", info.name, info.end);
                let expected = format!("data within the file ({} bytes; it may be cut short)", c.bytes.len());
                return Err(Wrong::new(found, expected));
            }
        }
    }
    no_overlap(&infos)?;
    Ok(infos)
}

/// One tensor info and its offset; `end` holds the number of bytes until the place in the file is known.
fn tensor(c: &mut Cursor) -> Parsed<(TensorInfo, u64)> {
    let name = c.name("a tensor name")?;
    let n_dims = c.u32(&name)?;
    if n_dims == 0 || n_dims > MAX_DIMS {
        return Err(Wrong::new(format!("tensor {name} with {n_dims} dimensions"), format!("1 to {MAX_DIMS}")));
    }
    let mut dims = Vec::new();
    for _ in 0..n_dims {
        dims.push(c.u64(&name)?);
    }
    let code = c.u32(&name)?;
    let ty = GgmlType::from_code(code).map_err(|found| Wrong {
        found: format!("tensor {name} has type {found}"),
        expected: format!("one of {}", GgmlType::supported()),
        cure: "convert the model to one of these types",
    })?;
    let offset = c.u64(&name)?;
    let elements = dims.iter().try_fold(1u64, |n, &d| if d == 0 { None } else { n.checked_mul(d) });
    let bytes = elements.and_then(|n| (n / ty.block_len() as u64).checked_mul(ty.block_bytes() as u64));
    // isize::MAX of f32 is what a vector can hold.
    let (Some(elements), Some(bytes)) = (elements.filter(|n| *n <= isize::MAX as u64 / 4), bytes) else {
        return Err(Wrong::new(format!("tensor {name} of shape {dims:?}"), "dimensions from 1 whose product fits"));
    };
    if dims[0] % ty.block_len() as u64 != 0 {
        let found = format!("tensor {name} of type {} with rows of {}", ty.name(), dims[0]);
        return Err(Wrong::new(found, format!("a multiple of {}", ty.block_len())));
    }
    let dims = dims.iter().map(|&d| d as usize).collect();
    Ok((TensorInfo { name, dims, ty, elements: elements as usize, start: 0, end: bytes as usize }, offset))
}

fn no_overlap(infos: &[TensorInfo]) -> Parsed<()> {
    let mut order: Vec<&TensorInfo> = infos.iter().collect();
    order.sort_by_key(|t| t.start);
    match order.windows(2).find(|pair| pair[0].end > pair[1].start) {
        None => Ok(()),
        Some(pair) => {
            let found = format!("tensors {} and {} share bytes", pair[0].name, pair[1].name);
            Err(Wrong::new(found, "tensors that do not overlap"))
        }
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
