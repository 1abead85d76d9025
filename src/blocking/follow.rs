//! The progress and stream entries of a task, as an iterator.

use super::Client;
use crate::backend::StreamEntry;
use crate::client;
use crate::error::Error;
use crate::task::TaskId;

impl Client {
    /// Follows the entries that a task writes, starting with the first; see [`crate::Client::follow`].
    ///
    /// ```no_run
    /// # fn example(client: countersign::blocking::Client) -> Result<(), countersign::Error> {
    /// for entry in client.follow(&"6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f".into()) {
    ///     println!("{}", entry?.value);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn follow(&self, id: &TaskId) -> Follow<'_> {
        Follow { client: self, follow: Some(self.client.follow(id)) }
    }
}

/// The entries of a task's stream as they arrive. It blocks until the next entry, and ends when the task
/// ends; see [`crate::Follow`].
#[derive(Debug)]
#[must_use = "nothing is read until an entry is requested"]
pub struct Follow<'c> {
    client: &'c Client,
    /// `None` once the client is closed.
    follow: Option<client::Follow>,
}

impl Follow<'_> {
    /// Starts with this entry instead. Skips entries that the stream no longer has.
    pub fn from(self, number: u64) -> Self {
        Self { follow: self.follow.map(|follow| follow.from(number)), ..self }
    }

    /// Starts with the next entry that is written.
    pub fn live(self) -> Self {
        Self { follow: self.follow.map(client::Follow::live), ..self }
    }
}

impl Iterator for Follow<'_> {
    type Item = Result<StreamEntry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut follow = self.follow.take()?;
        let next = self.client.wait(async move { (follow.next().await, follow) });
        match next {
            Ok((entry, follow)) => {
                self.follow = Some(follow);
                entry
            }
            Err(error) => Some(Err(error)),
        }
    }
}
