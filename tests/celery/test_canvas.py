"""Callbacks, errbacks, chains and groups of unmodified Celery clients."""
import json
import subprocess
import time
import uuid

import pika
import pytest
from celery import chain, chord, group
from celery.result import AsyncResult, GroupResult

from conftest import COUNTERSIGN, TIMEOUT


@pytest.fixture
def task(app):
    """Makes signatures of demo tasks, with the client's own queue for the callbacks."""
    def of(name, *args, **kwargs):
        return app.signature(f"demo.{name}", args=args, kwargs=kwargs)

    return of


def mark_of(app, key):
    """Returns the values that demo.mark has pushed to this key."""
    return app.backend.client.lrange(key, 0, -1)


def wait_for_mark(app, key):
    pushed = app.backend.client.blpop(key, timeout=TIMEOUT)
    assert pushed, f"nothing was marked under {key}"
    return pushed[1].decode()


def test_a_callback_gets_the_result_before_its_own_arguments(app, task):
    result = task("add", 2, 3).apply_async(link=task("echo", "own", k=1))
    assert result.get(timeout=TIMEOUT) == 5
    (child,) = result.children
    assert child.get(timeout=TIMEOUT) == {"args": [5, "own"], "kwargs": {"k": 1}}
    meta = app.backend.get_task_meta(child.id)
    assert meta["parent_id"] == result.id


def test_an_immutable_callback_gets_its_own_arguments_only(task):
    callback = task("echo", "own")
    callback.set(immutable=True)
    result = task("add", 2, 3).apply_async(link=callback)
    result.get(timeout=TIMEOUT)
    assert result.children[0].get(timeout=TIMEOUT) == {"args": ["own"], "kwargs": {}}


def test_several_callbacks_are_one_group(task):
    result = task("add", 1, 1).apply_async(link=[task("add", 1), task("add", 2)])
    assert result.get(timeout=TIMEOUT) == 2
    (together,) = result.children
    assert isinstance(together, GroupResult)
    assert together.get(timeout=TIMEOUT) == [3, 4]


def test_a_callback_may_be_a_chain_or_a_group(app, task):
    linked = task("add", 1, 1).apply_async(link=chain(task("add", 10), task("add", 100)))
    linked.get(timeout=TIMEOUT)
    (first,) = linked.children
    assert first.get(timeout=TIMEOUT) == 12
    assert first.children[0].get(timeout=TIMEOUT) == 112
    linked = task("add", 1, 1).apply_async(link=group(task("add", 10), task("add", 20)))
    linked.get(timeout=TIMEOUT)
    assert linked.children[0].get(timeout=TIMEOUT) == [12, 22]


def test_a_chain_hands_each_result_to_the_next(app, task):
    last = task("echo", "fixed", k="v")
    last.set(immutable=True)
    result = chain(task("add", 1, 2), task("echo", "more", named=1), last).apply_async()
    assert result.get(timeout=TIMEOUT) == {"args": ["fixed"], "kwargs": {"k": "v"}}
    assert result.parent.get(timeout=TIMEOUT) == {"args": [3, "more"], "kwargs": {"named": 1}}
    assert result.parent.parent.get(timeout=TIMEOUT) == 3
    root = result.parent.parent
    assert [child.id for child in AsyncResult(root.id, app=app).children] == [result.parent.id]
    meta = app.backend.get_task_meta(result.id)
    assert meta["parent_id"] == result.parent.id


def test_a_chain_goes_through_the_queues_and_delays_of_its_parts(app, task):
    late = task("add", 10).set(countdown=1)
    begun = time.monotonic()
    result = chain(task("add", 1, 2), late).apply_async()
    assert result.get(timeout=TIMEOUT) == 13
    assert time.monotonic() - begun >= 0.9


def test_a_long_chain_ends(task):
    steps = [task("add", 1, 1)] + [task("add", 1) for _ in range(30)]
    assert chain(*steps).apply_async().get(timeout=60) == 32


def test_a_group_may_end_a_chain(task):
    parts = group(task("add", 1), task("add", 2), chain(task("add", 3), task("add", 4)))
    result = chain(task("add", 10, 10), parts).apply_async()
    assert isinstance(result, GroupResult)
    assert result.get(timeout=TIMEOUT) == [21, 22, 27]
    root = result.parent
    assert root.get(timeout=TIMEOUT) == 20
    (members,) = root.children
    assert members.id == result.id
    assert members.get(timeout=TIMEOUT) == [21, 22, 27]


def test_members_of_a_group_have_their_place_in_it(app, task):
    result = chain(task("add", 1, 1), group(task("add", 1), task("add", 2))).apply_async()
    assert result.get(timeout=TIMEOUT) == [3, 4]
    for member in result.results:
        assert app.backend.get_task_meta(member.id)["group_id"] == result.id


def test_a_failure_calls_the_errbacks_with_the_failed_id(app, task):
    errback = app.signature("demo.mark", args=("called",))
    result = task("fail", "boom").apply_async(link=task("add", 1), link_error=errback)
    with pytest.raises(ValueError, match="boom"):
        result.get(timeout=TIMEOUT)
    assert wait_for_mark(app, result.id) == "called"
    assert result.children in (None, [])


def test_an_immutable_errback_gets_its_own_arguments(app, task):
    key = f"errback-{time.time_ns()}"
    errback = app.signature("demo.mark", args=(key, "own"), immutable=True)
    task("fail", "boom").apply_async(link_error=errback)
    assert wait_for_mark(app, key) == "own"


