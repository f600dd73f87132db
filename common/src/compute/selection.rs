//! Which K ids of a distribution stand for it: the largest with their own probability, and draws from all others, which
//! weigh m/S each, m being the mass of the others and S the number of draws. Each id then has on average the weight of its
//! probability, and so has what is computed with them: a loss, its gradient.
//!
//! How many are drawn follows from the distribution: an id is kept if its probability is at least m/S, m and S being those
//! from it on, and no other is then drawn twice. With draws at even distances in the cumulated others (systematic sampling,
//! Madow 1949) this is the choice with the least squared error of the weights (Fearnhead and Clifford, On-line inference
//! for hidden Markov models via particle filters, 2003).

use super::cpu::reduce::{max, sum};
use super::cpu::simd::{exp, exp_and_sum};

/// K ids of a softmax.
#[derive(Debug, Default, PartialEq)]
pub struct Selection {
    /// First those that are kept, the largest first, then those that are drawn, in ascending order.
    pub ids: Vec<u32>,
    pub kept: usize,
    /// ln of the mass of all that are not kept, which the drawn ones stand for.
    pub ln_mass: f64,
    /// ln Σ e^logit.
    pub lse: f64,
}

/// `k` ids, fewer than there are logits. `at`, a multiple of 2^-32 in [0, 1), is where between two draws the first lies: if
/// it is uniform, the weights are right on average.
#[inline(always)]
pub fn select(logits: &[f32], k: usize, at: f64) -> Selection {
    let mut ids = largest(logits, k);
    let most = max(logits);
    let top: Vec<f32> = ids.iter().map(|id| exp(logits[*id as usize] - most)).collect();
    let mut others = logits.to_vec();
    ids.iter().for_each(|id| others[*id as usize] = f32::NEG_INFINITY);
    // What is left from each of the largest on.
    let mut left = vec![exp_and_sum(&mut others, most); k + 1];
    for i in (0..k).rev() {
        left[i] = left[i + 1] + f64::from(top[i]);
    }
    let kept = (0..k).find(|i| f64::from(top[*i]) * ((k - i) as f64) < left[*i]).unwrap_or(k);
    for (id, p) in ids.iter().zip(&top).skip(kept) {
        others[*id as usize] = *p;
    }
    ids.truncate(kept);
    draw(&others, k - kept, at, &mut ids);
    // Of logits that are no numbers nothing can be drawn.
    ids.resize(k, 0);
    Selection { ids, kept, ln_mass: (left[kept] / left[0]).ln(), lse: left[0].ln() + f64::from(most) }
}

/// The ids at the points (i + at)/n of the cumulated weights.
#[inline(always)]
fn draw(weights: &[f32], n: usize, at: f64, ids: &mut Vec<u32>) {
    let sums: Vec<f64> = weights.chunks(PART).map(|part| f64::from(sum(part))).collect();
    let total: f64 = sums.iter().sum();
    let mut points = (0..n).map(|i| (i as f64 + at) / n as f64 * total).peekable();
    let mut before = 0.0;
    for (part, (weights, sum)) in weights.chunks(PART).zip(sums).enumerate() {
        let (mut cumulated, after, mut last) = (before, before + sum, None);
        before = after;
        if points.peek().is_none_or(|point| *point >= after) {
            continue;
        }
        for (i, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            cumulated += f64::from(*weight);
            last = Some((part * PART + i) as u32);
            while points.next_if(|point| *point < cumulated.min(after)).is_some() {
                ids.extend(last);
            }
        }
        // The sum of a part is rounded otherwise.
        while points.next_if(|point| *point < after).is_some() {
            ids.extend(last);
        }
    }
}

/// Ids of the `k` largest, the largest first, of equal ones the first.
#[inline(always)]
fn largest(logits: &[f32], k: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut found: Vec<u32> = Vec::with_capacity(2 * k + PART);
    let mut least = f32::NEG_INFINITY;
    for (part, values) in logits.chunks(PART).enumerate() {
        // Most parts have none, which is seen of all their values at once.
        if !values.iter().fold(false, |any, x| any | (*x > least)) && found.len() >= k {
            continue;
        }
        let first = (part * PART) as u32;
        let larger = values.iter().enumerate().filter(|(_, x)| **x > least || least == f32::NEG_INFINITY);
        found.extend(larger.map(|(i, _)| first + i as u32));
        if found.len() >= 2 * k {
            found.select_nth_unstable_by(k - 1, order);
            found.truncate(k);
            least = logits[found[k - 1] as usize];
        }
    }
    found.sort_unstable_by(order);
    found.truncate(k);
    found
}

