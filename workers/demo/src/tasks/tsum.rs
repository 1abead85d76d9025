//! `demo.tsum(list)`: returns the sum of a list, as the body of a chord often does.

use countersign::{Context, Task, TaskError, TaskResult};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(crate) struct Tsum {
    list: Vec<i64>,
}

impl Task for Tsum {
    const NAME: &'static str = "demo.tsum";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = i64;
}

pub(crate) async fn tsum(_: Context, Tsum { list }: Tsum) -> TaskResult<i64> {
    list.iter().try_fold(0_i64, |sum, n| sum.checked_add(*n)).ok_or_else(|| {
        TaskError::with_exception("builtins", "OverflowError", "sum over 64 bits").no_retry()
    })
}
