//! Training: the schedule, the walk over parameters, the loop, and resuming it to the bit.

pub mod curve;
pub mod metrics;
pub mod optimizer;
pub mod plan;
pub mod recipe;
pub mod resume;
pub mod run;

pub use recipe::Recipe;
