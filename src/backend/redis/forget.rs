//! The data that the runs of a task have left. The keys may be on several nodes of a cluster, so one
//! script cannot delete them.

use redis::{FromRedisValue, Pipeline, Value};

use super::store::RedisStore;
use super::{approval_records, attempts, index, journal, stream_entries};
use crate::error::Error;
use crate::task::TaskId;

/// Attempt claims deleted per round trip.
const ATTEMPTS: u64 = 100;

impl RedisStore {
    /// Whether a task without a result may be running: its runs have left data, and no suspension
    /// record exists.
    pub(super) async fn may_run(&self, id: &TaskId) -> Result<bool, Error> {
        let left =
            [journal::key(id), stream_entries::heads_key(id), approval_records::suspension_key(id)];
        let replies = self.request_with_timeout(move |_| {
            let mut exist = Pipeline::with_capacity(left.len());
            for key in left {
                exist.cmd("EXISTS").arg(key);
            }
            exist
        });
        let counts = replies.await?.into_iter().map(u8::from_redis_value);
        let counts: Vec<_> = counts.map(Result::unwrap_or_default).collect();
        Ok(matches!(counts[..], [journal, stream, 0] if journal + stream > 0))
    }

    pub(super) async fn delete_left(&self, id: &TaskId) -> Result<(), Error> {
        let left = [
            journal::key(id),
            stream_entries::key(id),
            stream_entries::heads_key(id),
            index::failed_key(id),
        ];
        let mut keys: Vec<_> = left.into_iter().chain([attempts::crash_key(id)]).collect();
        for first in (1..).step_by(usize::try_from(ATTEMPTS).unwrap_or(1)) {
            keys.extend((first..first + ATTEMPTS).map(|n| format!("cs:run:{id}:{n}")));
            let chunk = std::mem::take(&mut keys);
            let replies = self.request_with_timeout(move |_| {
                let mut delete = Pipeline::with_capacity(chunk.len());
                for key in chunk {
                    delete.cmd("DEL").arg(key);
                }
                delete
            });
            // Attempts are consecutive, so a missing last attempt ends the scan.
            if replies.await?.last() != Some(&Value::Int(1)) {
                return Ok(());
            }
        }
        Ok(())
    }
}
