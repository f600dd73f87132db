//! Running sums side by side: vectorizable, and the same bits on every instruction set, since the order of additions
//! is fixed. Element i is added to lane i mod [`LANES`].

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
