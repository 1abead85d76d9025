//! Turns signatures into the envelopes to send.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::{Child, FollowUp, FollowUps};
use crate::error::Failure;
use crate::protocol::signature::{Kind, Signature, decode_error};
use crate::protocol::{Arguments, Envelope, Headers, Limits, Lineage};
use crate::task::TaskId;

/// Collects the tasks to send.
pub(super) struct Plan<'a> {
    task: &'a Envelope,
    now: Timestamp,
    pub(super) follow_ups: FollowUps,
}

impl<'a> Plan<'a> {
    pub(super) fn new(task: &'a Envelope, now: Timestamp) -> Self {
        Self { task, now, follow_ups: FollowUps::default() }
    }

    /// Adds one signature, which gets `arguments` in front of its own, and is followed by `rest`.
    pub(super) fn add(
        &mut self,
        signature: Signature,
        place: &str,
        arguments: &[Box<RawValue>],
        rest: &[Box<RawValue>],
    ) -> Result<(), Failure> {
        let child = self.start(signature, place, arguments, rest)?;
        self.follow_ups.children.extend(child.map(Child::first));
        Ok(())
    }

    /// Adds signatures as one group.
    pub(super) fn add_together(
        &mut self,
        members: Vec<Signature>,
        place: &str,
        arguments: &[Box<RawValue>],
    ) -> Result<(), Failure> {
        if members.is_empty() {
            return Ok(());
        }
        let id = TaskId::derived(&self.task.id, place);
        let group = self.members(&id, members, place, arguments)?;
        self.follow_ups.children.push(group);
        Ok(())
    }

    fn start(
        &mut self,
        signature: Signature,
        place: &str,
        arguments: &[Box<RawValue>],
        rest: &[Box<RawValue>],
    ) -> Result<Option<Child>, Failure> {
        match signature.kind() {
            Kind::Task => self.send(signature, place, arguments, rest).map(Some),
            Kind::Chain => self.chain(signature, place, arguments, rest),
            Kind::Group => self.group(&signature, place, arguments, rest),
            Kind::Chord => Err(unsupported("a callback is a chord")),
        }
    }

    /// Sends the first task of a chain; the others follow it through its `embed`. The result of the chain is
    /// that of its last task.
    fn chain(
        &mut self,
        chain: Signature,
        place: &str,
        arguments: &[Box<RawValue>],
        rest: &[Box<RawValue>],
    ) -> Result<Option<Child>, Failure> {
        let mut steps = Vec::new();
        flatten(chain.parts()?, &mut steps)?;
        let inherited = [chain.signatures("link_error")?, chain.signatures("link")?];
        let Some(last) = steps.last_mut() else { return Ok(None) };
        for name in ["task_id", "group_id", "group_index", "chord"] {
            if let Some(value) = chain.options.get(name).filter(|value| value.get() != "null") {
                last.set_missing(name, value)?;
            }
        }
        last.extend("link", &inherited[1])?;
        let mut result = None;
        for (number, step) in steps.iter_mut().enumerate() {
            step.extend("link_error", &inherited[0])?;
            let id = step.id()?.unwrap_or_else(|| self.derived(&format!("{place}/{number}")));
            step.set("task_id", &id)?;
            result = Some(Child { parent: result.map(Box::new), ..Child::of(id, step)? });
        }
        let mut first = steps.remove(0);
        let of_last = ["task_id", "group_id", "group_index", "chord", "link", "link_error"];
        for (name, value) in chain.options {
            if value.get() != "null" && !of_last.contains(&name.as_str()) {
                first.options.insert(name, value);
            }
        }
        let mut later = rest.to_vec();
        for step in steps.iter().rev() {
            later.push(step.write()?);
        }
        let mut args = if chain.immutable { Vec::new() } else { arguments.to_vec() };
        args.extend(chain.args);
        self.start(first, place, &args, &later)?;
        Ok(result)
    }

    fn group(
        &mut self,
        group: &Signature,
        place: &str,
        arguments: &[Box<RawValue>],
        rest: &[Box<RawValue>],
    ) -> Result<Option<Child>, Failure> {
        if !rest.is_empty() || group.option::<Value>("chord")?.is_some() {
            return Err(unsupported("a callback is a group with a chord body"));
        }
        let id = group.id()?.unwrap_or_else(|| self.derived(place));
        let mut members = Vec::new();
        unroll(group.parts()?, &mut members)?;
        for member in &mut members {
            let options = group.options.iter().filter(|(name, _)| *name != "task_id");
            let options = options.filter(|(_, value)| value.get() != "null");
            member.options.extend(options.map(|(name, value)| (name.clone(), value.clone())));
        }
        let arguments = if group.immutable { &[] } else { arguments };
        self.members(&id, members, place, arguments).map(Some)
    }

    /// Sends the members of a group.
    fn members(
        &mut self,
        id: &TaskId,
        members: Vec<Signature>,
        place: &str,
        arguments: &[Box<RawValue>],
    ) -> Result<Child, Failure> {
        let mut children = Vec::with_capacity(members.len());
        for (index, mut member) in members.into_iter().enumerate() {
            if member.option::<Value>("chord")?.is_some() {
                return Err(unsupported("a callback is part of the header of a chord"));
            }
            member.set_missing("group_id", id)?;
            member.set("group_index", &index)?;
            let place = format!("{place}/{index}");
            children.extend(self.start(member, &place, arguments, &[])?);
        }
        Ok(Child { id: id.clone(), parent: None, members: Some(children) })
    }

