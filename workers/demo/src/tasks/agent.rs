//! `demo.agent(prompt)`: an agent whose lines are scripted. It streams its words, and asks a person
//! before each of its two tool calls; refused, it goes on without that tool.

use std::time::Duration;

use countersign::approval::Risk;
use countersign::{Context, Task, TaskError, TaskResult, Verdict};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const TIME_TO_DECIDE: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two words, as a language model makes them.
const PACE: Duration = Duration::from_millis(20);

#[derive(Serialize, Deserialize)]
pub(crate) struct Agent {
    prompt: String,
}

impl Task for Agent {
    const NAME: &'static str = "demo.agent";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = String;
}

#[derive(Serialize, Deserialize)]
struct Search {
    query: String,
}

#[derive(Serialize, Deserialize)]
struct Send {
    to: String,
    text: String,
}

pub(crate) async fn agent(ctx: Context, Agent { prompt }: Agent) -> TaskResult<String> {
    say(&ctx, "plan", &format!("I look for {prompt}, and mail what I find.")).await?;
    let search = Search { query: prompt };
    let found =
        match call(&ctx, "web.search", search, Risk::Low, "a query leaves this house").await? {
            Call::Granted(Search { query }) => {
                ctx.step("search", || async { Ok::<_, TaskError>(format!("3 pages on {query}")) })
                    .await?
            }
            Call::Refused(why) => format!("nothing: I was not to search ({why})"),
        };
    say(&ctx, "findings", &format!("I found {found}.")).await?;
    let mail = Send { to: "team@example.com".into(), text: found };
    let sent = match call(&ctx, "mail.send", mail, Risk::High, "the team gets a mail").await? {
        Call::Granted(Send { to, text }) => {
            ctx.step("send", || async { Ok::<_, TaskError>(format!("Sent to {to}: {text}.")) })
                .await?
        }
        Call::Refused(why) => format!("Not sent: {why}."),
    };
    say(&ctx, "end", &sent).await?;
    Ok(sent)
}

enum Call<A> {
    Granted(A),
    Refused(String),
}

/// Asks whether a tool may be called, and with what.
async fn call<A>(
    ctx: &Context,
    tool: &'static str,
    args: A,
    risk: Risk,
    effect: &str,
) -> TaskResult<Call<A>>
where
    A: Serialize + DeserializeOwned,
{
    let asked = ctx.approval(tool).ask(format!("May I call {tool}?")).risk(risk).effect(effect);
    let decided = asked.expires_in(TIME_TO_DECIDE).action(tool, args).await?;
    let why = match decided.reason() {
        "" => "nobody said yes".to_owned(),
        reason => format!("{} said: {reason}", decided.by),
    };
    Ok(match decided.verdict {
        Verdict::Approved { args, .. } => Call::Granted(args),
        _ => Call::Refused(why),
    })
}

/// Streams a line word by word. As a step, it is said once.
async fn say(ctx: &Context, step: &'static str, line: &str) -> TaskResult<()> {
    let speak = || async {
        let output = ctx.stream();
        for word in line.split_inclusive(' ') {
            output.send(&word).await?;
            tokio::time::sleep(PACE).await;
        }
        output.send(&"\n").await
    };
    ctx.step(step, speak).await
}
