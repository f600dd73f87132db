//! What a teacher says of every position of a text, for `shard --teacher`: window by window of `seq` tokens, so that it
//! has read no more than who learns from it will have read.

use std::path::Path;

use crate::compute::answers::Layout;
use crate::compute::backend::Backend;
use crate::error::Result;
use crate::format::tensor::Tensor;
use crate::model::forward::Batch;
use crate::model::host::Source;
use crate::model::teacher::Teacher;
use crate::stage::shards;

/// Tokens of a pass, and passes over which each block is read once.
const PASS: usize = 2048;
const PASSES: usize = 8;
/// Bytes of logits on the host at a time.
const LOGITS: usize = 64 << 20;

pub struct Answering<'a, B: Backend> {
    backend: &'a B,
    teacher: Teacher<B>,
    layout: Layout,
    seq: usize,
    seed: u64,
}

impl<'a, B: Backend> Answering<'a, B> {
    pub fn new(backend: &'a B, source: &dyn Source, layout: Layout, seq: usize, seed: u64) -> Result<Answering<'a, B>> {
        let rows = windows_of_a_pass(seq) * seq;
        Ok(Answering { backend, teacher: Teacher::load(backend, source, seq, rows, PASSES)?, layout, seq, seed })
    }

    /// Records of all whole windows, handed to `put` in order; `first` is the place of the first token in the whole text,
    /// `name` is what messages name, `each` is told the tokens that are done.
    pub fn answer(
        &mut self,
        tokens: &Tensor,
        first: u64,
        name: &Path,
        put: &mut dyn FnMut(&[u8]) -> Result<()>,
        mut each: impl FnMut(u64),
    ) -> Result<()> {
        let (seq, at_once) = (self.seq, windows_of_a_pass(self.seq));
        let windows: Vec<usize> = (0..tokens.len() / seq).map(|window| window * seq).collect();
        for windows in windows.chunks(at_once * PASSES) {
            let batch = |windows: &[usize]| {
                let read = windows.iter().map(|at| shards::window(tokens, name, *at, seq, self.layout.vocab));
                let read = read.collect::<Result<Vec<_>>>()?;
                Ok(Batch::next_token(read.iter().map(|window| window.as_slice())))
            };
            let batches = windows.chunks(at_once).map(batch).collect::<Result<Vec<_>>>()?;
            self.teacher.read(self.backend, &batches)?;
            let mut place = first + windows[0] as u64;
            for (i, batch) in batches.iter().enumerate() {
                self.teacher.finish(self.backend, i, batch.rows());
                self.put_rows(batch.rows(), place, put)?;
                place += batch.rows() as u64;
                each(batch.rows() as u64);
            }
        }
        Ok(())
    }

    /// The rows of the pass that was finished last, from a place of the text on.
    fn put_rows(&self, rows: usize, place: u64, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let vocab = self.layout.vocab;
        let step = (LOGITS / (4 * vocab)).clamp(1, rows);
        let (mut logits, mut records) = (vec![0.0; step * vocab], vec![0; step * self.layout.bytes()]);
        let weight = self.teacher.weight();
        for from in (0..rows).step_by(step) {
            let n = step.min(rows - from);
            let (logits, records) = (&mut logits[..n * vocab], &mut records[..n * self.layout.bytes()]);
            self.backend.head_logits(self.teacher.head(&weight), from..from + n, logits)?;
            let at: Vec<f64> = (0..n).map(|i| self.draws_at(place + (from + i) as u64)).collect();
            self.layout.write(logits, &at, records);
            put(records)?;
        }
        Ok(())
    }

    /// Where the draws of a place of the text begin: it depends on nothing that is said there.
    fn draws_at(&self, place: u64) -> f64 {
        let mut hash = blake3::Hasher::new();
        hash.update(b"lrqat answer").update(&self.seed.to_le_bytes()).update(&place.to_le_bytes());
        let random = u32::from_le_bytes(hash.finalize().as_bytes()[..4].try_into().expect("four bytes"));
        f64::from(random) / 2f64.powi(32)
    }
}

fn windows_of_a_pass(seq: usize) -> usize {
    (PASS / seq).max(1)
}
