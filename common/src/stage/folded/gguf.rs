//! The whole model as one GGUF: metadata, tokenizer, every linear in the smallest block type that holds its integers
//! exactly, norms as F32, embedding and head as floats.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::digest::{self, Digests};
use super::write::{ROWS, Target};
use crate::data::tokenizer;
use crate::error::{Error, Result};
use crate::format::atomic::{FileDigest, OutputFile};
use crate::format::gguf::blocks::GgmlType;
use crate::format::gguf::encode::{encode, encode_float, exact_type};
use crate::format::gguf::entry::Entry;
use crate::format::gguf::llama_export::{ROPE_FACTORS, gguf_name, metadata, permute_rows, rope_factors};
use crate::format::gguf::writer::{GgufWriter, TensorSpec};
use crate::format::spare::Spare;
use crate::format::tensor::Dtype;
use crate::model::host::HostLinear;
use crate::model::names::{self, LinearName};
use crate::quant::{Integers, LinearGrid, Scheme};
use crate::stage::ahead::{Made, ahead};

/// Why no block type holds rows of `k` weights.
pub(super) fn unfit(k: usize, scheme: Scheme) -> Option<String> {
    if exact_type(scheme, k).is_some() {
        return None;
    }
    Some(match scheme.group_size(k) {
        g if g % 32 != 0 => format!("blocks of ggml hold 32 weights, not groups of {g}"),
        _ => format!("no block type of ggml holds {} bits with a zero point", scheme.bits),
    })
}

/// What becomes one tensor of the file.
enum Part {
    Linear(LinearName),
    Float { name: String, shape: Vec<usize> },
    RopeFactors(Vec<f32>),
}

/// The tensors in model order.
fn parts(target: &Target) -> Result<Vec<(TensorSpec, Part)>> {
    let mut parts = Vec::new();
    let stored = |hf: &str| gguf_name(hf).expect("every tensor of a LLaMA has a name in GGUF");
    for (name, shape) in names::floats(target.source.config()) {
        let ty = float_type(target, &name, target.source.float(&name, &shape)?.dtype);
        if let Some(k) = shape.last().filter(|k| !k.is_multiple_of(ty.block_len())) {
            let cure = "choose another --embedding";
            let found = format!("{name} has rows of {k}, no multiple of a block of {}", ty.name());
            return Err(Error::input(target.from, found, format!("blocks of {}", ty.block_len()), cure));
        }
        let dims: Vec<usize> = shape.iter().rev().copied().collect();
        parts.push((TensorSpec::new(stored(&name), dims, ty), Part::Float { name, shape }));
    }
    for linear in target.linears() {
        let ty = exact_type(target.scheme, linear.k).expect("what the format cannot hold was refused before");
        let name = stored(&format!("{}.weight", linear.name));
        parts.push((TensorSpec::new(name, [linear.k, linear.n], ty), Part::Linear(linear)));
    }
    if let Some(factors) = rope_factors(target.config_json)? {
        parts.push((TensorSpec::new(ROPE_FACTORS, [factors.len()], GgmlType::F32), Part::RopeFactors(factors)));
    }
    Ok(parts)
}

/// Norms are F32 to every engine; embedding and head are what was asked for, else what they are in the model.
fn float_type(target: &Target, name: &str, own: Dtype) -> GgmlType {
    if ![names::EMBEDDING, names::HEAD].contains(&name) {
        return GgmlType::F32;
    }
    target.embedding.unwrap_or(match own {
        Dtype::F16 => GgmlType::F16,
        Dtype::BF16 => GgmlType::Bf16,
        _ => GgmlType::F32,
    })
}

/// Are embedding and head, of this type in the model, written without rounding?
pub(super) fn keeps(target: &Target, own: Dtype) -> bool {
    matches!(
        (target.embedding, own),
        (None | Some(GgmlType::F32), _) | (Some(GgmlType::Bf16), Dtype::BF16) | (Some(GgmlType::F16), Dtype::F16)
    )
}

pub(super) fn bytes(target: &Target) -> Result<u64> {
    Ok(parts(target)?.iter().map(|(spec, _)| spec.bytes() as u64).sum())
}

/// Bytes of the blocks of the quantized linears.
pub(super) fn linear_bytes(target: &Target) -> Result<u64> {
    let linears = parts(target)?.into_iter().filter(|(_, part)| matches!(part, Part::Linear(_)));
    Ok(linears.map(|(spec, _)| spec.bytes() as u64).sum())
}

/// Refuses values, metadata and tokenizers that a GGUF cannot say.
pub(super) fn check(target: &Target) -> Result<()> {
    entries(target, &parts(target)?)?;
    target.linears().iter().try_for_each(|linear| representable(target, linear, &target.source.grid(linear)?))
}

