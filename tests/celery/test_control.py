"""Celery's remote control: ping and revoke from unmodified clients."""
import time
import uuid

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from conftest import TIMEOUT, Worker, celery_app


def node(queue):
    return f"{queue}@celery-test"


@pytest.fixture
def own_queue():
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def own_app(own_queue):
    app = celery_app(own_queue)
    yield app
    app.close()


def started(own_queue):
    log = "info,countersign::worker=debug,lapin=off,redis=error"
    worker = Worker(own_queue, "-c", "1", log=log)
    worker.says(f"consuming {own_queue}")
    worker.says("listening to Celery's remote control")
    return worker


def test_ping_is_answered_by_name(own_app, own_queue):
    worker = started(own_queue)
    try:
        answers = own_app.control.ping(timeout=2)
        assert {node(own_queue): {"ok": "pong"}} in answers
        assert own_app.control.ping(destination=[node(own_queue)], timeout=TIMEOUT) == [
            {node(own_queue): {"ok": "pong"}}]
        inspected = own_app.control.inspect(destination=[node(own_queue)], timeout=TIMEOUT)
        assert inspected.ping() == {node(own_queue): {"ok": "pong"}}
    finally:
        worker.stop()


def test_two_workers_of_one_name_both_answer(own_app, own_queue):
    workers = [started(own_queue), started(own_queue)]
    try:
        answers = own_app.control.ping(timeout=2)
        assert answers.count({node(own_queue): {"ok": "pong"}}) == 2
    finally:
        for worker in workers:
            worker.stop()


def test_what_is_not_understood_is_said_so_and_harms_nobody(own_app, own_queue, broker):
    worker = started(own_queue)
    try:
        for garbage in (b"", b"\xff", b"[]", b"{}", b'{"method": 5}', b"[" * 100_000,
                        b'{"method": "revoke", "arguments": [1]}',
                        b'{"method": "ping", "reply_to": {"exchange": "", "routing_key": "x"}}'):
            broker.basic_publish("celery.pidbox", "", garbage)
        answers = own_app.control.inspect(
            destination=[node(own_queue)], timeout=TIMEOUT).stats()
        assert "KeyError" in answers[node(own_queue)]["error"]
        assert own_app.send_task("demo.add", (1, 2)).get(timeout=TIMEOUT) == 3
    finally:
        worker.stop()


def test_a_queued_task_is_revoked_and_never_runs(own_app, own_queue):
    worker = started(own_queue)
    key = f"revoked-{time.time_ns()}"
    try:
        busy = own_app.send_task("demo.sleep", (1.5,))
        queued = own_app.send_task("demo.mark", (key, "ran"))
        queued.revoke()
        with pytest.raises(TaskRevokedError, match="revoked"):
            queued.get(timeout=TIMEOUT)
        assert AsyncResult(queued.id, app=own_app).state == "REVOKED"
        assert busy.get(timeout=TIMEOUT) == 1.5
        assert own_app.backend.client.llen(key) == 0
    finally:
        worker.stop()


def test_a_revocation_outlives_the_worker_that_heard_it(own_app, own_queue):
    worker = started(own_queue)
    key = f"revoked-{time.time_ns()}"
    later = own_app.send_task("demo.mark", (key, "ran"), countdown=3)
    (answer,) = own_app.control.revoke(
        later.id, reply=True, destination=[node(own_queue)], timeout=TIMEOUT)
    assert answer == {node(own_queue): {"ok": f"tasks {{'{later.id}'}} flagged as revoked"}}
    worker.stop()
    worker = started(own_queue)
    try:
        with pytest.raises(TaskRevokedError):
            later.get(timeout=TIMEOUT)
        assert own_app.backend.client.llen(key) == 0
    finally:
        worker.stop()


def test_a_running_task_is_terminated(own_app, own_queue):
    worker = started(own_queue)
    try:
        running = own_app.send_task("demo.sleep", (3600,))
        worker.says(f"started demo.sleep {running.id}")
        own_app.control.revoke(running.id, terminate=True)
        with pytest.raises(TaskRevokedError, match="terminated"):
            running.get(timeout=TIMEOUT)
        assert own_app.send_task("demo.add", (1, 2)).get(timeout=TIMEOUT) == 3
    finally:
        assert worker.stop() == 0


def test_a_running_task_goes_on_when_it_is_only_revoked(own_app, own_queue):
    worker = started(own_queue)
    try:
        running = own_app.send_task("demo.sleep", (2,))
        worker.says(f"started demo.sleep {running.id}")
        own_app.control.revoke(
            running.id, reply=True, destination=[node(own_queue)], timeout=TIMEOUT)
        assert running.get(timeout=TIMEOUT) == 2
    finally:
        worker.stop()


def test_several_are_revoked_at_once(own_app, own_queue):
    worker = started(own_queue)
    try:
        busy = own_app.send_task("demo.sleep", (1,))
        queued = [own_app.send_task("demo.add", (n, n)) for n in range(5)]
        own_app.control.revoke([result.id for result in queued])
        for result in queued:
            with pytest.raises(TaskRevokedError):
                result.get(timeout=TIMEOUT)
        assert busy.get(timeout=TIMEOUT) == 1
    finally:
        worker.stop()
