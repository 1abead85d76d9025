"""Enqueues COUNT marks with an unmodified Celery client, whatever its broker goes through, and
prints the id of each that was accepted (confirmed). Usage: producer.py QUEUE LIST COUNT"""
import os
import sys
import uuid

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import KombuError

queue, marks, count = sys.argv[1], sys.argv[2], int(sys.argv[3])


def client():
    app = Celery("producer", broker=os.environ["COUNTERSIGN_BROKER_URL"], set_as_current=False)
    app.conf.update(broker_transport_options={"confirm_publish": True}, broker_pool_limit=1)
    return app


app, sent = client(), 0
while sent < count:
    task_id = str(uuid.uuid4())
    try:
        app.send_task("demo.mark", (marks, task_id), task_id=task_id, queue=queue, retry=False,
                      ignore_result=False)
    except (AMQPError, KombuError, OSError):
        app = client()  # a pool that has seen a broken connection may go on breaking
        continue
    print(task_id)
    sent += 1