pub(super) fn write(path: &Path, target: &Target, mut each: impl FnMut(u64) + Send) -> Result<(FileDigest, Digests)> {
    let parts = parts(target)?;
    let specs = parts.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = GgufWriter::create(OutputFile::create(path)?, entries(target, &parts)?, specs)?;
    let write = |(spec, _): &(TensorSpec, Part), made: &Made| {
        match made.stored() {
            Some(tensor) => writer.put_float(&spec.name, tensor)?,
            None => writer.put(&spec.name, made.bytes())?,
        }
        each(spec.bytes() as u64);
        Ok(())
    };
    let (digests, spare) = (Mutex::default(), Spare::default());
    let make = |(spec, part): &(TensorSpec, Part), made: &mut Made| make(target, spec, part, made, &spare, &digests);
    ahead(&parts, |(spec, _)| spec.bytes(), make, write)?;
    Ok((writer.finish()?, digests.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

fn entries(target: &Target, parts: &[(TensorSpec, Part)]) -> Result<Vec<(String, Entry)>> {
    let weights = |ty: GgmlType| {
        let of = parts.iter().filter(|(spec, part)| matches!(part, Part::Linear(_)) && spec.ty == ty);
        of.map(|(spec, _)| spec.dims.iter().product::<usize>()).sum::<usize>()
    };
    let linears = parts.iter().filter(|(_, part)| matches!(part, Part::Linear(_)));
    let most = linears.map(|(spec, _)| spec.ty).max_by_key(|ty| weights(*ty)).unwrap_or(GgmlType::F32);
    let mut entries = metadata(target.config_json, target.name, target.scheme, most)?;
    entries.extend(tokenizer::gguf_entries(target.from, target.support, target.config_json)?);
    Ok(entries)
}

fn make(
    target: &Target,
    spec: &TensorSpec,
    part: &Part,
    made: &mut Made,
    spare: &Spare<Vec<u8>>,
    digests: &Mutex<Digests>,
) -> Result<()> {
    match part {
        Part::Float { name, shape } => made.store(target.source.float(name, shape)?),
        Part::RopeFactors(factors) => made.put(encode_float(GgmlType::F32, factors)),
        Part::Linear(linear) => {
            let w = target.source.linear(linear)?;
            let grid = w.grid();
            representable(target, linear, &grid)?;
            let digest = blocks(target, spec.ty, linear, &w, &grid, spare, made.room(spec.bytes())?);
            digests.lock().unwrap_or_else(PoisonError::into_inner).insert(linear.name.clone(), digest);
            w.stored().forget();
        }
    }
    Ok(())
}

/// The blocks of ggml of a linear to `out`, some rows at a time. The digest of the integers.
fn blocks(
    target: &Target,
    ty: GgmlType,
    linear: &LinearName,
    w: &HostLinear,
    grid: &LinearGrid,
    spare: &Spare<Vec<u8>>,
    out: &mut [u8],
) -> u128 {
    let (n, k, scheme) = (linear.n, linear.k, target.scheme);
    let (groups, head) = (scheme.groups(k), rotated(target, linear));
    // Whole heads, since their rows change places.
    let rows = head.map_or(ROWS, |head| ROWS.next_multiple_of(head));
    let trained = w.integers(k);
    let each = out.par_chunks_mut(rows * (out.len() / n)).with_max_len(1).enumerate();
    let make = |codes: &mut Vec<u8>, block, out: &mut [u8]| {
        let (first, rows) = (block * rows, rows.min(n - block * rows));
        codes.resize(rows * k, 0);
        trained.rows(first, codes);
        let digest = digest::of_rows(codes, k);
        let part = |values: &Vec<f32>| values[first * groups..(first + rows) * groups].to_vec();
        let grid = LinearGrid { scale: part(&grid.scale), zero: grid.zero.as_ref().map(part) };
        let mut integers = Integers { codes: std::mem::take(codes), grid };
        if let Some(head) = head {
            integers = permute_rows(&integers, rows / head, rows);
        }
        encode(ty, scheme, k, &integers, out);
        *codes = integers.codes;
        digest
    };
    digest::of_linear(each.map(|(block, out)| spare.lend(|codes| make(codes, block, out))).collect())
}

/// Blocks hold scales as f16.
fn representable(target: &Target, linear: &LinearName, grid: &LinearGrid) -> Result<()> {
    let exact = |s: &f32| half::f16::from_f32(*s).to_f32() == *s;
    let Some(at) = grid.scale.iter().position(|s| !exact(s)) else { return Ok(()) };
    let groups = target.scheme.groups(linear.k);
    let place = format!("row {}, group {}", at / groups, at % groups);
    let why = format!("{}: the scale {:e} of {place} is not exact in F16", linear.name, grid.scale[at]);
    Err(target.cannot_say(why, "scale"))
}

/// Rows of a head, for q and k, whose rows have another order in a GGUF.
fn rotated(target: &Target, linear: &LinearName) -> Option<usize> {
    let config = target.source.config();
    match linear.name.rsplit('.').next() {
        Some("q_proj") => Some(linear.n / config.heads),
        Some("k_proj") => Some(linear.n / config.kv_heads),
        _ => None,
    }
}
