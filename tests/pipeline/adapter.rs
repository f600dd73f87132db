use std::collections::BTreeSet;
use std::fs;

use common::format::safetensors::TensorFile;
use serde_json::Value;

use crate::tools::Dir;

const RECIPE: &str = "--batch 2 --seq 32 --lr-ab 0.01";

fn names(dir: &Dir, file: &str) -> BTreeSet<String> {
    TensorFile::open(&dir.join(file)).unwrap().names().map(str::to_string).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn perplexity(dir: &Dir, artefact: &str) -> f64 {
    let report = json(&dir.run(&format!("eval {artefact} --ppl text.txt --ctx 64 --compute f32 --json")).ok());
    report["artefacts"][0]["ppl"]["text.txt"]["ppl"].as_f64().unwrap()
}

fn divergence(dir: &Dir, artefact: &str) -> f64 {
    let report =
        json(&dir.run(&format!("eval {artefact} --ppl text.txt --ctx 64 --reference model --compute f32 --json")).ok());
    report["artefacts"][0]["ppl"]["text.txt"]["kl"].as_f64().unwrap()
}

/// What fixed integers lost is learnt back beside them; the integers stay.
#[test]
fn adapters_repair_fixed_integers() {
    let dir = Dir::with_stages();
    dir.run("ptq-init model --scheme w2g8 -o coarse").ok();
    dir.run("lr-wrap coarse --adapter outside --rank 4 -o beside").ok();
    let line = "qat-step beside --shards shards --steps 80 --batch 4 --seq 32 --lr-ab 0.03 --loss kl --teacher model";
    dir.run(&format!("{line} -o taught")).ok();
    let (before, after) = (divergence(&dir, "beside"), divergence(&dir, "taught"));
    assert!(after < 0.85 * before, "{before} {after}");
    dir.run("lr-wrap coarse --rank 0 -o alone").ok();
    dir.run("fold taught --adapter keep -o with").ok();
    dir.run("fold alone -o without").ok();
    let codes = |folded: &str| {
        let file = TensorFile::open(&dir.join(folded).join("model.safetensors")).unwrap();
        let packed =
            file.names().filter(|n| n.ends_with("weight_packed")).map(|n| file.get(n).unwrap().bytes().to_vec());
        packed.collect::<Vec<_>>()
    };
    assert!(codes("with") == codes("without") && codes("with").len() == 14);
}

/// What rounding lost is in the adapters before any training; more of it, in a model that has learnt something, where inputs
/// weigh what they are.
#[test]
fn adapters_start_at_the_error() {
    let dir = Dir::with_stages();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
    dir.run(&format!("ptq-init {demo}/model --scheme w2pcz -o learnt")).ok();
    dir.run(&format!("shard {demo}/train.txt --tokenizer {demo}/model -o of-demo")).ok();
    let line = "lr-wrap learnt --adapter outside --rank 4";
    dir.run(&format!("{line} -o learnt-nothing")).ok();
    dir.run(&format!("{line} --init error -o learnt-error")).ok();
    dir.run(&format!("{line} --init error --shards of-demo -o learnt-weighed")).ok();
    let [nothing, error, weighed] = ["nothing", "error", "weighed"].map(|name| {
        let text = format!("{demo}/test.txt");
        let line = format!("eval learnt-{name} --ppl {text} --ctx 256 --max-blocks 8 --reference {demo}/model --json");
        json(&dir.run(&line).ok())["artefacts"][0]["ppl"][&text]["kl"].as_f64().unwrap()
    });
    assert!(error < 0.95 * nothing && weighed < 0.98 * error, "{nothing} {error} {weighed}");

    dir.run("ptq-init model --scheme w2g8 -o coarse").ok();
    dir.run("lr-wrap coarse --adapter outside --rank 6 -o nothing").ok();
    dir.run("lr-wrap coarse --adapter outside --rank 6 --init error -o error").ok();
    let of = |name: &str| divergence(&dir, name);
    let (nothing, error) = (of("nothing"), of("error"));
    assert!(error < 0.9 * nothing, "{nothing} {error}");
    // As many ranks as a linear has: nothing is lost but what f32 loses.
    dir.run("lr-wrap coarse --adapter outside --rank 200 --init error -o all").ok();
    assert!(of("all") < 1e-4 * nothing, "{}", of("all"));
    // Inside the rounding too, where φ loses much.
    dir.run("lr-wrap coarse --phi int --rank 6 --init error -o inside").ok();
    let line = format!("qat-step inside --shards shards --steps 2 {RECIPE} -o trained");
    dir.run(&line).ok();
    dir.run("ptq-init folded -o kept").ok();
    for (flags, told) in [
        ("coarse --shards shards", "--shards without --rounding gptq or learned, or --init error"),
        ("coarse --rank 0 --init error", "--init error with --rank 0"),
        ("coarse --rank 0 --alpha 2", "--alpha with --rank 0"),
        ("coarse --init error --alpha 0", "--alpha 0"),
        ("kept --init error", "what they lost is not known"),
    ] {
        let stderr = dir.run(&format!("lr-wrap {flags} -o x")).fails(2);
        assert!(stderr.contains(told), "{flags}: {stderr}");
    }
}

/// Somebody's quantized model, repaired against its float original: its integers and scales are what they were.
#[test]
fn a_quantized_model_is_repaired() {
    let dir = Dir::with_stages();
    dir.run("ptq-init model --scheme w2g8 -o coarse").ok();
    dir.run("lr-wrap coarse --rank 0 -o rounded").ok();
    for format in ["gptq-v2", "compressed-tensors"] {
        dir.run(&format!("fold rounded --format {format} -o theirs-{format}")).ok();
        dir.run(&format!("ptq-init theirs-{format} -o kept-{format}")).ok();
        dir.run(&format!("lr-wrap kept-{format} --adapter outside --rank 4 -o beside-{format}")).ok();
        let line = format!("qat-step beside-{format} --shards shards --steps 40 --batch 4 --seq 32 --lr-ab 0.03");
        dir.run(&format!("{line} --lr-scale 0 --loss kl --teacher model -o repaired-{format}")).ok();
        let of = |name: &str| divergence(&dir, &format!("{name}-{format}"));
        let (before, after) = (of("theirs"), of("repaired"));
        assert!(after < 0.9 * before, "{format}: {before} {after}");
        dir.run(&format!("fold repaired-{format} --adapter keep --format {format} -o ours-{format}")).ok();
        let card = fs::read_to_string(dir.join(&format!("ours-{format}")).join("README.md")).unwrap();
        let typed = "--shards SHARDS --teacher TEACHER --steps 40";
        let loss = "--kl-weight 1.0 --ce-weight 0.0 --loss-norm token";
        assert!(card.contains(typed) && card.contains(loss), "{card}");
        let weights = |name: &str| fs::read(dir.join(&format!("{name}-{format}")).join("model.safetensors")).unwrap();
        assert!(weights("theirs") == weights("ours"), "{format}: other bytes");
    }
}

/// The masks are drawn again as they were: with dropout too, a run that is cut goes on to the same bytes.
#[test]
fn dropout_is_repeated() {
    let dir = Dir::with_stages();
    dir.run("lr-wrap scales --adapter outside --rank 3 --dropout 0.25 --targets q,down -o beside").ok();
    dir.run("lr-wrap scales --adapter outside --rank 3 --targets q,down -o dry").ok();
    let line = format!("--shards shards --steps 8 --accum 2 {RECIPE}");
    let trained = |name: &str| fs::read(dir.join(name).join("trained.safetensors")).unwrap();
    dir.run(&format!("qat-step beside {line} -o whole")).ok();
    dir.run(&format!("qat-step beside {line} --stop-at 3 -o third")).ok();
    dir.run("qat-step third -o rest").ok();
    assert!(trained("whole") == trained("rest"));
    dir.run(&format!("qat-step dry {line} -o kept")).ok();
    assert!(trained("whole") != trained("kept"), "nothing was dropped");
    let tensors = names(&dir, "whole/trained.safetensors");
    let count = |end: &str| tensors.iter().filter(|name| name.ends_with(end)).count();
    assert_eq!((count(".scale"), count("_a"), count("_b")), (14, 4, 4));
    assert!(tensors.contains("model.layers.1.mlp.down_proj.lora_a"));
}

/// Without a rate for them the scales stay as they are.
#[test]
fn scales_alone_and_scales_frozen() {
    let dir = Dir::with_stages();
    dir.run("lr-wrap scales --rank 0 -o alone").ok();
    let scales = |file: &str| {
        let file = TensorFile::open(&dir.join(file)).unwrap();
        let names: BTreeSet<&str> = file.names().filter(|name| name.ends_with(".scale")).collect();
        names.into_iter().flat_map(|name| file.get(name).unwrap().to_f32()).collect::<Vec<f32>>()
    };
    dir.run(&format!("qat-step alone --shards shards --steps 4 {RECIPE} --lr-scale 1e-3 -o peqa")).ok();
    assert!(names(&dir, "peqa/trained.safetensors").iter().all(|name| name.ends_with(".scale")));
    assert!(scales("peqa/trained.safetensors") != scales("alone/wrapped.safetensors"));
    dir.run("fold peqa -o folded-peqa").ok();
    let (checkpoint, folded) = (perplexity(&dir, "peqa"), perplexity(&dir, "folded-peqa"));
    assert_eq!(checkpoint, folded);

    dir.run("lr-wrap scales --adapter outside --rank 2 -o beside").ok();
    dir.run(&format!("qat-step beside --shards shards --steps 4 {RECIPE} --lr-scale 0 -o frozen")).ok();
    assert!(names(&dir, "frozen/trained.safetensors").iter().all(|name| name.contains(".lora_")));
    dir.run("fold frozen --adapter keep -o with").ok();
    let (checkpoint, folded) = (perplexity(&dir, "frozen"), perplexity(&dir, "with"));
    assert!((folded / checkpoint - 1.0).abs() < 1e-3, "{checkpoint} {folded}");
    // And on from there, with scales.
    dir.run(&format!("qat-step frozen --shards shards --steps 2 {RECIPE} --lr-scale 1e-4 -o on")).ok();
    assert_eq!(names(&dir, "on/trained.safetensors").len(), 3 * 14);
    let nothing = dir.run("qat-step alone --shards shards --steps 2 --lr-scale 0 -o x").fails(2);
    assert!(nothing.contains("neither adapters nor"), "{nothing}");
}

/// In every format the adapter lies beside the integers and is read with them; what it takes is said.
#[test]
fn folded_with_its_adapter() {
    let dir = Dir::with_stages();
    dir.run("ptq-init model --scheme w4g32 -o s").ok();
    dir.run("lr-wrap s --adapter outside --rank 2 --alpha 6 --targets q,v,up -o beside").ok();
    dir.run(&format!("qat-step beside --shards shards --steps 6 {RECIPE} -o tuned")).ok();
    let before = perplexity(&dir, "tuned");
    let refused = dir.run("fold tuned -o merged").fails(2);
    assert!(refused.contains("adapters lie outside the rounding") && refused.contains("--adapter keep"), "{refused}");
    for format in ["compressed-tensors", "gptq", "awq", "gguf"] {
        dir.run(&format!("fold tuned --adapter keep --format {format} -o {format}")).ok();
        // A and B are rounded to 16 bits.
        let after = perplexity(&dir, format);
        assert!((after / before - 1.0).abs() < 1e-3, "{format}: {before} {after}");
        let card = fs::read_to_string(dir.join(format).join("README.md")).unwrap();
        assert!(card.contains("with low-rank adapters beside them") && card.contains("--targets q,v,up"), "{card}");
        let read = |name: &str| json(&fs::read_to_string(dir.join(format).join(name)).unwrap());
        let config = read("adapter/adapter_config.json");
        assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(2), Some(6.0)));
        assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "v_proj", "up_proj"]));
        let size = read("size.json");
        let bytes = |key: &str| size[key].as_u64().unwrap();
        let adapters: u64 = fs::metadata(dir.join(format).join("adapter/adapter_model.safetensors")).unwrap().len();
        assert!(bytes("adapters") < adapters && adapters < bytes("adapters") + 4096, "{size}");
        assert_eq!(bytes("total"), bytes("integers") + bytes("scales") + bytes("floats") + bytes("adapters"));
        assert_eq!(bytes("integers") * 8, bytes("quantized_weights") * 4);
    }
    let refused = dir.run("ptq-init gptq -o again").fails(1);
    assert!(refused.contains("adapter"), "{refused}");
    let refused = dir.run("fold checkpoint --adapter keep -o x").fails(2);
    assert!(refused.contains("no adapters outside the rounding"), "{refused}");
}

