//! Outputs appear whole or not at all: everything is written to `X.part/`, locked while a process is at it, and
//! becomes `X` by one rename after fsync.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Length and blake3 of a file, taken while it was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileDigest {
    pub bytes: u64,
    pub blake3: String,
}

/// A file being written with write(), hashed on the way.
pub struct OutputFile {
    path: PathBuf,
    file: std::io::BufWriter<File>,
    hash: blake3::Hasher,
    bytes: u64,
}

impl OutputFile {
    pub fn create(path: &Path) -> Result<OutputFile> {
        let file = File::create(path).map_err(Error::io(path, "create"))?;
        let file = std::io::BufWriter::with_capacity(1 << 20, file);
        Ok(OutputFile { path: path.to_path_buf(), file, hash: blake3::Hasher::new(), bytes: 0 })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path, "write"))?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Flushes to the disk, not only to the kernel.
    pub fn finish(self) -> Result<FileDigest> {
        let file = self.file.into_inner().map_err(|e| Error::io(&self.path, "write")(e.into_error()))?;
        file.sync_all().map_err(Error::io(&self.path, "write"))?;
        Ok(FileDigest { bytes: self.bytes, blake3: self.hash.finalize().to_hex().to_string() })
    }
}

/// Writes a small file whole, flushed to the disk.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<FileDigest> {
    let mut file = OutputFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}

pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).map_err(Error::io(path, "sync"))
}

/// `X.part/`, the unfinished `X`.
pub struct PartDir {
    target: PathBuf,
    part: PathBuf,
    lock: Option<File>,
    keep: bool,
}

const LOCK: &str = ".lock";

impl PartDir {
    /// Opens or makes `target.part/`. With `keep` the contents survive a failure, for a tool that resumes from
    /// them; without it they are removed, now and on drop.
    pub fn open(target: &Path, keep: bool) -> Result<PartDir> {
        let part = part_path(target)?;
        fs::create_dir_all(&part).map_err(Error::io(&part, "create"))?;
        let lock_path = part.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(Error::io(&lock_path, "create"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::input(
                    &part,
                    "another process is writing it",
                    "to be alone",
                    "wait for it, or choose another -o",
                ));
            }
            // Some network file systems have no locks; then only care keeps two writers apart.
            Err(TryLockError::Error(_)) => {}
        }
        let dir = PartDir { target: target.to_path_buf(), part, lock: Some(lock), keep };
        if !keep {
            dir.clear()?;
        }
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.part
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.part.join(name)
    }

    /// Removes everything but the lock.
    pub fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.part).map_err(Error::io(&self.part, "read"))? {
            let path = entry.map_err(Error::io(&self.part, "read"))?.path();
            if path.file_name().is_some_and(|n| n == LOCK) {
                continue;
            }
            let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.map_err(Error::io(&path, "remove"))?;
        }
        Ok(())
    }

    /// fsync, then the one rename. An existing target (`--force`) is moved aside first and removed after.
    pub fn commit(mut self) -> Result<()> {
        let lock = self.part.join(LOCK);
        fs::remove_file(&lock).map_err(Error::io(&lock, "remove"))?;
        sync_dir(&self.part)?;
        let old = with_suffix(&self.target, ".old");
        let replaced = self.target.exists();
        if replaced {
            fs::rename(&self.target, &old).map_err(Error::io(&self.target, "move"))?;
        }
        fs::rename(&self.part, &self.target).map_err(Error::io(&self.target, "create"))?;
        self.lock = None;
        self.keep = true;
        if let Some(parent) = self.target.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
        if replaced {
            fs::remove_dir_all(&old).map_err(Error::io(&old, "remove"))?;
        }
        Ok(())
    }
}

impl Drop for PartDir {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.part);
        }
    }
}

fn part_path(target: &Path) -> Result<PathBuf> {
    if target.file_name().is_none() {
        return Err(Error::usage(
            format!("-o {}: this is no name for a directory", target.display()),
            "give a name, as in -o run/scales",
        ));
    }
    Ok(with_suffix(target, ".part"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}
