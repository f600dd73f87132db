//! `eval`: perplexity, divergence and zero-shot accuracy of any artefact, and text that it writes.

mod generate;
mod kept;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use common::cli::device::{Chosen, DeviceFlags};
use common::cli::{self, flags::Common, progress};
use common::compute::backend::Backend;
use common::compute::cpu::Cpu;
use common::compute::cuda::Cuda;
use common::data::{text, tokenizer::Tokenizer};
use common::error::{Error, Result};
use common::model::Config;
use common::model::host::Source;
use common::model::weights::Model;
use common::score::likelihood;
use common::score::perplexity::{self, Protocol, Reader, Room};
use common::score::tasks::{self, Prefix, Request, Task};
use common::stage::open::Artefact;
use common::stage::report::{ArtefactReport, Report};
use generate::GenerateFlags;
use half::bf16;
use kept::Kept;
use serde_json::{Map, Value};

/// Perplexity and zero-shot accuracy of models, scales, wrapped models, checkpoints and folded models
#[derive(Parser)]
#[command(name = "eval", version)]
struct Args {
    /// What to evaluate, side by side; - reads one path from standard input
    #[arg(required = true)]
    artefacts: Vec<PathBuf>,
    /// Text whose perplexity is measured
    #[arg(long, value_name = "TEXT")]
    ppl: Vec<PathBuf>,
    /// Tokens of a block
    #[arg(long, default_value_t = 2048)]
    ctx: usize,
    /// Only the first blocks of each text
    #[arg(long, value_name = "N")]
    max_blocks: Option<usize>,
    /// Zero-shot tasks: <task>.jsonl, or a directory of them
    #[arg(long, value_name = "FILE|DIR")]
    tasks: Vec<PathBuf>,
    /// Only the first records of each task
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Also measure the divergence from this model on every --ppl text
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// Begin texts with BOS; auto does what the tokenizer does
    #[arg(long, value_enum, default_value = "auto")]
    bos: Bos,
    #[command(flatten)]
    generate: GenerateFlags,
    /// Exit with status 3 if a perplexity of the last artefact is larger
    #[arg(long, value_name = "X")]
    max_ppl: Option<f64>,
    /// Also write the report as JSON; figures of these artefacts that the file holds already, measured the same way, are
    /// taken from it, unless --force
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceFlags,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bos {
    Auto,
    Yes,
    No,
}

/// Tokens that a pass over zero-shot requests reads.
const PASS: usize = 2048;

fn main() -> ExitCode {
    cli::main("eval", run)
}

fn run() -> Result<()> {
    let args: Args = cli::parse()?;
    args.common.start()?;
    check(&args)?;
    match args.device.choose()? {
        Chosen::CpuF32 => run_on(&Cpu::<f32>::new(), &args),
        Chosen::CpuBf16 => run_on(&Cpu::<bf16>::new(), &args),
        Chosen::Cuda => run_on(&Cuda::open()?, &args),
    }
}

fn run_on<B: Backend>(backend: &B, args: &Args) -> Result<()> {
    let reference = args.reference.as_deref().map(Artefact::open).transpose()?;
    let mut paths = Vec::new();
    for path in &args.artefacts {
        paths.push(cli::input_path(path)?);
    }
    let artefacts = paths.iter().map(|p| Artefact::open(p)).collect::<Result<Vec<_>>>()?;
    if args.common.verify {
        artefacts.iter().chain(&reference).try_for_each(Artefact::verify)?;
    }
    let task_files = args.tasks.iter().map(|p| tasks::files(p)).collect::<Result<Vec<_>>>()?.concat();
    let tasks = task_files.iter().map(|p| Task::open(p, args.limit)).collect::<Result<Vec<_>>>()?;
    // Once for all artefacts: standard input can be read only once.
    let texts = args.ppl.iter().map(|path| text::joined(path)).collect::<Result<Vec<_>>>()?;
    let kept = Kept::open(args.output.as_deref(), &paths, args.common.force)?;
    let asked = asked(args, backend, reference.as_ref(), &texts, &task_files)?;
    let mut report = Report::default();
    for (path, artefact) in paths.iter().zip(&artefacts) {
        let digest = artefact.digest()?;
        let measured = blake3::hash(format!("{asked} {digest}").as_bytes()).to_hex().to_string();
        let one = match kept.find(&measured) {
            Some(known) => ArtefactReport { path: path.display().to_string(), ..known },
            None => evaluate(args, backend, path, artefact, reference.as_ref(), &texts, &tasks)?,
        };
        let kept_as_file = |digest: String| args.output.as_ref().map(|_| digest);
        let (digest, measured) = (kept_as_file(digest), kept_as_file(measured));
        report.artefacts.push(ArtefactReport { digest, measured, ..one });
        kept.save(&report)?;
    }
    kept.finish()?;
    cli::print(&if args.common.json { report.json() } else { report.table() })?;
    check_max_ppl(args, &report)
}

/// All that decides an artefact's figures besides itself.
fn asked<B: Backend>(
    args: &Args,
    backend: &B,
    reference: Option<&Artefact>,
    texts: &[String],
    task_files: &[PathBuf],
) -> Result<String> {
    let digest = |text: &String| blake3::hash(text.as_bytes()).to_hex().to_string();
    let names: Vec<String> = args.ppl.iter().map(|path| path.display().to_string()).collect();
    let tasks = task_files.iter().map(|path| text::digest(path)).collect::<Result<Vec<_>>>()?;
    let mut asked = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"), "path": backend.path(), "texts": names,
        "digests": texts.iter().map(digest).collect::<Vec<_>>(), "tasks": tasks, "ctx": args.ctx,
        "max_blocks": args.max_blocks, "limit": args.limit, "bos": format!("{:?}", args.bos),
        "reference": reference.map(Artefact::digest).transpose()?,
    });
    if let Some(generate) = args.generate.asked() {
        asked["generate"] = generate;
    }
    Ok(asked.to_string())
}

