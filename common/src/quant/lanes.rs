//! Loops compiled for the machine's instruction set, and running sums side by side: vectorizable, and the same bits on
//! every instruction set, since the order of additions is fixed. Element i is added to lane i mod [`LANES`].

pub(crate) use super::isa::ARCH;

/// Runs `kernel` compiled for the instruction set of this process ([`super::isa`]). What it calls must be
/// `#[inline(always)]`: only inlined code is compiled anew.
#[inline(always)]
pub fn simd<R>(kernel: impl FnOnce() -> R) -> R {
    ARCH.dispatch(kernel)
}

/// One AVX-512 register of f32.
pub const LANES: usize = 16;

/// The lanes joined by halves.
#[inline(always)]
pub fn join(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}
