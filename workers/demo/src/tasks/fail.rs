//! `demo.fail(msg)`: a `ValueError`, as a Celery client raises it.

use countersign::{Context, Task, TaskError, TaskResult};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(crate) struct Fail {
    msg: String,
}

impl Task for Fail {
    const NAME: &'static str = "demo.fail";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = ();
}

pub(crate) async fn fail(_: Context, Fail { msg }: Fail) -> TaskResult<()> {
    Err(TaskError::raise("builtins", "ValueError", msg).never())
}
