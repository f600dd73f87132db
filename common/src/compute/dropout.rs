//! Dropout of an adapter's input (Srivastava et al. 2014): which elements are dropped is a function of seed, step,
//! micro-batch, linear and position, so that a pass that is computed again, or a run that is resumed, repeats it.

/// The mask of one linear in one pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    pub key: [u32; 2],
    /// An element is dropped if its 32 random bits are below this: p·2^32.
    pub threshold: u32,
    /// 1/(1 − p)
    pub scale: f32,
}

/// What the masks of a pass have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass {
    pub p: f32,
    pub seed: u64,
    pub step: u64,
    pub micro_batch: u64,
}

impl Pass {
    /// The mask of the linear with this number; none if nothing is dropped.
    pub fn of_linear(&self, linear: u64) -> Option<Dropout> {
        let mut hash = blake3::Hasher::new();
        for word in [self.seed, self.step, self.micro_batch, linear] {
            hash.update(&word.to_le_bytes());
        }
        let bytes = hash.finalize();
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes.as_bytes()[at + i]));
        let threshold = (f64::from(self.p) * 2f64.powi(32)) as u32;
        (threshold > 0).then(|| Dropout { key: [word(0), word(4)], threshold, scale: 1.0 / (1.0 - self.p) })
    }
}

/// Every bit of the result depends on every bit of x (a bijection; "lowbias32" of the Hash Prospector, 2018).
#[inline(always)]
fn mix(mut x: u32) -> u32 {
    x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

impl Dropout {
    /// What all elements of a row share.
    #[inline(always)]
    pub fn row(&self, row: usize) -> u32 {
        mix(row as u32 ^ self.key[0]) ^ self.key[1]
    }

    /// What an element is multiplied by: 0 or 1/(1 − p). `of_row` is [`Dropout::row`].
    #[inline(always)]
    pub fn factor(&self, of_row: u32, column: usize) -> f32 {
        let bits = mix((column as u32).wrapping_mul(0x9e37_79b9) ^ of_row);
        if bits < self.threshold { 0.0 } else { self.scale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part p is dropped, in every row and every column, and neighbours, rows and linears have nothing to do with each other.
    #[test]
    fn drops_its_part_independently() {
        let (rows, columns) = (400, 300);
        let pass = Pass { p: 0.25, seed: 1, step: 2, micro_batch: 3 };
        let mask = |pass: Pass, linear: u64| {
            let d = pass.of_linear(linear).unwrap();
            assert_eq!(d.scale, 4.0 / 3.0);
            let kept = |i: usize| d.factor(d.row(i / columns), i % columns) != 0.0;
            (0..rows * columns).map(|i| f64::from(u8::from(kept(i)))).collect::<Vec<f64>>()
        };
        let m = mask(pass, 7);
        assert_eq!(m, mask(pass, 7));
        // Within five standard errors of the mean of n draws with p = 1/4.
        let close = |mean: f64, n: usize| assert!((mean - 0.75).abs() < 5.0 * (0.1875 / n as f64).sqrt(), "{mean} {n}");
        close(m.iter().sum::<f64>() / m.len() as f64, m.len());
        for i in 0..rows {
            close(m[i * columns..(i + 1) * columns].iter().sum::<f64>() / columns as f64, columns);
        }
        for j in 0..columns {
            close((0..rows).map(|i| m[i * columns + j]).sum::<f64>() / rows as f64, rows);
        }
        let others = [
            mask(pass, 8),
            mask(Pass { step: 4, ..pass }, 7),
            mask(Pass { seed: 2, ..pass }, 7),
            mask(Pass { micro_batch: 0, ..pass }, 7),
            m[1..].to_vec(),
            m[columns..].to_vec(),
            m[columns + 1..].to_vec(),
        ];
        for other in others {
            let n = other.len();
            let together = m.iter().zip(&other).map(|(a, b)| (a - 0.75) * (b - 0.75)).sum::<f64>() / n as f64;
            assert!(together.abs() < 5.0 * 0.1875 / (n as f64).sqrt(), "{together}");
        }
    }

    #[test]
    fn nothing_is_dropped_at_0() {
        assert_eq!(Pass { p: 0.0, seed: 1, step: 2, micro_batch: 3 }.of_linear(0), None);
    }
}
