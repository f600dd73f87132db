//! safetensors files: a checked, memory-mapped reader and a streaming writer.
//!
//! Format: u64 header length, a JSON header {name: {dtype, shape, data_offsets}, "__metadata__": {..}}, data. The
//! crate `safetensors` checks the header (overlaps, holes, lengths, types); the writer here exists because the
//! crate's wants all data at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{SafeTensorError, SafeTensors};
use serde_json::{Map, Value, json};

use super::atomic::{FileDigest, OutputFile};
use super::mmap::Mmap;
use super::tensor::{Dtype, Tensor, is_float};
use crate::error::{Error, Result};

/// An open file: its tensors by name.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Arc<Mmap>,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    pub fn open(path: &Path) -> Result<TensorFile> {
        let map = Arc::new(Mmap::open(path)?);
        let (header, meta) = SafeTensors::read_metadata(&map).map_err(|e| {
            let found = format!("not a whole safetensors file: {}", refusal(&e));
            Error::input(path, found, "a valid one", "fetch or make it again")
        })?;
        let base = header + 8;
        let mut tensors = BTreeMap::new();
        for (name, info) in meta.tensors() {
            let (from, to) = info.data_offsets;
            let tensor = Tensor::mapped(map.clone(), base + from..base + to, info.dtype, info.shape.clone());
            tensors.insert(name, tensor);
        }
        let metadata = meta.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(TensorFile { path: path.to_path_buf(), map, tensors, metadata })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn map(&self) -> &Mmap {
        &self.map
    }

    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// A tensor that must be there, of this type and shape.
    pub fn expect(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
        let t = self.find(name)?;
        if t.dtype != dtype || t.shape != shape {
            return Err(Error::input(
                &self.path,
                format!("{name} is {:?} {:?}", t.dtype, t.shape),
                format!("{dtype:?} {shape:?}"),
                "make the file again",
            ));
        }
        Ok(t.clone())
    }

    /// A floating-point tensor that must be there, of this shape.
    pub fn expect_float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let t = self.find(name)?;
        if !is_float(t.dtype) {
            return Err(Error::input(
                &self.path,
                format!("{name} has type {:?}", t.dtype),
                "F32, F16 or BF16",
                "convert the model to one of these",
            ));
        }
        if t.shape != shape {
            return Err(Error::input(
                &self.path,
                format!("{name} has shape {:?}", t.shape),
                format!("{shape:?} from config.json"),
                "the weights and config.json do not belong together; fetch both again",
            ));
        }
        Ok(t.clone())
    }

    fn find(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            Error::input(&self.path, format!("no tensor {name}"), "it to be there", "fetch or make the file again")
        })
    }
}

/// What the crate found wrong, in words for whoever has the file.
fn refusal(e: &SafeTensorError) -> String {
    match e {
        SafeTensorError::MetadataIncompleteBuffer => "it is cut short, or longer than its header says".into(),
        SafeTensorError::InvalidOffset(name) => format!("{name} overlaps another tensor, or leaves a gap"),
        SafeTensorError::TensorInvalidInfo => "a tensor whose shape does not fit its bytes".into(),
        SafeTensorError::ValidationOverflow => "a tensor whose shape is beyond any file".into(),
        other => other.to_string(),
    }
}

/// Type and shape of a tensor to be written.
#[derive(Debug, Clone)]
pub struct Spec {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Spec {
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Spec {
        Spec { name: name.into(), dtype, shape: shape.into() }
    }

    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes tensors one after another, in the order of the specs; memory does not grow with the file.
pub struct TensorWriter {
    file: OutputFile,
    specs: Vec<Spec>,
    next: usize,
}

impl TensorWriter {
    /// Sorts the specs: wide types first, so that every tensor is aligned, then by name. [`TensorWriter::order`]
    /// gives the order in which [`TensorWriter::put`] wants them.
    pub fn create(mut file: OutputFile, mut specs: Vec<Spec>, metadata: &[(&str, String)]) -> Result<TensorWriter> {
        specs.sort_by(|a, b| (b.dtype.bitsize(), &a.name).cmp(&(a.dtype.bitsize(), &b.name)));
        let mut header = Map::new();
        if !metadata.is_empty() {
            let meta: Map<String, Value> = metadata.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
            header.insert("__metadata__".into(), Value::Object(meta));
        }
        let mut at = 0;
        for spec in &specs {
            let end = at + spec.bytes();
            let entry = json!({"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [at, end]});
            header.insert(spec.name.clone(), entry);
            at = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // Data begins at a multiple of 64 bytes: aligned for every type and for vector loads.
        header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
        file.write(&(header.len() as u64).to_le_bytes())?;
        file.write(&header)?;
        Ok(TensorWriter { file, specs, next: 0 })
    }

    pub fn order(&self) -> &[Spec] {
        &self.specs
    }

    /// The next tensor of [`TensorWriter::order`].
    pub fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let spec = &self.specs[self.next];
        assert!(spec.name == name && spec.bytes() == bytes.len(), "{name}: tensors are written in order and whole");
        self.next += 1;
        self.file.write(bytes)
    }

    /// The next tensor of [`TensorWriter::order`], handed over part by part.
    pub fn put_parts(
        &mut self,
        name: &str,
        make: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let spec = &self.specs[self.next];
        assert_eq!(spec.name, name, "tensors are written in order");
        let mut bytes = 0;
        make(&mut |part| {
            bytes += part.len();
            self.file.write(part)
        })?;
        assert_eq!(spec.bytes(), bytes, "{name}: tensors are written whole");
        self.next += 1;
        Ok(())
    }

    /// The next tensor of [`TensorWriter::order`] as it lies in another file.
    pub fn copy(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let spec = &self.specs[self.next];
        assert!(
            spec.name == name && (spec.dtype, &spec.shape) == (tensor.dtype, &tensor.shape),
            "{name}: as announced"
        );
        self.next += 1;
        tensor.for_each_part(|part| self.file.write(part))
    }

    pub fn finish(self) -> Result<FileDigest> {
        assert_eq!(self.next, self.specs.len(), "every tensor that was announced is written");
        self.file.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejects(bytes: &[u8], says: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let e = TensorFile::open(&path).unwrap_err().to_string();
        assert!(e.contains(says) && !e.contains('\n'), "{e}");
    }

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn hostile_bytes_are_refused() {
        let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        rejects(b"", "empty");
        rejects(b"abc", "header too small");
        rejects(&u64::MAX.to_le_bytes(), "header too large");
        rejects(&[&40u64.to_le_bytes()[..], b"{}"].concat(), "invalid header length");
        rejects(&file("not json", &[]), "invalid JSON in header");
        rejects(&file(one, &[0; 7]), "cut short");
        rejects(&file(one, &[0; 9]), "longer than its header");
        rejects(&file(&one.replace("[2]", "[3]"), &[0; 8]), "does not fit its bytes");
        rejects(&file(&one.replace("[2]", "[4611686018427387904,8]"), &[0; 8]), "beyond any file");
        let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        rejects(&file(overlap, &[0; 12]), "b overlaps");
        let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        rejects(&file(twice, &[0; 8]), "a overlaps another tensor, or leaves a gap");
    }
}
