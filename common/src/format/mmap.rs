//! The only memory maps of the project: read-only, of inputs that nobody writes.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A whole file, mapped read-only.
#[derive(Debug)]
pub struct Mmap {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl Mmap {
    pub fn open(path: &Path) -> Result<Mmap> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let meta = file.metadata().map_err(Error::io(path, "read"))?;
        if !meta.is_file() {
            return Err(Error::input(path, "not a regular file", "a file", "check the path"));
        }
        if meta.len() == 0 {
            return Err(Error::input(path, "an empty file", "data", "fetch or make it again"));
        }
        // SAFETY: the map is read-only and private. Stages never write into their inputs and outputs are written
        // with write() to new files that appear by rename, so no process of ours changes a mapped file; if another
        // program truncates it the process gets SIGBUS, which no reader of a mapped file can rule out.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Ok(Mmap { path: path.to_path_buf(), map })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the kernel that these bytes will not be read again soon, so that resident memory does not grow with
    /// the file. `part` lies in this map.
    pub fn forget(&self, part: &[u8]) {
        let offset = part.as_ptr() as usize - self.map.as_ptr() as usize;
        // SAFETY: the map is a read-only view of a file, so a dropped page is read from the file again.
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, part.len()) };
    }
}

impl Deref for Mmap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}
