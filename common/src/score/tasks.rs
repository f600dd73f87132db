//! Zero-shot tasks by the rules of lm-evaluation-harness 0.4.13: what a model is asked to score, and what its
//! log-likelihoods make. No model in here: `Task::requests` gives token ids, `Task::report` takes a `Scored` for each.
//!
//! Rules (`lm_eval/api/model.py` `_encode_pair`, `models/huggingface.py`, `api/task.py` `process_results`):
//! - White space at the end of a context belongs to the continuation.
//! - The continuation's ids are those of context + continuation after the first len(ids of the context).
//! - An input is cut from the left to `max_length` + 1 ids, of which the last is only scored, not read.
//! - acc: the choice of the largest log-likelihood; acc_norm: after division by the characters of the choice.
//! - LAMBADA has no choices: acc is greedy decoding giving the continuation, perplexity is exp(-mean log-likelihood).

mod record;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use record::{Kind, Question, python_space};

/// Score `continuation` after `context`; neither is empty. The model reads all ids but the last.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub context: Vec<u32>,
    pub continuation: Vec<u32>,
}

/// What a model says of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Sum of the natural log-probabilities of the continuation's ids.
    pub loglik: f64,
    /// Each of these ids has the largest logit of its position.
    pub greedy: bool,
}

/// The metrics of one task; an error is the sample standard deviation over √n, unknown for a single record.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskReport {
    pub acc: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_stderr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm_stderr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    pub n: usize,
}

/// The special ids that requests may begin with.
#[derive(Debug, Clone, Copy)]
pub struct Prefix {
    /// BOS before every text, if asked for; a text that already begins with it gets no second one.
    pub bos: Option<u32>,
    /// What stands for a context without any token: the tokenizer's BOS or, if it has none, its EOS.
    pub empty: u32,
}

/// The questions of one file.
#[derive(Debug)]
pub struct Task {
    path: PathBuf,
    kind: Kind,
    questions: Vec<Question>,
}

/// The task files that a path stands for: itself, or the `.jsonl` files of a directory in sorted order.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !fs::metadata(path).map_err(Error::io(path, "open"))?.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path, "list"))? {
        let file = entry.map_err(Error::io(path, "list"))?.path();
        if file.extension().is_some_and(|e| e == "jsonl") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Error::input(path, "a directory without .jsonl files", "task files", "check the path"));
    }
    files.sort();
    Ok(files)
}

impl Task {
    /// Reads the first `limit` records of a JSON lines file whose stem names the task.
    pub fn open(path: &Path, limit: Option<usize>) -> Result<Task> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let Some(kind) = Kind::of(&stem) else {
            let known = Kind::NAMES.map(|(name, _)| name).join(", ");
            let found = format!("a file called \"{stem}\"");
            return Err(Error::input(path, found, format!("one of the tasks {known}"), "rename the file"));
        };
        let reader = BufReader::new(File::open(path).map_err(Error::io(path, "open"))?);
        let mut questions = Vec::new();
        for (at, line) in reader.split(b'\n').enumerate() {
            if limit == Some(questions.len()) {
                break;
            }
            let line = line.map_err(Error::io(path, "read"))?;
            if !line.trim_ascii().is_empty() {
                questions.push(kind.question(&line, at + 1).map_err(|wrong| wrong.at(path))?);
            }
        }
        if questions.is_empty() {
            return Err(Error::input(path, "no records", "JSON lines", "check the file and --limit"));
        }
        Ok(Task { path: path.to_path_buf(), kind, questions })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// All (context, continuation) texts, record by record.
    pub fn pairs(&self) -> impl Iterator<Item = &(String, String)> {
        self.questions.iter().flat_map(|question| &question.pairs)
    }

    /// `encode` gives the ids of a text without special tokens, `max_length` is what the model can read at once.
    /// `report` takes the answers in the same order.
    pub fn requests(
        &self,
        encode: &dyn Fn(&str) -> Result<Vec<u32>>,
        prefix: Prefix,
        max_length: usize,
    ) -> Result<Vec<Request>> {
        let mut requests = Vec::new();
        for question in &self.questions {
            for (context, continuation) in &question.pairs {
                let mut request = encode_pair(encode, prefix, context, continuation)?;
                self.check(question, &request, max_length)?;
                let room = max_length + 1 - request.continuation.len();
                request.context.drain(..request.context.len().saturating_sub(room));
                requests.push(request);
            }
        }
        Ok(requests)
    }

