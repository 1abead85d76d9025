//! RabbitMQ's management API, as far as `countersign doctor` asks it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use crate::config::Config;

const TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_PORT: u16 = 15672;
/// The queues of delayed delivery, ours and Kombu's.
const LEVELS: &str = "^(celery_delayed_|countersign_delay_)";

/// Where the API is, and how to log in.
#[derive(Clone)]
pub(super) struct Management {
    base: String,
    authorization: String,
    vhost: String,
}

/// What the API says of a queue.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct QueueInfo {
    pub(super) name: String,
    /// The policy that applies, and what it and all other sources come to.
    pub(super) policy: Option<String>,
    pub(super) effective_policy_definition: Map<String, Value>,
    pub(super) arguments: Map<String, Value>,
    /// Messages that are to be dead-lettered and that no queue takes.
    pub(super) messages_dlx: u64,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<QueueInfo>,
}

impl Management {
    /// The API of the configured broker; `None` when its URL cannot be read.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let broker = config.broker_url.reveal().split(';').next()?.trim();
        let broker = Url::parse(broker).ok()?;
        let text = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (user, password) = match (broker.username(), broker.password()) {
            ("", None) => ("guest".to_owned(), "guest".to_owned()),
            (user, password) => (text(user), text(password.unwrap_or("guest"))),
        };
        let vhost = match broker.path().trim_start_matches('/') {
            "" => "/".to_owned(),
            path => text(path),
        };
        let base = config.management_url.clone().unwrap_or_else(|| {
            format!("http://{}:{DEFAULT_PORT}", broker.host_str().unwrap_or("localhost"))
        });
        let login = STANDARD.encode(format!("{user}:{password}"));
        let base = base.trim_end_matches('/').to_owned();
        Some(Self { base, authorization: format!("Basic {login}"), vhost })
    }

    /// A queue; `None` when there is none of that name.
    ///
    /// # Errors
    /// The API does not answer, or refuses; a line for people.
    pub(super) async fn queue(&self, name: &str) -> Result<Option<QueueInfo>, String> {
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
        self.get(format!("queues/{}/{name}", self.vhost())).await
    }

    /// The queues of delayed delivery.
    ///
    /// # Errors
    /// As [`Management::queue`].
    pub(super) async fn levels(&self) -> Result<Vec<QueueInfo>, String> {
        let pattern = utf8_percent_encode(LEVELS, NON_ALPHANUMERIC);
        let path =
            format!("queues/{}?page=1&page_size=100&use_regex=true&name={pattern}", self.vhost());
        Ok(self.get::<Page>(path).await?.map_or_else(Vec::new, |page| page.items))
    }

    fn vhost(&self) -> String {
        utf8_percent_encode(&self.vhost, NON_ALPHANUMERIC).to_string()
    }

    async fn get<T>(&self, path: String) -> Result<Option<T>, String>
    where
        T: for<'de> Deserialize<'de> + Send + 'static,
    {
        let Self { base, authorization, .. } = self.clone();
        let asking = move || {
            let agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
            let agent: ureq::Agent = agent.into();
            let url = format!("{base}/api/{path}");
            let answer = agent.get(&url).header("Authorization", &authorization).call();
            match answer {
                Ok(mut answer) => {
                    answer.body_mut().read_json().map(Some).map_err(|error| error.to_string())
                }
                Err(ureq::Error::StatusCode(404)) => Ok(None),
                Err(error) => Err(format!("{base}: {error}")),
            }
        };
        tokio::task::spawn_blocking(asking).await.map_err(|error| error.to_string())?
    }
}
