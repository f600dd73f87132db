//! Sums and maxima of slices: element i goes to lane i mod LANES, the lanes are joined by halves. The lanes fill
//! as many registers as the instruction set needs for them, so that each gives the same bits.

use pulp::{Scalar, Simd, WithSimd};

use super::simd::ARCH;

/// Partial results kept side by side: four AVX-512 registers, to hide the latency of an addition.
const LANES: usize = 64;

/// Σ xᵢyᵢ
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    ARCH.dispatch(Reduce { xs: [x, y], by: Dot })
}

/// Σ xᵢyᵢzᵢ
pub fn dot3(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    ARCH.dispatch(Reduce { xs: [x, y, z], by: Dot3 })
}

/// Σ xᵢ
pub fn sum(x: &[f32]) -> f32 {
    ARCH.dispatch(Reduce { xs: [x], by: Sum })
}

/// The largest element, -∞ of none. Of what has a NaN, a NaN or the largest of the rest.
pub fn max(x: &[f32]) -> f32 {
    ARCH.dispatch(Reduce { xs: [x], by: Max })
}

/// How K slices become one number.
trait Reduction<const K: usize> {
    /// What an element past the end counts as, in each of the slices.
    const NEUTRAL: f32;
    fn step<S: Simd>(simd: S, lane: S::f32s, xs: [S::f32s; K]) -> S::f32s;
    fn join<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s;
}

struct Reduce<'a, const K: usize, R> {
    /// All of one length.
    xs: [&'a [f32]; K],
    #[allow(dead_code)] // names the type
    by: R,
}

impl<const K: usize, R: Reduction<K>> WithSimd for Reduce<'_, K, R> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        match S::F32_LANES {
            16 => self.in_registers::<S, 4>(simd),
            8 => self.in_registers::<S, 8>(simd),
            4 => self.in_registers::<S, 16>(simd),
            _ => self.in_registers::<S, LANES>(simd),
        }
    }
}

impl<const K: usize, R: Reduction<K>> Reduce<'_, K, R> {
    /// With N registers for the lanes.
    #[inline(always)]
    fn in_registers<S: Simd, const N: usize>(self, simd: S) -> f32 {
        let n = self.xs[0].len();
        let parts = self.xs.map(|x| x[..n].as_chunks::<LANES>());
        let mut registers = [simd.splat_f32s(R::NEUTRAL); N];
        for at in 0..n / LANES {
            step_all::<S, K, N, R>(simd, &mut registers, parts.map(|(whole, _)| &whole[at]));
        }
        let left = n % LANES;
        if left > 0 {
            let padded = parts.map(|(_, rest)| {
                let mut padded = [R::NEUTRAL; LANES];
                padded[..left].copy_from_slice(rest);
                padded
            });
            step_all::<S, K, N, R>(simd, &mut registers, padded.each_ref());
        }

        let mut half = N / 2;
        while half > 0 {
            for i in 0..half {
                registers[i] = R::join(simd, registers[i], registers[i + half]);
            }
            half /= 2;
        }
        let mut lanes = [0.0; LANES];
        S::as_mut_simd_f32s(&mut lanes).0[0] = registers[0];
        let mut half = S::F32_LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = R::join(Scalar, lanes[i], lanes[i + half]);
            }
            half /= 2;
        }
        lanes[0]
    }
}

#[inline(always)]
fn step_all<S: Simd, const K: usize, const N: usize, R: Reduction<K>>(
    simd: S,
    registers: &mut [S::f32s; N],
    xs: [&[f32; LANES]; K],
) {
    let xs = xs.map(|x| S::as_simd_f32s(x).0);
    for (i, register) in registers.iter_mut().enumerate() {
        *register = R::step(simd, *register, xs.map(|x| x[i]));
    }
}

struct Dot;
struct Dot3;
struct Sum;
struct Max;

impl Reduction<2> for Dot {
    const NEUTRAL: f32 = 0.0;
    #[inline(always)]
    fn step<S: Simd>(simd: S, lane: S::f32s, [x, y]: [S::f32s; 2]) -> S::f32s {
        simd.mul_add_f32s(x, y, lane)
    }
    #[inline(always)]
    fn join<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.add_f32s(a, b)
    }
}

impl Reduction<3> for Dot3 {
    const NEUTRAL: f32 = 0.0;
    #[inline(always)]
    fn step<S: Simd>(simd: S, lane: S::f32s, [x, y, z]: [S::f32s; 3]) -> S::f32s {
        simd.mul_add_f32s(simd.mul_f32s(x, y), z, lane)
    }
    #[inline(always)]
    fn join<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.add_f32s(a, b)
    }
}

impl Reduction<1> for Sum {
    const NEUTRAL: f32 = 0.0;
    #[inline(always)]
    fn step<S: Simd>(simd: S, lane: S::f32s, [x]: [S::f32s; 1]) -> S::f32s {
        simd.add_f32s(lane, x)
    }
    #[inline(always)]
    fn join<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.add_f32s(a, b)
    }
}

impl Reduction<1> for Max {
    const NEUTRAL: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn step<S: Simd>(simd: S, lane: S::f32s, [x]: [S::f32s; 1]) -> S::f32s {
        simd.max_f32s(lane, x)
    }
    #[inline(always)]
    fn join<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.max_f32s(a, b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::random;

    #[test]
    fn exact_on_integers() {
        let x: Vec<f32> = (1..=1000).map(|i| i as f32).collect();
        assert_eq!(sum(&x), 500_500.0);
        assert_eq!(dot(&x[..100], &x[..100]), 338_350.0);
        assert_eq!(dot3(&x[..20], &x[..20], &x[..20]), 44_100.0);
        assert_eq!(max(&x[..77]), 77.0);
        assert_eq!(max(&[-3.0, -5.0]), -3.0);
        assert_eq!((max(&[]), sum(&[]), dot(&[], &[])), (f32::NEG_INFINITY, 0.0, 0.0));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for n in [1, 63, 64, 65, 576, 1500] {
            let (x, y, z) = (random(2, n), random(3, n), random(4, n));
            let baseline = on::<Scalar>(Some(Scalar), [&x, &y, &z]);
            for other in [on(pulp::x86::V3::try_new(), [&x, &y, &z]), on(pulp::x86::V4::try_new(), [&x, &y, &z])] {
                assert!(other.is_none() || other == baseline, "{n}: {other:?}, baseline {baseline:?}");
            }
            assert_eq!(Some([dot(&x, &y), dot3(&x, &y, &z), sum(&x), max(&x)].map(f32::to_bits)), baseline);
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn on<S: Simd>(simd: Option<S>, [x, y, z]: [&[f32]; 3]) -> Option<[u32; 4]> {
        let simd = simd?;
        let results = [
            simd.vectorize(Reduce { xs: [x, y], by: Dot }),
            simd.vectorize(Reduce { xs: [x, y, z], by: Dot3 }),
            simd.vectorize(Reduce { xs: [x], by: Sum }),
            simd.vectorize(Reduce { xs: [x], by: Max }),
        ];
        Some(results.map(f32::to_bits))
    }
}
