//! What lies beside the checkout and is not part of it: data that is never committed. Tests that want it say so on
//! stderr where it is absent, and end.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The folder `shared/` beside the checkout, or where LRQAT_SHARED says.
pub fn shared(test: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().take(3).map(|dir| dir.join("shared"));
    let found = match std::env::var_os("LRQAT_SHARED") {
        Some(path) => Some(PathBuf::from(path)).filter(|path| path.is_dir()),
        None => beside().find(|path| path.join("golden").is_dir()),
    };
    if found.is_none() {
        skipped(test, "no shared/ data");
    }
    found
}

/// Said past the harness, which shows what eprintln! says only of tests that fail.
pub fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
