//! Activations at the edge of an op that is written in f32: as they are if they are f32, converted if not.

use std::borrow::Cow;

use super::Cpu;
use super::element::Element;
use super::elementwise::{round, widen};
use crate::compute::backend::Output;

/// The values in f32.
pub fn widened<E: Element>(x: &[E]) -> Cow<'_, [f32]> {
    match E::as_f32(x) {
        Some(x) => Cow::Borrowed(x),
        None => {
            let mut wide = vec![0.0; x.len()];
            widen(x, &mut wide);
            Cow::Owned(wide)
        }
    }
}

/// Sets `x` to what `set` makes, rounded.
pub fn set_through_f32<E: Element>(x: &mut [E], set: impl FnOnce(&mut [f32])) {
    match E::as_f32_mut(x) {
        Some(x) => set(x),
        None => {
            let mut wide = vec![0.0; x.len()];
            set(&mut wide);
            round(&wide, x);
        }
    }
}

/// Writes `len` elements of a product; `make` is told whether it adds to what is there.
pub fn write_product<E: Element>(output: Output<Cpu<E>>, len: usize, make: impl FnOnce(&mut [f32], bool)) {
    match output {
        Output::Activation(y) => set_through_f32(&mut y[..len], |y| make(y, false)),
        Output::Buffer { to, accumulate } => make(&mut to[..len], accumulate),
    }
}

/// Each value as `E` holds it.
pub fn round_in_place<E: Element>(x: &mut [f32]) {
    if E::as_f32(&[]).is_none() {
        let mut rounded = vec![E::zeroed(); x.len()];
        round(x, &mut rounded);
        widen(&rounded, x);
    }
}
