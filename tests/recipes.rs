//! The cost in each recipe's header is what `qat-step --plan` says.

use common::compute::backend::Backend;
use common::compute::cpu::Cpu;
use common::compute::cuda::Cuda;
use common::model::config::{Config, Rope, Scaling};
use common::model::ledger::Keeping;
use common::model::names;
use common::quant::Phi;
use common::stage::wrapping::{Place, RoundedBy, Wrapping};
use common::train::Recipe;
use common::train::plan::{FloatBytes, Holding, plan, total};

/// (layers, d, ffn, heads, kv heads, vocab, tied) of the recipes' models, from their config.json.
const MODELS: [(&str, [usize; 6], bool); 6] = [
    ("llama-7b", [32, 4096, 11008, 32, 32, 32000], false),
    ("llama2-7b", [32, 4096, 11008, 32, 32, 32000], false),
    ("llama2-13b", [40, 5120, 13824, 40, 40, 32000], false),
    ("llama3-8b", [32, 4096, 14336, 32, 8, 128256], false),
    ("mistral-7b", [32, 4096, 14336, 32, 8, 32000], false),
    ("smollm2-135m", [30, 576, 1536, 9, 3, 49152], true),
];

fn config([layers, d, ffn, heads, kv_heads, vocab]: [usize; 6], tied: bool) -> Config {
    let rope = Rope { theta: 1e4, scaling: Scaling::None };
    let (head_dim, norm_eps, max_positions) = (d / heads, 1e-5, 4096);
    Config { vocab, d, ffn, layers, heads, kv_heads, head_dim, norm_eps, rope, window: None, tied, max_positions }
}

/// A setting of a recipe file.
fn setting(file: &str, key: &str) -> usize {
    let value = file.lines().find_map(|l| l.strip_prefix(&format!("{key}=")));
    value.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no {key} in the recipe"))
}

fn planned_gb<B: Backend>(config: &Config, recipe: &Recipe, scheme: &str, phi: Phi) -> f64 {
    let all = names::floats(config).iter().map(|(_, s)| 2 * s.iter().product::<usize>() as u64).sum();
    let floats = FloatBytes { all, embedding: 2 * (config.vocab * config.d) as u64 };
    let scheme = scheme.parse().unwrap();
    let wrapping = &Wrapping {
        place: Place::Inside { phi },
        rank: 32,
        alpha: 1.0,
        seed: 0,
        from_error: false,
        rounding: RoundedBy::Nearest,
    };
    let holding = Holding { config, scheme, wrapping, floats, recipe, keeping: Keeping::default(), taught: None };
    // In f32, on two threads: the same wherever the test runs.
    let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    two.install(|| total(&plan::<B>(&holding))) as f64 / 1e9
}

#[test]
fn headers_name_the_planned_memory() {
    let mut missing = Vec::new();
    for (model, dims, tied) in MODELS {
        let path = format!("{}/pipelines/models/{model}", env!("CARGO_MANIFEST_DIR"));
        let file = std::fs::read_to_string(&path).unwrap();
        let recipe = Recipe { batch: setting(&file, "BATCH"), seq: setting(&file, "SEQ"), ..Recipe::default() };
        let config = config(dims, tied);
        let planned = |scheme| planned_gb::<Cpu<f32>>(&config, &recipe, scheme, Phi::Q);
        let (channel, group) = (planned("w4pc"), planned("w4g64"));
        let expected = format!("{channel:.1} GB planned at w4pc, {group:.1} GB at w4g64");
        if !file.contains(&expected) {
            missing.push(format!("{path} should say: {expected}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// A 7B trains on a card of 12 GB with φ q and on one of 8 GB with φ int; the paper's code took 20.5 and 17.5 GB. All of the
/// paper's batch on one of 24 GB.
#[test]
fn what_a_gpu_has_to_hold() {
    for (model, batch, phi, most) in [
        ("llama2-7b", 1, Phi::Q, 11.0),
        ("llama2-7b", 1, Phi::Int, 7.8),
        ("llama3-8b", 1, Phi::Q, 14.0),
        ("llama3-8b", 1, Phi::Int, 10.5),
        ("llama2-7b", 4, Phi::Q, 20.0),
        ("llama3-8b", 4, Phi::Q, 20.0),
    ] {
        let (_, dims, tied) = MODELS.into_iter().find(|(name, ..)| *name == model).unwrap();
        let recipe = Recipe { batch, seq: 1024, ..Recipe::default() };
        let planned = planned_gb::<Cuda>(&config(dims, tied), &recipe, "w4g128", phi);
        eprintln!("{model}, {batch} × 1024, φ {phi}: {planned:.2} GB");
        assert!(planned <= most, "{model}, {batch} × 1024, φ {phi}: {planned:.2} GB, expected at most {most}");
    }
}
