//! Signals that ask for an orderly end: SIGTERM and SIGUSR1 (batch systems), SIGINT (a second one ends at once).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

use crate::error::{Error, Result};

pub struct Signals {
    received: Arc<AtomicUsize>,
}

impl Signals {
    pub fn listen() -> Result<Signals> {
        let received = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        let failed = |e| Error::io("signal handlers", "install")(e);
        signal_hook::flag::register_conditional_shutdown(SIGINT, 130, again.clone()).map_err(failed)?;
        signal_hook::flag::register(SIGINT, again).map_err(failed)?;
        for signal in [SIGTERM, SIGUSR1, SIGINT] {
            signal_hook::flag::register_usize(signal, received.clone(), signal as usize).map_err(failed)?;
        }
        Ok(Signals { received })
    }

    /// The name of a signal that arrived.
    pub fn received(&self) -> Option<&'static str> {
        match self.received.load(Ordering::Relaxed) as i32 {
            0 => None,
            SIGTERM => Some("SIGTERM"),
            SIGUSR1 => Some("SIGUSR1"),
            _ => Some("interrupted"),
        }
    }
}
