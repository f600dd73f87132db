//! Saves inside an unfinished checkpoint: `X.part/step-N/`, each renamed into place whole; the last two are kept.
//!
//! `state.json` holds the step, the digest of what the run is (recipe, inputs), the compute path, and the lengths of
//! the files.
//!
//! From a device with memory of its own the values are copied to the host, and a thread writes them while training goes on.
//! It is waited for before the next save, before anything is said of saves, and at the end.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};

use crate::compute::backend::{Backend, Moments};
use crate::error::{Error, Result};
use crate::format::atomic::{FileDigest, OutputFile, PartDir, sync_dir, write_file};
use crate::format::safetensors::{Spec, TensorFile, TensorWriter};
use crate::format::tensor::Dtype;
use crate::model::params::{ParamSpec, Params};
use crate::stage::checkpoint::{OPTIMIZER, SAVE, TRAINED};

use super::recipe::MomentType;

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
    /// The save that a thread is writing.
    writing: RefCell<Option<JoinHandle<Result<()>>>>,
}

impl<'a> Saves<'a> {
    pub fn new(part: &'a PartDir, making: String) -> Saves<'a> {
        Saves { part, making, writing: RefCell::default() }
    }

    /// The newest save, if there is one. Saves of another recipe or other inputs are an error.
    pub fn latest(&self) -> Result<Option<(PathBuf, State)>> {
        self.wait()?;
        let Some(dir) = dirs(self.part.path())?.pop() else { return Ok(None) };
        let path = dir.join(STATE);
        let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|e| Error::input(&path, format!("not a saved state ({e})"), "one", "start over with --force"))?;
        if state.making != self.making {
            return Err(other_run(self.part.path()));
        }
        Ok(Some((dir, state)))
    }

    /// Saves what was trained up to `step`, or begins to.
    pub fn save<B: Backend>(&self, backend: &B, step: u64, params: &Params<B>, moments: &Moments<B>) -> Result<()> {
        self.wait()?;
        if self.part.join(&directory(step)).exists() {
            return Ok(());
        }
        let state = State { step, making: self.making.clone(), compute_path: backend.path() };
        let (trained, moments) = (of_params(params), of_moments(params, moments));
        let part = self.part.path().to_path_buf();
        if backend.peak_memory().is_none() {
            // A copy would be as much memory again.
            let save = Save { part, state, files: [(TRAINED, trained), (OPTIMIZER, moments)] };
            return self.keep_if_saved(save.write(|buffer| Ok(buffer.download(backend)?.into())));
        }
        let files = [(TRAINED, copy(backend, trained)?), (OPTIMIZER, copy(backend, moments)?)];
        let save = Arc::new(Save { part, state, files });
        let theirs = save.clone();
        match thread::Builder::new().spawn(move || theirs.write(|values| Ok(values.into()))) {
            Ok(writing) => *self.writing.borrow_mut() = Some(writing),
            // Without a thread it is written now.
            Err(_) => return self.keep_if_saved(save.write(|values| Ok(values.into()))),
        }
        Ok(())
    }

    /// What became of the save that is being written, if that is known by now.
    pub fn check(&self) -> Result<()> {
        let known = self.writing.borrow().as_ref().is_some_and(JoinHandle::is_finished);
        if known { self.wait() } else { Ok(()) }
    }

    /// Waits until what was to be saved is.
    pub fn wait(&self) -> Result<()> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.keep_if_saved(written)
    }

    /// The directory outlives a failure as soon as it holds a save.
    fn keep_if_saved(&self, written: Result<()>) -> Result<()> {
        if dirs(self.part.path()).is_ok_and(|dirs| !dirs.is_empty()) {
            self.part.keep();
        }
        written
    }
}

impl Drop for Saves<'_> {
    /// Whoever could be told has waited before.
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take() {
            let _ = self.keep_if_saved(writing.join().unwrap_or(Ok(())));
        }
    }
}

fn directory(step: u64) -> String {
    format!("{SAVE}{step}")
}

