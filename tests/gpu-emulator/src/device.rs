//! For tests: a device with its knobs, and bodies of tests that run on it.
//!
//! A test calls [`Device::run`] with what it does on the GPU. That starts the test's own binary again, for this test
//! alone, with this library on `LD_LIBRARY_PATH` under the names of the driver and of cuBLAS (the loader reads the
//! variable when a process starts, and only then), and there runs the body. So every test has a device of its own. A
//! tool is run on one by [`Device::command`].
//!
//! With `GPU_EMULATOR=off` the bodies run in the test's process on whatever driver there is; devices with a knob turned
//! are passed over then, since no real one has it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::{env, fs, io};

use crate::knobs::variable;

/// `off`: real hardware.
const SWITCH: &str = "GPU_EMULATOR";
/// In a child: the number of the run in its test that it is to do, and where the reports of earlier runs are.
const CHILD: &str = "GPU_EMULATOR_CHILD";
const LIBRARY: &str = "libgpu_emulator.so";
const DRIVER: [&str; 2] = ["libcuda.so", "libcuda.so.1"];
const BLAS: [&str; 4] = ["libcublas.so", "libcublas.so.12", "libcublasLt.so", "libcublasLt.so.12"];
/// Names that cudarc tries after those above.
const OTHER: [&str; 6] = [".so.13", ".so.11", ".so.10", ".so.9", ".so.1", "64_12.so"];

thread_local! {
    /// How many runs each test of this thread has made.
    static RUNS: RefCell<HashMap<String, u64>> = RefCell::default();
}

/// What the device did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    pub calls: u64,
    /// Of device and pinned memory.
    pub allocations: u64,
    pub launches: u64,
    /// Of kernels, counted by threads.
    pub instructions: u64,
    /// Bytes of device memory in use, and the most there were.
    pub used: u64,
    pub peak: u64,
    /// What was wrong, in the order in which it was found.
    pub messages: Vec<String>,
    /// How often each function was called.
    pub entry_points: HashMap<String, u64>,
}

#[derive(Debug, Clone, Default)]
pub struct Device {
    knobs: Vec<(&'static str, String)>,
    without: Option<&'static str>,
}

impl Device {
    /// Compute capability 8.0, 8 GiB, driver 12.0, all checks on.
    pub fn new() -> Self {
        Device::default()
    }

    fn with(mut self, variable: &'static str, value: impl ToString) -> Self {
        self.knobs.push((variable, value.to_string()));
        self
    }

    pub fn memory(self, bytes: u64) -> Self {
        self.with(variable::memory, bytes)
    }

    /// The driver is there, and finds no GPU.
    pub fn without_gpu(self) -> Self {
        self.with(variable::devices, 0)
    }

    /// 11040 is 11.4.
    pub fn driver(self, version: u32) -> Self {
        self.with(variable::driver, version)
    }

    /// 75 is 7.5.
    pub fn compute_capability(self, capability: u32) -> Self {
        self.with(variable::compute_capability, capability)
    }

    pub fn without_driver(mut self) -> Self {
        self.without = Some("driver");
        self
    }

    pub fn without_cublas(mut self) -> Self {
        self.without = Some("cublas");
        self
    }

    /// Blocks run on several cores then.
    pub fn without_races(self) -> Self {
        self.with(variable::races, 0)
    }

    /// Memory that nothing has written can be read: it holds the poison.
    pub fn unwritten_allowed(self) -> Self {
        self.with(variable::unwritten, 0)
    }

    /// The byte that fresh memory is filled with; 255, NaN for every float, if not set.
    pub fn poison(self, byte: u8) -> Self {
        self.with(variable::poison, byte)
    }

    pub fn reversed_blocks(self) -> Self {
        self.with(variable::reversed_blocks, 1)
    }

    pub fn reversed_threads(self) -> Self {
        self.with(variable::reversed_threads, 1)
    }

    /// Work runs when it is submitted, not as late as it may.
    pub fn eager(self) -> Self {
        self.with(variable::eager, 1)
    }

    /// The n-th allocation, from 1, finds no room.
    pub fn fail_allocation(self, n: u64) -> Self {
        self.with(variable::fail_allocation, n)
    }

