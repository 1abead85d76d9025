"""Delays, deadlines and retries of unmodified Celery clients."""
import time
from datetime import datetime, timedelta, timezone

import pytest
from celery.exceptions import TaskRevokedError
from conftest import TIMEOUT


def test_a_countdown_is_waited_for(app):
    begun = time.monotonic()
    result = app.send_task("demo.add", (1, 2), countdown=2)
    assert result.get(timeout=TIMEOUT) == 3
    assert time.monotonic() - begun >= 1.9


def test_an_eta_with_a_foreign_offset_is_that_moment(app):
    zone = timezone(timedelta(hours=5, minutes=45))
    begun = time.monotonic()
    due = datetime.now(zone) + timedelta(seconds=1.5)
    result = app.send_task("demo.add", (2, 2), eta=due)
    assert result.get(timeout=TIMEOUT) == 4
    assert time.monotonic() - begun >= 1.4


def test_an_eta_that_has_passed_means_now(app):
    result = app.send_task("demo.add", (2, 3), eta=datetime.now(timezone.utc) - timedelta(days=1))
    assert result.get(timeout=TIMEOUT) == 5


def test_tasks_that_wait_for_their_time_hold_no_slot(app):
    """Sixty delayed tasks are four times the prefetch. If the worker held them, they would block the rest."""
    late = [app.send_task("demo.add", (n, 0), countdown=4) for n in range(60)]
    assert app.send_task("demo.add", (1, 1)).get(timeout=TIMEOUT) == 2
    assert not any(result.ready() for result in late)
    assert [result.get(timeout=TIMEOUT) for result in late] == list(range(60))


def test_what_has_expired_is_revoked_and_not_run(app):
    result = app.send_task("demo.add", (1, 1), countdown=3, expires=1)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    assert result.state == "REVOKED"


def test_retries_are_visible_and_counted(app):
    result = app.send_task("demo.retry", (2, 1.2))
    deadline = time.monotonic() + TIMEOUT
    while result.state != "RETRY" and time.monotonic() < deadline:
        pass
    assert result.state == "RETRY"
    assert "retry 1 of 2" in str(result.info)
    assert result.get(timeout=TIMEOUT) == 2


def test_many_retries_survive_the_ladder(app):
    """RabbitMQ 3.10 drops a message as a cycle after more than two trips over several delay levels."""
    assert app.send_task("demo.retry", (4, 3.2)).get(timeout=60) == 4
