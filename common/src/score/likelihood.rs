//! Log-likelihoods of continuations, many requests to a pass. The answers to a question follow one another: what a request
//! begins with as the one before it is read once.

use super::perplexity::Reader;
use super::tasks::{Request, Scored};
use crate::compute::backend::{Backend, NO_TARGET};
use crate::error::Result;
use crate::model::forward::{Batch, Shared};

/// Scores every request; `each` is told how many are done. A pass takes as many as the reader, of
/// [`Room::sharing`](super::perplexity::Room::sharing), has room for.
pub fn score<B: Backend>(
    reader: &mut Reader<B>,
    requests: &[Request],
    mut each: impl FnMut(usize),
) -> Result<Vec<Scored>> {
    let mut scored = Vec::with_capacity(requests.len());
    let mut rest = requests;
    while !rest.is_empty() {
        let room = reader.room;
        let (mut rows, mut tokens, mut before) = (0, 0, None);
        let fit = rest.iter().take_while(|r| {
            tokens += reads(r);
            rows += reads(r) - before.replace(*r).map_or(0, |before| in_common(before, r));
            rows <= room.rows && tokens <= room.tokens
        });
        let (now, later) = rest.split_at(fit.count().max(1));
        scored.extend(score_batch(reader, now)?);
        rest = later;
        each(scored.len());
    }
    Ok(scored)
}

/// Tokens that a model reads of a request.
fn reads(r: &Request) -> usize {
    r.context.len() + r.continuation.len() - 1
}

/// Tokens that two requests begin with and that predict nothing which is scored.
fn in_common(a: &Request, b: &Request) -> usize {
    let unscored = |r: &Request| r.context.len() - 1;
    let most = unscored(a).min(unscored(b));
    a.context[..most].iter().zip(&b.context).take_while(|(a, b)| a == b).count()
}

fn score_batch<B: Backend>(reader: &mut Reader<B>, requests: &[Request]) -> Result<Vec<Scored>> {
    let mut batch = Batch { segments: vec![0], ..Batch::default() };
    let (mut shared, mut begun) = (Shared::default(), 0);
    for (i, r) in requests.iter().enumerate() {
        let known = if i == 0 { 0 } else { in_common(&requests[i - 1], r) };
        shared.rows.extend_from_within(begun..begun + known);
        begun = shared.rows.len() - known;
        for at in known..reads(r) {
            let next = |at: usize| r.context.get(at).unwrap_or_else(|| &r.continuation[at - r.context.len()]);
            shared.tokens.push(shared.rows.len() as u32);
            shared.rows.push(batch.tokens.len() as u32);
            batch.tokens.push(*next(at));
            batch.targets.push(if at + 1 < r.context.len() { NO_TARGET } else { *next(at + 1) });
        }
        batch.segments.push(shared.rows.len());
    }
    let row = shared.rows.clone();
    batch.shared = (batch.rows() < row.len()).then_some(shared);
    let scores = reader.scores(&batch, None)?;
    let of_request = |w: &[usize]| {
        let rows = row[w[0]..w[1]].iter().map(|row| *row as usize);
        let predicted = rows.filter(|row| batch.targets[*row] != NO_TARGET);
        predicted.fold(Scored { loglik: 0.0, greedy: true }, |sum, row| Scored {
            loglik: sum.loglik + scores[row].log_prob,
            greedy: sum.greedy && scores[row].top == batch.targets[row],
        })
    };
    Ok(batch.segments.windows(2).map(of_request).collect())
}
