//! The tools with --device cuda, on an emulated GPU. (With GPU_EMULATOR=off, on a real one: tests of what only an
//! emulator can do are passed over.)

mod fit;
mod save;

use std::fs;

use gpu_emulator::{Device, Report};
use serde_json::Value;

use crate::tools::{Dir, Ran, path_of};

/// Runs a line on a device.
fn on(device: &Device, dir: &Dir, line: &str) -> (Ran, Report) {
    let mut words = line.split_whitespace();
    let mut command = device.command(path_of(words.next().unwrap()));
    command.args(words).args(["--threads", "2"]).current_dir(dir.path());
    let (output, report) = device.output(&mut command).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (Ran { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }, report)
}

/// As [`on`], of a run that succeeds and that the emulator has nothing to say against.
#[track_caller]
fn ok(device: &Device, dir: &Dir, line: &str) -> Report {
    let (ran, report) = on(device, dir, line);
    ran.ok();
    assert_eq!(report.messages, [] as [String; 0], "{line}");
    report
}

fn numbers(dir: &Dir, checkpoint: &str, of: &str) -> Vec<f64> {
    let text = fs::read_to_string(dir.join(checkpoint).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()[of].as_f64().unwrap()).collect()
}

/// Values of the trained tensors.
fn trained(dir: &Dir, checkpoint: &str) -> Vec<f64> {
    let file = fs::read(dir.join(checkpoint).join("trained.safetensors")).unwrap();
    let data = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    file[data..].chunks_exact(4).map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap()))).collect()
}

fn trained_bytes(dir: &Dir, checkpoint: &str) -> Vec<u8> {
    fs::read(dir.join(checkpoint).join("trained.safetensors")).unwrap()
}

fn ppl(ran: Ran) -> f64 {
    let report: Value = serde_json::from_str(&ran.ok()).unwrap();
    report["artefacts"][0]["ppl"].as_object().unwrap().values().next().unwrap()["ppl"].as_f64().unwrap()
}

const RECIPE: &str = "--shards shards --steps 3 --batch 2 --seq 32 --lr-ab 0.001 --lr-scale 1e-5";

/// Every φ, per channel and per group, with and without zero points: the same losses, norms and weights as on the CPU in
/// bf16 after three steps; and what is folded from the GPU's checkpoint has the very logits that the GPU gives the checkpoint.
#[test]
fn trains_as_on_the_cpu() {
    let dir = Dir::with_stages();
    for (scheme, phi) in [("w4pc", "q"), ("w3g8z", "int"), ("w2g16", "bf16"), ("w8pcz", "f32"), ("w4g8", "int")] {
        let name = format!("{scheme}-{phi}");
        dir.run(&format!("ptq-init model --scheme {scheme} -o scales-{name}")).ok();
        dir.run(&format!("lr-wrap scales-{name} --rank 4 --phi {phi} -o wrapped-{name}")).ok();
        trains_alike(&dir, &name);
        dir.run(&format!("fold gpu-{name} -o folded-{name}")).ok();
        let [of_checkpoint, of_folded] = evaluated(&dir, &name);
        assert_eq!(of_checkpoint.to_bits(), of_folded.to_bits(), "{name}");
    }
}

/// Of a larger rank the factors of a block's rows do not fit into its shared memory.
#[test]
fn a_rank_that_is_too_large_is_refused() {
    let (dir, device) = (Dir::with_stages(), Device::new());
    for (rank, status) in [(1536, 0), (1537, 2)] {
        dir.run(&format!("lr-wrap scales --rank {rank} -o wrapped-{rank}")).ok();
        let line = format!("qat-step wrapped-{rank} {RECIPE} --steps 1 --device cuda -o trained-{rank}");
        let (ran, _) = on(&device, &dir, &line.replace("--steps 3 ", ""));
        assert_eq!(ran.status, Some(status), "{}", ran.stderr);
        assert_eq!(ran.stderr.contains("rank 1537, and the GPU takes 1536 inside the rounding; wrap"), status == 2);
    }
}

