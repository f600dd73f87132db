//! The adapters of a folded model, kept beside its integers as the engines read them: `adapter/`, a PEFT directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::write::{Files, Target};
use crate::error::{Error, Result};
use crate::format::atomic::{OutputFile, PartDir, sync_dir, write_file};
use crate::format::peft::{self, Lora, PeftAdapter};
use crate::format::safetensors::{Spec, TensorWriter};
use crate::model::host::{HostAdapter, HostLinear};
use crate::model::names::LinearName;
use crate::stage::wrapping::{Place, Wrapping};

pub const DIR: &str = "adapter";

/// What `adapter_config.json` says of a wrapped model's adapters; none if it has none.
pub fn lora(wrapping: &Wrapping) -> Option<Lora> {
    let Place::Outside { targets, dropout } = wrapping.place else { return None };
    let modules = targets.modules();
    (wrapping.rank > 0).then_some(Lora { rank: wrapping.rank, alpha: wrapping.alpha, dropout, modules })
}

/// The trained adapter of a linear.
fn trained(target: &Target, linear: &LinearName) -> Result<Option<HostAdapter>> {
    Ok(match target.source.linear(linear)? {
        HostLinear::Codes(w) => w.adapter,
        HostLinear::LowRank(_) | HostLinear::Float(_) => None,
    })
}

/// Of `adapter_model.safetensors`, with the linear of each pair of tensors.
fn specs(target: &Target, lora: &Lora) -> Vec<(LinearName, [Spec; 2])> {
    let has = |linear: &LinearName| lora.modules.iter().any(|module| linear.name.ends_with(module.as_str()));
    let linears = target.linears().into_iter().filter(has);
    let specs = |l: &LinearName| peft::specs(&l.name, l.n, l.k, lora.rank, target.float_dtype());
    linears.map(|linear| (linear.clone(), specs(&linear))).collect()
}

/// Bytes of its tensors.
pub fn bytes(target: &Target, lora: &Lora) -> u64 {
    specs(target, lora).iter().flat_map(|(_, specs)| specs).map(|spec| spec.bytes() as u64).sum()
}

/// Writes the directory, in the type that the model computes in.
pub fn write(part: &PartDir, target: &Target, lora: &Lora) -> Result<Files> {
    let dir = part.join(DIR);
    fs::create_dir_all(&dir).map_err(Error::io(&dir, "create"))?;
    let all = specs(target, lora);
    let specs = all.iter().flat_map(|(_, specs)| specs.clone()).collect();
    let mut writer =
        TensorWriter::create(OutputFile::create(&dir.join(peft::WEIGHTS))?, specs, &[("format", "pt".to_string())])?;
    let places: BTreeMap<&String, (&LinearName, bool)> =
        all.iter().flat_map(|(linear, [a, b])| [(&a.name, (linear, true)), (&b.name, (linear, false))]).collect();
    for spec in writer.order().to_vec() {
        let (linear, first) = places[&spec.name];
        let Some(HostAdapter { a, b, .. }) = trained(target, linear)? else {
            unreachable!("{} is one of the targets", linear.name)
        };
        // PEFT's lora_A is B here.
        let values = if first { b } else { a };
        let bytes = peft::encode(&values, spec.dtype).map_err(|at| {
            target.cannot_say(format!("{}: {} is too large for F16", spec.name, values[at]), "adapter")
        })?;
        writer.put(&spec.name, &bytes)?;
    }
    let mut files = Files::new();
    files.insert(format!("{DIR}/{}", peft::WEIGHTS), writer.finish()?);
    let config = format!("{:#}\n", peft::config(lora, None));
    files.insert(format!("{DIR}/{}", peft::CONFIG), write_file(&dir.join(peft::CONFIG), config.as_bytes())?);
    sync_dir(&dir)?;
    Ok(files)
}

/// Reads it back by the rules of `peft`: found, expected of what differs first.
pub fn differs(dir: &Path, target: &Target, lora: &Lora) -> Result<Option<(String, String)>> {
    let dir = dir.join(DIR);
    let Some(written) = PeftAdapter::open(&dir)? else {
        return Ok(Some(("no adapter reads back".into(), "the one that was trained".into())));
    };
    if written.lora != *lora {
        return Ok(Some((format!("its adapter reads back as {:?}", written.lora), format!("{lora:?}"))));
    }
    let mut left = written.names().count();
    for linear in target.linears() {
        let (got, want) = (written.factors(&linear.name, linear.n, linear.k)?, trained(target, &linear)?);
        left -= 2 * usize::from(got.is_some());
        let same = match (got, want) {
            (None, None) => true,
            (Some([b, a]), Some(want)) => {
                let dtype = target.float_dtype();
                // As they were rounded, since the values themselves are in f32.
                let same = |got: &[f32], want: &[f32]| peft::encode(got, dtype) == peft::encode(want, dtype);
                same(&a, &want.a) && same(&b, &want.b)
            }
            _ => false,
        };
        if !same {
            return Ok(Some((format!("{} reads back with another adapter", linear.name), "the trained one".into())));
        }
    }
    let more = || (format!("its adapter reads back with {left} more tensors"), "those of the linears".into());
    Ok((left > 0).then(more))
}
