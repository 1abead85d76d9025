//! `demo.add(x, y)`: returns their sum.

use countersign::{Context, Task, TaskError, TaskResult};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(crate) struct Add {
    x: i64,
    y: i64,
}

impl Task for Add {
    const NAME: &'static str = "demo.add";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = i64;
}

pub(crate) async fn add(_: Context, Add { x, y }: Add) -> TaskResult<i64> {
    x.checked_add(y).ok_or_else(|| {
        TaskError::with_exception("builtins", "OverflowError", format!("{x} + {y}")).no_retry()
    })
}
