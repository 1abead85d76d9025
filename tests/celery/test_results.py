"""The results that a plain Celery producer receives."""
import math
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from celery import group
from celery.exceptions import NotRegistered, TaskRevokedError, TimeoutError, TimeLimitExceeded

from conftest import TIMEOUT, celery_app


def test_a_result_comes_back(app):
    sent = app.send_task("demo.add", (2, 3))
    assert sent.get(timeout=TIMEOUT) == 5
    assert sent.state == "SUCCESS"


def test_arguments_may_be_positional_named_or_mixed(app):
    for args, kwargs in [((2, 3), {}), ((), {"x": 2, "y": 3}), ((2,), {"y": 3})]:
        assert app.send_task("demo.add", args, kwargs).get(timeout=TIMEOUT) == 5


def test_a_signature_is_as_good_as_a_name(app):
    assert app.signature("demo.tsum", ([1, 2, 3],)).delay().get(timeout=TIMEOUT) == 6


def test_a_failure_keeps_its_type_and_message(app):
    sent = app.send_task("demo.fail", ("no luck",))
    with pytest.raises(ValueError) as raised:
        sent.get(timeout=TIMEOUT)
    assert raised.value.args == ("no luck",)
    assert sent.state == "FAILURE"
    error, location = sent.traceback.splitlines()
    assert error == "ValueError: no luck"
    assert "demo/src/tasks/fail.rs:" in location


def test_a_long_task_is_started_and_get_waits_for_its_end(app):
    sent = app.send_task("demo.sleep", (3,))
    deadline = time.monotonic() + TIMEOUT
    while sent.state != "STARTED" and time.monotonic() < deadline:
        pass
    assert sent.state == "STARTED" and not sent.ready()
    assert set(sent.info) == {"pid", "hostname"} and sent.info["hostname"].endswith("@celery-test")
    assert sent.get(timeout=TIMEOUT) == 3
    assert sent.state == "SUCCESS"


def test_an_unknown_task_is_not_registered_and_a_dead_letter(app, dead_letter):
    sent = app.send_task("demo.unknown", (1,))
    with pytest.raises(NotRegistered):
        sent.get(timeout=TIMEOUT)
    properties, _ = dead_letter(lambda properties, _: properties.correlation_id == sent.id)
    assert "demo.unknown" in properties.headers["x-countersign-reason"]
    assert properties.headers["task"] == "demo.unknown"


@pytest.mark.parametrize("args, kwargs, complaint", [
    ((2,), {}, "missing"),
    ((), {}, "missing"),
    ((2, 3, 4), {}, "positional"),
    ((2, 3), {"z": 4}, "unexpected keyword"),
    ((2, 3), {"x": 4}, "multiple values"),
])
def test_wrong_arguments_are_a_type_error(app, args, kwargs, complaint):
    with pytest.raises(TypeError, match=complaint):
        app.send_task("demo.add", args, kwargs).get(timeout=TIMEOUT)


def test_an_ignored_result_is_not_stored(app, queue):
    key = f"mark-{queue}"
    ignored = app.send_task("demo.mark", (key, "ran"), ignore_result=True)
    marks = app.backend.client
    assert marks.blpop([key], timeout=TIMEOUT) == (key.encode(), b"ran")
    after = app.send_task("demo.add", (1, 1))
    assert after.get(timeout=TIMEOUT) == 2
    assert marks.get(f"celery-task-meta-{ignored.id}") is None
    assert marks.get(f"celery-task-meta-{after.id}") is not None


def test_text_of_every_script_comes_back_as_it_was(app):
    kwargs = {"grüße": "žluťoučký 🐎", "名前": ["日本語", {"ключ": "\u0000\u2028"}]}
    echoed = app.send_task("demo.echo", ("ß",), kwargs).get(timeout=TIMEOUT)
    assert echoed == {"args": ["ß"], "kwargs": kwargs}


def test_dates_ids_and_decimals_come_back_as_what_they_were(app):
    args = [datetime(2026, 2, 28, 12, 30, tzinfo=timezone.utc), uuid.uuid4(), Decimal("1.10")]
    echoed = app.send_task("demo.echo", args).get(timeout=TIMEOUT)
    assert echoed["args"] == args
    assert [type(value) for value in echoed["args"]] == [datetime, uuid.UUID, Decimal]


def test_a_group_of_a_hundred_answers_in_its_order(app):
    tasks = group(app.signature("demo.add", (n, n)) for n in range(100))
    assert tasks.apply_async().get(timeout=TIMEOUT) == [2 * n for n in range(100)]


@pytest.mark.parametrize("number", [2**64, -(2**80), 10**300])
def test_a_big_integer_harms_nobody(app, number):
    hurt = app.send_task("demo.echo", (number,))
    assert app.send_task("demo.add", (1, 2)).get(timeout=TIMEOUT) == 3
    answer = hurt.get(timeout=TIMEOUT, propagate=False)
    assert isinstance(answer, Exception) or answer["args"] == [number]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_fails_its_own_task_only(app, number):
    hurt = app.send_task("demo.add", (number, 1))
    assert app.send_task("demo.add", (1, 2)).get(timeout=TIMEOUT) == 3
    hurt.get(timeout=TIMEOUT, propagate=False)
    assert hurt.state == "FAILURE"


@pytest.mark.parametrize("compression", ["zlib", "gzip"])
def test_a_compressed_message_is_read(app, compression):
    text = "long " * 10_000
    echoed = app.send_task("demo.echo", (text,), compression=compression).get(timeout=TIMEOUT)
    assert echoed["args"] == [text]


def test_an_expired_task_is_revoked_and_not_run(app, broker, queue):
    # Only the header sets the expiry. With a message TTL the broker would drop the task without a result.
    key = f"expired-{queue}"
    past = datetime.now(timezone.utc) - timedelta(hours=1)
    with app.producer_pool.acquire() as producer:
        task_id = str(uuid.uuid4())
        sent = app.AsyncResult(task_id)
        app.backend.add_pending_result(sent)
        message = app.amqp.as_task_v2(task_id, "demo.mark", (key, "ran"), expires=past)
        producer.publish(message.body, routing_key=queue, exchange="", serializer="json",
                         headers=message.headers, correlation_id=task_id)
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=TIMEOUT)
    assert sent.state == "REVOKED"
    assert app.backend.client.llen(key) == 0


def test_a_hard_time_limit_of_the_caller_ends_the_task(app):
    sent = app.send_task("demo.sleep", (60,), time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        sent.get(timeout=TIMEOUT)


def test_a_task_that_still_runs_has_no_result_yet(app):
    sent = app.send_task("demo.sleep", (2,))
    with pytest.raises(TimeoutError):
        sent.get(timeout=0.2)
    sent.get(timeout=TIMEOUT)


def test_clients_do_not_get_each_others_results(queue, worker):
    wrong = []

    def produce(mine):
        app = celery_app(queue)
        sent = [(n, app.send_task("demo.add", (mine, n))) for n in range(25)]
        wrong.extend(n for n, task in sent if task.get(timeout=TIMEOUT) != mine + n)
        app.close()

    clients = [threading.Thread(target=produce, args=(1000 * n,)) for n in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(TIMEOUT)
    assert not any(client.is_alive() for client in clients)
    assert wrong == []
