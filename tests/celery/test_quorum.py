"""Quorum queues that somebody else declared: they are used as they are."""
import uuid

import pytest
from kombu import Queue

from conftest import PATIENCE, Worker, celery_app

DRAINS = 24
LIMIT = 20


@pytest.fixture
def quorum(broker):
    """A quorum queue with the delivery limit that RabbitMQ 4 has by default."""
    name = f"quorum-{uuid.uuid4().hex}"
    broker.queue_declare(name, durable=True, arguments={
        "x-queue-type": "quorum", "x-delivery-limit": LIMIT})
    yield name
    broker.queue_delete(name)


@pytest.fixture
def app_of():
    """Celery clients of queues that they do not declare: their declaration would say classic."""
    apps = []

    def app_of(queue):
        app = celery_app(queue)
        app.conf.task_queues = [Queue(queue, no_declare=True)]
        apps.append(app)
        return app

    yield app_of
    for app in apps:
        app.close()


def test_tasks_delays_and_retries_work_on_a_quorum_queue(quorum, app_of):
    worker = Worker(quorum, "-c", "8")
    app = app_of(quorum)
    try:
        late = app.send_task("demo.add", (20, 22), countdown=1)
        again = app.send_task("demo.retry", (2, 0.3))
        sums = [app.send_task("demo.add", (n, 1)) for n in range(100)]
        assert [result.get(timeout=PATIENCE) for result in sums] == list(range(1, 101))
        assert again.get(timeout=PATIENCE) == 2
        assert late.get(timeout=PATIENCE) == 42
    finally:
        assert worker.stop() == 0


def test_a_task_returned_at_every_deploy_outlives_the_delivery_limit(quorum, app_of):
    """Counted: the tasks' results. At each drain one has started, and all four are returned."""
    app = app_of(quorum)
    returned = [app.send_task("demo.sleep", (5,)) for _ in range(4)]
    for _ in range(DRAINS):
        worker = Worker(quorum, "-c", "1", "--prefetch", "10", "--drain-deadline", "0s")
        worker.says("consuming")
        worker.stop()
    worker = Worker(quorum, "-c", "4", "--prefetch", "10")
    try:
        assert [result.get(timeout=PATIENCE) for result in returned] == [5, 5, 5, 5]
    finally:
        worker.stop()
