use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Fault, check, one_line};
use crate::tiny_llama;
use crate::tools::{Dir, outcome};

#[test]
fn outputs_that_are_there() {
    check(&[
        Fault {
            name: "a file of that name",
            spoil: |d| fs::write(d.join("out"), "mine").unwrap(),
            line: "ptq-init model --scheme w4g8 -o out",
            status: 2,
            says: &["out: it exists and is no stage", "expected", "; choose another -o"],
        },
        Fault {
            name: "a directory that is no stage",
            spoil: |d| fs::create_dir_all(d.join("out/letters")).unwrap(),
            line: "fold checkpoint -o out",
            status: 2,
            says: &["out: it exists and is no stage", "expected", "; choose another -o"],
        },
        Fault {
            name: "a directory that is no stage, forced",
            spoil: |d| fs::create_dir_all(d.join("out/letters")).unwrap(),
            line: "fold checkpoint -o out --force",
            status: 2,
            says: &["out: it exists and is no stage", "; choose another -o"],
        },
        Fault {
            name: "its own input",
            spoil: |_| {},
            line: "lr-wrap scales -o scales --force",
            status: 2,
            says: &["scales: ", "the scales that is read", "expected another directory", "; choose another -o"],
        },
        Fault {
            name: "its own shards",
            spoil: |_| {},
            line: "qat-step wrapped --shards shards -o scales/../shards --force",
            status: 2,
            says: &["shards: ", "the shards that is read", "expected another", "; choose another -o"],
        },
        Fault {
            name: "something where the replaced one would stand",
            spoil: |d| fs::create_dir_all(d.join("scales.replaced/letters")).unwrap(),
            line: "ptq-init model --scheme w3pc -o scales --force",
            status: 1,
            says: &["scales.replaced: it is in the way", "expected nothing of that name", "; move or remove it"],
        },
        Fault {
            name: "a name that is none",
            spoil: |_| {},
            line: "fold checkpoint -o ..",
            status: 2,
            says: &["..", "; "],
        },
    ]);
}

/// Under a regular file nothing can be made, whoever asks (root may write to read-only directories).
#[test]
fn directories_that_cannot_be() {
    check(&[
        Fault {
            name: "below a file",
            spoil: |_| {},
            line: "ptq-init model --scheme w4g8 -o text.txt/run/scales",
            status: 1,
            says: &["text.txt", "cannot ", "Not a directory", "; check the path"],
        },
        Fault {
            name: "directly below a file",
            spoil: |_| {},
            line: "qat-step wrapped --shards shards -o text.txt/ckpt",
            status: 1,
            says: &["text.txt", "cannot ", "; "],
        },
        Fault {
            name: "in a file system of the kernel",
            spoil: |_| {},
            line: "fold checkpoint -o /proc/folded",
            status: 1,
            says: &["/proc/folded.part: cannot create", "; check the path"],
        },
    ]);
}

const WRITERS: [&str; 5] = [
    "ptq-init model --scheme w4g8 -o OUT/scales",
    "lr-wrap scales -o OUT/wrapped",
    "shard long.txt --tokenizer model -o OUT/shards",
    "qat-step wrapped --shards shards --steps 4 --batch 2 --seq 32 -q -o OUT/checkpoint",
    "fold checkpoint -o OUT/folded",
];

/// The line in which a shell runs a tool: `qat-step …` as `"$QAT_STEP" …`.
fn in_shell(line: &str) -> String {
    let (tool, rest) = line.split_once(' ').unwrap();
    format!("\"${}\" {rest}", tool.to_uppercase().replace('-', "_"))
}

/// A limit of 4 KiB on the size of files stands for a disk that fills up in the middle of a write.
#[test]
fn files_that_cannot_grow() {
    let dir = Dir::with_stages();
    fs::write(dir.join("long.txt"), tiny_llama::text(60_000)).unwrap();
    fs::create_dir(dir.join("x")).unwrap();
    for line in WRITERS {
        let line = line.replace("OUT", "x");
        // Without the signal that goes with it, as in a batch system, write() fails with EFBIG.
        let ran = dir.shell(&format!("trap '' XFSZ; ulimit -f 8; exec {}", in_shell(&line)));
        one_line("a limit on file sizes", &line, &ran, 1, &["x/", "cannot write: File too large", "; raise the limit"]);
        assert_eq!(fs::read_dir(dir.join("x")).unwrap().count(), 0, "{line}");
        assert!(dir.run(&line).status == Some(0), "the same command without the limit");
        fs::remove_dir_all(dir.join("x")).unwrap();
        fs::create_dir(dir.join("x")).unwrap();
    }
}

/// A mounted tmpfs, which goes with it.
struct Mount(PathBuf);

