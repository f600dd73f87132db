//! Outputs appear whole or not at all: everything is written to `X.part/`, locked while a process is at it, and
//! becomes `X` by one rename after fsync.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};

/// Length and blake3 of a file, taken while it was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileDigest {
    pub bytes: u64,
    pub blake3: String,
}

/// Bytes that are written at a time.
const PART: usize = 1 << 20;

/// Bytes that are sent to the disk at a time, while those that follow are made.
const SENT: u64 = 64 << 20;

/// A file being written with write(), hashed and sent to the disk on the way.
pub struct OutputFile {
    path: PathBuf,
    file: std::io::BufWriter<File>,
    hash: blake3::Hasher,
    bytes: u64,
    sent: u64,
    sending: Option<JoinHandle<io::Result<()>>>,
}

impl OutputFile {
    pub fn create(path: &Path) -> Result<OutputFile> {
        let file = File::create(path).map_err(Error::io(path, "create"))?;
        let file = io::BufWriter::with_capacity(PART, file);
        let (path, hash) = (path.to_path_buf(), blake3::Hasher::new());
        Ok(OutputFile { path, file, hash, bytes: 0, sent: 0, sending: None })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // Hashed while they are still in the cache.
        for part in bytes.chunks(PART) {
            self.file.write_all(part).map_err(Error::io(&self.path, "write"))?;
            self.hash.update(part);
            self.bytes += part.len() as u64;
            if self.bytes - self.sent >= SENT {
                self.send()?;
            }
        }
        Ok(())
    }

    /// Begins to flush what was written, unless what was written before is still on its way.
    fn send(&mut self) -> Result<()> {
        if self.sending.as_ref().is_some_and(|sending| !sending.is_finished()) {
            return Ok(());
        }
        self.arrived()?;
        let file = self.file.get_ref().try_clone().map_err(Error::io(&self.path, "write"))?;
        // Without a thread all is flushed at the end.
        self.sending = thread::Builder::new().spawn(move || file.sync_data()).ok();
        self.sent = self.bytes;
        Ok(())
    }

