//! Saves of `qat-step --device cuda`, which a thread writes while training goes on.

use std::process::Stdio;
use std::time::Instant;

use gpu_emulator::Device;

use super::{RECIPE, on, trained_bytes};
use crate::tools::{Dir, outcome, path_of};

/// Killed at any moment, what is saved is whole: the run ends with the bytes of one that was left alone.
#[test]
fn killed_while_a_save_is_written() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped {RECIPE} --save-every 1 --device cuda -o");
    let begun = Instant::now();
    on(&Device::new(), &dir, &format!("{line} whole")).0.ok();
    let whole = begun.elapsed();
    for part in 3..9 {
        let x = format!("x{part}");
        let mut command = Device::new().command(path_of("qat-step"));
        command.args(format!("{line} {x}").split_whitespace().skip(1)).current_dir(dir.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * part / 9);
        let _ = child.kill();
        let _ = child.wait();
        on(&Device::new(), &dir, &format!("{line} {x}")).0.ok();
        assert!(trained_bytes(&dir, &x) == trained_bytes(&dir, "whole"), "killed after {part}/9 of its time");
    }
}

/// A save that cannot be written ends the run with status 1, whether another save follows or the run's end; nobody is told
/// of a save that is not there.
#[test]
fn saves_that_cannot_be_written() {
    let dir = Dir::with_stages();
    for (save_every, more) in [(1, ""), (2, ""), (9, "--time-limit 0s")] {
        let line = format!("{RECIPE} --save-every {save_every} {more} --device cuda --threads 2 -q -o x");
        let mut shell = Device::new().command("sh");
        // A limit of 4 KiB on the size of files: write() fails with EFBIG.
        shell.args(["-c", &format!("trap '' XFSZ; ulimit -f 8; exec {} wrapped {line}", path_of("qat-step"))]);
        shell.current_dir(dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let stderr = outcome(shell.spawn().unwrap()).fails(1);
        assert!(stderr.contains("x.part/saving/") && stderr.contains("cannot write: File too large"), "{stderr}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("qat-step: ")).count(), 1, "{stderr}");
        assert!(!dir.join("x").exists() && !dir.join("x.part").exists());
    }
}

/// Stopped, it ends when the save is written, and not before.
#[test]
fn a_stopped_run_has_saved() {
    let dir = Dir::with_stages();
    let line = format!("qat-step wrapped {RECIPE} --device cuda -o");
    on(&Device::new(), &dir, &format!("{line} whole")).0.ok();
    for step in 1..3 {
        let stderr = on(&Device::new(), &dir, &format!("{line} x --time-limit 0s")).0.fails(75);
        assert!(stderr.contains(&format!("stopped at step {step}: ")), "{stderr}");
        for file in ["state.json", "trained.safetensors", "optimizer.safetensors"] {
            assert!(dir.join(&format!("x.part/step-{step}/{file}")).is_file(), "step-{step}/{file}");
        }
        assert!(!dir.join("x.part/saving").exists());
    }
    on(&Device::new(), &dir, &format!("{line} x")).0.ok();
    assert!(trained_bytes(&dir, "x") == trained_bytes(&dir, "whole"));
}
