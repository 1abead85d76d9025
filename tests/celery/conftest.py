"""Tests of real Celery clients and real workers, on the servers that ops/test has started."""
import os
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import pika
import pytest
from celery import Celery

ROOT = Path(__file__).resolve().parents[2]
BUILT = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
DEMO, COUNTERSIGN = BUILT / "demo", BUILT / "countersign"
TIMEOUT = 30


def setting(name):
    if name not in os.environ:
        pytest.exit(f"{name} is not set: run ops/test", returncode=4)
    return os.environ[name]


class Worker:
    """A demo worker in its own process. Keeps its standard error for failing tests."""

    def __init__(self, queue, *arguments, log="info,lapin=off,redis=error", environment=()):
        self.lines, self._changed = [], threading.Condition()
        self.process = subprocess.Popen(
            [DEMO, "-Q", queue, "-n", f"{queue}@celery-test", *arguments],
            env={**os.environ, "RUST_LOG": log, **dict(environment)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def says(self, text):
        with self._changed:
            found = self._changed.wait_for(
                lambda: any(text in line for line in self.lines)
                or self.process.poll() is not None, timeout=TIMEOUT)
        assert found and self.process.poll() is None, "".join(self.lines)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(TIMEOUT)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def queue():
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def worker(queue):
    worker = Worker(queue, "-c", "8")
    try:
        worker.says(f"consuming {queue}")
        yield worker
        assert worker.process.poll() is None, "the worker died:\n" + "".join(worker.lines)
    finally:
        worker.stop()


def celery_app(queue):
    """Creates an unmodified Celery client, as a producer uses it."""
    app = Celery("client", broker=setting("COUNTERSIGN_BROKER_URL"),
                 backend=setting("COUNTERSIGN_STORE_URL"), set_as_current=False)
    app.conf.task_default_queue = queue
    return app


@pytest.fixture(scope="module")
def app(queue, worker):
    app = celery_app(queue)
    yield app
    app.close()


@pytest.fixture
def broker():
    connection = pika.BlockingConnection(pika.URLParameters(setting("COUNTERSIGN_BROKER_URL")))
    yield connection.channel()
    connection.close()


@pytest.fixture
def dead_letter(broker, queue):
    """Waits for the next matching message of `<queue>.dead`."""
    broker.queue_declare(f"{queue}.dead", durable=True)

    def next_fitting(fits):
        for method, properties, body in broker.consume(
                f"{queue}.dead", inactivity_timeout=TIMEOUT):
            assert method is not None, "no such message among the dead letters"
            broker.basic_ack(method.delivery_tag)
            if fits(properties, body):
                return properties, body

    yield next_fitting
    if broker.is_open:
        broker.cancel()