fn check(args: &Args) -> Result<()> {
    args.generate.check()?;
    if args.ppl.is_empty() && args.tasks.is_empty() && args.generate.asked().is_none() {
        return Err(Error::usage("nothing to measure", "give --ppl TEXT, --tasks FILE.jsonl or --generate PROMPT"));
    }
    if args.ctx < 2 {
        return Err(Error::usage("--ctx must be at least 2", "a block predicts all of its tokens but the first"));
    }
    if args.reference.is_some() && args.ppl.is_empty() {
        return Err(Error::usage("--reference compares on the --ppl texts", "give --ppl TEXT too"));
    }
    if args.max_ppl.is_some_and(|max| max.is_nan()) {
        return Err(Error::usage("--max-ppl NaN", "give a number such as 12.5"));
    }
    if args.max_ppl.is_some() && args.ppl.is_empty() {
        return Err(Error::usage("--max-ppl checks the --ppl texts", "give --ppl TEXT too"));
    }
    if args.max_blocks == Some(0) || args.limit == Some(0) {
        return Err(Error::usage("--max-blocks 0 or --limit 0", "give at least 1, or leave it out"));
    }
    Ok(())
}

fn evaluate<B: Backend>(
    args: &Args,
    backend: &B,
    path: &Path,
    artefact: &Artefact,
    reference: Option<&Artefact>,
    texts: &[String],
    tasks: &[Task],
) -> Result<ArtefactReport> {
    let tokenizer = Tokenizer::from_files(path, &artefact.support_files()?)?;
    let name = |text: &Path| text.display().to_string();
    let bos = uses_bos(args, path, &tokenizer)?;
    let vocab = artefact.config().vocab;
    let texts = args.ppl.iter().zip(texts);
    let texts =
        texts.map(|(path, text)| encode_text(path, text, &tokenizer, bos, vocab)).collect::<Result<Vec<_>>>()?;
    let protocol = Protocol { ctx: args.ctx, max_blocks: args.max_blocks, bos };
    for (text, ids) in args.ppl.iter().zip(&texts) {
        protocol.blocks(&name(text), ids.len())?;
    }
    let requests =
        tasks.iter().map(|t| task_requests(t, &tokenizer, bos, artefact.config())).collect::<Result<Vec<_>>>()?;
    let prompts = args.generate.prompts(path, &tokenizer, bos, vocab)?;
    let longest = requests.iter().flatten().map(|r| r.context.len() + r.continuation.len()).max().unwrap_or(0);
    let (positions, room) = extent(args, !texts.is_empty(), longest);
    let positions = positions.max(args.generate.positions(&prompts));
    let made_for = artefact.config().max_positions;
    if positions > made_for {
        let what =
            format!("{}: sequences of {positions} tokens, but the model was made for {made_for}", path.display());
        cli::say(&args.common, "eval", what);
    }
    let model = Model::load(backend, artefact, positions)?;
    let mut reader = Reader::new(backend, &model, room)?;
    let mut out = ArtefactReport {
        path: path.display().to_string(),
        kind: artefact.kind().to_string(),
        scheme: artefact.scheme().map(|s| s.to_string()),
        ppl: Map::new(),
        tasks: Map::new(),
        generated: Vec::new(),
        digest: None,
        measured: None,
    };
    let other = match reference {
        Some(r) if r.config().vocab != vocab => {
            return Err(Error::input(
                path,
                format!("a vocabulary of {vocab}"),
                format!("the reference's {}", r.config().vocab),
                "compare with the model that it was made from",
            ));
        }
        Some(r) => Some(Model::load(backend, r, positions)?),
        None => None,
    };
    let mut other = other.as_ref().map(|m| Reader::new(backend, m, Room::rows(room.rows))).transpose()?;
    for (text, ids) in args.ppl.iter().zip(&texts) {
        let name = name(text);
        let bar = progress::count(&args.common, &format!("{} {name}", artefact.kind()), 0);
        let result = perplexity::perplexity(&mut reader, other.as_mut(), &name, ids, protocol, |done, of, ppl| {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
            bar.set_message(format!("ppl {ppl:.3}"));
        })?;
        bar.finish_and_clear();
        if result.nll.is_nan() {
            return Err(Error::input(
                path,
                format!("its logits on {name} are no numbers"),
                "finite weights",
                "make or fetch it again",
            ));
        }
        out.ppl.insert(name, value(&result));
    }
    for (task, requests) in tasks.iter().zip(&requests) {
        let bar = progress::count(&args.common, &format!("{} {}", artefact.kind(), task.name()), requests.len() as u64);
        let scored = likelihood::score(&mut reader, requests, |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        out.tasks.insert(task.name().to_string(), value(&task.report(&scored)?));
    }
    out.generated = args.generate.run(&args.common, backend, &model, &tokenizer, &prompts)?;
    Ok(out)
}

/// Longest sequence, and the largest pass; `longest` of the tasks' requests, 0 without any.
fn extent(args: &Args, texts: bool, longest: usize) -> (usize, Room) {
    let ctx = if texts { args.ctx } else { 0 };
    let positions = ctx.max(longest);
    let room = if longest > 0 { Room::sharing(positions.max(PASS)) } else { Room::rows(positions) };
    (positions, room)
}

fn uses_bos(args: &Args, path: &Path, tokenizer: &Tokenizer) -> Result<bool> {
    match args.bos {
        Bos::Auto => Ok(tokenizer.adds_bos()),
        Bos::No => Ok(false),
        Bos::Yes if tokenizer.bos().is_some() => Ok(true),
        Bos::Yes => Err(Error::input(path, "a tokenizer without a BOS token", "one, for --bos yes", "leave --bos out")),
    }
}

/// One tokenization of the whole text.
fn encode_text(path: &Path, text: &str, tokenizer: &Tokenizer, bos: bool, vocab: usize) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text, false)?;
    if bos {
        ids.insert(0, tokenizer.bos().expect("checked by uses_bos"));
    }
    check_ids(path, &ids, vocab)?;
    Ok(ids)
}

