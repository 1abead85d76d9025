//! Idempotency keys, stored as marks: `unsent <id>` before the publish, `sent <id>` after it.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::marks;
use super::store::EmbeddedStore;
use crate::backend::milliseconds::milliseconds;
use crate::backend::{IdempotencyEntry, IdempotencyKeys};
use crate::error::{Error, Kind};
use crate::task::TaskId;

impl IdempotencyKeys for EmbeddedStore {
    fn claim_key(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<IdempotencyEntry, Error>> {
        let (name, id) = (name(key), id.clone());
        Box::pin(self.db.write(move |txn| {
            if marks::claim(txn, &name, &format!("unsent {id}"), milliseconds(keep))? {
                return Ok(IdempotencyEntry { id: id.clone(), sent: false });
            }
            let value = marks::get(txn, &name)?.unwrap_or_default();
            match value.split_once(' ') {
                Some((sent, id)) => {
                    Ok(IdempotencyEntry { id: TaskId::from(id), sent: sent == "sent" })
                }
                None => Err(unreadable(&name).into()),
            }
        }))
    }

    fn mark_key_sent(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let (name, id) = (name(key), id.clone());
        Box::pin(self.db.write(move |txn| match marks::get(txn, &name)? {
            Some(value) if value != format!("unsent {id}") => Ok(()),
            _ => marks::set(txn, &name, &format!("sent {id}"), milliseconds(keep)),
        }))
    }
}

fn name(key: &str) -> String {
    format!("key:{key}")
}

fn unreadable(name: &str) -> Error {
    let what = format!("idempotency key {:?}", name.trim_start_matches("key:"));
    let cause = "unknown format; another program may have written it".to_owned();
    Kind::Codec { what, cause }.into()
}
