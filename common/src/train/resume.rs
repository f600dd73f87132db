//! Saves inside an unfinished checkpoint: `X.part/step-N/`, each renamed into place whole; the last two are kept.
//!
//! `state.json` holds the step, the digest of what the run is (recipe, inputs), the compute path, and the lengths of
//! the files.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::optimizer::Moments;
use crate::compute::backend::Backend;
use crate::error::{Error, Result};
use crate::format::atomic::{FileDigest, OutputFile, PartDir, sync_dir, write_file};
use crate::format::safetensors::{Spec, TensorFile, TensorWriter};
use crate::format::tensor::Dtype;
use crate::model::params::{ParamSpec, Params};
use crate::stage::checkpoint::{OPTIMIZER, TRAINED};

const STATE: &str = "state.json";
const KEPT: usize = 2;
/// A save that is not whole yet.
const WRITING: &str = "saving";

#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    pub step: u64,
    /// Digest of recipe and inputs.
    pub making: String,
    pub compute_path: String,
}

/// The saves of one unfinished run.
pub struct Saves<'a> {
    part: &'a PartDir,
    making: String,
}

impl<'a> Saves<'a> {
    pub fn new(part: &'a PartDir, making: String) -> Saves<'a> {
        Saves { part, making }
    }

    /// The newest save, if there is one. Saves of another recipe or other inputs are an error.
    pub fn latest(&self) -> Result<Option<(PathBuf, State)>> {
        let Some(dir) = self.dirs()?.pop() else { return Ok(None) };
        let path = dir.join(STATE);
        let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|e| Error::input(&path, format!("not a saved state ({e})"), "one", "start over with --force"))?;
        if state.making != self.making {
            return Err(other_run(self.part.path()));
        }
        Ok(Some((dir, state)))
    }

    /// Directories step-N by ascending N.
    fn dirs(&self) -> Result<Vec<PathBuf>> {
        let part = self.part.path();
        let mut found = Vec::new();
        for entry in fs::read_dir(part).map_err(Error::io(part, "read"))? {
            let path = entry.map_err(Error::io(part, "read"))?.path();
            let step = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("step-"));
            if let Some(step) = step.and_then(|s| s.parse::<u64>().ok()) {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    pub fn save<B: Backend>(&self, backend: &B, step: u64, params: &Params<B>, moments: &Moments<B>) -> Result<()> {
        let done = self.part.join(&format!("step-{step}"));
        if done.exists() {
            return Ok(());
        }
        let writing = self.part.join(WRITING);
        if writing.exists() {
            fs::remove_dir_all(&writing).map_err(Error::io(&writing, "remove"))?;
        }
        fs::create_dir(&writing).map_err(Error::io(&writing, "create"))?;
        write_trained(backend, &writing.join(TRAINED), params)?;
        write_moments(backend, &writing.join(OPTIMIZER), params, moments)?;
        let state = State { step, making: self.making.clone(), compute_path: backend.path() };
        write_file(&writing.join(STATE), &serde_json::to_vec(&state).expect("plain JSON"))?;
        sync_dir(&writing)?;
        fs::rename(&writing, &done).map_err(Error::io(&done, "create"))?;
        self.part.keep();
        sync_dir(self.part.path())?;
        let mut dirs = self.dirs()?;
        while dirs.len() > KEPT {
            let old = dirs.remove(0);
            fs::remove_dir_all(&old).map_err(Error::io(&old, "remove"))?;
        }
        Ok(())
    }
}

/// What to say of an unfinished run that is not the one asked for.
pub fn other_run(part: &Path) -> Error {
    Error::usage(
        format!("{}: an unfinished run with another recipe or other inputs, expected the same", part.display()),
        "give the same arguments to go on, or --force to start over",
    )
}

pub fn write_trained<B: Backend>(backend: &B, path: &Path, params: &Params<B>) -> Result<FileDigest> {
    let named = params.specs.iter().zip(&params.values).map(|(s, v)| (s.name.clone(), s, v));
    write_buffers(backend, path, named)
}

pub fn write_moments<B: Backend>(
    backend: &B,
    path: &Path,
    params: &Params<B>,
    moments: &Moments<B>,
) -> Result<FileDigest> {
    let m = params.specs.iter().zip(&moments.m).map(|(s, v)| (format!("{}.m", s.name), s, v));
    let v = params.specs.iter().zip(&moments.v).map(|(s, v)| (format!("{}.v", s.name), s, v));
    write_buffers(backend, path, m.chain(v))
}

fn write_buffers<'a, B: Backend + 'a>(
    backend: &B,
    path: &Path,
    buffers: impl Iterator<Item = (String, &'a ParamSpec, &'a B::Buffer)>,
) -> Result<FileDigest> {
    let all: std::collections::BTreeMap<String, (&ParamSpec, &B::Buffer)> =
        buffers.map(|(name, spec, buffer)| (name, (spec, buffer))).collect();
    let specs = all.iter().map(|(name, (spec, _))| Spec::new(name, Dtype::F32, spec.shape.clone())).collect();
    let mut writer = TensorWriter::create(OutputFile::create(path)?, specs, &[])?;
    for spec in writer.order().to_vec() {
        let values = backend.download(all[&spec.name].1)?;
        writer.put(&spec.name, bytemuck::cast_slice(&values))?;
    }
    writer.finish()
}

/// Trained tensors of a save, in place of the model's start values.
pub fn load_trained<B: Backend>(backend: &B, path: &Path, params: &mut Params<B>) -> Result<()> {
    let file = TensorFile::open(path)?;
    for (spec, value) in params.specs.iter().zip(&mut params.values) {
        *value = backend.upload(&file.expect(&spec.name, Dtype::F32, &spec.shape)?.to_f32())?;
    }
    Ok(())
}

pub fn load_moments<B: Backend>(backend: &B, path: &Path, params: &Params<B>) -> Result<Moments<B>> {
    let file = TensorFile::open(path)?;
    let read = |suffix: &str| {
        let buffers = params.specs.iter().map(|spec| {
            let t = file.expect(&format!("{}.{suffix}", spec.name), Dtype::F32, &spec.shape)?;
            backend.upload(&t.to_f32())
        });
        buffers.collect::<Result<Vec<_>>>()
    };
    Ok(Moments { m: read("m")?, v: read("v")? })
}
