//! What the examples that time a backend share.

use common::compute::backend::Backend;
use common::compute::cpu::Cpu;
use common::compute::cuda::{Cuda, Time};
use half::bf16;

/// A backend that may know what its kernels take.
pub trait Timed: Backend {
    fn times(&self, call: &mut dyn FnMut()) -> Vec<Time>;
}

impl Timed for Cpu<bf16> {
    fn times(&self, _: &mut dyn FnMut()) -> Vec<Time> {
        Vec::new()
    }
}

impl Timed for Cuda {
    fn times(&self, call: &mut dyn FnMut()) -> Vec<Time> {
        Cuda::times(self, call).expect("the device works")
    }
}

/// `"kernels": {"NAME": {"calls": 1, "ms": 0.1}}`
pub fn json(times: &[Time]) -> String {
    let time = |Time { name, calls, ms }: &Time| format!("\"{name}\": {{\"calls\": {calls}, \"ms\": {ms:.4}}}");
    format!("\"kernels\": {{{}}}", times.iter().map(time).collect::<Vec<_>>().join(", "))
}

/// Numbers from -1 to 1.
pub fn random(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
