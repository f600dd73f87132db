//! `metrics.jsonl`: one line a step. A log, cut back to the last save when a run resumes.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format::atomic::write_file;

/// One step: its loss before the update, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: u64,
    pub loss: f64,
    /// With a teacher, the means of both terms over tokens.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ce: Option<f64>,
    /// Global norm before clipping.
    pub grad_norm: f64,
    pub lr_ab: f64,
    pub lr_scale: f64,
    pub tokens_per_s: f64,
    pub peak_rss: u64,
}

pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens the log with the lines up to `step`; what a killed run wrote after its last save is dropped. A log that
    /// begins here goes on from the `earlier` job's of the same schedule.
    pub fn resume(path: &Path, step: u64, earlier: Option<&Path>) -> Result<MetricsFile> {
        let from = earlier.filter(|_| !path.exists()).unwrap_or(path);
        let text: String = read(from)?.iter().filter(|m| m.step <= step).map(line).collect();
        // By rename, so that a run that is killed here does not lose its log.
        let new = path.with_extension("jsonl.new");
        write_file(&new, text.as_bytes())?;
        fs::rename(&new, path).map_err(Error::io(path, "create"))?;
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io(path, "open"))?;
        Ok(MetricsFile { path: path.into(), file })
    }

    pub fn append(&mut self, m: &StepMetrics) -> Result<()> {
        self.file.write_all(line(m).as_bytes()).map_err(Error::io(&self.path, "write"))
    }
}

fn line(m: &StepMetrics) -> String {
    serde_json::to_string(m).expect("numbers are plain JSON") + "\n"
}

/// The whole lines of a log; none if it does not exist. The last line of a killed run may be torn.
pub fn read(path: &Path) -> Result<Vec<StepMetrics>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map_while(|l| serde_json::from_str(l).ok()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io(path, "read")(e)),
    }
}