/// Adapters beside fixed integers, their masks too.
#[test]
fn trains_adapters_as_on_the_cpu() {
    let dir = Dir::with_stages();
    for (name, scheme, flags) in
        [("all", "w2g16", "--dropout 0.125"), ("some", "w4pcz", "--targets q,down"), ("none", "w3g8", "--rank 0")]
    {
        dir.run(&format!("ptq-init model --scheme {scheme} -o scales-{name}")).ok();
        let flags = if name == "none" { flags.into() } else { format!("--adapter outside --rank 4 {flags}") };
        dir.run(&format!("lr-wrap scales-{name} {flags} -o wrapped-{name}")).ok();
        trains_alike(&dir, name);
        let keep = if name == "none" { "" } else { "--adapter keep" };
        dir.run(&format!("fold gpu-{name} {keep} -o folded-{name}")).ok();
        // A and B are rounded to 16 bits.
        let [of_checkpoint, of_folded] = evaluated(&dir, name);
        assert!((of_folded / of_checkpoint - 1.0).abs() < 2e-3, "{name}: {of_checkpoint} {of_folded}");
    }
}

fn trains_alike(dir: &Dir, name: &str) {
    let train = format!("qat-step wrapped-{name} {RECIPE}");
    dir.run(&format!("{train} --device cpu --compute bf16 -o cpu-{name}")).ok();
    ok(&Device::new(), dir, &format!("{train} --device cuda -o gpu-{name}"));
    // The first step differs by roundings alone. Later ones have integers that fell the other way: two paths of the CPU
    // differ by as much (w4pc: 1.4e-3 of the third loss, 1.1 % of its norm).
    for (of, limits) in [("loss", [5e-4, 2e-3, 4e-3]), ("grad_norm", [5e-3, 2e-2, 4e-2])] {
        let [cpu, gpu] = ["cpu", "gpu"].map(|on| numbers(dir, &format!("{on}-{name}"), of));
        assert_eq!(gpu.len(), 3);
        for ((cpu, gpu), limit) in cpu.iter().zip(gpu).zip(limits) {
            assert!((cpu - gpu).abs() <= limit * cpu, "{name}: {of} {gpu}, on the CPU {cpu}");
        }
    }
    // A moment of Adam's has the sign of a gradient that rounding may turn: such a weight goes the other way, by three
    // rates at most. Few do: 2.2 % of them on two paths of the CPU.
    let [cpu, gpu] = ["cpu", "gpu"].map(|on| trained(dir, &format!("{on}-{name}")));
    let off: Vec<f64> = cpu.iter().zip(&gpu).map(|(cpu, gpu)| (cpu - gpu).abs()).collect();
    let far = off.iter().filter(|off| **off > 1e-4).count();
    assert!(far * 25 <= off.len(), "{name}: {far} of {} weights are off by more than a tenth of a rate", off.len());
    assert!(off.iter().all(|off| *off <= 0.0061), "{name}: a weight is far off");
}

/// Perplexities of the checkpoint and of what was folded from it, on the GPU.
fn evaluated(dir: &Dir, name: &str) -> [f64; 2] {
    ["gpu", "folded"].map(|of| {
        let line = format!("eval {of}-{name} --ppl text.txt --ctx 64 --max-blocks 2 --device cuda --json");
        ppl(on(&Device::new(), dir, &line).0)
    })
}

/// Passed over on real hardware, which nothing can be asked of.
fn only_emulated(test: &str) -> bool {
    if Device::is_off() {
        eprintln!("SKIPPED {test}: real hardware has no such knob");
    }
    !Device::is_off()
}