impl Mount {
    /// None, and a word on stderr, where the test may not mount.
    fn new(at: PathBuf, options: &str, test: &str) -> Option<Mount> {
        fs::create_dir(&at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&at).output();
        if done.is_ok_and(|o| o.status.success()) {
            return Some(Mount(at));
        }
        // Not eprintln!, which the harness shows of failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: mounting a tmpfs needs root");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_full() {
    let dir = Dir::with_stages();
    fs::write(dir.join("long.txt"), tiny_llama::text(60_000)).unwrap();
    let Some(_small) = Mount::new(dir.join("small"), "size=8k", "a_disk_that_is_full") else { return };
    for line in WRITERS {
        let line = line.replace("OUT", "small");
        let ran = dir.run(&line);
        one_line("a full disk", &line, &ran, 1, &["small/", "cannot ", "No space left on device", "; free some space"]);
        assert_eq!(fs::read_dir(dir.join("small")).unwrap().count(), 0, "{line}: {}", ran.stderr);
    }
}

#[test]
fn a_disk_that_cannot_be_written() {
    let dir = Dir::with_stages();
    fs::write(dir.join("long.txt"), tiny_llama::text(600)).unwrap();
    let Some(_ro) = Mount::new(dir.join("ro"), "ro", "a_disk_that_cannot_be_written") else { return };
    for line in WRITERS {
        let line = line.replace("OUT", "ro");
        let words = ["ro/", "cannot create: Read-only file system", "; choose a directory that can be written"];
        one_line("a read-only disk", &line, &dir.run(&line), 1, &words);
    }
}

/// A disk that fills up in the middle of a run: the last good save stays, and with space the run goes on.
#[test]
fn a_disk_that_fills_up_keeps_the_last_save() {
    let dir = Dir::with_stages();
    let recipe = "qat-step wrapped --shards shards --steps 6 --batch 2 --seq 32 --save-every 1";
    let options = "size=200k";
    let Some(_small) = Mount::new(dir.join("small"), options, "a_disk_that_fills_up_keeps_the_last_save") else {
        return;
    };
    let line = format!("{recipe} -o small/x");
    let ran = dir.run(&format!("{line} -q"));
    one_line(
        "a disk that fills up",
        &line,
        &ran,
        1,
        &["small/x.part/", "No space left on device", "; free some space"],
    );
    assert!(dir.join("small/x.part/step-1/state.json").is_file(), "{:?}", dir.listing());
    assert!(!dir.join("small/x").exists());
    Command::new("mount").args(["-o", "remount,size=2m"]).arg(dir.join("small")).status().unwrap();
    let ran = dir.run(&line);
    assert!(ran.stderr.contains("resumed at step "), "{}", ran.stderr);
    ran.ok();
    dir.run(&format!("{recipe} -o whole")).ok();
    let trained = |name: &str| fs::read(dir.join(name).join("trained.safetensors")).unwrap();
    assert!(trained("whole") == trained("small/x"));
}

/// The report goes to a disk that is full.
#[test]
fn standard_output_that_cannot_be_written() {
    let dir = Dir::with_stages();
    for line in ["eval model --ppl text.txt --ctx 64", "fold checkpoint -o folded", "qat-step wrapped --plan"] {
        let ran = dir.shell(&format!("exec {} > /dev/full", in_shell(line)));
        one_line("/dev/full", line, &ran, 1, &["standard output: cannot write: No space left", "; free some space"]);
    }
    // Nowhere to complain to: the status remains.
    assert_eq!(dir.shell(&format!("exec {} 2> /dev/full", in_shell("fold nowhere -o out"))).status, Some(1));
}

#[test]
fn two_processes_write_one_output() {
    let dir = Dir::with_stages();
    let line = "qat-step wrapped --shards shards --steps 1000000 --batch 2 --seq 32 -o out";
    let first = dir.start(line);
    let begun = Instant::now();
    while !dir.join("out.part/metrics.jsonl").exists() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let says = ["out.part: another process is writing it", "expected to be alone", "; wait"];
    one_line("a second writer", line, &dir.run(line), 1, &says);
    let forced = "fold checkpoint -o out --force";
    one_line("a second writer, forced", forced, &dir.run(forced), 1, &says);
    dir.shell(&format!("kill -TERM {}", first.id())).ok();
    assert_eq!(outcome(first).status, Some(75), "the first one is not disturbed");
}

/// Many at once: each ends with the same stage, one made it.
#[test]
fn many_processes_write_one_output() {
    let dir = Dir::with_stages();
    let line = "fold checkpoint -o out --threads 1";
    for _ in 0..4 {
        let started: Vec<_> = (0..6).map(|_| dir.start(line)).collect();
        for child in started {
            let ran = outcome(child);
            match ran.status {
                Some(0) => assert_eq!(ran.stdout, "out\n"),
                _ => one_line("a race", line, &ran, 1, &["out.part: another process is writing it", "; wait"]),
            }
        }
        assert!(dir.contents("out") == dir.contents("folded"), "{:?}", dir.contents("out").keys());
        assert!(!dir.join("out.part").exists());
        fs::remove_dir_all(dir.join("out")).unwrap();
    }
}

/// A rate that makes weights or gradients infinite stops the run with the tensor's name; the last good save is kept.
#[test]
fn a_run_that_diverges() {
    let dir = Dir::with_stages();
    let line = "qat-step wrapped --shards shards --steps 5 --batch 2 --seq 32 --clip 0 --save-every 1 -q -o out";
    // Rates that rise with every step: the first saves are finite.
    let rising = format!("{line} --warmup 1 --lr-ab 1e18");
    let ran = dir.run(&rising);
    let says = ["model.layers.", "not finite at step ", "; the last good save is out.part/step-", "lower --lr-ab"];
    one_line("divergence", &rising, &ran, 1, &says);
    let save = ran.stderr.split("the last good save is ").nth(1).unwrap().split(';').next().unwrap();
    for file in ["state.json", "trained.safetensors", "optimizer.safetensors"] {
        assert!(dir.join(save).join(file).is_file(), "{save}/{file}");
    }
    assert!(!dir.join("out").exists());
    fs::remove_dir_all(dir.join("out.part")).unwrap();
    // Infinite at once: by the gradient, and by the weights before they are saved.
    for (save_every, names) in [("9", "gradient of model.layers."), ("1", "model.layers.")] {
        let line = format!("{line} --save-every {save_every} --warmup 0 --lr-ab 1e39");
        let line = line.replacen("--save-every 1 ", "", 1);
        let says = [names, "not finite at step ", "; nothing was saved yet", "lower --lr-ab"];
        one_line("divergence at once", &line, &dir.run(&line), 1, &says);
        assert!(!dir.join("out").exists() && !dir.join("out.part").exists());
    }
}
