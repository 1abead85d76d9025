//! `demo.agent(prompt)`: an agent whose lines are scripted. It streams its words, and requests an approval
//! before each of its two tool calls. After a rejection it continues without that tool.

use std::time::Duration;

use countersign::approval::Risk;
use countersign::{Context, Task, TaskError, TaskResult, Verdict};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const TIME_TO_DECIDE: Duration = Duration::from_secs(24 * 60 * 60);
/// The time between two words, similar to a language model's.
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
    stream_line(&ctx, "plan", &format!("I look for {prompt}, and mail what I find.")).await?;
    let search = Search { query: prompt };
    let found = match call(
        &ctx,
        "web.search",
        search,
        Risk::Low,
        "the query is sent to an external service",
    )
    .await?
    {
        Call::Granted(Search { query }) => {
            ctx.step("search", || async { Ok::<_, TaskError>(format!("3 pages on {query}")) })
                .await?
        }
        Call::Refused(why) => format!("nothing: the search was refused ({why})"),
    };
    stream_line(&ctx, "findings", &format!("I found {found}.")).await?;
    let mail = Send { to: "team@example.com".into(), text: found };
    let sent = match call(&ctx, "mail.send", mail, Risk::High, "the team gets a mail").await? {
        Call::Granted(Send { to, text }) => {
            ctx.step("send", || async { Ok::<_, TaskError>(format!("Sent to {to}: {text}.")) })
                .await?
        }
        Call::Refused(why) => format!("Not sent: {why}."),
    };
    stream_line(&ctx, "end", &sent).await?;
    Ok(sent)
}

enum Call<A> {
    Granted(A),
    Refused(String),
}

/// Requests an approval to call a tool. Returns the approved arguments, or the reason for the refusal.
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
    let request = ctx.approval(tool).title(format!("May I call {tool}?")).risk(risk).effect(effect);
    let decided = request.expires_in(TIME_TO_DECIDE).action(tool, args).await?;
    let why = match decided.reason() {
        "" => "not approved".to_owned(),
        reason => format!("{} said: {reason}", decided.by),
    };
    Ok(match decided.verdict {
        Verdict::Approved { args, .. } => Call::Granted(args),
        _ => Call::Refused(why),
    })
}

/// Streams a line word by word, as a step, so that a resumed run does not repeat it.
async fn stream_line(ctx: &Context, step: &'static str, line: &str) -> TaskResult<()> {
    let stream_words = || async {
        let output = ctx.stream();
        for word in line.split_inclusive(' ') {
            output.send(&word).await?;
            tokio::time::sleep(PACE).await;
        }
        output.send(&"\n").await
    };
    ctx.step(step, stream_words).await
}
