use serde_json::json;

use super::*;
use crate::approval::Action;

fn payment(cents: impl Into<Value>) -> ApprovalRequest {
    let cents = cents.into();
    ApprovalRequest {
        task_name: Some("billing.refund".into()),
        action: Action { name: "bank.pay".into(), version: 1, args: json!({"cents": cents}) },
        requester: Some("rita".into()),
        ..ApprovalRequest::new("Pay?")
    }
}

fn policy(then: PolicyAction) -> AutoPolicy {
    AutoPolicy {
        name: "small".into(),
        task: None,
        action: None,
        requester: None,
        max_risk: None,
        min: BTreeMap::new(),
        max: BTreeMap::new(),
        in_quorum: false,
        then,
        reason: None,
    }
}

#[test]
fn a_star_matches_any_text() {
    for (pattern, text, fits) in [
        ("bank.pay", "bank.pay", true),
        ("bank.pay", "bank.payout", false),
        ("bank.*", "bank.", true),
        ("bank.*", "abank.pay", false),
        ("*.pay", "bank.pay", true),
        ("*.pay", "bank.payee", false),
        ("b*k*y", "bank.pay", true),
        ("b*k*k", "bank", false),
        ("a*a", "a", false),
        ("**", "", true),
        ("", "", true),
        ("", "a", false),
        ("ä*ö", "äüö", true),
    ] {
        assert_eq!(is_like(pattern, text), fits, "{pattern} and {text}");
    }
}

#[test]
fn all_given_conditions_must_match() {
    let all = AutoPolicy {
        task: Some("billing.*".into()),
        action: Some("bank.pay".into()),
        requester: Some("r*".into()),
        max_risk: Some(Risk::Medium),
        max: [("/cents".to_owned(), 5000.into())].into(),
        min: [("/cents".to_owned(), 1.into())].into(),
        ..policy(PolicyAction::Approve)
    };
    assert!(all.matches(&payment(json!(5000))));
    assert!(all.matches(&payment(json!(4999.5))));
    for cents in [json!(5001), json!(0), json!("5"), json!(null), json!(5000.01)] {
        assert!(!all.matches(&payment(cents.clone())), "{cents}");
    }
    let fitting = payment(json!(1));
    assert!(!all.matches(&ApprovalRequest { task_name: None, ..fitting.clone() }));
    assert!(!all.matches(&ApprovalRequest { requester: None, ..fitting.clone() }));
    assert!(!all.matches(&ApprovalRequest { risk: Risk::High, ..fitting.clone() }));
    let huge = AutoPolicy {
        max: [("/cents".to_owned(), 9_007_199_254_740_992_u64.into())].into(),
        ..policy(PolicyAction::Approve)
    };
    assert!(!huge.matches(&payment(json!(9_007_199_254_740_993_u64))), "as whole numbers");
}

#[test]
fn irreversible_actions_are_approved_only_explicitly() {
    let request = ApprovalRequest { risk: Risk::Irreversible, ..payment(json!(1)) };
    assert!(!policy(PolicyAction::Approve).matches(&request));
    assert!(policy(PolicyAction::Reject).matches(&request));
    assert!(policy(PolicyAction::Ask).matches(&request));
    let explicit =
        AutoPolicy { max_risk: Some(Risk::Irreversible), ..policy(PolicyAction::Approve) };
    assert!(explicit.matches(&request));
}

#[test]
fn the_first_matching_policy_decides_and_its_decision_is_stable() {
    let other = AutoPolicy { action: Some("other".into()), ..policy(PolicyAction::Reject) };
    let asks = AutoPolicy { requester: Some("bob".into()), ..policy(PolicyAction::Ask) };
    let policies = [other, asks, policy(PolicyAction::Approve)];
    let decided = AutoPolicy::decide(&policies, &payment(json!(1))).unwrap();
    assert_eq!((decided.by.as_str(), decided.choice), ("policy:small", DecisionKind::Approve));
    assert_eq!(AutoPolicy::decide(&policies, &payment(json!(1))).unwrap().id, decided.id);
    let bobs = ApprovalRequest { requester: Some("bob".into()), ..payment(json!(1)) };
    assert_eq!(AutoPolicy::decide(&policies, &bobs), None);
    assert_eq!(AutoPolicy::decide(&[], &bobs), None);
}

