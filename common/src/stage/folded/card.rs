//! The model card, `README.md`: what the model is, how it was made, what it measures, how each engine loads it.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::targets::{Engine, Loads, loads};
use super::write::{Files, Target};
use super::{Format, adapter};
use crate::format::peft::Lora;
use crate::model::names;
use crate::quant::{Scheme, Symmetry};
use crate::stage::record::{Kind, Record, Stage};
use crate::stage::report::{ArtefactReport, Report};

/// The stages that led to a model, first to last; those that are gone are left out.
pub fn lineage(last: &Stage) -> Vec<Stage> {
    let before = match last.record.kind {
        Kind::Checkpoint => Some(("wrapped", Kind::Wrapped)),
        Kind::Wrapped => Some(("scales", Kind::Scales)),
        _ => None,
    };
    let before = before.and_then(|(role, kind)| last.open_input(role, kind).ok());
    let mut stages = before.map_or(Vec::new(), |stage| lineage(&stage));
    stages.push(last.clone());
    stages
}

/// What the card says besides the target: the stages, the figures of `eval`, and how `fold` was called.
pub struct Making<'a> {
    pub lineage: &'a [Stage],
    pub report: Option<&'a Report>,
    pub arguments: &'a Map<String, Value>,
    pub files: &'a Files,
}

pub fn card(target: &Target, making: &Making) -> String {
    let (scheme, format) = (target.scheme, target.format);
    let library = if format == Format::Gguf { "gguf" } else { "transformers" };
    let mut card = format!(
        "---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags: [lr-qat, {scheme}, {}-bit, {format}]\n---\n\n",
        scheme.bits
    );
    let model = target.name;
    let trained = making.lineage.last().is_some_and(|stage| stage.record.kind == Kind::Checkpoint);
    let rounded_how = rounding(making);
    let how = if target.lora.is_some() {
        &format!(
            "Integers rounded {rounded_how}, with low-rank adapters beside them that were trained on what the rounding lost \
             (LoRA, Hu et al. 2021; INT2.1, Chai et al. 2023, arXiv:2306.08162): load both."
        )
    } else if trained && fixed(making) {
        &format!("Integers rounded {rounded_how}, whose scales were trained (PEQA, Kim et al. 2023, arXiv:2305.14152).")
    } else if trained {
        "Trained with its weights on this grid by low-rank quantization-aware training (LR-QAT, Bondarenko et al. 2024, \
         arXiv:2406.06385): what is stored is plain integers and scales, with no adapter left and no overhead."
    } else {
        &format!("Rounded {rounded_how} on a fitted grid; not trained.")
    };
    let _ = write!(card, "# {model}, {}\n\n{how}\n\n", words(scheme));
    facts(&mut card, target, making);
    if let Some(report) = making.report {
        figures(&mut card, report, rounded(target));
    }
    commands(&mut card, making, model);
    loading(&mut card, format, scheme, target.lora.as_ref());
    card
}

/// What lr-wrap was asked for.
fn wrapped<'a>(making: &Making<'a>) -> Option<&'a Map<String, Value>> {
    making.lineage.iter().find(|stage| stage.record.kind == Kind::Wrapped).map(|stage| &stage.record.arguments)
}

/// Were the integers fixed while it was trained?
fn fixed(making: &Making) -> bool {
    wrapped(making).is_some_and(|arguments| arguments.get("rank").is_some_and(|rank| *rank == 0))
}

/// How they were rounded before it was trained.
fn rounding(making: &Making) -> &'static str {
    match wrapped(making).and_then(|arguments| arguments.get("rounding")) {
        Some(word) if word == "gptq" => "by GPTQ (Frantar et al. 2022, arXiv:2210.17323)",
        Some(word) if word == "learned" => {
            "by GPTQ (Frantar et al. 2022, arXiv:2210.17323), from where it was learned block by block from the float \
             model's outputs (as EfficientQAT's Block-AP does; Chen et al. 2024, arXiv:2407.11062)"
        }
        _ => "to nearest",
    }
}

/// File or directory name of the model that quantization started from, if the scales that name it are still there.
pub fn model_name(lineage: &[Stage]) -> Option<String> {
    let scales = lineage.first().filter(|stage| stage.record.kind == Kind::Scales)?;
    let path = &scales.input("model").ok()?.path;
    let name = if path.extension().is_some_and(|e| e == "gguf") { path.file_stem() } else { path.file_name() };
    Some(name?.to_string_lossy().into_owned())
}

