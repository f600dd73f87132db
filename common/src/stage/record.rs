//! `stage.json`: what a directory is, what it was made from, and how.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{checkpoint, rounded};
use crate::error::{Error, Result};
use crate::format::atomic::{FileDigest, PartDir, write_file};

pub const FILE: &str = "stage.json";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Scales,
    Wrapped,
    Shards,
    Checkpoint,
    Folded,
}

impl Kind {
    /// Raised when the files of the stage change: shards of format 2 carry all of a teacher's answers, of format 3 a
    /// selection of them; checkpoints of format 2 have another loss than cross entropy; wrapped models of format 2 have their
    /// factors beside fixed integers, and folded ones keep them.
    pub const fn format_version(self) -> u32 {
        match self {
            Kind::Shards => 3,
            Kind::Checkpoint | Kind::Wrapped | Kind::Folded => 2,
            Kind::Scales => 1,
        }
    }

    pub const fn tool(self) -> &'static str {
        match self {
            Kind::Scales => "ptq-init",
            Kind::Wrapped => "lr-wrap",
            Kind::Shards => "shard",
            Kind::Checkpoint => "qat-step",
            Kind::Folded => "fold",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Scales => "scales",
            Kind::Wrapped => "wrapped",
            Kind::Shards => "shards",
            Kind::Checkpoint => "checkpoint",
            Kind::Folded => "folded",
        })
    }
}

/// What a stage was made from. The path is relative to the stage's directory; the digest says whether it still is
/// the same: of the input's `stage.json`, or a fingerprint of a model or a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub role: String,
    pub path: PathBuf,
    pub digest: String,
}

/// The contents of `stage.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub kind: Kind,
    pub format_version: u32,
    pub tool: String,
    pub tool_version: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scheme: Option<String>,
    /// What decides the contents, besides the inputs.
    pub arguments: Map<String, Value>,
    pub inputs: Vec<Input>,
    /// Facts about the contents.
    #[serde(skip_serializing_if = "Map::is_empty", default)]
    pub details: Map<String, Value>,
    pub files: BTreeMap<String, FileDigest>,
}

impl Record {
    pub fn new(kind: Kind, scheme: Option<String>, arguments: Value, inputs: Vec<Input>) -> Record {
        let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
        Record {
            kind,
            format_version: kind.format_version(),
            tool: kind.tool().to_string(),
            tool_version: env!("CARGO_PKG_VERSION").to_string(),
            scheme,
            arguments,
            inputs,
            details: Map::new(),
            files: BTreeMap::new(),
        }
    }

    /// In an older format, which holds all of it.
    pub fn in_format(self, format_version: u32) -> Record {
        Record { format_version, ..self }
    }

    /// Digest of what it is made from, and by what.
    pub fn making(&self) -> String {
        let mut hash = blake3::Hasher::new();
        let by = (&self.tool_version, self.format_version, &self.scheme, &self.arguments);
        hash.update(serde_json::to_string(&by).expect("arguments are plain JSON").as_bytes());
        for input in &self.inputs {
            hash.update(input.digest.as_bytes());
        }
        hash.finalize().to_hex().to_string()
    }

    /// Made by the same tool from the same inputs with the same arguments as `want`? If not: found, expected.
    pub fn same_making(&self, want: &Record) -> Result<(), (String, String)> {
        if self.kind != want.kind {
            return Err((format!("a {:?} directory", self.kind.to_string()), format!("{:?}", want.kind.to_string())));
        }
        if self.format_version != want.format_version {
            let format = |r: &Record| format!("{} format {}", r.kind, r.format_version);
            return Err((format(self), format(want)));
        }
        let keys: Vec<&String> = want.arguments.keys().chain(self.arguments.keys()).collect();
        for key in keys {
            if self.arguments.get(key) != want.arguments.get(key) {
                let value = |r: &Record| r.arguments.get(key).map_or("none".to_string(), |v| v.to_string());
                return Err((format!("made with {key} {}", value(self)), value(want)));
            }
        }
        for (i, input) in want.inputs.iter().enumerate() {
            if self.inputs.get(i).is_none_or(|own| (&own.role, &own.digest) != (&input.role, &input.digest)) {
                return Err((format!("made from another {}", input.role), "the one given now".to_string()));
            }
        }
        if self.inputs.len() != want.inputs.len() {
            return Err(("made from more inputs".to_string(), "those given now".to_string()));
        }
        Ok(())
    }
}

/// A complete stage directory.
#[derive(Debug, Clone)]
pub struct Stage {
    pub dir: PathBuf,
    pub record: Record,
    /// blake3 of `stage.json`, which holds the digests of all files.
    pub digest: String,
}

