//! The demo worker, and the template to copy: one task a file, registered here.

mod add;
mod agent;
mod cpu;
mod echo;
mod fail;
mod mark;
mod refund;
mod retry;
mod sleep;
mod tsum;

use std::process::ExitCode;
use std::time::Duration;

use countersign::{Policy, Retry};
use mark::{Mark, Marks, mark};

fn main() -> ExitCode {
    countersign::run_worker("demo", |worker| {
        let marks = std::env::var("DEMO_MARKS_URL");
        let marks =
            Marks::new(marks.as_deref().unwrap_or(worker.client().config().store_url.reveal()));
        let patient = Retry::exponential(Duration::from_secs(1)).attempts(u32::MAX);
        worker
            .handle(add::add, Policy::default())
            .handle(tsum::tsum, Policy::default())
            .handle(fail::fail, Policy::default())
            .handle(sleep::sleep, Policy::default())
            .handle(echo::echo, Policy::default())
            .handle(refund::refund, Policy::default())
            .handle(agent::agent, Policy::default())
            .handle(retry::retry, Policy { retry: patient, ..Policy::default() })
            .handle(move |_, task: Mark| mark(marks.clone(), task), Policy::default())
            .handle_blocking(cpu::cpu, Policy::default())
    })
}
