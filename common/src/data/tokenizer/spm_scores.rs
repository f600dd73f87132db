//! The scores of a SentencePiece vocabulary whose tokenizer.json states merges instead.
//!
//! A SentencePiece BPE (llama.cpp's `llm_tokenizer_spm`) joins whichever two neighbours give the piece of the best score;
//! a tokenizer.json lists pairs, best first. Both give the same tokens where every way to put a piece together is listed
//! and the scores fall in the order of the list, as in each tokenizer.json that was made from a SentencePiece model.

use std::collections::{HashMap, HashSet};

use super::tokenizer_json::{Kind, Piece};

/// How the merges of one piece lie in the list.
#[derive(Clone, Copy)]
struct Merges {
    piece: usize,
    first: usize,
    last: usize,
    count: usize,
}

/// Sets the scores of the pieces that merges make or that are characters: 0, −1, −2, … in the order of the merges, then
/// of the ids. An error tells which piece cannot be made in all the ways that scores would allow.
pub(super) fn set(pieces: &mut [Piece], merges: &[(String, String)]) -> Result<(), String> {
    let ids: HashMap<&str, usize> = pieces
        .iter()
        .enumerate()
        .filter(|(_, p)| p.kind == Kind::Normal)
        .map(|(id, p)| (p.text.as_str(), id))
        .collect();
    let mut found = by_piece(&ids, merges);
    for (&text, &id) in &ids {
        let parts = |at: usize| ids.contains_key(&text[..at]) && ids.contains_key(&text[at..]);
        let ways = text.char_indices().skip(1).filter(|(at, _)| parts(*at)).count();
        let listed = found.get(&id).map_or(0, |m| m.count);
        if ways != listed {
            return Err(format!("{listed} of the {ways} merges that give {text:?}"));
        }
    }
    let mut order: Vec<Merges> = found.drain().map(|(_, merges)| merges).collect();
    order.sort_unstable_by_key(|m| m.first);
    let made: HashSet<usize> = order.iter().map(|m| m.piece).collect();
    let mut rest: Vec<usize> = ids.values().copied().filter(|id| !made.contains(id)).collect();
    rest.sort_unstable();
    let (mut end, mut score) = (0, 0.0);
    for (place, merges) in order.iter().enumerate() {
        // Pieces whose merges are mixed were sorted by the same score.
        if merges.first >= end {
            score = 0.0 - place as f32;
        }
        end = end.max(merges.last + 1);
        pieces[merges.piece].score = score;
    }
    for (place, id) in rest.into_iter().enumerate() {
        pieces[id].score = 0.0 - (made.len() + place) as f32;
    }
    Ok(())
}

/// Merges of pieces outside `ids` are never used: those texts are taken out before.
fn by_piece(ids: &HashMap<&str, usize>, merges: &[(String, String)]) -> HashMap<usize, Merges> {
    let mut seen = HashSet::new();
    let mut found = HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        let known = ids.contains_key(left.as_str()) && ids.contains_key(right.as_str());
        let Some(&piece) = ids.get([left.as_str(), right].concat().as_str()).filter(|_| known) else { continue };
        if seen.insert((piece, left.len())) {
            let merges = found.entry(piece).or_insert(Merges { piece, first: rank, last: rank, count: 0 });
            (merges.last, merges.count) = (rank, merges.count + 1);
        }
    }
    found
}
