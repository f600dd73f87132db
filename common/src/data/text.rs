//! Documents of text files, one after another: memory grows with the longest document, never with the file.
//!
//! | file | documents |
//! |---|---|
//! | `.txt` | the whole file is one |
//! | `.jsonl`, `.jsonl.zst` | the `text` field of each line |
//! | `.parquet` | the `text` column, a row each |
//! | `-` (standard input) | JSON lines if it begins with `{`, else one document |
//!
//! A directory stands for its files of these kinds, subdirectories included, in sorted order.

mod jsonl;
mod parquet;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The documents of one source; after an error nothing follows.
pub type Documents = Box<dyn Iterator<Item = Result<String>> + Send>;

const KNOWN: &str = ".txt, .jsonl, .jsonl.zst or .parquet";
/// What standard input is called on the command line and in messages.
const STDIN: &str = "-";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Txt,
    Jsonl,
    JsonlZst,
    Parquet,
}

impl Kind {
    fn of(path: &Path) -> Option<Kind> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        [(".txt", Kind::Txt), (".jsonl", Kind::Jsonl), (".jsonl.zst", Kind::JsonlZst), (".parquet", Kind::Parquet)]
            .into_iter()
            .find(|(extension, _)| name.ends_with(extension))
            .map(|(_, kind)| kind)
    }
}

/// The documents that are not empty, of a file, a directory or standard input (`-`). A file without any text is an
/// error, since a corpus that is silently smaller than it looks is worse than a stop.
pub fn documents(path: &Path) -> Result<Documents> {
    Ok(not_empty(rows(path)?))
}

/// The same of what a reader gives: JSON lines or plain text. `name` is for messages.
pub fn documents_of(name: &Path, reader: impl BufRead + Send + 'static) -> Result<Documents> {
    Ok(not_empty(of_stream(name, reader)?))
}

fn not_empty(rows: Documents) -> Documents {
    Box::new(rows.filter(|row| !matches!(row, Ok(text) if text.is_empty())))
}

/// The text whose perplexity is measured: a `.txt` as it is, the documents of other files joined by a blank line,
/// empty ones included, as the papers join the rows of WikiText-2 (GPTQ's `datautils.py`).
pub fn joined(path: &Path) -> Result<String> {
    let mut rows = rows(path)?;
    let mut text = rows.next().transpose()?.unwrap_or_default();
    for row in rows {
        text.push_str("\n\n");
        text.push_str(&row?);
    }
    Ok(text)
}

/// blake3 of the bytes of a file, or of all text files of a directory.
pub fn digest(path: &Path) -> Result<String> {
    let of_file = |file: &Path| -> Result<blake3::Hash> {
        let mut hash = blake3::Hasher::new();
        Ok(hash.update_mmap_rayon(file).map_err(Error::io(file, "read"))?.finalize())
    };
    if !fs::metadata(path).map_err(Error::io(path, "open"))?.is_dir() {
        return Ok(of_file(path)?.to_hex().to_string());
    }
    let mut files = Vec::new();
    walk(path, &mut files)?;
    // Of digests, not of the bytes one after another: which file a text is in decides where its documents end.
    let mut hash = blake3::Hasher::new();
    for file in files {
        hash.update(of_file(&file)?.as_bytes());
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// All documents, empty ones too.
fn rows(path: &Path) -> Result<Documents> {
    if path == Path::new(STDIN) {
        return of_stream(path, BufReader::new(std::io::stdin()));
    }
    if !fs::metadata(path).map_err(Error::io(path, "open"))?.is_dir() {
        return of_file(path);
    }
    let mut files = Vec::new();
    walk(path, &mut files)?;
    if files.is_empty() {
        return Err(Error::input(path, "a directory without text files", KNOWN, "check the path"));
    }
    let each = |file: PathBuf| of_file(&file).unwrap_or_else(|e| Box::new(std::iter::once(Err(e))));
    Ok(until_error(files.into_iter().flat_map(each)))
}

/// Links to files are followed, links to directories are not: they may lead back here.
fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let refused = || Error::io(directory, "list");
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).map_err(refused())? {
        let entry = entry.map_err(refused())?;
        entries.push((entry.path(), entry.file_type().map_err(refused())?));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, kind) in entries {
        if kind.is_dir() {
            walk(&path, files)?;
        } else if Kind::of(&path).is_some() && path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

fn of_file(path: &Path) -> Result<Documents> {
    let open = || File::open(path).map_err(Error::io(path, "open"));
    let rows = match Kind::of(path) {
        Some(Kind::Txt) => one(whole(path, open()?)?),
        Some(Kind::Jsonl) => jsonl::rows(path, BufReader::new(open()?)),
        Some(Kind::JsonlZst) => jsonl::rows(path, jsonl::inflate(path, open()?)?),
        Some(Kind::Parquet) => parquet::rows(path, open()?)?,
        None => return Err(unknown(path)),
    };
    Ok(some_text(path, rows))
}

/// Tells JSON lines from plain text by the first byte that is not blank; blanks before it belong to the text.
fn of_stream(name: &Path, mut reader: impl BufRead + Send + 'static) -> Result<Documents> {
    let mut blanks = Vec::new();
    let first = loop {
        let buffer = reader.fill_buf().map_err(Error::io(name, "read"))?;
        let found = buffer.iter().position(|byte| !byte.is_ascii_whitespace());
        let blank = found.unwrap_or(buffer.len());
        let byte = buffer.get(blank).copied();
        blanks.extend_from_slice(&buffer[..blank]);
        reader.consume(blank);
        if byte.is_some() || blank == 0 {
            break byte;
        }
    };
    let all = Cursor::new(blanks).chain(reader);
    let rows = if first == Some(b'{') { jsonl::rows(name, all) } else { one(whole(name, all)?) };
    Ok(some_text(name, rows))
}

fn one(text: String) -> Documents {
    Box::new(std::iter::once(Ok(text)))
}

fn whole(path: &Path, mut reader: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::input(path, format!("bytes at offset {at} that are not UTF-8"), "UTF-8 text", "convert it with iconv")
    })
}

fn unknown(path: &Path) -> Error {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let found = match name.split_once('.') {
        Some((_, extension)) => format!("a file ending in \".{extension}\""),
        None => "a file without an extension".to_string(),
    };
    Error::input(path, found, KNOWN, "rename or convert it")
}

fn until_error(rows: impl Iterator<Item = Result<String>> + Send + 'static) -> Documents {
    let mut failed = false;
    Box::new(rows.take_while(move |row| !std::mem::replace(&mut failed, row.is_err())))
}

/// Ends with an error if there was nothing but blank documents.
fn some_text(path: &Path, rows: Documents) -> Documents {
    let (path, mut rows, mut done, mut any) = (path.to_path_buf(), rows, false, false);
    Box::new(std::iter::from_fn(move || {
        if done {
            return None;
        }
        let row = rows.next();
        match &row {
            Some(Ok(text)) => any |= !text.trim().is_empty(),
            Some(Err(_)) => done = true,
            None => done = true,
        }
        match row {
            None if !any => Some(Err(Error::input(&path, "no text", "at least one document", "check the file"))),
            row => row,
        }
    }))
}

#[cfg(test)]
mod tests;
