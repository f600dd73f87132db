//! A teacher's answers as they are stored: of each position the largest log-probabilities and the mass of the rest.
//!
//! A record is a row of little-endian 16-bit words: the K largest log-probabilities in f16, largest first; the logarithm
//! of what the rest sums up to, in f16; the K ids, their low halves and, where the vocabulary has more than 2^16, their
//! high halves. If K is the whole vocabulary, the log-probabilities in the order of the ids are all of it.

use half::f16;
use rayon::prelude::*;

use super::cpu::reduce::max;
use super::cpu::simd::{exp, exp_and_sum, simd};
use crate::format::tensor::{Dtype, decode_f32};

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub vocab: usize,
    /// Log-probabilities of a record, from 1 to `vocab`.
    pub top: usize,
}

/// Stored answers to the rows of a batch.
pub struct Answers<'a> {
    pub layout: Layout,
    /// A record for each row.
    pub rows: Vec<&'a [u8]>,
}

/// A record of less than the whole vocabulary, as probabilities that sum up to 1.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub ids: Vec<u32>,
    pub p: Vec<f32>,
    pub rest: f32,
}

impl Layout {
    /// Whether a record holds every log-probability.
    pub fn whole(&self) -> bool {
        self.top >= self.vocab
    }

    /// 16-bit words of a record.
    pub fn words(&self) -> usize {
        match self.whole() {
            true => self.vocab,
            false if self.wide() => 3 * self.top + 1,
            false => 2 * self.top + 1,
        }
    }

    pub fn bytes(&self) -> usize {
        2 * self.words()
    }

    /// Ids have a high half.
    fn wide(&self) -> bool {
        self.vocab > 1 << 16
    }

    /// Records of rows of logits [_, vocab].
    pub fn write(&self, logits: &[f32], records: &mut [u8]) {
        let rows = logits.par_chunks_exact(self.vocab).zip(records.par_chunks_exact_mut(self.bytes()));
        rows.for_each(|(logits, record)| {
            simd(
                #[inline(always)]
                || self.write_row(logits, record),
            );
        });
    }

    #[inline(always)]
    fn write_row(&self, logits: &[f32], record: &mut [u8]) {
        let ids = if self.whole() { Vec::new() } else { largest(logits, self.top) };
        let (rest, lse) = rest_and_all(logits, &ids);
        let mut words = record.as_chunks_mut::<2>().0.iter_mut();
        let mut put = |word: u16| *words.next().expect("as many as the layout has") = word.to_le_bytes();
        let log_p = |logit: f32| f16::from_f64(f64::from(logit) - lse).to_bits();
        if self.whole() {
            logits.iter().for_each(|logit| put(log_p(*logit)));
            return;
        }
        ids.iter().for_each(|id| put(log_p(logits[*id as usize])));
        put(f16::from_f64(rest).to_bits());
        ids.iter().for_each(|id| put(*id as u16));
        if self.wide() {
            ids.iter().for_each(|id| put((*id >> 16) as u16));
        }
    }

    /// The log-probabilities of a whole record.
    pub fn read_whole(&self, record: &[u8], log_p: &mut [f32]) {
        decode_f32(record, Dtype::F16, log_p);
    }

