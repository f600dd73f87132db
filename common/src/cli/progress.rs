//! Progress on stderr; nothing when that is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::flags::Common;

/// `what` may hold a path as typed, so it is no part of the template, where braces mean something.
fn bar(common: &Common, what: &str, len: u64, template: &str) -> ProgressBar {
    let target = if common.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(len), target).with_prefix(what.to_string());
    bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed").progress_chars("━╸ "));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Bytes written, with their rate.
pub fn bytes(common: &Common, what: &str, len: u64) -> ProgressBar {
    bar(common, what, len, "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
}

/// Counted things, with a message.
pub fn count(common: &Common, what: &str, len: u64) -> ProgressBar {
    bar(common, what, len, "{prefix} {bar:30} {pos}/{len} {eta} left {msg}")
}
