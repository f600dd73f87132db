//! The one workspace for floating-point weights and their gradients, reused by every linear and by the head.

use std::sync::{Mutex, MutexGuard};

/// Bytes of the workspace. Part of the numerics: products over panels are summed panel by panel.
pub const WORKSPACE_BYTES: usize = 128 << 20;

#[derive(Default)]
pub struct Workspace(Mutex<Vec<f32>>);

impl Workspace {
    /// The buffer, at least `len` long; it grows on demand and never beyond what a panel needs.
    pub fn take(&self, len: usize) -> MutexGuard<'_, Vec<f32>> {
        let mut buffer = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if buffer.len() < len {
            // Not resize(): the old contents are not worth copying.
            *buffer = Vec::new();
            *buffer = vec![0.0; len];
        }
        buffer
    }
}

/// Rows of width `width` that fit `share` of the workspace, a multiple of four, at least four, at most `rows`.
pub fn panel_rows(rows: usize, width: usize, panels: usize) -> usize {
    let fit = WORKSPACE_BYTES / (4 * width.max(1) * panels);
    (fit / 4 * 4).max(4).min(rows)
}
