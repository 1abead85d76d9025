//! The demo worker. Its tasks are in the library, so that `countersign dev` runs them as well.

use std::process::ExitCode;

use countersign_demo::{register, register_mark};

fn main() -> ExitCode {
    countersign::run_worker("demo", |worker| register_mark(register(worker)))
}
