//! The kernels on an emulated GPU (or, with GPU_EMULATOR=off, on a real one) beside the CPU backend in bf16, which is
//! held against PyTorch elsewhere.

mod adapter;
mod attention;
mod fit;
mod head;
mod linear;
mod ops;
mod optimizer;
mod product;
mod ptx;

use std::path::PathBuf;

use gpu_emulator::Device;
use half::bf16;

use super::Cuda;
use crate::compute::backend::Backend;
use crate::compute::cpu::Cpu;
pub use crate::compute::cpu::testing::{Adapted, random};

/// Something that both backends compute.
trait Case {
    /// What comes out, tensor by tensor.
    fn run<B: Backend>(&self, b: &B) -> Vec<(&'static str, Vec<f32>)>;
}

/// Runs the case on the GPU and on the CPU. Each tensor may be off by `limit(name)` times its root mean square. With
/// blocks and threads in reverse order the bits are the same.
fn compare(what: &str, case: &impl Case, limit: impl Fn(&str) -> f64) {
    let device = Cuda::open().unwrap();
    let gpu = case.run(&device);
    let bits: Vec<u8> = gpu.iter().flat_map(|(_, x)| x).flat_map(|x| x.to_le_bytes()).collect();
    same_bits_as_before(&format!("{what} {}", device.path()), &bits);
    let cpu = case.run(&Cpu::<bf16>::new());
    assert_eq!(gpu.len(), cpu.len());
    for ((name, got), (_, want)) in gpu.iter().zip(&cpu) {
        assert_eq!(got.len(), want.len(), "{what}: {name}");
        let square: f64 = want.iter().map(|x| f64::from(*x).powi(2)).sum();
        let size = (square / want.len().max(1) as f64).sqrt();
        let worst = got.iter().zip(want).map(|(got, want)| f64::from((got - want).abs())).fold(0.0, f64::max);
        let finite = got.iter().all(|x| x.is_finite());
        assert!(finite && worst <= limit(name) * size, "{what}: {name} is off by {:.1e}", worst / size);
    }
}

/// The first run of a test on the emulator keeps the bits of `what` beside its report; later ones must find the same.
fn same_bits_as_before(what: &str, bits: &[u8]) {
    let Some(report) = std::env::var_os("GPU_EMULATOR_REPORT") else { return };
    let name: String = what.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    let kept = PathBuf::from(report).with_file_name(format!("bits-{name}"));
    match std::fs::read(&kept) {
        Ok(before) => assert!(before == bits, "{what}: another order gives other bits"),
        Err(_) => std::fs::write(kept, bits).unwrap(),
    }
}

/// Every device that a kernel has to give the same bits on.
fn devices() -> [Device; 3] {
    [Device::new(), Device::new().reversed_blocks().reversed_threads(), Device::new().without_cublas()]
}

/// An activation of these values.
fn narrow<B: Backend>(b: &B, values: &[f32]) -> B::Activation {
    let mut to = b.activation(values.len()).unwrap();
    b.round(&b.upload(values).unwrap(), &mut to, values.len());
    to
}

/// The first values of an activation.
fn wide<B: Backend>(b: &B, x: &B::Activation, len: usize) -> Vec<f32> {
    let mut to = b.zeros(len).unwrap();
    b.widen(x, &mut to, len);
    b.download(&to).unwrap()
}
