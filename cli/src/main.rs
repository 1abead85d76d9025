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

fn main() -> std::process::ExitCode {
    command::main()
}
