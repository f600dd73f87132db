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

/// The sum of the lanes.
#[inline(always)]
pub fn join(sums: [f32; LANES]) -> f32 {
    join_by(sums, |a, b| a + b)
}

/// The lanes joined by halves.
#[inline(always)]
pub fn join_by(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The first value that is not finite.
#[inline(always)]
pub fn not_finite(values: &[f32]) -> Option<usize> {
    // A look at all of them is vectorized, a search is not.
    let any = values.iter().fold(false, |any, v| any | !v.is_finite());
    if any { values.iter().position(|v| !v.is_finite()) } else { None }
}