/// `4-bit integers, one scale per output channel`.
fn words(scheme: Scheme) -> String {
    let scale = match scheme.group {
        None => "one scale per output channel".to_string(),
        Some(g) => format!("one scale per {g} inputs"),
    };
    let beside = match scheme.symmetry {
        Symmetry::Symmetric => "",
        Symmetry::Signed => ", of both signs",
        Symmetry::Asymmetric => ", with zero points",
    };
    format!("{}-bit integers, {scale}{beside}", scheme.bits)
}

fn facts(card: &mut String, target: &Target, making: &Making) {
    let linears = target.linears();
    let weights: usize = linears.iter().map(|l| l.n * l.k).sum();
    let floats: usize =
        names::floats(target.source.config()).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let weights_file = if target.format == Format::Gguf { super::GGUF } else { super::SAFETENSORS };
    let bytes = making.files.get(weights_file).map_or(0, |file| file.bytes);
    let mut row = |what: &str, value: String| {
        let _ = writeln!(card, "| {what} | {value} |");
    };
    row("", String::new());
    row("---", "---".into());
    row("scheme", format!("`{}`: {}", target.scheme, words(target.scheme)));
    row("format", target.format.to_string());
    row("quantized", format!("{weights} weights of {} linears", linears.len()));
    row("in floating point", format!("{floats} values of embedding, norms and head"));
    row("size", format!("{:.1} MB ({weights_file})", bytes as f64 / 1e6));
    if let Some(lora) = &target.lora {
        let bytes = adapter::bytes(target, lora) as f64 / 1e6;
        row("adapters", format!("rank {} of {}: {bytes:.1} MB (`adapter/`)", lora.rank, lora.modules.join(", ")));
    }
    if let Some(record) = making.lineage.last().map(|s| &s.record).filter(|r| r.kind == Kind::Checkpoint) {
        row("trained", training(record));
    }
    row("made with", format!("lrqat {}", env!("CARGO_PKG_VERSION")));
}

fn training(record: &Record) -> String {
    let number = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_u64).unwrap_or(0);
    let args = &record.arguments;
    let (step, steps) = (number(&record.details, "step"), number(args, "steps"));
    let (batch, accum, seq) = (number(args, "batch"), number(args, "accum"), number(args, "seq"));
    let cut = if step < steps { format!(" of {steps}") } else { String::new() };
    format!("{step}{cut} steps of {} sequences of {seq} tokens: {} tokens", batch * accum, step * batch * accum * seq)
}

/// The type that embedding and head of a GGUF were rounded to, if they were.
fn rounded(target: &Target) -> Option<&'static str> {
    let shape = [target.source.config().vocab, target.source.config().d];
    let own = target.source.float(names::EMBEDDING, &shape).ok()?.dtype;
    let to = target.embedding.filter(|_| target.format == Format::Gguf && !super::gguf::keeps(target, own))?;
    Some(to.name())
}

fn figures(card: &mut String, report: &Report, rounded: Option<&str>) {
    let after = rounded.map_or(String::new(), |ty| format!("; embedding and head were rounded to {ty} after that"));
    let _ = write!(
        card,
        "\n## Figures\n\nMeasured by lrqat's `eval`. The folded integers give what the checkpoint gives{after}.\n\n"
    );
    let report = Report { artefacts: report.artefacts.iter().map(without_folders).collect() };
    let line = |card: &mut String, cells: Vec<String>| {
        let _ = writeln!(card, "| {} |", cells.join(" | "));
    };
    let head =
        |a: &ArtefactReport| format!("{}{}", a.label(), a.scheme.as_ref().map_or(String::new(), |s| format!(" {s}")));
    line(card, std::iter::once(String::new()).chain(report.artefacts.iter().map(head)).collect());
    line(card, vec!["---".to_string(); report.artefacts.len() + 1]);
    for row in report.figures() {
        line(card, row);
    }
}

