//! Loops compiled for the machine's instruction set, and running sums side by side: vectorizable, and the same bits on
//! every instruction set, since the order of additions is fixed. Element i is added to lane i mod [`LANES`].

pub(crate) use super::isa::ARCH;

/// Runs `kernel` compiled for the instruction set of this process ([`super::isa`]). What it calls must be
/// `#[inline(always)]`: only inlined code is compiled anew.
#[inline(always)]
pub fn simd<R>(kernel: impl FnOnce() -> R) -> R {
    ARCH.dispatch(kernel)
}

/// Asks for `values` to be brought to the second-level cache, where the processor takes such hints: rows of a block lie too
/// far apart for it to see them coming.
#[inline(always)]
pub fn fetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    lines(values, |line| {
        // SAFETY: a hint, of an address within the slice.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line) }
    });
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// The same to the first-level cache: what is read next.
#[inline(always)]
pub fn fetch_next<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    lines(values, |line| {
        // SAFETY: as above.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line) }
    });
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn lines<T>(values: &[T], each: impl Fn(*const i8)) {
    for line in (0..size_of_val(values)).step_by(64) {
        each(values.as_ptr().cast::<i8>().wrapping_add(line));
    }
}

/// One AVX-512 register of f32.
pub const LANES: usize = 16;

/// The sum of the lanes of each row, as [`join`] gives it, with the rows side by side.
#[inline(always)]
pub fn join_columns(mut lanes: [[f32; LANES]; LANES]) -> [f32; LANES] {
    let mut width = LANES / 2;
    while width > 0 {
        let (left, right) = lanes.split_at_mut(width);
        for (left, right) in left.iter_mut().zip(right) {
            for (left, right) in left.iter_mut().zip(right) {
                *left += *right;
            }
        }
        width /= 2;
    }
    lanes[0]
}

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
