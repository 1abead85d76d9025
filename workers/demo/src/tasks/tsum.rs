//! `demo.tsum(list)`: the sum of a list, what a chord's body usually is.

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
    list.iter()
        .try_fold(0_i64, |sum, n| sum.checked_add(*n))
        .ok_or_else(|| TaskError::raise("builtins", "OverflowError", "sum over 64 bits").never())
}
