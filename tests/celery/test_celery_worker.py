"""A plain Celery worker runs the lean messages of Rust producers."""
import json
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
from celery.result import AsyncResult

from conftest import COUNTERSIGN, TIMEOUT, celery_app


@pytest.fixture(scope="module")
def queue():
    queue = f"test-{uuid.uuid4().hex}"
    celery = [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "--pool", "threads", "-c", "4",
              "-Q", queue, "-n", f"{queue}@test", "--loglevel", "INFO"]
    process = subprocess.Popen(
        celery, cwd=Path(__file__).parent, env={**os.environ, "CELERY_QUEUE": queue},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines, is_ready = [], threading.Event()

    def listen():
        for line in process.stderr:
            lines.append(line)
            if " ready." in line:
                is_ready.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        assert is_ready.wait(TIMEOUT), "".join(lines)
        yield queue
        assert process.poll() is None, "".join(lines)
    finally:
        process.terminate()
        process.wait(TIMEOUT)


def run(queue, name, *arguments, envelope="lean"):
    """Enqueues a task with the command line, and returns its result."""
    command = [COUNTERSIGN, "run", "--queue", queue, name, *map(str, arguments), "--wait", "--timeout", "30s",
               "-o", "json"]
    environment = {**os.environ, "COUNTERSIGN_CLIENT_ENVELOPE": envelope}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT * 2)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("envelope", ["lean", "celery"])
def test_a_celery_worker_reads_both_forms_of_a_message(queue, envelope):
    assert run(queue, "plain.add", 2, 3, envelope=envelope)["result"] == 5
    seen = run(queue, "plain.request", envelope=envelope)
    request = seen["result"]
    assert request["id"] == request["root"] == seen["id"]
    assert (request["parent"], request["retries"], request["eta"]) == (None, 0, None)
    assert not request["ignore_result"] and request["timelimit"] in (None, [None, None])


def test_a_retry_in_a_celery_worker_counts_from_a_message_without_retries(queue):
    assert run(queue, "plain.retry")["result"] == 2


@pytest.mark.parametrize("name, argument, expected", [("plain.chain", 1, 7), ("plain.chord", 10, 90)])
def test_a_task_of_a_rust_producer_starts_canvas_in_a_celery_worker(queue, name, argument, expected):
    last = run(queue, name, argument)["result"]
    assert AsyncResult(last, app=celery_app(queue)).get(timeout=TIMEOUT) == expected
