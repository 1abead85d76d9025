//! The demo worker's tasks, one in each file.

mod add;
mod agent;
mod cpu;
mod echo;
mod fail;
mod refund;
mod retry;
mod sleep;
mod tsum;

use countersign::Worker;

/// Adds the handlers of all demo tasks that need no server of their own.
pub fn register(worker: Worker) -> Worker {
    worker
        .handle(add::add)
        .handle(tsum::tsum)
        .handle(fail::fail)
        .handle(sleep::sleep)
        .handle(echo::echo)
        .handle(refund::refund)
        .handle(agent::agent)
        .handle(retry::retry)
        .handle_blocking(cpu::cpu)
}
