//! Which tokens a training step sees: sample i of step t is a pure function of (seed, t, i) over the global batch.
//! Micro-batches, and ranks one day, only partition it.

/// Windows of `seq` tokens that lie within one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// First window number of each shard, and the number of all windows.
    starts: Vec<u64>,
    /// Tokens from a window to the next.
    step: usize,
}

impl Windows {
    /// All of them. None if no shard is as long as a window.
    pub fn new(lengths: Vec<usize>, seq: usize) -> Option<Windows> {
        Windows::every(lengths, seq, 1)
    }

    /// Those that begin at multiples of `seq`: what was said of a window holds for it alone.
    pub fn apart(lengths: Vec<usize>, seq: usize) -> Option<Windows> {
        Windows::every(lengths, seq, seq)
    }

    fn every(lengths: Vec<usize>, seq: usize, step: usize) -> Option<Windows> {
        let mut starts = vec![0u64];
        for len in lengths {
            let windows = if len < seq { 0 } else { (len - seq) / step + 1 };
            starts.push(starts[starts.len() - 1] + windows as u64);
        }
        if starts[starts.len() - 1] == 0 { None } else { Some(Windows { starts, step }) }
    }

    pub fn count(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// Shard and offset of sample `i` of step `t`, uniform over all windows.
    pub fn sample(&self, seed: u64, t: u64, i: u64) -> (usize, usize) {
        let mut hash = blake3::Hasher::new();
        hash.update(b"lrqat sample").update(&seed.to_le_bytes()).update(&t.to_le_bytes()).update(&i.to_le_bytes());
        let random = u64::from_le_bytes(hash.finalize().as_bytes()[..8].try_into().expect("eight bytes"));
        // The high part of the 128-bit product is uniform up to 2^-64 · count.
        let window = ((random as u128 * self.count() as u128) >> 64) as u64;
        let shard = self.starts.partition_point(|s| *s <= window) - 1;
        (shard, (window - self.starts[shard]) as usize * self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_within_shards_and_all_are_drawn() {
        let w = Windows::new(vec![5, 3, 2, 4], 4).unwrap();
        assert_eq!(w.count(), 2 + 1);
        let mut seen = std::collections::BTreeMap::new();
        for i in 0..3000 {
            *seen.entry(w.sample(7, 1, i)).or_insert(0) += 1;
        }
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [(0, 0), (0, 1), (3, 0)]);
        assert!(seen.values().all(|n| (900..1100).contains(n)), "{seen:?}");
        assert_eq!(w.sample(7, 1, 5), w.sample(7, 1, 5));
    }

    #[test]
    fn windows_apart_do_not_overlap() {
        let w = Windows::apart(vec![9, 3, 4], 4).unwrap();
        assert_eq!(w.count(), 2 + 1);
        let seen: std::collections::BTreeSet<_> = (0..100).map(|i| w.sample(7, 1, i)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(0, 0), (0, 4), (2, 0)]);
        assert_eq!(Windows::apart(vec![3], 4), None);
    }

    #[test]
    fn seed_step_and_sample_all_matter() {
        let w = Windows::new(vec![1 << 30], 2).unwrap();
        let drawn = w.sample(0, 0, 0);
        assert!(
            [w.sample(1, 0, 0), w.sample(0, 1, 0), w.sample(0, 0, 1), w.sample(0, 1, 1)].iter().all(|s| *s != drawn)
        );
        assert_ne!(w.sample(0, 1, 0), w.sample(0, 0, 1));
    }

    #[test]
    fn too_short_a_text_has_no_window() {
        assert_eq!(Windows::new(vec![3, 2], 4), None);
        assert_eq!(Windows::new(vec![4], 4).unwrap().count(), 1);
    }
}