/// Returns the deciding rule and its decision on a payment. `None`: the approvers decide.
fn decided(policies: &[AutoPolicy], request: &ApprovalRequest) -> Option<(String, DecisionKind)> {
    let decision = AutoPolicy::decide(policies, request)?;
    Some((decision.by, decision.choice))
}

#[test]
fn an_unreadable_operand_matches_a_guard_and_never_an_approval() {
    let guard = |then| AutoPolicy {
        name: "guard".into(),
        min: [("/cents".to_owned(), 20_000.into())].into(),
        reason: Some("too much".into()),
        ..policy(then)
    };
    let rejected = Some(("policy:guard".to_owned(), DecisionKind::Reject));
    let approved = Some(("policy:small".to_owned(), DecisionKind::Approve));
    let with = |args| ApprovalRequest {
        action: Action { name: "bank.pay".into(), version: 1, args },
        ..payment(json!(1))
    };
    for args in [
        json!({}),
        json!(null),
        json!([25_000]),
        json!({"cents": "25000"}),
        json!({"cents": null}),
        json!({"cents": true}),
        json!({"cents": [25_000]}),
        json!({"cents": 1e300}),
    ] {
        let request = with(args.clone());
        let asks = [guard(PolicyAction::Ask), policy(PolicyAction::Approve)];
        assert_eq!(decided(&asks, &request), None, "{args}");
        let rejects = [guard(PolicyAction::Reject), policy(PolicyAction::Approve)];
        assert_eq!(decided(&rejects, &request), rejected, "{args}");
        assert_eq!(decided(&[guard(PolicyAction::Approve)], &request), None, "{args}");
        let below = AutoPolicy {
            min: [].into(),
            max: guard(PolicyAction::Ask).min,
            ..policy(PolicyAction::Approve)
        };
        assert_eq!(decided(&[below], &request), None, "{args}");
    }
    let rejects = [guard(PolicyAction::Reject), policy(PolicyAction::Approve)];
    assert_eq!(decided(&rejects, &with(json!({"cents": 19_999}))), approved);
    assert_eq!(decided(&rejects, &with(json!({"cents": 20_000}))), rejected);
    let of_interns = AutoPolicy { requester: Some("intern*".into()), ..policy(PolicyAction::Ask) };
    let unnamed = ApprovalRequest { requester: None, ..payment(json!(1)) };
    assert_eq!(decided(&[of_interns.clone(), policy(PolicyAction::Approve)], &unnamed), None);
    assert_eq!(decided(&[of_interns, policy(PolicyAction::Approve)], &payment(json!(1))), approved);
}

#[test]
fn a_maximum_alone_approves_no_negative_value() {
    let most = |then| AutoPolicy {
        max: [("/cents".to_owned(), 100.into())].into(),
        reason: Some("no".into()),
        ..policy(then)
    };
    for (cents, is_approved) in [(json!(-1), false), (json!(-0.5), false), (json!(0), true)] {
        assert_eq!(
            most(PolicyAction::Approve).matches(&payment(cents.clone())),
            is_approved,
            "{cents}"
        );
        assert!(most(PolicyAction::Reject).matches(&payment(cents.clone())), "{cents}");
    }
    let refunds = AutoPolicy {
        min: [("/cents".to_owned(), (-100).into())].into(),
        ..most(PolicyAction::Approve)
    };
    assert!(refunds.matches(&payment(json!(-100))) && !refunds.matches(&payment(json!(-101))));
}

#[test]
fn whole_numbers_are_compared_exactly_with_fractions_too() {
    let at_most = |bound: Number| AutoPolicy {
        max: [("/cents".to_owned(), bound)].into(),
        ..policy(PolicyAction::Approve)
    };
    let bound = Number::from_f64(9_007_199_254_740_992.0).unwrap();
    assert!(at_most(bound.clone()).matches(&payment(json!(9_007_199_254_740_992_u64))));
    assert!(!at_most(bound).matches(&payment(json!(9_007_199_254_740_993_u64))));
    let half = Number::from_f64(0.5).unwrap();
    assert!(!at_most(half.clone()).matches(&payment(json!(1))));
    assert!(at_most(half).matches(&payment(json!(0))));
    assert!(!at_most(u64::MAX.into()).matches(&payment(json!(18_446_744_073_709_551_616.0))));
}
