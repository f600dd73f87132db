//! What the tools' command lines share: the wrapper around `run()`, common flags, progress, signals.

pub mod device;
pub mod flags;
pub mod memory;
pub mod progress;
pub mod signals;

use std::error::Error as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use crate::compute::cpu::product::has_tiles;
use crate::error::{Error, Result};
use crate::quant::isa::{self, Isa};
use flags::Common;

/// Runs a tool: an error becomes one line on stderr and its exit status.
pub fn main(tool: &str, run: impl FnOnce() -> Result<()>) -> ExitCode {
    match instruction_set().and_then(|()| run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if e.exit_status() != 0 {
                complain(tool, &e.to_string());
            }
            ExitCode::from(e.exit_status())
        }
    }
}

/// Refuses an instruction set asked for that this machine does not have.
fn instruction_set() -> Result<()> {
    match isa::forced()? {
        Some(Isa::Amx) if !has_tiles() => Err(isa::missing(Isa::Amx)),
        _ => Ok(()),
    }
}

/// The command line. What is wrong with it becomes one line, as every other error does; --help and --version end here.
pub fn parse<A: Parser>() -> Result<A> {
    A::try_parse().map_err(|e| if e.use_stderr() { refusal(&e) } else { e.exit() })
}

/// What clap says, in one line.
fn refusal(e: &clap::Error) -> Error {
    if let Some(Error::Usage { what, cure }) = e.source().and_then(|s| s.downcast_ref()) {
        return Error::usage(what, cure);
    }
    let text = e.render().to_string();
    let first: Vec<&str> = text.lines().take_while(|l| !l.is_empty()).map(str::trim).collect();
    let what = first.join(" ");
    let cure = text.lines().find_map(|l| l.trim().strip_prefix("tip: ")).unwrap_or("see --help");
    Error::usage(what.strip_prefix("error: ").unwrap_or(&what), cure)
}

/// A line on stderr; that it cannot be written is no reason to fail, nor to panic as eprintln does.
fn complain(tool: &str, message: &str) {
    let _ = writeln!(std::io::stderr(), "{tool}: {message}");
}

/// An input as typed: `-` is one path on standard input.
pub fn input_path(path: &Path) -> Result<PathBuf> {
    if path != Path::new("-") {
        return Ok(path.to_path_buf());
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(Error::io("standard input", "read"))?;
    match line.trim_end_matches(['\n', '\r']) {
        "" => {
            let cure = "see why the stage before it failed";
            Err(Error::input("standard input", "no path in it", "the path of a stage", cure))
        }
        // What --json prints.
        line if line.starts_with('{') => match serde_json::from_str::<serde_json::Value>(line) {
            Ok(value) if value["path"].is_string() => Ok(PathBuf::from(value["path"].as_str().unwrap_or_default())),
            _ => Ok(PathBuf::from(line)),
        },
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
        complain(tool, &message.to_string());
    }
}
