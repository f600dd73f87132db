//! Flags that every tool has.

use clap::Args;

use crate::error::{Error, Result};

#[derive(Debug, Args)]
pub struct Common {
    /// Replace an output that was made otherwise
    #[arg(long)]
    pub force: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// No progress and no messages but errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Hash the files of the input stages again and compare
    #[arg(long)]
    pub verify: bool,
}

impl Common {
    /// Sets up the thread pool; once, before any work.
    pub fn start(&self) -> Result<()> {
        let Some(threads) = self.threads else { return Ok(()) };
        if threads == 0 {
            return Err(Error::usage("--threads 0", "give at least 1"));
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .map_err(|e| Error::usage(format!("--threads {threads}: {e}"), "give a smaller number"))
    }
}