def test_the_rest_of_a_failed_chain_fails_and_does_not_run(app, task):
    key = f"never-{time.time_ns()}"
    never = app.signature("demo.mark", args=(key, "ran"), immutable=True)
    result = chain(
        task("add", 1, 1), app.signature("demo.fail", args=("boom",), immutable=True), never,
        task("add", 1)).apply_async(link_error=app.signature("demo.mark", args=("called",)))
    with pytest.raises(ValueError, match="boom"):
        result.get(timeout=TIMEOUT)
    for waited in (result, result.parent):
        notified = AsyncResult(waited.id, app=app)
        assert isinstance(notified.get(timeout=TIMEOUT, propagate=False), ValueError)
        assert notified.state == "FAILURE"
    failed = result.parent.parent
    assert AsyncResult(failed.id, app=app).state == "FAILURE"
    assert wait_for_mark(app, failed.id) == "called"
    assert mark_of(app, key) == []


def test_a_retried_task_keeps_what_follows_it(task):
    result = task("retry", 1, 0.2).apply_async(link=task("add", 10))
    assert result.get(timeout=TIMEOUT) == 1
    assert result.children[0].get(timeout=TIMEOUT) == 11


def test_what_follows_an_unknown_task_is_told(app, task):
    result = chain(app.signature("no.such.task"), task("add", 1)).apply_async()
    with pytest.raises(Exception, match="no.such.task"):
        AsyncResult(result.id, app=app).get(timeout=TIMEOUT)


def test_a_replay_takes_back_the_failures_of_the_rest_of_its_chain(app, task, queue):
    result = chain(app.signature("no.such.task"), task("add", 1), task("add", 2)).apply_async()
    first, second = result.parent.parent.id, result.parent.id
    with pytest.raises(Exception, match="no.such.task"):
        AsyncResult(result.id, app=app).get(timeout=TIMEOUT)
    subprocess.run([COUNTERSIGN, "failures", "replay", first, "-Q", queue], check=True)
    notes = app.backend.client.xrange("cs:notes:{cs}")
    notified = {value.decode() for _, entry in notes for value in entry.values()}
    assert {first, second, result.id} <= notified


def test_a_task_before_a_chord_is_not_run_and_kept(app, task, dead_letter):
    key = f"chord-{time.time_ns()}"
    first = app.signature("demo.mark", args=(key, "ran"))
    upgraded = chain(first, group(task("add", 1), task("add", 2)), task("tsum"))
    result = upgraded.apply_async()
    with pytest.raises(NotImplementedError, match="chord"):
        AsyncResult(result.id, app=app).get(timeout=TIMEOUT)
    properties, _ = dead_letter(lambda properties, _: "chord" in str(
        properties.headers.get("x-countersign-reason")))
    assert properties.headers["task"] == "demo.mark"
    assert mark_of(app, key) == []
    header = chord([task("add", 1, 1), task("add", 2, 2)], task("tsum")).apply_async()
    with pytest.raises(NotImplementedError, match="chord"):
        AsyncResult(header.id, app=app).get(timeout=TIMEOUT)


def test_errbacks_are_sent_again_when_a_failure_was_stored_before(app, broker, queue, worker):
    """Simulates a crash between the failure and its errbacks. The task does not run again."""
    ident, key = str(uuid.uuid4()), f"ran-{time.time_ns()}"
    app.backend.store_result(ident, ValueError("before"), "FAILURE")
    after = str(uuid.uuid4())
    embed = {"errbacks": [app.signature("demo.mark", args=("called",))],
             "chain": [app.signature("demo.add", args=(1,), task_id=after)]}
    broker.basic_publish("", queue, json.dumps([[key, "ran"], {}, embed]), pika.BasicProperties(
        content_type="application/json", content_encoding="utf-8", correlation_id=ident,
        headers={"task": "demo.mark", "id": ident, "retries": 1}))
    assert wait_for_mark(app, ident) == "called"
    with pytest.raises(ValueError, match="before"):
        AsyncResult(after, app=app).get(timeout=TIMEOUT)
    assert mark_of(app, key) == []


@pytest.mark.parametrize("embed", [
    {"callbacks": 5}, {"callbacks": [5]}, {"chain": [{"task": 7}]}, {"chain": "abc"},
    {"errbacks": [{"options": {"countdown": "x"}, "task": "demo.add"}]},
    {"callbacks": [{"task": "demo.add", "options": {"countdown": 1e300}}]},
    {"callbacks": [{"task": "demo.add", "options": {"queue": "q" * 300}}]},
    {"callbacks": [{"task": "demo.add", "options": {"queue": "amq.reserved"}}]},
    {"callbacks": [{"task": "celery.group", "kwargs": {"tasks": {"a": 1}}}]},
])
def test_garbage_in_what_follows_fails_its_task_and_no_other(app, broker, queue, worker, embed):
    ident = str(uuid.uuid4())
    broker.basic_publish("", queue, json.dumps([[1, 2], {}, embed]), pika.BasicProperties(
        content_type="application/json", content_encoding="utf-8", correlation_id=ident,
        headers={"task": "demo.add", "id": ident}))
    with pytest.raises(Exception, match="embed|queue"):
        AsyncResult(ident, app=app).get(timeout=TIMEOUT)
    assert app.send_task("demo.add", (1, 2)).get(timeout=TIMEOUT) == 3
