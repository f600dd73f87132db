//! The time of each kernel, by events around it.

use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::{CudaEvent, DriverError};

use super::gpu::Gpu;

/// What the GPU took for work of one name.
#[derive(Debug, Clone)]
pub struct Time {
    /// A kernel's, or that of a copy or of a library's product.
    pub name: String,
    pub calls: usize,
    /// Of all calls.
    pub ms: f64,
}

/// Off unless it was started.
#[derive(Default)]
pub struct Timer(Mutex<Option<Vec<Timed>>>);

struct Timed {
    name: String,
    events: [CudaEvent; 2],
}

impl Timer {
    pub fn start(&self) {
        *self.of() = Some(Vec::new());
    }

    /// What was done since the start, in the order of the first calls; waits for it.
    pub fn stop(&self) -> Result<Vec<Time>, DriverError> {
        let mut times: Vec<Time> = Vec::new();
        for Timed { name, events: [begin, end] } in self.of().take().unwrap_or_default() {
            let ms = f64::from(begin.elapsed_ms(&end)?);
            match times.iter_mut().find(|time| time.name == name) {
                Some(time) => (time.calls, time.ms) = (time.calls + 1, time.ms + ms),
                None => times.push(Time { name, calls: 1, ms }),
            }
        }
        Ok(times)
    }

    /// Hands work to the stream, between two events while times are taken.
    pub fn around<R>(&self, gpu: &Gpu, name: impl Display, submit: impl FnOnce() -> R) -> R {
        if self.of().is_none() {
            return submit();
        }
        let now = || gpu.stream.record_event(Some(CU_EVENT_DEFAULT));
        let begin = now();
        let submitted = submit();
        let events = begin.and_then(|begin| Ok([begin, now()?]));
        let timed = events.map(|events| Timed { name: name.to_string(), events });
        gpu.note("timing", timed.map(|timed| self.of().get_or_insert_default().push(timed)));
        submitted
    }

    fn of(&self) -> MutexGuard<'_, Option<Vec<Timed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
