//! Changes of type.

use rayon::prelude::*;

use super::PART;
use super::element::Element;
use super::simd::simd;

/// y = x, rounded to the type of activations
pub fn round<E: Element>(x: &[f32], y: &mut [E]) {
    each(x, y, E::from_f32);
}

/// y = x in f32
pub fn widen<E: Element>(x: &[E], y: &mut [f32]) {
    each(x, y, E::to_f32);
}

/// y = x, rounded, and x = y
pub fn round_both<E: Element>(x: &mut [f32], y: &mut [E]) {
    assert!(x.len() == y.len(), "conversion: shapes");
    y.par_chunks_mut(PART).zip(x.par_chunks_mut(PART)).for_each(|(y, x)| {
        simd(
            #[inline(always)]
            || {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = E::from_f32(*x);
                    *x = y.to_f32();
                }
            },
        )
    });
}

pub fn fill_zero(x: &mut [f32]) {
    x.par_chunks_mut(PART).for_each(|x| x.fill(0.0));
}

#[inline(always)]
fn each<A: Element, B: Element>(x: &[A], y: &mut [B], f: impl Fn(A) -> B + Sync) {
    assert!(x.len() == y.len(), "conversion: shapes");
    y.par_chunks_mut(PART).zip(x.par_chunks(PART)).for_each(|(y, x)| {
        simd(
            #[inline(always)]
            || {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = f(*x);
                }
            },
        )
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::{in_both, random};
    use half::bf16;

    #[test]
    fn changes_of_type() {
        let x = random(4, 2 * PART + 77);
        let (rounded, wide) = in_both(&x);
        let (mut y, mut back) = (vec![bf16::NAN; x.len()], vec![f32::NAN; x.len()]);
        round(&x, &mut y);
        widen(&y, &mut back);
        assert_eq!((y, back), (rounded, wide));
        let (mut both, mut y) = (x.clone(), vec![bf16::NAN; x.len()]);
        round_both(&mut both, &mut y);
        assert_eq!((y, both), in_both(&x));
        let mut same = vec![f32::NAN; x.len()];
        round(&x, &mut same);
        assert_eq!(same, x);
        fill_zero(&mut same);
        assert!(same.iter().all(|x| *x == 0.0));
    }
}
