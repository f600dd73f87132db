//! A streaming writer of GGUF version 3 (docs/gguf.md of ggml): header, metadata and tensor infos first, then the
//! tensors, each at a multiple of 32 bytes. `general.alignment` is left out, 32 being its default.

use std::collections::HashSet;

use super::blocks::GgmlType;
use super::encode::encode_float;
use super::entry::Entry;
use crate::error::{Error, Result};
use crate::format::atomic::{FileDigest, OutputFile};
use crate::format::tensor::{Dtype, Tensor, decode_f32};

const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;
const F16_MAX: f32 = 65504.0;
/// ggml keeps names in 64 bytes, the last of them 0.
const MAX_NAME: usize = 63;

/// Type and shape of a tensor to be written.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    pub name: String,
    /// ne0 first: K, then N of a linear.
    pub dims: Vec<usize>,
    pub ty: GgmlType,
}

impl TensorSpec {
    pub fn new(name: impl Into<String>, dims: impl Into<Vec<usize>>, ty: GgmlType) -> TensorSpec {
        TensorSpec { name: name.into(), dims: dims.into(), ty }
    }

    pub fn bytes(&self) -> usize {
        self.dims.iter().product::<usize>() / self.ty.block_len() * self.ty.block_bytes()
    }
}

/// Writes tensors one after another, in the order of the specs; memory does not grow with the file.
pub struct GgufWriter {
    file: OutputFile,
    specs: Vec<TensorSpec>,
    next: usize,
}

impl GgufWriter {
    /// A key or a name that comes twice, or a row that is no whole number of blocks, is a mistake of the caller.
    pub fn create(
        mut file: OutputFile,
        metadata: Vec<(String, Entry)>,
        tensors: Vec<TensorSpec>,
    ) -> Result<GgufWriter> {
        let mut seen = HashSet::new();
        metadata.iter().for_each(|(key, _)| assert!(seen.insert(key.as_str()), "metadata {key} twice"));
        seen.clear();
        tensors.iter().for_each(|t| assert!(seen.insert(t.name.as_str()), "tensor {} twice", t.name));
        file.write(&header(&metadata, &tensors))?;
        Ok(GgufWriter { file, specs: tensors, next: 0 })
    }

    pub fn order(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The next tensor of [`GgufWriter::order`].
    pub fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let spec = &self.specs[self.next];
        assert!(spec.name == name && spec.bytes() == bytes.len(), "{name}: tensors are written in order and whole");
        self.next += 1;
        self.file.write(bytes)?;
        self.file.write(&[0; ALIGNMENT][..padding(bytes.len())])
    }

    /// The next tensor of [`GgufWriter::order`], a floating-point tensor in its announced type.
    pub fn put_float(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let spec = &self.specs[self.next];
        assert!(spec.name == name && spec.dims.iter().product::<usize>() == tensor.len(), "{name}: in order and whole");
        let (ty, bytes) = (spec.ty, spec.bytes());
        self.next += 1;
        let size = tensor.dtype.bitsize() / 8;
        let same = matches!(
            (ty, tensor.dtype),
            (GgmlType::F32, Dtype::F32) | (GgmlType::F16, Dtype::F16) | (GgmlType::Bf16, Dtype::BF16)
        );
        let mut values = Vec::new();
        tensor.for_each_part(|part| {
            if same {
                return self.file.write(part);
            }
            values.resize(part.len() / size, 0.0);
            decode_f32(part, tensor.dtype, &mut values);
            if let Some(large) =
                values.iter().find(|v| ty != GgmlType::F32 && ty != GgmlType::Bf16 && v.abs() > F16_MAX)
            {
                let what = format!("{name} holds {large}, beyond what {} can say", ty.name());
                return Err(Error::usage(what, "choose --embedding bf16"));
            }
            self.file.write(&encode_float(ty, &values))
        })?;
        self.file.write(&[0; ALIGNMENT][..padding(bytes)])
    }

    pub fn finish(self) -> Result<FileDigest> {
        assert_eq!(self.next, self.specs.len(), "every tensor that was announced is written");
        self.file.finish()
    }
}

fn padding(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT) - len
}

fn header(metadata: &[(String, Entry)], tensors: &[TensorSpec]) -> Vec<u8> {
    let mut b = b"GGUF".to_vec();
    b.extend(VERSION.to_le_bytes());
    b.extend((tensors.len() as u64).to_le_bytes());
    b.extend((metadata.len() as u64).to_le_bytes());
    for (key, entry) in metadata {
        put_text(&mut b, key);
        put_entry(&mut b, entry);
    }
    let mut offset = 0;
    for t in tensors {
        assert!(t.name.len() <= MAX_NAME, "{}: a name of at most {MAX_NAME} bytes", t.name);
        assert!(t.dims[0].is_multiple_of(t.ty.block_len()), "{}: rows of whole blocks", t.name);
        put_text(&mut b, &t.name);
        b.extend((t.dims.len() as u32).to_le_bytes());
        t.dims.iter().for_each(|d| b.extend((*d as u64).to_le_bytes()));
        b.extend(t.ty.code().to_le_bytes());
        b.extend((offset as u64).to_le_bytes());
        offset += t.bytes() + padding(t.bytes());
    }
    b.resize(b.len() + padding(b.len()), 0);
    b
}

fn put_text(b: &mut Vec<u8>, text: &str) {
    b.extend((text.len() as u64).to_le_bytes());
    b.extend(text.as_bytes());
}

