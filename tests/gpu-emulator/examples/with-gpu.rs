//! Runs a program on the emulated GPU: `cargo run --release -p gpu-emulator --example with-gpu -- target/release/eval …`.

use std::os::unix::process::CommandExt;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("with-gpu: no program; with-gpu PROGRAM [ARGUMENT …]");
        std::process::exit(2);
    };
    let error = gpu_emulator::Device::new().without_races().command(&program).args(arguments).exec();
    eprintln!("with-gpu: {}: {error}", program.to_string_lossy());
    std::process::exit(127);
}