pub fn check_ids(path: &Path, ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::input(
            path,
            format!("token id {id}"),
            format!("ids below the vocabulary's {vocab}"),
            "the tokenizer and the model do not belong together",
        )),
    }
}

fn task_requests(task: &Task, tokenizer: &Tokenizer, bos: bool, config: &Config) -> Result<Vec<Request>> {
    let bos = if bos { tokenizer.bos() } else { None };
    let empty = tokenizer.bos().or(tokenizer.eos()).unwrap_or(0);
    let encode = |text: &str| tokenizer.encode(text, false);
    let requests = task.requests(&encode, Prefix { bos, empty }, config.max_positions)?;
    for request in &requests {
        check_ids(task.path(), &request.context, config.vocab)?;
        check_ids(task.path(), &request.continuation, config.vocab)?;
    }
    Ok(requests)
}

fn value(result: &impl serde::Serialize) -> Value {
    serde_json::to_value(result).expect("figures are plain JSON")
}

fn check_max_ppl(args: &Args, report: &Report) -> Result<()> {
    let Some(max) = args.max_ppl else { return Ok(()) };
    // Before the last stand those that it is compared with.
    if let Some(artefact) = report.artefacts.last() {
        for (text, p) in &artefact.ppl {
            let ppl = p["ppl"].as_f64().unwrap_or(f64::NAN);
            if ppl.is_nan() || ppl > max {
                let what = format!("{}: perplexity {ppl:.3} on {text}, expected at most {max}", artefact.path);
                return Err(Error::Missed { what });
            }
        }
    }
    Ok(())
}
