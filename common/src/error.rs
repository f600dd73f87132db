//! The one error type. Every message is a single line: path first, then what was found, what was
//! expected, and what to do about it. Each variant knows the exit status of the tool that ends with it.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Exit statuses of all tools.
pub mod exit {
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    /// A check that was asked for (`eval --max-ppl`) was missed.
    pub const MISSED: u8 = 3;
    /// Stopped early with a checkpoint written; the same command goes on (EX_TEMPFAIL of sysexits.h).
    pub const STOPPED: u8 = 75;
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {doing}: {}; {}", path.display(), reason(source), io_cure(source))]
    Io { path: PathBuf, doing: &'static str, source: io::Error },

    /// A file or directory is there, but not what was asked for.
    #[error("{}: {found}, expected {expected}; {cure}", path.display())]
    Input { path: PathBuf, found: String, expected: String, cure: String },

    /// The command line asks for something that cannot be.
    #[error("{what}; {cure}")]
    Usage { what: String, cure: String },

    /// The GPU or its driver refused.
    #[error("{what}; {cure}")]
    Device { what: String, cure: String },

    /// A loss, gradient or weight that is not a number.
    #[error("{tensor}: not finite at step {step}; {kept}")]
    NotFinite { tensor: String, step: u64, kept: String },

    /// Stopped early on purpose.
    #[error("{}: stopped at step {step}: {why}; run the same command again to go on", path.display())]
    Stopped { path: PathBuf, step: u64, why: String },

    /// A check that the caller asked for did not hold.
    #[error("{what}")]
    Missed { what: String },

    /// Standard output was closed by its reader (`| head`): not an error, the tool just ends.
    #[error("standard output closed")]
    ClosedPipe,
}

impl Error {
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Io { .. } | Error::Input { .. } | Error::Device { .. } | Error::NotFinite { .. } => exit::FAILED,
            Error::Usage { .. } => exit::USAGE,
            Error::Missed { .. } => exit::MISSED,
            Error::Stopped { .. } => exit::STOPPED,
            Error::ClosedPipe => 0,
        }
    }

    pub fn io(path: impl Into<PathBuf>, doing: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, doing, source }
    }

    /// `found` and `expected` read on in a sentence: "path: `found`, expected `expected`; `cure`".
    pub fn input(path: impl AsRef<Path>, found: impl Display, expected: impl Display, cure: impl Display) -> Error {
        Error::Input {
            path: path.as_ref().to_path_buf(),
            found: found.to_string(),
            expected: expected.to_string(),
            cure: cure.to_string(),
        }
    }

    pub fn device(what: impl Display, cure: impl Display) -> Error {
        Error::Device { what: what.to_string(), cure: cure.to_string() }
    }

    pub fn usage(what: impl Display, cure: impl Display) -> Error {
        Error::Usage { what: what.to_string(), cure: cure.to_string() }
    }
}

/// The system's message without Rust's "(os error 28)".
fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}

fn io_cure(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "check the permissions, or choose another directory",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space and run the same command again",
        io::ErrorKind::ReadOnlyFilesystem => "choose a directory that can be written",
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => "check the path",
        io::ErrorKind::AlreadyExists => "remove the file of that name, or choose another path",
        io::ErrorKind::FileTooLarge => "raise the limit on file sizes (ulimit -f), or choose another disk",
        io::ErrorKind::UnexpectedEof => "fetch or make the file again",
        _ => "see the system's message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_with_path_found_expected_cure() {
        let e = Error::input("run/a", "this is \"scales\"", "\"wrapped\"", "run lr-wrap first");
        assert_eq!(e.to_string(), "run/a: this is \"scales\", expected \"wrapped\"; run lr-wrap first");
        let e = Error::io("x", "write")(io::Error::from_raw_os_error(28));
        assert_eq!(
            e.to_string(),
            "x: cannot write: No space left on device; free some space and run the same command again"
        );
        assert_eq!(e.exit_status(), 1);
    }
}
