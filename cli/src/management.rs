//! The parts of RabbitMQ's management API that `countersign doctor` uses.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::config::Config;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

const TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_PORT: u16 = 15672;
/// The queues of delayed delivery, Countersign's and Kombu's, and those of wake messages.
const LEVELS: &str = r"^(celery_delayed_|countersign_delay_)|\.countersign-wake-1(m|0m|h)$";

/// The API's URL and credentials.
#[derive(Clone)]
pub(crate) struct Management {
    base: String,
    authorization: String,
    vhost: String,
}

/// The API's data on a queue.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct QueueInfo {
    pub(crate) name: String,
    /// The policy that applies. The next field merges all policies that apply.
    pub(crate) policy: Option<String>,
    pub(crate) effective_policy_definition: Map<String, Value>,
    pub(crate) arguments: Map<String, Value>,
    /// Messages that wait for dead-lettering because no queue accepts them.
    pub(crate) messages_dlx: u64,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<QueueInfo>,
}

impl Management {
    /// Returns the API of the configured broker; `None` if its URL is invalid.
    pub(crate) fn of(config: &Config) -> Option<Self> {
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

    /// Returns a queue; `None` if there is none with this name.
    ///
    /// # Errors
    /// If the API does not answer, or refuses the request; the error is a readable message.
    pub(crate) async fn queue(&self, name: &str) -> Result<Option<QueueInfo>, String> {
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
        self.get(format!("queues/{}/{name}", self.vhost())).await
    }

    /// Returns the queues of delayed delivery.
    ///
    /// # Errors
    /// As [`Management::queue`].
    pub(crate) async fn levels(&self) -> Result<Vec<QueueInfo>, String> {
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
        let request = move || {
            let agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
            let agent: ureq::Agent = agent.into();
            let url = format!("{base}/api/{path}");
            let response = agent.get(&url).header("Authorization", &authorization).call();
            match response {
                Ok(mut response) => {
                    response.body_mut().read_json().map(Some).map_err(|error| error.to_string())
                }
                Err(ureq::Error::StatusCode(404)) => Ok(None),
                Err(error) => Err(format!("{base}: {error}")),
            }
        };
        tokio::task::spawn_blocking(request).await.map_err(|error| error.to_string())?
    }
}
