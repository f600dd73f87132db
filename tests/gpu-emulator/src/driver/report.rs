//! What happened, as text: for [`crate::Report`], in the process and at its end.

use std::fmt::Write;

use super::{Out, State, lock};

impl State {
    /// A word and a value a line; messages are last and may be several.
    pub fn report(&self) -> String {
        let mut text = String::new();
        let counts = [
            ("calls", self.calls),
            ("allocations", self.allocations),
            ("launches", self.launches),
            ("instructions", self.instructions),
            ("used", self.memory.used as u64),
            ("peak", self.memory.peak as u64),
        ];
        for (name, value) in counts {
            let _ = writeln!(text, "{name} {value}");
        }
        for (name, count) in &self.entry_points {
            let _ = writeln!(text, "entry {name} {count}");
        }
        for message in &self.messages {
            let _ = writeln!(text, "message {}", message.replace('\n', " "));
        }
        text
    }
}

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> i32;
}

extern "C" fn write_report() {
    let state = lock();
    if let Err(error) = std::fs::write(&state.knobs.report, state.report()) {
        eprintln!("gpu-emulator: {}: {error}", state.knobs.report);
    }
}

pub fn write_at_exit() {
    // SAFETY: the function stays, since the library is never unloaded: whoever loads it keeps it.
    unsafe { atexit(write_report) };
}

/// The length of the report; as much of it as there is room for is written.
#[unsafe(no_mangle)]
extern "C" fn gpu_emulator_report(to: Out<u8>, room: usize) -> usize {
    let text = lock().report();
    if room > 0 {
        let _ = to.set_all(text.as_bytes(), room);
    }
    text.len()
}
