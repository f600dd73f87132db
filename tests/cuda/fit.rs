//! `ptq-init --device cuda`.

use std::fs;

use gpu_emulator::Device;

use super::{ok, on, only_emulated};
use crate::tiny_llama::{self, bf16, safetensors};
use crate::tools::Dir;

/// Whichever device fits, the files are the same, `stage.json` too; of what is in integers already, the GPU is not asked.
#[test]
fn scales_of_either_device_are_the_same_files() {
    let dir = Dir::with_stages();
    tiny_llama::write_of(&dir.join("wide"), &tiny_llama::WIDE);
    for (model, scheme, fit) in [
        ("model", "w4pc", "lp:3"),
        ("model", "w2g16z", "lp:3"),
        ("model", "w3g32", "lp:2"),
        ("model", "w4g8z", "minmax"),
        ("wide", "w4g128", "minmax"),
        // Integers of another scheme, decoded by the host.
        ("folded", "w3pcz", "lp:2"),
    ] {
        let line = format!("ptq-init {model} --scheme {scheme} --fit {fit} -o");
        let [on_cpu, on_gpu] = ["cpu", "gpu"].map(|device| format!("{device}-{model}-{scheme}"));
        dir.run(&format!("{line} {on_cpu} --device cpu")).ok();
        let report = ok(&Device::new(), &dir, &format!("{line} {on_gpu} --device cuda"));
        assert!(dir.contents(&on_cpu) == dir.contents(&on_gpu), "{line}");
        // A linear at a time: the largest, and its grid.
        if model == "model" && !Device::is_off() {
            assert!(report.launches == 14 && report.peak <= 64 * 32 * 2 + 2 * 64 * 4 * 4, "{line}: {report:?}");
        }
    }
    let device = Device::new().without_driver();
    on(&device, &dir, "ptq-init folded --device cuda -o kept").0.ok();
}

/// `auto` takes the GPU, but not for a power whose last bit is another one there, nor for scales of both signs; the first weight that is not finite is
/// named as on the CPU.
#[test]
fn what_the_gpu_does_not_fit() {
    if !only_emulated("what_the_gpu_does_not_fit") {
        return;
    }
    let dir = Dir::with_stages();
    assert!(ok(&Device::new(), &dir, "ptq-init model --scheme w4g8 -o auto").launches > 0);
    for device in ["auto", "cuda"] {
        for (scheme, fit, says) in [("w4g8", "lp:2.4", "lp:2.4 is fitted"), ("w4g8s", "lp:3", "w4g8s is fitted")] {
            let line = format!("ptq-init model --scheme {scheme} --fit {fit} --device {device} -o {device}-{scheme}");
            let (ran, report) = on(&Device::new(), &dir, &line);
            assert!(ran.stderr.contains(&format!("{says} on the CPU")), "{}", ran.stderr);
            ran.ok();
            assert_eq!(report.launches, 0);
        }
    }
    let mut tensors = tiny_llama::tensors();
    let bad = tensors.iter_mut().find(|t| t.name == "model.layers.1.self_attn.k_proj.weight").unwrap();
    bad.bytes[(3 * 32 + 7) * 2..][..2].copy_from_slice(&bf16(f32::NAN));
    fs::write(dir.join("model/model.safetensors"), safetensors(&tensors)).unwrap();
    let [of_cpu, of_gpu] = ["cpu", "cuda"].map(|device| {
        let line = format!("ptq-init model --scheme w4g8 --device {device} -o bad");
        on(&Device::new(), &dir, &line).0.fails(1)
    });
    assert!(of_cpu.contains("model.layers.1.self_attn.k_proj.weight[3, 7] is NaN"), "{of_cpu}");
    assert_eq!(of_cpu, of_gpu);
    assert!(!dir.join("bad.part").exists());
}