/// A file of the adapter that is not what the configuration says.
#[test]
fn a_broken_adapter_is_named() {
    let dir = Dir::with_stages();
    dir.run("lr-wrap scales --adapter outside --rank 2 -o beside").ok();
    dir.run("fold beside --adapter keep -o kept").ok();
    let config = dir.join("kept/adapter/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"r\": 2", "\"r\": 3")).unwrap();
    let told = dir.run("eval kept --ppl text.txt --ctx 64").fails(1);
    assert!(told.contains("adapter_model.safetensors") && told.contains("lora_"), "{told}");
    fs::write(&config, text.replace("\"use_dora\": false", "\"use_dora\": true")).unwrap();
    let told = dir.run("eval kept --ppl text.txt --ctx 64").fails(1);
    assert!(told.contains("use_dora"), "{told}");
}

#[test]
fn flags_that_do_not_go_together() {
    let dir = Dir::with_stages();
    for (flags, told) in [
        ("--adapter outside --phi q", "--phi is for --adapter inside"),
        ("--dropout 0.1", "--dropout is for --adapter outside"),
        ("--targets q", "--targets is for --adapter outside"),
        ("--rank auto:1.05", "--rank auto is for --adapter outside"),
        ("--adapter outside --targets q,w", "target \"w\" is not known"),
        ("--adapter outside --dropout 1", "--dropout 1, expected"),
        ("--adapter outside --rank auto:1.0001", "already rank 1"),
        ("--rank 20000", "--rank 20000"),
    ] {
        let stderr = dir.run(&format!("lr-wrap scales {flags} -o x")).fails(2);
        assert!(stderr.contains(told), "{flags}: {stderr}");
    }
    dir.run("lr-wrap scales --adapter outside --rank auto:1.2 -o within").ok();
    let size = json(&fs::read_to_string(dir.join("within/stage.json")).unwrap());
    assert!(size["arguments"]["rank"].as_u64().unwrap() > 0, "{size}");
}