impl Stage {
    /// Opens `dir`, which must be one of `kinds`.
    pub fn open(dir: &Path, kinds: &[Kind]) -> Result<Stage> {
        let expected = kinds.iter().map(|k| format!("{:?}", k.to_string())).collect::<Vec<_>>().join(" or ");
        let first = kinds[0].tool();
        if !dir.join(FILE).is_file() {
            let part = PathBuf::from(format!("{}.part", dir.display()));
            let (found, cure) = if part.is_dir() {
                ("it is not finished".to_string(), format!("run {first} again with the same arguments"))
            } else if dir.exists() {
                (format!("it holds no {FILE}"), format!("give a directory that {first} made"))
            } else {
                ("does not exist".to_string(), format!("run {first} first"))
            };
            return Err(Error::input(dir, found, expected, cure));
        }
        let stage = Stage::read(dir)?;
        if !kinds.contains(&stage.record.kind) {
            let found = format!("this is {:?}", stage.record.kind.to_string());
            return Err(Error::input(dir, found, expected, format!("run {first} first")));
        }
        Ok(stage)
    }

    /// Reads any stage directory.
    pub fn read(dir: &Path) -> Result<Stage> {
        let path = dir.join(FILE);
        let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
        let bad = |found: String| Error::input(&path, found, "a whole stage.json", "run the stage again with --force");
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| bad(format!("not JSON ({e})")))?;
        let version = value["format_version"].as_u64().ok_or_else(|| bad("no format_version".into()))?;
        let kind: Kind = serde_json::from_value(value["kind"].clone()).map_err(|_| {
            let cure = "use the newer lrqat that wrote it";
            Error::input(&path, format!("kind {}", value["kind"]), "one that this version knows", cure)
        })?;
        if version > kind.format_version() as u64 {
            return Err(Error::input(
                dir,
                format!("format version {version} of \"{kind}\""),
                format!("at most {}", kind.format_version()),
                "use the newer lrqat that wrote it, or run the stage again",
            ));
        }
        let record = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
        Ok(Stage { dir: dir.to_path_buf(), record, digest: blake3::hash(&bytes).to_hex().to_string() })
    }

    /// This stage as the input of another one in `out`.
    pub fn as_input(&self, role: &str, out: &Path) -> Result<Input> {
        Ok(Input { role: role.into(), path: relative_path(&self.dir, out)?, digest: self.digest.clone() })
    }

    /// The input of this role as it was recorded.
    pub fn input(&self, role: &str) -> Result<&Input> {
        self.record.inputs.iter().find(|i| i.role == role).ok_or_else(|| {
            Error::input(
                &self.dir,
                format!("its {FILE} names no {role}"),
                "the path of one",
                format!("run {} again with --force", self.record.tool),
            )
        })
    }

    /// Where the input of this role lies.
    pub fn input_path(&self, role: &str) -> Result<(PathBuf, &Input)> {
        let input = self.input(role)?;
        let path = self.dir.join(&input.path);
        if !path.exists() {
            return Err(Error::input(
                &self.dir,
                format!("its {role}, {}, is gone", without_dots(&path).display()),
                "it where it was, relative to this directory",
                "put it back, or move both together",
            ));
        }
        Ok((tidy(&path), input))
    }

    /// Opens the input of this role and checks that it is the one this stage was made from.
    pub fn open_input(&self, role: &str, kind: Kind) -> Result<Stage> {
        let (path, input) = self.input_path(role)?;
        let stage = Stage::open(&path, &[kind])?;
        if stage.digest != input.digest {
            return Err(Error::input(
                &self.dir,
                format!("its {role}, {}, was made again since", path.display()),
                "the one it was made from",
                format!("run {} again with --force", self.record.tool),
            ));
        }
        Ok(stage)
    }

    /// Hashes every file again (`--verify`).
    pub fn verify(&self) -> Result<()> {
        for (name, expected) in &self.record.files {
            let path = self.dir.join(name);
            let mut hash = blake3::Hasher::new();
            hash.update_mmap_rayon(&path).map_err(Error::io(&path, "read"))?;
            if hash.finalize().to_hex().as_str() != expected.blake3 {
                return Err(Error::input(
                    &path,
                    "its bytes changed since it was written",
                    format!("blake3 {}", expected.blake3),
                    format!("run {} again with --force", self.record.tool),
                ));
            }
        }
        Ok(())
    }
}

/// How a tool that writes a stage begins.
pub enum Begin {
    /// It is there already, made the same way.
    Done,
    Write(PartDir),
}

/// Looks at `out`: there and made the same way is done, otherwise there needs `--force`. Of what a stopped process left
/// a checkpoint goes on, and so does the rounding of weights of the same making; what took others long stands in the way until
/// `--force`; any other stage begins anew.
pub fn begin(out: &Path, want: &Record, force: bool) -> Result<Begin> {
    refuse_own_input(out, want)?;
    if done_already(out, want, force)? {
        return Ok(Begin::Done);
    }
    if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    }
    let part = PartDir::open(out)?;
    // Another process may have finished it before the lock was taken.
    if done_already(out, want, force)? {
        return Ok(Begin::Done);
    }
    let goes_on = (want.kind == Kind::Wrapped && !force).then(|| rounded::directory(want));
    if let Some(there) = work_of_another(&part, want, goes_on.as_deref())?.filter(|_| !force) {
        return Err(Error::input(
            part.path(),
            there,
            "nothing, or an unfinished stage",
            "choose another -o, or remove it with --force",
        ));
    }
    match want.kind {
        Kind::Checkpoint => part.remove(rounded::is_directory)?,
        _ => part.remove(|name| goes_on.as_deref() != Some(name))?,
    }
    Ok(Begin::Write(part))
}

