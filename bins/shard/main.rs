//! `shard`: tokenizes text into memory-mapped token shards, and has a teacher answer them.

mod teacher;

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use common::cli::device::DeviceFlags;
use common::cli::{self, flags::Common, progress};
use common::data::text;
use common::data::tokenizer::Tokenizer;
use common::error::{Error, Result};
use common::format::atomic::PartDir;
use common::stage::open::Artefact;
use common::stage::record::{self, Begin, Input, Kind, Record};
use common::stage::shards::ShardWriter;
use rayon::prelude::*;
use teacher::{TeacherFlags, TeacherModel};
use tempfile::NamedTempFile;

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
    #[command(flatten)]
    teacher: TeacherFlags,
    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceFlags,
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
    let teacher = args.teacher.open(&tokenizer)?;
    if teacher.is_none() && !args.device.is_default() {
        let what = "--device and --compute say where a teacher computes, and there is no --teacher";
        return Err(Error::usage(what, "leave them out, or give --teacher MODEL"));
    }
    if let Some(teacher) = teacher.as_ref().filter(|_| args.common.verify) {
        teacher.verify()?;
    }
    let texts = args.text.iter().map(|path| Text::open(path, &args.output)).collect::<Result<Vec<_>>>()?;
    let mut record = wanted(&args, &texts, &tokenizer, teacher.as_ref())?;
    match record::begin(&args.output, &record, args.common.force)? {
        Begin::Done => {}
        Begin::Write(part) => {
            write(&args, &texts, &tokenizer, &part, &mut record)?;
            if let Some(teacher) = &teacher {
                teacher.answer(&args.device, &args.common, &part, &mut record)?;
            }
            record::commit(part, &record)?;
        }
    }
    cli::print_path(&args.common, &args.output)
}

fn open_tokenizer(path: &Path) -> Result<Tokenizer> {
    if path.extension().is_some_and(|e| e == "json") {
        return Tokenizer::from_json(path);
    }
    if path.is_dir() && !path.join(record::FILE).is_file() {
        return Tokenizer::from_dir(path);
    }
    Tokenizer::from_files(path, &Artefact::open(path)?.support_files()?)
}

/// A text to tokenize.
enum Text {
    Path(PathBuf),
    /// Standard input, kept in a file beside the output: its digest is needed before its tokens are.
    Stdin(NamedTempFile),
}

impl Text {
    fn open(path: &Path, output: &Path) -> Result<Text> {
        if path != Path::new("-") {
            return Ok(Text::Path(path.to_path_buf()));
        }
        let dir = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(Error::io(dir, "create"))?;
        let mut file = NamedTempFile::new_in(dir).map_err(Error::io(dir, "write"))?;
        std::io::copy(&mut std::io::stdin().lock(), &mut file).map_err(Error::io(dir, "write"))?;
        Ok(Text::Stdin(file))
    }

    fn input(&self, output: &Path) -> Result<Input> {
        let (digest, path) = match self {
            Text::Path(path) => (text::digest(path)?, record::relative_path(path, output)?),
            Text::Stdin(file) => (text::digest(file.path())?, PathBuf::from("-")),
        };
        Ok(Input { role: "text".into(), path, digest })
    }

    fn documents(&self) -> Result<text::Documents> {
        match self {
            Text::Path(path) => text::documents(path),
            Text::Stdin(file) => {
                let reader = file.reopen().map_err(Error::io(file.path(), "read"))?;
                text::documents_of(Path::new("-"), BufReader::new(reader))
            }
        }
    }
}

fn wanted(args: &Args, texts: &[Text], tokenizer: &Tokenizer, teacher: Option<&TeacherModel>) -> Result<Record> {
    let mut inputs = texts.iter().map(|text| text.input(&args.output)).collect::<Result<Vec<_>>>()?;
    let mut arguments = serde_json::json!({"tokenizer": tokenizer.digest()});
    let Some(teacher) = teacher else { return Ok(Record::new(Kind::Shards, None, arguments, inputs).in_format(1)) };
    inputs.push(teacher.input(&args.output)?);
    teacher.add_arguments(&mut arguments);
    let record = Record::new(Kind::Shards, None, arguments, inputs);
    Ok(if teacher.tells_all() { record.in_format(2) } else { record })
}

/// Documents are tokenized in parallel, batch by batch; their order is that of the text.
fn write(args: &Args, texts: &[Text], tokenizer: &Tokenizer, part: &PartDir, record: &mut Record) -> Result<()> {
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
    for text in texts {
        let mut pending = Vec::new();
        let mut bytes = 0;
        for document in text.documents()? {
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
