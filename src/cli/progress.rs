//! A progress bar on batch work: on standard error, and on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar for this many steps.
pub(super) fn bar(steps: u64, what: &'static str) -> ProgressBar {
    // Away from a terminal nothing is drawn.
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.with_message(what)
}
