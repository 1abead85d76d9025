//! The demo worker, and the template to copy: one task a file, registered in one place.

mod mark;
mod tasks;

use std::process::ExitCode;

use countersign::Policy;
use mark::{Mark, Marks, mark};

fn main() -> ExitCode {
    countersign::run_worker("demo", |worker| {
        let marks = std::env::var("DEMO_MARKS_URL");
        let marks =
            Marks::new(marks.as_deref().unwrap_or(worker.client().config().store_url.reveal()));
        tasks::register(worker)
            .handle(move |_, task: Mark| mark(marks.clone(), task), Policy::default())
    })
}
