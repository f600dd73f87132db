//! Inverse frequencies of the rotary position embedding (Su et al. 2021), with the scalings that LLaMA models use,
//! computed as transformers does: in f32, angle = position · inverse frequency.

use super::config::{Rope, Scaling};

/// One inverse frequency for each pair of a head's elements: θ^(−2i/head_dim), scaled.
pub fn inverse_frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let plain = 1.0 / (rope.theta as f32).powf(2.0 * i as f32 / head_dim as f32);
            scale(plain, &rope.scaling)
        })
        .collect()
}

fn scale(freq: f32, scaling: &Scaling) -> f32 {
    match *scaling {
        Scaling::None => freq,
        Scaling::Linear { factor } => freq / factor as f32,
        // Long wavelengths are stretched by the factor, short ones kept, those between interpolated.
        Scaling::Llama3 { factor, low, high, original } => {
            let wavelength = 2.0 * std::f32::consts::PI / freq;
            if wavelength > (original / low) as f32 {
                freq / factor as f32
            } else if wavelength < (original / high) as f32 {
                freq
            } else {
                let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
                (1.0 - smooth) * freq / factor as f32 + smooth * freq
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values printed by transformers 5 (ROPE_INIT_FUNCTIONS) for LLaMA-3.1-8B's head of 128 and θ = 500 000.
    #[test]
    fn llama3_scaling_as_transformers() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let f = inverse_frequencies(&Rope { theta: 500000.0, scaling }, 128);
        for (i, expected) in LLAMA31 {
            let rel = (f[i] - expected).abs() / expected;
            assert!(rel < 2e-6, "{i}: {} against {expected}", f[i]);
        }
    }

    const LLAMA31: [(usize, f32); 6] = [
        (0, 1.0),
        (16, 0.037_606_03),
        (29, 0.002_166_570_6),
        (32, 0.000_524_846),
        (35, 9.556212e-5),
        (63, 3.068_926e-7),
    ];
}