    fn send(
        &mut self,
        signature: Signature,
        place: &str,
        arguments: &[Box<RawValue>],
        rest: &[Box<RawValue>],
    ) -> Result<Child, Failure> {
        let id = signature.id()?.unwrap_or_else(|| self.derived(place));
        let queue = queue(&signature)?;
        let envelope = self.envelope(id.clone(), signature, arguments, rest)?;
        self.follow_ups.tasks.push(FollowUp { envelope, queue });
        Ok(Child { id, parent: None, members: None })
    }

    fn envelope(
        &self,
        id: TaskId,
        signature: Signature,
        arguments: &[Box<RawValue>],
        rest: &[Box<RawValue>],
    ) -> Result<Envelope, Failure> {
        let soft = seconds(signature.option("soft_time_limit")?);
        let hard = seconds(signature.option("time_limit")?);
        let root = self.task.lineage.root_id.as_ref().unwrap_or(&self.task.id);
        let eta = signature.time("eta", self.now)?;
        let mut envelope = Envelope::new(signature.task.as_str(), Arguments::default());
        envelope.id = id;
        envelope.embed = embed(&signature, rest)?;
        envelope.attempt = signature.option::<u32>("retries")?.unwrap_or(0).saturating_add(1);
        envelope.eta = signature.time("countdown", self.now)?.or(eta);
        envelope.expires = signature.time("expires", self.now)?;
        envelope.limits = Limits { soft, hard };
        envelope.lineage = Lineage {
            root_id: Some(root.clone()),
            parent_id: Some(self.task.id.clone()),
            group_id: signature.option("group_id")?,
            group_index: signature.option("group_index")?,
        };
        envelope.ignore_result = signature.option("ignore_result")?.unwrap_or(false);
        envelope.reply_to = signature.option("reply_to")?;
        envelope.priority = signature.option("priority")?.unwrap_or(0);
        envelope.compressed = signature.option::<Value>("compression")?.is_some();
        envelope.headers = custom_headers(&signature)?.into();
        let mut args = if signature.immutable { Vec::new() } else { arguments.to_vec() };
        args.extend(signature.args);
        envelope.arguments = Arguments { args, kwargs: signature.kwargs };
        Ok(envelope)
    }

    fn derived(&self, place: &str) -> TaskId {
        TaskId::derived(&self.task.id, place)
    }
}

/// Flattens nested chains into steps. A group of one task becomes that task.
fn flatten(parts: Vec<Signature>, steps: &mut Vec<Signature>) -> Result<(), Failure> {
    for part in parts {
        match part.kind() {
            Kind::Chain => flatten(part.parts()?, steps)?,
            Kind::Group => match part.parts()?.as_slice() {
                [only] => flatten(vec![only.clone()], steps)?,
                _ => steps.push(part),
            },
            Kind::Task | Kind::Chord => steps.push(part),
        }
    }
    Ok(())
}

/// Flattens nested groups into members.
fn unroll(parts: Vec<Signature>, members: &mut Vec<Signature>) -> Result<(), Failure> {
    for part in parts {
        match part.kind() {
            Kind::Group => unroll(part.parts()?, members)?,
            Kind::Task | Kind::Chain | Kind::Chord => members.push(part),
        }
    }
    Ok(())
}

/// Returns the queue that a signature names. By Celery's convention an exchange has the name of its queue.
fn queue(signature: &Signature) -> Result<Option<String>, Failure> {
    let name = |option| Ok(signature.option::<String>(option)?.filter(|name| !name.is_empty()));
    let queue = name("queue")?.or(name("routing_key")?);
    match name("exchange")? {
        Some(exchange) if queue.as_ref().is_some_and(|queue| *queue != exchange) => {
            Err(unsupported(&format!("a callback names exchange {exchange:?}")))
        }
        exchange => Ok(queue.or(exchange)),
    }
}

/// Returns the headers without an envelope field of their own: those set by the producer, and the stamps.
fn custom_headers(signature: &Signature) -> Result<Headers, Failure> {
    let mut headers: Headers = signature.option("headers")?.unwrap_or_default();
    for name in ["shadow", "replaced_task_nesting", "stamped_headers"] {
        if let Some(value) = signature.option::<Value>(name)? {
            headers.insert(name.to_owned(), value);
        }
    }
    let mut stamps = Map::new();
    for name in signature.option::<Vec<String>>("stamped_headers")?.unwrap_or_default() {
        let value = signature.option(&name)?.unwrap_or(Value::Null);
        stamps.insert(name, value);
    }
    if !stamps.is_empty() {
        headers.insert("stamps".to_owned(), Value::Object(stamps));
    }
    Ok(headers)
}

/// Creates the `embed` of a task that is made from a signature.
fn embed(signature: &Signature, rest: &[Box<RawValue>]) -> Result<Box<RawValue>, Failure> {
    let some = |list: Vec<Box<RawValue>>| (!list.is_empty()).then_some(list);
    let chain = if rest.is_empty() { signature.signatures("chain")? } else { rest.to_vec() };
    let written = Embedded {
        callbacks: some(signature.signatures("link")?),
        errbacks: some(signature.signatures("link_error")?),
        chain: some(chain),
        chord: signature.options.get("chord").map(|json| &**json),
    };
    to_raw_value(&written).map_err(|error| decode_error("a callback", &error))
}

#[derive(Serialize)]
struct Embedded<'a> {
    callbacks: Option<Vec<Box<RawValue>>>,
    errbacks: Option<Vec<Box<RawValue>>>,
    chain: Option<Vec<Box<RawValue>>>,
    chord: Option<&'a RawValue>,
}

fn seconds(limit: Option<f64>) -> Option<Duration> {
    limit.and_then(|limit| Duration::try_from_secs_f64(limit).ok()).filter(|it| !it.is_zero())
}

pub(super) fn unsupported(what: &str) -> Failure {
    let message =
        format!("{what}, which Countersign does not support: run this workflow in Celery");
    Failure::new("builtins", "NotImplementedError", message)
}
