//! Without the feature `schema`, no request may have a schema, and no edited arguments match one.

use serde_json::Value;

const MISSING: &str = "the request has a schema: build countersign with the feature `schema`";

/// Returns the error in a schema: this build cannot check it.
#[expect(clippy::unnecessary_wraps, reason = "the same signature as with the feature")]
pub(super) fn fault(_: &Value) -> Option<String> {
    Some(MISSING.to_owned())
}

/// Returns one text: the arguments cannot be checked, and are refused.
pub(super) fn violations(_: &Value, _: &Value) -> Vec<String> {
    vec![MISSING.to_owned()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::approval::ApprovalRequest;

    #[test]
    fn without_the_feature_a_schema_is_refused_and_no_argument_matches() {
        let schema = Some(json!({}));
        let request = ApprovalRequest { schema, ..ApprovalRequest::new("Pay?") };
        let fault = request.fault().unwrap_or_default();
        assert!(fault.contains("the feature `schema`"), "{fault}");
        let violations = request.schema_violations(&json!({"cents": 1}));
        assert!(violations.concat().contains("the feature `schema`"), "{violations:?}");
    }
}