    /// A record of the largest. An id beyond the vocabulary, which no teacher gives, counts to the rest.
    pub fn read(&self, record: &[u8], answer: &mut Answer) {
        let word = |at: usize| u16::from_le_bytes([record[2 * at], record[2 * at + 1]]);
        let p = |at: usize| f16::from_bits(word(at)).to_f64().exp();
        let high = |i: usize| if self.wide() { u32::from(word(2 * self.top + 1 + i)) << 16 } else { 0 };
        let all: f64 = (0..=self.top).map(p).sum();
        answer.ids.clear();
        answer.p.clear();
        answer.rest = (p(self.top) / all) as f32;
        for i in 0..self.top {
            let (id, p) = (u32::from(word(self.top + 1 + i)) | high(i), (p(i) / all) as f32);
            if (id as usize) < self.vocab {
                answer.ids.push(id);
                answer.p.push(p);
            } else {
                answer.rest += p;
            }
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

/// Values that are compared at once.
const PART: usize = 64;

/// ln Σ p of what is not among `ids`, and ln Σ e^logit of all.
#[inline(always)]
fn rest_and_all(logits: &[f32], ids: &[u32]) -> (f64, f64) {
    let largest = max(logits);
    let mut rest = logits.to_vec();
    let mut top = 0.0;
    for id in ids {
        top += f64::from(exp(rest[*id as usize] - largest));
        rest[*id as usize] = f32::NEG_INFINITY;
    }
    let rest = exp_and_sum(&mut rest, largest);
    let all = (rest + top).ln();
    (rest.ln() - all, all + f64::from(largest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::loss::{RowScore, log_probs};

    fn logits(v: usize) -> Vec<f32> {
        (0..v).map(|i| ((i * 7919 + 13) % v) as f32 * 20.0 / v as f32 - 10.0).collect()
    }

    fn record(layout: Layout, logits: &[f32]) -> Vec<u8> {
        let mut record = vec![0; layout.bytes()];
        layout.write(logits, &mut record);
        record
    }

    /// Against a sort of all of them in f64.
    #[test]
    fn the_largest_and_the_rest() {
        for (v, top) in [(7, 3), (300, 64), (300, 299), (70_000, 5), (70_000, 1000)] {
            let logits = logits(v);
            let layout = Layout { vocab: v, top };
            assert_eq!(layout.words(), if v > 65536 { 3 * top + 1 } else { 2 * top + 1 });
            let mut answer = Answer::default();
            layout.read(&record(layout, &logits), &mut answer);
            let mut order: Vec<usize> = (0..v).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
            let e = |id: &usize| f64::from(logits[*id]).exp();
            let all: f64 = order.iter().map(e).sum();
            assert!(answer.ids.iter().map(|id| *id as usize).eq(order[..top].iter().copied()), "{v} {top}");
            for (p, id) in answer.p.iter().zip(&order) {
                assert!((f64::from(*p) / (e(id) / all) - 1.0).abs() < 0.01, "{v} {top}: {p}");
            }
            let rest: f64 = order[top..].iter().map(e).sum::<f64>() / all;
            assert!((f64::from(answer.rest) / rest - 1.0).abs() < 0.01, "{v} {top}: {} {rest}", answer.rest);
            let sum: f32 = answer.p.iter().sum::<f32>() + answer.rest;
            assert!((sum - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn of_equal_ones_the_first() {
        let layout = Layout { vocab: 400, top: 3 };
        let mut answer = Answer::default();
        let mut logits = vec![1.0; 400];
        layout.read(&record(layout, &logits), &mut answer);
        assert_eq!(answer.ids, [0, 1, 2]);
        logits[350] = 2.0;
        layout.read(&record(layout, &logits), &mut answer);
        assert_eq!(answer.ids, [350, 0, 1]);
    }

    #[test]
    fn all_of_them_in_order() {
        let (v, logits) = (1000, logits(1000));
        let layout = Layout { vocab: v, top: v };
        assert_eq!(layout.bytes(), 2 * v);
        let mut log_p = vec![0.0; v];
        layout.read_whole(&record(layout, &logits), &mut log_p);
        let mut score = [RowScore::default()];
        log_probs(&logits, &[0], &mut score);
        for (found, logit) in log_p.iter().zip(&logits) {
            let exact = f64::from(*logit) - score[0].lse;
            assert!((f64::from(*found) - exact).abs() <= exact.abs() / 2048.0, "{found} {exact}");
        }
    }

    /// A file that was changed does no more than teach nonsense.
    #[test]
    fn ids_beyond_the_vocabulary_are_passed_over() {
        let layout = Layout { vocab: 300, top: 2 };
        let mut bytes = record(layout, &logits(300));
        bytes[6..8].copy_from_slice(&300u16.to_le_bytes());
        let mut answer = Answer::default();
        layout.read(&bytes, &mut answer);
        assert_eq!(answer.ids.len(), 1);
        assert!((answer.p[0] + answer.rest - 1.0).abs() < 1e-5);
    }
}
