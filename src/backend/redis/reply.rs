//! Replies of the server, and the errors in them.

use redis::{FromRedisValue, RedisError, Value};

use super::connection::error_text;
use crate::error::{Error, Kind};

/// Names the server in errors.
pub(super) fn peer(shown: &str) -> String {
    format!("Redis at {shown}")
}

pub(super) fn check_replies(
    shown: &str,
    replies: Result<Vec<Value>, RedisError>,
) -> Result<Vec<Value>, Error> {
    let failed = |cause: String| Error::new(Kind::Connection { peer: peer(shown), cause });
    let replies = replies.map_err(|error| failed(error.to_string()))?;
    match replies.iter().find_map(|reply| match reply {
        Value::ServerError(error) => Some(error),
        _ => None,
    }) {
        // The server replies, but another program has written the key with another type.
        Some(error) if error.code() == "WRONGTYPE" => {
            Err(Kind::Codec { what: "a record in Redis".into(), cause: error_text(error) }.into())
        }
        Some(error) => Err(failed(error_text(error))),
        None => Ok(replies),
    }
}

/// Decodes the last reply as a list of texts.
pub(super) fn texts(mut replies: Vec<Value>, what: &str) -> Result<Vec<String>, Error> {
    let list = replies.pop().map(Vec::<String>::from_redis_value);
    list.and_then(Result::ok).ok_or_else(|| {
        let cause = "unexpected reply: not a list of strings".to_owned();
        Kind::Codec { what: what.to_owned(), cause }.into()
    })
}
