//! Inputs, and comparison.

/// A generator of 32-bit numbers (Numerical Recipes' linear congruence).
pub struct Random(pub u32);

impl Random {
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1664525).wrapping_add(1013904223);
        // The low bits of such a generator are poor.
        self.0 ^ self.0 >> 15
    }

    /// Between -1 and 1.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

pub fn floats(count: usize, seed: u32, scale: f32) -> Vec<f32> {
    let mut random = Random(seed);
    (0..count).map(|_| random.float() * scale).collect()
}

/// Bits of floats of all sizes, with the special ones among them.
pub fn all_floats(count: usize, seed: u32) -> Vec<u32> {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        65504.0,
        65520.0,
        65536.0,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-40,
        -1e-45,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        2147483648.0,
        -2147483648.0,
        4294967296.0,
        1e19,
        -1e19,
        255.5,
        3.0e-8,
    ];
    let mut random = Random(seed);
    let any = |random: &mut Random| match random.bits() % 4 {
        // Ties of halves are frequent where few bits are set.
        0 => random.bits() & 0xffff_c000,
        1 => (random.float() * 300.0).to_bits(),
        2 => 0x3f80_0000 + (random.bits() & 0x00ff_ffff),
        _ => random.bits(),
    };
    (0..count).map(|i| special.get(i).map_or_else(|| any(&mut random), |x: &f32| x.to_bits())).collect()
}

/// |found - wanted| relative to |wanted|, or to `least` if that is larger; infinite where only one is NaN.
pub fn error(found: f64, wanted: f64, least: f64) -> f64 {
    if found.is_nan() && wanted.is_nan() || found == wanted {
        return 0.0;
    }
    let error = (found - wanted).abs() / wanted.abs().max(least);
    if error.is_nan() { f64::INFINITY } else { error }
}