/// The same bytes whatever the order of blocks and threads, resumed or not; other bytes, and a word, on another path.
#[test]
fn deterministic_and_resumed_to_the_bit() {
    let dir = Dir::with_stages();
    let train = format!("qat-step wrapped {RECIPE} --device cuda");
    ok(&Device::new(), &dir, &format!("{train} -o whole"));
    // Real hardware has its own order every time.
    let other =
        if Device::is_off() { Device::new() } else { Device::new().reversed_blocks().reversed_threads().eager() };
    ok(&other, &dir, &format!("{train} -o reversed"));
    ok(&Device::new(), &dir, &format!("{train} --stop-at 1 -o first"));
    ok(&Device::new(), &dir, "qat-step first --device cuda -o resumed");
    let whole = dir.contents("whole");
    for other in ["reversed", "resumed"] {
        let bytes = &dir.contents(other)[std::path::Path::new("trained.safetensors")];
        assert!(*bytes == whole[std::path::Path::new("trained.safetensors")], "{other}");
    }
    if !only_emulated("another path") {
        return;
    }
    let (ran, _) = on(&Device::new().without_cublas(), &dir, "qat-step first --device cuda -o elsewhere");
    assert!(ran.stderr.contains("saved on cuda-sm80-cublaslt, going on on cuda-sm80-mma"), "{}", ran.stderr);
    ran.ok();
}

/// `auto` takes the GPU; the plan needs none, and the run holds no more.
#[test]
fn plan_is_kept() {
    if !only_emulated("plan_is_kept") {
        return;
    }
    let dir = Dir::with_stages();
    dir.run("lr-wrap scales --adapter outside --rank 6 --dropout 0.1 -o beside").ok();
    for input in ["wrapped", "beside --lr-scale 0"] {
        keeps_its_plan(&dir, input);
    }
}

fn keeps_its_plan(dir: &Dir, input: &str) {
    let line = format!("qat-step {input} --shards shards --steps 1 --batch 2 --seq 64 --accum 2 --force");
    let plan = dir.run(&format!("{line} --device cuda --plan --json")).ok();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let bytes = |row: &Value| row["bytes"].as_u64().unwrap();
    let rows = plan["plan"].as_array().unwrap();
    let context: u64 = rows.iter().filter(|row| row["what"] == "context").map(bytes).sum();
    assert!(context > 0);
    // While a save is written, the host holds what is trained, and its moments.
    let moments: u64 = rows.iter().filter(|row| row["what"] == "Adam").map(bytes).sum();
    assert_eq!(plan["on_host"].as_u64(), Some(moments / 2 * 3));
    let planned = plan["total"].as_u64().unwrap() - context;
    // Room for what is planned, and for nothing that is kept besides.
    let (ran, report) = on(&Device::new().memory(planned), dir, &format!("{line} --device auto -o run"));
    assert!(ran.stderr.contains("peak of the GPU"), "{}", ran.stderr);
    ran.ok();
    let (ran, more) = on(&Device::new(), dir, &format!("{line} --device cuda -o more"));
    ran.ok();
    assert!(more.peak > report.peak, "activations and integers of all blocks");
    assert!(trained_bytes(dir, "run") == trained_bytes(dir, "more"), "what is kept changes the result");
    assert!(report.launches > 0 && report.peak <= planned, "{} held, {planned} planned", report.peak);
    // Nearly all of it is cuBLASLt's workspace here.
    assert!(report.peak * 10 > planned * 9, "{} held, {planned} planned", report.peak);
}

