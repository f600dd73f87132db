//! Which format holds which scheme, and which engine loads the result: what `fold --list-targets` prints and what
//! `fold` refuses or warns about.
//!
//! What a format holds is said by its own module under `format/`. What an engine loads was read in the sources of the
//! releases named in [`Engine::release`] and, where `make interop` can run the engine, seen (tests/interop/RESULTS.md).

use serde::Serialize;

use super::Format;
use crate::model::names::LinearName;
use crate::quant::Scheme;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Vllm,
    Transformers,
    LlamaCpp,
    GptqModel,
}

impl Engine {
    pub const ALL: [Engine; 4] = [Engine::Vllm, Engine::Transformers, Engine::LlamaCpp, Engine::GptqModel];

    pub fn name(self) -> &'static str {
        match self {
            Engine::Vllm => "vLLM",
            Engine::Transformers => "transformers",
            Engine::LlamaCpp => "llama.cpp",
            Engine::GptqModel => "GPTQModel",
        }
    }

    /// The release that the table speaks of.
    pub fn release(self) -> &'static str {
        match self {
            Engine::Vllm => "0.32",
            Engine::Transformers => "5.23 (compressed-tensors 0.20, optimum 2.3)",
            Engine::LlamaCpp => "as in llama-cpp-python 0.3.36",
            Engine::GptqModel => "7.7",
        }
    }
}

/// What an engine does with a folded model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loads {
    Yes,
    /// It does, with this to know.
    With(&'static str),
    /// It takes the format, but not this scheme.
    No(&'static str),
    /// It does not take the format at all.
    Never,
}

/// Does `engine` load `scheme` in `format`? Only asked of what the format can hold.
pub fn loads(engine: Engine, format: Format, scheme: Scheme) -> Loads {
    match engine {
        Engine::Vllm => vllm(format, scheme),
        Engine::Transformers => transformers(format, scheme),
        Engine::LlamaCpp if format == Format::Gguf => Loads::Yes,
        Engine::LlamaCpp => Loads::Never,
        Engine::GptqModel => match format {
            Format::Gptq if scheme.stores_zero_points() => {
                Loads::No("it refuses zero points in version 1; gptq-v2 loads")
            }
            Format::Gptq | Format::GptqV2 | Format::Awq => Loads::Yes,
            _ => Loads::Never,
        },
    }
}

/// Of vLLM: its GPU kernels take 4 and 8 bits, that of its build for CPUs (`mixed_precision/cpu.py`) 4 only.
const GPUS_ONLY: &str = "on GPUs; its build for CPUs takes 4 bits only";

fn vllm(format: Format, scheme: Scheme) -> Loads {
    let marlin_group = matches!(scheme.group, None | Some(32 | 64 | 128));
    match (format, scheme.bits) {
        (Format::CompressedTensors, 4) => Loads::Yes,
        (Format::CompressedTensors, 8) => Loads::With(GPUS_ONLY),
        (Format::CompressedTensors, _) if scheme.stores_zero_points() => {
            Loads::No("its kernels take zero points at 4 and 8 bits only")
        }
        (Format::CompressedTensors, _) => Loads::With(
            "on GPUs from compute capability 7.5 on, through humming-kernels; its build for CPUs takes 4 bits only",
        ),
        (Format::IntQuantized, _) if scheme.group.is_some() => Loads::No("its W8A8 kernels take one scale a channel"),
        (Format::IntQuantized, _) => Loads::With("activations are rounded to 8 bits a token"),
        (Format::Gptq | Format::GptqV2, _) if scheme.stores_zero_points() => {
            Loads::No("it takes symmetric GPTQ models only")
        }
        (Format::Gptq | Format::GptqV2, 2 | 3) => Loads::No("it takes GPTQ models of 4 and 8 bits only"),
        (Format::Gptq | Format::GptqV2 | Format::Awq, _) if !marlin_group => {
            Loads::No("its kernels take groups of 32, 64 and 128, or one scale a channel")
        }
        (Format::Gptq | Format::GptqV2, 8) => Loads::With(GPUS_ONLY),
        (Format::Gptq | Format::GptqV2 | Format::Awq, _) => Loads::Yes,
        (Format::Gguf, _) => Loads::No(
            "its GGUF plugin 0.0.5 takes no embedding in BF16 or F16, and with --embedding q8_0 it fails at its first \
             computation on a CPU (GPUs were not tried)",
        ),
    }
}

fn transformers(format: Format, scheme: Scheme) -> Loads {
    match format {
        Format::CompressedTensors if scheme.stores_zero_points() => {
            Loads::No("compressed-tensors 0.18 to 0.20 refuse packed zero points (0.17 loads them)")
        }
        Format::CompressedTensors => Loads::Yes,
        Format::IntQuantized => Loads::With("activations are rounded to 8 bits a token"),
        Format::Gptq | Format::GptqV2 | Format::Awq if scheme.group.is_none() && scheme.bits == 4 => {
            Loads::With("needs gptqmodel (GPTQ also optimum), whose default kernel on a CPU takes no scale per channel")
        }
        Format::Gptq | Format::GptqV2 => Loads::With("needs optimum and gptqmodel"),
        Format::Awq => Loads::With("needs gptqmodel"),
        Format::Gguf => Loads::With("turned back into floats"),
    }
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub scheme: String,
    pub format: &'static str,
    /// Why the format cannot hold the scheme.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    pub engines: Vec<Cell>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    pub engine: &'static str,
    pub loads: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

/// The formats and engines for `schemes`, for a model with these linears.
pub fn table(schemes: &[Scheme], linears: impl Fn(Scheme) -> Vec<LinearName>) -> Vec<Row> {
    let mut rows = Vec::new();
    for scheme in schemes {
        let linears = linears(*scheme);
        for format in Format::ALL {
            let refused = linears.iter().find_map(|linear| format.unfit(linear, *scheme));
            let cell = |engine: Engine| match loads(engine, format, *scheme) {
                _ if refused.is_some() => None,
                Loads::Never => None,
                Loads::Yes => Some(Cell { engine: engine.name(), loads: true, note: None }),
                Loads::With(note) => Some(Cell { engine: engine.name(), loads: true, note: Some(note) }),
                Loads::No(why) => Some(Cell { engine: engine.name(), loads: false, note: Some(why) }),
            };
            let engines = Engine::ALL.into_iter().filter_map(cell).collect();
            rows.push(Row { scheme: scheme.to_string(), format: format.name(), refused, engines });
        }
    }
    rows
}

/// What `fold --list-targets` shows when no model is at hand.
pub fn usual_schemes() -> Vec<Scheme> {
    let words = ["w2pc", "w2g64", "w2pcz", "w2g64z", "w3pc", "w3g64", "w3g128", "w4pc", "w4g32", "w4g64", "w4g128"];
    let more = ["w4pcz", "w4g128z", "w8pc", "w8g128"];
    words.iter().chain(&more).map(|word| word.parse().expect("these are schemes")).collect()
}

/// Widths that every format can pack, for a table without a model.
pub fn usual_linear(scheme: Scheme) -> Vec<LinearName> {
    vec![LinearName { name: "a linear".into(), n: 4096, k: scheme.group.unwrap_or(1) * 4096 }]
}
