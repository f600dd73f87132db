//! The low-rank factors: A [N, r] starts at zero, B [r, K] at U(−1/√K, 1/√K) (LR-QAT; the reference code's
//! Kaiming-uniform with a = √5), so that Z starts at Φ0.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A random generator that is a pure function of `seed` and `name`: neither the order of tensors nor threads matter.
pub fn generator(seed: u64, name: &str) -> ChaCha8Rng {
    let mut hash = blake3::Hasher::new();
    hash.update(&seed.to_le_bytes()).update(name.as_bytes());
    ChaCha8Rng::from_seed(*hash.finalize().as_bytes())
}

/// Start values of B.
pub fn init_b(rank: usize, k: usize, seed: u64, name: &str) -> Vec<f32> {
    let mut rng = generator(seed, name);
    let bound = 1.0 / (k as f32).sqrt();
    // 24 random bits give every multiple of 2^-24 in [0, 1).
    (0..rank * k).map(|_| ((rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32 * 2.0 - 1.0) * bound).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn b_is_uniform_and_reproducible() {
        let b = super::init_b(32, 400, 0, "x");
        assert_eq!(b, super::init_b(32, 400, 0, "x"));
        assert_ne!(b, super::init_b(32, 400, 1, "x"));
        assert_ne!(b, super::init_b(32, 400, 0, "y"));
        let (n, bound) = (b.len() as f64, 0.05);
        assert!(b.iter().all(|v| v.abs() <= bound as f32));
        let mean = b.iter().map(|v| *v as f64).sum::<f64>() / n;
        let var = b.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / n;
        // Five standard errors of the mean and of the second moment of U(-c, c): c²/3, variance of v² is 4c⁴/45.
        assert!(mean.abs() < 5.0 * bound / (3.0 * n).sqrt());
        assert!((var - bound * bound / 3.0).abs() < 5.0 * bound * bound * (4.0 / 45.0 / n).sqrt());
    }
}