/// Where the texts lie is nobody's business but their owner's.
fn without_folders(artefact: &ArtefactReport) -> ArtefactReport {
    let name = |path: &String| path.rsplit('/').next().unwrap_or(path).to_string();
    let ppl = artefact.ppl.iter().map(|(path, figures)| (name(path), figures.clone())).collect();
    ArtefactReport { ppl, ..artefact.clone() }
}

fn commands(card: &mut String, making: &Making, model: &str) {
    let _ = write!(card, "\n## How it was made\n\n```\n");
    for stage in making.lineage {
        let record = &stage.record;
        let (from, to) = match record.kind {
            Kind::Scales => (model, "scales"),
            Kind::Wrapped => ("scales", "wrapped"),
            _ => ("wrapped", "checkpoint"),
        };
        let of = |role: &str| record.inputs.iter().any(|input| input.role == role);
        let (shards, teacher) = (of("shards"), of("teacher"));
        let shards = if shards { " --shards SHARDS" } else { "" };
        let teacher = if teacher { " --teacher TEACHER" } else { "" };
        let _ = writeln!(card, "{} {from}{shards}{teacher}{} -o {to}", record.tool, flags(&record.arguments));
    }
    let from = match making.lineage.last().map(|s| s.record.kind) {
        Some(Kind::Checkpoint) => "checkpoint",
        _ => "wrapped",
    };
    let _ = write!(card, "fold {from}{} -o folded\n```\n", flags(making.arguments));
}

/// The arguments that a stage records, as they are typed.
fn flags(arguments: &Map<String, Value>) -> String {
    let typed = arguments.iter().filter(|(key, value)| {
        // Recorded even where training went to the end of its schedule; kept integers have no fit.
        let whole = *key == "stop_at" && Some(*value) == arguments.get("steps");
        !whole && !value.is_null() && *value != "kept"
    });
    let flag = |(key, value): (&String, &Value)| match value {
        Value::Object(several) => flags(several),
        Value::String(word) => format!(" --{} {word}", key.replace('_', "-")),
        other => format!(" --{} {other}", key.replace('_', "-")),
    };
    typed.map(flag).collect()
}

fn loading(card: &mut String, format: Format, scheme: Scheme, lora: Option<&Lora>) {
    let _ = write!(card, "\n## Loading it\n");
    for engine in Engine::ALL {
        let note = match loads(engine, format, scheme) {
            Loads::Never => continue,
            Loads::No(why) => {
                let _ = write!(card, "\n{} does not load it: {why}.\n", engine.name());
                continue;
            }
            Loads::With(note) => format!(" ({note})"),
            Loads::Yes => String::new(),
        };
        match how(engine, format, lora) {
            Some(how) => {
                let _ = write!(card, "\n{}{note}:\n\n```\n{how}\n```\n", engine.name());
            }
            None => {
                let _ = write!(card, "\n{} was not tried with adapters.\n", engine.name());
            }
        }
    }
}

fn how(engine: Engine, format: Format, lora: Option<&Lora>) -> Option<String> {
    let file = if format == Format::Gguf { ", gguf_file=\"model.gguf\"" } else { "" };
    let from_folded = format!("AutoModelForCausalLM.from_pretrained(\"folded\"{file})");
    Some(match (engine, lora) {
        (Engine::Vllm, None) => "vllm serve folded".into(),
        (Engine::Vllm, Some(lora)) => {
            // The ranks that it takes.
            let rank = [8, 16, 32, 64, 128, 256, 320, 512].into_iter().find(|r| *r >= lora.rank)?;
            format!("vllm serve folded --enable-lora --max-lora-rank {rank} --lora-modules tuned=folded/adapter")
        }
        (Engine::Transformers, None) => from_folded,
        (Engine::Transformers, Some(_)) => {
            format!("model = {from_folded}\nmodel = peft.PeftModel.from_pretrained(model, \"folded/adapter\")")
        }
        (Engine::LlamaCpp, None) => "llama-cli -m folded/model.gguf".into(),
        (Engine::GptqModel, None) => "GPTQModel.load(\"folded\")".into(),
        (Engine::LlamaCpp | Engine::GptqModel, Some(_)) => return None,
    })
}

/// Does a report speak of this stage, as it is now?
pub fn speaks_of(report: &Report, stage: &Stage) -> bool {
    report.artefacts.iter().any(|a| a.digest.as_ref() == Some(&stage.digest))
}
