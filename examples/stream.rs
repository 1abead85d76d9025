//! A task that streams its output word by word, and a client that follows it.
//!
//! `cargo run --example stream`, with RabbitMQ and Redis running.

use countersign::{Client, Config, Context, EntryKind, Error, Task, TaskError, TaskResult, Worker};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

#[derive(Serialize, Deserialize)]
struct Answer {
    prompt: String,
}

impl Task for Answer {
    const NAME: &'static str = "example.answer";
    const QUEUE: Option<&'static str> = Some("example-stream");
    type Output = usize;
}

async fn answer(ctx: Context, task: Answer) -> TaskResult<usize> {
    ctx.progress("thinking").await?;
    // If the step runs again after a crash, the stream gets a `Restarted` entry: readers discard the output
    // so far.
    let generate = || async {
        let output = ctx.stream();
        for word in task.prompt.split(' ').rev() {
            output.send(word).await?;
        }
        Ok::<_, TaskError>(task.prompt.len())
    };
    ctx.step("generate", generate).await
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let config = Config::load()?;
    let client = Client::connect(&config).await?;
    let worker =
        Worker::new(&Client::connect(&config).await?).queue("example-stream").handle(answer);
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));

    let task = client.enqueue(Answer { prompt: "world the hello".into() }).await?;
    let mut follow = client.follow(task.id());
    while let Some(entry) = follow.next().await {
        let entry = entry?;
        match entry.kind {
            EntryKind::Progress => println!("({})", entry.value),
            EntryKind::Output => println!("{}", entry.value),
            EntryKind::Restarted => println!("(the step runs again)"),
            _ => {}
        }
    }
    println!("{} characters", task.result().await?);

    drop(stop);
    let _ = worker.await;
    client.close().await;
    Ok(())
}
