//! The demo worker's tasks, and a template to copy: each task has its own file, and all are registered in one
//! place.

mod mark;
mod tasks;

use countersign::Worker;
use mark::mark;

pub use mark::Marks;
pub use tasks::register;

/// Adds the handler of `demo.mark`, and its state: a pool of connections to the Redis of `DEMO_MARKS_URL`,
/// or else to the worker's.
pub fn register_mark(worker: Worker) -> Worker<Marks> {
    let marks = std::env::var("DEMO_MARKS_URL");
    let marks = Marks::new(marks.as_deref().unwrap_or(worker.client().config().store_url.reveal()));
    worker.with_state(marks).handle(mark)
}
