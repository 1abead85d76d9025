"""A task that waits for an approval, as an unmodified Celery client sees it."""
import json
import os
import subprocess
import time

import pytest
from conftest import DEMO, TIMEOUT

COMMAND = DEMO.with_name("countersign")


def countersign(*arguments):
    return subprocess.run([COMMAND, "-o", "json", *arguments], env=os.environ, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT)


def request_of(result):
    """Waits until Celery reports the state PARKED, and returns the task's approval request."""
    deadline = time.monotonic() + TIMEOUT
    while result.state != "PARKED" and time.monotonic() < deadline:
        pass
    assert result.state == "PARKED" and not result.ready()
    [approval] = result.info["approvals"]
    return json.loads(countersign("approvals", "get", approval).stdout)


def test_get_returns_after_an_approval(app):
    result = app.send_task("demo.refund", ("o-1", 50_000))
    request = request_of(result)
    assert request["title"] == "Refund 50000 cents for o-1?"
    assert request["action"]["args"] == {"order": "o-1", "cents": 50_000}
    unseen = countersign("approvals", "approve", request["id"], "--by", "ana", "--yes")
    assert unseen.returncode == 2, "--yes needs the digest"
    stale = countersign("approvals", "approve", request["id"], "--by", "ana", "--yes", "--digest", "0" * 64)
    assert stale.returncode == 1 and "has changed" in stale.stdout
    approved = countersign(
        "approvals", "approve", request["id"], "--by", "ana", "--yes", "--digest", request["digest"])
    assert approved.returncode == 0, approved
    assert result.get(timeout=TIMEOUT) == "refunded 50000 cents for o-1 (hold-o-1-50000)"
    late = countersign("approvals", "reject", request["id"], "--by", "bob", "-m", "no")
    assert late.returncode == 1 and "already decided: approve by ana" in late.stdout


def test_a_rejection_is_a_failure_with_its_reason(app):
    result = app.send_task("demo.refund", ("o-2", 50_000))
    request = request_of(result)
    rejected = countersign("approvals", "reject", request["id"], "--by", "ana", "-m", "no receipt")
    assert rejected.returncode == 0, rejected
    with pytest.raises(Exception, match="refused by ana: no receipt"):
        result.get(timeout=TIMEOUT)
    awaited = countersign("tasks", "result", result.id)
    assert awaited.returncode == 3


def test_a_small_refund_asks_nobody(app):
    assert app.send_task("demo.refund", ("o-3", 500)).get(timeout=TIMEOUT)
