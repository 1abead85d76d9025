"""Delays, deadlines and retries, as unmodified Celery clients ask for them."""
import time
from datetime import datetime, timedelta, timezone

import pytest
from celery.exceptions import TaskRevokedError

PATIENCE = 30


def test_a_countdown_is_waited_for(app):
    begun = time.monotonic()
    result = app.send_task("demo.add", (1, 2), countdown=2)
    assert result.get(timeout=PATIENCE) == 3
    assert time.monotonic() - begun >= 1.9


def test_an_eta_with_a_foreign_offset_is_that_moment(app):
    zone = timezone(timedelta(hours=5, minutes=45))
    begun = time.monotonic()
    due = datetime.now(zone) + timedelta(seconds=1.5)
    result = app.send_task("demo.add", (2, 2), eta=due)
    assert result.get(timeout=PATIENCE) == 4
    assert time.monotonic() - begun >= 1.4


def test_an_eta_that_has_passed_means_now(app):
    result = app.send_task("demo.add", (2, 3), eta=datetime.now(timezone.utc) - timedelta(days=1))
    assert result.get(timeout=PATIENCE) == 5


def test_tasks_that_wait_for_their_time_hold_no_slot(app):
    """Sixty delayed tasks are four times the worker's prefetch: held ones would block the rest."""
    late = [app.send_task("demo.add", (n, 0), countdown=4) for n in range(60)]
    assert app.send_task("demo.add", (1, 1)).get(timeout=PATIENCE) == 2
    assert not any(result.ready() for result in late)
    assert [result.get(timeout=PATIENCE) for result in late] == list(range(60))


def test_what_has_expired_is_revoked_and_not_run(app):
    result = app.send_task("demo.add", (1, 1), countdown=3, expires=1)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    assert result.state == "REVOKED"


def test_retries_are_visible_and_counted(app):
    result = app.send_task("demo.retry", (2, 1.2))
    deadline = time.monotonic() + PATIENCE
    while result.state != "RETRY" and time.monotonic() < deadline:
        pass
    assert result.state == "RETRY"
    assert "retry 1 of 2" in str(result.info)
    assert result.get(timeout=PATIENCE) == 2


def test_many_retries_survive_the_ladder(app):
    """RabbitMQ 3.10 drops what it takes for a circle: more than two trips over several levels."""
    assert app.send_task("demo.retry", (4, 3.2)).get(timeout=60) == 4
