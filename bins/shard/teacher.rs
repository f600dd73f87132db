//! `shard --teacher`: a model's answers to the tokens, from which `qat-step --loss kl` learns without the model.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use common::cli::device::{Chosen, DeviceFlags};
use common::cli::{self, flags::Common, progress};
use common::compute::answers::Layout;
use common::compute::backend::Backend;
use common::compute::cpu::Cpu;
use common::compute::cuda::Cuda;
use common::data::tokenizer::Tokenizer;
use common::error::{Error, Result};
use common::format::atomic::PartDir;
use common::model::host::Source;
use common::score::answers::Answering;
use common::stage::open::Artefact;
use common::stage::record::{Input, Record, relative_path};
use common::stage::{answers, shards};
use half::bf16;
use serde_json::Value;

#[derive(Debug, Args)]
pub struct TeacherFlags {
    /// Also write what this model says of every position, for qat-step --loss kl: any model that eval takes
    #[arg(long, value_name = "MODEL")]
    teacher: Option<PathBuf>,
    /// Log-probabilities of a position: the largest, and draws from the others that stand for them; or all [default: 64]
    #[arg(long, value_name = "K|all", requires = "teacher")]
    top_k: Option<TopK>,
    /// Tokens of the windows that the teacher reads, which are those of qat-step --seq [default: 512]
    #[arg(long, value_name = "N", requires = "teacher")]
    seq: Option<usize>,
    /// Of the draws [default: 0]
    #[arg(long, value_name = "N", requires = "teacher")]
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum TopK {
    All,
    Largest(usize),
}

impl FromStr for TopK {
    type Err = Error;

    fn from_str(word: &str) -> Result<TopK> {
        match (word, word.parse()) {
            ("all", _) => Ok(TopK::All),
            (_, Ok(k)) if k > 0 => Ok(TopK::Largest(k)),
            _ => Err(Error::usage(format!("--top-k {word}"), "give a number such as 64, or all")),
        }
    }
}

pub struct TeacherModel {
    path: PathBuf,
    model: Artefact,
    layout: Layout,
    seq: usize,
    seed: u64,
}

impl TeacherFlags {
    pub fn open(&self, tokenizer: &Tokenizer) -> Result<Option<TeacherModel>> {
        let Some(path) = &self.teacher else { return Ok(None) };
        let model = Artefact::open(path)?;
        let vocab = model.config().vocab;
        if tokenizer.vocab_size() > vocab {
            return Err(Error::input(
                path,
                format!("a vocabulary of {vocab}"),
                format!("the tokenizer's {}", tokenizer.vocab_size()),
                "give the tokenizer and the teacher of one model",
            ));
        }
        let top = match self.top_k.unwrap_or(TopK::Largest(64)) {
            TopK::All => vocab,
            TopK::Largest(k) if k <= vocab => k,
            TopK::Largest(k) => {
                let what = format!("--top-k {k}, of a vocabulary of {vocab}");
                return Err(Error::usage(what, "give a smaller number, or all"));
            }
        };
        let seq = self.seq.unwrap_or(512);
        if !(2..=1 << 24).contains(&seq) {
            return Err(Error::usage(format!("--seq {seq}"), "give what qat-step is to have, 2 tokens or more"));
        }
        let (path, seed) = (path.clone(), self.seed.unwrap_or(0));
        Ok(Some(TeacherModel { path, model, layout: Layout { vocab, top }, seq, seed }))
    }
}

impl TeacherModel {
    pub fn verify(&self) -> Result<()> {
        self.model.verify()
    }

    pub fn input(&self, out: &Path) -> Result<Input> {
        Ok(Input { role: "teacher".into(), path: relative_path(&self.path, out)?, digest: self.model.digest()? })
    }

    pub fn add_arguments(&self, arguments: &mut Value) {
        arguments["top_k"] = self.layout.top.into();
        arguments["seq"] = self.seq.into();
        if !self.tells_all() {
            arguments["seed"] = self.seed.into();
        }
    }

    /// Nothing is drawn.
    pub fn tells_all(&self) -> bool {
        self.layout.whole()
    }

    /// Writes a file of answers beside each of tokens.
    pub fn answer(&self, device: &DeviceFlags, common: &Common, part: &PartDir, record: &mut Record) -> Result<()> {
        match device.choose()? {
            Chosen::CpuF32 => self.answer_on(&Cpu::<f32>::new(), common, part, record),
            Chosen::CpuBf16 => self.answer_on(&Cpu::<bf16>::new(), common, part, record),
            Chosen::Cuda => self.answer_on(&Cuda::open()?, common, part, record),
        }
    }

    fn answer_on<B: Backend>(&self, backend: &B, common: &Common, part: &PartDir, record: &mut Record) -> Result<()> {
        let mut answering = Answering::new(backend, &self.model, self.layout, self.seq, self.seed)?;
        let names: Vec<String> = record.files.keys().cloned().collect();
        let tokens = names.iter().map(|name| Ok(shards::read_tokens(&part.join(name))?.0));
        let tokens = tokens.collect::<Result<Vec<_>>>()?;
        let bar =
            progress::count(common, "teacher", tokens.iter().map(|t| (t.len() / self.seq * self.seq) as u64).sum());
        let (mut bytes, mut first) = (0, 0);
        for (name, tokens) in names.iter().zip(&tokens) {
            let file = answers::file_name(name);
            let windows = (tokens.len() / self.seq, self.seq);
            let digest = answers::write(&part.join(&file), self.layout, windows, |put| {
                answering.answer(tokens, first, &self.path, put, |done| bar.inc(done))
            })?;
            bytes += digest.bytes;
            first += tokens.len() as u64;
            record.files.insert(file, digest);
        }
        bar.finish_and_clear();
        let each = self.layout.bytes();
        record.details.insert("answer_bytes_per_token".into(), each.into());
        record.details.insert("compute_path".into(), backend.path().into());
        let all = format!("answers of {each} bytes per token, {:.1} MB", bytes as f64 / 1e6);
        cli::say(common, "shard", all);
        Ok(())
    }
}