/// Directories step-N by ascending N.
fn dirs(part: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(part).map_err(Error::io(part, "read"))? {
        let path = entry.map_err(Error::io(part, "read"))?.path();
        let step = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(SAVE));
        if let Some(step) = step.and_then(|s| s.parse::<u64>().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Tensors of a file: shape, and whatever has their values.
type Tensors<T> = BTreeMap<String, (Vec<usize>, T)>;

struct Save<T> {
    part: PathBuf,
    state: State,
    files: [(&'static str, Tensors<T>); 2],
}

impl<T> Save<T> {
    /// Writes it beside the others and renames it into its place, whole. Older ones than the last two go.
    fn write(&self, values: impl Fn(&T) -> Result<Cow<[f32]>>) -> Result<()> {
        let (writing, done) = (self.part.join(WRITING), self.part.join(directory(self.state.step)));
        if writing.exists() {
            fs::remove_dir_all(&writing).map_err(Error::io(&writing, "remove"))?;
        }
        fs::create_dir(&writing).map_err(Error::io(&writing, "create"))?;
        for (file, tensors) in &self.files {
            write_tensors(&writing.join(file), tensors, &values)?;
        }
        write_file(&writing.join(STATE), &serde_json::to_vec(&self.state).expect("plain JSON"))?;
        sync_dir(&writing)?;
        fs::rename(&writing, &done).map_err(Error::io(&done, "create"))?;
        sync_dir(&self.part)?;
        let mut dirs = dirs(&self.part)?;
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
    write_tensors(path, &of_params(params), |held| Ok(held.download(backend)?.into()))
}

pub fn write_moments<B: Backend>(
    backend: &B,
    path: &Path,
    params: &Params<B>,
    moments: &Moments<B>,
) -> Result<FileDigest> {
    write_tensors(path, &of_moments(params, moments), |held| Ok(held.download(backend)?.into()))
}

/// What the device holds of a tensor. In files all are f32, which changes no value.
enum Held<'a, B: Backend> {
    F32(&'a B::Buffer),
    Bf16(&'a B::Half),
}

impl<B: Backend> Held<'_, B> {
    fn download(&self, backend: &B) -> Result<Vec<f32>> {
        match self {
            Held::F32(buffer) => backend.download(buffer),
            Held::Bf16(half) => backend.download_half(half),
        }
    }
}

fn of_params<B: Backend>(params: &Params<B>) -> Tensors<Held<'_, B>> {
    let rows = params.specs.iter().zip(&params.values);
    rows.map(|(spec, value)| (spec.name.clone(), (spec.shape.clone(), Held::F32(value)))).collect()
}

fn of_moments<'a, B: Backend>(params: &Params<B>, moments: &'a Moments<B>) -> Tensors<Held<'a, B>> {
    let [m, v]: [Vec<Held<B>>; 2] = match moments {
        Moments::F32 { m, v } => [m, v].map(|of| of.iter().map(Held::F32).collect()),
        Moments::Bf16 { m, v } => [m, v].map(|of| of.iter().map(Held::Bf16).collect()),
    };
    let mut tensors = Tensors::new();
    for (suffix, rows) in [("m", m), ("v", v)] {
        for (spec, held) in params.specs.iter().zip(rows) {
            tensors.insert(format!("{}.{suffix}", spec.name), (spec.shape.clone(), held));
        }
    }
    tensors
}

fn copy<B: Backend>(backend: &B, tensors: Tensors<Held<B>>) -> Result<Tensors<Vec<f32>>> {
    tensors.into_iter().map(|(name, (shape, held))| Ok((name, (shape, held.download(backend)?)))).collect()
}

fn write_tensors<T>(
    path: &Path,
    tensors: &Tensors<T>,
    values: impl Fn(&T) -> Result<Cow<[f32]>>,
) -> Result<FileDigest> {
    let specs = tensors.iter().map(|(name, (shape, _))| Spec::new(name, Dtype::F32, shape.clone())).collect();
    let mut writer = TensorWriter::create(OutputFile::create(path)?, specs, &[])?;
    for spec in writer.order().to_vec() {
        writer.put(&spec.name, bytemuck::cast_slice(&values(&tensors[&spec.name].1)?))?;
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

pub fn load_moments<B: Backend>(backend: &B, of: MomentType, path: &Path, params: &Params<B>) -> Result<Moments<B>> {
    let file = TensorFile::open(path)?;
    let read = |spec: &ParamSpec, suffix: &str| {
        Ok(file.expect(&format!("{}.{suffix}", spec.name), Dtype::F32, &spec.shape)?.to_f32())
    };
    let f32s = |suffix| params.specs.iter().map(|spec| backend.upload(&read(spec, suffix)?)).collect::<Result<_>>();
    let halves =
        |suffix| params.specs.iter().map(|spec| backend.upload_half(&read(spec, suffix)?)).collect::<Result<_>>();
    Ok(match of {
        MomentType::F32 => Moments::F32 { m: f32s("m")?, v: f32s("v")? },
        MomentType::Bf16 => Moments::Bf16 { m: halves("m")?, v: halves("v")? },
    })
}
