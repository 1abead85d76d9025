"""Enqueues marks with an unmodified Celery client for SECONDS, even during faults of the broker, at most
PER_SECOND of them. Prints `sending ID` before each, and `accepted ID` when it is confirmed.
Usage: producer.py QUEUE LIST SECONDS PER_SECOND"""
import os
import sys
import time
import uuid

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import KombuError

queue, marks, seconds, per_second = *sys.argv[1:3], float(sys.argv[3]), float(sys.argv[4])


def client():
    app = Celery("producer", broker=os.environ["COUNTERSIGN_BROKER_URL"], set_as_current=False)
    app.conf.update(broker_transport_options={"confirm_publish": True}, broker_pool_limit=1)
    return app


app, end = client(), time.monotonic() + seconds
while time.monotonic() < end:
    task_id = str(uuid.uuid4())
    print("sending", task_id, flush=True)
    try:
        app.send_task("demo.mark", (marks, task_id), task_id=task_id, queue=queue, retry=False,
                      ignore_result=False)
    except (AMQPError, KombuError, OSError):
        app = client()  # a pool that has seen a broken connection may go on breaking
    else:
        print("accepted", task_id, flush=True)
    time.sleep(1 / per_second)
