//! Streams of tasks on real servers: followed live and later, over lost connections, without repeated
//! entries.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::time::Duration;

use countersign::{
    Client, Config, Context, EntryKind, Follow, Policy, Retry, Task, TaskError, TaskId, TaskResult,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use support::{Proxy, Running, TIMEOUT, servers};
use tokio::sync::Semaphore;
use tokio::time::timeout;

#[derive(Serialize, Deserialize)]
struct Write {
    words: Vec<String>,
}

impl Task for Write {
    const NAME: &'static str = "test.write";
    type Output = usize;
}

fn words(text: &str) -> Write {
    Write { words: text.split(' ').map(str::to_owned).collect() }
}

async fn write(ctx: Context, Write { words }: Write) -> TaskResult<usize> {
    let output = ctx.stream();
    for word in &words {
        output.send(word).await?;
    }
    Ok(words.len())
}

/// Starts a worker that writes a word for each permit.
async fn paced(permits: &Arc<Semaphore>) -> Running {
    let permits = Arc::clone(permits);
    let handler = move |ctx: Context, Write { words }: Write| {
        let permits = Arc::clone(&permits);
        async move {
            for word in &words {
                permits.acquire().await?.forget();
                ctx.stream().send(word).await?;
            }
            permits.acquire().await?.forget();
            Ok(words.len())
        }
    };
    Running::start(|worker| worker.handle(handler)).await
}

async fn begin(running: &Running, task: Write) -> TaskId {
    let handle = running.client.enqueue(task).queue(&running.queue).await.unwrap();
    handle.id().clone()
}

/// Returns the next entry in short form: number, kind, step, run of the step, value.
async fn next(follow: &mut Follow) -> Option<String> {
    let entry = timeout(TIMEOUT, follow.next()).await.unwrap()?.unwrap();
    let (number, kind, run, value) = (entry.number, entry.kind.as_str(), entry.run, entry.value);
    Some(match entry.step {
        Some(step) => format!("{number} {kind} {step}/{run} {value}"),
        None => format!("{number} {kind} {value}"),
    })
}

async fn all(mut follow: Follow) -> Vec<String> {
    let mut entries = Vec::new();
    while let Some(entry) = next(&mut follow).await {
        entries.push(entry);
    }
    entries
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_followed_as_it_is_written_and_ends_with_its_task() {
    let permits = Arc::new(Semaphore::new(0));
    let running = paced(&permits).await;
    let id = begin(&running, words("so it goes")).await;
    let mut follow = running.client.follow(&id);
    for entry in ["1 output \"so\"", "2 output \"it\"", "3 output \"goes\""] {
        permits.add_permits(1);
        assert_eq!(next(&mut follow).await.unwrap(), entry);
    }
    permits.add_permits(1);
    assert_eq!(next(&mut follow).await, None);
    assert_eq!(next(&mut follow).await, None);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_follow_many() {
    let permits = Arc::new(Semaphore::new(0));
    let running = paced(&permits).await;
    let mut follows = Vec::new();
    for n in 0..8 {
        let id = begin(&running, words(&format!("a{n} b{n} c{n}"))).await;
        follows.push((n, tokio::spawn(all(running.client.follow(&id)))));
        follows.push((n, tokio::spawn(all(running.client.follow(&id)))));
    }
    permits.add_permits(8 * 4);
    for (n, follow) in follows {
        let expected =
            ["a", "b", "c"].iter().zip(1..).map(|(w, at)| format!("{at} output \"{w}{n}\""));
        assert_eq!(follow.await.unwrap(), expected.collect::<Vec<_>>());
    }
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_from_any_position_while_and_after_it_is_written() {
    let permits = Arc::new(Semaphore::new(2));
    let running = paced(&permits).await;
    let numbers: Vec<_> = (1..=1000).map(|n| n.to_string()).collect();
    let id = begin(&running, words(&numbers.join(" "))).await;
    let mut second = running.client.follow(&id).from(2);
    assert_eq!(next(&mut second).await.unwrap(), "2 output \"2\"");

    let mut live = running.client.follow(&id).live();
    let live = tokio::spawn(async move { timeout(TIMEOUT, live.next()).await });
    while !live.is_finished() {
        permits.add_permits(1);
        assert!(next(&mut second).await.is_some());
    }
    let first_live = live.await.unwrap().unwrap().unwrap().unwrap();
    assert!(first_live.number > 2, "{first_live:?}");

    permits.add_permits(1000);
    assert_eq!(all(second).await.last().unwrap(), "1000 output \"1000\"");
    assert_eq!(all(running.client.follow(&id).from(1000)).await, ["1000 output \"1000\""]);
    assert_eq!(all(running.client.follow(&id).from(1001)).await, Vec::<String>::new());
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_survives_its_connections() {
    let servers = servers();
    let (proxy, store_url) = Proxy::before(&servers.store_url).await;
    let config = Config::new(&servers.broker_url, &store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let permits = Arc::new(Semaphore::new(0));
    let running = paced(&permits).await;
    let id = begin(&running, words("a b c d e f")).await;
    let mut follow = client.follow(&id);
    for (number, word) in (1..).zip(["a", "b", "c", "d", "e", "f"]) {
        permits.add_permits(1);
        assert_eq!(next(&mut follow).await.unwrap(), format!("{number} output {word:?}"));
        proxy.cut();
    }
    permits.add_permits(1);
    assert_eq!(next(&mut follow).await, None);
    running.drain().await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_survives_its_connections() {
    let servers = servers();
    let (proxy, store_url) = Proxy::before(&servers.store_url).await;
    let config = Config::new(&servers.broker_url, &store_url).unwrap();
    let running = Running::start_with(&config, |worker| worker.handle(write)).await;
    let text: Vec<String> = (1..=500).map(|n| n.to_string()).collect();
    let id = begin(&running, words(&text.join(" "))).await;
    let direct = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let reader = Client::connect(&direct).await.unwrap();
    let mut follow = reader.follow(&id);
    for n in 1..=500 {
        assert_eq!(next(&mut follow).await.unwrap(), format!("{n} output \"{n}\""));
        if n % 100 == 0 {
            proxy.cut();
        }
    }
    assert_eq!(next(&mut follow).await, None);
    running.drain().await;
    reader.close().await;
}

fn again_at_once() -> Policy {
    let retry = Retry::exponential(Duration::from_millis(10)).attempts(10);
    Policy { retry, ..Policy::default() }
}

fn not_yet<T>() -> TaskResult<T> {
    Err(TaskError::retry_after(Duration::ZERO, "not yet"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_repeats_nothing() {
    let handler = |ctx: Context, Write { words }: Write| async move {
        ctx.progress(&json!({ "words": words.len() })).await?;
        ctx.stream().send(&words[0]).await?;
        let done = ctx.step("rest", || async {
            ctx.stream().send(&words[1]).await?;
            Ok::<_, TaskError>(words.len())
        });
        let done = done.await?;
        if ctx.attempt() < 3 {
            return not_yet();
        }
        ctx.progress("done").await?;
        Ok(done)
    };
    let running =
        Running::start(|worker| worker.handle_with_policy(handler, again_at_once())).await;
    let id = begin(&running, words("so it")).await;
    let entries = [
        "1 progress {\"words\":2}",
        "2 output \"so\"",
        "3 output rest/1 \"it\"",
        "4 progress \"done\"",
    ];
    assert_eq!(all(running.client.follow(&id)).await, entries);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_that_a_step_runs_again() {
    let handler = |ctx: Context, Write { words }: Write| async move {
        let generate = || async {
            if ctx.attempt() < 4 {
                for word in &words[..usize::try_from(3 - ctx.attempt())?] {
                    ctx.stream().send(word).await?;
                }
                return not_yet();
            }
            ctx.stream().send("at last").await?;
            Ok(words.len())
        };
        ctx.step("generate", generate).await
    };
    let running =
        Running::start(|worker| worker.handle_with_policy(handler, again_at_once())).await;
    let id = begin(&running, words("so it goes")).await;
    let entries = [
        "1 output generate/1 \"so\"",
        "2 output generate/1 \"it\"",
        "3 restarted generate/2 null",
        "4 output generate/2 \"so\"",
        // The third run has written no entry, but the entries of the second run are void.
        "5 restarted generate/3 null",
        "6 restarted generate/4 null",
        "7 output generate/4 \"at last\"",
    ];
    assert_eq!(all(running.client.follow(&id)).await, entries);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_two_tasks_at_once_are_numbered_by_their_steps() {
    let handler = |ctx: Context, Write { words }: Write| async move {
        let send_words = |step: &'static str| {
            let (ctx, words) = (ctx.clone(), &words);
            async move {
                let work = || async {
                    for word in words {
                        ctx.stream().send(word).await?;
                    }
                    Ok::<_, TaskError>(words.len())
                };
                ctx.step(step, work).await
            }
        };
        let (left, right) = tokio::join!(send_words("left"), send_words("right"));
        Ok(left? + right?)
    };
    let running =
        Running::start(|worker| worker.handle_with_policy(handler, again_at_once())).await;
    let id = begin(&running, words("a b c")).await;
    let entries = all(running.client.follow(&id)).await;
    for step in ["left", "right"] {
        let of_step = entries.iter().filter(|entry| entry.contains(step));
        let sent: Vec<_> = of_step.map(|entry| entry.rsplit(' ').next().unwrap()).collect();
        assert_eq!(sent, ["\"a\"", "\"b\"", "\"c\""], "{entries:?}");
    }
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_too_large_fails_and_names_its_setting() {
    let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    config.max_stream_entry = 8;
    let running =
        Running::start_with(&config, |worker| worker.handle_with_policy(write, again_at_once()))
            .await;
    let error = running.call(words("short far-too-long")).await.unwrap_err();
    let failure = error.failure().unwrap();
    assert_eq!(failure.exc_type, "StreamEntryTooLarge");
    assert!(failure.message().contains("limits.stream_entry"), "{failure}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_stream_is_an_error_and_blocks_no_other() {
    let permits = Arc::new(Semaphore::new(0));
    let running = paced(&permits).await;
    let client = redis::Client::open(servers().store_url).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let id = begin(&running, words("a")).await;
    let mut follow = running.client.follow(&id);
    permits.add_permits(1);
    assert_eq!(next(&mut follow).await.unwrap(), "1 output \"a\"");
    let text = TaskId::random();
    let foreign = TaskId::random();
    let key = |id: &TaskId| format!("cs:stream:{{{id}}}");
    let _: () = redis::cmd("SET").arg(key(&text)).arg("x").query_async(&mut redis).await.unwrap();
    let mut add = redis::cmd("XADD");
    let _: () =
        add.arg(key(&foreign)).arg("*").arg("a").arg("b").query_async(&mut redis).await.unwrap();
    for id in [text, foreign] {
        let mut follow = running.client.follow(&id);
        let error = timeout(TIMEOUT, follow.next()).await.unwrap().unwrap().unwrap_err();
        assert!(!error.to_string().is_empty());
    }
    permits.add_permits(1);
    assert_eq!(next(&mut follow).await, None);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_decodes_its_value() {
    let handler = |ctx: Context, Write { words }: Write| async move {
        ctx.progress(&(words.len(), "words")).await?;
        Ok(words.len())
    };
    let running = Running::start(|worker| worker.handle(handler)).await;
    let id = begin(&running, words("a b")).await;
    let entry = running.client.follow(&id).next().await.unwrap().unwrap();
    assert_eq!((entry.kind, entry.step.as_deref(), entry.run), (EntryKind::Progress, None, 1));
    assert_eq!(entry.read::<(usize, String)>().unwrap(), (2, "words".to_owned()));
    assert!(entry.read::<bool>().is_err());
    running.drain().await;
}