    /// Waits for it. The system tells of a failure once, to whoever waits.
    fn arrived(&mut self) -> Result<()> {
        match self.sending.take().map(JoinHandle::join) {
            Some(Ok(sent)) => sent.map_err(Error::io(&self.path, "write")),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }

    /// Flushes to the disk, not only to the kernel.
    pub fn finish(mut self) -> Result<FileDigest> {
        self.arrived()?;
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
    /// Held as long as this lives.
    _lock: File,
    /// Whether the directory outlives a failure.
    kept: AtomicBool,
}

const LOCK: &str = ".lock";
/// Where `X` stands while the new one takes its place.
const REPLACED: &str = ".replaced";

impl PartDir {
    /// Opens or makes `target.part/`. What a process that was stopped left in it stays, until [`PartDir::clear`]. On
    /// drop the directory goes if it was empty, or cleared, unless [`PartDir::keep`] was called since.
    pub fn open(target: &Path) -> Result<PartDir> {
        let part = part_path(target)?;
        let old = with_suffix(target, REPLACED);
        if target.exists() && old.symlink_metadata().is_ok() {
            // Somebody else's, or left by a process that was killed between two renames: not ours to remove.
            let cure = "move or remove it, or choose another -o";
            return Err(Error::input(old, "it is in the way", "nothing of that name while --force replaces", cure));
        }
        let made = !part.exists();
        refuse_foreign(&part)?;
        fs::create_dir_all(&part).map_err(Error::io(&part, "create"))?;
        let lock = match lock(&part) {
            Ok(lock) => lock,
            Err(e) => {
                if made {
                    // Fails if another process was faster and writes there: as it should.
                    let _ = fs::remove_dir(&part);
                }
                return Err(e);
            }
        };
        let dir = PartDir { target: target.to_path_buf(), part, _lock: lock, kept: AtomicBool::new(false) };
        if !dir.entries()?.is_empty() {
            dir.keep();
        }
        Ok(dir)
    }

    /// From now on the directory outlives a failure: it holds what a later run goes on from.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    pub fn path(&self) -> &Path {
        &self.part
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.part.join(name)
    }

    /// Everything in it but the lock.
    pub fn entries(&self) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.part).map_err(Error::io(&self.part, "read"))? {
            let path = entry.map_err(Error::io(&self.part, "read"))?.path();
            if path.file_name().is_none_or(|n| n != LOCK) {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    /// Removes what `unwanted` says of its entries, by name. If nothing is left, there is nothing to keep.
    pub fn remove(&self, unwanted: impl Fn(&str) -> bool) -> Result<()> {
        for path in self.entries()? {
            if unwanted(&path.file_name().unwrap_or_default().to_string_lossy()) {
                let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                gone.map_err(Error::io(&path, "remove"))?;
            }
        }
        if self.entries()?.is_empty() {
            self.kept.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes everything but the lock: nothing is left that a later run could go on from.
    pub fn clear(&self) -> Result<()> {
        self.remove(|_| true)
    }

    /// fsync, then the one rename. An existing target (`--force`) is moved aside first and removed after. The lock
    /// goes last: whoever waits for this directory must not take it for an abandoned one.
    pub fn commit(self) -> Result<()> {
        sync_dir(&self.part)?;
        let old = with_suffix(&self.target, REPLACED);
        let replaced = self.target.exists();
        if replaced {
            fs::rename(&self.target, &old).map_err(Error::io(&self.target, "move"))?;
        }
        fs::rename(&self.part, &self.target).map_err(Error::io(&self.target, "create"))?;
        self.keep();
        let lock = self.target.join(LOCK);
        fs::remove_file(&lock).map_err(Error::io(&lock, "remove"))?;
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
        if !self.kept.load(Ordering::Relaxed) {
            let _ = fs::remove_dir_all(&self.part);
        }
    }
}

/// A `.part` that was there before is ours if it has our lock; one with anything else in it is somebody's.
fn refuse_foreign(part: &Path) -> Result<()> {
    let ours = || part.join(LOCK).symlink_metadata().is_ok();
    let empty = || fs::read_dir(part).is_ok_and(|mut entries| entries.next().is_none());
    let foreign = || part.symlink_metadata().is_ok() && !(part.is_dir() && (empty() || ours()));
    // Another process may be making, naming or removing it between these looks; what is somebody's stays.
    if !(0..3).all(|_| foreign()) {
        return Ok(());
    }
    let (found, expected) = ("it is in the way, and not of lrqat", "nothing, or what a tool that was stopped left");
    Err(Error::input(part, found, expected, "move or remove it, or choose another -o"))
}

/// Takes the lock of a `.part` directory.
fn lock(part: &Path) -> Result<File> {
    let path = part.join(LOCK);
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path, "create"))?;
    let busy = || {
        let cure = "wait for it to end and run the same command again, or choose another -o";
        Err(Error::input(part, "another process is writing it", "to be alone", cure))
    };
    match file.try_lock() {
        // The process that held it may have renamed or removed the directory since this opened the file.
        Ok(()) if !is_at(&file, &path) => busy(),
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => busy(),
        // Some network file systems have no locks; then only care keeps two writers apart.
        Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Is this open file the one that the path leads to?
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts that are flushed on the way, some before those before them have arrived, are the file.
    #[test]
    fn a_file_that_is_sent_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..5 * PART / 2).map(|i| (i % 251) as u8).collect();
        let mut file = OutputFile::create(&path).unwrap();
        for part in bytes.chunks(PART / 3) {
            file.write(part).unwrap();
            file.send().unwrap();
            assert!(file.sent <= file.bytes);
        }
        let digest = file.finish().unwrap();
        assert_eq!(digest.bytes, bytes.len() as u64);
        assert_eq!(digest.blake3, blake3::hash(&bytes).to_hex().to_string());
        assert!(fs::read(path).unwrap() == bytes);
    }
}
