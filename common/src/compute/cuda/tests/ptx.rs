//! The committed PTX: made from its sources, with the parameters that the wrappers hand over.

use std::path::Path;

use crate::compute::cuda::launch::Source;
use crate::compute::cuda::{attention, fit, head, kernels, optimizer, product, weight};

type Kernels = &'static [(&'static str, &'static [usize])];

const SOURCES: [(Source, Kernels); 9] = [
    (attention::Kernels::SOURCE, attention::Kernels::KERNELS),
    (fit::Kernels::SOURCE, fit::Kernels::KERNELS),
    (head::Kernels::SOURCE, head::Kernels::KERNELS),
    (kernels::Elementwise::SOURCE, kernels::Elementwise::KERNELS),
    (kernels::Norm::SOURCE, kernels::Norm::KERNELS),
    (kernels::Rope::SOURCE, kernels::Rope::KERNELS),
    (optimizer::Kernels::SOURCE, optimizer::Kernels::KERNELS),
    (product::Kernels::SOURCE, product::Kernels::KERNELS),
    (weight::Kernels::SOURCE, weight::Kernels::KERNELS),
];

#[test]
fn ptx_is_that_of_its_source() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/compute/cuda");
    assert_eq!(gpu_emulator::committed::check(&directory), Ok(SOURCES.len()));
}

/// A wrapper that hands over an i32 where the kernel reads an i64 fails here, and so does a kernel without a wrapper.
#[test]
fn wrappers_have_the_parameters_of_their_kernels() {
    for (source, kernels) in SOURCES {
        let mut sizes = gpu_emulator::parameter_sizes(source.ptx).unwrap();
        for (name, handed_over) in kernels {
            assert_eq!(sizes.remove(*name).as_deref(), Some(*handed_over), "{}: {name}", source.file);
        }
        assert!(sizes.is_empty(), "{}: no wrapper for {sizes:?}", source.file);
    }
}

/// Drivers from 525 on read version 8.0; compute_80 is what runs on every GPU from Ampere on.
#[test]
fn ptx_is_for_old_drivers() {
    for (source, _) in SOURCES {
        assert!(source.ptx.contains(".version 8.0\n"), "{}", source.file);
        assert!(source.ptx.contains(".target sm_80\n"), "{}", source.file);
    }
}

/// Whatever is added up is added in an order that does not depend on who comes first.
#[test]
fn nothing_is_added_atomically() {
    for (source, _) in SOURCES {
        let mut words = source.ptx.split_whitespace();
        let atomic = words.find(|word| word.starts_with("atom.") || word.starts_with("red."));
        assert_eq!(atomic, None, "{}", source.file);
    }
}
