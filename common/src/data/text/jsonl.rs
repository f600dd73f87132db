//! JSON lines, plain or compressed by zstd: one object a line (RFC 8259), of which the string `text` counts.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;

use super::Documents;
use crate::error::{Error, Result};

/// A longer line is no document but a file that is not JSON lines, or a decompression bomb.
const LONGEST: u64 = 1 << 30;
/// zstd's `--long=31`, which large corpora are often compressed with.
const WINDOW_LOG: u32 = 31;
const EXPECTED: &str = "an object with a string \"text\"";

#[derive(Deserialize)]
struct Record {
    text: String,
}

pub fn inflate(path: &Path, file: File) -> Result<impl BufRead + Send + 'static> {
    let mut decoder = zstd::stream::read::Decoder::new(file).map_err(Error::io(path, "decompress"))?;
    decoder.window_log_max(WINDOW_LOG).map_err(Error::io(path, "decompress"))?;
    Ok(BufReader::with_capacity(1 << 16, decoder))
}

pub fn rows(path: &Path, mut reader: impl BufRead + Send + 'static) -> Documents {
    let (path, mut number, mut line) = (path.to_path_buf(), 0u64, Vec::new());
    Box::new(std::iter::from_fn(move || {
        loop {
            number += 1;
            line.clear();
            match reader.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) if line.trim_ascii().is_empty() => continue,
                Ok(_) => return Some(parse(&path, number, &line)),
                Err(e) => return Some(Err(unreadable(&path, number, e))),
            }
        }
    }))
}

fn parse(path: &Path, number: u64, line: &[u8]) -> Result<String> {
    if line.len() as u64 == LONGEST {
        let found = format!("line {number}: more than {LONGEST} bytes without a line break");
        return Err(Error::input(path, found, "JSON lines", "check that the file is what its name says"));
    }
    // Without this a line ["…"] would pass: serde reads a struct from an array too.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::input(path, format!("line {number}: not an object"), EXPECTED, "correct or drop the line"));
    }
    serde_json::from_slice::<Record>(line).map(|record| record.text).map_err(|e| {
        // serde_json sees one line only, so that of what it says about the place the column alone is of use.
        let (reason, column) = (e.to_string(), e.column());
        let reason = reason.split(" at line ").next().unwrap_or_default();
        Error::input(path, format!("line {number}, column {column}: {reason}"), EXPECTED, "correct or drop the line")
    })
}

/// A stream that ends early or is damaged comes as an error of reading; the system itself rarely fails there.
fn unreadable(path: &Path, number: u64, e: std::io::Error) -> Error {
    if e.raw_os_error().is_some() {
        return Error::io(path, "read")(e);
    }
    let found = format!("line {number}: a damaged or cut off zstd stream ({e})");
    Error::input(path, found, "a complete file", "fetch or make it again")
}