/// What is missing is said in a line, with status 1 (2 for a run that is too large), and nothing is left behind.
#[test]
fn what_is_missing_is_said() {
    let dir = Dir::with_stages();
    let before = dir.listing();
    for (status, device, expected) in [
        (
            1,
            Device::new().without_driver(),
            "no NVIDIA driver (libcuda.so.1); install one from 525 on, or use --device cpu",
        ),
        (1, Device::new().without_gpu(), "the NVIDIA driver finds no GPU"),
        (1, Device::new().driver(11_040), "the NVIDIA driver is for CUDA 11.4, expected 12.0 or later"),
        (1, Device::new().compute_capability(75), "has compute capability 7.5, expected 8.0 or later"),
        (2, Device::new().memory((32 << 20) + (100 << 10)), "expected at most the GPU's free"),
        (
            1,
            Device::new().memory(20 << 20),
            "CUDA emulator (CPU): 32.0 MiB more than the 0.0 MiB held do not fit into its memory",
        ),
    ] {
        let (ran, _) = on(&device, &dir, &format!("qat-step wrapped {RECIPE} --device cuda -o none"));
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().filter(|line| line.starts_with("qat-step: ")).count(), 1, "{}", ran.stderr);
        assert_eq!(ran.stdout, "");
        assert_eq!(ran.status, Some(status), "{}", ran.stderr);
        let (ran, _) = on(&device, &dir, "eval wrapped --ppl text.txt --ctx 64 --device cuda");
        assert_eq!(ran.status, Some(1), "{}", ran.stderr);
        if status == 1 && !expected.contains("more than") {
            let (ran, _) = on(&device, &dir, "ptq-init model --scheme w4pc --device cuda -o none");
            assert!(ran.fails(1).contains(expected), "ptq-init");
        }
    }
    let device = Device::new().memory(2 << 10);
    let stderr = on(&device, &dir, "ptq-init model --scheme w4pc --device cuda -o none").0.fails(1);
    assert!(stderr.contains("do not fit into its memory") && stderr.contains("or use --device cpu"), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("ptq-init: ")).count(), 1, "{stderr}");
    let left: Vec<_> = dir.listing().into_iter().filter(|path| !before.contains(path)).collect();
    assert!(left.is_empty(), "{left:?}");
    // Without a GPU, auto is the CPU.
    let line = format!("qat-step wrapped {RECIPE} -o run");
    on(&Device::new().without_gpu(), &dir, &line).0.ok();
}

/// Whichever call fails, and whichever allocation finds no room: one line, status 1, and what was saved goes on to the
/// same bytes.
#[test]
fn failures_lose_nothing() {
    if only_emulated("failures_lose_nothing") {
        lose_nothing(&Device::new(), RECIPE, |calls| calls.div_ceil(14), |allocations| allocations.div_ceil(6));
    }
}

/// The same of every single one: an hour.
#[test]
#[ignore = "cargo test --release --test integration every_failure -- --ignored takes an hour"]
fn every_failure_loses_nothing() {
    if only_emulated("every_failure_loses_nothing") {
        let recipe = "--shards shards --steps 2 --batch 1 --seq 8";
        lose_nothing(&Device::new().without_races(), recipe, |_| 1, |_| 1);
    }
}

/// The calls and allocations of a run that fail are so far apart.
fn lose_nothing(sound: &Device, recipe: &str, calls: fn(u64) -> u64, allocations: fn(u64) -> u64) {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped {recipe} --save-every 1 --device cuda -o");
    let report = ok(sound, &dir, &format!("{line} whole"));
    let whole = dir.contents("whole");
    let whole = &whole[std::path::Path::new("trained.safetensors")];
    eprintln!("{} calls, {} allocations", report.calls, report.allocations);
    let each = |count: u64, step: u64| (1..=count).step_by(step as usize);
    let calls = each(report.calls, calls(report.calls)).map(|n| sound.clone().fail_call(n));
    let allocations =
        each(report.allocations, allocations(report.allocations)).map(|n| sound.clone().fail_allocation(n));
    let mut failed = 0;
    for (i, device) in calls.chain(allocations).enumerate() {
        let (ran, _) = on(&device, &dir, &format!("{line} run-{i}"));
        if ran.status == Some(0) {
            continue;
        }
        failed += 1;
        let errors: Vec<&str> = ran.stderr.lines().filter(|line| line.contains("; ")).collect();
        assert_eq!((ran.status, errors.len()), (Some(1), 1), "{device:?}: {}", ran.stderr);
        assert!(!dir.join(&format!("run-{i}")).exists());
        ok(sound, &dir, &format!("{line} run-{i}"));
        assert!(fs::read(dir.join(&format!("run-{i}/trained.safetensors"))).unwrap() == *whole, "{device:?}");
    }
    assert!(failed >= 14, "{failed} runs failed");
}
