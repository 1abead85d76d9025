//! W3C trace context: the trace that a task belongs to (<https://www.w3.org/TR/trace-context/>).

use std::fmt;

use rand::Rng;
use serde_json::Value;

use crate::protocol::{Headers, Lineage, MessageHeaders};
use crate::task::TaskId;

const HEADER: &str = "traceparent";

tokio::task_local! {
    /// The run of a handler that this code is part of.
    pub(crate) static CURRENT: TraceScope;
}

/// The position of a run in its trace and in its tree of tasks.
#[derive(Clone, Debug)]
pub(crate) struct TraceScope {
    pub(crate) trace: TraceParent,
    pub(crate) task: TaskId,
    pub(crate) root: TaskId,
}

impl TraceScope {
    /// Writes the lineage and the trace of a new task: its parent is the run that this code is part of, if
    /// any.
    pub(crate) fn inherit(headers: &mut MessageHeaders, lineage: &mut Lineage) {
        let trace = CURRENT.try_with(|current| {
            lineage.parent_id = Some(current.task.clone());
            lineage.root_id = Some(current.root.clone());
            current.trace.child()
        });
        trace.unwrap_or_else(|_| TraceParent::root()).write(headers);
    }
}

/// A position in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceParent {
    trace_id: u128,
    parent_id: u64,
    flags: u8,
}

impl TraceParent {
    /// Parses the header in version 00, or in a later version that begins the same way. Returns `None`
    /// for other text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, parent, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let sized =
            version.len() == 2 && trace.len() == 32 && parent.len() == 16 && flags.len() == 2;
        let lower_hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
        if !sized || !lower_hex || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|&id| id != 0)?;
        let parent_id = u64::from_str_radix(parent, 16).ok().filter(|&id| id != 0)?;
        Some(Self { trace_id, parent_id, flags: u8::from_str_radix(flags, 16).ok()? })
    }

    pub(crate) fn read(headers: &MessageHeaders) -> Option<Self> {
        headers.text(HEADER).and_then(Self::parse)
    }

    pub(crate) fn write(self, headers: &mut Headers) {
        headers.insert(HEADER.into(), Value::String(self.to_string()));
    }

    pub(crate) fn root() -> Self {
        let mut rng = rand::rng();
        let trace_id = rng.random_range(1..=u128::MAX);
        Self { trace_id, parent_id: rng.random_range(1..=u64::MAX), flags: 0 }
    }

    /// Returns a new position below this one, in the same trace.
    pub(crate) fn child(self) -> Self {
        Self { parent_id: rand::rng().random_range(1..=u64::MAX), ..self }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.parent_id, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_stays_in_its_trace() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = TraceParent::parse(text).unwrap();
        assert_eq!(parent.to_string(), text);
        let child = parent.child();
        assert_eq!((child.trace_id, child.flags), (parent.trace_id, parent.flags));
        assert_ne!(child.parent_id, parent.parent_id);
    }

    #[test]
    fn an_invalid_traceparent_is_ignored() {
        for text in [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(text), None, "{text}");
        }
    }
}
