//! A task that gives away its words as it finds them, and somebody who reads along.
//!
//! `cargo run --example stream`, with RabbitMQ and Redis running.

use countersign::{
    Client, Config, Context, Error, Policy, Said, Task, TaskError, TaskResult, Worker,
};
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
    // Should this be done again after a crash, readers are told to forget what they have read.
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
    let worker = Worker::new(&Client::connect(&config).await?)
        .queue("example-stream")
        .handle(answer, Policy::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));

    let task = client.enqueue(Answer { prompt: "world the hello".into() }).await?;
    let mut follow = client.follow(task.id());
    while let Some(entry) = follow.next().await {
        let entry = entry?;
        match entry.said {
            Said::Progress => println!("({})", entry.value),
            Said::Output => println!("{}", entry.value),
            Said::Restarted => println!("(it begins again)"),
        }
    }
    println!("{} characters", task.result().await?);

    drop(stop);
    let _ = worker.await;
    client.close().await;
    Ok(())
}
