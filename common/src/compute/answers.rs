//! A teacher's answers as they are stored: of each position K log-probabilities ([`super::selection`]).
//!
//! A record is a row of little-endian 16-bit words: K log-probabilities in f16, those that are kept, largest first, then
//! those that are drawn, their sign turned, so that a positive one is a drawn one; the logarithm of the mass that the drawn
//! ones stand for, in f16; the K ids, their low halves and, where the vocabulary has more than 2^16, their high halves. If
//! K is the whole vocabulary, the log-probabilities in the order of the ids are all of it.

use half::f16;
use rayon::prelude::*;

use super::cpu::reduce::max;
use super::cpu::simd::{exp_and_sum, simd};
use super::selection::select;
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

/// A record of less than the whole vocabulary: Σ p·f over the vocabulary is on average Σ weight·f over these ids.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub ids: Vec<u32>,
    /// Of a kept id its probability, of a drawn one its part of the mass of all that are not kept.
    pub weights: Vec<f32>,
    pub log_p: Vec<f32>,
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

    /// Records of rows of logits [_, vocab]; `at` says for each row where its draws begin.
    pub fn write(&self, logits: &[f32], at: &[f64], records: &mut [u8]) {
        let rows = logits.par_chunks_exact(self.vocab).zip(records.par_chunks_exact_mut(self.bytes()));
        rows.zip(at).for_each(|((logits, record), at)| {
            simd(
                #[inline(always)]
                || self.write_row(logits, *at, record),
            );
        });
    }

    #[inline(always)]
    fn write_row(&self, logits: &[f32], at: f64, record: &mut [u8]) {
        let mut words = record.as_chunks_mut::<2>().0.iter_mut();
        let mut put = |word: u16| *words.next().expect("as many as the layout has") = word.to_le_bytes();
        if self.whole() {
            let most = max(logits);
            let lse = exp_and_sum(&mut logits.to_vec(), most).ln() + f64::from(most);
            logits.iter().for_each(|logit| put(f16::from_f64(f64::from(*logit) - lse).to_bits()));
            return;
        }
        let chosen = select(logits, self.top, at);
        for (i, id) in chosen.ids.iter().enumerate() {
            let log_p = f64::from(logits[*id as usize]) - chosen.lse;
            put(f16::from_f64(if i < chosen.kept { log_p } else { -log_p }).to_bits());
        }
        put(f16::from_f64(chosen.ln_mass).to_bits());
        chosen.ids.iter().for_each(|id| put(*id as u16));
        if self.wide() {
            chosen.ids.iter().for_each(|id| put((*id >> 16) as u16));
        }
    }

    /// The log-probabilities of a whole record.
    pub fn read_whole(&self, record: &[u8], log_p: &mut [f32]) {
        decode_f32(record, Dtype::F16, log_p);
    }

    /// Any other record; its weights sum up to 1. An id beyond the vocabulary, which no teacher gives, is left out.
    pub fn read(&self, record: &[u8], answer: &mut Answer) {
        let word = |at: usize| u16::from_le_bytes([record[2 * at], record[2 * at + 1]]);
        let value = |at: usize| f16::from_bits(word(at)).to_f64();
        let high = |i: usize| if self.wide() { u32::from(word(2 * self.top + 1 + i)) << 16 } else { 0 };
        let (mut all, mut drawn) = (0.0, 0);
        for a in (0..self.top).map(value) {
            if a > 0.0 { drawn += 1 } else { all += a.exp() }
        }
        let mass = if drawn > 0 { value(self.top).exp() } else { 0.0 };
        all += mass;
        answer.ids.clear();
        answer.weights.clear();
        answer.log_p.clear();
        for i in 0..self.top {
            let (id, a) = (u32::from(word(self.top + 1 + i)) | high(i), value(i));
            if (id as usize) < self.vocab {
                let weight = if a > 0.0 { mass / f64::from(drawn) } else { a.exp() };
                answer.ids.push(id);
                answer.weights.push((weight / all) as f32);
                answer.log_p.push((-a.abs() - all.ln()) as f32);
            }
        }
    }
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
        layout.write(logits, &[0.25], &mut record);
        record
    }

    /// What is read is what was chosen, rounded to f16.
    #[test]
    fn kept_and_drawn() {
        let (mut kept, mut drawn) = (false, false);
        for (v, top) in [(7, 3), (300, 64), (300, 299), (65_536, 200), (70_000, 5), (70_000, 1000)] {
            let logits = logits(v);
            let layout = Layout { vocab: v, top };
            assert_eq!(layout.words(), if v > 65536 { 3 * top + 1 } else { 2 * top + 1 });
            let mut answer = Answer::default();
            layout.read(&record(layout, &logits), &mut answer);
            let chosen = select(&logits, top, 0.25);
            assert_eq!(answer.ids, chosen.ids, "{v} {top}");
            drawn |= chosen.kept < top;
            kept |= chosen.kept > 0;
            let all: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
            let p = |id: u32| f64::from(logits[id as usize]).exp() / all;
            let others = 1.0 - chosen.ids[..chosen.kept].iter().map(|id| p(*id)).sum::<f64>();
            for (i, id) in chosen.ids.iter().enumerate() {
                let weight = if i < chosen.kept { p(*id) } else { others / (top - chosen.kept) as f64 };
                assert!((f64::from(answer.weights[i]) / weight - 1.0).abs() < 0.01, "{v} {top}: {i}");
                assert!((f64::from(answer.log_p[i]) - p(*id).ln()).abs() < 0.01, "{v} {top}: {i}");
            }
            assert!((answer.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
        assert!(kept && drawn);
    }

    /// One that is all but sure: a log-probability of 0 is a kept one.
    #[test]
    fn all_on_one() {
        for (v, top) in [(300, 1), (300, 4)] {
            let mut logits = vec![0.0; v];
            logits[7] = 80.0;
            let mut answer = Answer::default();
            Layout { vocab: v, top }.read(&record(Layout { vocab: v, top }, &logits), &mut answer);
            assert_eq!((answer.ids[0], answer.weights[0]), (7, 1.0));
            assert!(answer.weights[1..].iter().all(|w| *w < 1e-6) && answer.log_p[0].abs() < 1e-6);
        }
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
        let mut whole = Answer::default();
        layout.read(&bytes, &mut whole);
        bytes[6..8].copy_from_slice(&300u16.to_le_bytes());
        let mut answer = Answer::default();
        layout.read(&bytes, &mut answer);
        assert_eq!((&answer.ids[..], &answer.weights[..]), (&whole.ids[1..], &whole.weights[1..]));
    }
}
