//! Integration tests, one module for each concern.

mod golden;
mod recipes;
