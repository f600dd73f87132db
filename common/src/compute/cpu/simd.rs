//! Plain Rust loops compiled for each instruction set and chosen at run time, and the few building blocks that
//! such loops share. Sums go through a fixed number of lanes and a fixed tree (reduce.rs) and products are fused
//! by name, so that AVX-512, AVX2 and the baseline give the same bits.

use super::reduce::sum;
pub(super) use crate::quant::lanes::ARCH;
pub use crate::quant::lanes::simd;

/// x -= shift, x = exp(x); returns the sum. Sums of 1024 are joined in f64: softmax over a large vocabulary.
#[inline(always)]
pub fn exp_and_sum(x: &mut [f32], shift: f32) -> f64 {
    let mut total = 0.0;
    for part in x.chunks_mut(1024) {
        for x in part.iter_mut() {
            *x = exp(*x - shift);
        }
        total += f64::from(sum(part));
    }
    total
}

/// e^x within 1 ulp; 0 where the result would be below the smallest normal number.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r = 1 + r + r²·q(r), where q is the polynomial of degree 4 with the least
/// largest relative error (3e-9, fitted with Lawson's algorithm).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54; // ln of the smallest normal number
    const HIGHEST: f32 = 89.0; // beyond the ln of the largest: gives ∞
    const ROUND: f32 = 12_582_912.0; // 1.5·2^23: adding it rounds to an integer, left in the low bits
    const LN2_HIGH: f32 = std::f32::consts::LN_2;
    const LN2_LOW: f32 = -1.904_654_3e-9; // ln 2 - LN2_HIGH

    // Comparisons that are false of NaN, so that it passes through.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let rounded = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let q = 0.001_381_46_f32.mul_add(r, 0.008_368_717).mul_add(r, 0.041_668_39);
    let q = q.mul_add(r, 0.166_665_21).mul_add(r, 0.499_999_94);
    let e = (r * r).mul_add(q, r) + 1.0;

    // 2^n in two factors: n = 128 is too large for one.
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let e = e * power(half) * power(n.wrapping_sub(half));
    if x < LOWEST { 0.0 } else { e }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::{on_every_isa, random};

    #[test]
    fn exp_is_within_one_ulp() {
        let mut worst = 0.0f64;
        let mut check = |x: f32| {
            let exact = f64::from(x).exp();
            let nearest = exact as f32;
            if nearest.is_finite() && nearest >= f32::MIN_POSITIVE {
                let ulp = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
                let ulp = if ulp.is_finite() { ulp } else { 2f64.powi(104) };
                worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
            }
        };
        for step in 0..2_000_000 {
            check(-87.33 + step as f32 * 8.8e-5);
        }
        for x in random(1, 100_000) {
            check(x);
            check(x * 1e-3);
        }
        assert!(worst <= 1.0, "{worst} ulp");
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert_eq!(exp(88.73), f32::INFINITY);
        assert!(exp(88.72).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for n in [1, 31, 32, 33, 576, 1500] {
            let x = random(2, n);
            on_every_isa(|| x.iter().map(|x| exp(*x)).collect());
            on_every_isa(|| {
                let mut x = x.clone();
                let sum = exp_and_sum(&mut x, 0.5);
                x.push(sum as f32);
                x
            });
        }
    }
}
