//! Log-likelihoods of continuations, many requests to a pass.

use super::perplexity::Reader;
use super::tasks::{Request, Scored};
use crate::compute::backend::{Backend, NO_TARGET};
use crate::error::Result;
use crate::model::forward::Batch;

/// Scores every request; `each` is told how many are done. A pass reads up to `rows` tokens.
pub fn score<B: Backend>(
    reader: &mut Reader<B>,
    requests: &[Request],
    rows: usize,
    mut each: impl FnMut(usize),
) -> Result<Vec<Scored>> {
    let mut scored = Vec::with_capacity(requests.len());
    let mut rest = requests;
    while !rest.is_empty() {
        let mut used = 0;
        let fit = rest.iter().take_while(|r| {
            used += r.context.len() + r.continuation.len() - 1;
            used <= rows
        });
        let (now, later) = rest.split_at(fit.count().max(1));
        scored.extend(score_batch(reader, now)?);
        rest = later;
        each(scored.len());
    }
    Ok(scored)
}

fn score_batch<B: Backend>(reader: &mut Reader<B>, requests: &[Request]) -> Result<Vec<Scored>> {
    let mut batch = Batch { segments: vec![0], ..Batch::default() };
    for r in requests {
        let all = || r.context.iter().chain(&r.continuation).copied();
        let reads = r.context.len() + r.continuation.len() - 1;
        batch.tokens.extend(all().take(reads));
        batch.targets.extend(std::iter::repeat_n(NO_TARGET, r.context.len() - 1));
        batch.targets.extend(&r.continuation);
        batch.segments.push(batch.tokens.len());
    }
    let scores = reader.scores(&batch, None)?;
    let of_request = |w: &[usize]| {
        let predicted = (w[0]..w[1]).filter(|row| batch.targets[*row] != NO_TARGET);
        predicted.fold(Scored { loglik: 0.0, greedy: true }, |sum, row| Scored {
            loglik: sum.loglik + scores[row].log_prob,
            greedy: sum.greedy && scores[row].top == batch.targets[row],
        })
    };
    Ok(batch.segments.windows(2).map(of_request).collect())
}
