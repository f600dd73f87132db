//! Runs the tools under test in temporary directories.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::tiny_llama;

/// Tests are of the CPU, wherever they run, but for those in `cuda`.
const NO_GPU: (&str, &str) = ("CUDA_VISIBLE_DEVICES", "");

/// How a tool ended.
#[derive(Debug)]
pub struct Ran {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Asserts success and returns stdout.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, Some(0), "{}", self.stderr);
        self.stdout
    }

    /// Asserts an exit status and returns stderr.
    #[track_caller]
    pub fn fails(self, status: i32) -> String {
        assert_eq!(self.status, Some(status), "{}", self.stderr);
        assert_eq!(self.stdout, "");
        self.stderr
    }
}

pub fn path_of(tool: &str) -> &'static str {
    match tool {
        "ptq-init" => env!("CARGO_BIN_EXE_ptq-init"),
        "lr-wrap" => env!("CARGO_BIN_EXE_lr-wrap"),
        "shard" => env!("CARGO_BIN_EXE_shard"),
        "qat-step" => env!("CARGO_BIN_EXE_qat-step"),
        "fold" => env!("CARGO_BIN_EXE_fold"),
        "eval" => env!("CARGO_BIN_EXE_eval"),
        _ => panic!("{tool} is none of the tools"),
    }
}

/// A temporary directory in which tools run.
pub struct Dir(TempDir);

impl Dir {
    pub fn new() -> Dir {
        Dir(tempfile::tempdir().expect("a temporary directory"))
    }

    /// With a copy of [`stages`].
    pub fn with_stages() -> Dir {
        let dir = Dir::new();
        copy(stages(), dir.path());
        dir
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The command of a line such as `lr-wrap scales -o wrapped`, with two threads unless it says otherwise.
    pub fn command(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let tool = words.next().expect("a tool");
        let mut command = Command::new(path_of(tool));
        command.args(words).current_dir(self.path()).stdin(Stdio::null()).env(NO_GPU.0, NO_GPU.1);
        if !line.contains("--threads") {
            command.args(["--threads", "2"]);
        }
        command
    }

    pub fn run(&self, line: &str) -> Ran {
        ended(self.command(line))
    }

    /// Runs a tool with this on its standard input.
    pub fn run_with(&self, line: &str, stdin: &str) -> Ran {
        let mut command = self.command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the tool starts");
        // A tool that fails early does not read it.
        let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
        outcome(child)
    }

    pub fn start(&self, line: &str) -> Child {
        self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the tool starts")
    }

    /// Runs a shell line; the tools stand in it as `$EVAL`, `$QAT_STEP` and so on.
    pub fn shell(&self, line: &str) -> Ran {
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(self.path()).stdin(Stdio::null()).env(NO_GPU.0, NO_GPU.1);
        for tool in ["ptq-init", "lr-wrap", "shard", "qat-step", "fold", "eval"] {
            command.env(tool.to_uppercase().replace('-', "_"), path_of(tool));
        }
        ended(command)
    }

    /// Every file below `name` with its bytes, but for logs, whose times differ from run to run.
    pub fn contents(&self, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let root = self.join(name);
        let logs = |p: &Path| p.ends_with("metrics.jsonl") || p.ends_with("loss.svg");
        let files = walk(&root).into_iter().filter(|p| p.is_file() && !logs(p));
        files.map(|p| (p.strip_prefix(&root).expect("below").to_path_buf(), fs::read(&p).expect("a file"))).collect()
    }

    /// Paths of everything in it.
    pub fn listing(&self) -> Vec<PathBuf> {
        walk(self.path())
    }
}

pub fn ended(mut command: Command) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    outcome(command.spawn().expect("the tool starts"))
}

pub fn outcome(child: Child) -> Ran {
    let out = child.wait_with_output().expect("the tool ends");
    Ran {
        status: out.status.code(),
        stdout: String::from_utf8(out.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(out.stderr).expect("stderr is UTF-8"),
    }
}

pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(walk(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

pub fn copy(from: &Path, to: &Path) {
    for path in walk(from) {
        let target = to.join(path.strip_prefix(from).expect("below"));
        fs::create_dir_all(target.parent().expect("below a directory")).expect("a directory");
        if path.is_dir() {
            fs::create_dir_all(&target).expect("a directory");
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}

/// One of every stage, made once: `model`, `text.txt`, `shards`, `scales` (w4g8), `wrapped`, `half` (a checkpoint at
/// step 2 of 4), `checkpoint` (at its end) and `folded`.
pub fn stages() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stages");
        let _ = fs::remove_dir_all(&path);
        let dir = Dir::new();
        tiny_llama::write(&dir.join("model"));
        fs::write(dir.join("text.txt"), tiny_llama::text(6000)).expect("a text");
        for line in [
            "ptq-init model --scheme w4g8 -o scales",
            "lr-wrap scales --rank 4 -o wrapped",
            "shard text.txt --tokenizer model -o shards",
            "qat-step wrapped --shards shards --steps 4 --stop-at 2 --batch 2 --seq 32 -o half",
            "qat-step half -o checkpoint",
            "fold checkpoint -o folded",
        ] {
            dir.run(line).ok();
        }
        copy(dir.path(), &path);
        path
    })
}
