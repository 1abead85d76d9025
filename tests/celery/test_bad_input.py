"""Messages that are not valid tasks. The worker survives them, and reports the outcome of each."""
import json
import pickle
import uuid
import zlib

import pika
import pytest

from conftest import TIMEOUT

GOOD_BODY = json.dumps([[1, 2], {}, {}]).encode()


def publish(app, broker, queue, body, **properties):
    """Publishes as a foreign client would, with a readable id. Returns the waiting result.

    As every Celery client, it subscribes first: Celery never reads a missed result again.
    """
    task_id = str(uuid.uuid4())
    sent = app.AsyncResult(task_id)
    app.backend.add_pending_result(sent)
    properties = {
        "content_type": "application/json", "content_encoding": "utf-8", "delivery_mode": 2,
        "correlation_id": task_id, **properties,
        "headers": {"task": "demo.add", "id": task_id, **properties.get("headers", {})},
    }
    broker.basic_publish("", queue, body, pika.BasicProperties(**properties))
    return sent


BAD = {
    "text that is not JSON": (b"[[1, 2], {}", {}),
    "a body of the wrong shape": (b'{"args": [1, 2]}', {}),
    "arguments that are no array": (b'["12", {}, {}]', {}),
    "an empty body": (b"", {}),
    "invalid UTF-8": (b'[["\xff\xfe", 2], {}, {}]', {}),
    "a wrong content type": (GOOD_BODY, {"content_type": "text/plain"}),
    "pickle": (pickle.dumps([[1, 2], {}, {}]),
               {"content_type": "application/x-python-serialize", "content_encoding": "binary"}),
    "a body that is not as compressed as it says":
        (GOOD_BODY, {"headers": {"compression": "application/x-gzip"}}),
    "compressed and cut short": (
        zlib.compress(GOOD_BODY)[:-6], {"headers": {"compression": "application/x-gzip"}}),
    "a bomb of 64 MiB in 64 kB": (
        zlib.compress(b'[["' + b"x" * (64 << 20) + b'"], {}, {}]'),
        {"headers": {"compression": "application/x-gzip"}}),
    "an unknown compression": (GOOD_BODY, {"headers": {"compression": "application/x-nothing"}}),
    "a body nested ten thousand deep":
        (b'[[' + b"[" * 10_000 + b"]" * 10_000 + b', 2], {}, {}]', {}),
}


@pytest.mark.parametrize("what", BAD)
def test_it_is_a_dead_letter_with_its_reason_and_its_waiter_is_told(
        what, app, broker, queue, dead_letter):
    body, properties = BAD[what]
    sent = publish(app, broker, queue, body, **properties)
    letter, kept = dead_letter(lambda letter, _: letter.correlation_id == sent.id)
    assert kept == body
    assert letter.headers["x-countersign-reason"]
    assert isinstance(sent.get(timeout=TIMEOUT, propagate=False), Exception)
    assert sent.state == "FAILURE"
    assert app.send_task("demo.add", (1, 2)).get(timeout=TIMEOUT) == 3


WRONG_HEADERS = {
    "a task name that is a number": {"task": 7},
    "retries that are a text": {"retries": "many"},
    "retries below zero": {"retries": -4},
    "an expiry that is no time": {"expires": "tomorrow or so"},
    "an eta that is a table": {"eta": {"at": "noon"}},
    "a time limit that is a text": {"timelimit": "long"},
    "a group that is a list": {"group": [1, 2]},
    "an ignore_result that is a text": {"ignore_result": "perhaps"},
}


@pytest.mark.parametrize("what", WRONG_HEADERS)
def test_headers_of_wrong_types_leave_nobody_waiting(what, app, broker, queue):
    sent = publish(app, broker, queue, GOOD_BODY, headers=WRONG_HEADERS[what])
    sent.get(timeout=TIMEOUT, propagate=False)
    assert sent.state in ("SUCCESS", "FAILURE")
    assert app.send_task("demo.add", (1, 2)).get(timeout=TIMEOUT) == 3


def test_a_message_without_any_id_is_a_dead_letter(app, broker, queue, dead_letter):
    mark = uuid.uuid4().hex.encode()
    broker.basic_publish("", queue, mark)
    letter, _ = dead_letter(lambda _, body: body == mark)
    assert letter.headers["x-countersign-reason"]
    assert app.send_task("demo.add", (1, 2)).get(timeout=TIMEOUT) == 3


HOSTILE = {
    "a forged delivery count": {"x-delivery-count": 100},
    "a forged death": {"x-death": [{"count": 99, "reason": "expired", "queue": "x"}]},
    "negative retries": {"retries": -1},
    "garbage for an eta": {"eta": "soon"},
    "a table for an id": {"id": {"no": "id"}},
    "a number for a task": {"task": 7},
    "retries beyond all numbers": {"retries": 2 ** 62},
    "a header of 60 kB": {"argsrepr": "x" * 60_000},
    "headers of 120 kB": {f"h{n}": "x" * 1000 for n in range(118)},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers_hurt_nobody(what, app, broker, queue):
    headers = {"task": "demo.add", "id": f"hostile-{uuid.uuid4()}", "lang": "py", **HOSTILE[what]}
    publish(app, broker, queue, b"[[1, 2], {}, {}]", headers=headers)
    assert app.send_task("demo.add", (20, 22)).get(timeout=30) == 42


@pytest.mark.parametrize("size", [9 << 20, 15 << 20])
def test_a_body_over_our_limit_is_a_dead_letter(size, app, broker, queue, dead_letter):
    sent = publish(app, broker, queue, b'[["' + b"x" * size + b'"], {}, {}]')
    letter, _ = dead_letter(lambda letter, _: letter.correlation_id == sent.id)
    assert "limit" in letter.headers["x-countersign-reason"]
    with pytest.raises(Exception, match="limit"):
        sent.get(timeout=30)


def test_a_body_of_64_mib_hurts_nobody(app, broker, queue, dead_letter):
    """RabbitMQ 4 refuses the message (its limit is 16 MiB); 3.10 delivers it."""
    broker.confirm_delivery()
    try:
        sent = publish(app, broker, queue, b'[["' + b"x" * (64 << 20) + b'"], {}, {}]')
    except pika.exceptions.ChannelClosedByBroker as refused:
        assert "max size" in refused.reply_text
    else:
        letter, _ = dead_letter(lambda letter, _: letter.correlation_id == sent.id)
        assert "limit" in letter.headers["x-countersign-reason"]
        with pytest.raises(Exception, match="limit"):
            sent.get(timeout=TIMEOUT)
    assert app.send_task("demo.add", (1, 2)).get(timeout=TIMEOUT) == 3
