//! The artefacts that the tools pass on, one file per kind. Each is a directory with a `stage.json`, written last:
//! the directory exists, so the stage is complete.

mod ahead;
pub mod answers;
pub mod base;
pub mod checkpoint;
pub mod compensated;
pub mod float;
pub mod folded;
pub mod init;
pub mod open;
pub mod record;
pub mod report;
pub mod rounded;
pub mod scales;
pub mod shards;
pub mod wrapped;
pub mod wrapping;

pub use open::Artefact;
pub use record::{Begin, Kind, Record, Stage};
