//! The demo worker's tasks, one a file. `countersign dev` has them, too.

mod add;
mod agent;
mod cpu;
mod echo;
mod fail;
mod refund;
mod retry;
mod sleep;
mod tsum;

use std::time::Duration;

use countersign::{Policy, Retry, Worker};

pub(crate) fn register(worker: Worker) -> Worker {
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
        .handle_blocking(cpu::cpu, Policy::default())
}
