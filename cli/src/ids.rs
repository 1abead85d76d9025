//! Ids on the command line: complete, or the beginning that a table shows.

use std::collections::BTreeSet;

use countersign::approval::ApprovalId;
use countersign::cli::plain::plain;
use countersign::client::{Client, DeadLetters};
use countersign::error::Error;
use countersign::task::TaskId;
use countersign::unstable::decision_error;

use crate::table::begins_uuid;

/// The minimum length of an abbreviated id.
const SHORTEST: usize = 4;
/// The number of matches that an error lists.
const LISTED: usize = 10;
/// The number of dead letters that are searched.
const LETTERS: usize = 10_000;

/// Returns the task with this id, or the only task known to the store whose id begins with it. If no known id
/// begins with it, the text itself is the id: the store does not know tasks that still wait in their queue.
///
/// # Errors
/// If several ids begin with the text, or the store does not answer.
pub(crate) async fn task(client: &Client, text: &str) -> Result<TaskId, Error> {
    let (id, store) = (TaskId::from(text), &client.backends().store);
    if !is_beginning(text)
        || store.read_result(&id).await?.is_some()
        || store.suspended_task(&id).await?.is_some()
    {
        return Ok(id);
    }
    let mut found: BTreeSet<_> = store.task_ids(text, LISTED + 1).await?.into_iter().collect();
    let workers = store.list_workers().await?;
    found.extend(workers.into_iter().flat_map(|it| it.long_running).map(|running| running.id));
    choose(text, found.iter().map(TaskId::as_str), "tasks").map(|it| it.map_or(id, TaskId::from))
}

/// The same for several ids.
pub(crate) async fn tasks(client: &Client, texts: &[String]) -> Result<Vec<TaskId>, Error> {
    let mut ids = Vec::with_capacity(texts.len());
    for text in texts {
        ids.push(task(client, text).await?);
    }
    Ok(ids)
}

/// Returns the approval with this id, or the only one whose id begins with it.
///
/// # Errors
/// If no id or several ids begin with the text, or the store does not answer.
pub(crate) async fn approval(client: &Client, text: &str) -> Result<ApprovalId, Error> {
    if let Some(id) = ApprovalId::parse(text) {
        return Ok(id);
    }
    let digits = text.strip_prefix("ap_").unwrap_or_default();
    if digits.len() >= SHORTEST && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        let found = client.backends().store.approval_ids(text, LISTED + 1).await?;
        let found = choose(text, found.iter().map(ApprovalId::as_str), "approvals")?;
        if let Some(id) = found.as_deref().and_then(ApprovalId::parse) {
            return Ok(id);
        }
    }
    let fault = format!(
        "{}: no approval request has this id; an id is ap_ and 40 digits, or ap_ and at least {SHORTEST} \
         of them",
        plain(text)
    );
    Err(decision_error(fault))
}

/// Returns the task of one of these dead letters, by its id or the beginning of it.
///
/// # Errors
/// If several ids begin with the text, or the broker does not answer.
pub(crate) async fn dead_letter(letters: &DeadLetters, text: &str) -> Result<TaskId, Error> {
    let id = TaskId::from(text);
    if !is_beginning(text) {
        return Ok(id);
    }
    let ids = letters.browse(LETTERS).await?.into_iter().map(|letter| letter.id);
    let ids: BTreeSet<_> = ids.collect();
    if ids.contains(&id) {
        return Ok(id);
    }
    let found = choose(text, ids.iter().map(TaskId::as_str), "dead letters")?;
    Ok(found.map_or(id, TaskId::from))
}

/// Only UUIDs may be abbreviated: an application's own id is always complete.
fn is_beginning(text: &str) -> bool {
    (SHORTEST..36).contains(&text.len()) && begins_uuid(text)
}

/// Returns the only id that begins with the text; `None` if there is none.
fn choose<'i>(
    text: &str,
    ids: impl Iterator<Item = &'i str>,
    what: &str,
) -> Result<Option<String>, Error> {
    let is_match = |id: &&str| {
        id.starts_with(text) && (id.starts_with("ap_") || (id.len() == 36 && begins_uuid(id)))
    };
    let found: Vec<_> = ids.filter(is_match).collect();
    match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.to_owned())),
        _ => {
            let mut listed = found.iter().take(LISTED).copied().collect::<Vec<_>>().join("\n  ");
            if found.len() > LISTED {
                listed.push_str("\n  …");
            }
            let fault = format!("{text} is ambiguous: several {what} begin with it:\n  {listed}");
            Err(decision_error(fault))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 3] = [
        "6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f",
        "6f1f3c1e-6daa-4f0f-9e3b-2f0a4c7d8e9f",
        "6f1f3c1e-own",
    ];

    #[test]
    fn a_prefix_selects_the_only_id_that_begins_with_it() {
        let choose = |text| choose(text, IDS.into_iter(), "tasks");
        assert_eq!(choose("6f1f3c1e-6d9").unwrap().as_deref(), Some(IDS[0]));
        assert_eq!(choose("6f1f3c1e-7").unwrap(), None);
        let error = choose("6f1f").unwrap_err().to_string();
        assert!(error.contains(IDS[0]) && error.contains(IDS[1]) && !error.contains(IDS[2]));
        assert!(is_beginning("6f1f") && !is_beginning("6f1") && !is_beginning("order-1"));
        assert!(!is_beginning(IDS[0]), "it is complete");
    }
}