/// Values that are looked at together.
const PART: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::testing::{on_every_isa, random};

    /// Many that are small, and a few that are not.
    fn logits(seed: u64, v: usize) -> Vec<f32> {
        random(seed, v).iter().map(|x| x * x * x).collect()
    }

    fn softmax(logits: &[f32]) -> Vec<f64> {
        let all: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
        logits.iter().map(|z| f64::from(*z).exp() / all).collect()
    }

    /// A grid over `at`.
    const GRID: usize = 4096;

    fn grid() -> impl Iterator<Item = f64> {
        (0..GRID).map(|i| (i as f64 + 0.5) / GRID as f64)
    }

    /// Kept are exactly those whose probability is no smaller than what a draw weighs, and none is drawn twice.
    #[test]
    fn as_many_are_drawn_as_weigh_more_than_each() {
        for (v, k) in [(7, 3), (300, 1), (300, 64), (300, 299), (5000, 64), (70_000, 1000)] {
            let logits = logits(1, v);
            let p = softmax(&logits);
            for at in [0.0, 0.3, 1.0 - 2f64.powi(-32)] {
                let s = select(&logits, k, at);
                let (kept, drawn) = s.ids.split_at(s.kept);
                let of = |ids: &[u32]| ids.iter().map(|id| p[*id as usize]).sum::<f64>();
                let (mass, weight) = (1.0 - of(kept), (1.0 - of(kept)) / drawn.len() as f64);
                assert_eq!(s.ids.len(), k);
                assert!((s.ln_mass.exp() / mass - 1.0).abs() < 1e-5, "{v} {k}: {} {mass}", s.ln_mass.exp());
                assert!(kept.iter().all(|id| p[*id as usize] > weight * (1.0 - 1e-5)), "{v} {k}");
                assert!(kept.windows(2).all(|w| p[w[0] as usize] >= p[w[1] as usize]), "{v} {k}");
                assert!(drawn.iter().all(|id| p[*id as usize] < weight && !kept.contains(id)), "{v} {k}");
                assert!(drawn.windows(2).all(|w| w[0] < w[1]), "{v} {k}: {drawn:?}");
                let others = (0..v as u32).filter(|id| !kept.contains(id) && p[*id as usize] >= weight).count();
                assert_eq!(others, 0, "{v} {k}");
                let lse = logits.iter().map(|z| f64::from(*z).exp()).sum::<f64>().ln();
                assert!((s.lse - lse).abs() < 1e-5);
            }
        }
    }

    /// The weight of each id, over all `at`, is its probability: a draw comes at most once an interval of `at`, so that a
    /// grid is off by at most two of its points.
    #[test]
    fn on_average_each_weighs_what_it_should() {
        for (v, k) in [(7, 3), (300, 1), (300, 64), (300, 299), (5000, 64)] {
            let logits = logits(2, v);
            let mut mean = vec![0.0; v];
            let mut most: f64 = 0.0;
            for at in grid() {
                let s = select(&logits, k, at);
                let (kept, drawn) = s.ids.split_at(s.kept);
                let weight = s.ln_mass.exp() / drawn.len() as f64;
                most = most.max(weight);
                kept.iter().for_each(|id| mean[*id as usize] += f64::from(logits[*id as usize] - s.lse as f32).exp());
                drawn.iter().for_each(|id| mean[*id as usize] += weight);
            }
            for (mean, p) in mean.iter().zip(softmax(&logits)) {
                let (mean, limit) = (mean / GRID as f64, 2.0 * most / GRID as f64 + 1e-5 * p);
                assert!((mean - p).abs() <= limit, "{v} {k}: {mean} {p}");
            }
        }
    }

    #[test]
    fn of_equal_ones_the_first_are_kept() {
        let mut logits = vec![f32::NEG_INFINITY; 400];
        logits[100..110].fill(1.0);
        let s = select(&logits, 10, 0.5);
        assert_eq!((s.kept, s.ln_mass), (10, f64::NEG_INFINITY));
        assert!(s.ids.iter().copied().eq(100..110));
        // Of the ten others three, at 0.83, 4.17 and 7.5 of them.
        logits[350] = 3.0;
        let s = select(&logits, 4, 0.25);
        assert_eq!((s.ids[0], s.kept), (350, 1));
        assert_eq!(s.ids[1..], [100, 104, 107]);
    }

    /// Nonsense for nonsense, of the right size.
    #[test]
    fn logits_that_are_no_numbers() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = random(3, 300);
            logits[7] = bad;
            let s = select(&logits, 64, 0.5);
            assert!(s.ids.len() == 64 && s.kept <= 64 && s.ids.iter().all(|id| *id < 300));
            assert!(select(&[bad; 300], 64, 0.5).ids.len() == 64);
        }
    }

    #[test]
    fn same_for_every_instruction_set() {
        let logits = logits(4, 5003);
        on_every_isa(|| {
            let s = select(&logits, 64, 0.7);
            s.ids.iter().map(|id| *id as f32).chain([s.ln_mass as f32, s.lse as f32]).collect()
        });
    }
}
