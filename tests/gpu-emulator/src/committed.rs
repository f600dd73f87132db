//! For tests: is committed PTX that of the sources beside it? `tests/ptx/compile --check` compares by compiling.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Compares the checksum in the first line of every .ptx file of a directory with that of its source followed by the
/// .cuh files. The number of files, or the first one that is not its source's.
pub fn check(directory: &Path) -> Result<usize, String> {
    let files = |extension: &str| -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
        let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|found| found == extension));
        paths.sort();
        Ok(paths)
    };
    let failed = |error: io::Error| format!("{}: {error}", directory.display());
    let mut headers = Vec::new();
    for path in files("cuh").map_err(failed)? {
        headers.extend(fs::read(path).map_err(failed)?);
    }
    let compiled = files("ptx").map_err(failed)?;
    for path in &compiled {
        let text = fs::read_to_string(path).map_err(failed)?;
        let first: Vec<&str> = text.lines().next().unwrap_or_default().split(' ').collect();
        let ["//", "source", name, sum] = first[..] else { return Err(format!("{}: no source", path.display())) };
        let mut source = fs::read(path.with_file_name(name)).map_err(failed)?;
        source.extend(&headers);
        if sum != format!("{:016x}", checksum(&source)) {
            return Err(format!("{}: not what {name} gives; run tests/ptx/compile", path.display()));
        }
    }
    Ok(compiled.len())
}

/// FNV-1a, 64 bits, as in tests/ptx/compile.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |value, byte| (value ^ *byte as u64).wrapping_mul(0x100_0000_01b3))
}
