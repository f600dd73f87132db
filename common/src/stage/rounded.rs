//! Blocks that are rounded already, each in a file of the unfinished stage, with which a run that was stopped goes on:
//! `X.part/rounded-DIGEST/LAYER`, renamed into place whole. DIGEST is of what the run is. A file has of each linear its frozen
//! weights as they will be stored, and then its scales in f32.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::record::Record;
use super::wrapping::Wrapping;
use crate::error::{Error, Result};
use crate::format::atomic::{PartDir, sync_dir, write_file};
use crate::model::Config;
use crate::model::names::{self, LinearName};
use crate::quant::Scheme;

/// What the names of their directories begin with.
const DIRECTORY: &str = "rounded-";
/// The first block.
const FIRST: &str = "0";
/// One that is not whole yet.
const WRITING: &str = "writing";

/// Is this entry of an unfinished stage such a directory?
pub fn is_directory(name: &str) -> bool {
    name.starts_with(DIRECTORY)
}

/// The directory of such a run.
pub fn directory(record: &Record) -> String {
    format!("{DIRECTORY}{}", &record.making()[..16])
}

/// Are there blocks in it that another run than that of this directory rounded?
pub fn of_another(part: &PartDir, directory: Option<&str>) -> Result<bool> {
    let blocks = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        is_directory(&name) && Some(&*name) != directory && path.join(FIRST).exists()
    };
    Ok(part.entries()?.iter().any(blocks))
}

pub struct RoundedBlocks<'a> {
    part: &'a PartDir,
    dir: PathBuf,
    files: Vec<File>,
    linears: BTreeMap<String, Kept>,
    /// Bytes of a file.
    bytes: u64,
}

/// Where a linear lies.
struct Kept {
    layer: usize,
    frozen: u64,
    scales: u64,
}

impl<'a> RoundedBlocks<'a> {
    /// Those that there are.
    pub fn open(
        part: &'a PartDir,
        record: &Record,
        config: &Config,
        scheme: Scheme,
        wrapping: &Wrapping,
    ) -> Result<RoundedBlocks<'a>> {
        let (mut linears, mut bytes) = (BTreeMap::new(), 0);
        for layer in 0..config.layers {
            bytes = 0;
            for linear in names::block_linears(config, layer) {
                let scales = bytes + wrapping.frozen(&linear, scheme).bytes() as u64;
                let groups = scheme.groups(linear.k);
                linears.insert(linear.name, Kept { layer, frozen: bytes, scales });
                bytes = scales + (size_of::<f32>() * linear.n * groups) as u64;
            }
        }
        let dir = part.join(&directory(record));
        fs::create_dir_all(&dir).map_err(Error::io(&dir, "create"))?;
        let mut blocks = RoundedBlocks { part, dir, files: Vec::new(), linears, bytes };
        while blocks.files.len() < config.layers && blocks.take()? {}
        Ok(blocks)
    }

    /// The next block, if it is there.
    fn take(&mut self) -> Result<bool> {
        let path = self.dir.join(self.files.len().to_string());
        let Ok(file) = File::open(&path) else { return Ok(false) };
        let whole = file.metadata().map_err(Error::io(&path, "read"))?.len() == self.bytes;
        if whole {
            self.files.push(file);
            self.part.keep();
        }
        Ok(whole)
    }

    /// How many there are: the first of the model.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// Adds the next: what its linears have, one after another.
    pub fn add(&mut self, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len() as u64, self.bytes, "a block of another shape");
        let (writing, path) = (self.dir.join(WRITING), self.dir.join(self.files.len().to_string()));
        write_file(&writing, bytes)?;
        fs::rename(&writing, &path).map_err(Error::io(&path, "create"))?;
        sync_dir(&self.dir)?;
        assert!(self.take()?, "{}: it was just written", path.display());
        Ok(())
    }

    /// The frozen weights of a linear.
    pub fn frozen(&self, linear: &LinearName, to: &mut [u8]) -> Result<()> {
        let kept = &self.linears[&linear.name];
        assert_eq!(kept.frozen + to.len() as u64, kept.scales, "{}", linear.name);
        self.read(kept.layer, kept.frozen, to)
    }

    /// Its scales.
    pub fn scales(&self, linear: &LinearName, to: &mut [f32]) -> Result<()> {
        let kept = &self.linears[&linear.name];
        self.read(kept.layer, kept.scales, bytemuck::cast_slice_mut(to))
    }

    fn read(&self, layer: usize, at: u64, to: &mut [u8]) -> Result<()> {
        self.files[layer].read_exact_at(to, at).map_err(Error::io(&self.dir, "read"))
    }
}
