//! `demo.cpu(ms)`: keeps a core busy for `ms` milliseconds, on the pool for blocking work.

use std::time::{Duration, Instant};

use countersign::{Context, Task, TaskResult};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(crate) struct Cpu {
    ms: u64,
}

impl Task for Cpu {
    const NAME: &'static str = "demo.cpu";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = u64;
}

pub(crate) fn cpu(_: Context, Cpu { ms }: Cpu) -> TaskResult<u64> {
    let until = Instant::now() + Duration::from_millis(ms);
    let mut turns = 0_u64;
    while Instant::now() < until {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
    Ok(turns)
}
