//! `qat-step --plan`: what a run will hold in memory, from the same ledger that the run allocates from.

use serde::Serialize;

use crate::compute::answers::Layout;
use crate::compute::backend::{Backend, Extent, Training};
use crate::error::Result;
use crate::model::Config;
use crate::model::host::Source;
use crate::model::ledger::{Activations, Keeping};
use crate::model::weights::HostBlock;
use crate::model::{names, teacher};
use crate::quant::Scheme;
use crate::stage::wrapping::{Place, Wrapping};

use super::recipe::Recipe;

/// One row of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    pub what: &'static str,
    pub detail: String,
    pub bytes: u64,
}

/// The rows of the gradients and of the moments.
const GRADIENTS: &str = "gradients";
const ADAM: &str = "Adam";

/// What decides the memory of a run.
pub struct Holding<'a> {
    pub config: &'a Config,
    pub scheme: Scheme,
    pub wrapping: &'a Wrapping,
    pub floats: FloatBytes,
    pub recipe: &'a Recipe,
    pub keeping: Keeping,
    pub taught: Option<HeldTeacher>,
}

/// What decides the memory of a teacher.
pub enum HeldTeacher {
    Live {
        config: Box<Config>,
        /// Bytes of its linears that are held at a time, and of what else it has, as stored.
        blocks: u64,
        floats: u64,
    },
    /// Stored ones.
    Answers(Layout),
}

impl HeldTeacher {
    pub fn of(source: &dyn Source) -> Result<HeldTeacher> {
        let config = source.config().clone();
        let block = HostBlock::read(source, 0)?;
        // Blocks that are made, not mapped, stay.
        let at_once = if block.is_mapped() { 1 } else { config.layers as u64 };
        Ok(HeldTeacher::Live {
            blocks: at_once * block.bytes() as u64,
            floats: FloatBytes::of(source)?.all,
            config: Box::new(config),
        })
    }

    fn rows(&self, backend_bytes: impl Fn(&Config) -> usize, recipe: &Recipe) -> Vec<Held> {
        let tokens = format!("{} × {} × {} tokens", recipe.accum, recipe.batch, recipe.seq);
        match self {
            HeldTeacher::Live { config, blocks, floats } => {
                let stream = 4 * recipe.accum * recipe.batch * recipe.seq * config.d;
                let detail = format!("what is read of it at a time, of {} blocks; embedding and head", config.layers);
                let states = format!("residual streams of {tokens}, activations of one block");
                vec![
                    Held { what: "teacher", detail, bytes: blocks + floats },
                    Held { what: "its states", detail: states, bytes: (stream + backend_bytes(config)) as u64 },
                ]
            }
            HeldTeacher::Answers(layout) => {
                let bytes = layout.bytes() as u64 * (recipe.accum * recipe.batch * recipe.seq) as u64;
                vec![Held { what: "answers", detail: format!("stored ones to {tokens}"), bytes }]
            }
        }
    }

    /// Whether the logits of another model, or as many log-probabilities, exist beside the model's own.
    fn whole(&self) -> bool {
        match self {
            HeldTeacher::Live { .. } => true,
            HeldTeacher::Answers(layout) => layout.whole(),
        }
    }

    fn answer(&self) -> Option<Layout> {
        match self {
            HeldTeacher::Live { .. } => None,
            HeldTeacher::Answers(layout) => Some(*layout),
        }
    }
}

/// Bytes of what stays floating point, as stored.
#[derive(Debug, Clone, Copy)]
pub struct FloatBytes {
    /// Embedding, norms and head.
    pub all: u64,
    pub embedding: u64,
}

impl FloatBytes {
    pub fn of(source: &dyn Source) -> Result<FloatBytes> {
        let mut bytes = FloatBytes { all: 0, embedding: 0 };
        for (name, shape) in names::floats(source.config()) {
            let tensor = source.float(&name, &shape)?.bytes().len() as u64;
            bytes.all += tensor;
            if name == names::EMBEDDING {
                bytes.embedding = tensor;
            }
        }
        Ok(bytes)
    }
}

/// Embedding, norms and head. A table of which only rows are read may stay with the host; then the rows of a pass are held.
fn floats<B: Backend>(h: &Holding, rows: usize) -> Held {
    let what = "frozen floats";
    if B::TABLES_ON_HOST && !h.config.tied {
        let gathered = h.floats.embedding / h.config.vocab as u64 * rows as u64;
        let detail = format!("norms, head as stored; {rows} rows of the embedding, which stays on the host");
        return Held { what, detail, bytes: h.floats.all - h.floats.embedding + gathered };
    }
    Held { what, detail: "embedding, norms, head as stored".into(), bytes: h.floats.all }
}

