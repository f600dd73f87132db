use std::fs;

use serde_json::Value;

use crate::tools::Dir;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");

fn divergence(dir: &Dir, artefact: &str) -> f64 {
    let text = format!("{DEMO}/test.txt");
    let line = format!("eval {artefact} --ppl {text} --ctx 256 --max-blocks 8 --reference {DEMO}/model --json");
    let report: Value = serde_json::from_str(&dir.run(&line).ok()).unwrap();
    report["artefacts"][0]["ppl"][&text]["kl"].as_f64().unwrap()
}

/// A model that has learnt something is nearer to itself than rounded to the nearest, on text that was not asked; inside the
/// rounding and beside it, with any number of threads.
#[test]
fn gptq_loses_less_than_the_nearest() {
    let dir = Dir::new();
    dir.run(&format!("ptq-init {DEMO}/model --scheme w3pc -o scales")).ok();
    dir.run(&format!("shard {DEMO}/train.txt --tokenizer {DEMO}/model -o shards")).ok();
    let line = "lr-wrap scales --rounding gptq --shards shards";
    dir.run(&format!("{line} -o inside")).ok();
    let (nearest, inside) = (divergence(&dir, "scales"), divergence(&dir, "inside"));
    assert!(inside < 0.6 * nearest, "{nearest} {inside}");

    // The same integers: Φ0 in floating point rounds to those that are stored beside adapters.
    dir.run(&format!("{line} --phi f32 --threads 1 -o exact")).ok();
    dir.run(&format!("{line} --rank 0 --threads 2 -o alone")).ok();
    let exact = divergence(&dir, "exact");
    assert!(exact < 0.6 * nearest, "{nearest} {exact}");
    dir.run("fold exact -o of-exact").ok();
    dir.run("fold alone -o of-alone").ok();
    let read = |name: &str| fs::read(dir.join(name).join("model.safetensors")).unwrap();
    assert!(read("of-exact") == read("of-alone"));
    let card = fs::read_to_string(dir.join("of-alone/README.md")).unwrap();
    let made = "lr-wrap scales --shards SHARDS --rank 0 --rounding gptq --seed 0 -o wrapped";
    assert!(card.contains("Rounded by GPTQ") && card.contains(made), "{card}");

    // Other windows of the text, another rounding.
    dir.run(&format!("{line} --rank 0 --seed 3 -o other")).ok();
    dir.run("fold other -o of-other").ok();
    assert!(read("of-other") != read("of-alone"));

    // Adapters start at what these integers lost, not at what others would have.
    let outside = format!("{line} --adapter outside --rank 4");
    dir.run(&format!("{outside} --init error -o started")).ok();
    let (alone, started) = (divergence(&dir, "alone"), divergence(&dir, "started"));
    assert!(started < 0.95 * alone, "{alone} {started}");

    // Training goes on from them.
    dir.run("qat-step inside --shards shards --steps 2 --batch 2 --seq 64 -o trained").ok();
    dir.run("ptq-init of-alone -o kept").ok();
    for (flags, told) in [
        ("scales --rounding learned", "--rounding learned without --shards"),
        ("scales --rounding learned --steps 0 --shards shards", "--steps 0: nothing is learned"),
        ("scales --rounding gptq --steps 9 --shards shards", "--steps is for --rounding learned"),
        ("scales --rounding gptq", "--rounding gptq without --shards"),
        ("scales --rounding gptq --shards shards --init error", "inside the rounding nothing is left"),
        ("kept --rounding gptq --shards shards", "they are not rounded again"),
    ] {
        let stderr = dir.run(&format!("lr-wrap {flags} -o x")).fails(2);
        assert!(stderr.contains(told), "{flags}: {stderr}");
        assert!(!dir.join("x").exists() && !dir.join("x.part").exists(), "{flags}");
    }
}

/// What a block learns of the float model's outputs is less than GPTQ leaves, on text that was not asked; and the same with any
/// number of threads.
#[test]
fn learned_loses_less_than_gptq() {
    let dir = Dir::new();
    dir.run(&format!("ptq-init {DEMO}/model --scheme w3pc -o scales")).ok();
    dir.run(&format!("shard {DEMO}/train.txt --tokenizer {DEMO}/model -o shards")).ok();
    dir.run("lr-wrap scales --rounding gptq --shards shards -o gptq").ok();
    let line = "lr-wrap scales --rounding learned --shards shards";
    dir.run(&format!("{line} --steps 60 -o learned")).ok();
    let (gptq, learned) = (divergence(&dir, "gptq"), divergence(&dir, "learned"));
    assert!(learned < 0.9 * gptq, "{gptq} {learned}");

    // The integers that were learned are those that are stored, inside the rounding and beside it.
    for (name, flags) in [("inside", "--phi q --threads 1"), ("alone", "--rank 0 --threads 2")] {
        dir.run(&format!("{line} --steps 3 {flags} -o {name}")).ok();
        dir.run(&format!("fold {name} -o of-{name}")).ok();
    }
    let read = |name: &str| fs::read(dir.join(name).join("model.safetensors")).unwrap();
    assert!(read("of-inside") == read("of-alone"));
    let card = fs::read_to_string(dir.join("of-alone/README.md")).unwrap();
    let made = "lr-wrap scales --shards SHARDS --rank 0 --rounding learned --steps 3 --seed 0 -o wrapped";
    assert!(card.contains("learned block by block") && card.contains(made), "{card}");

    // Killed when a block is done, it goes on with the next, to the same bytes.
    let line = format!("{line} --steps 3 --phi q");
    let mut child = dir.start(&format!("{line} -o killed"));
    let first_block = || {
        let entries = fs::read_dir(dir.join("killed.part")).ok()?;
        entries.flatten().find_map(|entry| fs::metadata(entry.path().join("0")).ok())
    };
    while first_block().is_none() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Blocks take long: no other run drops them.
    let blocks = dir.contents("killed.part");
    for other in [format!("{line} --seed 1"), format!("ptq-init {DEMO}/model --scheme w4g16")] {
        let e = dir.run(&format!("{other} -o killed")).fails(1);
        assert!(e.contains("killed.part: another rounding that was stopped") && e.contains("--force"), "{e}");
        assert!(dir.contents("killed.part") == blocks, "{other}");
    }
    let again = dir.run(&format!("{line} -o killed"));
    assert!(again.stderr.contains("blocks are rounded: it goes on"), "{}", again.stderr);
    again.ok();
    let wrapped = |name: &str| fs::read(dir.join(name).join("wrapped.safetensors")).unwrap();
    assert!(wrapped("killed") == wrapped("inside"));
    let left: Vec<_> = fs::read_dir(dir.join("killed")).unwrap().flatten().filter(|e| e.path().is_dir()).collect();
    assert!(left.is_empty(), "{left:?}");

    dir.run("qat-step learned --shards shards --steps 2 --batch 2 --seq 64 -o trained").ok();
}
