//! What the tools' command lines share: the wrapper around `run()`, common flags, progress, signals.

pub mod device;
pub mod flags;
pub mod memory;
pub mod progress;
pub mod signals;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::error::{Error, Result};
use crate::stage::record::Stage;
use flags::Common;

/// Runs a tool: an error becomes one line on stderr and its exit status.
pub fn main(tool: &str, run: impl FnOnce() -> Result<()>) -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if e.exit_status() != 0 {
                eprintln!("{tool}: {e}");
            }
            ExitCode::from(e.exit_status())
        }
    }
}

/// An input as typed: `-` is one path on standard input.
pub fn input_path(path: &Path) -> Result<PathBuf> {
    if path != Path::new("-") {
        return Ok(path.to_path_buf());
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(Error::io("-", "read"))?;
    match line.trim_end_matches(['\n', '\r']) {
        "" => Err(Error::input("-", "no path on standard input", "one", "see why the stage before it failed")),
        path => Ok(PathBuf::from(path)),
    }
}

/// Prints the result, the path of the directory written.
pub fn print_path(common: &Common, path: &Path) -> Result<()> {
    let path = path.display().to_string();
    if common.json { print(&format!("{}\n", serde_json::json!({ "path": path }))) } else { print(&format!("{path}\n")) }
}

pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Error::ClosedPipe,
        _ => Error::io("standard output", "write")(e),
    })
}

/// A message on stderr, unless `-q`.
pub fn say(common: &Common, tool: &str, message: impl std::fmt::Display) {
    if !common.quiet {
        eprintln!("{tool}: {message}");
    }
}

/// Hashes a stage's files again if asked to.
pub fn verify(common: &Common, stage: &Stage) -> Result<()> {
    if common.verify { stage.verify() } else { Ok(()) }
}
