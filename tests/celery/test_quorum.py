"""Quorum queues that another program declared: workers use them unchanged."""
import subprocess
import sys
import uuid
from contextlib import contextmanager

import pytest
from celery import Celery
from kombu import Exchange, Queue

from conftest import ROOT, TIMEOUT, Worker, celery_app, setting

DRAINS = 24
LIMIT = 20


@contextmanager
def fresh_broker(folder):
    """Runs a separate RabbitMQ for one test. It ends at the end of its standard input."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "ops" / "servers", "rabbit", "--dir", folder / "rabbit"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().split()[1]
    finally:
        server.stdin.close()
        server.wait(60)


@pytest.fixture
def quorum(broker):
    """Declares a quorum queue with the default delivery limit of RabbitMQ 4."""
    name = f"quorum-{uuid.uuid4().hex}"
    broker.queue_declare(name, durable=True, arguments={
        "x-queue-type": "quorum", "x-delivery-limit": LIMIT})
    yield name
    broker.queue_delete(name)


@pytest.fixture
def app_of():
    """Creates Celery clients that do not declare their queues, since they would declare classic queues."""
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
        assert [result.get(timeout=TIMEOUT) for result in sums] == list(range(1, 101))
        assert again.get(timeout=TIMEOUT) == 2
        assert late.get(timeout=TIMEOUT) == 42
    finally:
        assert worker.stop() == 0


def test_a_task_returned_at_every_deploy_outlives_the_delivery_limit(quorum, app_of):
    """Checks the tasks' results. At each drain one has started, and all four are returned to the queue."""
    app = app_of(quorum)
    returned = [app.send_task("demo.sleep", (5,)) for _ in range(4)]
    for _ in range(DRAINS):
        worker = Worker(quorum, "-c", "1", "--prefetch", "10", "--drain-deadline", "0s")
        worker.says("consuming")
        worker.stop()
    worker = Worker(quorum, "-c", "4", "--prefetch", "10")
    try:
        assert [result.get(timeout=TIMEOUT) for result in returned] == [5, 5, 5, 5]
    finally:
        worker.stop()


@pytest.mark.parametrize("keys", ["its own name", "an exchange and a key of its own"])
def test_a_countdown_of_a_celery_client_arrives_on_a_broker_that_no_celery_worker_has_met(
        keys, tmp_path):
    """Checks the result. Celery clients do not declare the delay exchanges; the worker does."""
    with fresh_broker(tmp_path) as url:
        queue, environment = f"fresh-{uuid.uuid4().hex}", {"COUNTERSIGN_BROKER_URL": url}
        exchange, key = (queue, queue) if keys == "its own name" else ("tasks", f"{queue}.run")
        settings = tmp_path / "countersign.toml"
        settings.write_text(f'[queues."{queue}"]\ntype = "quorum"\n' + (
            f'exchange = "{exchange}"\nrouting_key = "{key}"\n' if exchange != queue else ""))
        environment["COUNTERSIGN_CONFIG"] = str(settings)
        environment["RUST_LOG"] = "info,countersign::backend::rabbitmq=debug,lapin=off"
        worker = Worker(queue, "-c", "8", environment=environment)
        app = Celery("client", broker=url, backend=setting("COUNTERSIGN_STORE_URL"),
                     set_as_current=False)
        app.conf.task_default_queue_type = "quorum"
        app.conf.task_queues = [Queue(queue, Exchange(exchange, type="topic"), routing_key=key,
                                      queue_arguments={"x-queue-type": "quorum"})]
        app.conf.task_default_queue = queue
        app.conf.task_default_exchange, app.conf.task_default_routing_key = exchange, key
        app.conf.task_default_exchange_type = "topic"
        app.conf.broker_transport_options = {"confirm_publish": True}
        try:
            worker.says("declared the delayed-delivery exchanges")
            late = app.send_task("demo.add", (20, 22), countdown=2)
            assert late.get(timeout=TIMEOUT) == 42
        finally:
            app.close()
            assert worker.stop() == 0