/// What another run was stopped at, which took long: blocks that are rounded, or a training.
fn work_of_another(part: &PartDir, want: &Record, goes_on: Option<&str>) -> Result<Option<&'static str>> {
    if want.kind != Kind::Checkpoint && holds_training(part)? {
        return Ok(Some("a training that was stopped"));
    }
    Ok(rounded::of_another(part, goes_on)?.then_some("another rounding that was stopped"))
}

/// Are there saves in it, or a checkpoint that only lacks its name?
fn holds_training(part: &PartDir) -> Result<bool> {
    let is_save = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(checkpoint::SAVE));
    let finished =
        || part.join(FILE).is_file() && Stage::read(part.path()).is_ok_and(|s| s.record.kind == Kind::Checkpoint);
    Ok(part.entries()?.iter().any(is_save) || finished())
}

/// Is `out` there, made as wanted? With `force` it is made again, but --force replaces stages, never
/// somebody's home directory.
fn done_already(out: &Path, want: &Record, force: bool) -> Result<bool> {
    if out.symlink_metadata().is_err() {
        return Ok(false);
    }
    if !out.join(FILE).is_file() {
        return Err(Error::usage(
            format!("{}: it exists and is no stage of lrqat, expected a new directory", out.display()),
            "choose another -o",
        ));
    }
    if force {
        return Ok(false);
    }
    let there = Stage::read(out)?;
    match there.record.same_making(want) {
        Ok(()) => Ok(true),
        Err((found, expected)) => Err(Error::usage(
            format!("{}: it exists, {found}, expected {expected}", out.display()),
            "use --force to replace it, or another -o",
        )),
    }
}

/// No stage is written over its input, nor over a directory that holds it. (Inputs are recorded relative to `out`.)
fn refuse_own_input(out: &Path, want: &Record) -> Result<()> {
    let within = |i: &&Input| i.path.is_relative() && !i.path.starts_with("..") && i.path != Path::new("-");
    // A folder of text may hold the runs it is used for; a model or a stage is never written into.
    let around = |i: &&Input| i.role != "text" && i.path.components().all(|c| c == std::path::Component::ParentDir);
    if let Some(input) = want.inputs.iter().find(around) {
        return Err(Error::usage(
            format!("{}: -o lies in the {} that is read, expected another directory", out.display(), input.role),
            "choose another -o",
        ));
    }
    match want.inputs.iter().find(within) {
        None => Ok(()),
        Some(input) => Err(Error::usage(
            format!("{}: -o is, or holds, the {} that is read, expected another directory", out.display(), input.role),
            "choose another -o",
        )),
    }
}

/// Writes `stage.json`, the last file of a stage.
pub fn write(part: &PartDir, record: &Record) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(record).expect("a record is plain JSON");
    bytes.push(b'\n');
    write_file(&part.join(FILE), &bytes)?;
    Ok(())
}

/// Writes `stage.json` and makes the directory appear.
pub fn commit(part: PartDir, record: &Record) -> Result<()> {
    write(&part, record)?;
    part.commit()
}

/// `to`, relative to the directory `from` (which need not exist yet).
pub fn relative_path(to: &Path, from: &Path) -> Result<PathBuf> {
    let to_absolute = to.canonicalize().map_err(Error::io(to, "resolve"))?;
    let from_absolute = std::path::absolute(from).map_err(Error::io(from, "resolve"))?;
    // Links are resolved as far as the path exists: `..` leads out of where a link points, not of the link.
    let resolved = from_absolute.ancestors().find_map(|a| Some((a, a.canonicalize().ok()?)));
    let from_absolute = match resolved {
        Some((there, real)) => real.join(from_absolute.strip_prefix(there).unwrap_or(Path::new(""))),
        None => from_absolute,
    };
    Ok(match pathdiff::diff_paths(&to_absolute, from_absolute) {
        Some(same) if same.as_os_str().is_empty() => PathBuf::from("."),
        Some(relative) => relative,
        None => to_absolute,
    })
}

/// `run/wrapped/../scales` as `run/scales`, where that is the same place: behind a link it may not be.
fn tidy(path: &Path) -> PathBuf {
    let short = without_dots(path);
    match (short.canonicalize(), path.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => short,
        _ => path.to_path_buf(),
    }
}

fn without_dots(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        let normal = matches!(out.components().next_back(), Some(std::path::Component::Normal(_)));
        if part == std::path::Component::ParentDir && normal {
            out.pop();
        } else {
            out.push(part);
        }
    }
    out
}