    /// The n-th call of a function, from 1, fails.
    pub fn fail_call(self, n: u64) -> Self {
        self.with(variable::fail_call, n)
    }

    /// Says on stderr what runs.
    pub fn log(self) -> Self {
        self.with(variable::log, 1)
    }

    /// A warp that runs more instructions than this between two barriers is stopped.
    pub fn budget(self, instructions: u64) -> Self {
        self.with(variable::budget, instructions)
    }

    /// Whether tests run on real hardware.
    pub fn is_off() -> bool {
        env::var_os(SWITCH).is_some_and(|value| value == "off")
    }

    /// No knob is turned.
    fn is_plain(&self) -> bool {
        self.knobs.is_empty() && self.without.is_none()
    }

    /// Runs `body` on this device.
    ///
    /// # Panics
    /// If the body does.
    pub fn run<F: FnOnce()>(&self, body: F) -> Report {
        if Self::is_off() {
            match self.is_plain() {
                true => body(),
                false => eprintln!("SKIPPED {}: real hardware has no such knob", test_name::<F>()),
            }
            return Report::default();
        }
        let test = test_name::<F>();
        let run = RUNS.with_borrow_mut(|runs| {
            let count = runs.entry(test.clone()).or_default();
            *count += 1;
            *count - 1
        });
        if let Some((own, reports)) = child() {
            if run < own {
                return Report::read(&reports.join(run.to_string())).unwrap_or_default();
            }
            let report = env::var_os(variable::report).unwrap_or_default();
            fs::write(&report, "").unwrap_or_else(|error| panic!("{}: {error}", report.display()));
            body();
            // The rest of the test is the parent's.
            std::process::exit(0);
        }
        let outcome = self.in_child(&test, run);
        outcome.unwrap_or_else(|error| panic!("the emulator cannot be set up: {error}"))
    }

    fn in_child(&self, test: &str, run: u64) -> io::Result<Report> {
        let reports = directory()?.join(format!("{}-{}", std::process::id(), test.replace("::", "-")));
        fs::create_dir_all(&reports)?;
        let report = reports.join(run.to_string());
        let mut command = self.command(env::current_exe()?);
        command.args(["--exact", test, "--nocapture", "--include-ignored"]);
        command.env(CHILD, format!("{run}:{}", reports.display())).env(variable::report, &report);
        let output = command.output()?;
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        if !output.status.success() || !report.exists() {
            let _ = fs::remove_dir_all(&reports);
            panic!("{test}, run {run} ({self:?}), on the emulator: {}\n{}", output.status, text.concat());
        }
        let found = Report::read(&report).unwrap_or_default();
        REMOVE.with_borrow_mut(|remove| remove.0.push(reports));
        Ok(found)
    }

    /// Runs a program that [`Device::command`] has made: what it put out, and what the device did.
    pub fn output(&self, command: &mut Command) -> io::Result<(Output, Report)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("report-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = directory()?.join(name);
        let output = command.env(variable::report, &path).output()?;
        // A program that never called the driver leaves none.
        let report = Report::read(&path).unwrap_or_default();
        let _ = fs::remove_file(&path);
        Ok((output, report))
    }

    /// A command for a program that finds this device: an emulated one, or, with `GPU_EMULATOR=off` and no knob turned, what
    /// there is.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        if Self::is_off() && self.is_plain() {
            return Command::new(program.as_ref());
        }
        let libraries =
            libraries(self.without).unwrap_or_else(|error| panic!("the emulator cannot be set up: {error}"));
        let mut path = OsString::from(libraries);
        if let Some(old) = env::var_os("LD_LIBRARY_PATH").filter(|old| !old.is_empty()) {
            path.push(":");
            path.push(old);
        }
        let mut command = Command::new(program.as_ref());
        command.env_remove(CHILD).env_remove(variable::report);
        command.env("LD_LIBRARY_PATH", path).envs(self.knobs.iter().map(|(name, value)| (name, value)));
        command
    }
}

thread_local! {
    /// What a test leaves is removed when its thread ends.
    static REMOVE: RefCell<Remove> = const { RefCell::new(Remove(Vec::new())) };
}

struct Remove(Vec<PathBuf>);

