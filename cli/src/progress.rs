//! A progress bar for batch work: on standard error, and on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Creates a bar for this many steps.
pub(crate) fn bar(steps: u64, what: &'static str) -> ProgressBar {
    // If standard error is not a terminal, nothing is drawn.
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.with_message(what)
}
