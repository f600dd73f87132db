//! The folded directories read by other people's packages (tests/interop/read_back.py): compressed-tensors and gguf from
//! PyPI and the formulas of GPTQ's kernels, integer by integer against W_Z computed from the checkpoint in numpy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{HOLD, train, wide};

#[test]
fn other_packages_read_the_same_integers() {
    let Ok(python) = std::env::var("LRQAT_READERS") else {
        eprintln!(
            "SKIPPED other_packages_read_the_same_integers: LRQAT_READERS names no python with \
             tests/interop/requirements-readers.txt"
        );
        return;
    };
    let dir = wide();
    for scheme in ["w2pcz", "w2pcs", "w3pc", "w3pcs", "w4g32s", "w3g128", "w4g128", "w4g128z", "w5g64", "w8pc"] {
        train(&dir, scheme);
        let (_, hold) = HOLD.iter().find(|(word, _)| *word == scheme).expect("a scheme of the table");
        let folded: Vec<PathBuf> = hold.iter().map(|format| dir.join(&format!("{scheme}/{format}"))).collect();
        for format in *hold {
            dir.run(&format!("fold {scheme}/checkpoint --format {format} -o {scheme}/{format}")).ok();
        }
        let checkpoint = dir.join(&format!("{scheme}/checkpoint"));
        let read = read_back(&python, &checkpoint, &folded);
        let said = String::from_utf8_lossy(&read.stderr);
        assert!(read.status.success(), "{scheme}: {said}");
        assert_eq!(String::from_utf8_lossy(&read.stdout).lines().count(), hold.len(), "{scheme}: a line each");
    }
    // It can fail.
    let path = dir.join("w4g128/awq/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let read = read_back(&python, &dir.join("w4g128/checkpoint"), &[dir.join("w4g128/awq")]);
    assert_eq!(read.status.code(), Some(1), "a changed byte was not seen");
}

fn read_back(python: &str, source: &Path, folded: &[PathBuf]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/read_back.py");
    Command::new(python).arg(script).arg(source).args(folded).output().expect("the python of LRQAT_READERS runs")
}