impl Drop for Remove {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// The test that runs, as the test harness calls it: it names the threads after them. On the main thread, where it runs
/// tests if there is to be only one thread, the closure has to be one of the test itself.
fn test_name<F>() -> String {
    if let Some(name) = std::thread::current().name().filter(|name| *name != "main") {
        return name.to_string();
    }
    let path = std::any::type_name::<F>();
    let inside = path.split_once("::").map_or(path, |(_, rest)| rest);
    inside.split("::{{closure}}").next().unwrap_or(inside).to_string()
}

fn child() -> Option<(u64, PathBuf)> {
    let value = env::var(CHILD).ok()?;
    let (run, reports) = value.split_once(':')?;
    Some((run.parse().ok()?, reports.into()))
}

/// Beside the library, which cargo has put where it puts dependencies: beside a test, below an example or a tool.
fn directory() -> io::Result<PathBuf> {
    let executable = env::current_exe()?;
    let mut places = executable.ancestors().skip(1).flat_map(|above| [above.to_path_buf(), above.join("deps")]);
    let directory = places.find(|place| place.join(LIBRARY).exists());
    let directory =
        directory.ok_or_else(|| io::Error::other(format!("no {LIBRARY} beside {}", executable.display())))?;
    Ok(directory.join("gpu-emulator"))
}

/// A directory with the library under the names of those it stands in for. A library that is to be missing is there as
/// an empty file, which the loader refuses without looking further.
fn libraries(without: Option<&str>) -> io::Result<PathBuf> {
    let above = directory()?;
    let directory = above.join(without.map_or("all".to_string(), |what| format!("without-{what}")));
    fs::create_dir_all(&directory)?;
    let library = above.with_file_name(LIBRARY);
    for (names, what) in [(&DRIVER[..], "driver"), (&BLAS[..], "cublas")] {
        let missing = without == Some(what) || without == Some("driver");
        for name in names {
            place(&directory.join(name), (!missing).then_some(&library))?;
        }
        if missing {
            let stems = names.iter().filter_map(|name| name.strip_suffix(".so"));
            for name in stems.flat_map(|stem| OTHER.map(|other| format!("{stem}{other}"))) {
                place(&directory.join(name), None)?;
            }
        }
    }
    Ok(directory)
}

/// A link to the library, or an empty file. Several processes may be at it.
fn place(path: &Path, library: Option<&PathBuf>) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let there = match library {
        Some(library) => fs::read_link(path).is_ok_and(|target| target == *library),
        None => path.exists(),
    };
    if there {
        return Ok(());
    }
    let unique = format!("new-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
    let new = path.with_file_name(unique);
    match library {
        Some(library) => std::os::unix::fs::symlink(library, &new)?,
        None => fs::write(&new, "")?,
    }
    fs::rename(new, path)
}

impl Report {
    /// Of the device in this process, if it is an emulated one.
    pub fn here() -> Option<Report> {
        type Function = unsafe extern "C" fn(*mut u8, usize) -> usize;
        // SAFETY: the library has no constructors but those of the standard library, and the function has this type.
        let text = unsafe {
            let library = libloading::Library::new(DRIVER[0]).ok()?;
            let report: libloading::Symbol<Function> = library.get(b"gpu_emulator_report\0").ok()?;
            let mut text = vec![0; report(std::ptr::null_mut(), 0)];
            report(text.as_mut_ptr(), text.len());
            text
        };
        Some(Report::parse(&String::from_utf8_lossy(&text)))
    }

    fn read(path: &Path) -> io::Result<Report> {
        Ok(Report::parse(&fs::read_to_string(path)?))
    }

    fn parse(text: &str) -> Report {
        let mut report = Report::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            let number = value.parse().unwrap_or_default();
            match name {
                "calls" => report.calls = number,
                "allocations" => report.allocations = number,
                "launches" => report.launches = number,
                "instructions" => report.instructions = number,
                "used" => report.used = number,
                "peak" => report.peak = number,
                "message" => report.messages.push(value.to_string()),
                _ => {
                    if let Some((entry, count)) = value.split_once(' ') {
                        report.entry_points.insert(entry.to_string(), count.parse().unwrap_or_default());
                    }
                }
            }
        }
        report
    }
}
