//! GGUF files, versions 2 and 3 (docs/gguf.md of ggml): a header, typed metadata, tensor infos, then the tensor data,
//! all little-endian. `Gguf::open` checks everything that the header says against the file, so that reading a tensor
//! afterwards cannot run outside it.
//!
//! Reading: header, blocks (to f32), integers (to the grid of a scheme), llama, rope. Writing: writer, encode,
//! llama_export. The two sides share names and type codes, no layouts.

pub mod blocks;
pub mod encode;
pub mod entry;
mod header;
pub mod integers;
pub mod llama;
pub mod llama_export;
mod rope;
#[cfg(test)]
pub(crate) mod testing;
pub mod writer;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::mmap::Mmap;
use super::tensor::{Dtype, Tensor};
use crate::error::{Error, Result};
use blocks::GgmlType;
use header::Header;

/// A metadata value. Integers of all widths share one variant each, since writers do not agree on the widths.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Uint(u64),
    Int(i64),
    Float(f64),
    /// Kept apart from `Float`, so that its shortest decimal can be found.
    Float32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Bools(Vec<bool>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Uint(_) | Value::Int(_) => "an integer",
            Value::Float(_) | Value::Float32(_) => "a number",
            Value::Bool(_) => "a boolean",
            Value::Text(_) => "a string",
            Value::Texts(_) => "an array of strings",
            Value::Floats(_) => "an array of numbers",
            Value::Ints(_) => "an array of integers",
            Value::Bools(_) => "an array of booleans",
        }
    }
}

/// A tensor as the header describes it. `dims[0]` is the contiguous one (K of a linear).
#[derive(Debug, Clone)]
pub struct TensorInfo {
    pub name: String,
    pub dims: Vec<usize>,
    pub ty: GgmlType,
    pub(super) elements: usize,
    /// Place in the file, checked.
    pub(super) start: usize,
    pub(super) end: usize,
}

impl TensorInfo {
    /// Rows first, as Hugging Face and safetensors state shapes.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().rev().copied().collect()
    }
}

#[derive(Debug)]
pub struct Gguf {
    map: Arc<Mmap>,
    metadata: HashMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

const FETCH_AGAIN: &str = "fetch or convert it again";

impl Gguf {
    pub fn open(path: &Path) -> Result<Gguf> {
        let map = Arc::new(Mmap::open(path)?);
        let Header { metadata, tensors } = header::parse(&map).map_err(|wrong| wrong.at(path))?;
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Gguf { map, metadata, tensors, by_name })
    }

    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// The whole file.
    pub fn map(&self) -> &Mmap {
        &self.map
    }

    /// In the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        match self.by_name.get(name) {
            Some(&i) => Ok(&self.tensors[i]),
            None => Err(Error::input(self.path(), format!("no tensor \"{name}\""), "a complete model", FETCH_AGAIN)),
        }
    }

    /// The tensor's values, rows first, in place of what `out` held.
    pub fn read(&self, name: &str, out: &mut Vec<f32>) -> Result<()> {
        let info = self.info(name)?;
        let data = &self.map[info.start..info.end];
        out.clear();
        out.resize(info.elements, 0.0);
        blocks::dequantize(info.ty, data, out);
        self.map.forget(data);
        Ok(())
    }

    /// The tensor as it lies in the file, rows first, if that is in floating point.
    pub fn mapped(&self, name: &str) -> Result<Option<Tensor>> {
        let info = self.info(name)?;
        let dtype = match info.ty {
            GgmlType::F32 => Dtype::F32,
            GgmlType::F16 => Dtype::F16,
            GgmlType::Bf16 => Dtype::BF16,
            _ => return Ok(None),
        };
        Ok(Some(Tensor::mapped(self.map.clone(), info.start..info.end, dtype, info.shape())))
    }

    /// The tensor's bytes as they stand in the file.
    pub fn stored(&self, name: &str) -> Result<Tensor> {
        let info = self.info(name)?;
        Ok(Tensor::mapped(self.map.clone(), info.start..info.end, Dtype::U8, vec![info.end - info.start]))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    fn wrong_type(&self, key: &str, found: &Value, expected: &str) -> Error {
        Error::input(self.path(), format!("metadata {key} is {}", found.kind()), expected, FETCH_AGAIN)
    }

    /// An absent key is `None`; a key of another type is an error. So for all getters.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Uint(v)) => Ok(Some(*v)),
            Some(Value::Int(v)) if *v >= 0 => Ok(Some(*v as u64)),
            Some(other) => Err(self.wrong_type(key, other, "an unsigned integer")),
        }
    }

    /// f64 of the shortest decimal that names the stored f32: 1e-5, not 9.99999974e-6.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float32(v)) => Ok(Some(v.to_string().parse().unwrap_or(*v as f64))),
            Some(Value::Float(v)) => Ok(Some(*v)),
            Some(Value::Uint(v)) => Ok(Some(*v as f64)),
            Some(Value::Int(v)) => Ok(Some(*v as f64)),
            Some(other) => Err(self.wrong_type(key, other, "a number")),
        }
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(other) => Err(self.wrong_type(key, other, "a boolean")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(v)) => Ok(Some(v)),
            Some(other) => Err(self.wrong_type(key, other, "a string")),
        }
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Texts(v)) => Ok(Some(v)),
            Some(other) => Err(self.wrong_type(key, other, "an array of strings")),
        }
    }

    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Floats(v)) => Ok(Some(v)),
            Some(other) => Err(self.wrong_type(key, other, "an array of numbers")),
        }
    }

    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Ints(v)) => Ok(Some(v)),
            Some(other) => Err(self.wrong_type(key, other, "an array of integers")),
        }
    }
}

/// What is wrong with a file, before its path is known to the reader.
#[derive(Debug)]
pub(super) struct Wrong {
    pub found: String,
    pub expected: String,
    pub cure: &'static str,
}

impl Wrong {
    pub fn new(found: impl Into<String>, expected: impl Into<String>) -> Wrong {
        Wrong { found: found.into(), expected: expected.into(), cure: FETCH_AGAIN }
    }

    fn at(self, path: &Path) -> Error {
        Error::input(path, self.found, self.expected, self.cure)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{kv, kv_text, kv_uint, write};
    use super::*;

    fn open(metadata: &[Vec<u8>]) -> Gguf {
        let (_dir, path) = write(metadata, &[]);
        Gguf::open(&path).unwrap()
    }

    #[test]
    fn getters_take_any_width_and_name_the_key_when_the_type_is_wrong() {
        let g = open(&[
            kv_uint("a", 7),
            kv("b", 10, &8u64.to_le_bytes()),
            kv("c", 5, &(-1i32).to_le_bytes()),
            kv("eps", 6, &1e-5f32.to_le_bytes()),
            kv_text("name", "llama"),
        ]);
        assert_eq!(g.uint("a").unwrap(), Some(7));
        assert_eq!(g.uint("b").unwrap(), Some(8));
        assert_eq!(g.uint("absent").unwrap(), None);
        assert_eq!(g.float("eps").unwrap(), Some(1e-5));
        assert_eq!(g.text("name").unwrap(), Some("llama"));
        assert!(
            g.uint("c").unwrap_err().to_string().contains("metadata c is an integer, expected an unsigned integer")
        );
        assert!(g.uint("name").unwrap_err().to_string().contains("metadata name is a string"));
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let e = open(&[]).info("output.weight").unwrap_err().to_string();
        assert!(e.contains("no tensor \"output.weight\""), "{e}");
    }
}
