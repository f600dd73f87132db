//! The committed PTX was made from the sources beside it. `kernels/compile --check` compares them by compiling.

use std::fs;

/// FNV-1a, 64 bits, as in kernels/compile.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |value, byte| (value ^ *byte as u64).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn ptx_is_that_of_its_source() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
    let mut compared = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "ptx") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let first: Vec<&str> = text.lines().next().unwrap().split(' ').collect();
        let ["//", "source", name, sum] = first[..] else { panic!("{}: no source", path.display()) };
        let source = fs::read(path.with_file_name(name)).unwrap();
        assert_eq!(sum, format!("{:016x}", checksum(&source)), "{}: run kernels/compile", path.display());
        compared += 1;
    }
    assert!(compared >= 9, "{compared} files");
}

#[test]
fn parameters_have_the_sizes_of_the_source() {
    let source = fs::read_to_string(crate::device::kernels("torture_memory")).unwrap();
    let sizes = gpu_emulator::parameter_sizes(&source).unwrap();
    assert_eq!(sizes["spaces"], [8, 8, 8, 24, 4]);
    assert_eq!(sizes.keys().collect::<Vec<_>>(), ["cached", "last_block", "spaces"]);
}
