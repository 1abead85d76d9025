//! `demo.echo(*args, **kwargs)`: returns both unchanged.

use countersign::{Arguments, Context, Task, TaskResult};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Echo(Arguments);

impl Task for Echo {
    const NAME: &'static str = "demo.echo";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = Box<RawValue>;
}

#[derive(Serialize)]
struct Echoed<A, K> {
    args: A,
    kwargs: K,
}

pub(crate) async fn echo(_: Context, Echo(arguments): Echo) -> TaskResult<Box<RawValue>> {
    let Arguments { args, kwargs } = arguments;
    Ok(to_raw_value(&Echoed { args, kwargs })?)
}