pub fn plan<B: Backend>(h: &Holding) -> Vec<Held> {
    let linears = names::linears(h.config);
    let w = h.wrapping;
    let frozen: u64 = linears.iter().map(|l| w.frozen(l, h.scheme).bytes() as u64).sum();
    let scales: u64 = linears.iter().map(|l| 4 * (l.n * h.scheme.groups(l.k)) as u64).sum();
    let factors: u64 = linears.iter().map(|l| 4 * (w.rank_of(l) * (l.n + l.k)) as u64).sum();
    let fixed_scales = w.is_outside() && h.recipe.lr_scale == 0.0;
    let (trained, frozen) = if fixed_scales { (factors, frozen + scales) } else { (factors + scales, frozen) };
    let stored = match w.place {
        Place::Inside { phi } => format!("Φ0 as {phi} of {}", h.scheme),
        Place::Outside { .. } => format!("integers of {}", h.scheme),
    };
    let what = match (w.rank, fixed_scales) {
        (0, _) => "s",
        (_, true) => "A, B",
        (_, false) => "A, B and s",
    };
    let masters = if w.rank > 0 { format!("rank {}, f32 masters", w.rank) } else { "f32 masters".into() };
    let zero: u64 = if h.scheme.has_zero_points() {
        linears.iter().map(|l| (l.n * h.scheme.groups(l.k) * 4) as u64).sum()
    } else {
        0
    };
    let rows = h.recipe.batch * h.recipe.seq;
    let acts = Activations::lengths(h.config, rows, true);
    let acts = acts.keeping(h.config, h.keeping);
    let mut held = vec![
        Held { what: "frozen weights", detail: stored, bytes: frozen + zero },
        floats::<B>(h, rows),
        Held { what, detail: masters, bytes: trained },
        Held { what: GRADIENTS, detail: format!("of {what}, f32"), bytes: trained },
        Held {
            what: ADAM,
            detail: format!("two moments, {}", h.recipe.moments),
            bytes: 2 * trained / 4 * h.recipe.moments.bytes() as u64,
        },
        Held {
            what: "checkpoints",
            detail: format!("inputs of {} blocks, {} × {} tokens", h.config.layers, h.recipe.batch, h.recipe.seq),
            bytes: acts.checkpoint_bytes::<B>() as u64,
        },
        Held {
            what: "kept",
            detail: format!(
                "attention of {} blocks, gate and up of {}; the rest is computed again",
                h.keeping.attention, h.keeping.gate_up
            ),
            bytes: acts.kept_bytes::<B>() as u64,
        },
        Held {
            what: "activations",
            detail: "of one block, with gradients".into(),
            bytes: acts.block_bytes::<B>() as u64,
        },
        Held {
            what: "integers",
            detail: if h.keeping.integers { "of all blocks, for a step" } else { "of one block, between its passes" }
                .into(),
            bytes: acts.integer_bytes() as u64,
        },
    ];
    let shapes: Vec<(usize, usize)> = linears.iter().map(|l| (l.n, l.k)).collect();
    let c = h.config;
    let extent = Extent {
        linears: &shapes,
        training: Some(Training {
            rank: w.rank,
            outside: w.is_outside(),
            dropout: w.dropout() > 0.0,
            scales: h.recipe.lr_scale > 0.0,
        }),
        vocab: c.vocab,
        d: c.d,
        heads: c.attention_heads(),
        rows,
        tokens: h.recipe.seq,
        heads_at_once: 1 + usize::from(h.taught.as_ref().is_some_and(HeldTeacher::whole)),
        answer: h.taught.as_ref().and_then(HeldTeacher::answer),
    };
    if let Some(taught) = &h.taught {
        held.extend(taught.rows(|c| teacher::lengths(c, rows).block_bytes::<B>(), h.recipe));
    }
    for (what, detail, bytes) in B::scratch(&extent) {
        held.push(Held { what, detail, bytes });
    }
    held
}

/// Keeps as much from the forward to the backward pass as `room` bytes hold: what spares most work for its bytes first.
pub fn keep_within<B: Backend>(h: &mut Holding, room: u64) {
    let blocks: Vec<usize> = (1..=h.config.layers).collect();
    let mut fits = |keeping: Keeping| {
        h.keeping = keeping;
        total(&plan::<B>(h)) <= room
    };
    let mut keeping = Keeping::default();
    keeping.attention = blocks.partition_point(|n| fits(Keeping { attention: *n, ..keeping }));
    keeping.gate_up = blocks[..keeping.attention].partition_point(|n| fits(Keeping { gate_up: *n, ..keeping }));
    keeping.integers = fits(Keeping { integers: true, ..keeping });
    h.keeping = keeping;
}

/// What the host holds besides, where the rows of the plan are of a device with memory of its own.
pub fn on_host<B: Backend>(held: &[Held]) -> Option<Held> {
    // Gradients are as many and as wide as what is trained.
    let trained = held.iter().find(|h| h.what == GRADIENTS).filter(|_| B::TABLES_ON_HOST)?;
    let detail = "what is trained and its moments, copied while a save is written, f32".to_string();
    Some(Held { what: "on the host", detail, bytes: 3 * trained.bytes })
}

pub fn total(held: &[Held]) -> u64 {
    held.iter().map(|h| h.bytes).sum()
}

/// The plan as a table.
pub fn table(held: &[Held], on_host: Option<&Held>) -> String {
    let row = |what: &str, bytes: u64, detail: &str| format!("{what:<16} {:>10}  {detail}\n", mib(bytes));
    let mut out: String = held.iter().map(|h| row(h.what, h.bytes, &h.detail)).collect();
    out += &row("total", total(held), "planned peak");
    out.extend(on_host.map(|h| row(h.what, h.bytes, &h.detail)));
    out
}

/// The plan as JSON: its rows, and their sum in bytes.
pub fn json(held: &[Held], on_host: Option<&Held>) -> String {
    let mut json = serde_json::json!({"plan": held, "total": total(held)});
    if let Some(held) = on_host {
        json["on_host"] = serde_json::json!(held.bytes);
    }
    format!("{json}\n")
}

pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64)
}