fn put_entry(b: &mut Vec<u8>, entry: &Entry) {
    const ARRAY: u32 = 9;
    let scalar = |b: &mut Vec<u8>, ty: u32| b.extend(ty.to_le_bytes());
    let array = |b: &mut Vec<u8>, ty: u32, len: usize| {
        b.extend(ARRAY.to_le_bytes());
        b.extend(ty.to_le_bytes());
        b.extend((len as u64).to_le_bytes());
    };
    match entry {
        Entry::U32(v) => {
            scalar(b, 4);
            b.extend(v.to_le_bytes());
        }
        Entry::F32(v) => {
            scalar(b, 6);
            b.extend(v.to_le_bytes());
        }
        Entry::Bool(v) => {
            scalar(b, 7);
            b.push(*v as u8);
        }
        Entry::Text(v) => {
            scalar(b, 8);
            put_text(b, v);
        }
        Entry::Texts(all) => {
            array(b, 8, all.len());
            all.iter().for_each(|v| put_text(b, v));
        }
        Entry::Floats(all) => {
            array(b, 6, all.len());
            all.iter().for_each(|v| b.extend(v.to_le_bytes()));
        }
        Entry::Ints(all) => {
            array(b, 5, all.len());
            all.iter().for_each(|v| b.extend(v.to_le_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::testing::{self, info, kv, kv_ints, kv_text, kv_texts, kv_uint};
    use crate::format::gguf::{Gguf, Value};

    fn write(metadata: Vec<(String, Entry)>, tensors: &[(TensorSpec, Vec<u8>)]) -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let specs = tensors.iter().map(|(spec, _)| spec.clone()).collect();
        let mut w = GgufWriter::create(OutputFile::create(&path).unwrap(), metadata, specs).unwrap();
        tensors.iter().for_each(|(spec, bytes)| w.put(&spec.name, bytes).unwrap());
        let digest = w.finish().unwrap();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(digest.bytes, bytes.len() as u64);
        (dir, bytes)
    }

    fn all_kinds() -> Vec<(String, Entry)> {
        let entries = [
            Entry::U32(7),
            Entry::F32(1e-5),
            Entry::Bool(true),
            Entry::Text("gänse".into()),
            Entry::Texts(vec!["a".into(), String::new(), "bc".into()]),
            Entry::Floats(vec![-1.5, 0.0]),
            Entry::Ints(vec![-3, 1]),
        ];
        entries.into_iter().enumerate().map(|(i, e)| (format!("k{i}"), e)).collect()
    }

    /// The layout stated a second time, by the helpers that the tests of the reader use.
    #[test]
    fn bytes_are_those_of_the_format() {
        let tensors = [
            (TensorSpec::new("a", [3], GgmlType::F32), vec![7; 12]),
            (TensorSpec::new("b", [32, 2], GgmlType::Q4_0), vec![9; 36]),
        ];
        let (_dir, got) = write(all_kinds(), &tensors);
        let floats = [&6u32.to_le_bytes()[..], &2u64.to_le_bytes(), &(-1.5f32).to_le_bytes(), &0f32.to_le_bytes()];
        let entries = [
            kv_uint("k0", 7),
            kv("k1", 6, &1e-5f32.to_le_bytes()),
            kv("k2", 7, &[1]),
            kv_text("k3", "gänse"),
            kv_texts("k4", &["a", "", "bc"]),
            kv("k5", 9, &floats.concat()),
            kv_ints("k6", &[-3, 1]),
        ];
        let infos = [info("a", &[3], 0, 0), info("b", &[32, 2], 2, 32)];
        let mut want = testing::header(3, 2, 7, &[entries.concat(), infos.concat()]);
        want.resize(want.len().next_multiple_of(32), 0);
        want.extend([[7u8; 12].as_slice(), &[0; 20], &[9; 36], &[0; 28]].concat());
        assert_eq!(got, want);
    }

    #[test]
    fn the_reader_gives_back_what_was_written() {
        let values: Vec<u8> = [1.5f32, -2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let (dir, _) = write(all_kinds(), &[(TensorSpec::new("a", [3, 1], GgmlType::F32), values)]);
        let g = Gguf::open(&dir.path().join("model.gguf")).unwrap();
        assert_eq!((g.uint("k0").unwrap(), g.float("k1").unwrap()), (Some(7), Some(1e-5)));
        assert_eq!((g.boolean("k2").unwrap(), g.text("k3").unwrap()), (Some(true), Some("gänse")));
        assert_eq!(g.get("k4"), Some(&Value::Texts(vec!["a".into(), "".into(), "bc".into()])));
        assert_eq!((g.floats("k5").unwrap(), g.ints("k6").unwrap()), (Some(&[-1.5, 0.0][..]), Some(&[-3, 1][..])));
        let mut out = Vec::new();
        g.read("a", &mut out).unwrap();
        assert_eq!((out, g.info("a").unwrap().shape()), (vec![1.5, -2.0, 3.0], vec![1, 3]));
    }

    #[test]
    #[should_panic(expected = "metadata k0 twice")]
    fn a_key_comes_once() {
        write([all_kinds(), all_kinds()].concat(), &[]);
    }

    #[test]
    #[should_panic(expected = "tensor a twice")]
    fn a_name_comes_once() {
        let a = (TensorSpec::new("a", [1], GgmlType::F32), vec![0; 4]);
        write(vec![], &[a.clone(), a]);
    }
}
