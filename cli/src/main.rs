//! The `countersign` command.

mod approvals;
mod audit;
mod batch;
mod command;
mod config;
mod database;
mod dev;
mod doctor;
mod duration;
mod failures;
mod health;
mod ids;
mod listing;
mod management;
mod output;
mod paste;
mod policies;
mod progress;
mod queues;
mod request;
mod route;
mod rules;
mod run;
mod table;
mod tasks;
mod waiting;
mod workers;

/// `countersign dev` runs a worker.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    command::main()
}
