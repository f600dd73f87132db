//! The layers of the library: lib.rs lists its modules from the lowest up, and a module uses only those above it there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::tools::walk;

/// `error`, `quant`, … as lib.rs lists them.
fn modules(lib: &str) -> Vec<&str> {
    lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect()
}

/// The modules that a source file names as `crate::<module>`, each with its line; comments and strings count too, since
/// a doc link upward is a dependency of the reader.
fn used(source: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in source.lines().enumerate() {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push((number + 1, &rest[..end]));
        }
    }
    found
}

/// Uses of a module that is later in `order` than the one that the file at `path` (below src) belongs to.
fn upward(order: &[&str], path: &Path, source: &str) -> Vec<String> {
    let first = path.iter().next().and_then(|p| p.to_str()).unwrap_or_default();
    let own = first.strip_suffix(".rs").unwrap_or(first);
    let Some(own) = order.iter().position(|m| *m == own) else { return Vec::new() };
    let later = |(_, name): &(usize, &str)| order.iter().position(|m| m == name).is_some_and(|at| at > own);
    let say = |(line, name)| format!("{}:{line}: {} uses {name}, which is above it", path.display(), order[own]);
    used(source).into_iter().filter(later).map(say).collect()
}

#[test]
fn a_module_uses_only_those_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("common/src");
    let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
    let order = modules(&lib);
    assert_eq!(order, ["error", "quant", "format", "data", "compute", "model", "stage", "train", "score", "cli"]);
    let mut files = 0;
    let mut wrong = Vec::new();
    for path in walk(&src).into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs")) {
        let source = fs::read_to_string(&path).unwrap();
        assert!(
            !source.contains("use crate::{"),
            "{}: write one use a module, so that layers can be read",
            path.display()
        );
        wrong.extend(upward(&order, path.strip_prefix(&src).unwrap(), &source));
        files += 1;
    }
    assert!(files > 50, "the sources were not found: {files} files");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_upward_use_is_seen() {
    let order = ["error", "quant", "stage"];
    let at = |path: &str, source: &str| upward(&order, &PathBuf::from(path), source).len();
    assert_eq!(at("quant/grid.rs", "use crate::error::Result;\nuse crate::stage::Kind;"), 1);
    assert_eq!(at("quant.rs", "fn f() -> crate::stage::Kind {"), 1);
    assert_eq!(at("stage/mod.rs", "use crate::quant::Phi;"), 0);
    assert_eq!(at("lib.rs", "pub use crate::stage::Kind;"), 0);
}
