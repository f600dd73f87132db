//! `-o FILE`: the report as a file. It is written anew after every artefact, to `FILE.part`, so that an evaluation that is
//! stopped goes on with the next one; and figures that were measured before, of the same artefact in the same way, are
//! taken from it.

use std::fs;
use std::path::{Path, PathBuf};

use common::error::{Error, Result};
use common::format::atomic::write_file;
use common::stage::report::{ArtefactReport, Report};

#[derive(Default)]
pub struct Kept {
    file: Option<PathBuf>,
    known: Vec<ArtefactReport>,
}

impl Kept {
    /// With `force` nothing is taken from the file, and figures of others than `artefacts` may go.
    pub fn open(file: Option<&Path>, artefacts: &[PathBuf], force: bool) -> Result<Kept> {
        let Some(file) = file else { return Ok(Kept::default()) };
        if let Some(parent) = file.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
        }
        let asked = |one: &&ArtefactReport| artefacts.iter().any(|path| path.display().to_string() == one.path);
        let mut known = Vec::new();
        for path in [file.to_path_buf(), beside(file, ".part")] {
            let found = match fs::read(&path) {
                // What is no report of ours holds no figures to keep; it is replaced only if it is one.
                Ok(bytes) => parse(&path, &bytes)?.artefacts,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io(&path, "read")(e)),
            };
            if force {
                continue;
            }
            if let Some(other) = found.iter().find(|one| !asked(one)) {
                let what =
                    format!("{}: it holds figures of {}, which is not to be measured", path.display(), other.path);
                return Err(Error::usage(what, "name that one too, give another -o, or use --force to replace them"));
            }
            known.extend(found);
        }
        Ok(Kept { file: Some(file.to_path_buf()), known })
    }

    /// Figures measured before under this digest.
    pub fn find(&self, measured: &str) -> Option<ArtefactReport> {
        self.known.iter().find(|a| a.measured.as_deref() == Some(measured)).cloned()
    }

    /// Keeps the artefacts done so far.
    pub fn save(&self, report: &Report) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let (new, part) = (beside(file, ".new"), beside(file, ".part"));
        write_file(&new, report.json().as_bytes())?;
        fs::rename(&new, &part).map_err(Error::io(&part, "create"))
    }

    /// The report is whole: it appears.
    pub fn finish(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        fs::rename(beside(file, ".part"), file).map_err(Error::io(file, "create"))
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Report> {
    serde_json::from_slice(bytes).map_err(|e| {
        Error::input(path, format!("no report of eval ({e})"), "one, or no file", "give another name to -o")
    })
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    file.with_file_name(name)
}