    fn check(&self, question: &Question, request: &Request, max_length: usize) -> Result<()> {
        let (line, length) = (question.line, request.continuation.len());
        if length == 0 {
            let found = format!("line {line}: a continuation without a token of its own");
            return Err(Error::input(&self.path, found, "at least one", "drop the record"));
        }
        if request.context.is_empty() {
            let found = format!("line {line}: a context that the tokenizer makes no token of");
            return Err(Error::input(&self.path, found, "at least one", "drop the record"));
        }
        if length > max_length {
            let found = format!("line {line}: a continuation of {length} tokens");
            return Err(Error::input(
                &self.path,
                found,
                format!("at most {max_length}"),
                "drop the record or take a model of longer context",
            ));
        }
        Ok(())
    }

    pub fn report(&self, scored: &[Scored]) -> Result<TaskReport> {
        let asked = self.pairs().count();
        if scored.len() != asked {
            let found = format!("{} scores", scored.len());
            return Err(Error::input(
                &self.path,
                found,
                format!("{asked}, one for each request"),
                "report this as a bug",
            ));
        }
        if let Some(at) = scored.iter().position(|s| s.loglik.is_nan()) {
            let found = format!("a log-likelihood that is not a number (request {at})");
            return Err(Error::input(&self.path, found, "numbers", "the model's weights or activations overflow"));
        }
        Ok(match self.kind {
            Kind::LambadaOpenai => last_word_report(scored),
            _ => self.choice_report(scored),
        })
    }

    fn choice_report(&self, scored: &[Scored]) -> TaskReport {
        let (mut hits, mut norm_hits, mut rest) = (Vec::new(), Vec::new(), scored);
        for question in &self.questions {
            let (own, others) = rest.split_at(question.pairs.len());
            rest = others;
            hits.push(argmax(own.iter().map(|s| s.loglik)) == question.gold);
            let per_character = own.iter().zip(&question.characters).map(|(s, &n)| s.loglik / n as f64);
            norm_hits.push(argmax(per_character) == question.gold);
        }
        let (acc, acc_stderr) = mean(&hits);
        let (acc_norm, acc_norm_stderr) = mean(&norm_hits);
        let norm = self.kind.has_acc_norm();
        TaskReport {
            acc,
            acc_stderr,
            acc_norm: norm.then_some(acc_norm),
            acc_norm_stderr: acc_norm_stderr.filter(|_| norm),
            perplexity: None,
            n: hits.len(),
        }
    }
}

fn last_word_report(scored: &[Scored]) -> TaskReport {
    let hits: Vec<bool> = scored.iter().map(|s| s.greedy).collect();
    let (acc, acc_stderr) = mean(&hits);
    let loglik = scored.iter().map(|s| s.loglik).sum::<f64>() / hits.len() as f64;
    let perplexity = Some((-loglik).exp());
    TaskReport { acc, acc_stderr, acc_norm: None, acc_norm_stderr: None, perplexity, n: hits.len() }
}

fn encode_pair(
    encode: &dyn Fn(&str) -> Result<Vec<u32>>,
    prefix: Prefix,
    context: &str,
    continuation: &str,
) -> Result<Request> {
    let trimmed = context.trim_end_matches(python_space);
    let with_bos = |text: &str| -> Result<Vec<u32>> {
        let ids = encode(text)?;
        Ok(match prefix.bos {
            Some(bos) if ids.first() != Some(&bos) => [&[bos], &ids[..]].concat(),
            _ => ids,
        })
    };
    // The harness stops at a context of white space alone; it is as empty as "".
    if trimmed.is_empty() {
        let mut ids = encode(&format!("{context}{continuation}"))?;
        if ids.first() != Some(&prefix.empty) {
            ids.insert(0, prefix.empty);
        }
        let continuation = ids.split_off(1);
        return Ok(Request { context: ids, continuation });
    }
    let mut whole = with_bos(&format!("{context}{continuation}"))?;
    let context = with_bos(trimmed)?;
    let continuation = whole.split_off(context.len().min(whole.len()));
    Ok(Request { context, continuation })
}

/// The first of the largest.
fn argmax(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (at, value) in values.enumerate() {
        if value > best.1 {
            best = (at, value);
        }
    }
    best.0
}

/// The share of hits and its standard error.
fn mean(hits: &[bool]) -> (f64, Option<f64>) {
    let n = hits.len() as f64;
    let mean = hits.iter().filter(|&&hit| hit).count() as f64 / n;
    let squares: f64 = hits.iter().map(|&hit| (f64::from(u8::from(hit)) - mean).powi(2)).sum();
    (mean, (hits.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt()))
}

#[cfg(test)]
mod tests;
