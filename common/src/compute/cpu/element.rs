//! The type that activations are held in: f32, or bf16. Ops compute in f32 and round once, as they store.

use bytemuck::Pod;
use half::bf16;

use super::product::Tiled;
use crate::format::tensor::Dtype;

pub trait Element: Pod + Send + Sync + Tiled {
    /// As `--compute` and the compute path say it.
    const NAME: &'static str;
    const DTYPE: Dtype;

    fn to_f32(self) -> f32;
    /// The nearest value, the even one of two; a NaN stays one.
    fn from_f32(x: f32) -> Self;
    /// The slice itself, if it is bf16.
    fn as_bf16_mut(x: &mut [Self]) -> Option<&mut [bf16]>;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }

    fn as_bf16_mut(_: &mut [f32]) -> Option<&mut [bf16]> {
        None
    }
}

/// Integer arithmetic and one selection, which vectorize; the conversions of `half` branch and call.
impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const DTYPE: Dtype = Dtype::BF16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        let bits = x.to_bits();
        // Half a unit of the last place, less one where that place is even.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        // Rounding could carry a NaN to ∞: it becomes quiet instead.
        let kept = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
        bf16::from_bits((kept >> 16) as u16)
    }

    fn as_bf16_mut(x: &mut [bf16]) -> Option<&mut [bf16]> {
        Some(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::on_every_isa;

    /// Against the crate `half`: every bf16, the ties and neighbours of each, and a walk through all f32.
    #[test]
    fn rounds_as_half() {
        let check = |x: f32| {
            let (ours, theirs) = (<bf16 as Element>::from_f32(x), bf16::from_f32(x));
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{x} {:#x}", x.to_bits());
            let (ours, theirs) = (Element::to_f32(theirs), theirs.to_f32());
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{theirs}");
        };
        for high in 0..=0xffff_u32 {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                check(f32::from_bits(high << 16 | low));
            }
        }
        for bits in (0..=u32::MAX).step_by(997) {
            check(f32::from_bits(bits));
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> = (0..=u32::MAX).step_by(65_521).map(f32::from_bits).collect();
        on_every_isa(|| x.iter().map(|x| Element::to_f32(<bf16 as Element>::from_f32(*x))).collect());
    }
}
