"""Priorities of unmodified Celery clients on a queue with `max_priority`."""
import uuid

import pytest
import redis
from conftest import TIMEOUT, Worker, celery_app, setting
from kombu import Queue


@pytest.fixture
def settings_file(tmp_path, monkeypatch):
    """The workers' settings of the queue: ten priorities."""
    queue = f"test-{uuid.uuid4().hex}"
    file = tmp_path / "countersign.toml"
    file.write_text(f'[queues."{queue}"]\nmax_priority = 10\n')
    monkeypatch.setenv("COUNTERSIGN_CONFIG", str(file))
    return queue


def send_marks(app, queue, marks):
    return [app.send_task("demo.mark", (marks, str(priority)), priority=priority, queue=queue)
            for priority in (1, 9, 5, 10, 0)]


def test_a_celery_client_and_a_worker_agree_on_a_queue_with_priorities(settings_file):
    """The client declares and fills the queue. The worker starts later, and runs high priorities first."""
    app, marks = celery_app(settings_file), f"marks-{uuid.uuid4().hex}"
    app.conf.task_queues = [Queue(settings_file, max_priority=10, durable=True)]
    results = send_marks(app, settings_file, marks)
    worker = Worker(settings_file, "-c", "1", "--prefetch", "1")
    try:
        for result in results:
            result.get(timeout=TIMEOUT)
    finally:
        worker.stop()
    store = redis.Redis.from_url(setting("COUNTERSIGN_STORE_URL"))
    assert store.lrange(marks, 0, -1) == [b"10", b"9", b"5", b"1", b"0"]
    app.close()


def test_a_worker_makes_the_queue_as_a_celery_client_declares_it(settings_file):
    """Different queue arguments would close the client's channel."""
    worker = Worker(settings_file, "-c", "1", "--prefetch", "1")
    try:
        worker.says(f"consuming {settings_file}")
        app = celery_app(settings_file)
        app.conf.task_queues = [Queue(settings_file, max_priority=10, durable=True)]
        for result in send_marks(app, settings_file, f"marks-{uuid.uuid4().hex}"):
            assert result.get(timeout=TIMEOUT)
        app.close()
    finally:
        worker.stop()
