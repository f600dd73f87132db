//! `shard`: tokenizes text into memory-mapped token shards.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use common::cli::{self, flags::Common, progress};
use common::data::text;
use common::data::tokenizer::Tokenizer;
use common::error::{Error, Result};
use common::format::atomic::PartDir;
use common::stage::open::Artefact;
use common::stage::record::{self, Begin, Input, Kind, Record};
use common::stage::shards::ShardWriter;
use rayon::prelude::*;

/// Tokenizes text (.txt, .jsonl, .jsonl.zst, .parquet, directories of them, - for standard input) into shards
#[derive(Parser)]
#[command(name = "shard", version)]
struct Args {
    /// Text files or directories
    #[arg(required = true)]
    text: Vec<PathBuf>,
    /// Whose tokenizer: a model directory, a .gguf, a stage directory, or a tokenizer.json
    #[arg(long, value_name = "MODEL|FILE")]
    tokenizer: PathBuf,
    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Bytes of text that are tokenized at a time.
const BATCH: usize = 16 << 20;

fn main() -> ExitCode {
    cli::main("shard", run)
}

fn run() -> Result<()> {
    let args: Args = cli::parse()?;
    args.common.start()?;
    let tokenizer = open_tokenizer(&args.tokenizer)?;
    let mut record = wanted(&args, &tokenizer)?;
    match record::begin(&args.output, &record, args.common.force, false)? {
        Begin::Done => {}
        Begin::Write(part) => {
            write(&args, &tokenizer, &part, &mut record)?;
            record::commit(part, &record)?;
        }
    }
    cli::print_path(&args.common, &args.output)
}

fn open_tokenizer(path: &Path) -> Result<Tokenizer> {
    if path.extension().is_some_and(|e| e == "json") {
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Tokenizer::from_dir(dir);
    }
    if path.is_dir() && !path.join(record::FILE).is_file() {
        return Tokenizer::from_dir(path);
    }
    Tokenizer::from_files(path, &Artefact::open(path)?.support_files()?)
}

fn wanted(args: &Args, tokenizer: &Tokenizer) -> Result<Record> {
    let mut inputs = Vec::new();
    for path in &args.text {
        // Standard input cannot be looked at twice: such shards are made anew each time, with --force.
        let stdin = path == Path::new("-");
        let digest = if stdin { "standard input".into() } else { text::digest(path)? };
        let path = if stdin { path.clone() } else { record::relative_path(path, &args.output)? };
        inputs.push(Input { role: "text".into(), path, digest });
    }
    let arguments = serde_json::json!({"tokenizer": tokenizer.digest()});
    Ok(Record::new(Kind::Shards, None, arguments, inputs))
}

/// Documents are tokenized in parallel, batch by batch; their order is that of the text.
fn write(args: &Args, tokenizer: &Tokenizer, part: &PartDir, record: &mut Record) -> Result<()> {
    let eos = tokenizer.eos().ok_or_else(|| {
        Error::input(
            &args.tokenizer,
            "a tokenizer without an EOS token",
            "one, to end documents with",
            "add eos_token to tokenizer_config.json",
        )
    })?;
    let mut writer = ShardWriter::new(part, tokenizer.digest());
    let bar = progress::count(&args.common, "shard", 0);
    let mut documents = 0u64;
    for path in &args.text {
        let mut pending = Vec::new();
        let mut bytes = 0;
        for document in text::documents(path)? {
            let document = document?;
            bytes += document.len();
            pending.push(document);
            if bytes >= BATCH {
                documents += flush(tokenizer, eos, &mut pending, &mut writer)?;
                bytes = 0;
                bar.set_message(format!("{documents} documents, {} tokens", writer.tokens));
            }
        }
        documents += flush(tokenizer, eos, &mut pending, &mut writer)?;
    }
    writer.finish()?;
    bar.finish_and_clear();
    record.files.extend(writer.files);
    record.details.insert("documents".into(), documents.into());
    record.details.insert("tokens".into(), writer.tokens.into());
    Ok(())
}

fn flush(tokenizer: &Tokenizer, eos: u32, pending: &mut Vec<String>, writer: &mut ShardWriter) -> Result<u64> {
    let ids: Vec<Vec<u32>> = pending.par_iter().map(|text| tokenizer.encode(text, true)).collect::<Result<_>>()?;
    for mut ids in ids {
        if ids.last() != Some(&eos) {
            ids.push(eos);
        }
        writer.push(&ids)?;
    }
    let count = pending.len() as u64;
    pending.clear();
    Ok(count)
}
