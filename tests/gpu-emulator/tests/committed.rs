//! The committed PTX was made from the sources beside it.

use std::fs;
use std::path::Path;

use gpu_emulator::committed;

#[test]
fn ptx_is_that_of_its_source() {
    let compared = committed::check(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels"))).unwrap();
    assert!(compared >= 9, "{compared} files");
}

#[test]
fn parameters_have_the_sizes_of_the_source() {
    let source = fs::read_to_string(crate::device::kernels("torture_memory")).unwrap();
    let sizes = gpu_emulator::parameter_sizes(&source).unwrap();
    assert_eq!(sizes["spaces"], [8, 8, 8, 24, 4]);
    assert_eq!(sizes.keys().collect::<Vec<_>>(), ["cached", "last_block", "spaces"]);
}
