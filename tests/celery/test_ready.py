"""A worker that reports readiness is ready."""
import uuid

import pika

from conftest import Worker


def test_a_ready_worker_has_declared_its_queue(broker):
    # A publisher that neither declares the queue nor publishes as mandatory would lose its task.
    queue = f"test-{uuid.uuid4().hex}"
    broker.confirm_delivery()
    worker = Worker(queue)
    try:
        worker.says("ready")
        broker.basic_publish("", queue, b"[[1, 2], {}, {}]", pika.BasicProperties(
            content_type="application/json", content_encoding="utf-8",
            headers={"task": "demo.add", "id": queue}), mandatory=True)
    finally:
        worker.stop()
