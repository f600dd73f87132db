//! The LLaMA model, written once and generic over the backend.

pub mod backward;
pub mod config;
pub mod forward;
pub mod generate;
pub mod host;
pub mod inputs;
pub mod learned;
pub mod ledger;
pub mod names;
pub mod params;
pub mod rope;
pub mod teacher;
pub mod weights;

pub use config::Config;
