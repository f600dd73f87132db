//! Each fault is a row: what is spoilt in a directory that holds one of every stage ([`crate::tools::stages`]), the
//! command that meets it, the exit status, and the essential words of the one line it prints.

/// Models in: safetensors, config.json, tokenizer.
mod model;
/// Stages as inputs: of the wrong kind, changed, moved, unfinished.
mod stage;
/// Texts, shards and tokens.
mod text;
/// The output: what lies there already, disks that are full or cannot be written, two writers.
mod output;
/// The command line.
mod usage;

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::tools::{Dir, Ran};

pub struct Fault {
    /// What is wrong, for whoever reads a failure.
    pub name: &'static str,
    pub spoil: fn(&Dir),
    pub line: &'static str,
    pub status: i32,
    /// Words of the message, in this order: path, found, expected, cure.
    pub says: &'static [&'static str],
}

/// Every row in a directory of its own.
pub fn check(faults: &[Fault]) {
    for fault in faults {
        let dir = Dir::with_stages();
        (fault.spoil)(&dir);
        let before = dir.listing();
        let ran = dir.run(fault.line);
        let what = format!("{}: {}", fault.name, fault.line);
        one_line(&what, fault.line, &ran, fault.status, fault.says);
        assert_eq!(dir.listing(), before, "{what}: something is left behind");
    }
}

/// One line on stderr, `tool: path: found, expected …; cure`, nothing on stdout, and the exit status.
pub fn one_line(what: &str, line: &str, ran: &Ran, status: i32, says: &[&str]) {
    let tool = line.split_whitespace().next().unwrap();
    // `cargo test -- --nocapture` shows all messages, to be read aloud.
    println!("{:<40} {}", what.split(':').next().unwrap(), ran.stderr.trim_end());
    assert_eq!(ran.status, Some(status), "{what}: {}", ran.stderr);
    assert_eq!(ran.stdout, "", "{what}");
    assert_eq!(ran.stderr.lines().count(), 1, "{what}: {}", ran.stderr);
    let message = ran.stderr.strip_prefix(&format!("{tool}: ")).unwrap_or_else(|| panic!("{what}: {}", ran.stderr));
    assert!(message.contains("; "), "{what}: no cure: {message}");
    let mut at = 0;
    for word in says {
        match message[at..].find(word) {
            Some(found) => at += found + word.len(),
            None => panic!("{what}: {word:?} is not in its place in: {message}"),
        }
    }
}

/// Edits a JSON file.
pub fn edit_json(path: &Path, edit: impl Fn(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

/// Cuts a file down to a part of its length.
pub fn truncate(path: &Path, part: f64) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..(bytes.len() as f64 * part) as usize]).unwrap();
}
