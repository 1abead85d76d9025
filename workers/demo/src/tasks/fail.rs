//! `demo.fail(msg)`: fails with an error that a Celery client raises as `ValueError`.

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
    Err(TaskError::with_exception("builtins", "ValueError", msg).no_retry())
}
